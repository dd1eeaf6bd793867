//! Holding a tree of tables, and letting it go.
//!
//! To *hold* a table is to take a use and a reference. The first use validates every entry: each present one must lead to a frame
//! that the domain may reach in that way, and takes a reference (and a use, if it is a table or writable) there. The last
//! use to go gives all of them back. Levels go down strictly, so recursion ends after at most `LEVELS` steps.
//!
//! A superpage takes from each of its frames what a leaf of its own would take: so none of them can be a table while it is
//! writable there. A root may lead to itself, read-only (a *linear* table): such an entry holds nothing, since a root
//! that held itself could never be let go.
//!
//! A table is locked into its type, and old translations of it are flushed, before its first entry is read: nobody can
//! write to it behind the validation's back (XSA-401).

use super::{ROOM_FOR_A_TABLE, Refusal, Stop, TableSpace, Unfinished};
use crate::address::MachineFrame;
use crate::frame::uses::Locked;
use crate::machine::{Entry, Leaf, Level, Machine, PageTableFormat};

/// Entries of a table that are looked at together, since most are empty.
pub(super) const RUN: usize = 16;

/// A table could not be held.
pub(super) struct NotHeld {
    pub stop: Stop,
    /// Whether the use and the reference were taken all the same: the table is incomplete, and its holder has to let it go.
    pub taken: bool,
}

impl<T: Into<Stop>> From<T> for NotHeld {
    fn from(stop: T) -> Self {
        Self { stop: stop.into(), taken: false }
    }
}

impl<M: Machine> TableSpace<'_, M> {
    /// Holds `table` as a table of `level`, validating what is below. Asked again after [`Stop::Preempted`], goes on.
    ///
    /// # Errors
    /// Whatever is wrong with the table or anything below it; nothing is held then.
    #[inline(always)]
    pub fn hold(&mut self, table: MachineFrame, level: Level) -> Result<(), Stop> {
        let unfinished = self.state.unfinished.is_some();
        if !unfinished && self.frames.get_complete_table(table, level, self.owner, self.machine) {
            return Ok(());
        }
        self.hold_validated(table, level)
    }

    #[inline(never)]
    fn hold_validated(&mut self, table: MachineFrame, level: Level) -> Result<(), Stop> {
        self.forget_found();
        let result = if self.settle(Some((table, level)))? {
            self.validate(table, level).map_err(|stop| NotHeld { stop, taken: true })
        } else {
            self.acquire_table(table, level)
        };
        self.state.unfinished = match result {
            Ok(()) => None,
            Err(NotHeld { stop: Stop::Preempted, taken: true }) => Some(Unfinished::Validating(table, level)),
            Err(NotHeld { stop: Stop::Refused(_), taken: true }) => Some(Unfinished::Dropping(table, level)),
            Err(NotHeld { taken: false, .. }) => None,
        };
        if matches!(self.state.unfinished, Some(Unfinished::Dropping(..))) {
            // What the budget still allows of it is dropped at once; the rest waits for the next operation.
            let _ = self.settle(None);
        }
        result.map_err(|not_held| not_held.stop)
    }

    /// Gives back one hold. What can't be finished within the budget is finished before the next operation.
    #[inline(always)]
    pub fn let_go(&mut self, table: MachineFrame, level: Level) {
        if !self.frames.put_one_of_many(table, self.machine) {
            self.let_go_last(table, level);
        }
    }

    #[inline(never)]
    fn let_go_last(&mut self, table: MachineFrame, level: Level) {
        self.forget_found();
        if self.release_table(table, level).is_err() {
            self.state.unfinished = Some(Unfinished::Dropping(table, level));
        }
    }

    /// Finishes what an earlier operation left, unless it is what the caller is about to go on with: `true` then.
    ///
    /// # Errors
    /// [`Stop::Preempted`] if there was more of it than the budget allows.
    pub fn settle(&mut self, wanted: Option<(MachineFrame, Level)>) -> Result<bool, Stop> {
        let (table, level) = match self.state.unfinished {
            None => return Ok(false),
            Some(Unfinished::Validating(table, level)) if wanted == Some((table, level)) => return Ok(true),
            Some(Unfinished::Validating(table, level) | Unfinished::Dropping(table, level)) => (table, level),
        };
        self.forget_found();
        self.state.unfinished = Some(Unfinished::Dropping(table, level));
        self.release_table(table, level)?;
        self.state.unfinished = None;
        Ok(false)
    }

    /// Takes what a new entry needs: references, uses, the validation of a table.
    pub(super) fn acquire_entry(&self, level: Level, entry: Entry) -> Result<(), NotHeld> {
        match entry {
            Entry::Absent => Ok(()),
            Entry::Leaf(leaf) => self.acquire_leaf(leaf).map_err(NotHeld::from),
            Entry::Table(table) => match level.checked_sub(1) {
                Some(below) if below > 0 => self.acquire_table(table, below),
                _ => Err(Refusal::NoSuchLevel.into()),
            },
        }
    }

    /// Takes what an entry of a level-1 table needs: a leaf or nothing.
    #[inline(always)]
    pub(super) fn acquire_leaf_entry(&self, entry: Entry) -> Result<(), Refusal> {
        match entry {
            Entry::Absent => Ok(()),
            Entry::Leaf(leaf) => self.acquire_leaf(leaf),
            Entry::Table(_) => Err(Refusal::NoSuchLevel),
        }
    }

    #[inline(always)]
    fn acquire_leaf(&self, leaf: Leaf) -> Result<(), Refusal> {
        if leaf.level == 1 {
            self.acquire_page(leaf.frame, leaf.writable)
        } else {
            self.acquire_superpage(leaf)
        }
    }

    #[inline(always)]
    fn acquire_page(&self, frame: MachineFrame, writable: bool) -> Result<(), Refusal> {
        match writable {
            true => self.frames.get_writable(frame, self.target, self.machine)?,
            false => self.frames.get(frame, self.target)?,
        }
        Ok(())
    }

    /// Every frame of a superpage, or none.
    #[cold]
    fn acquire_superpage(&self, leaf: Leaf) -> Result<(), Refusal> {
        let span = M::Format::span(leaf.level);
        // The format refuses such entries, too; but what is counted here must be what the walker maps (XSA-167).
        if leaf.level != 2 || !leaf.frame.number().is_multiple_of(span) {
            return Err(Refusal::Superpage);
        }
        self.budget.charge(span as u32);
        self.budget.charge_flushes(self.frames.type_flushes());
        for taken in 0..span {
            let frame = leaf.frame.checked_add(taken).ok_or(Refusal::Superpage)?;
            if let Err(refusal) = self.acquire_page(frame, leaf.writable) {
                self.release_pages(leaf, taken);
                return Err(refusal);
            }
        }
        self.budget.charge_flushes(self.frames.type_flushes());
        Ok(())
    }

    /// Gives back what the first `count` frames of a leaf hold.
    fn release_pages(&self, leaf: Leaf, count: u64) {
        for frame in (0..count).filter_map(|index| leaf.frame.checked_add(index)) {
            self.release_page_of_many(frame, leaf.writable);
        }
    }

    pub(super) fn acquire_table(&self, table: MachineFrame, level: Level) -> Result<(), NotHeld> {
        match self.frames.lock_table(table, level, self.owner, self.machine).map_err(Refusal::Table)? {
            Locked::Complete => Ok(()),
            Locked::Incomplete => self.validate(table, level).map_err(|stop| NotHeld { stop, taken: true }),
        }
    }

    /// Validates the entries of a locked table from where it stands. On error the table stays incomplete.
    fn validate(&self, table: MachineFrame, level: Level) -> Result<(), Stop> {
        let Some(usage) = self.frames.usage(table) else { return Err(Refusal::NotATable(table).into()) };
        if usage.complete {
            return Ok(());
        }
        self.resume_last_child(table, level, usage.progress())?;
        if level == 1 {
            return self.validate_leaves(table, usage.progress());
        }
        let words = self.machine.table(table).ok_or(Refusal::NotATable(table))?;
        let count = M::Format::entries(level);
        let mut index = usage.progress();
        while index < count {
            if self.passes_empty_run(words, index, count) {
                index = index.saturating_add(RUN);
                continue;
            }
            let proposed = self.machine.read_in(words, index);
            if proposed != 0
                && !self.is_reserved(level, index)
                && let Err(not_held) = self.validate_entry(table, level, index, proposed)
            {
                self.frames.set_progress(table, index.saturating_add(usize::from(not_held.taken)));
                return Err(not_held.stop);
            }
            index = index.saturating_add(1);
            self.charge_entry(table, index)?;
        }
        if level == M::Format::LEVELS {
            self.fill_reserved_slots(table);
        }
        self.frames.complete(table);
        Ok(())
    }

    /// The last entry that holds a reference may lead to a table that is incomplete itself: that one comes first.
    fn resume_last_child(&self, table: MachineFrame, level: Level, progress: usize) -> Result<(), Stop> {
        let Some(last) = progress.checked_sub(1) else { return Ok(()) };
        match (self.entry(table, level, last), level.checked_sub(1)) {
            (Entry::Table(child), Some(below)) => self.validate(child, below),
            _ => Ok(()),
        }
    }

    fn validate_entry(
        &self,
        table: MachineFrame,
        level: Level,
        index: usize,
        proposed: u64,
    ) -> Result<(), NotHeld> {
        let (admitted, entry) = self.judge_entry(table, level, proposed)?;
        if admitted != proposed {
            self.machine.write_entry(table, index, admitted);
        }
        self.acquire_entry(level, entry)?;
        if let (2, Entry::Table(child)) = (level, entry) {
            self.frames.set_hint(child, table, index);
        }
        Ok(())
    }

    /// Gives back one use and reference of a table; the last use's entries first.
    ///
    /// # Errors
    /// [`Stop::Preempted`]: the use is still the caller's, and the table incomplete.
    pub(super) fn release_table(&self, table: MachineFrame, level: Level) -> Result<(), Stop> {
        if !self.frames.put_one_of_many(table, self.machine) {
            self.invalidate(table, level)?;
            self.frames.unlock_table(table, self.machine);
        }
        Ok(())
    }

    /// Gives back what the entries of a table hold, from the last to the first.
    fn invalidate(&self, table: MachineFrame, level: Level) -> Result<(), Stop> {
        let Some(usage) = self.frames.usage(table) else { return Ok(()) };
        let count = M::Format::entries(level);
        let mut progress = if usage.complete { count } else { usage.progress().min(count) };
        if level == 1 {
            return self.invalidate_leaves(table, progress);
        }
        if usage.complete && level == M::Format::LEVELS {
            self.clear_reserved_slots(table);
        }
        let words = self.machine.table(table).ok_or(Refusal::NotATable(table))?;
        while let Some(index) = progress.checked_sub(1) {
            if let Some(before) = progress.checked_sub(RUN)
                && self.passes_empty_run(words, before, count)
            {
                progress = before;
                continue;
            }
            if self.machine.read_in(words, index) != 0
                && !self.is_reserved(level, index)
                && let Err(stop) = self.release_in_time(level, self.entry(table, level, index))
            {
                self.frames.set_progress(table, progress);
                return Err(stop);
            }
            progress = index;
            self.charge_entry(table, progress)?;
        }
        Ok(())
    }

    /// Where to go on behind the empty entry number `index`: behind its run, if that is empty and ends before `end`.
    #[inline(always)]
    pub(super) fn past_empty_entries(&self, words: M::Table, index: usize, end: usize) -> usize {
        index.saturating_add(if self.is_empty_run(words, index, end) { RUN } else { 1 })
    }

    /// Whether the entries from `first` on are a run of empty ones that ends before `end`. The first is looked at by itself: in a full table
    /// it says enough.
    #[inline(always)]
    fn is_empty_run(&self, words: M::Table, first: usize, end: usize) -> bool {
        first.is_multiple_of(RUN)
            && first.saturating_add(RUN) <= end
            && self.machine.read_in(words, first) == 0
            && self.machine.are_zero(words, first, RUN)
    }

    /// Whether the entries from `first` on are a run of empty ones that the budget covers: they are paid for then, and hold nothing. Most
    /// entries are, and most of what a process costs is to look at them.
    #[inline(always)]
    pub(super) fn passes_empty_run(&self, words: M::Table, first: usize, count: usize) -> bool {
        self.is_empty_run(words, first, count) && self.budget.covers(RUN as u32)
    }

    /// Charges for one entry of a table of which the first `progress` entries hold references now.
    ///
    /// # Errors
    /// Preempted: it is time to stop, and the table remembers where.
    #[inline(always)]
    pub(super) fn charge_entry(&self, table: MachineFrame, progress: usize) -> Result<(), Stop> {
        self.budget.charge(1);
        if self.budget.is_spent() {
            self.frames.set_progress(table, progress);
            return Err(Stop::Preempted);
        }
        Ok(())
    }

    /// As [`Self::release_entry`], of an entry of many. The frames of a superpage go in one piece: it waits for a budget that covers them.
    fn release_in_time(&self, level: Level, entry: Entry) -> Result<(), Stop> {
        match entry {
            Entry::Leaf(_) if self.budget.lacks(ROOM_FOR_A_TABLE) => Err(Stop::Preempted),
            _ => self.release_entry(level, entry),
        }
    }

    /// Gives back what one entry holds.
    pub(super) fn release_entry(&self, level: Level, entry: Entry) -> Result<(), Stop> {
        match entry {
            Entry::Absent => {}
            Entry::Leaf(leaf) => {
                let span = M::Format::span(leaf.level);
                self.budget.charge(span as u32);
                self.release_pages(leaf, span);
            }
            Entry::Table(table) => self.release_table(table, level.saturating_sub(1))?,
        }
        Ok(())
    }

    /// Writes the hypervisor's own entries into a root.
    fn fill_reserved_slots(&self, root: MachineFrame) {
        for slot in M::Format::reserved_root_slots() {
            self.machine.write_entry(root, slot, self.machine.reserved_entry(slot));
        }
    }

    /// The hypervisor's own entries disappear before the guest can write to the page again: what they say of
    /// its memory is nobody's business.
    fn clear_reserved_slots(&self, root: MachineFrame) {
        for index in M::Format::reserved_root_slots() {
            self.machine.write_entry(root, index, 0);
        }
    }

    /// The bits that shall stand in memory for an entry that a guest proposes, and what it holds.
    pub(super) fn judge_entry(
        &self,
        table: MachineFrame,
        level: Level,
        proposed: u64,
    ) -> Result<(u64, Entry), Refusal> {
        let (admitted, entry) = M::Format::admit(level, proposed)?;
        if entry != Entry::Table(table) {
            return Ok((admitted, entry));
        }
        // A table that leads to itself: at the root, if nobody can write through it; elsewhere its type excludes it anyway.
        let linear = level == M::Format::LEVELS && M::Format::is_read_only_table(admitted);
        if linear { Ok((admitted, Entry::Absent)) } else { Err(Refusal::Linear) }
    }

    /// What an entry holds that was admitted before. A root's entry that leads to the root itself holds nothing.
    pub(super) fn entry(&self, table: MachineFrame, level: Level, index: usize) -> Entry {
        match M::Format::decode(level, self.machine.read_entry(table, index)) {
            Entry::Table(itself) if itself == table => Entry::Absent,
            entry => entry,
        }
    }

    /// Whether guests are kept from this entry of a table.
    pub(super) fn is_reserved(&self, level: Level, index: usize) -> bool {
        level == M::Format::LEVELS && M::Format::reserved_root_slots().contains(&index)
    }

    /// The level at which a frame is a complete table of the domain, if it is one.
    #[inline]
    pub fn table_level(&self, frame: MachineFrame) -> Option<Level> {
        self.frames.table_level(frame, self.owner)
    }
}
