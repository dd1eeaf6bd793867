//! Counting, frame by frame, why each should be held.

use super::{Finding, Holders, Report, Table, each_table};
use crate::address::MachineFrame;
use crate::frame::words::{Hold, Use};
use crate::frame::{FrameTable, FrameType};
use crate::machine::{Entry, Leaf, Level, Machine, PageTableFormat};
use crate::paging::Unfinished;
use crate::paging::writable::Slot;

/// Frames counted in one pass over all tables.
pub const SLICE: usize = 16384;

/// What was counted for one frame.
#[derive(Clone, Copy, Default, Debug)]
struct Count {
    references: u32,
    writable: u32,
    table: u32,
    descriptors: u32,
    /// Levels at which the frame is used as a table, one bit each.
    levels: u8,
}

impl Count {
    fn reference(&mut self) {
        self.references = self.references.saturating_add(1);
    }

    fn writable(&mut self) {
        self.reference();
        self.writable = self.writable.saturating_add(1);
    }

    fn descriptors(&mut self) {
        self.reference();
        self.descriptors = self.descriptors.saturating_add(1);
    }

    fn table(&mut self, level: Level) {
        self.reference();
        self.table = self.table.saturating_add(1);
        self.levels |= 1u8.checked_shl(u32::from(level)).unwrap_or(0);
    }
}

/// Room to count one slice in. Large: it lives in a static, not on a stack.
pub struct Ledger {
    counts: [Count; SLICE],
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new()
    }
}

impl Ledger {
    /// An empty ledger, all zero.
    pub const fn new() -> Self {
        Self { counts: [Count { references: 0, writable: 0, table: 0, descriptors: 0, levels: 0 }; SLICE] }
    }
}

/// Counts all frames, a slice at a time, and compares.
pub(super) fn count<M: Machine>(
    machine: &M,
    frames: &FrameTable,
    holders: &dyn Holders,
    ledger: &mut Ledger,
    report: &mut Report,
) {
    let (first, end) = frames.extent();
    let mut start = first;
    while start < end {
        let length = usize::try_from(end.saturating_sub(start)).map_or(SLICE, |left| left.min(SLICE));
        ledger.counts.iter_mut().take(length).for_each(|count| *count = Count::default());
        let mut slice = Slice { start, ledger, report };
        slice.count_holders::<M>(holders);
        slice.count_claims(frames, end);
        each_table(frames, &mut |table| slice.count_entries::<M>(machine, table));
        slice.compare(frames, end);
        start = start.saturating_add(SLICE as u64);
    }
}

/// One slice of frames, being counted.
struct Slice<'a> {
    start: u64,
    ledger: &'a mut Ledger,
    report: &'a mut Report,
}

impl Slice<'_> {
    fn count_of(&mut self, frame: MachineFrame) -> Option<&mut Count> {
        let index = frame.number().checked_sub(self.start)?;
        self.ledger.counts.get_mut(usize::try_from(index).ok()?)
    }

    fn add(&mut self, frame: MachineFrame, add: impl FnOnce(&mut Count)) {
        if let Some(count) = self.count_of(frame) {
            add(count);
        }
    }

    /// The frames of the slice.
    fn frames(&self, end: u64) -> impl Iterator<Item = MachineFrame> + use<> {
        let stop = self.start.saturating_add(SLICE as u64).min(end);
        (self.start..stop).filter_map(MachineFrame::new)
    }

    fn count_holders<M: Machine>(&mut self, holders: &dyn Holders) {
        // Level 0 stands for "a root": that it is a table of the highest level is checked elsewhere.
        holders.for_each_root(&mut |root| self.add(root, |count| count.table(0)));
        holders.for_each_unfinished(&mut |state| {
            if let Some(Unfinished::Validating(table, level) | Unfinished::Dropping(table, level)) =
                state.unfinished
            {
                self.add(table, |count| count.table(level));
            }
            for entry in state.slots.iter().flat_map(Slot::held::<M>) {
                if let Entry::Leaf(leaf) = entry {
                    self.count_leaf::<M>(leaf);
                }
            }
        });
        holders.for_each_shared(&mut |frame| self.add(frame, Count::writable));
        holders.for_each_descriptor_page(&mut |frame| self.add(frame, Count::descriptors));
        holders.for_each_pin(&mut |frame, writable| {
            self.add(frame, if writable { Count::writable } else { Count::reference });
        });
    }

    /// The owners' claims, and pins.
    fn count_claims(&mut self, frames: &FrameTable, end: u64) {
        for frame in self.frames(end) {
            let (Some(hold), Some(usage)) = (frames.hold(frame), frames.usage(frame)) else { continue };
            if hold.allocated {
                self.add(frame, Count::reference);
            }
            if let (true, FrameType::Table(level)) = (usage.pinned, usage.kind) {
                self.add(frame, |count| count.table(level));
            }
        }
    }

    /// What the entries of one table hold in the slice.
    fn count_entries<M: Machine>(&mut self, machine: &M, table: Table) {
        let Table { frame, level, .. } = table;
        let reserved = M::Format::reserved_root_slots();
        let is_guests = |index: &usize| level != M::Format::LEVELS || !reserved.contains(index);
        for index in (0..table.in_force(M::Format::entries(level))).filter(is_guests) {
            match M::Format::decode(level, machine.read_entry(frame, index)) {
                Entry::Absent => {}
                // A root that leads to itself holds nothing by that.
                Entry::Table(below) if below == frame => {}
                Entry::Table(below) => self.add(below, |count| count.table(level.saturating_sub(1))),
                Entry::Leaf(leaf) => self.count_leaf::<M>(leaf),
            }
        }
    }

    /// What a leaf holds of each frame that it maps.
    fn count_leaf<M: Machine>(&mut self, leaf: Leaf) {
        for frame in (0..M::Format::span(leaf.level)).filter_map(|index| leaf.frame.checked_add(index)) {
            self.add(frame, if leaf.writable { Count::writable } else { Count::reference });
        }
    }

    /// Holds the records of the slice against what was counted.
    fn compare(&mut self, frames: &FrameTable, end: u64) {
        for frame in self.frames(end) {
            let (Some(hold), Some(usage)) = (frames.hold(frame), frames.usage(frame)) else { return };
            let counted = self.count_of(frame).map_or_else(Count::default, |count| *count);
            self.compare_one(frame, hold, usage, counted);
        }
    }

    fn compare_one(&mut self, frame: MachineFrame, hold: Hold, usage: Use, counted: Count) {
        if hold.references != counted.references {
            let (recorded, counted) = (hold.references, counted.references);
            self.report.add(Finding::References { frame, recorded, counted });
        }
        let uses = counted.writable.saturating_add(counted.table).saturating_add(counted.descriptors);
        if usage.uses != uses {
            self.report.add(Finding::Uses { frame, recorded: usage.uses, counted: uses });
        }
        let excluded = match usage.kind {
            FrameType::None => true,
            FrameType::Descriptors => counted.writable != 0 || counted.table != 0,
            FrameType::Writable => counted.table != 0 || counted.descriptors != 0,
            // Bit 0 stands for roots.
            FrameType::Table(level) => {
                let allowed = 1 | 1u8.checked_shl(u32::from(level)).unwrap_or(0);
                counted.writable != 0 || counted.descriptors != 0 || counted.levels & !allowed != 0
            }
        };
        if excluded && uses != 0 {
            self.report.add(Finding::Type { frame, kind: usage.kind });
        }
    }
}
