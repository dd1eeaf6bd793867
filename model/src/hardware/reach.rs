//! Everything that a CPU's translation caches could hold by now.
//!
//! For each CPU and tag: frames that a cached translation leads to, those that one lets be written, and tables that a walk
//! cache leads to, by the level at which the walker takes them. Sets of frames, not of addresses: a flush of one page takes nothing
//! away here, so nobody's safety may rely on one.

use crate::bits::Bits;
use crate::format::{Hardware, Walk};
use crate::hardware::content::{Content, slot};

/// CPUs of a modelled machine.
pub const CPUS: usize = 3;
/// Tags, one a domain.
pub const TAGS: usize = 6;
/// Levels of any format, and one.
const LEVELS: usize = 6;

/// What the caches of one CPU could hold under one tag.
#[derive(Clone, Copy, Default)]
pub struct Reach {
    /// Frames that some cached translation leads to.
    pub readable: Bits,
    /// Frames that some cached translation lets be written.
    pub writable: Bits,
    /// Tables that the walker could go on from, by level, and by whether the way there was *special*: through an entry that forbids
    /// writes to all that is below; or, where no entry does, through one by which a table leads to itself.
    pub tables: [[Bits; 2]; LEVELS],
}

/// A walk that led somewhere where there is no memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Astray {
    /// The table with the entry.
    pub table: usize,
    /// What the entry holds.
    pub raw: u64,
}

impl Reach {
    /// Whether the walker could go on from that table, as one of `level`.
    pub fn walks(&self, level: u8, table: usize) -> bool {
        self.tables[usize::from(level)].iter().any(|set| set.has(table))
    }

    /// The walker meets a table.
    ///
    /// # Errors
    /// Something below leads out of RAM.
    pub fn meet<F: Hardware>(
        &mut self,
        content: &Content,
        table: usize,
        level: u8,
        special: bool,
    ) -> Result<(), Astray> {
        if !self.tables[usize::from(level)][usize::from(special)].insert(table) {
            return Ok(());
        }
        for index in 0..F::entries(level) {
            self.take_in::<F>(content, (table, level, index), content.read(table, index), special)?;
        }
        Ok(())
    }

    /// The walker meets an entry of a table. Slots of the hypervisor's own are passed over.
    ///
    /// # Errors
    /// As [`Self::meet`].
    #[inline]
    pub fn take_in<F: Hardware>(
        &mut self,
        content: &Content,
        (table, level, index): (usize, u8, usize),
        raw: u64,
        special: bool,
    ) -> Result<(), Astray> {
        if raw == 0 || level == F::LEVELS && F::reserved_root_slots().contains(&index) {
            return Ok(());
        }
        match F::walk(level, raw) {
            Walk::Fault => Ok(()),
            Walk::Table { frame, limited: here } => {
                let next = slot(frame).ok_or(Astray { table, raw })?;
                let becomes_special = if F::LIMITS { here } else { next == table };
                self.meet::<F>(content, next, level - 1, special || becomes_special)
            }
            Walk::Leaf { frame, writable, .. } => {
                let span: usize = (1..level).map(|below| F::entries(below)).product();
                for number in frame..frame + span as u64 {
                    let at = slot(number).ok_or(Astray { table, raw })?;
                    self.readable.insert(at);
                    if writable && !(F::LIMITS && special) {
                        self.writable.insert(at);
                    }
                }
                Ok(())
            }
        }
    }

    /// An entry is written: whoever walks its table may take it in at once.
    ///
    /// # Errors
    /// As [`Self::meet`].
    pub fn written<F: Hardware>(
        &mut self,
        content: &Content,
        table: usize,
        index: usize,
        raw: u64,
    ) -> Result<(), Astray> {
        for level in 1..=F::LEVELS {
            for special in [false, true] {
                let walked = self.tables[usize::from(level)][usize::from(special)].has(table);
                if walked && index < F::entries(level) {
                    self.take_in::<F>(content, (table, level, index), raw, special)?;
                }
            }
        }
        Ok(())
    }
}
