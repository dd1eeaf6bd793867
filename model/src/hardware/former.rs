//! Entries that were present once, and that the caches of a CPU could hold still.
//!
//! [`super::reach`] knows *what* could be reached; here stands *where* it was said. A walker that meets another present entry in the
//! same place has two meanings for one address.

use crate::format::{Hardware, Walk};

/// What the caches of one CPU could hold under one tag of entries that are absent now: table, index, what stood there.
#[derive(Clone, Default)]
pub struct Former(Vec<(usize, usize, u64)>);

impl Former {
    /// A present entry of a table of `level`, which a walker uses, becomes absent.
    pub fn take_in<F: Hardware>(
        &mut self,
        (table, level, index): (usize, u8, usize),
        (old, new): (u64, u64),
    ) {
        if F::walk(level, old) != Walk::Fault && F::walk(level, new) == Walk::Fault {
            self.0.push((table, index, old));
        }
    }

    /// What is remembered of this entry and is in conflict with what it is to hold now.
    pub fn conflict<F: Hardware>(&self, (table, level, index): (usize, u8, usize), new: u64) -> Option<u64> {
        let here = |entry: &&(usize, usize, u64)| (entry.0, entry.1) == (table, index);
        self.0.iter().filter(here).map(|entry| entry.2).find(|old| F::conflict(level, *old, new))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
