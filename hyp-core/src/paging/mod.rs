//! Guests' page tables: validated before the MMU can use them, and kept valid by every update after that.
//!
//! The tables that a guest builds are the tables that the MMU walks. A [`TableSpace`] is one domain's set of them, used
//! under the domain's table lock. It knows four things: how to *hold* a table (validate the whole tree below it and take a
//! use, [`validate`]), how to *let it go* again (in the same file, since one undoes the other), how
//! to change one entry ([`update`]), and how to translate an address by walking ([`walk`]). Pins and roots
//! are two reasons to hold a table ([`pin`]).
//!
//! **Preemption.** A guest chooses how large a tree is, so every operation on trees takes a [`Budget`] and can stop with
//! [`Stop::Preempted`]. An interrupted table is *incomplete*: its first `progress` entries hold references, the last of them
//! perhaps to an incomplete table in turn. Both directions go on from there. The use that keeps the interrupted tree is
//! recorded in one place, [`TableState::unfinished`]; every operation finishes, or drops, what it finds there before it
//! does anything else. So there is never more than one.

pub mod audit;
pub mod leaf;
pub mod pin;
pub mod rights;
pub mod single;
pub mod table_write;
pub mod update;
pub mod validate;
pub mod walk;
pub mod writable;

use core::cell::Cell;
use core::sync::atomic::AtomicU32;

use spin::MutexGuard;

use crate::address::{DomainId, MachineFrame};
use crate::frame::{FrameError, FrameTable};
use crate::machine::{EntryFault, Level, Machine};

/// Why the hypervisor refuses a change to page tables. Always the fault of the guest that asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The frame can't be mapped as asked.
    Frame(FrameError),
    /// The frame can't be a table of that level.
    Table(FrameError),
    /// The frame that is to be written to isn't one that the domain may write.
    Place(FrameError),
    /// The entry isn't one that a guest may write.
    Entry(EntryFault),
    /// The place of the entry isn't aligned to an entry.
    Unaligned,
    /// The root's slot belongs to the hypervisor.
    ReservedSlot,
    /// A superpage that is larger than those of level 2, or doesn't begin at a multiple of its size.
    Superpage,
    /// A table that leads to itself, but not at the root, or not read-only.
    Linear,
    /// The frame isn't a validated table of the domain.
    NotATable(MachineFrame),
    /// There is no table of that level.
    NoSuchLevel,
    /// The table is pinned already; or it isn't, when it should be.
    Pin(MachineFrame),
    /// No table maps that address.
    NotMapped,
    /// As many tables as a domain may have unhooked are out of their trees.
    TooManyUnhooked,
    /// The entry changed while it was being updated; ask again.
    Changed,
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<EntryFault> for Refusal {
    fn from(fault: EntryFault) -> Self {
        Self::Entry(fault)
    }
}

impl Refusal {
    /// The error code that the guest sees, as Xen 4.17 answers where Xen has the same refusal (`xen/arch/x86/mm.c`): of the place to be written,
    /// EINVAL, be it not the domain's or one of segment descriptors (`do_mmu_update`), or a slot of Xen's own (`mod_l4_entry`); of what a
    /// leaf would map, EPERM or EBUSY (`get_page_from_l1e`).
    pub fn errno(self) -> penumbra_abi::errno::Errno {
        use penumbra_abi::errno::Errno;
        match self {
            Self::Frame(FrameError::NotMemory(_)) => Errno::EPERM,
            Self::Frame(_) | Self::Changed | Self::TooManyUnhooked => Errno::EBUSY,
            Self::Table(_)
            | Self::Place(_)
            | Self::ReservedSlot
            | Self::Entry(_)
            | Self::Unaligned
            | Self::Superpage
            | Self::Linear
            | Self::NotATable(_)
            | Self::NoSuchLevel
            | Self::Pin(_)
            | Self::NotMapped => Errno::EINVAL,
        }
    }
}

/// Why an operation on tables did not finish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It never will: nothing has changed.
    Refused(Refusal),
    /// The budget is spent. Asked again, it goes on where it stopped.
    Preempted,
}

impl<T: Into<Refusal>> From<T> for Stop {
    fn from(refusal: T) -> Self {
        Self::Refused(refusal.into())
    }
}

/// What has to be left of a budget, or hardly anything spent of it, before as many frames as a table has entries may be freed in one piece: when a
/// table is hooked in that the guest has emptied, or a superpage goes.
pub const ROOM_FOR_A_TABLE: u32 = Budget::HYPERCALL / 2;

/// How much may be done before the next preemption point, counted in page-table entries.
#[derive(Debug)]
pub struct Budget {
    /// What there was at the beginning.
    whole: u32,
    left: Cell<u32>,
    /// How many flushes changes of type had caused when they were last charged for.
    flushes: Cell<Option<u64>>,
}

impl Budget {
    /// Entries between two preemption points of a hypercall: eight tables.
    pub const HYPERCALL: u32 = 4096;

    /// What a single operation costs on top of the tables it validates: reading it from the guest, finding its table, perhaps
    /// a flush.
    pub const OPERATION: u32 = 8;

    /// What a frame costs that is freed or given out: it is scrubbed, and perhaps flushed.
    pub const FRAME: u32 = 64;

    /// What mapping, unmapping or copying by a grant costs: two domains' lists are looked through and changed for it, and an entry.
    pub const GRANT: u32 = 32;

    /// What a flush costs that a change of a frame's type causes: of itself, and in the walks that follow.
    pub const FLUSH: u32 = 16;

    /// What may have been spent by who has hardly begun: on being called, and on the way to the first piece of work.
    const ENTRANCE: u32 = 64;

    /// A budget of so many entries.
    pub const fn new(entries: u32) -> Self {
        Self { whole: entries, left: Cell::new(entries), flushes: Cell::new(None) }
    }

    /// A budget for work that no guest chose the length of.
    pub const fn unbounded() -> Self {
        Self::new(u32::MAX)
    }

    /// Takes `entries` off.
    pub fn charge(&self, entries: u32) {
        self.left.set(self.left.get().saturating_sub(entries));
    }

    /// Takes as many of `wanted` entries off as there is budget for, one at least; returns how many.
    pub fn piece(&self, wanted: usize) -> usize {
        let piece = wanted.min(self.left.get().max(1) as usize);
        self.charge(piece as u32);
        piece
    }

    /// How many of `wanted` operations can be begun before it is time to stop: they are the caller's to charge for.
    #[inline(always)]
    pub fn operations(&self, wanted: usize) -> usize {
        wanted.min(self.left.get().div_ceil(Self::OPERATION) as usize)
    }

    /// Takes `entries` off, if it isn't time to stop: `false` then.
    #[inline(always)]
    pub fn take(&self, entries: u32) -> bool {
        let left = self.left.get();
        self.left.set(left.saturating_sub(entries));
        left != 0
    }

    /// Takes `entries` off if more than that are left, so that it isn't time to stop afterwards; whether it did.
    #[inline(always)]
    pub fn covers(&self, entries: u32) -> bool {
        let rest = self.left.get().saturating_sub(entries);
        if rest != 0 {
            self.left.set(rest);
        }
        rest != 0
    }

    /// Charges for the flushes since the last time; `flushes`: how many changes of type have caused so far. The first time, there is
    /// nothing to charge for.
    #[inline(always)]
    pub fn charge_flushes(&self, flushes: u64) {
        if self.flushes.get() != Some(flushes) {
            self.charge_more_flushes(flushes);
        }
    }

    #[cold]
    #[inline(never)]
    fn charge_more_flushes(&self, flushes: u64) {
        if let Some(before) = self.flushes.replace(Some(flushes)) {
            self.charge((flushes.wrapping_sub(before) as u32).saturating_mul(Self::FLUSH));
        }
    }

    /// Whether a piece of work of `cost` that can't be cut should wait for a whole budget. `false` if hardly anything of this one is spent:
    /// then it would be no better off with another.
    pub fn lacks(&self, cost: u32) -> bool {
        let left = self.left.get();
        left < cost && self.whole.saturating_sub(left) > Self::ENTRANCE
    }

    /// Whether it is time to stop.
    pub fn is_spent(&self) -> bool {
        self.left.get() == 0
    }
}

/// A tree whose validation or tear-down stopped half-way. It is kept by one use and one reference of its own.
// Numbered from 1 so that "none" is all zeros, and the hypervisor's state costs nothing in the image (`cargo xtask bench` shows it).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Unfinished {
    /// Someone wanted to hold it, and will ask again.
    Validating(MachineFrame, Level) = 1,
    /// Nobody holds it; the rest of it has to be dropped.
    Dropping(MachineFrame, Level) = 2,
}

/// What a domain's table lock protects, besides the tables.
#[derive(Debug, Default)]
pub struct TableState {
    /// The one interrupted operation, if there is one.
    pub unfinished: Option<Unfinished>,
    /// Tables that the guest may write to for now.
    pub slots: [writable::Slot; writable::MAX_UNHOOKED],
    /// Emulated writes in a row.
    run: table_write::Run,
    /// The level-1 table that was last found for an address.
    found: leaf::Found,
}

impl TableState {
    /// Nothing unfinished.
    pub const fn new() -> Self {
        Self {
            unfinished: None,
            slots: [const { writable::Slot::new() }; writable::MAX_UNHOOKED],
            run: table_write::Run::new(),
            found: leaf::Found::new(),
        }
    }
}

/// One domain's page tables, under its table lock.
pub struct TableSpace<'a, M: Machine> {
    /// The machine.
    pub machine: &'a M,
    /// All frames.
    pub frames: &'a FrameTable,
    /// Whose tables these are, and whose frames they lead to.
    pub owner: DomainId,
    /// Whose frames new leaves may map: the owner's, or, for the control domain, those of a domain it names.
    pub target: DomainId,
    /// Until when this operation may go on.
    pub budget: &'a Budget,
    /// How many slots are in use, for those who don't have the lock.
    pub unhooked: &'a AtomicU32,
    /// The lock.
    pub state: MutexGuard<'a, TableState>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest budget that is too small, and the least spending after which another budget would do better.
    #[test]
    fn a_piece_of_work_waits_for_a_budget_that_covers_it() {
        let budget = Budget::new(1000);
        budget.charge(Budget::ENTRANCE);
        assert!(!budget.lacks(2000), "hardly begun: no other budget would be better");
        budget.charge(1);
        assert!(budget.lacks(2000), "begun");
        let left = 1000 - Budget::ENTRANCE - 1;
        assert_eq!(
            (budget.lacks(left), budget.lacks(left + 1)),
            (false, true),
            "what is left is enough, or one too few"
        );
        budget.charge(left);
        assert!(budget.is_spent() && budget.lacks(1) && !budget.lacks(0));
    }

    /// A run of entries that is passed is paid for, and never with the last of a budget: then it would be time to stop before the next.
    #[test]
    fn a_run_is_covered_by_more_than_it_costs() {
        let budget = Budget::new(33);
        assert!(budget.covers(16));
        assert_eq!(budget.left.get(), 17);
        assert!(budget.covers(16));
        assert_eq!(budget.left.get(), 1);
        for too_many in [1, 16] {
            assert!(!budget.covers(too_many));
            assert_eq!(budget.left.get(), 1, "what isn't covered isn't paid for");
        }
    }

    /// The last operation may cost more than is left: it is begun, as one by itself would be.
    #[test]
    fn operations_are_begun_while_there_is_budget() {
        let budget = Budget::new(2 * Budget::OPERATION + 1);
        assert_eq!([0, 2, 3, 100].map(|wanted| budget.operations(wanted)), [0, 2, 3, 3]);
        budget.charge(1);
        assert_eq!(budget.operations(100), 2);
        budget.charge(2 * Budget::OPERATION);
        assert_eq!(budget.operations(100), 0);
    }
}
