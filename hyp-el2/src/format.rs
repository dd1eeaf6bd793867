//! Guests' page tables: VMSAv8-64, stage 1, 4 KiB granule, 48-bit virtual and output addresses.
//!
//! Levels are numbered as the core numbers them: 4 is the root (the architecture's level 0), 1 holds pages (its level 3).
//! Source: Arm Architecture Reference Manual (DDI 0487), D8.3 "Translation table descriptor formats".
//!
//! What guests may choose, and why (docs/aarch64-confinement.md):
//! - **Memory type.** One attribute index, 0, which `MAIR_EL1` (fixed by us) makes Normal write-back memory, and inner
//!   shareable. So no frame has two cacheabilities, and what validation reads is what the walker reads.
//! - **Access.** AP, PXN, UXN, nG and AF are free. A leaf without AF faults when used, which harms nobody but the guest; it
//!   counts as a mapping all the same, since the guest's own idea of it may change at any time.
//! - **Writable** is a leaf whose `AP[2]` is clear, *or* which has the dirty-bit modifier set: `TCR_EL1.HD` is off, but we
//!   don't rely on it.
//! - **Bits that mean nothing today but something on some CPU** (contiguous, guarded page, nT, PBHA, NSE, the hierarchical
//!   bits of table entries, output address bits from 48 up) must be zero. The four software bits 55..58 are free.
//! - **Table entries** carry, in bits that the walker ignores there, what makes the same entry a harmless *page* when it is
//!   reached by a walk of fewer levels, as through a root that leads to itself: read-only, never executable, normal memory.
//!   The bits are forced, so every such *linear* table is read-only. (DDI 0487, D8.3.1: in a table descriptor, bits 2 to 11 and 51 to
//!   58 are ignored. The hierarchical bits 59 to 63 stay zero, and are never credited.)
//! - **Superpages** are 2 MiB, at level 2; a block one level higher is refused, as the core counts references per frame.
//! - **Absent entries** may hold anything. The architecture forbids a walk through an entry with bit 0 clear, speculative
//!   ones included (L1TF is a flaw of other CPUs), and guests keep swap information there.

use core::ops::Range;

use hyp_core::address::{MachineAddress, MachineFrame};
use hyp_core::machine::{Entry, EntryFault, Leaf, Level, PageTableFormat};

/// The entry is one, to a walker.
pub const VALID: u64 = 1;
/// At levels above 1: a table, not a block. At level 1: must be set.
const TABLE_OR_PAGE: u64 = 1 << 1;
const ATTRIBUTE_INDEX: u64 = 0b111 << 2;
const USER: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const SHAREABILITY: u64 = 0b11 << 8;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESS_FLAG: u64 = 1 << 10;
const NOT_GLOBAL: u64 = 1 << 11;
const DIRTY_BIT_MODIFIER: u64 = 1 << 51;
const PRIVILEGED_EXECUTE_NEVER: u64 = 1 << 53;
const USER_EXECUTE_NEVER: u64 = 1 << 54;
const SOFTWARE: u64 = 0b1111 << 55;
/// Bits 12 to 47.
const ADDRESS: u64 = ((1 << 48) - 1) & !0xfff;
const BLOCK_ADDRESS: u64 = ADDRESS & !(crate::layout::BLOCK - 1);

/// What a guest may choose in a leaf besides the frame.
const FREE_IN_LEAF: u64 = USER
    | READ_ONLY
    | ACCESS_FLAG
    | NOT_GLOBAL
    | DIRTY_BIT_MODIFIER
    | PRIVILEGED_EXECUTE_NEVER
    | USER_EXECUTE_NEVER
    | SOFTWARE;

/// What may change in an entry while it is in use: access rights, the access flag, and what only software reads. Any other
/// change (output address or next table, memory type, block to table, global to not global) needs break-before-make
/// (DDI 0487, D8.17.1; docs/decisions/break-before-make.md).
const FREE_TO_CHANGE: u64 = USER
    | READ_ONLY
    | ACCESS_FLAG
    | DIRTY_BIT_MODIFIER
    | PRIVILEGED_EXECUTE_NEVER
    | USER_EXECUTE_NEVER
    | SOFTWARE;

/// Whether two entries differ in more than may change while one is in use. What follows from that, [`crate::store`] knows.
#[inline(always)]
pub const fn differ_in_use(old: u64, new: u64) -> bool {
    (old ^ new) & !FREE_TO_CHANGE != 0
}

/// What every table entry has besides its address: see the module's doc, "Table entries".
const READ_ONLY_AS_A_PAGE: u64 =
    READ_ONLY | INNER_SHAREABLE | ACCESS_FLAG | NOT_GLOBAL | PRIVILEGED_EXECUTE_NEVER | USER_EXECUTE_NEVER;

/// The format, as the core knows it.
#[derive(Clone, Copy, Debug)]
pub struct VmsaStage1;

/// A read-only, never executable page or block for the guest's kernel: the hypervisor's own entries in guest roots.
pub const fn kernel_read_only_leaf() -> u64 {
    VALID | READ_ONLY | INNER_SHAREABLE | ACCESS_FLAG | PRIVILEGED_EXECUTE_NEVER | USER_EXECUTE_NEVER
}

impl PageTableFormat for VmsaStage1 {
    const LEVELS: Level = 4;

    fn index_bits(_level: Level) -> u32 {
        9
    }

    fn reserved_root_slots() -> Range<usize> {
        256..272
    }

    fn decode(level: Level, raw: u64) -> Entry {
        let is_table_or_page = raw & TABLE_OR_PAGE != 0;
        let frame = |mask: u64| frame(raw & mask);
        match level {
            _ if raw & VALID == 0 => Entry::Absent,
            1 if is_table_or_page => frame(ADDRESS).map_or(Entry::Absent, |frame| leaf(frame, 1, raw)),
            2..=4 if is_table_or_page => frame(ADDRESS).map_or(Entry::Absent, Entry::Table),
            2 => frame(BLOCK_ADDRESS).map_or(Entry::Absent, |frame| leaf(frame, 2, raw)),
            // Reserved encodings: the walker takes a translation fault.
            _ => Entry::Absent,
        }
    }

    fn admit(level: Level, raw: u64) -> Result<(u64, Entry), EntryFault> {
        if raw & VALID == 0 {
            return Ok((raw, Entry::Absent));
        }
        let allowed = match (level, raw & TABLE_OR_PAGE != 0) {
            (1, true) => VALID | TABLE_OR_PAGE | ADDRESS | INNER_SHAREABLE | FREE_IN_LEAF,
            (2..=4, true) => VALID | TABLE_OR_PAGE | ADDRESS | READ_ONLY_AS_A_PAGE,
            (2, false) => VALID | BLOCK_ADDRESS | INNER_SHAREABLE | FREE_IN_LEAF,
            _ => return Err(EntryFault::WrongLevel),
        };
        let entry = Self::decode(level, raw);
        let wrong_shareability = match entry {
            Entry::Leaf(_) => (raw & SHAREABILITY) ^ INNER_SHAREABLE,
            _ => 0,
        };
        match (raw & !allowed) | wrong_shareability {
            0 => Ok((raw | forced(entry), entry)),
            forbidden => Err(EntryFault::ForbiddenBits(forbidden)),
        }
    }

    fn encode(level: Level, entry: Entry) -> u64 {
        match entry {
            Entry::Absent => 0,
            Entry::Table(table) => {
                (table.start().bytes() & ADDRESS) | READ_ONLY_AS_A_PAGE | TABLE_OR_PAGE | VALID
            }
            Entry::Leaf(leaf) => {
                let page = if level == 1 { TABLE_OR_PAGE } else { 0 };
                let rights = if leaf.writable { 0 } else { READ_ONLY };
                let fixed = VALID | INNER_SHAREABLE | ACCESS_FLAG | USER_EXECUTE_NEVER;
                (leaf.frame.start().bytes() & ADDRESS) | fixed | page | rights
            }
        }
    }

    fn with_write(raw: u64, writable: bool) -> u64 {
        let rest = raw & !(READ_ONLY | DIRTY_BIT_MODIFIER);
        if writable { rest } else { rest | READ_ONLY }
    }

    fn hidden(raw: u64) -> u64 {
        raw & !VALID
    }

    fn is_read_only_table(raw: u64) -> bool {
        // What ends a walk through a linear table is an entry of a table of level 2 or more: a table entry, which reads as a
        // read-only page; or a block, which at the last level is none. Entries of level 1 are never reached that way.
        raw & READ_ONLY_AS_A_PAGE == READ_ONLY_AS_A_PAGE
    }

    fn granted(leaf: Leaf, application: bool, available: u32) -> u64 {
        let user = if application { USER } else { 0 };
        let software = (u64::from(available) & 0b1111) << 55;
        Self::encode(1, Entry::Leaf(leaf)) | PRIVILEGED_EXECUTE_NEVER | USER_EXECUTE_NEVER | user | software
    }

    fn hardware_bits(_level: Level) -> u64 {
        // TCR_EL1.HA and HD are off: hardware changes nothing.
        0
    }
}

/// Bits that stand in an entry whatever the guest says.
const fn forced(entry: Entry) -> u64 {
    match entry {
        Entry::Table(_) => READ_ONLY_AS_A_PAGE,
        Entry::Absent | Entry::Leaf(_) => 0,
    }
}

fn frame(address: u64) -> Option<MachineFrame> {
    MachineAddress::new(address).map(MachineFrame::containing)
}

fn leaf(frame: MachineFrame, level: Level, raw: u64) -> Entry {
    let writable = raw & READ_ONLY == 0 || raw & DIRTY_BIT_MODIFIER != 0;
    Entry::Leaf(Leaf { frame, level, writable })
}

/// The bits of [`ATTRIBUTE_INDEX`] are never allowed to be set: index 0 is the only one.
const _: () = assert!(FREE_IN_LEAF & ATTRIBUTE_INDEX == 0);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = VALID | TABLE_OR_PAGE | INNER_SHAREABLE | ACCESS_FLAG;
    const BLOCK: u64 = VALID | INNER_SHAREABLE | ACCESS_FLAG;

    fn mfn(number: u64) -> MachineFrame {
        MachineFrame::new(number).expect("a small number")
    }

    #[test]
    fn a_plain_page_is_admitted_as_it_stands() {
        let raw = PAGE | 0x4123_4000;
        let leaf = Entry::Leaf(Leaf { frame: mfn(0x41234), level: 1, writable: true });
        assert_eq!(VmsaStage1::admit(1, raw), Ok((raw, leaf)));
        let leaf = Entry::Leaf(Leaf { frame: mfn(0x41234), level: 1, writable: false });
        assert_eq!(VmsaStage1::admit(1, raw | READ_ONLY), Ok((raw | READ_ONLY, leaf)));
    }

    #[test]
    fn a_dirty_bit_modifier_counts_as_writable() {
        let (_, entry) = VmsaStage1::admit(1, PAGE | READ_ONLY | DIRTY_BIT_MODIFIER).expect("admitted");
        assert!(matches!(entry, Entry::Leaf(Leaf { writable: true, .. })));
    }

    /// XSA-154: one page mapped with two memory types, whose caches then disagree about what it holds. There is one type for RAM.
    #[test]
    fn xsa_154_another_memory_type_or_shareability_is_refused() {
        for index in 1..8u64 {
            let fault = EntryFault::ForbiddenBits(index << 2);
            assert_eq!(VmsaStage1::admit(1, PAGE | index << 2), Err(fault));
        }
        for shareability in 0..3u64 {
            let raw = (PAGE & !SHAREABILITY) | shareability << 8;
            assert!(matches!(VmsaStage1::admit(1, raw), Err(EntryFault::ForbiddenBits(_))));
        }
    }

    #[test]
    fn contiguous_guarded_secure_and_hierarchical_bits_are_refused() {
        for bit in [5, 48, 49, 50, 52, 59, 60, 61, 62, 63] {
            let fault = Err(EntryFault::ForbiddenBits(1 << bit));
            assert_eq!(VmsaStage1::admit(1, PAGE | 1 << bit), fault, "bit {bit} of a page");
        }
        let forced = |bit: &u64| READ_ONLY_AS_A_PAGE >> bit & 1 != 0;
        for bit in (2..12).chain(48..64).filter(|bit| !forced(bit)) {
            let fault = Err(EntryFault::ForbiddenBits(1 << bit));
            assert_eq!(VmsaStage1::admit(3, VALID | TABLE_OR_PAGE | 1 << bit), fault, "bit {bit} of a table");
        }
    }

    #[test]
    fn a_block_stands_at_level_two_only_and_is_aligned() {
        let raw = BLOCK | 0x4020_0000;
        let leaf = Entry::Leaf(Leaf { frame: mfn(0x40200), level: 2, writable: true });
        assert_eq!(VmsaStage1::admit(2, raw), Ok((raw, leaf)));
        assert_eq!(VmsaStage1::admit(2, raw | 0x1000), Err(EntryFault::ForbiddenBits(0x1000)));
        for level in [1, 3, 4] {
            assert_eq!(VmsaStage1::admit(level, raw), Err(EntryFault::WrongLevel));
        }
    }

    /// XSA-148: Xen's fast path for level-2 entries looked neither at the superpage bit nor at the writable bit when an
    /// entry changed "only its flags", so a guest made a table's mapping a writable superpage. Here every change of
    /// those bits gives another meaning, which is judged anew.
    #[test]
    fn xsa_148_superpage_and_writable_bits_are_part_of_the_meaning() {
        let block = BLOCK | READ_ONLY | 0x4020_0000;
        let table = VmsaStage1::encode(2, Entry::Table(mfn(0x40200)));
        let meaning = |raw| VmsaStage1::admit(2, raw).map(|(_, entry)| entry);
        let leaf = |writable| Ok(Entry::Leaf(Leaf { frame: mfn(0x40200), level: 2, writable }));
        assert_eq!(meaning(table), Ok(Entry::Table(mfn(0x40200))));
        assert_eq!((meaning(block), meaning(block & !READ_ONLY)), (leaf(false), leaf(true)));
        assert_eq!(meaning(block | DIRTY_BIT_MODIFIER), leaf(true), "hardware could make it writable");
    }

    /// XSA-167: the frame number of a superpage entry was not checked: one that isn't aligned reaches memory before its frame.
    /// XSA-176: the walker ignored reserved bits of superpage entries, some of which are address bits to other walkers.
    #[test]
    fn xsa_167_and_176_no_bit_of_a_superpage_entry_is_ignored() {
        let block = BLOCK | 0x4020_0000;
        for bit in 12..21 {
            let fault = Err(EntryFault::ForbiddenBits(1 << bit));
            assert_eq!(VmsaStage1::admit(2, block | 1 << bit), fault, "bit {bit}: an address bit, or nT");
        }
        for bit in (2..64).filter(|bit| (FREE_IN_LEAF | INNER_SHAREABLE | BLOCK_ADDRESS) >> bit & 1 == 0) {
            let fault = Err(EntryFault::ForbiddenBits(1 << bit));
            assert_eq!(VmsaStage1::admit(2, block | 1 << bit), fault, "bit {bit}");
        }
        assert_eq!(VmsaStage1::admit(3, BLOCK | 0x4000_0000), Err(EntryFault::WrongLevel), "1 GiB");
        assert_eq!(VmsaStage1::admit(4, BLOCK), Err(EntryFault::WrongLevel), "512 GiB");
    }

    #[test]
    fn a_table_entry_is_harmless_as_a_page() {
        for level in 2..=4 {
            let (raw, entry) =
                VmsaStage1::admit(level, VALID | TABLE_OR_PAGE | 0x4123_4000).expect("admitted");
            assert_eq!(entry, Entry::Table(mfn(0x41234)));
            assert_eq!(raw, VmsaStage1::encode(level, entry));
            assert!(VmsaStage1::is_read_only_table(raw));
            // The same bits at the last level of a walk through a linear table.
            let (as_page, page) = VmsaStage1::admit(1, raw).expect("a page that a guest could write itself");
            assert_eq!(as_page, raw);
            assert_eq!(page, Entry::Leaf(Leaf { frame: mfn(0x41234), level: 1, writable: false }));
            let never = PRIVILEGED_EXECUTE_NEVER | USER_EXECUTE_NEVER;
            assert!(raw & never == never && raw & USER == 0);
        }
        assert!(!VmsaStage1::is_read_only_table(VALID | TABLE_OR_PAGE | 0x4123_4000));
        // A block's bits at the last level are a reserved encoding: a fault.
        assert_eq!(VmsaStage1::decode(1, BLOCK), Entry::Absent);
    }

    #[test]
    fn an_absent_entry_may_hold_anything() {
        assert_eq!(VmsaStage1::admit(1, !VALID), Ok((!VALID, Entry::Absent)));
    }

    #[test]
    fn what_the_builder_writes_is_admitted() {
        let leaf = |level, writable| Entry::Leaf(Leaf { frame: mfn(0x40200), level, writable });
        for (level, entry) in [
            (1, leaf(1, true)),
            (1, leaf(1, false)),
            (2, leaf(2, true)),
            (2, Entry::Table(mfn(7))),
            (4, Entry::Table(mfn(9))),
            (1, Entry::Absent),
        ] {
            let raw = VmsaStage1::encode(level, entry);
            assert_eq!(VmsaStage1::admit(level, raw), Ok((raw, entry)));
        }
    }

    #[test]
    fn granted_pages_are_data_with_the_guests_own_bits() {
        for application in [false, true] {
            let mapping = Leaf { frame: mfn(0x40200), level: 1, writable: true };
            let raw = VmsaStage1::granted(mapping, application, 0xffff);
            assert_eq!(VmsaStage1::admit(1, raw), Ok((raw, Entry::Leaf(mapping))));
            let never = PRIVILEGED_EXECUTE_NEVER | USER_EXECUTE_NEVER;
            assert_eq!((raw & never, raw & USER != 0, raw >> 55 & 0xf), (never, application, 0xf));
        }
    }

    proptest! {
        #[test]
        fn any_entry_at_any_level_is_judged(level: u8, raw: u64) {
            if let Ok((admitted, entry)) = VmsaStage1::admit(level, raw) {
                prop_assert_eq!(VmsaStage1::decode(level, admitted), entry);
                let names_memory = !matches!(entry, Entry::Absent);
                // Whatever the walker could follow, the core has been told of.
                prop_assert!(names_memory || admitted & VALID == 0);
            }
            let _ = VmsaStage1::decode(level, raw);
        }
    }
}
