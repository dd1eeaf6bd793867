//! Page-table entries as the x86-64 MMU has them.

use guest_core::architecture::Mapping;

/// Entry bits (Intel SDM volume 3, 4.5).
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;
/// The bits that the MMU sets by itself.
pub const HARDWARE_BITS: u64 = ACCESSED | DIRTY;

/// Reads an entry of any level; `None` when it is not present.
pub fn decode(entry: u64) -> Option<Mapping> {
    let mapping = Mapping { frame: (entry & FRAME_MASK) >> 12, writable: entry & WRITABLE != 0 };
    (entry & PRESENT != 0).then_some(mapping)
}

/// Maps machine frame `frame` for the kernel's data.
pub const fn leaf(frame: u64, writable: bool) -> u64 {
    let rights = if writable { WRITABLE } else { 0 };
    frame << 12 | PRESENT | rights | ACCESSED | DIRTY
}

/// Maps machine frame `frame` for code, read-only.
pub const fn executable(frame: u64) -> u64 {
    leaf(frame, false)
}

/// Leads to the table in machine frame `frame`.
pub const fn table(frame: u64) -> u64 {
    frame << 12 | PRESENT | WRITABLE | USER | ACCESSED
}

/// `entry` with another frame number.
pub const fn with_frame(entry: u64, frame: u64) -> u64 {
    entry & !FRAME_MASK | frame << 12 & FRAME_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_back_as_they_were_made() {
        assert_eq!(decode(leaf(0x1234, true)), Some(Mapping { frame: 0x1234, writable: true }));
        assert_eq!(decode(leaf(0x1234, false)), Some(Mapping { frame: 0x1234, writable: false }));
        assert_eq!(decode(0x1234_0000), None);
    }

    #[test]
    fn replacing_the_frame_keeps_the_attributes() {
        let entry = 1 << 63 | leaf(0xa_bcde, true);
        assert_eq!(with_frame(entry, 0x12), 1 << 63 | leaf(0x12, true));
    }
}
