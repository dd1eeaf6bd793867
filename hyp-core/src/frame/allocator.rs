//! Which frames are free: one bit a frame, in memory that the backend gives.
//!
//! A search goes on where the last one ended, a word of 64 frames at a time. The map is only told about frames
//! whose record says that nobody holds them, so that map and records can be checked against each other.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Frames to the word.
const WORD: usize = 64;

/// The map of free frames. Indices count from the first frame that the frame table covers.
#[derive(Debug)]
pub struct FreeMap {
    words: &'static [AtomicU64],
    /// Where the next search starts: a hint, never relied upon.
    cursor: AtomicUsize,
    free: AtomicUsize,
}

impl FreeMap {
    /// A map over `words`, all zero: nothing is free yet.
    pub fn new(words: &'static [AtomicU64]) -> Self {
        Self { words, cursor: AtomicUsize::new(0), free: AtomicUsize::new(0) }
    }

    /// How many frames are free.
    pub fn free_frames(&self) -> usize {
        self.free.load(Ordering::Relaxed)
    }

    /// Whether the frame at `index` is free.
    pub fn is_free(&self, index: usize) -> bool {
        let bit = 1u64 << (index % WORD);
        self.words.get(index / WORD).is_some_and(|word| word.load(Ordering::Acquire) & bit != 0)
    }

    /// Takes one free frame and returns its index, the lowest at or after the end of the last search.
    pub fn take(&self) -> Option<usize> {
        let count = self.words.len();
        let start = self.cursor.load(Ordering::Relaxed);
        for step in 0..count {
            let at = start.wrapping_add(step).checked_rem(count)?;
            if let Some(bit) = self.words.get(at).and_then(take_lowest) {
                // Relaxed: a hint and a statistic.
                self.cursor.store(at, Ordering::Relaxed);
                self.free.fetch_sub(1, Ordering::Relaxed);
                return at.checked_mul(WORD)?.checked_add(bit);
            }
        }
        None
    }

    /// Makes the frame at `index` free; `false` if it was free already, or is none of ours.
    pub fn give(&self, index: usize) -> bool {
        let bit = 1u64 << (index % WORD);
        let Some(word) = self.words.get(index / WORD) else { return false };
        // Release: the record was vacated before anyone can take the frame.
        let fresh = word.fetch_or(bit, Ordering::Release) & bit == 0;
        if fresh {
            self.free.fetch_add(1, Ordering::Relaxed);
        }
        fresh
    }

    /// Makes the frames at `start..end` free: whole words at a time. What is beyond the map is passed over. Returns how many
    /// weren't free before.
    pub fn give_range(&self, start: usize, end: usize) -> usize {
        let mut given = 0usize;
        let end = end.min(self.words.len().saturating_mul(WORD));
        let mut at = start;
        while at < end {
            let first = at % WORD;
            let last = WORD.min(first.saturating_add(end.saturating_sub(at)));
            // Bits `first..last`; neither shift reaches 64.
            let bits = (u64::MAX << first) & (u64::MAX >> WORD.saturating_sub(last));
            let Some(word) = self.words.get(at / WORD) else { break };
            let before = word.fetch_or(bits, Ordering::Release);
            given = given.saturating_add((bits & !before).count_ones() as usize);
            at = at.saturating_add(last.saturating_sub(first));
        }
        self.free.fetch_add(given, Ordering::Relaxed);
        given
    }

    /// How many bits are set: what [`Self::free_frames`] should say.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }
}

/// Clears the lowest set bit of a word; returns its number.
fn take_lowest(word: &AtomicU64) -> Option<usize> {
    // Acquire: pairs with the release in `give`.
    let before = word
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
            (bits != 0).then(|| bits & bits.wrapping_sub(1))
        })
        .ok()?;
    Some(before.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(words: usize) -> FreeMap {
        FreeMap::new(Box::leak((0..words).map(|_| AtomicU64::new(0)).collect()))
    }

    #[test]
    fn a_frame_is_taken_once_and_can_be_given_back() {
        let map = map(2);
        assert_eq!(map.take(), None);
        assert!(map.give(70));
        assert!(!map.give(70), "given twice");
        assert!(!map.give(128), "beyond the map");
        assert_eq!((map.free_frames(), map.is_free(70), map.is_free(69)), (1, true, false));
        assert_eq!(map.take(), Some(70));
        assert_eq!((map.take(), map.free_frames()), (None, 0));
    }

    #[test]
    fn a_range_is_given_to_the_bit() {
        for (start, end) in [(0, 0), (0, 64), (3, 5), (3, 64), (60, 200), (64, 128), (1, 256), (250, 300)] {
            let map = map(4);
            assert_eq!(map.give_range(start, end), start.max(end.min(256)) - start);
            let free: Vec<_> = (0..300).filter(|index| map.is_free(*index)).collect();
            assert_eq!(free, (start..end.min(256)).collect::<Vec<_>>());
            assert_eq!(map.free_frames(), free.len());
        }
    }

    #[test]
    fn frames_come_in_ascending_order() {
        let map = map(4);
        for index in (0..256).rev() {
            map.give(index);
        }
        assert!((0..256).all(|index| map.take() == Some(index)));
    }
}
