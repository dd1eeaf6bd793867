//! The page-table format of x86-64 with four levels, as a guest in ring 3 may use it.
//!
//! Levels count from 4 (root) to 1 (pages), with 512 entries each. What a guest proposes is judged here by bits alone;
//! whether it may reach the frame is the core's to say.
//!
//! - *User* is forced in every present entry: the guest's kernel runs in ring 3 as well. Isolation of the guest's kernel
//!   from its own users rests on two roots.
//! - *Global* is taken away: a change of root must drop every translation of a guest.
//! - Memory types (PWT, PCD, PAT) other than write-back are refused: one page must never be mapped with two types
//!   (XSA-154). Device memory, which a later step gives to the control domain, will need its own rule.
//! - Superpages of 2 MiB (level 2) are admitted, those of 1 GiB (level 3) are not. The walker takes the frame's number without its
//!   lowest nine bits, or faults when they aren't zero; so a number that isn't aligned is refused, and what the core counts is
//!   what the walker maps (XSA-167, XSA-176). Bit 12 is part of the memory type there, and refused like the rest of it.
//!   On a processor with the flaw of XSA-304 they must not be executable ([`crate::page_size`]).
//! - A root's entry that isn't writable makes everything below read-only, in ring 0 as well (CR0.WP); so a root may lead to itself by
//!   one. Seen through such an entry, a table of level 2 passes for one of level 1, and its superpages' bit 7 for the memory type's highest
//!   bit: type 4, which is write-back here, like type 0. (In Xen's page-attribute table, which guests read, it is write-combining; the others
//!   are Xen's.)
//! - Absent entries are the guest's own, all bits of them, as in Xen's ABI; but on a processor with the L1 terminal fault (XSA-273)
//!   they must not name memory ([`crate::l1tf`]).
//! - Bits 52 to 58 are the guest's own. Bits 59 to 62 are protection keys where a processor has them: refused.
//!
//! Source: Intel SDM volume 3, 4.5; AMD APM volume 2, 5.3.

use core::ops::Range;

use bitflags::bitflags;
use hyp_core::address::{MachineAddress, MachineFrame};
use hyp_core::machine::{Entry, EntryFault, Leaf, Level, PageTableFormat};

use crate::layout::RESERVED_SLOTS;
use crate::{l1tf, page_size};

bitflags! {
    /// The bits of an entry.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Bits: u64 {
        /// The walker uses the entry.
        const PRESENT = 1 << 0;
        /// Writes are allowed, as far as every other level allows them.
        const WRITABLE = 1 << 1;
        /// Ring 3 may use it.
        const USER = 1 << 2;
        /// Write-through.
        const WRITE_THROUGH = 1 << 3;
        /// Not cached.
        const CACHE_DISABLE = 1 << 4;
        /// Has been used.
        const ACCESSED = 1 << 5;
        /// Has been written through (leaves).
        const DIRTY = 1 << 6;
        /// Above level 1: a superpage. At level 1 the same bit selects a memory type.
        const LARGE = 1 << 7;
        /// Survives a change of root.
        const GLOBAL = 1 << 8;
        /// No instructions are fetched.
        const NO_EXECUTE = 1 << 63;
    }
}

/// The frame's address inside an entry, as wide as the architecture allows. Bits that a processor doesn't have name
/// frames that don't exist, so the core refuses them as it refuses every frame that isn't RAM.
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bits that software may use as it likes.
const SOFTWARE: u64 = 0b111 << 9 | 0x7f << 52;
/// Bits of a superpage's entry at level 2 that a page's has for its address: the lowest selects a memory type, the others are reserved.
const BELOW_LARGE: u64 = 0x1f_f000;

/// Four levels of x86-64 tables.
#[derive(Clone, Copy, Debug)]
pub struct X86Format;

impl PageTableFormat for X86Format {
    const LEVELS: Level = 4;

    fn index_bits(_level: Level) -> u32 {
        9
    }

    fn reserved_root_slots() -> Range<usize> {
        RESERVED_SLOTS
    }

    #[inline]
    fn decode(level: Level, raw: u64) -> Entry {
        let bits = Bits::from_bits_retain(raw);
        // An entry without *user* is none to a guest: it stands above an unhooked table (`hidden`).
        if !bits.contains(Bits::PRESENT | Bits::USER) {
            return Entry::Absent;
        }
        let large = level > 1 && bits.contains(Bits::LARGE);
        let address = if large { raw & ADDRESS & !BELOW_LARGE } else { raw & ADDRESS };
        let Some(frame) = MachineAddress::new(address).map(MachineFrame::containing) else {
            return Entry::Absent;
        };
        match level {
            2.. if !large => Entry::Table(frame),
            _ => Entry::Leaf(Leaf { frame, level, writable: bits.contains(Bits::WRITABLE) }),
        }
    }

    #[inline]
    fn admit(level: Level, raw: u64) -> Result<(u64, Entry), EntryFault> {
        let bits = Bits::from_bits_retain(raw);
        if !bits.contains(Bits::PRESENT) {
            return match raw == 0 || l1tf::is_harmless(level, raw) {
                true => Ok((raw, Entry::Absent)),
                false => Err(EntryFault::ForbiddenBits(raw & (ADDRESS | Bits::LARGE.bits()))),
            };
        }
        let permitted = match (level, bits.contains(Bits::LARGE)) {
            (2, true) if page_size::is_data_only() && !bits.contains(Bits::NO_EXECUTE) => {
                return Err(EntryFault::ForbiddenBits(Bits::NO_EXECUTE.bits()));
            }
            (2, true) => PERMITTED & !BELOW_LARGE | Bits::LARGE.bits(),
            (3, true) => return Err(EntryFault::WrongLevel),
            // In the root the bit is reserved, at level 1 it selects a memory type: it isn't among these.
            _ => PERMITTED,
        };
        let forbidden = raw & !permitted;
        if forbidden != 0 {
            return Err(EntryFault::ForbiddenBits(forbidden));
        }
        let admitted = (bits | Bits::USER).difference(Bits::GLOBAL).bits();
        Ok((admitted, Self::decode(level, admitted)))
    }

    fn encode(level: Level, entry: Entry) -> u64 {
        let common = Bits::PRESENT | Bits::USER | Bits::ACCESSED;
        let (address, bits) = match entry {
            Entry::Absent => return 0,
            Entry::Table(frame) => (frame.start(), common | Bits::WRITABLE),
            Entry::Leaf(leaf) => (leaf.frame.start(), common | Bits::DIRTY | leaf_bits(level, leaf)),
        };
        address.bytes() & ADDRESS | bits.bits()
    }

    fn is_read_only_table(raw: u64) -> bool {
        !Bits::from_bits_retain(raw).contains(Bits::WRITABLE)
    }

    fn with_write(raw: u64, writable: bool) -> u64 {
        let mut bits = Bits::from_bits_retain(raw);
        bits.set(Bits::WRITABLE, writable);
        bits.bits()
    }

    /// Without *user*, ring 3 can't go through it; a guest that reads its table sees an entry that is present, and as good as before.
    fn hidden(raw: u64) -> u64 {
        Bits::from_bits_retain(raw).difference(Bits::USER).bits()
    }

    fn granted(leaf: Leaf, _application: bool, available: u32) -> u64 {
        // User is set anyway: the kernel runs in ring 3, too. Bits 9 to 11 are those that Xen hands through.
        Self::encode(1, Entry::Leaf(leaf)) | Bits::NO_EXECUTE.bits() | (u64::from(available) & 0b111) << 9
    }

    #[inline(always)]
    fn admit_page(raw: u64) -> Option<(u64, Leaf)> {
        if raw & (!PERMITTED | Bits::PRESENT.bits()) != Bits::PRESENT.bits() {
            return None;
        }
        let bits = (Bits::from_bits_retain(raw) | Bits::USER).difference(Bits::GLOBAL);
        let frame = MachineAddress::new(raw & ADDRESS).map(MachineFrame::containing)?;
        Some((bits.bits(), Leaf { frame, level: 1, writable: bits.contains(Bits::WRITABLE) }))
    }

    /// By what differs between the two, which is less to look at.
    #[inline(always)]
    fn same_page(first: u64, second: u64) -> Option<(Leaf, Leaf)> {
        const MAPPED: u64 = Bits::PRESENT.union(Bits::USER).bits();
        if second & MAPPED != MAPPED || (first ^ second) & (ADDRESS | MAPPED) != 0 {
            return None;
        }
        let frame = MachineAddress::new(second & ADDRESS).map(MachineFrame::containing)?;
        let leaf =
            |raw| Leaf { frame, level: 1, writable: Bits::from_bits_retain(raw).contains(Bits::WRITABLE) };
        Some((leaf(first), leaf(second)))
    }

    fn hardware_bits(_level: Level) -> u64 {
        (Bits::ACCESSED | Bits::DIRTY).bits()
    }
}

/// What a present entry of a guest may hold.
const PERMITTED: u64 = Bits::PRESENT
    .union(Bits::WRITABLE)
    .union(Bits::USER)
    .union(Bits::ACCESSED)
    .union(Bits::DIRTY)
    .union(Bits::GLOBAL)
    .union(Bits::NO_EXECUTE)
    .bits()
    | ADDRESS
    | SOFTWARE;

fn leaf_bits(level: Level, leaf: Leaf) -> Bits {
    let mut bits = Bits::empty();
    bits.set(Bits::WRITABLE, leaf.writable);
    bits.set(Bits::LARGE, level > 1);
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(number: u64) -> MachineFrame {
        MachineFrame::new(number).unwrap()
    }

    #[test]
    fn what_linux_and_xen_write_means_what_it_should() {
        // 0x67: present, writable, user, accessed, dirty: the usual table entry.
        assert_eq!(X86Format::decode(4, 0x1234_5067), Entry::Table(frame(0x12345)));
        let leaf = |writable, level| Entry::Leaf(Leaf { frame: frame(0x12345), level, writable });
        assert_eq!(X86Format::decode(1, 0x8000_0000_1234_5067), leaf(true, 1));
        assert_eq!(X86Format::decode(1, 0x1234_5025), leaf(false, 1));
        assert_eq!(X86Format::decode(1, 0x1234_5066), Entry::Absent);
        let large = Leaf { frame: frame(0x12200), level: 2, writable: true };
        assert_eq!(X86Format::decode(2, 0x1220_10e7), Entry::Leaf(Leaf { frame: frame(0x12200), ..large }));
    }

    #[test]
    fn user_is_forced_and_global_is_dropped() {
        let (raw, _) = X86Format::admit(1, 0x1234_5163).unwrap();
        assert_eq!(raw, 0x1234_5067);
        let (raw, _) = X86Format::admit(3, 0x1234_5003).unwrap();
        assert_eq!(raw, 0x1234_5007);
    }

    #[test]
    fn granted_pages_are_data_with_the_guests_own_bits() {
        let leaf = Leaf { frame: frame(0x12345), level: 1, writable: false };
        let raw = X86Format::granted(leaf, false, 0xffff);
        assert_eq!(raw, 1 << 63 | 0x1234_5e65);
        assert_eq!(X86Format::admit(1, raw), Ok((raw, Entry::Leaf(leaf))));
    }

    #[test]
    fn absent_entries_keep_every_bit() {
        assert_eq!(X86Format::admit(1, !1), Ok((!1, Entry::Absent)));
        assert_eq!(X86Format::admit(4, 0), Ok((0, Entry::Absent)));
    }

    /// XSA-148: what maps 2 MiB is seen as what it is, with its right to write; at no other level does the bit mean that.
    #[test]
    fn xsa_148_superpages_of_level_2_are_admitted_as_what_they_are() {
        let large = |writable| Entry::Leaf(Leaf { frame: frame(0x12200), level: 2, writable });
        assert_eq!(X86Format::admit(2, 0x1220_00e3), Ok((0x1220_00e7, large(true))));
        assert_eq!(X86Format::admit(2, 0x1220_0081), Ok((0x1220_0085, large(false))));
        assert_eq!(X86Format::admit(2, 1 << 63 | 0x1220_01e7), Ok((1 << 63 | 0x1220_00e7, large(true))));
        assert_eq!(X86Format::admit(3, 0x4000_00e7), Err(EntryFault::WrongLevel));
        assert_eq!(X86Format::admit(4, 0xe7), Err(EntryFault::ForbiddenBits(0x80)));
    }

    /// XSA-167 and XSA-176: the bits of a superpage's frame number that the walker takes as zero, or as reserved, must be zero.
    #[test]
    fn xsa_167_and_176_superpages_that_are_not_aligned_are_refused() {
        for bit in 12..21 {
            let raw = 0x1220_00e7 | 1 << bit;
            assert_eq!(X86Format::admit(2, raw), Err(EntryFault::ForbiddenBits(1 << bit)), "{bit}");
        }
        // The next bit is part of the number.
        assert!(X86Format::admit(2, 0x1240_00e7).is_ok());
        for bit in 59..63 {
            assert_eq!(X86Format::admit(2, 0x1220_00e7 | 1 << bit), Err(EntryFault::ForbiddenBits(1 << bit)));
        }
    }

    #[test]
    fn only_entries_without_the_right_to_write_make_linear_tables() {
        assert!(X86Format::is_read_only_table(0x1234_5065));
        assert!(!X86Format::is_read_only_table(0x1234_5067));
        assert!(!X86Format::is_read_only_table(X86Format::encode(4, Entry::Table(frame(5)))));
    }

    /// XSA-154: no second memory type for a page of RAM.
    #[test]
    fn xsa_154_other_memory_types_are_refused_at_every_level() {
        for bit in [3, 4] {
            for level in 1..=4 {
                assert_eq!(
                    X86Format::admit(level, 0x67 | 1 << bit),
                    Err(EntryFault::ForbiddenBits(1 << bit))
                );
            }
        }
        assert_eq!(X86Format::admit(1, 0x67 | 1 << 7), Err(EntryFault::ForbiddenBits(1 << 7)));
        for bit in [3, 4, 12] {
            assert_eq!(X86Format::admit(2, 0xe7 | 1 << bit), Err(EntryFault::ForbiddenBits(1 << bit)));
        }
    }

    #[test]
    fn protection_keys_are_refused() {
        for bit in 59..63 {
            assert_eq!(X86Format::admit(1, 0x67 | 1 << bit), Err(EntryFault::ForbiddenBits(1 << bit)));
        }
    }

    proptest! {
        #[test]
        fn no_bits_and_no_level_panic(level in any::<u8>(), raw in any::<u64>()) {
            let _ = X86Format::decode(level, raw);
            let _ = X86Format::admit(level, raw);
        }

        /// What is admitted stays admitted, means the same to the walker, and is usable in ring 3.
        #[test]
        fn admission_is_stable(level in 1u8..=4, raw in any::<u64>()) {
            if let Ok((admitted, entry)) = X86Format::admit(level, raw) {
                prop_assert_eq!(X86Format::decode(level, admitted), entry);
                prop_assert_eq!(X86Format::admit(level, admitted), Ok((admitted, entry)));
                if entry != Entry::Absent {
                    prop_assert_eq!(admitted & 0x5, 0x5);
                    let large = matches!(entry, Entry::Leaf(Leaf { level: 2, .. }));
                    prop_assert_eq!(admitted & 0x198, if large { 0x80 } else { 0 });
                    if let Entry::Leaf(leaf) = entry {
                        // What the walker maps begins there, and nowhere below.
                        prop_assert_eq!(leaf.frame.start().bytes(), admitted & ADDRESS);
                        prop_assert!(leaf.level < 3 && leaf.frame.number() % X86Format::span(leaf.level) == 0);
                    }
                    prop_assert_eq!(raw & ADDRESS, admitted & ADDRESS);
                }
            }
        }

        /// What two entries have in common is what each of them says by itself.
        #[test]
        fn the_same_page_is_what_two_entries_decode_to(raw in any::<u64>(), bits in 0u32..8, flip in any::<[u8; 3]>()) {
            // Entries that map something, or nearly, and others that differ from them in a few bits.
            let first = raw & !0b111 | u64::from(bits);
            let second = flip.into_iter().filter(|bit| *bit < 64).fold(first, |raw, bit| raw ^ 1 << bit);
            for second in [first, first ^ 0b10, second] {
                let expected = match (X86Format::decode(1, first), X86Format::decode(1, second)) {
                    (Entry::Leaf(was), Entry::Leaf(is)) if was.frame == is.frame => Some((was, is)),
                    _ => None,
                };
                prop_assert_eq!(X86Format::same_page(first, second), expected);
            }
        }

        /// The short way admits what the full one does, as it does.
        #[test]
        fn pages_are_admitted_as_all_entries_are(raw in any::<u64>(), cleared in any::<u64>()) {
            for raw in [raw, raw | 1, raw & cleared & PERMITTED | 1, raw & PERMITTED, 1 << (raw % 64) | 1] {
                let expected = match X86Format::admit(1, raw) {
                    Ok((admitted, Entry::Leaf(leaf))) => Some((admitted, leaf)),
                    _ => None,
                };
                prop_assert_eq!(X86Format::admit_page(raw), expected);
            }
        }

        #[test]
        fn encoded_entries_are_admitted_as_they_are(number in 0..MachineFrame::LIMIT, writable in any::<bool>(), level in 2u8..=4) {
            let table = Entry::Table(frame(number));
            let raw = X86Format::encode(level, table);
            prop_assert_eq!(X86Format::admit(level, raw), Ok((raw, table)));
            for (level, number) in [(1, number), (2, number & !511)] {
                let leaf = Entry::Leaf(Leaf { frame: frame(number), level, writable });
                let raw = X86Format::encode(level, leaf);
                prop_assert_eq!(X86Format::admit(level, raw), Ok((raw, leaf)));
            }
        }
    }
}
