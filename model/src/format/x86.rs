//! Four levels of x86-64 tables, as the processor reads them (Intel SDM volume 3, 4.5 "4-level paging").

use hyp_core::address::{GuestVirtual, MachineFrame};
use hyp_core::machine::Level;
use hyp_x86::format::X86Format;

use super::{Hardware, Shape, Walk};

const ADDRESS: u64 = ((1 << 52) - 1) & !0xfff;
/// Present, writable, user, accessed, dirty.
const ORDINARY: u64 = 0x67;

impl Hardware for X86Format {
    const NAME: &'static str = "x86-64";
    const SIGN: u64 = 0xffff_8000_0000_0000;
    const KERNEL_SLOT: u64 = 300;
    const TAGGED: bool = false;
    const BREAKS: bool = false;
    const LIMITS: bool = true;

    fn root_of(
        address: GuestVirtual,
        kernel: Option<MachineFrame>,
        _: Option<MachineFrame>,
    ) -> Option<MachineFrame> {
        let top = (address.bytes() as i64) >> 47;
        kernel.filter(|_| top == 0 || top == -1)
    }

    fn walk(level: Level, raw: u64) -> Walk {
        let large = raw & 1 << 7 != 0;
        let writable = raw & 2 != 0;
        let uncached = raw & 0x18 != 0;
        match level {
            // Guests run in ring 3 only.
            _ if raw & 0b101 != 0b101 => Walk::Fault,
            // Bit 7 selects memory type 4, which is write-back like type 0 (the page-attribute table is as after a reset).
            1 => Walk::Leaf { frame: (raw & ADDRESS) >> 12, writable, uncached },
            2 | 3 if large => {
                let span = (1 << (9 * u32::from(level - 1))) - 1;
                Walk::Leaf { frame: (raw & ADDRESS) >> 12 & !span, writable, uncached }
            }
            4 if large => Walk::Fault,
            _ => Walk::Table { frame: (raw & ADDRESS) >> 12, limited: !writable },
        }
    }

    fn used(written: bool) -> u64 {
        0x20 | if written { 0x40 } else { 0 }
    }

    fn compose(shape: Shape, frame: u64) -> u64 {
        let address = frame << 12;
        match shape {
            Shape::Nothing => 0,
            Shape::NotPresent => address | 0x66,
            Shape::ReadOnly => address | ORDINARY & !2,
            Shape::Writable => address | ORDINARY,
            // Not for the guest's own user mode; global; never executed; software's bits: still a writable page.
            Shape::Lifted => address | 0x8070_0000_0000_0103 | 0xe00,
            Shape::Table => address | ORDINARY,
            Shape::LimitedTable => address | ORDINARY & !2,
            Shape::Superpage { writable } => address | 0x80 | if writable { ORDINARY } else { ORDINARY & !2 },
            Shape::Forbidden(which) => {
                let bit = [3, 4, 59, 62, 60][usize::from(which) % 5];
                address | ORDINARY & !2 | 1 << bit
            }
        }
    }

    fn uncached(frame: u64) -> u64 {
        frame << 12 | ORDINARY | 1 << 4
    }
}
