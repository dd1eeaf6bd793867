//! Memory as it will be, when writes that are only foreseen have been done.

use hyp_core::address::GuestVirtual;

use crate::bits::Bits;
use crate::format::{Hardware, Walk};
use crate::hardware::content::{Content, WORDS, frame, slot};

/// What will be written, and isn't yet.
#[derive(Clone, Default)]
pub struct Writes {
    /// Frame, index, word, in the order of time.
    list: Vec<(usize, usize, u64)>,
    frames: Bits,
}

impl Writes {
    /// One more.
    pub fn push(&mut self, frame: usize, index: usize, word: u64) {
        self.frames.insert(frame);
        self.list.push((frame, index, word));
    }

    /// What will stand in a place, if anything is written there.
    #[inline]
    pub fn last(&self, frame: usize, index: usize) -> Option<u64> {
        if !self.frames.has(frame) {
            return None;
        }
        self.list.iter().rev().find(|write| (write.0, write.1) == (frame, index)).map(|write| write.2)
    }

    /// Each place that is written, with what will stand there in the end; some places more than once.
    pub fn places(&self) -> impl Iterator<Item = (usize, usize, u64)> + '_ {
        self.list.iter().filter_map(|write| Some((write.0, write.1, self.last(write.0, write.1)?)))
    }
}

/// Where a walk has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The table with the last entry.
    pub table: usize,
    /// Its level, as the walk counts.
    pub level: u8,
    /// The entry's index.
    pub index: usize,
    /// The frame that the entry maps there, if it maps memory.
    pub target: Option<usize>,
    /// Whether the entry itself lets it be written.
    pub writable: bool,
}

/// Memory with foreseen writes on top.
pub struct View<'a> {
    /// Memory as it is.
    pub content: &'a Content,
    /// What will be written to it; `None` if nothing is foreseen: then all entries of tables have been judged, and stand as admitted.
    pub writes: Option<&'a Writes>,
}

impl View<'_> {
    /// The word that will stand somewhere.
    #[inline]
    pub fn read(&self, frame: usize, index: usize) -> u64 {
        let newer = self.writes.and_then(|writes| writes.last(frame, index));
        newer.unwrap_or_else(|| self.content.read(frame, index))
    }

    /// Where the walk for an address ends, from the root in place `root` on: at a leaf, or in a table of level 1.
    pub fn translate<F: Hardware>(&self, root: usize, address: u64) -> Option<Translation> {
        let at = GuestVirtual::new(address);
        let root = F::root_of(at, Some(frame(root)), None)?;
        let mut table = slot(root.number())?;
        for level in (1..=F::LEVELS).rev() {
            let index = F::index(at, level);
            if level == F::LEVELS && F::reserved_root_slots().contains(&index) {
                return None;
            }
            match F::walk(level, self.read(table, index)) {
                Walk::Table { frame, .. } => table = slot(frame)?,
                Walk::Leaf { frame, writable, .. } => {
                    let span: u64 = (1..level).map(|below| F::entries(below) as u64).product();
                    let target = slot(frame + (address >> 12 & (span - 1)));
                    return Some(Translation { table, level, index, target, writable });
                }
                Walk::Fault if level == 1 => {
                    return Some(Translation { table, level, index, target: None, writable: false });
                }
                Walk::Fault => return None,
            }
        }
        None
    }

    /// All words of a frame.
    pub fn page(&self, frame: usize) -> Vec<u64> {
        (0..WORDS).map(|index| self.read(frame, index)).collect()
    }
}
