//! Changing one entry of a validated table.
//!
//! Check first, then commit what can't fail: the new entry's references are taken, the entry is written, the old
//! entry's references are given back. An update that leads to the same frame with the same rights moves no
//! reference at all; whether it is one is judged by the neutral form, never by comparing bits of its own (XSA-148, XSA-182).

use super::validate::NotHeld;
use super::{ROOM_FOR_A_TABLE, Refusal, Stop, TableSpace};
use crate::address::{MachineAddress, MachineFrame, PAGE_SIZE};
use crate::machine::{Entry, Level, Machine, PageTableFormat};

/// What becomes of the accessed and dirty bits that hardware has set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HardwareBits {
    /// The new entry's stand, whatever the old ones were.
    Replace,
    /// The old entry's are carried over, none lost (`MMU_PT_UPDATE_PRESERVE_AD`).
    Preserve,
    /// The new entry's stand, if the old entry is still exactly this one.
    Exactly(u64),
}

/// Attempts to exchange an entry whose hardware bits keep changing, before the guest is asked to try again.
const EXCHANGE_ATTEMPTS: u32 = 16;

impl<M: Machine> TableSpace<'_, M> {
    /// Writes `raw` to the 8-byte entry at machine address `place`, if it is one of the domain's tables. In a frame that is
    /// no table but which the domain may write, it is an ordinary 8-byte write, as in Xen.
    ///
    /// # Errors
    /// The refusal, and then the old entry stands; or preempted, and then likewise, until it is asked again.
    #[inline(never)]
    pub fn update_at(&mut self, place: MachineAddress, raw: u64, bits: HardwareBits) -> Result<(), Stop> {
        if !place.bytes().is_multiple_of(8) {
            return Err(Refusal::Unaligned.into());
        }
        let frame = MachineFrame::containing(place);
        let index = place.offset_in_frame() / 8;
        match self.table_level(frame) {
            Some(level) => self.update(frame, level, index, raw, bits),
            None => self.write_plain(frame, index, raw),
        }
    }

    #[cold]
    fn write_plain(&mut self, frame: MachineFrame, index: usize, raw: u64) -> Result<(), Stop> {
        self.settle(None)?;
        self.frames.get_writable(frame, self.owner, self.machine).map_err(Refusal::Place)?;
        self.machine.write_frame(frame, index.saturating_mul(8) % PAGE_SIZE, &raw.to_le_bytes());
        self.frames.put_use(frame, self.machine);
        Ok(())
    }

    /// Writes entry `index` of a complete table of the domain.
    ///
    /// # Errors
    /// As [`Self::update_at`].
    #[inline(never)]
    pub fn update(
        &mut self,
        table: MachineFrame,
        level: Level,
        index: usize,
        raw: u64,
        bits: HardwareBits,
    ) -> Result<(), Stop> {
        if let (1, Some(leaves)) = (level, self.leaf_table(table)) {
            return Ok(self.update_leaf(&leaves, index, raw, bits)?);
        }
        self.forget_found();
        let (admitted, new) = self.judge(table, level, index, raw)?;
        self.settle(child(level, new))?;
        // Settling may have dropped the very table that was asked for, or one on the way to it: whoever found the
        // place did so before. Without this check the entry would be written into a page that is no table any more.
        if self.table_level(table) != Some(level) {
            return Err(Refusal::NotATable(table).into());
        }
        if let (1, Some(leaves)) = (level, self.leaf_table(table)) {
            return Ok(self.update_leaf(&leaves, index, raw, bits)?);
        }
        let old = self.entry(table, level, index);
        // Then nothing unfinished was gone on with: that is incomplete, and no complete table leads to it.
        if old == new {
            return Ok(self.write(table, level, index, admitted, bits)?);
        }
        // The frames of superpages come and go in one piece.
        let is_large = |entry: Entry| matches!(entry, Entry::Leaf(leaf) if leaf.level > 1);
        if (is_large(old) || is_large(new)) && self.budget.lacks(ROOM_FOR_A_TABLE) {
            return Err(Stop::Preempted);
        }
        self.hold_entry(level, new)?;
        if let Err(refusal) = self.write(table, level, index, admitted, bits) {
            self.give_back(level, new);
            return Err(refusal.into());
        }
        if let (2, Entry::Table(child)) = (level, new) {
            self.frames.set_hint(child, table, index);
        }
        self.give_back(level, old);
        Ok(())
    }

    /// The entry as it would stand in memory, if no matter which frame it leads to it may stand there.
    fn judge(
        &self,
        table: MachineFrame,
        level: Level,
        index: usize,
        raw: u64,
    ) -> Result<(u64, Entry), Refusal> {
        if index >= M::Format::entries(level) {
            return Err(Refusal::Unaligned);
        }
        if self.is_reserved(level, index) {
            return Err(Refusal::ReservedSlot);
        }
        self.judge_entry(table, level, raw)
    }

    /// Takes what the new entry needs; a table is held, preemptibly.
    fn hold_entry(&mut self, level: Level, entry: Entry) -> Result<(), Stop> {
        match child(level, entry) {
            Some((table, below)) => self.hold(table, below),
            None => self.acquire_entry(level, entry).map_err(|NotHeld { stop, .. }| stop),
        }
    }

    /// Gives back what an entry held that stands nowhere any more.
    fn give_back(&mut self, level: Level, entry: Entry) {
        match child(level, entry) {
            Some((table, below)) => self.let_go(table, below),
            None => drop(self.release_entry(level, entry)),
        }
    }

    #[inline(always)]
    pub(super) fn write(
        &self,
        table: MachineFrame,
        level: Level,
        index: usize,
        new: u64,
        bits: HardwareBits,
    ) -> Result<(), Refusal> {
        match bits {
            HardwareBits::Replace => {
                self.machine.write_entry(table, index, new);
                Ok(())
            }
            HardwareBits::Exactly(old) => {
                let exchanged = self.machine.exchange_entry(table, index, old, new);
                exchanged.map_err(|_| Refusal::Changed)
            }
            HardwareBits::Preserve => self.write_preserving(table, level, index, new),
        }
    }

    /// Writes an entry with the accessed and dirty bits that stand there.
    fn write_preserving(
        &self,
        table: MachineFrame,
        level: Level,
        index: usize,
        new: u64,
    ) -> Result<(), Refusal> {
        let kept = M::Format::hardware_bits(level);
        let mut current = self.machine.read_entry(table, index);
        for _ in 0..EXCHANGE_ATTEMPTS {
            match self.machine.exchange_entry(table, index, current, new | (current & kept)) {
                Ok(()) => return Ok(()),
                Err(changed) => current = changed,
            }
        }
        Err(Refusal::Changed)
    }
}

/// The table that an entry of a table of `level` leads to, with its level.
fn child(level: Level, entry: Entry) -> Option<(MachineFrame, Level)> {
    match entry {
        Entry::Table(table) => level.checked_sub(1).filter(|below| *below > 0).map(|below| (table, below)),
        Entry::Absent | Entry::Leaf(_) => None,
    }
}
