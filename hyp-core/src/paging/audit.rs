//! The auditor: recounts everything from the tables themselves, and compares.
//!
//! It shares no code with what maintains the counts. For each frame it adds up why it should be held: the owner's claim,
//! pins, loaded roots, interrupted operations, and every present entry of every table that is in force. Then the frame's record must say the same,
//! to the digit; every frame with a writable mapping must be of type writable; every table must be complete
//! or accounted for; and nothing may be both free and held.
//!
//! Memory for the recount is bounded: one slice of [`SLICE`] frames is counted at a time, over all tables. The machine must
//! stand still meanwhile (the caller holds every domain's table lock).

use core::fmt;

use super::{TableState, Unfinished};
use crate::address::{DomainId, MachineFrame};
use crate::frame::record::{Hold, Use};
use crate::frame::table::OWNERS;
use crate::frame::{FrameTable, FrameType};
use crate::machine::{Entry, Level, Machine, PageTableFormat};

/// Frames counted in one pass over all tables.
pub const SLICE: usize = 16384;

/// One thing that is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// The record counts another number of references than there are reasons.
    References {
        /// The frame.
        frame: MachineFrame,
        /// What the record says.
        recorded: u32,
        /// What the auditor counted.
        counted: u32,
    },
    /// The record counts another number of uses.
    Uses {
        /// The frame.
        frame: MachineFrame,
        /// What the record says.
        recorded: u32,
        /// What the auditor counted.
        counted: u32,
    },
    /// Some entry uses the frame as something that its type excludes.
    Type {
        /// The frame.
        frame: MachineFrame,
        /// The type it has.
        kind: FrameType,
    },
    /// The frame is free and held at once, or neither.
    Lost(MachineFrame),
    /// An entry leads to no memory.
    NotMemory {
        /// The table with the entry.
        table: MachineFrame,
        /// The entry's index.
        index: usize,
    },
    /// As many frames say that they are this owner's as were counted, not as the running total says.
    Owned {
        /// The owner.
        owner: DomainId,
        /// The running total.
        recorded: u64,
        /// What the auditor counted.
        counted: u64,
    },
    /// A root that hardware may have loaded isn't a complete root table.
    Root(MachineFrame),
}

/// What the auditor saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Frames that somebody owns.
    pub frames: u64,
    /// Tables in force.
    pub tables: u64,
    /// Present entries in them.
    pub entries: u64,
    /// How many things are wrong.
    pub findings: u64,
    /// The first of them.
    pub first: Option<Finding>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "audit: {} frames, {} tables, {} entries: ", self.frames, self.tables, self.entries)?;
        match self.first {
            None => write!(f, "clean"),
            Some(first) => write!(f, "{} findings, the first: {first:?}", self.findings),
        }
    }
}

impl Report {
    fn add(&mut self, finding: Finding) {
        self.findings = self.findings.saturating_add(1);
        self.first.get_or_insert(finding);
    }
}

/// What was counted for one frame.
#[derive(Clone, Copy, Default, Debug)]
struct Count {
    references: u32,
    writable: u32,
    table: u32,
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
        Self { counts: [Count { references: 0, writable: 0, table: 0, levels: 0 }; SLICE] }
    }
}

/// What besides tables holds frames: a domain's interrupted operation and its vCPUs' roots.
pub trait Holders {
    /// Calls `visit` with each root that some vCPU has, or may have, loaded.
    fn for_each_root(&self, visit: &mut dyn FnMut(MachineFrame));
    /// Calls `visit` with each interrupted operation.
    fn for_each_unfinished(&self, visit: &mut dyn FnMut(&TableState));
    /// Calls `visit` with each frame that is held by one reference for another reason (a shared-info page).
    fn for_each_reference(&self, visit: &mut dyn FnMut(MachineFrame));
}

/// Recounts everything.
pub fn audit<M: Machine>(
    machine: &M,
    frames: &FrameTable,
    holders: &dyn Holders,
    ledger: &mut Ledger,
) -> Report {
    let mut report = Report::default();
    let (first, end) = frames.extent();
    let mut start = first;
    while start < end {
        let mut slice = Slice { start, ledger, report: &mut report };
        slice.ledger.counts.fill(Count::default());
        slice.count_holders(holders);
        slice.count_tables(machine, frames, first, end, start == first);
        slice.compare(frames, end);
        start = start.saturating_add(SLICE as u64);
    }
    check_roots::<M>(frames, holders, &mut report);
    check_totals(frames, &mut report);
    report
}

/// Counts every owner's frames in one pass over the records.
fn check_totals(frames: &FrameTable, report: &mut Report) {
    let mut counts = [0u64; OWNERS];
    let (first, end) = frames.extent();
    for frame in (first..end).filter_map(MachineFrame::new) {
        let owner = frames.hold(frame).and_then(|hold| hold.owner);
        if let Some(count) = owner.and_then(|owner| counts.get_mut(usize::from(owner.number()))) {
            *count = count.saturating_add(1);
        }
    }
    for (number, counted) in counts.into_iter().enumerate() {
        let owner = DomainId::new(number as u16);
        let recorded = frames.owned(owner);
        if recorded != counted {
            report.add(Finding::Owned { owner, recorded, counted });
        }
    }
}

fn check_roots<M: Machine>(frames: &FrameTable, holders: &dyn Holders, report: &mut Report) {
    holders.for_each_root(&mut |root| {
        let is_root = frames.usage(root).is_some_and(|usage| {
            usage.complete && usage.uses > 0 && usage.kind == FrameType::Table(M::Format::LEVELS)
        });
        if !is_root {
            report.add(Finding::Root(root));
        }
    });
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

    fn count_holders(&mut self, holders: &dyn Holders) {
        // Roots are tables of the highest level whatever it is: the level is checked by `check_roots`.
        holders.for_each_root(&mut |root| self.add(root, |count| count.table(0)));
        holders.for_each_unfinished(&mut |state| {
            if let Some(Unfinished::Validating(table, level) | Unfinished::Dropping(table, level)) =
                state.unfinished
            {
                self.add(table, |count| count.table(level));
            }
        });
        holders.for_each_reference(&mut |frame| self.add(frame, Count::reference));
    }

    /// Looks at every table of the machine, and counts those of its entries that lead into the slice.
    fn count_tables<M: Machine>(
        &mut self,
        machine: &M,
        frames: &FrameTable,
        first: u64,
        end: u64,
        summarise: bool,
    ) {
        for number in first..end {
            let Some(table) = MachineFrame::new(number) else { continue };
            let (Some(hold), Some(usage)) = (frames.hold(table), frames.usage(table)) else { continue };
            self.count_claim(table, hold, usage);
            let FrameType::Table(level) = usage.kind else { continue };
            if usage.uses == 0 {
                continue;
            }
            let entries = self.count_entries::<M>(machine, frames, table, level, usage);
            if summarise {
                self.report.tables = self.report.tables.saturating_add(1);
                self.report.entries = self.report.entries.saturating_add(entries);
            }
        }
    }

    fn count_claim(&mut self, frame: MachineFrame, hold: Hold, usage: Use) {
        if hold.allocated {
            self.add(frame, Count::reference);
        }
        if let (true, FrameType::Table(level)) = (usage.pinned, usage.kind) {
            self.add(frame, |count| count.table(level));
        }
    }

    fn count_entries<M: Machine>(
        &mut self,
        machine: &M,
        frames: &FrameTable,
        table: MachineFrame,
        level: Level,
        usage: Use,
    ) -> u64 {
        let limit = if usage.complete { M::Format::entries(level) } else { usage.progress };
        let reserved = M::Format::reserved_root_slots();
        let mut present = 0u64;
        for index in (0..limit).filter(|index| level != M::Format::LEVELS || !reserved.contains(index)) {
            let target = match M::Format::decode(level, machine.read_entry(table, index)) {
                Entry::Absent => continue,
                Entry::Table(below) => {
                    self.add(below, |count| count.table(level.saturating_sub(1)));
                    below
                }
                Entry::Leaf(leaf) => {
                    let add = if leaf.writable { Count::writable } else { Count::reference };
                    self.add(leaf.frame, add);
                    leaf.frame
                }
            };
            present = present.saturating_add(1);
            if frames.hold(target).is_none_or(|hold| hold.references == 0) {
                self.report.add(Finding::NotMemory { table, index });
            }
        }
        present
    }

    /// Holds the records of the slice against what was counted.
    fn compare(&mut self, frames: &FrameTable, end: u64) {
        let first = frames.extent().0;
        for offset in 0..SLICE as u64 {
            let number = self.start.saturating_add(offset);
            let Some(frame) = MachineFrame::new(number).filter(|_| number < end) else { return };
            let (Some(hold), Some(usage)) = (frames.hold(frame), frames.usage(frame)) else { return };
            let counted = self.count_of(frame).map_or_else(Count::default, |count| *count);
            self.compare_one(frame, hold, usage, counted);
            let index = number.saturating_sub(first) as usize;
            let free = frames.free_map().is_some_and(|map| map.is_free(index));
            if free && hold.owner.is_some() {
                self.report.add(Finding::Lost(frame));
            }
            if hold.owner.is_some_and(|owner| owner != DomainId::HYPERVISOR) {
                self.report.frames = self.report.frames.saturating_add(1);
            }
        }
    }

    fn compare_one(&mut self, frame: MachineFrame, hold: Hold, usage: Use, counted: Count) {
        if hold.references != counted.references {
            let (recorded, counted) = (hold.references, counted.references);
            self.report.add(Finding::References { frame, recorded, counted });
        }
        let uses = counted.writable.saturating_add(counted.table);
        if usage.uses != uses {
            self.report.add(Finding::Uses { frame, recorded: usage.uses, counted: uses });
        }
        let excluded = match usage.kind {
            FrameType::None => uses != 0,
            FrameType::Writable => counted.table != 0,
            // Bit 0 stands for roots.
            FrameType::Table(level) => {
                let allowed = 1 | 1u8.checked_shl(u32::from(level)).unwrap_or(0);
                counted.writable != 0 || counted.levels & !allowed != 0
            }
        };
        if excluded && uses != 0 {
            self.report.add(Finding::Type { frame, kind: usage.kind });
        }
    }
}
