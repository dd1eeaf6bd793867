//! VMSAv8-64 stage 1 with the 4 KiB granule, as the processor reads it (Arm ARM DDI 0487, D8.3 and D8.16 "break-before-make").
//! Levels as the core numbers them: 4 is the root.

use hyp_core::address::{GuestVirtual, MachineFrame};
use hyp_core::machine::Level;
use hyp_el2::format::VmsaStage1;
use hyp_el2::store::Change;

use super::{Hardware, Shape, Walk};

const ADDRESS: u64 = ((1 << 48) - 1) & !0xfff;
/// Access flag, inner shareable, type page.
const PAGE: u64 = 1 << 10 | 0b11 << 8 | 0b11;
const READ_ONLY: u64 = 1 << 7;
const DIRTY_BIT_MODIFIER: u64 = 1 << 51;

impl Hardware for VmsaStage1 {
    const NAME: &'static str = "aarch64";
    const SIGN: u64 = 0xffff_8000_0000_0000;
    const KERNEL_SLOT: u64 = 300;
    const TAGGED: bool = true;
    const BREAKS: bool = true;
    // Rights in table entries can be switched off (HPD): they are never credited.
    const LIMITS: bool = false;

    fn root_of(
        address: GuestVirtual,
        kernel: Option<MachineFrame>,
        user: Option<MachineFrame>,
    ) -> Option<MachineFrame> {
        match address.bytes() >> 48 {
            0xffff => kernel,
            0 => user,
            _ => None,
        }
    }

    fn walk(level: Level, raw: u64) -> Walk {
        let writable = raw & READ_ONLY == 0 || raw & DIRTY_BIT_MODIFIER != 0;
        let uncached = raw & 0b111 << 2 != 0;
        let frame = (raw & ADDRESS) >> 12;
        match (raw & 3, level) {
            (3, 1) => Walk::Leaf { frame, writable, uncached },
            (3, _) => Walk::Table { frame, limited: false },
            (1, 2 | 3) => {
                let span = (1 << (9 * u32::from(level - 1))) - 1;
                Walk::Leaf { frame: frame & !span, writable, uncached }
            }
            _ => Walk::Fault,
        }
    }

    /// Another output address, another kind, another memory type or shareability, another globality.
    fn conflict(level: Level, old: u64, new: u64) -> bool {
        let meaning = |raw: u64| match Self::walk(level, raw) {
            Walk::Fault => None,
            Walk::Table { frame, .. } => Some((true, frame, 0)),
            Walk::Leaf { frame, .. } => Some((false, frame, raw & (0b111 << 2 | 0b11 << 8 | 1 << 11))),
        };
        matches!((meaning(old), meaning(new)), (Some(old), Some(new)) if old != new)
    }

    fn backend_change(old: u64, new: u64) -> Change {
        Change::of(old, new)
    }

    fn compose(shape: Shape, frame: u64) -> u64 {
        let address = frame << 12;
        match shape {
            Shape::Nothing => 0,
            Shape::NotPresent => address | PAGE & !1,
            Shape::ReadOnly => address | PAGE | READ_ONLY,
            Shape::Writable => address | PAGE | 1 << 54,
            Shape::Lifted => address | PAGE | READ_ONLY | DIRTY_BIT_MODIFIER,
            Shape::Table => address | 3,
            Shape::LimitedTable => address | 3 | READ_ONLY,
            Shape::Superpage { writable } => address | PAGE & !2 | if writable { 0 } else { READ_ONLY },
            Shape::Forbidden(which) => {
                let bit = [2, 3, 52, 59, 50, 48][usize::from(which) % 6];
                address | PAGE | READ_ONLY | 1 << bit
            }
        }
    }

    fn uncached(frame: u64) -> u64 {
        frame << 12 | PAGE | 1 << 2
    }
}
