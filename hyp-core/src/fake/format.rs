//! Page tables as no hardware has them.
//!
//! Three levels: the root (level 3) has 32 entries, level 2 has 8, level 1 has 16; an address has 24 bits. An entry:
//!
//! ```text
//! bit 63      present
//! bits 20..50 frame number
//! bit 9       table (level 2 and 3); at level 2 without it: a superpage of 16 pages; at level 1 it has to be clear
//! bit 5       read-only (so that a forgotten bit means too many rights); in a table entry: so is all that is below
//! bit 4       hardware may lift the read-only bit: counts as writable
//! bit 1       accessed, set by hardware
//! bit 0       dirty, set by hardware
//! bit 7       forced to 1 in every present entry
//! ```
//! All other bits must be zero.

use core::ops::Range;

use crate::address::MachineFrame;
use crate::machine::{Entry, EntryFault, Leaf, Level, PageTableFormat};

/// Bits of an address.
pub const ADDRESS_BITS: u32 = 24;
/// The hypervisor's part of a root.
pub const RESERVED_SLOTS: Range<usize> = 10..12;

/// The entry is present.
pub const PRESENT: u64 = 1 << 63;
/// The entry leads to a table.
pub const TABLE: u64 = 1 << 9;
/// No writes through this leaf.
pub const READ_ONLY: u64 = 1 << 5;
/// Hardware may lift [`READ_ONLY`].
pub const LIFT: u64 = 1 << 4;
/// Set in every entry that was admitted.
pub const FORCED: u64 = 1 << 7;
/// Accessed and dirty.
pub const HARDWARE: u64 = 3;
const FRAME_SHIFT: u32 = 20;
const FRAME_MASK: u64 = ((1 << 30) - 1) << FRAME_SHIFT;

/// The format.
pub struct FakeFormat;

/// A present leaf.
pub fn leaf(frame: MachineFrame, writable: bool) -> u64 {
    PRESENT | FORCED | (frame.number() << FRAME_SHIFT) | if writable { 0 } else { READ_ONLY }
}

/// An entry that leads to a table.
pub fn table(frame: MachineFrame) -> u64 {
    PRESENT | FORCED | TABLE | (frame.number() << FRAME_SHIFT)
}

impl PageTableFormat for FakeFormat {
    const LEVELS: Level = 3;

    fn index_bits(level: Level) -> u32 {
        match level {
            1 => 4,
            2 => 3,
            3 => 5,
            _ => 0,
        }
    }

    fn reserved_root_slots() -> Range<usize> {
        RESERVED_SLOTS
    }

    fn decode(level: Level, raw: u64) -> Entry {
        let Some(frame) = MachineFrame::new((raw & FRAME_MASK) >> FRAME_SHIFT) else { return Entry::Absent };
        if raw & PRESENT == 0 {
            Entry::Absent
        } else if raw & TABLE != 0 && level > 1 {
            Entry::Table(frame)
        } else {
            Entry::Leaf(Leaf { frame, level, writable: raw & READ_ONLY == 0 || raw & LIFT != 0 })
        }
    }

    fn admit(level: Level, raw: u64) -> Result<(u64, Entry), EntryFault> {
        if raw & PRESENT == 0 {
            return Ok((raw, Entry::Absent));
        }
        let known = PRESENT | FRAME_MASK | TABLE | READ_ONLY | LIFT | FORCED | HARDWARE;
        if raw & !known != 0 {
            return Err(EntryFault::ForbiddenBits(raw & !known));
        }
        if (level == 1 && raw & TABLE != 0) || (level == Self::LEVELS && raw & TABLE == 0) {
            return Err(EntryFault::WrongLevel);
        }
        let entry = Self::decode(level, raw);
        if let Entry::Leaf(leaf) = entry
            && !leaf.frame.number().is_multiple_of(Self::span(level))
        {
            return Err(EntryFault::ForbiddenBits((Self::span(level) - 1) << FRAME_SHIFT));
        }
        Ok((raw | FORCED, entry))
    }

    fn encode(_: Level, entry: Entry) -> u64 {
        match entry {
            Entry::Absent => 0,
            Entry::Table(frame) => table(frame),
            Entry::Leaf(mapping) => leaf(mapping.frame, mapping.writable),
        }
    }

    fn with_write(raw: u64, writable: bool) -> u64 {
        let rest = raw & !(READ_ONLY | LIFT);
        if writable { rest } else { rest | READ_ONLY }
    }

    fn hidden(raw: u64) -> u64 {
        raw & !PRESENT
    }

    fn is_read_only_table(raw: u64) -> bool {
        raw & READ_ONLY != 0 && raw & LIFT == 0
    }

    fn hardware_bits(_: Level) -> u64 {
        HARDWARE
    }
}
