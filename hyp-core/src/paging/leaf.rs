//! Entries of level-1 tables: pages, which nearly every update is about.
//!
//! What the general path does, without its detours: a level-1 entry leads to no table, so nothing here is ever preempted in the
//! middle, and one entry's references are taken and given back at once. The checks are the general ones, in the same order: the
//! format judges the bits, the frame's record the rights; an entry that leads to the same frame with the same rights moves no
//! reference, by its neutral form (XSA-148, XSA-182).

use super::update::HardwareBits;
use super::{Budget, Refusal, Stop, TableSpace};
use crate::address::MachineFrame;
use crate::machine::{Entry, Machine, PageTableFormat};

impl<M: Machine> TableSpace<'_, M> {
    /// Writes entry `index` of a complete level-1 table of the domain. Nothing may be unfinished.
    ///
    /// # Errors
    /// The refusal, and then the old entry stands.
    #[inline(always)]
    pub(super) fn update_leaf(
        &self,
        table: MachineFrame,
        index: usize,
        raw: u64,
        bits: HardwareBits,
    ) -> Result<(), Refusal> {
        if index >= M::Format::entries(1) {
            return Err(Refusal::Unaligned);
        }
        let (admitted, new) = M::Format::admit(1, raw)?;
        let old = M::Format::decode(1, self.machine.read_entry(table, index));
        if old == new {
            return self.write(table, 1, index, admitted, bits);
        }
        match (old, new) {
            (Entry::Leaf(before), Entry::Leaf(after)) if before.frame == after.frame => {
                self.change_rights(after.frame, after.writable, || {
                    self.write(table, 1, index, admitted, bits)
                })
            }
            _ => {
                self.acquire_leaf_entry(new)?;
                if let Err(refusal) = self.write(table, 1, index, admitted, bits) {
                    self.release_leaf(new);
                    return Err(refusal);
                }
                self.release_leaf(old);
                Ok(())
            }
        }
    }

    /// From read-only to writable or back, of the same frame: the entry's reference stays, the use comes or goes.
    #[inline(always)]
    fn change_rights(
        &self,
        frame: MachineFrame,
        writable: bool,
        write: impl FnOnce() -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        if writable {
            self.frames.use_writable(frame, self.target, self.machine)?;
            write().inspect_err(|_| self.frames.drop_use(frame))
        } else {
            // As much the domain's as for any other new entry.
            self.frames.check_owner(frame, self.target)?;
            write()?;
            self.frames.drop_use(frame);
            Ok(())
        }
    }

    /// Gives back what an entry of a level-1 table held.
    #[inline(always)]
    fn release_leaf(&self, entry: Entry) {
        let Entry::Leaf(leaf) = entry else { return };
        let freed = match leaf.writable {
            true => self.frames.put_writable(leaf.frame, self.machine),
            false => self.frames.put(leaf.frame, self.machine),
        };
        if freed {
            self.budget.charge(Budget::FRAME);
        }
    }

    /// Validates the entries of a locked level-1 table, from `progress` on. On error the table stays incomplete.
    pub(super) fn validate_leaves(&self, table: MachineFrame, progress: usize) -> Result<(), Stop> {
        for index in progress..M::Format::entries(1) {
            if let Err(refusal) = self.validate_leaf(table, index) {
                self.frames.set_progress(table, index);
                return Err(refusal.into());
            }
            self.budget.charge(1);
            if self.budget.is_spent() {
                self.frames.set_progress(table, index.saturating_add(1));
                return Err(Stop::Preempted);
            }
        }
        self.frames.complete(table);
        Ok(())
    }

    #[inline(always)]
    fn validate_leaf(&self, table: MachineFrame, index: usize) -> Result<(), Refusal> {
        let proposed = self.machine.read_entry(table, index);
        let (admitted, entry) = M::Format::admit(1, proposed)?;
        if admitted != proposed {
            self.machine.write_entry(table, index, admitted);
        }
        self.acquire_leaf_entry(entry)
    }

    /// Gives back what the entries of a level-1 table hold, from number `progress` down to the first.
    pub(super) fn invalidate_leaves(&self, table: MachineFrame, mut progress: usize) -> Result<(), Stop> {
        while let Some(index) = progress.checked_sub(1) {
            self.release_leaf(M::Format::decode(1, self.machine.read_entry(table, index)));
            progress = index;
            self.budget.charge(1);
            if self.budget.is_spent() {
                self.frames.set_progress(table, progress);
                return Err(Stop::Preempted);
            }
        }
        Ok(())
    }
}
