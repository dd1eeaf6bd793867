//! The fake machine's tables, read from the drawing in `hyp-core/src/fake/format.rs`, not through its code.

use hyp_core::address::{GuestVirtual, MachineFrame};
use hyp_core::fake::FakeFormat;
use hyp_core::machine::Level;

use super::{Hardware, Shape, Walk};

const PRESENT: u64 = 1 << 63;
const TABLE: u64 = 1 << 9;
const READ_ONLY: u64 = 1 << 5;
const LIFT: u64 = 1 << 4;

fn frame(raw: u64) -> u64 {
    raw >> 20 & ((1 << 30) - 1)
}

impl Hardware for FakeFormat {
    const NAME: &'static str = "fake";
    const SIGN: u64 = 0;
    const KERNEL_SLOT: u64 = 16;
    const TAGGED: bool = true;
    const BREAKS: bool = false;
    const LIMITS: bool = true;

    fn root_of(
        address: GuestVirtual,
        kernel: Option<MachineFrame>,
        _: Option<MachineFrame>,
    ) -> Option<MachineFrame> {
        kernel.filter(|_| address.bytes() >> 24 == 0)
    }

    fn walk(level: Level, raw: u64) -> Walk {
        match (raw & PRESENT != 0, raw & TABLE != 0, level) {
            (false, ..) => Walk::Fault,
            (true, true, 2..) => {
                Walk::Table { frame: frame(raw), limited: raw & READ_ONLY != 0 && raw & LIFT == 0 }
            }
            (true, false, 1 | 2) => {
                let writable = raw & READ_ONLY == 0 || raw & LIFT != 0;
                Walk::Leaf { frame: frame(raw), writable, uncached: false }
            }
            _ => Walk::Fault,
        }
    }

    fn used(written: bool) -> u64 {
        2 | u64::from(written)
    }

    fn compose(shape: Shape, frame: u64) -> u64 {
        let entry = PRESENT | frame << 20;
        match shape {
            Shape::Nothing => 0,
            Shape::NotPresent => frame << 20 | READ_ONLY,
            Shape::ReadOnly | Shape::Superpage { writable: false } => entry | READ_ONLY,
            Shape::Writable | Shape::Superpage { writable: true } => entry,
            Shape::Lifted => entry | READ_ONLY | LIFT,
            Shape::Table => entry | TABLE,
            Shape::LimitedTable => entry | TABLE | READ_ONLY,
            Shape::Forbidden(which) => {
                entry | READ_ONLY | [1 << 12, 1 << 62, 1 << 51, 1 << 6][usize::from(which) % 4]
            }
        }
    }

    fn uncached(frame: u64) -> u64 {
        PRESENT | frame << 20 | 1 << 12
    }
}
