//! The record of each machine frame: two words, and how they change.
//!
//! What the words say is in [`super::words`]. Each is changed only by compare-and-swap of the whole word, so that a count and
//! the flags that give it its meaning can't be seen apart.
//!
//! A type outlives its last use: the field stays, with no uses, until another type is asked for. Then translations of the
//! old kind may still be cached, which is why `FrameRecord::take_type` tells when a flush is due.

use crate::sync::atomic::{AtomicU64, Ordering};

use super::words::{
    ALLOCATED, ANY_TABLE, COMPLETE, COUNT_LIMIT, COUNT_MASK, EntryPlace, FrameType, Hold, LINK_MASK,
    LINK_SHIFT, OWNER_SHIFT, PINNED, SCRUBBED, TYPE_MASK, TYPE_SHIFT, USES_MASK, Use,
};
use crate::address::DomainId;
use crate::machine::Level;

/// What `FrameRecord::take_type` found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// The type already held, or needs no work: one more use was counted.
    Ready,
    /// The type is locked, by this first use, but not yet complete. If `flush`, cached translations of the old kind may exist.
    First {
        /// Whether everything has to be flushed before the type can be completed.
        flush: bool,
    },
    /// One more use of a table whose validation or tear-down stopped half-way.
    Unfinished,
}

/// Why a type was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TypeError {
    /// The frame is in use as this.
    Conflict(FrameType),
    /// Too many uses to count one more.
    Overflow,
}

// Orderings, for all that follows; what is particular to one place stands there. Loads are acquire, and so are compare-and-swaps that find another
// word: by the word it is decided what may be done with the frame, and whatever made that so (scrubbing, validation, a flush) came before the
// word was stored. Compare-and-swaps that succeed are release as well: what was done with the frame under a reference or a use comes
// before what is done by whoever finds it gone. Nothing needs one order of all stores to both words: each rule is about one of them, but for
// the owner of a table, which is said beside `is_complete_leaf_table`.

/// One frame's record. 16 bytes.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct FrameRecord {
    holding: AtomicU64,
    using: AtomicU64,
}

impl Default for FrameRecord {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameRecord {
    /// A frame that nobody can reach.
    pub const fn new() -> Self {
        Self { holding: AtomicU64::new(0), using: AtomicU64::new(0) }
    }

    /// The references and the owner, as they are at this moment.
    pub fn hold(&self) -> Hold {
        // Acquire: whoever sees an owner sees what was done before the frame was given to it.
        let word = self.holding.load(Ordering::Acquire);
        let references = (word & COUNT_MASK) as u32;
        let owner = (references != 0).then(|| DomainId::new((word >> OWNER_SHIFT) as u16));
        Hold { owner, references, allocated: word & ALLOCATED != 0 }
    }

    /// The type and its uses, as they are at this moment.
    pub fn usage(&self) -> Use {
        // Acquire: pairs with `complete`, as in `take_type`.
        Use::from_word(self.using.load(Ordering::Acquire))
    }

    /// Gives a frame that is nobody's, just taken from the allocator or from its owner, to `owner` with one reference: the owner's claim.
    pub(super) fn assign(&self, owner: DomainId) {
        let word = (u64::from(owner.number()) << OWNER_SHIFT) | ALLOCATED | 1;
        // Release: whoever sees the new owner also sees the frame scrubbed, and its type reset.
        self.holding.store(word, Ordering::Release);
    }

    /// Makes the record that of a free frame. Only for who dropped the last reference.
    pub(super) fn vacate(&self, scrubbed: bool) {
        // Relaxed: nobody has a reference, so nobody looks; the next store publishes it.
        self.using.store(0, Ordering::Relaxed);
        // Release: the type's reset is visible before anyone can be given the frame.
        self.holding.store(if scrubbed { SCRUBBED } else { 0 }, Ordering::Release);
    }

    /// Whether a free frame has been scrubbed.
    pub(super) fn is_scrubbed(&self) -> bool {
        // Acquire: the scrubbing comes before whoever relies on it.
        self.holding.load(Ordering::Acquire) & SCRUBBED != 0
    }

    /// Takes the frame away from `owner` if the claim is the only reference and there are no uses: it is nobody's then.
    pub(super) fn steal(&self, owner: DomainId) -> bool {
        // Acquire: what was done under the references that are gone comes before what is done to the frame now.
        let before = self.holding.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let only_claim = word & (COUNT_MASK | ALLOCATED) == ALLOCATED | 1;
            (only_claim && (word >> OWNER_SHIFT) as u16 == owner.number()).then_some(0)
        });
        let taken = before.is_ok();
        // A use has a reference of its own, so there can be none; if there is all the same, the frame isn't touched.
        if taken && self.usage().uses != 0 {
            self.assign(owner);
        }
        taken && self.usage().uses == 0
    }

    /// Whether `owner` owns the frame, by its `holding` word.
    #[inline]
    const fn is_owned(word: u64, owner: DomainId) -> bool {
        word & COUNT_MASK != 0 && (word >> OWNER_SHIFT) as u16 == owner.number()
    }

    /// Whether the frame is `owner`'s at this moment.
    #[inline]
    pub(crate) fn is_owned_by(&self, owner: DomainId) -> bool {
        // Acquire: as in `hold`.
        Self::is_owned(self.holding.load(Ordering::Acquire), owner)
    }

    /// The level at which the frame is a complete table of `owner`'s, in use; 0 if it is none.
    #[inline]
    pub(super) fn table_level(&self, owner: DomainId) -> Level {
        // Acquire: pairs with `complete`, as in `take_type`; and the owner is looked at after the type, as below.
        let using = self.using.load(Ordering::Acquire);
        // A complete type has a use: the last one takes the flag along.
        let is_table = using & (COMPLETE | ANY_TABLE) == COMPLETE | ANY_TABLE;
        let is_ours = Self::is_owned(self.holding.load(Ordering::Acquire), owner);
        if is_table && is_ours { (((using >> TYPE_SHIFT) & 3) as Level).saturating_add(1) } else { 0 }
    }

    /// Whether the frame is a complete table of level 1, in use. Whose it is, is to be looked at afterwards.
    #[inline(always)]
    pub(crate) fn is_complete_leaf_table(&self) -> bool {
        // A complete type has a use: the last one takes the flag along. Acquire: pairs with `complete`, and keeps the owner, which is
        // loaded next, from being an older one.
        self.using.load(Ordering::Acquire) & (TYPE_MASK | COMPLETE) == FrameType::Table(1).encode() | COMPLETE
    }

    /// Counts one more reference if the frame is `owner`'s. `Some(false)`: too many; `None`: not the owner's.
    #[inline]
    pub(super) fn get(&self, owner: DomainId) -> Option<bool> {
        if self.get_once(owner) { Some(true) } else { self.get_after_all(owner) }
    }

    /// One attempt at [`Self::get`], as code of the usual case alone: `false` also when another CPU came in between.
    #[inline(always)]
    pub(crate) fn get_once(&self, owner: DomainId) -> bool {
        let word = self.holding.load(Ordering::Acquire);
        // Both ends of the count at once: none, and the limit, which is the sign.
        const { assert!(COUNT_LIMIT == 1 << 31 && COUNT_MASK == u32::MAX as u64) };
        if (word >> OWNER_SHIFT) as u16 != owner.number() || word as i32 <= 0 {
            return false;
        }
        // Acquire: what the owner did before handing the frame out is visible to who holds a reference.
        let next = word.wrapping_add(1);
        self.holding.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    #[cold]
    #[inline(never)]
    fn get_after_all(&self, owner: DomainId) -> Option<bool> {
        loop {
            // Acquire: an answer by which the caller goes on, as in `hold`.
            let word = self.holding.load(Ordering::Acquire);
            if !Self::is_owned(word, owner) {
                return None;
            }
            if word & COUNT_MASK >= COUNT_LIMIT {
                return Some(false);
            }
            if self.get_once(owner) {
                return Some(true);
            }
        }
    }

    /// Drops one reference. If it was the last, returns whose frame it was, and the caller has to free it.
    /// A count of zero stays zero (a bug elsewhere must not become a wrap-around).
    #[must_use]
    #[inline(always)]
    pub(super) fn put(&self) -> Option<DomainId> {
        // Acquire: only for the general reason; the count is looked at again when it is changed.
        let word = self.holding.load(Ordering::Acquire);
        // The usual case at once: it isn't the last, and no other CPU comes in between. Release: as below.
        let put_one = || {
            self.holding.compare_exchange_weak(
                word,
                word.wrapping_sub(1),
                Ordering::AcqRel,
                Ordering::Acquire,
            )
        };
        if word & COUNT_MASK > 1 && put_one().is_ok() { None } else { self.put_after_all() }
    }

    #[cold]
    #[inline(never)]
    fn put_after_all(&self) -> Option<DomainId> {
        let mut word = self.holding.load(Ordering::Acquire);
        while word & COUNT_MASK != 0 {
            // AcqRel. Release: our uses of the frame happen before whoever frees it. Acquire: for who does free it.
            let next = word.wrapping_sub(1);
            match self.holding.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    let last = word & COUNT_MASK == 1;
                    return last.then(|| DomainId::new((word >> OWNER_SHIFT) as u16));
                }
                Err(now) => word = now,
            }
        }
        None
    }

    /// Takes away the owner's claim (its reference is the caller's to drop); `false` if it was gone already.
    pub(super) fn unclaim(&self) -> bool {
        // AcqRel: what was done with the frame under the claim comes before, what is done for want of it comes after.
        self.holding.fetch_and(!ALLOCATED, Ordering::AcqRel) & ALLOCATED != 0
    }

    /// Counts one more use as *writable*, if that needs nothing else: no flush, and no wait. Otherwise nothing has changed (`false`), and
    /// [`Self::take_type`] says what there is to do.
    #[inline]
    pub(crate) fn take_writable(&self) -> bool {
        const WRITABLE: u64 = FrameType::Writable.encode();
        // Acquire: a type that holds was flushed for.
        let word = self.using.load(Ordering::Acquire);
        let state = word & (TYPE_MASK | COMPLETE | USES_MASK);
        // With the right type, what differs is the number of uses alone. A type without uses is never complete: the last use takes the
        // flag along.
        let next = if state ^ (WRITABLE | COMPLETE) < USES_MASK {
            word.wrapping_add(1)
        } else if state & !WRITABLE == 0 {
            // Never used, or writable before: no translation of another kind can be cached.
            WRITABLE | COMPLETE | 1
        } else {
            return false;
        };
        // AcqRel: as in `take_type`.
        self.using.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Counts one more use of a type that holds, as most uses of tables are. Otherwise nothing has changed (`false`), and
    /// [`Self::take_type`] says what there is to do.
    #[inline]
    pub(super) fn take_complete(&self, kind: FrameType) -> bool {
        let word = self.using.load(Ordering::Acquire);
        let holds = word & (TYPE_MASK | COMPLETE) == kind.encode() | COMPLETE;
        // A complete type has a use: the last one takes the flag along.
        let counts = word & USES_MASK != USES_MASK;
        // AcqRel: as in `take_type`.
        let take =
            || self.using.compare_exchange(word, word.wrapping_add(1), Ordering::AcqRel, Ordering::Acquire);
        holds && counts && take().is_ok()
    }

    /// Counts one more use as `kind`, changing the type when no use is left.
    pub(super) fn take_type(&self, kind: FrameType) -> Result<Taken, TypeError> {
        loop {
            // Acquire: pairs with `complete`; a type that is said to hold does, with all that was checked for it.
            let word = self.using.load(Ordering::Acquire);
            let now = Use::from_word(word);
            let (next, taken) = if now.uses == 0 {
                Self::first_use(now.kind, kind)
            } else if now.kind != kind {
                return Err(TypeError::Conflict(now.kind));
            } else if u64::from(now.uses) >= USES_MASK {
                return Err(TypeError::Overflow);
            } else if now.complete {
                (word.wrapping_add(1), Taken::Ready)
            } else if kind == FrameType::Writable {
                // Someone is flushing before its first use: a wait of one flush, on another CPU.
                crate::sync::spin_loop();
                continue;
            } else {
                (word.wrapping_add(1), Taken::Unfinished)
            };
            // AcqRel: the type is locked before the flush and the validation that follow (XSA-401), and after
            // everything that the last user of the old type did.
            if self.using.compare_exchange(word, next, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return Ok(taken);
            }
        }
    }

    fn first_use(last: FrameType, kind: FrameType) -> (u64, Taken) {
        let flush = last != FrameType::None && last != kind;
        match kind {
            FrameType::Writable | FrameType::None if !flush => (kind.encode() | COMPLETE | 1, Taken::Ready),
            _ => (kind.encode() | 1, Taken::First { flush }),
        }
    }

    /// Drops one use that isn't the last; otherwise nothing has changed (`false`). Looked at and dropped in one step: of two CPUs that
    /// drop two uses, one is told that its use is the last.
    #[inline(always)]
    pub(super) fn drop_one_of_many(&self) -> bool {
        let word = self.using.load(Ordering::Acquire);
        let next = word.wrapping_sub(1);
        // AcqRel: as in `drop_type`.
        let drop = || self.using.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire);
        word & USES_MASK > 1 && (drop().is_ok() || self.drop_one_of_many_after_all())
    }

    #[cold]
    #[inline(never)]
    fn drop_one_of_many_after_all(&self) -> bool {
        let mut word = self.using.load(Ordering::Acquire);
        while word & USES_MASK > 1 {
            // AcqRel: as in `drop_type`.
            let next = word.wrapping_sub(1);
            match self.using.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Drops one use; returns how many are left. A count of zero stays zero.
    #[inline]
    pub(crate) fn drop_type(&self) -> u32 {
        self.drop_type_once().unwrap_or_else(|| self.drop_type_after_all())
    }

    /// One attempt at [`Self::drop_type`]; `None` if there is no use, or another CPU came in between.
    #[inline(always)]
    fn drop_type_once(&self) -> Option<u32> {
        let word = self.using.load(Ordering::Acquire);
        // The last use takes the flags along; the type stays, for the flush that its successor may owe.
        let next = if word & USES_MASK == 1 { word & TYPE_MASK } else { word.wrapping_sub(1) };
        // Release: what was done under the type comes before who takes another; acquire: after what others did.
        let drop = || self.using.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire);
        (word & USES_MASK != 0 && drop().is_ok()).then_some((next & USES_MASK) as u32)
    }

    #[cold]
    #[inline(never)]
    fn drop_type_after_all(&self) -> u32 {
        while self.usage().uses != 0 {
            if let Some(left) = self.drop_type_once() {
                return left;
            }
        }
        0
    }

    /// Says that the type holds now.
    pub(super) fn complete(&self) {
        // Release: the validation's results, or the flush, come before anyone relies on the flag.
        let _ = self
            .using
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| Some((word | COMPLETE) & !LINK_MASK));
    }

    /// Says that a table is incomplete and holds references for its first `progress` entries.
    pub(super) fn set_progress(&self, progress: usize) {
        let field = (progress as u64) << LINK_SHIFT;
        // Release: the references of the entries up to here are taken, or given back, before anyone goes on from here.
        let _ = self.using.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            Some((word & !(COMPLETE | LINK_MASK)) | field)
        });
    }

    /// Remembers where an entry was made to lead to this complete table.
    pub(super) fn set_hint(&self, place: EntryPlace) {
        let field = place.to_link() << LINK_SHIFT;
        // Relaxed: a hint, which its reader holds against the entry itself.
        let _ = self.using.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            (word & COMPLETE != 0).then_some((word & !LINK_MASK) | field)
        });
    }

    /// Marks one of the uses as a pin, or no longer.
    pub(super) fn set_pinned(&self, pinned: bool) {
        // AcqRel: who finds the mark also finds what was done before it was set.
        if pinned {
            self.using.fetch_or(PINNED, Ordering::AcqRel);
        } else {
            self.using.fetch_and(!PINNED, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: DomainId = DomainId::new(1);
    const TWO: DomainId = DomainId::new(2);

    fn owned() -> FrameRecord {
        let record = FrameRecord::new();
        record.assign(ONE);
        record
    }

    #[test]
    fn nobody_reaches_a_record_of_zeros() {
        let record = FrameRecord::new();
        // The owner field says "domain 0".
        assert_eq!((record.get(DomainId::CONTROL), record.hold().owner, record.put()), (None, None, None));
        assert_eq!((record.hold().references, record.drop_type(), record.usage().uses), (0, 0, 0));
    }

    #[test]
    fn only_the_owner_gets_references_and_the_last_one_frees() {
        let record = owned();
        assert_eq!((record.get(TWO), record.get(ONE)), (None, Some(true)));
        assert!(record.unclaim() && !record.unclaim(), "the claim is given up once");
        assert_eq!((record.put(), record.put(), record.put()), (None, Some(ONE), None));
    }

    #[test]
    fn a_count_never_reaches_its_neighbour() {
        let record = owned();
        record.holding.store(record.holding.load(Ordering::Relaxed) | COUNT_LIMIT, Ordering::Relaxed);
        assert_eq!((record.get(ONE), record.hold().owner), (Some(false), Some(ONE)));
        record.using.store(FrameType::Writable.encode() | COMPLETE | USES_MASK, Ordering::Relaxed);
        assert_eq!(record.take_type(FrameType::Writable), Err(TypeError::Overflow));
        assert!(!record.take_writable());
        assert_eq!((record.usage().kind, record.usage().uses), (FrameType::Writable, USES_MASK as u32));
    }

    /// The short way to a writable use is taken exactly where nothing else is due, and leaves no trace elsewhere.
    #[test]
    fn a_writable_use_needs_nothing_else_or_takes_the_long_way() {
        let record = owned();
        assert!(record.take_writable(), "never used before");
        assert!(record.take_writable(), "writable already");
        let writable = Use { kind: FrameType::Writable, uses: 2, complete: true, pinned: false, link: 0 };
        assert_eq!(record.usage(), writable);
        assert_eq!((record.drop_type(), record.drop_type()), (1, 0));
        assert!(record.take_writable(), "writable before");
        assert_eq!((record.usage(), record.drop_type()), (Use { uses: 1, ..writable }, 0));
        for kind in [FrameType::Descriptors, FrameType::Table(1), FrameType::Table(3)] {
            assert_eq!(record.take_type(kind), Ok(Taken::First { flush: true }));
            assert!(!record.take_writable(), "in use as {kind:?}");
            record.complete();
            assert!(!record.take_writable(), "in use as {kind:?}");
            assert_eq!((record.usage().kind, record.usage().uses, record.drop_type()), (kind, 1, 0));
            assert!(!record.take_writable(), "a flush is due after {kind:?}");
            assert_eq!((record.usage().kind, record.usage().uses), (kind, 0));
        }
        assert_eq!(record.take_type(FrameType::Writable), Ok(Taken::First { flush: true }));
        assert!(!record.take_writable(), "somebody is flushing");
        assert_eq!((record.usage().uses, record.usage().complete), (1, false));
        record.complete();
        assert!(record.take_writable());
        assert_eq!(record.usage(), writable);
    }

    /// The ways that are taken when another CPU came in between, and when there is nothing to count: they answer as the short ones do.
    #[test]
    fn the_long_ways_answer_as_the_short_ones_do() {
        let record = owned();
        assert_eq!((record.get_after_all(TWO), record.get_after_all(ONE)), (None, Some(true)));
        assert_eq!((record.hold().references, record.hold().owner), (2, Some(ONE)));
        assert_eq!(
            (record.put_after_all(), record.put_after_all(), record.put_after_all()),
            (None, Some(ONE), None)
        );
        assert_eq!((record.get_after_all(ONE), record.hold().references), (None, 0));
        assert!(record.take_writable() && record.take_writable() && record.take_writable());
        assert_eq!((record.drop_type_after_all(), record.usage().uses), (2, 2));
        assert_eq!((record.drop_type_after_all(), record.drop_type_after_all()), (1, 0));
        assert_eq!((record.drop_type_after_all(), record.usage().uses), (0, 0));
        assert!(!record.drop_one_of_many_after_all(), "no use at all");
        record.using.store(FrameType::Table(2).encode() | COMPLETE | 3, Ordering::Relaxed);
        assert!(record.drop_one_of_many_after_all() && record.drop_one_of_many_after_all(), "of three");
        assert!(!record.drop_one_of_many_after_all(), "the last one stays");
        let last = Use { kind: FrameType::Table(2), uses: 1, complete: true, pinned: false, link: 0 };
        assert_eq!(record.usage(), last);
    }

    /// The short way to a use of what is complete, which it has in common with the long one that it counts.
    #[test]
    fn a_use_of_what_is_complete_is_counted_at_once() {
        let record = owned();
        let kinds = [FrameType::Table(1), FrameType::Table(4), FrameType::Descriptors];
        for kind in kinds {
            assert!(!record.take_complete(kind) && !record.drop_one_of_many(), "not in use");
            assert!(matches!(record.take_type(kind), Ok(Taken::First { .. })));
            assert!(!record.take_complete(kind), "incomplete");
            record.complete();
            assert!(!record.drop_one_of_many() && record.take_complete(kind), "a single one");
            let others = kinds.iter().filter(|other| **other != kind);
            assert!(!others.chain(&[FrameType::Writable]).any(|other| record.take_complete(*other)));
            let two = Use { kind, uses: 2, complete: true, pinned: false, link: 0 };
            assert_eq!(record.usage(), two);
            assert!(record.drop_one_of_many() && !record.drop_one_of_many(), "down to the last, which stays");
            assert_eq!(record.usage(), Use { uses: 1, ..two });
            record.using.store(kind.encode() | COMPLETE | USES_MASK, Ordering::Relaxed);
            assert!(!record.take_complete(kind), "as many as can be counted");
            assert_eq!(record.usage(), Use { uses: USES_MASK as u32, ..two });
            assert!(record.drop_one_of_many() && record.take_complete(kind));
            record.using.store(kind.encode(), Ordering::Relaxed);
        }
    }

    #[test]
    fn types_exclude_each_other_until_the_last_use_is_gone() {
        let record = owned();
        let table = FrameType::Table(2);
        assert_eq!(record.take_type(FrameType::Writable), Ok(Taken::Ready));
        assert_eq!(record.take_type(FrameType::Writable), Ok(Taken::Ready));
        assert_eq!(record.take_type(table), Err(TypeError::Conflict(FrameType::Writable)));
        assert_eq!((record.drop_type(), record.drop_type(), record.drop_type()), (1, 0, 0));
        assert_eq!(record.take_type(table), Ok(Taken::First { flush: true }));
        assert_eq!(record.take_type(table), Ok(Taken::Unfinished));
        record.complete();
        assert_eq!(record.take_type(table), Ok(Taken::Ready));
        assert_eq!(record.take_type(FrameType::Table(1)), Err(TypeError::Conflict(table)));
        assert_eq!((record.drop_type(), record.drop_type(), record.drop_type()), (2, 1, 0));
        assert_eq!(record.take_type(FrameType::Writable), Ok(Taken::First { flush: true }));
    }

    #[test]
    fn the_last_use_takes_the_flags_along_and_leaves_the_type() {
        let record = owned();
        assert_eq!(record.take_type(FrameType::Table(4)), Ok(Taken::First { flush: false }));
        record.set_progress(512);
        assert_eq!((record.usage().progress(), record.usage().complete), (512, false));
        record.complete();
        record.complete();
        record.set_pinned(true);
        assert_eq!((record.usage().progress(), record.usage().complete), (0, true), "said twice");
        record.drop_type();
        let left = Use { kind: FrameType::Table(4), uses: 0, complete: false, pinned: false, link: 0 };
        assert_eq!(record.usage(), left);
        record.vacate(true);
        assert_eq!((record.usage().kind, record.is_scrubbed()), (FrameType::None, true));
        record.assign(TWO);
        assert_eq!((record.hold().owner, record.is_scrubbed()), (Some(TWO), false));
    }

    #[test]
    fn a_complete_table_remembers_who_led_to_it() {
        let record = owned();
        let _ = record.take_type(FrameType::Table(1));
        let place = EntryPlace { record: 0x1fff_ffff, index: 511 };
        record.set_progress(7);
        record.set_hint(place);
        assert_eq!(
            (record.usage().hint(), record.usage().progress()),
            (None, 7),
            "the field is its progress"
        );
        record.complete();
        record.set_hint(place);
        assert_eq!((record.usage().hint(), record.usage().uses), (Some(place), 1));
        record.set_hint(EntryPlace { record: 1 << 29, index: 0 });
        assert_eq!((record.usage().hint(), record.usage().complete), (None, true), "too far for a hint");
        record.set_hint(EntryPlace { record: 0, index: 0 });
        assert_eq!(record.usage().hint(), Some(EntryPlace { record: 0, index: 0 }));
        record.set_progress(3);
        assert_eq!((record.usage().hint(), record.usage().progress()), (None, 3));
    }
}
