//! Page-table entries as the x86-64 MMU has them.

use core::arch::x86_64::__cpuid;

use guest_core::architecture::{Bits, ForbiddenBits, Mapping};

/// Entry bits (Intel SDM volume 3, 4.5).
const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
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

/// Maps the 2 MiB from machine frame `frame` on for the kernel's data, which can't be executed.
pub const fn superpage(frame: u64, writable: bool) -> u64 {
    leaf(frame, writable) | LARGE | NO_EXECUTE
}

/// The same for code, read-only.
pub const fn superpage_of_code(frame: u64) -> u64 {
    leaf(frame, false) | LARGE
}

/// Whether superpages may be executed: not on a processor of Intel's (the letters "Genu") that doesn't say, and in the emulator can't, that a
/// change of page size does it no harm.
pub fn is_code_allowed_in_superpages() -> bool {
    __cpuid(0).ebx != 0x756e_6547
}

/// Of each kind of entry (Intel SDM volume 3, 4.5).
const FORBIDDEN_ANYWHERE: Bits = &[
    (3, "write-through"),
    (4, "not cached"),
    (47, "beyond the machine"),
    (51, "beyond the machine"),
    (59, "protection key"),
    (60, "protection key"),
    (61, "protection key"),
    (62, "protection key"),
];

/// What no guest may choose.
pub const FORBIDDEN_BITS: ForbiddenBits = ForbiddenBits {
    pages: &[FORBIDDEN_ANYWHERE, &[(7, "PAT")]],
    superpages: &[
        FORBIDDEN_ANYWHERE,
        &[
            (12, "PAT"),
            (13, "frame not aligned"),
            (14, "frame not aligned"),
            (15, "frame not aligned"),
            (16, "frame not aligned"),
            (17, "frame not aligned"),
            (18, "frame not aligned"),
            (19, "frame not aligned"),
            (20, "frame not aligned"),
        ],
    ],
    tables: &[FORBIDDEN_ANYWHERE],
};

/// Write-through, not cached, both, and what the page-attribute table would choose instead.
pub const MEMORY_TYPES: &[u64] = &[1 << 3, 1 << 4, 3 << 3, 1 << 7, 1 << 7 | 1 << 3, 1 << 7 | 3 << 3];

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
