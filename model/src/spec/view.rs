//! Memory as it will be, when writes that are only foreseen have been done.

use crate::bits::Bits;
use crate::hardware::content::{Content, WORDS};

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

    /// All words of a frame.
    pub fn page(&self, frame: usize) -> Vec<u64> {
        (0..WORDS).map(|index| self.read(frame, index)).collect()
    }
}
