//! The page through which the two domains of the tour hand over.
//!
//! It is domain 1's store page, which start info names by its machine frame: the control domain finds it as its tools
//! always have. Domain 1 writes all words but one; the control domain writes [`Word::Acknowledged`] through a foreign
//! mapping.

/// First word of a published page: "PENUMBRA" in ASCII.
pub const MAGIC: u64 = u64::from_le_bytes(*b"PENUMBRA");

/// Word of the page.
#[derive(Clone, Copy)]
pub enum Word {
    /// "PENUMBRA" in ASCII.
    Magic = 0,
    /// How far domain 1 has come: a stage.
    Stage = 1,
    /// How far the control domain has come.
    Acknowledged = 2,
    /// The virtual address of the experiment.
    Address = 3,
    /// Its entry, as it is in memory.
    Entry = 4,
    /// The machine frame in the entry.
    MachineFrame = 5,
    /// The pseudo-physical frame by the M2P.
    PseudoFrame = 6,
    /// What the page at the address holds in its first word.
    Content = 7,
    /// Attempts made.
    Attempts = 8,
    /// Attempts that weren't refused as they should be.
    Failures = 9,
}

/// How far a side has come; each includes those before.
#[derive(Clone, Copy)]
pub enum Stage {
    /// Domain 1 has shown and published its numbers; the control domain has looked them up.
    Shown = 1,
    /// Domain 1 has made its attempts.
    Tried = 2,
}
