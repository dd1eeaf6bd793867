//! Segment descriptors, as a guest in ring 3 may have them.
//!
//! A guest's descriptors stand in tables that the processor itself reads, so each of them is judged first. Code and data segments are
//! harmless, in ring 3 and for ring 3: a base adds nothing to what paging allows, and the hypervisor loads none of them but for the
//! guest. Gates and system segments are not: a call gate leads into ring 0. (A gate takes two places; the first says what it is, so
//! judging each place by itself is enough.)
//!
//! Source: Intel SDM volume 3, 3.4.5 and 3.5; AMD APM volume 2, 4.8.

/// The descriptor can be used at all; the use of one that isn't present faults, whatever else it says.
const PRESENT: u64 = 1 << 47;
/// The lowest ring but for which it can't be used.
const RING3: u64 = 3 << 45;
/// A code or data segment, and not a gate or a system segment.
const CODE_OR_DATA: u64 = 1 << 44;
/// Set by the processor when it loads the segment.
const ACCESSED: u64 = 1 << 40;

/// Judges a descriptor that a guest proposes; returns what shall stand in its place.
///
/// The privilege level becomes 3, as in Xen. The accessed bit is set, so that the processor has no reason to write to the table.
pub const fn admit(descriptor: u64) -> Option<u64> {
    match (descriptor & PRESENT, descriptor & CODE_OR_DATA) {
        (0, _) => Some(descriptor),
        (_, 0) => None,
        _ => Some(descriptor | RING3 | ACCESSED),
    }
}

/// The two words of a descriptor for a local table of `bytes` bytes at `base`; `bytes` is at least 1 and at most 65536.
pub const fn local_table(base: u64, bytes: u64) -> [u64; 2] {
    const LOCAL_TABLE: u64 = 2 << 40;
    let limit = bytes.saturating_sub(1) & 0xffff;
    let low = limit | (base & 0xff_ffff) << 16 | LOCAL_TABLE | PRESENT | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

/// Of a code segment: its instructions are 64-bit ones, and its base counts for nothing.
const LONG: u64 = 1 << 53;

/// Where an instruction stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its linear address.
    pub address: u64,
    /// Whether it is a 64-bit one.
    pub is_long: bool,
}

/// Where the instruction at `pointer` stands, in a segment with this descriptor.
pub const fn place(descriptor: u64, pointer: u64) -> Place {
    if descriptor & LONG != 0 {
        return Place { address: pointer, is_long: true };
    }
    let base = descriptor >> 16 & 0xff_ffff | descriptor >> 56 << 24;
    Place { address: base.wrapping_add(pointer) & 0xffff_ffff, is_long: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A descriptor of this access byte (bits 40 to 47).
    const fn of(access: u64) -> u64 {
        0x00af_0000_0000_ffff | access << 40
    }

    #[test]
    fn code_and_data_become_ring_3s() {
        // Data, read-only and writable; code, readable, and conforming.
        for kind in [0x10, 0x12, 0x1a, 0x1e] {
            for ring in 0..4 {
                assert_eq!(admit(of(0x80 | ring << 5 | kind)), Some(of(0xe1 | kind)));
            }
        }
    }

    #[test]
    fn gates_and_system_segments_are_refused() {
        for kind in 0..16 {
            for ring in 0..4 {
                assert_eq!(admit(of(0x80 | ring << 5 | kind)), None, "{kind}");
            }
        }
    }

    #[test]
    fn what_is_not_present_stays_as_it_is() {
        assert_eq!(admit(0), Some(0));
        // A call gate without the present bit.
        assert_eq!(admit(of(0x6c)), Some(of(0x6c)));
    }

    #[test]
    fn the_local_tables_descriptor_is_the_processors() {
        // Present, ring 0, local descriptor table, byte granularity: Intel SDM volume 3, figure 8-4.
        let [low, high] = local_table(0xffff_82d0_8001_0000, 0x1_0000);
        assert_eq!((low, high), (0x8000_8201_0000_ffff, 0xffff_82d0));
        assert_eq!(local_table(0, 8)[0] & 0xffff, 7);
    }

    #[test]
    fn the_base_counts_in_short_code_alone() {
        let flat = |pointer| place(0x00cf_fb00_0000_ffff, pointer);
        assert_eq!(flat(0x1234), Place { address: 0x1234, is_long: false });
        let based = |pointer| place(0x12cf_fb34_5678_ffff, pointer);
        assert_eq!(based(0x10).address, 0x1234_5688);
        assert_eq!(based(0xffff_ffff).address, 0x1234_5677, "linear addresses have 32 bits there");
        let long = place(0x12af_fb34_5678_ffff, 1 << 40);
        assert_eq!(long, Place { address: 1 << 40, is_long: true });
    }

    proptest! {
        #[test]
        fn admission_is_stable(raw in any::<u64>()) {
            if let Some(admitted) = admit(raw) {
                prop_assert_eq!(admit(admitted), Some(admitted));
                prop_assert!(admitted & PRESENT == 0 || admitted & (RING3 | CODE_OR_DATA) == RING3 | CODE_OR_DATA);
            }
        }
    }
}
