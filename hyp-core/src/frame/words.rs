//! The 16 bytes the hypervisor keeps for each machine frame, and what they say.
//!
//! ```text
//! holding  bits 0..32 references   32..48 owner   48 allocated   49 scrubbed
//! using    bits 0..20 uses         20..23 type    23 complete    24 pinned   25..64 link
//! ```
//!
//! *Allocated* is itself one reference: the owner's claim, given up when memory is handed back. A record of zeros is
//! a frame that nobody can reach: no references, therefore no owner, whatever the owner field says.
//!
//! *Complete* says that the type holds: for a table that every entry was validated, for a writable frame that
//! old translations were flushed. An incomplete table holds references for its entries `[0, progress)` only, and *link* is
//! that progress. A complete table's *link* is a hint: the place of the last entry that was made to lead to it. Whoever uses the
//! hint looks at that entry first; zero is "no hint".

use crate::address::DomainId;
use crate::machine::Level;

/// What a frame is used as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameType {
    /// Nothing that excludes anything: read-only mappings need no type.
    None,
    /// Some translation lets a guest write to it.
    Writable,
    /// A page of segment descriptors, which the processor may load (x86).
    Descriptors,
    /// A page table of this level (1 to 4), which the MMU may walk.
    Table(Level),
}

pub(super) const COUNT_MASK: u64 = 0xffff_ffff;
/// Counts stop here, far from where an addition could carry into the owner: with the sign of a number of 32 bits.
pub(super) const COUNT_LIMIT: u64 = 0x8000_0000;
pub(super) const OWNER_SHIFT: u32 = 32;
pub(super) const ALLOCATED: u64 = 1 << 48;
pub(super) const SCRUBBED: u64 = 1 << 49;

/// Uses are counted in 20 bits: a million of one frame, after which one more is refused like any other conflict.
pub(super) const USES_MASK: u64 = 0xf_ffff;
pub(super) const TYPE_SHIFT: u32 = 20;
pub(super) const TYPE_MASK: u64 = 0x7 << TYPE_SHIFT;
/// Set in the type of every table.
pub(super) const ANY_TABLE: u64 = 4 << TYPE_SHIFT;
pub(super) const COMPLETE: u64 = 1 << 23;
pub(super) const PINNED: u64 = 1 << 24;
pub(super) const LINK_SHIFT: u32 = 25;
pub(super) const LINK_MASK: u64 = !0 << LINK_SHIFT;

impl FrameType {
    pub(super) const fn encode(self) -> u64 {
        let code = match self {
            Self::None => 0,
            Self::Writable => 1,
            Self::Descriptors => 2,
            Self::Table(level) => 4 | (level.saturating_sub(1) as u64 & 3),
        };
        code << TYPE_SHIFT
    }

    const fn decode(word: u64) -> Self {
        match (word & TYPE_MASK) >> TYPE_SHIFT {
            1 => Self::Writable,
            2 => Self::Descriptors,
            code if code & 4 != 0 => Self::Table(((code & 3) as Level).saturating_add(1)),
            _ => Self::None,
        }
    }
}

/// What a record's `using` word says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Use {
    /// The current type, or the last one when there are no uses.
    pub kind: FrameType,
    /// Uses as that type.
    pub uses: u32,
    /// Whether the type holds (see the module's doc).
    pub complete: bool,
    /// Whether one of the uses is a pin.
    pub pinned: bool,
    pub(super) link: u64,
}

impl Use {
    pub(super) const fn from_word(word: u64) -> Self {
        Self {
            kind: FrameType::decode(word),
            uses: (word & USES_MASK) as u32,
            complete: word & COMPLETE != 0,
            pinned: word & PINNED != 0,
            link: word >> LINK_SHIFT,
        }
    }

    /// Entries of an incomplete table, counted from 0, that hold references; 0 of a complete one.
    pub const fn progress(&self) -> usize {
        if self.complete { 0 } else { self.link as usize }
    }

    /// Of a complete table: where the entry stands that was last made to lead to it. A hint, see [`EntryPlace`].
    pub const fn hint(&self) -> Option<EntryPlace> {
        if self.complete { EntryPlace::from_link(self.link) } else { None }
    }
}

/// The place of an entry, as a record can remember it: which record is its table's, and the entry's index there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryPlace {
    /// Index of the table's record in the frame table.
    pub record: u32,
    /// Index of the entry, below 512.
    pub index: u16,
}

impl EntryPlace {
    const INDEX_BITS: u32 = 9;
    const RECORD_LIMIT: u32 = 1 << 29;

    /// One more than the place as a number, in at most 39 bits; zero for what doesn't fit (a hint may be missing).
    pub(super) const fn to_link(self) -> u64 {
        if self.record >= Self::RECORD_LIMIT {
            return 0;
        }
        ((self.record as u64) << Self::INDEX_BITS | (self.index as u64 & 0x1ff)).wrapping_add(1)
    }

    const fn from_link(link: u64) -> Option<Self> {
        match link.checked_sub(1) {
            Some(place) => {
                Some(Self { record: (place >> Self::INDEX_BITS) as u32, index: (place & 0x1ff) as u16 })
            }
            None => None,
        }
    }
}

/// What a record's `holding` word says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hold {
    /// Whose the frame is; `None` while it is free or not memory.
    pub owner: Option<DomainId>,
    /// Why it can't be freed, counted.
    pub references: u32,
    /// Whether the owner's own claim is among the references.
    pub allocated: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So it makes no difference whether fields are joined by "or", by "exclusive or", or by addition.
    #[test]
    fn fields_of_a_word_share_no_bit() {
        let holding = [COUNT_MASK, 0xffff << OWNER_SHIFT, ALLOCATED, SCRUBBED];
        let using = [USES_MASK, TYPE_MASK, COMPLETE, PINNED, LINK_MASK];
        for word in [&holding[..], &using[..]] {
            let joined = word.iter().fold(0, |bits, field| {
                assert!(*field != 0 && bits & field == 0, "{field:#x} among {bits:#x}");
                bits | field
            });
            assert_eq!(joined.count_ones(), word.iter().map(|field| field.count_ones()).sum());
        }
        assert_eq!(using.iter().sum::<u64>(), u64::MAX, "every bit of it is some field's");
        const { assert!(COUNT_LIMIT < COUNT_MASK, "a count stops before its neighbour") };
    }

    #[test]
    fn a_type_is_what_it_was_encoded_from() {
        let tables = (1..=4).map(FrameType::Table);
        let kinds = [FrameType::None, FrameType::Writable, FrameType::Descriptors].into_iter().chain(tables);
        for kind in kinds {
            let word = kind.encode();
            assert_eq!((FrameType::decode(word), word & !TYPE_MASK), (kind, 0));
            assert_eq!(word & ANY_TABLE != 0, matches!(kind, FrameType::Table(_)));
        }
    }
}
