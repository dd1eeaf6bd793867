//! Page-table entries as VMSAv8-64 has them (4 KiB granule).

use guest_core::architecture::{Bits, ForbiddenBits, Mapping};
use penumbra_abi::aarch64::ATTRIBUTE_INDEX_NORMAL;

/// Entry bits (Arm ARM, D8.3, 4 KiB granule).
const VALID: u64 = 1 << 0;
/// A table at levels 4 to 2 (the manual's 0 to 2), a page at level 1 (the manual's 3).
const TABLE_OR_PAGE: u64 = 1 << 1;
const USER: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const NOT_GLOBAL: u64 = 1 << 11;
const KERNEL_NO_EXECUTE: u64 = 1 << 53;
const USER_NO_EXECUTE: u64 = 1 << 54;
/// Where the frame number stands, as an address.
pub const FRAME_MASK: u64 = 0x0000_ffff_ffff_f000;
/// None: hardware management of the access flag and of dirty state is off.
pub const HARDWARE_BITS: u64 = 0;

/// Reads an entry of any level; `None` when it is not present.
pub fn decode(entry: u64) -> Option<Mapping> {
    let mapping = Mapping { frame: (entry & FRAME_MASK) >> 12, writable: entry & READ_ONLY == 0 };
    (entry & VALID != 0).then_some(mapping)
}

/// Maps machine frame `frame` for the kernel's data.
pub const fn leaf(frame: u64, writable: bool) -> u64 {
    let rights = if writable { 0 } else { READ_ONLY };
    let attributes = ATTRIBUTE_INDEX_NORMAL << 2 | INNER_SHAREABLE | ACCESSED;
    let execution = KERNEL_NO_EXECUTE | USER_NO_EXECUTE;
    frame << 12 | VALID | TABLE_OR_PAGE | attributes | rights | execution
}

/// Maps the 2 MiB from machine frame `frame` on for the kernel's data.
pub const fn superpage(frame: u64, writable: bool) -> u64 {
    leaf(frame, writable) & !TABLE_OR_PAGE
}

/// Of entries that map a page or a superpage (Arm ARM, D8.3).
const FORBIDDEN_IN_LEAVES: Bits = &[
    (2, "memory attributes"),
    (3, "memory attributes"),
    (4, "memory attributes"),
    (5, "non-secure"),
    (8, "shareability"),
    (9, "shareability"),
    (48, "address bits of larger machines"),
    (49, "address bits of larger machines"),
    (50, "guarded page"),
    (52, "contiguous"),
    (59, "page-based hardware attributes"),
    (60, "page-based hardware attributes"),
    (61, "page-based hardware attributes"),
    (62, "page-based hardware attributes"),
    (63, "another meaning by extensions"),
];

/// What no guest may choose.
pub const FORBIDDEN_BITS: ForbiddenBits = ForbiddenBits {
    pages: &[FORBIDDEN_IN_LEAVES, &[(1, "a reserved encoding")]],
    superpages: &[
        FORBIDDEN_IN_LEAVES,
        &[
            (12, "frame not aligned"),
            (13, "frame not aligned"),
            (14, "frame not aligned"),
            (15, "frame not aligned"),
            (16, "nT: no translation cached"),
            (17, "frame not aligned"),
            (18, "frame not aligned"),
            (19, "frame not aligned"),
            (20, "frame not aligned"),
        ],
    ],
    tables: &[&[
        (2, "memory attributes, as a page"),
        (3, "memory attributes, as a page"),
        (4, "memory attributes, as a page"),
        (5, "non-secure, as a page"),
        (6, "user access, as a page"),
        (48, "address bits of larger machines"),
        (49, "address bits of larger machines"),
        (50, "guarded page, as a page"),
        (51, "dirty-bit modifier, as a page"),
        (52, "contiguous, as a page"),
        (59, "PXNTable"),
        (60, "XNTable"),
        (61, "APTable, no access for users"),
        (62, "APTable, no writes"),
        (63, "NSTable"),
    ]],
};

/// The other seven attribute indices, and the other three shareabilities.
pub const MEMORY_TYPES: &[u64] =
    &[1 << 2, 2 << 2, 3 << 2, 4 << 2, 5 << 2, 6 << 2, 7 << 2, 1 << 8, 2 << 8, 3 << 8];
/// The dirty-bit modifier: with `TCR_EL1.HD`, a write to a read-only page makes it writable.
pub const DIRTY_BIT_MODIFIER: u64 = 1 << 51;

/// Maps machine frame `frame` for all that the kernel does, execution included: as the domain builder maps a kernel.
pub const fn executable_leaf(frame: u64) -> u64 {
    leaf(frame, true) & !KERNEL_NO_EXECUTE
}

/// Maps machine frame `frame` for the kernel's code, read-only.
pub const fn executable(frame: u64) -> u64 {
    leaf(frame, false) & !KERNEL_NO_EXECUTE
}

/// Maps machine frame `frame` for user mode's code.
pub const fn user_executable_leaf(frame: u64) -> u64 {
    leaf(frame, false) & !USER_NO_EXECUTE | USER
}

/// Leads to the table in machine frame `frame`. The other bits mean nothing in such an entry; Penumbra sets them all the same, so that
/// a walk that ends here finds a read-only page.
pub const fn table(frame: u64) -> u64 {
    let as_page = READ_ONLY | INNER_SHAREABLE | ACCESSED | NOT_GLOBAL | KERNEL_NO_EXECUTE | USER_NO_EXECUTE;
    frame << 12 | VALID | TABLE_OR_PAGE | as_page
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
        assert_eq!(with_frame(leaf(0xa_bcde, true), 0x12), leaf(0x12, true));
    }
}
