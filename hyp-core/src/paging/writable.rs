//! Writable page tables: a guest writes to a level-1 table directly, and it is validated before the MMU can use it again.
//!
//! To *unhook* a table is to take it out of its tree and to let the guest write to it through one mapping of its. The entry
//! above it is hidden ([`PageTableFormat::hidden`]): whoever uses an address below takes a fault. The frame stops being a table and
//! becomes writable, with all that this means; what its entries held until now is held by a copy of them, the *snapshot*. To
//! *hook* it in again is to make the mapping read-only, to lock the frame into its type, and to validate the entries that differ
//! from the snapshot. If one of them can't stand, the table stays out: the entry above is then empty, as if the guest had cleared it.
//!
//! Unhooked tables meet no other operation: every hypercall hooks them in first. Only further unhooking, and emulated writes
//! to other level-1 tables ([`super::table_write`]), leave them out. A table is taken out only if exactly one entry leads to it,
//! which the frame record's hint finds, and pins are put back when it returns.
//!
//! The model is Xen 2.0's; the snapshot makes hooking in cost what was changed, not what the table holds.

use core::sync::atomic::Ordering;

use super::walk::Place;
use super::{ROOM_FOR_A_TABLE, Refusal, Stop, TableSpace};
use crate::address::{GuestVirtual, MachineFrame};
use crate::frame::uses::Locked;
use crate::machine::{Entry, FlushScope, Leaf, Machine, PageTableFormat};

/// Tables that a domain can have unhooked at once.
pub const MAX_UNHOOKED: usize = 4;
/// What an entry that the guest has changed costs of the budget besides, when its table is hooked in: two frames are looked up, and it may be
/// written.
const CHANGED_ENTRY: u32 = 4;
/// Entries of the largest table.
const MAX_ENTRIES: usize = 512;

/// A table that is out of its tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unhooked {
    /// The table.
    pub table: MachineFrame,
    /// The entry that led to it, of a table of level 2.
    pub parent: Place,
    /// What stood there.
    parent_entry: u64,
    /// The entry of a level-1 table by which the guest writes to it.
    pub mapping: Place,
    /// 1 if it was pinned. No `bool`: an empty slot would then be told by one of its unused values, and has to be all zeros.
    pinned: u8,
}

/// Room for one unhooked table.
#[derive(Debug)]
pub struct Slot {
    unhooked: Option<Unhooked>,
    /// The entries as they were when the table was taken out. They hold what they held.
    snapshot: [u64; MAX_ENTRIES],
}

impl Slot {
    /// An empty one, all zero.
    pub const fn new() -> Self {
        Self { unhooked: None, snapshot: [0; MAX_ENTRIES] }
    }

    /// The table that is in the slot, if there is one.
    pub fn unhooked(&self) -> Option<&Unhooked> {
        self.unhooked.as_ref()
    }

    /// What the snapshot holds: nothing in an empty slot.
    pub fn held<M: Machine>(&self) -> impl Iterator<Item = Entry> + '_ {
        let count = if self.unhooked.is_some() { M::Format::entries(1) } else { 0 };
        self.snapshot.iter().take(count).map(|raw| M::Format::decode(1, *raw))
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Machine> TableSpace<'_, M> {
    /// Takes the level-1 table that is mapped read-only at `address` under `root` out of its tree, and makes that mapping writable.
    ///
    /// # Errors
    /// There is no such mapping, or the table hangs at more than one place or at none, or too many are out already. Or
    /// preempted, by what was unfinished before.
    pub fn unhook(&mut self, root: MachineFrame, address: GuestVirtual) -> Result<(), Stop> {
        self.settle(None)?;
        let mapping = self.find(root, address).ok_or(Refusal::NotMapped)?;
        match self.entry(mapping.table, 1, mapping.index) {
            Entry::Leaf(leaf) if leaf.writable && self.is_unhooked(leaf.frame) => Ok(()),
            // What is mapped writable is no table.
            Entry::Leaf(leaf) => self.unhook_mapped(leaf.frame, mapping, address),
            _ => Err(Refusal::NotMapped.into()),
        }
    }

    /// As [`Self::unhook`], of `table`, which `mapping` maps read-only at `address`. Nothing may be unfinished.
    pub(super) fn unhook_mapped(
        &mut self,
        table: MachineFrame,
        mapping: Place,
        address: GuestVirtual,
    ) -> Result<(), Stop> {
        let (parent, pinned) = self.only_parent(table)?;
        if mapping.table == table || self.table_level(mapping.table) != Some(1) {
            return Err(Refusal::NotATable(mapping.table).into());
        }
        // A table that lets another be written stays where it is: the other one has to go back first.
        if self.hook_those(|other| other.mapping.table == table) == Err(Stop::Preempted) {
            return Err(Stop::Preempted);
        }
        let slot = self.state.slots.iter().position(|slot| slot.unhooked.is_none());
        let slot = slot.ok_or(Refusal::TooManyUnhooked)?;
        let parent_entry = self.machine.read_entry(parent.table, parent.index);
        let pinned = u8::from(pinned);
        let unhooked = Unhooked { table, parent, parent_entry, mapping, pinned };
        self.take_out(slot, unhooked)?;
        self.let_write(unhooked, address);
        Ok(())
    }

    /// The one entry that leads to a level-1 table, and whether the table is pinned.
    fn only_parent(&self, table: MachineFrame) -> Result<(Place, bool), Refusal> {
        let refusal = Refusal::NotATable(table);
        if self.table_level(table) != Some(1) {
            return Err(refusal);
        }
        let usage = self.frames.usage(table).ok_or(refusal)?;
        let (parent, index) = self.frames.parent_hint(table).ok_or(refusal)?;
        let leads_here =
            self.table_level(parent) == Some(2) && self.entry(parent, 2, index) == Entry::Table(table);
        let alone = usage.uses == 1u32.saturating_add(u32::from(usage.pinned));
        match leads_here && alone {
            true => Ok((Place { table: parent, level: 2, index }, usage.pinned)),
            false => Err(refusal),
        }
    }

    /// Hides the table from the MMU, and turns its frame into a writable one. Its mapping's reference keeps it meanwhile.
    fn take_out(&mut self, slot: usize, unhooked: Unhooked) -> Result<(), Refusal> {
        let Unhooked { table, parent, parent_entry, pinned, .. } = unhooked;
        self.forget_found();
        self.machine.write_entry(parent.table, parent.index, M::Format::hidden(parent_entry));
        self.budget.charge(M::Format::entries(1) as u32);
        let Some(taken) = self.state.slots.get_mut(slot) else { return Err(Refusal::TooManyUnhooked) };
        // The entries are copied while the frame is still a table. Later, whoever the domain has granted it to may have mapped it, without
        // this lock, and have written entries that nobody has judged. (A walker may yet set accessed and dirty bits: for what an entry
        // holds, they make no difference.)
        for (index, word) in taken.snapshot.iter_mut().take(M::Format::entries(1)).enumerate() {
            *word = self.machine.read_entry(table, index);
        }
        taken.unhooked = Some(unhooked);
        self.unhooked.fetch_add(1, Ordering::Relaxed);
        self.frames.set_pinned(table, false);
        for _ in 0..1u32.saturating_add(u32::from(pinned)) {
            self.frames.unlock_table(table, self.machine);
        }
        // The change of type flushes: from here on nobody walks the table, nor sets its accessed and dirty bits.
        match self.frames.get_writable(table, self.owner, self.machine) {
            Ok(()) => Ok(()),
            // As many uses as can be counted, by somebody whom the domain has granted the frame: the table is lost to its tree.
            Err(error) => {
                let _ = self.hook(slot);
                Err(error.into())
            }
        }
    }

    /// Makes the mapping writable. Its reference becomes the one that was taken with the use.
    fn let_write(&mut self, unhooked: Unhooked, address: GuestVirtual) {
        let Unhooked { table, mapping, .. } = unhooked;
        let raw = self.machine.read_entry(mapping.table, mapping.index);
        self.machine.write_entry(mapping.table, mapping.index, M::Format::with_write(raw, true));
        self.frames.put(table, self.machine);
        // The processor may have cached that it is read-only, and would fault again.
        self.machine.flush(FlushScope::Page(address));
    }

    /// Whether a frame is an unhooked table of the domain.
    pub fn is_unhooked(&self, frame: MachineFrame) -> bool {
        self.state.slots.iter().filter_map(Slot::unhooked).any(|unhooked| unhooked.table == frame)
    }

    /// Hooks the table that translates `address` under `root` in again, if it is out; `None` if none is.
    pub fn hook_at(&mut self, root: MachineFrame, address: GuestVirtual) -> Option<Result<(), Refusal>> {
        let place = self.find_at(root, address, 2)?;
        let is_parent = |slot: &Slot| slot.unhooked().is_some_and(|unhooked| unhooked.parent == place);
        let slot = self.state.slots.iter().position(is_parent)?;
        Some(self.hook(slot))
    }

    /// Hooks every unhooked table in again.
    ///
    /// # Errors
    /// The first refusal: that table stays out for good. The others are hooked in all the same. Or preempted: some are still out,
    /// but fewer than before.
    pub fn hook_all(&mut self) -> Result<(), Stop> {
        self.hook_those(|_| true)
    }

    /// Hooks in those tables that `wanted` says. A table that the guest has emptied may free a frame for each of its entries: so the first
    /// is hooked in by a budget of which hardly anything is spent, and each further one only if there is enough left.
    ///
    /// # Errors
    /// As [`Self::hook_all`].
    #[inline(always)]
    pub(super) fn hook_those(&mut self, wanted: impl Fn(&Unhooked) -> bool) -> Result<(), Stop> {
        // Relaxed: it only changes under the lock.
        if self.unhooked.load(Ordering::Relaxed) == 0 { Ok(()) } else { self.hook_wanted(wanted) }
    }

    #[inline(never)]
    fn hook_wanted(&mut self, wanted: impl Fn(&Unhooked) -> bool) -> Result<(), Stop> {
        let (mut outcome, mut some) = (Ok(()), false);
        for slot in 0..MAX_UNHOOKED {
            let is_wanted = self.state.slots.get(slot).and_then(Slot::unhooked).is_some_and(&wanted);
            if is_wanted && (self.budget.lacks(ROOM_FOR_A_TABLE) || some && self.budget.is_spent()) {
                return Err(Stop::Preempted);
            }
            if is_wanted {
                some = true;
                outcome = outcome.and(self.hook(slot).map_err(Stop::Refused));
            }
        }
        outcome
    }

    /// Hooks the table of a slot in again, or empties the entry above it.
    fn hook(&mut self, slot: usize) -> Result<(), Refusal> {
        let Some(unhooked) = self.state.slots.get_mut(slot).and_then(|slot| slot.unhooked.take()) else {
            return Ok(());
        };
        self.forget_found();
        self.unhooked.fetch_sub(1, Ordering::Relaxed);
        self.budget.charge(M::Format::entries(1) as u32);
        self.budget.charge_flushes(self.frames.type_flushes());
        self.forbid_write(unhooked);
        let outcome = self.revalidate(slot, unhooked.table);
        self.budget.charge_flushes(self.frames.type_flushes());
        if outcome.is_ok() {
            self.put_back(unhooked);
        } else {
            self.machine.write_entry(unhooked.parent.table, unhooked.parent.index, 0);
        }
        // Until now the processor may have walked below the hidden entry, by speculation, on the hypervisor's behalf.
        self.machine.flush(FlushScope::Everything);
        outcome
    }

    /// Makes the mapping read-only again. It keeps its reference.
    fn forbid_write(&self, unhooked: Unhooked) {
        let Unhooked { table, mapping, .. } = unhooked;
        let raw = self.machine.read_entry(mapping.table, mapping.index);
        let expected = Entry::Leaf(Leaf { frame: table, level: 1, writable: true });
        if M::Format::decode(1, raw) == expected && self.frames.get(table, self.owner).is_ok() {
            self.machine.write_entry(mapping.table, mapping.index, M::Format::with_write(raw, false));
            self.frames.put_use(table, self.machine);
        }
    }

    /// Locks the frame into its type, and validates what has changed since the snapshot.
    fn revalidate(&mut self, slot: usize, table: MachineFrame) -> Result<(), Refusal> {
        let locked = self.frames.lock_table(table, 1, self.owner, self.machine).map_err(Refusal::Table);
        let (changed, outcome) = match locked {
            Ok(Locked::Incomplete) => self.exchange_entries(slot, table),
            // Nobody else can have made a table of it: it was writable.
            Ok(Locked::Complete) => (0, Err(Refusal::NotATable(table))),
            Err(refusal) => (0, Err(refusal)),
        };
        if outcome.is_ok() {
            self.frames.complete(table);
            return outcome;
        }
        for index in 0..M::Format::entries(1) {
            let raw = match index < changed {
                true => self.machine.read_entry(table, index),
                false => self.snapshot(slot, index),
            };
            // A leaf's references always go at once.
            self.release_leaf_of_many(M::Format::decode(1, raw));
        }
        if locked.is_ok() {
            self.frames.unlock_table(table, self.machine);
        }
        outcome
    }

    fn snapshot(&self, slot: usize, index: usize) -> u64 {
        self.state.slots.get(slot).and_then(|slot| slot.snapshot.get(index)).copied().unwrap_or(0)
    }

    /// For each entry that differs: takes what the new one needs, and gives back what the old one held. Returns how many entries hold
    /// what now stands in the table.
    fn exchange_entries(&self, slot: usize, table: MachineFrame) -> (usize, Result<(), Refusal>) {
        let count = M::Format::entries(1);
        let Some(words) = self.machine.table(table) else { return (0, Err(Refusal::NotATable(table))) };
        for index in 0..count {
            let (old, new) = (self.snapshot(slot, index), self.machine.read_in(words, index));
            if old == new {
                continue;
            }
            self.budget.charge(CHANGED_ENTRY);
            if let Err(refusal) = self.exchange_one(table, index, old, new) {
                return (index, Err(refusal));
            }
        }
        (count, Ok(()))
    }

    fn exchange_one(&self, table: MachineFrame, index: usize, old: u64, new: u64) -> Result<(), Refusal> {
        let (admitted, entry) = self.judge_entry(table, 1, new)?;
        let held = M::Format::decode(1, old);
        if held != entry {
            self.acquire_leaf_entry(entry)?;
            self.release_leaf_of_many(held);
        }
        if admitted != new {
            self.machine.write_entry(table, index, admitted);
        }
        Ok(())
    }

    /// Gives back what an entry held. All of a table's entries go in one stretch.
    fn release_leaf_of_many(&self, entry: Entry) {
        if let Entry::Leaf(leaf) = entry {
            self.release_page_of_many(leaf.frame, leaf.writable);
        }
    }

    /// The validated table takes its place in the tree again, and its pin.
    fn put_back(&self, unhooked: Unhooked) {
        let Unhooked { table, parent, parent_entry, pinned, .. } = unhooked;
        if pinned != 0 && self.frames.lock_table(table, 1, self.owner, self.machine).is_ok() {
            self.frames.set_pinned(table, true);
        }
        self.machine.write_entry(parent.table, parent.index, parent_entry);
        self.frames.set_hint(table, parent.table, parent.index);
    }
}
