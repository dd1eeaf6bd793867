//! Who owns which virtual addresses.
//!
//! Xen's 64-bit PV ABI keeps root slots 256 to 271 for the hypervisor; everything else that is canonical is the guest's.
//! Each slot spans 512 GiB:
//!
//! | slot | what | guests |
//! |---|---|---|
//! | 256 | machine-to-physical table | read |
//! | 261 | the image at its linked addresses; the descriptor table; device registers | nothing |
//! | 262 .. 272 | direct map of all RAM | nothing |

use core::ops::Range;

/// log2 of the bytes that a root slot spans.
const SLOT_SHIFT: u32 = 39;
/// Root slots of the hypervisor.
pub const RESERVED_SLOTS: Range<usize> = 256..272;
/// First byte of the reserved area.
pub const RESERVED_START: u64 = 0xffff_8000_0000_0000;
/// First byte beyond the reserved area.
pub const RESERVED_END: u64 = 0xffff_8800_0000_0000;
/// First byte beyond the lower canonical half.
pub const LOWER_END: u64 = 0x0000_8000_0000_0000;

/// The machine-to-physical table, as guests read it.
pub const M2P_WINDOW: u64 = RESERVED_START;
/// Bytes that the window can span.
pub const M2P_WINDOW_BYTES: u64 = 256 << 30;
/// An address of the image minus this is the physical address. `layout.ld` says the same.
pub const IMAGE_OFFSET: u64 = 0xffff_82d0_4000_0000;
/// The global descriptor table: [`GUEST_DESCRIPTOR_PAGES`] pages of the guest's, then the hypervisor's.
pub const DESCRIPTOR_TABLE: u64 = 0xffff_82d0_8000_0000;
/// Pages of the descriptor table that a guest may fill.
pub const GUEST_DESCRIPTOR_PAGES: u64 = 14;
/// Where the local descriptor table of a guest begins, in pages from [`DESCRIPTOR_TABLE`]: behind all that a 16-bit limit reaches.
pub const LOCAL_TABLE_PAGE: u64 = 16;
/// Pages of a local descriptor table.
pub const LOCAL_TABLE_PAGES: u64 = 16;
/// The local APIC's registers.
pub const APIC_REGISTERS: u64 = 0xffff_82d0_c000_0000;
/// Physical address 0 in the direct map.
pub const DIRECT_MAP: u64 = 0xffff_8300_0000_0000;
/// Bytes of physical memory that the direct map can hold (5 TiB: up to the end of the reserved area).
pub const DIRECT_MAP_BYTES: u64 = RESERVED_END - DIRECT_MAP;

/// Physical addresses where a PC has no device registers, whatever else it may have there: below the video memory, and from
/// the end of the first MiB to where q35 has PCI configuration space, and PCI devices beyond.
const WITHOUT_DEVICES: [Range<u64>; 2] = [0..0xa_0000, 0x10_0000..0xb000_0000];

/// Whether reading the physical addresses from `start` to `end` (not included) reaches no device.
pub fn is_without_devices(start: u64, end: u64) -> bool {
    WITHOUT_DEVICES.iter().any(|range| range.start <= start && start <= end && end <= range.end)
}

/// The first MiB holds what firmware left; it is never given away.
pub const FIRST_MIB: u64 = 1 << 20;

/// What becomes free of the memory from `start` to `end` (not included), which a loader used.
pub fn released(start: u64, end: u64) -> Range<u64> {
    let start = start.max(FIRST_MIB);
    start..end.max(start)
}

/// The root slot that translates `address`.
pub const fn root_slot(address: u64) -> usize {
    (address >> SLOT_SHIFT) as usize & 511
}

/// Whether an address is canonical: bits 47 to 63 are equal.
pub const fn is_canonical(address: u64) -> bool {
    address < LOWER_END || address >= RESERVED_START
}

/// Whether all of `length` bytes from `start` are addresses that a guest may use: canonical, in one half, outside
/// the reserved area. An empty range is judged by its start alone.
pub const fn is_guest_range(start: u64, length: u64) -> bool {
    let Some(last) = start.checked_add(length.saturating_sub(1)) else { return false };
    last < LOWER_END || (start >= RESERVED_END && last >= start)
}

/// Addresses from [`RESERVED_END`] on, around the end of the address space, that are guests'.
pub const GUEST_WORDS: u64 = LOWER_END.wrapping_sub(RESERVED_END);

/// Whether words of 8 bytes each from `start` on, `length` bytes in all, touch nothing but what a guest may use. A word may go round
/// the end of the address space to its beginning, since both are the guest's; so one comparison is enough. `length` is short.
#[inline(always)]
pub const fn are_guest_words(start: u64, length: u64) -> bool {
    start.wrapping_sub(RESERVED_END) <= GUEST_WORDS.wrapping_sub(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_agree_with_each_other() {
        assert_eq!(root_slot(M2P_WINDOW), 256);
        assert_eq!(root_slot(IMAGE_OFFSET), 261);
        assert_eq!(root_slot(DESCRIPTOR_TABLE), 261);
        assert_eq!(root_slot(APIC_REGISTERS), 261);
        assert_eq!(root_slot(DIRECT_MAP), 262);
        assert_eq!(root_slot(RESERVED_START), RESERVED_SLOTS.start);
        assert_eq!(root_slot(RESERVED_END), RESERVED_SLOTS.end);
    }

    #[test]
    fn guest_ranges_stop_at_the_reserved_area() {
        assert!(is_guest_range(0, 4096));
        assert!(is_guest_range(LOWER_END - 8, 8));
        assert!(!is_guest_range(LOWER_END - 8, 9));
        assert!(!is_guest_range(LOWER_END, 0));
        assert!(!is_guest_range(RESERVED_START, 1));
        assert!(!is_guest_range(RESERVED_END - 1, 2));
        assert!(!is_guest_range(0x1000, RESERVED_END));
        assert!(is_guest_range(RESERVED_END, 1 << 40));
        assert!(is_guest_range(u64::MAX, 1));
        assert!(!is_guest_range(u64::MAX, 2));
        assert!(!is_guest_range(8, u64::MAX));
    }

    #[test]
    fn guest_words_are_those_of_a_guest_range_or_go_round_the_end() {
        for length in [8, 16, 24, 56, 64, 72] {
            let edges = [0, LOWER_END, RESERVED_START, RESERVED_END, u64::MAX, 1 << 62, u64::MAX - 4096];
            for edge in edges {
                for start in (0..200).map(|step: u64| edge.wrapping_add(step).wrapping_sub(100)) {
                    let goes_round = start.checked_add(length - 1).is_none();
                    let expected = goes_round || is_guest_range(start, length);
                    assert_eq!(are_guest_words(start, length), expected, "{start:#x} {length}");
                }
            }
        }
    }

    #[test]
    fn canonical_addresses_have_equal_top_bits() {
        for address in [0, LOWER_END - 1, LOWER_END, RESERVED_START - 1, RESERVED_START, u64::MAX] {
            let by_sign = ((address << 16) as i64 >> 16) as u64 == address;
            assert_eq!(is_canonical(address), by_sign, "{address:#x}");
        }
    }

    #[test]
    fn nothing_of_the_first_mib_becomes_free() {
        assert_eq!(released(0x10_0000, 0x20_0000), 0x10_0000..0x20_0000);
        assert_eq!(released(0x9_0000, 0x20_0000), 0x10_0000..0x20_0000);
        assert!(released(0x1000, 0x9_f000).is_empty() && released(0, 0).is_empty());
        assert!(released(0xf_f000, 0x10_0000).is_empty());
    }

    #[test]
    fn what_a_loader_names_must_not_be_a_device() {
        // Where QEMU puts the information block, and where modules go.
        assert!(is_without_devices(0x9500, 0x9558) && is_without_devices(0x9_f000, 0xa_0000));
        assert!(is_without_devices(0x10_0000, 0xb000_0000) && is_without_devices(0x20_0000, 0x20_0000));
        // Video memory, firmware, configuration space, interrupt controllers, beyond 4 GiB, backwards.
        let devices = [
            (0x9_ffff, 0xa_0001),
            (0xb_8000, 0xb_8010),
            (0xf_0000, 0x10_0001),
            (0xafff_ffff, 0xb000_0001),
            (0xfec0_0000, 0xfec0_0010),
            (0xfee0_0000, 0xfee0_1000),
            (4 << 30, (4 << 30) + 1),
            (0, 4 << 30),
            (0x3000, 0x2000),
        ];
        for (start, end) in devices {
            assert!(!is_without_devices(start, end), "{start:#x} to {end:#x}");
        }
    }
}
