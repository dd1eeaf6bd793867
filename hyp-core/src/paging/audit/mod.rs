//! The auditor: recounts everything from the tables themselves, and compares.
//!
//! It shares no code with what maintains the counts. For each frame it adds up why it should be held: the owner's claim,
//! pins, loaded roots, interrupted operations, the hypervisor's own uses, and every present entry of every table that is in force
//! (`count`). Then the frame's record must say the same, to the digit. Every entry is looked at again (`entries`): that it
//! leads to memory of a domain that this one may map, that no bit stands there which would not be admitted, that a complete
//! table leads to complete tables, and that the hypervisor's own slots hold what they should. Last, frames that are free and
//! frames that are somebody's must add up to all that there ever were (`totals`).
//!
//! Memory for the recount is bounded: one slice of [`SLICE`] frames is counted at a time, over all tables. The machine must
//! stand still meanwhile: the caller holds every domain's table lock, and nobody else may be amid a copy to or from a guest or an exchange, whose short
//! holds are in no table. With one CPU that is so; with more, the others have to be stopped first.

mod count;
mod entries;
mod totals;

use core::fmt;

use super::TableState;
use crate::address::{DomainId, MachineFrame};
use crate::frame::words::Use;
use crate::frame::{FrameTable, FrameType};
use crate::machine::{Level, Machine};
pub use count::{Ledger, SLICE};

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
    /// The frame is free and held at once.
    FreeAndHeld(MachineFrame),
    /// Frames that are free and frames that are somebody's don't add up to all that there are.
    Total {
        /// All that there are.
        managed: u64,
        /// Free and somebody's.
        counted: u64,
    },
    /// The allocator's number of free frames isn't what its map says.
    Free {
        /// The number.
        recorded: u64,
        /// What the map says.
        counted: u64,
    },
    /// Frames belong to a domain that doesn't exist.
    Orphans(DomainId),
    /// An entry leads to no memory.
    NotMemory {
        /// The table with the entry.
        table: MachineFrame,
        /// The entry's index.
        index: usize,
    },
    /// An entry leads to a frame that the table's owner may not map, or to a table that isn't its own.
    Foreign {
        /// The table with the entry.
        table: MachineFrame,
        /// The entry's index.
        index: usize,
    },
    /// An entry stands in a table that would not be admitted there.
    Forbidden {
        /// The table with the entry.
        table: MachineFrame,
        /// The entry's index.
        index: usize,
    },
    /// A reserved slot of a root holds something else than the hypervisor's entry.
    Reserved {
        /// The root.
        root: MachineFrame,
        /// The slot.
        slot: usize,
    },
    /// A table isn't completely validated although a complete one leads to it, or it is pinned.
    Incomplete(MachineFrame),
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
    /// The pins of this domain's grants aren't those of the mappings that others have.
    Grants(DomainId),
}

bitflags::bitflags! {
    /// The kinds of what is wrong, so that none is hidden behind another.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Kinds: u16 {
        /// [`Finding::References`]
        const REFERENCES = 1 << 0;
        /// [`Finding::Uses`]
        const USES = 1 << 1;
        /// [`Finding::Type`]
        const TYPE = 1 << 2;
        /// [`Finding::FreeAndHeld`]
        const FREE_AND_HELD = 1 << 3;
        /// [`Finding::Total`]
        const TOTAL = 1 << 4;
        /// [`Finding::Free`]
        const FREE = 1 << 5;
        /// [`Finding::Orphans`]
        const ORPHANS = 1 << 6;
        /// [`Finding::NotMemory`]
        const NOT_MEMORY = 1 << 7;
        /// [`Finding::Foreign`]
        const FOREIGN = 1 << 8;
        /// [`Finding::Forbidden`]
        const FORBIDDEN = 1 << 9;
        /// [`Finding::Reserved`]
        const RESERVED = 1 << 10;
        /// [`Finding::Incomplete`]
        const INCOMPLETE = 1 << 11;
        /// [`Finding::Owned`]
        const OWNED = 1 << 12;
        /// [`Finding::Root`]
        const ROOT = 1 << 13;
        /// [`Finding::Grants`]
        const GRANTS = 1 << 14;
    }
}

impl Finding {
    /// Which kind it is.
    pub const fn kind(&self) -> Kinds {
        match self {
            Self::References { .. } => Kinds::REFERENCES,
            Self::Uses { .. } => Kinds::USES,
            Self::Type { .. } => Kinds::TYPE,
            Self::FreeAndHeld(_) => Kinds::FREE_AND_HELD,
            Self::Total { .. } => Kinds::TOTAL,
            Self::Free { .. } => Kinds::FREE,
            Self::Orphans(_) => Kinds::ORPHANS,
            Self::NotMemory { .. } => Kinds::NOT_MEMORY,
            Self::Foreign { .. } => Kinds::FOREIGN,
            Self::Forbidden { .. } => Kinds::FORBIDDEN,
            Self::Reserved { .. } => Kinds::RESERVED,
            Self::Incomplete(_) => Kinds::INCOMPLETE,
            Self::Owned { .. } => Kinds::OWNED,
            Self::Root(_) => Kinds::ROOT,
            Self::Grants(_) => Kinds::GRANTS,
        }
    }
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
    /// The kinds of them.
    pub kinds: Kinds,
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
        self.kinds |= finding.kind();
        self.first.get_or_insert(finding);
    }
}

/// What besides tables holds frames: a domain's interrupted operation and its vCPUs' roots.
pub trait Holders {
    /// Calls `visit` with each root that some vCPU has, or may have, loaded.
    fn for_each_root(&self, visit: &mut dyn FnMut(MachineFrame));
    /// Calls `visit` with each interrupted operation.
    fn for_each_unfinished(&self, visit: &mut dyn FnMut(&TableState));
    /// Calls `visit` with each frame that the hypervisor itself holds as *writable* (a shared-info page, a grant table's).
    fn for_each_shared(&self, visit: &mut dyn FnMut(MachineFrame));
    /// Calls `visit` with each frame that some vCPU holds as a page of segment descriptors.
    fn for_each_descriptor_page(&self, visit: &mut dyn FnMut(MachineFrame));
    /// Calls `visit` with each frame that a mapping by grant pins, and whether that allows writing.
    fn for_each_pin(&self, visit: &mut dyn FnMut(MachineFrame, bool));
    /// Calls `visit` with each domain the pins of whose grants aren't those of the mappings that there are.
    fn for_each_odd_lender(&self, visit: &mut dyn FnMut(DomainId));
    /// Whether `domain` has this frame mapped by a grant, with exactly these rights.
    fn has_borrowed(&self, domain: DomainId, frame: MachineFrame, writable: bool) -> bool;
    /// Whether there is such a domain.
    fn exists(&self, domain: DomainId) -> bool;
    /// Whether `domain` may map frames of `owner`.
    fn may_map(&self, domain: DomainId, owner: DomainId) -> bool;
}

/// Recounts everything.
pub fn audit<M: Machine>(
    machine: &M,
    frames: &FrameTable,
    holders: &dyn Holders,
    ledger: &mut Ledger,
) -> Report {
    let mut report = Report::default();
    count::count::<M>(machine, frames, holders, ledger, &mut report);
    entries::judge(machine, frames, holders, &mut report);
    totals::check::<M>(frames, holders, &mut report);
    report
}

/// A table in force, with its record as it was read.
#[derive(Clone, Copy)]
struct Table {
    frame: MachineFrame,
    level: Level,
    owner: DomainId,
    usage: Use,
}

/// Visits every frame that some use makes a table.
fn each_table(frames: &FrameTable, visit: &mut dyn FnMut(Table)) {
    let (first, end) = frames.extent();
    for frame in (first..end).filter_map(MachineFrame::new) {
        let (Some(hold), Some(usage)) = (frames.hold(frame), frames.usage(frame)) else { continue };
        if let (Some(owner), FrameType::Table(level), 1..) = (hold.owner, usage.kind, usage.uses) {
            visit(Table { frame, level, owner, usage });
        }
    }
}

impl Table {
    /// Entries that hold references, counted from 0.
    fn in_force(&self, entries: usize) -> usize {
        if self.usage.complete { entries } else { self.usage.progress().min(entries) }
    }
}
