//! Storing an entry of a guest's table, so that no TLB meets two meanings of it: break-before-make.
//!
//! The rule ([`Change::of`]) is the architecture's: Arm ARM (DDI 0487), D8.17.1. A new valid entry may stand where another one did only
//! once all TLBs have forgotten that one, whether it goes in the same store or went a long time ago. See
//! docs/decisions/break-before-make.md.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::format::{VALID, differ_in_use};
use crate::remembered::Remembered;

/// What a store does to an entry, as far as TLBs are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Nothing, or what may change while the entry is in use.
    InPlace,
    /// A valid entry becomes absent: TLBs may go on remembering it.
    Unmaps,
    /// An absent entry becomes valid: TLBs may remember another one, which was there before.
    Maps,
    /// A valid entry becomes another one, which TLBs mustn't meet beside it.
    Replaces,
}

impl Change {
    /// What a store of `new` does where `old` stands.
    #[inline(always)]
    pub const fn of(old: u64, new: u64) -> Self {
        // What is done most often is found first.
        if !differ_in_use(old, new) {
            return Self::InPlace;
        }
        match (old & VALID != 0, new & VALID != 0) {
            (false, false) => Self::InPlace,
            (false, true) => Self::Maps,
            (true, false) => Self::Unmaps,
            (true, true) => Self::Replaces,
        }
    }

    /// Whether a TLB could come to hold two entries in one place, if the new one were stored now.
    #[inline(always)]
    fn may_meet_another(self, remembered: &Remembered) -> bool {
        self == Self::Replaces || self == Self::Maps && remembered.is_any()
    }
}

/// Stores `new` in an entry. `forget` makes all TLBs forget all guests' entries. The core serialises the updates of a table.
#[inline(always)]
pub fn write(entry: &AtomicU64, new: u64, remembered: &Remembered, forget: impl FnOnce()) {
    // Relaxed: it is looked at, not followed; the last store was under the lock that the caller has.
    let change = Change::of(entry.load(Ordering::Relaxed), new);
    if change == Change::Replaces {
        // Relaxed: nothing is reached by it; what comes next begins with a barrier.
        entry.store(0, Ordering::Relaxed);
    }
    if change.may_meet_another(remembered) {
        forget();
    }
    // Release: what the entry leads to was written before.
    entry.store(new, Ordering::Release);
    if change == Change::Unmaps {
        remembered.note();
    }
}

/// As [`write`], if the entry still holds `current`.
///
/// # Errors
/// What it holds instead; nothing was stored then.
#[inline(always)]
pub fn exchange(
    entry: &AtomicU64,
    (current, new): (u64, u64),
    remembered: &Remembered,
    forget: impl FnOnce(),
) -> Result<(), u64> {
    let change = Change::of(current, new);
    let mut replaced = current;
    if change == Change::Replaces {
        // The decision is made here, against `current`. Nobody can be told a value in between: hardware leaves an absent entry
        // alone, and the core serialises a table's updates. Relaxed: nothing is reached by it. Acquire: what stands there instead is
        // judged by the caller, like any entry that is read.
        entry.compare_exchange(current, 0, Ordering::Relaxed, Ordering::Acquire)?;
        replaced = 0;
    }
    if change.may_meet_another(remembered) {
        forget();
    }
    // Release: what the entry leads to was written before. Acquire: as above.
    entry.compare_exchange(replaced, new, Ordering::Release, Ordering::Acquire)?;
    if change == Change::Unmaps {
        remembered.note();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyp_core::address::MachineFrame;
    use hyp_core::machine::{Entry, Leaf, PageTableFormat};
    use proptest::prelude::*;
    use std::cell::{Cell, RefCell};

    use crate::format::VmsaStage1;

    const READ_ONLY: u64 = 1 << 7;
    const ACCESS_FLAG: u64 = 1 << 10;
    const NOT_GLOBAL: u64 = 1 << 11;

    fn leaf(level: u8, number: u64) -> u64 {
        let frame = MachineFrame::new(number).expect("a small number");
        VmsaStage1::encode(level, Entry::Leaf(Leaf { frame, level, writable: true }))
    }

    fn table(number: u64) -> u64 {
        VmsaStage1::encode(2, Entry::Table(MachineFrame::new(number).expect("a small number")))
    }

    #[test]
    fn only_another_meaning_needs_a_break() {
        let (page, block) = (leaf(1, 0x41234), leaf(2, 0x40200));
        let rights = READ_ONLY | ACCESS_FLAG | 1 << 6 | 1 << 51 | 0b11 << 53 | 0b1111 << 55;
        let changes = [
            (page, page ^ 0x1000, Change::Replaces, "another frame"),
            (page, page | NOT_GLOBAL, Change::Replaces, "global to not global"),
            (page | NOT_GLOBAL, page, Change::Replaces, "not global to global"),
            (block, table(0x41234), Change::Replaces, "a block to a table"),
            (table(0x41234), block, Change::Replaces, "a table to a block"),
            (table(0x41234), table(0x41235), Change::Replaces, "another table"),
            (block, leaf(2, 0x40400), Change::Replaces, "another superpage"),
            (block, block | READ_ONLY, Change::InPlace, "write protection of a superpage"),
            (page, page, Change::InPlace, "the same"),
            (page, page ^ rights, Change::InPlace, "rights, access flag, software's bits"),
            (page ^ rights, page, Change::InPlace, "and back"),
            (page, 0, Change::Unmaps, "valid to absent"),
            (page, page & !VALID, Change::Unmaps, "hidden"),
            (page, (page ^ 0x1000) & !VALID, Change::Unmaps, "valid to absent, whatever else it says"),
            (0, page, Change::Maps, "absent to valid"),
            (page & !VALID, page, Change::Maps, "shown again"),
            (page & !VALID, page ^ 0x1000, Change::Maps, "absent to valid, whatever else it said"),
            (0, !VALID, Change::InPlace, "absent to absent"),
        ];
        for (old, new, expected, what) in changes {
            assert_eq!(Change::of(old, new), expected, "{what}");
        }
    }

    /// Some entries, and TLBs that forget nothing until they are told to.
    struct Tlb {
        entries: [AtomicU64; 4],
        met: RefCell<[Vec<u64>; 4]>,
        remembered: Remembered,
        flushes: Cell<usize>,
    }

    impl Tlb {
        fn new() -> Self {
            Self {
                entries: [const { AtomicU64::new(0) }; 4],
                met: RefCell::default(),
                remembered: Remembered::new(),
                flushes: Cell::new(0),
            }
        }

        fn forget(&self) {
            self.flushes.set(self.flushes.get() + 1);
            self.remembered.forget(2, || *self.met.borrow_mut() = Default::default());
            // A walker may take anything in again at once.
            (0..4).for_each(|at| self.meet(at));
        }

        fn meet(&self, at: usize) {
            let raw = self.entries[at].load(Ordering::Relaxed);
            if raw & VALID != 0 {
                self.met.borrow_mut()[at].push(raw);
            }
        }

        fn store(&self, at: usize, new: u64, exchanges: bool) {
            let (entry, remembered) = (&self.entries[at], &self.remembered);
            if exchanges {
                let current = entry.load(Ordering::Relaxed);
                assert_eq!(
                    exchange(entry, (current ^ 1 << 12, new), remembered, || self.forget()),
                    Err(current)
                );
                assert_eq!(exchange(entry, (current, new), remembered, || self.forget()), Ok(()));
            } else {
                write(entry, new, remembered, || self.forget());
            }
            assert_eq!(entry.load(Ordering::Relaxed), new);
            self.meet(at);
        }

        fn flushes_of(&self, stores: &[(usize, u64)]) -> usize {
            let before = self.flushes.get();
            stores.iter().for_each(|&(at, raw)| self.store(at, raw, false));
            self.flushes.get() - before
        }
    }

    #[test]
    fn what_was_made_absent_is_forgotten_before_anything_is_mapped() {
        let tlb = Tlb::new();
        let (page, other) = (leaf(1, 5), leaf(1, 6));
        assert_eq!(tlb.flushes_of(&[(0, page), (1, page), (2, page)]), 0, "nothing was there before");
        assert_eq!(tlb.flushes_of(&[(0, 0), (1, 0), (1, 8), (2, page ^ READ_ONLY)]), 0, "nothing is mapped");
        assert_eq!(tlb.flushes_of(&[(0, other), (1, other), (3, page)]), 1, "the first pays for all");
        assert_eq!(tlb.flushes_of(&[(0, page)]), 1, "in one store");
        assert_eq!(tlb.flushes_of(&[(0, 0), (0, page)]), 1, "even the same: it isn't known what was there");
        tlb.store(1, 0, false);
        tlb.forget();
        assert_eq!(tlb.flushes_of(&[(1, page)]), 0, "all was forgotten for another reason");
    }

    #[test]
    fn a_note_that_comes_while_all_is_forgotten_stays() {
        let remembered = Remembered::new();
        remembered.note();
        remembered.forget(2, || {
            assert!(remembered.is_any(), "the flush isn't complete");
            remembered.note();
        });
        assert!(remembered.is_any(), "it may have come too late for the flush");
        remembered.forget(2, || remembered.forget(3, || ()));
        assert!(!remembered.is_any(), "the second flush covers all that the first does");
        remembered.note();
        remembered.forget(2, || {
            remembered.forget(3, || remembered.note());
        });
        assert!(remembered.is_any());
    }

    fn an_entry() -> impl Strategy<Value = u64> {
        prop_oneof![
            Just(0),
            (1..4u64).prop_map(|frame| leaf(1, frame)),
            (1..4u64).prop_map(|frame| leaf(1, frame) | READ_ONLY),
            (1..4u64).prop_map(|frame| leaf(1, frame) & !VALID),
            (1..4u64).prop_map(table),
            (1..4u64).prop_map(|number| leaf(2, number << 9)),
        ]
    }

    proptest! {
        #[test]
        fn no_tlb_meets_two_meanings(stores in prop::collection::vec((0..4usize, an_entry(), any::<bool>()), 1..60)) {
            let tlb = Tlb::new();
            for (at, raw, exchanges) in stores {
                tlb.store(at, raw, exchanges);
                for met in tlb.met.borrow().iter() {
                    let conflict = |pair: &[u64]| differ_in_use(pair[0], pair[1]);
                    prop_assert!(!met.windows(2).any(conflict), "{met:x?}");
                }
            }
        }

        #[test]
        fn whatever_leads_elsewhere_needs_a_break(level in 1..=4u8, old: u64, new: u64) {
            let place = |raw| match VmsaStage1::decode(level, raw) {
                Entry::Absent => None,
                Entry::Table(table) => Some((table, 0)),
                Entry::Leaf(leaf) => Some((leaf.frame, leaf.level)),
            };
            if let (Some(old_place), Some(new_place)) = (place(old), place(new)) {
                prop_assert!(old_place == new_place || Change::of(old, new) == Change::Replaces);
                prop_assert_eq!(Change::of(old, new), Change::of(new, old));
            }
        }
    }
}
