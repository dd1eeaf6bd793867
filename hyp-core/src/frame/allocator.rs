//! Which frames are free, and where many of them lie in a row.
//!
//! One bit a frame, in memory that the backend gives. Frames are looked after by the *chunk*: 512 of them, the size of a level-1
//! table's reach and of the largest extent that can be asked for. Each chunk with a free frame stands in one *class*: that of the
//! longest aligned run it holds, as a power of two (class 9: all of it is free). Of each class there is one bit a chunk.
//!
//! Whoever asks for a run gets one from the lowest chunk of the lowest class that will do. So single frames come from chunks that
//! are broken already, and whole chunks stay whole as long as can be. A search looks at one class's bits from the lowest
//! that can be set: at most one bit for each chunk of the machine, however memory is cut up.
//!
//! One lock, taken last and held for no longer than a search, guards the map; reading a single frame's bit needs none. The map is only told about frames whose
//! record says that nobody holds them, so that map and records can be checked against each other.

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Frames to the word.
const WORD: usize = 64;
/// log2 of a word's frames.
const WORD_ORDER: usize = WORD.ilog2() as usize;
/// log2 of a chunk's frames: the largest order there is.
pub const MAX_ORDER: u32 = 9;
/// Frames to the chunk.
const CHUNK: usize = 1 << MAX_ORDER;
/// Words to the chunk.
const CHUNK_WORDS: usize = CHUNK / WORD;
/// Orders, and so classes.
const CLASSES: usize = MAX_ORDER as usize + 1;

/// Words of memory that a map of so many frames takes: all zero, to be given to [`FreeMap::new`].
pub const fn words(frames: usize) -> usize {
    let chunks = frames.div_ceil(CHUNK);
    chunks.saturating_mul(CHUNK_WORDS).saturating_add(chunks.div_ceil(WORD).saturating_mul(CLASSES))
}

/// The lock's content: for each class, how many chunks stand in it, and the first of its words that may hold a bit.
#[derive(Debug)]
struct Hints {
    chunks: [usize; CLASSES],
    first: [usize; CLASSES],
}

impl Hints {
    const fn new() -> Self {
        Self { chunks: [0; CLASSES], first: [0; CLASSES] }
    }
}

// Orderings of the words below: relaxed under the lock, which orders them; a single frame's bit, which is read without it, is
// written with release and read with acquire; `free` is a number that nothing hangs on.

/// The map of free frames. Indices count from the first frame that the frame table covers.
#[derive(Debug)]
pub struct FreeMap {
    /// One bit a frame, whole chunks.
    words: &'static [AtomicU64],
    /// One bit a chunk for each class, one class after another.
    classes: &'static [AtomicU64],
    free: AtomicUsize,
    hints: Mutex<Hints>,
}

impl FreeMap {
    /// A map of so many frames over `memory`, [`words`] of it, all zero: nothing is free yet. With less memory it covers fewer frames.
    pub fn new(memory: &'static [AtomicU64], frames: usize) -> Self {
        let of_frames = frames.div_ceil(CHUNK).saturating_mul(CHUNK_WORDS);
        let enough = memory.len() >= words(frames);
        let (words, classes) = memory.split_at_checked(of_frames).filter(|_| enough).unwrap_or((&[], &[]));
        Self { words, classes, free: AtomicUsize::new(0), hints: Mutex::new(Hints::new()) }
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

    /// Takes one free frame and returns its index.
    pub fn take(&self) -> Option<usize> {
        self.take_run(0, usize::MAX)
    }

    /// Takes `2^order` free frames in a row, aligned to their number, all below index `end`; returns the first one's index. `None` if there
    /// is no such run.
    pub fn take_run(&self, order: u32, end: usize) -> Option<usize> {
        let mut hints = self.hints.lock();
        (order as usize..CLASSES).find_map(|class| self.take_from(&mut hints, class, order, end))
    }

    /// Takes a run out of the lowest chunk of a class.
    fn take_from(&self, hints: &mut Hints, class: usize, order: u32, end: usize) -> Option<usize> {
        if *hints.chunks.get(class)? == 0 {
            return None;
        }
        let start = *hints.first.get(class)?;
        let mut empty_so_far = true;
        for at in start..self.class_words() {
            let mut bits = self.class_word(class, at)?.load(Ordering::Relaxed);
            if empty_so_far {
                *hints.first.get_mut(class)? = at;
                empty_so_far = bits == 0;
            }
            while bits != 0 {
                let chunk = at.saturating_mul(WORD).saturating_add(bits.trailing_zeros() as usize);
                if chunk.saturating_mul(CHUNK) >= end {
                    return None;
                }
                if let Some(index) = self.take_in_chunk(hints, chunk, class, order, end) {
                    return Some(index);
                }
                // The run ends beyond the limit: so do all later chunks', and the search with them.
                bits &= bits.wrapping_sub(1);
            }
        }
        None
    }

    /// Takes the lowest fitting run of a chunk, which has one; `None` if that ends beyond `end`.
    fn take_in_chunk(
        &self,
        hints: &mut Hints,
        chunk: usize,
        class: usize,
        order: u32,
        end: usize,
    ) -> Option<usize> {
        let words = self.chunk(chunk);
        let (at, size) = (lowest_run(words, order)?, 1usize << order);
        let index = chunk.saturating_mul(CHUNK).saturating_add(at);
        if index.saturating_add(size) > end {
            return None;
        }
        change_run(words, at, size, false);
        self.free.fetch_sub(size, Ordering::Relaxed);
        let left = (0..=class).rev().find(|class| lowest_run(words, *class as u32).is_some());
        self.move_chunk(hints, chunk, Some(class), left);
        Some(index)
    }

    /// Takes `count` whole chunks in a row, the highest there are; returns the first frame's index.
    pub fn take_chunks(&self, count: usize) -> Option<usize> {
        const WHOLE: usize = CLASSES - 1;
        let mut hints = self.hints.lock();
        let mut run = 0usize;
        let mut chunks = (0..self.words.len() / CHUNK_WORDS).rev();
        let first = chunks.find(|chunk| {
            run = if self.is_in_class(*chunk, WHOLE) { run.saturating_add(1) } else { 0 };
            run >= count.max(1)
        })?;
        for chunk in first..first.saturating_add(run) {
            change_run(self.chunk(chunk), 0, CHUNK, false);
            self.free.fetch_sub(CHUNK, Ordering::Relaxed);
            self.move_chunk(&mut hints, chunk, Some(WHOLE), None);
        }
        Some(first.saturating_mul(CHUNK))
    }

    /// Makes the frame at `index` free; `false` if it was free already, or is none of ours.
    pub fn give(&self, index: usize) -> bool {
        self.give_range(index, index.saturating_add(1)) == 1
    }

    /// Makes the frames at `start..end` free. What is beyond the map is passed over. Returns how many weren't free before.
    pub fn give_range(&self, start: usize, end: usize) -> usize {
        let mut hints = self.hints.lock();
        let end = end.min(self.words.len().saturating_mul(WORD));
        let (mut given, mut at) = (0usize, start);
        while at < end {
            let chunk = at / CHUNK;
            let stop = chunk.saturating_add(1).saturating_mul(CHUNK).min(end);
            let count = stop.saturating_sub(at);
            given = given.saturating_add(self.give_in_chunk(&mut hints, chunk, at % CHUNK, count));
            at = stop;
        }
        given
    }

    fn give_in_chunk(&self, hints: &mut Hints, chunk: usize, at: usize, count: usize) -> usize {
        let words = self.chunk(chunk);
        let fresh = change_run(words, at, count, true);
        self.free.fetch_add(fresh, Ordering::Relaxed);
        let old = (0..CLASSES).rev().find(|class| self.is_in_class(chunk, *class));
        // Only runs that the given frames are part of can have grown.
        let grown = if count == 1 { class_at(words, at) } else { class_around(words, at, count) };
        self.move_chunk(hints, chunk, old, old.max(grown));
        fresh
    }

    /// How many bits are set: what [`Self::free_frames`] should say.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    /// How many chunks are entirely free.
    pub fn whole_chunks(&self) -> usize {
        let words = (0..self.class_words()).filter_map(|at| self.class_word(CLASSES.saturating_sub(1), at));
        words.map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    fn class_words(&self) -> usize {
        self.classes.len() / CLASSES
    }

    fn class_word(&self, class: usize, at: usize) -> Option<&AtomicU64> {
        self.classes.get(class.checked_mul(self.class_words())?.checked_add(at)?)
    }

    fn is_in_class(&self, chunk: usize, class: usize) -> bool {
        let word = self.class_word(class, chunk / WORD);
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (chunk % WORD) & 1 == 1)
    }

    fn move_chunk(&self, hints: &mut Hints, chunk: usize, from: Option<usize>, to: Option<usize>) {
        if from == to {
            return;
        }
        // Relaxed: the lock orders whatever it guards.
        let bit = 1u64 << (chunk % WORD);
        if let Some(word) = from.and_then(|class| self.class_word(class, chunk / WORD)) {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
        if let Some(count) = from.and_then(|class| hints.chunks.get_mut(class)) {
            *count = count.saturating_sub(1);
        }
        if let Some(word) = to.and_then(|class| self.class_word(class, chunk / WORD)) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
        if let Some(count) = to.and_then(|class| hints.chunks.get_mut(class)) {
            *count = count.saturating_add(1);
        }
        if let Some(hint) = to.and_then(|class| hints.first.get_mut(class)) {
            *hint = (*hint).min(chunk / WORD);
        }
    }

    /// The words of a chunk.
    fn chunk(&self, chunk: usize) -> &[AtomicU64] {
        let start = chunk.saturating_mul(CHUNK_WORDS);
        self.words.get(start..start.saturating_add(CHUNK_WORDS)).unwrap_or(&[])
    }
}

/// `count` low bits set, at most a word.
const fn low_bits(count: usize) -> u64 {
    match count {
        0 => 0,
        1..WORD => u64::MAX >> WORD.saturating_sub(count),
        _ => u64::MAX,
    }
}

/// Where the lowest free run of `2^order` frames, aligned to its length, begins in a chunk.
fn lowest_run(words: &[AtomicU64], order: u32) -> Option<usize> {
    let size = 1usize << order;
    if size >= WORD {
        let full = |word: &AtomicU64| word.load(Ordering::Relaxed) == u64::MAX;
        let run = words.chunks(size / WORD).position(|run| run.iter().all(full))?;
        return Some(run.saturating_mul(size));
    }
    words.iter().enumerate().find_map(|(at, word)| {
        let starts = run_starts(word.load(Ordering::Relaxed), order);
        (starts != 0).then(|| at.saturating_mul(WORD).saturating_add(starts.trailing_zeros() as usize))
    })
}

/// Every second bit, every fourth, and so on: where runs of 2, 4, ... frames can begin.
const ALIGNED: [u64; 5] = [
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
];

/// The bits of a word at which an aligned run of `2^order` set bits begins, for an order below 6.
fn run_starts(word: u64, order: u32) -> u64 {
    // Two runs of half the length, the second right after the first.
    let join = |word: u64, (step, aligned): (usize, &u64)| word & word >> (1u64 << step) & aligned;
    ALIGNED.iter().enumerate().take(order as usize).fold(word, join)
}

/// The class of the longest run that overlaps the frames `at..at + count` of the chunk. Each run holds one of half its size there.
fn class_around(words: &[AtomicU64], at: usize, count: usize) -> Option<usize> {
    (0..CLASSES).take_while(|class| has_run_around(words, at, count, *class as u32)).last()
}

/// As [`class_around`], of one frame: its runs of less than a word are all found in that word.
fn class_at(words: &[AtomicU64], at: usize) -> Option<usize> {
    let word = words.get(at / WORD)?.load(Ordering::Relaxed);
    if word == u64::MAX {
        let grows = |class: &usize| is_run(words, at & !(1usize << class).wrapping_sub(1), 1usize << class);
        return (WORD_ORDER..CLASSES).take_while(grows).last();
    }
    let is_free = |class: &usize| {
        let size = 1usize << class;
        let mask = low_bits(size) << ((at % WORD) & !size.wrapping_sub(1));
        word & mask == mask
    };
    (0..WORD_ORDER).take_while(is_free).last()
}

/// Whether an aligned run of `2^order` free frames overlaps the frames `at..at + count` of the chunk.
fn has_run_around(words: &[AtomicU64], at: usize, count: usize, order: u32) -> bool {
    let size = 1usize << order;
    let first = at & !size.wrapping_sub(1);
    (first..at.saturating_add(count)).step_by(size).any(|start| is_run(words, start, size))
}

fn is_run(words: &[AtomicU64], start: usize, size: usize) -> bool {
    let mask = low_bits(size) << (start % WORD);
    let mut run = words.iter().skip(start / WORD).take(size.div_ceil(WORD));
    run.all(|word| word.load(Ordering::Relaxed) & mask == mask)
}

/// Sets or clears the bits `at..at + count` of a chunk; returns how many changed.
#[inline]
fn change_run(words: &[AtomicU64], at: usize, count: usize, free: bool) -> usize {
    let end = at.saturating_add(count);
    let mut changed = 0usize;
    for (number, word) in words.iter().enumerate().take(end.div_ceil(WORD)).skip(at / WORD) {
        let start = number.saturating_mul(WORD);
        let mask = low_bits(end.saturating_sub(start)) & !low_bits(at.saturating_sub(start));
        let before = word.load(Ordering::Relaxed);
        // Release: who reads a bit without the lock sees that the record was vacated before.
        word.store(if free { before | mask } else { before & !mask }, Ordering::Release);
        let fresh = if free { mask & !before } else { mask };
        changed = changed.saturating_add(fresh.count_ones() as usize);
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(frames: usize) -> FreeMap {
        FreeMap::new(Box::leak((0..words(frames)).map(|_| AtomicU64::new(0)).collect()), frames)
    }

    #[test]
    fn a_frame_is_taken_once_and_can_be_given_back() {
        let map = map(1024);
        assert_eq!(map.take(), None);
        assert!(map.give(70));
        assert!(!map.give(70), "given twice");
        assert!(!map.give(1024), "beyond the map");
        assert_eq!((map.free_frames(), map.is_free(70), map.is_free(69)), (1, true, false));
        assert_eq!(map.take(), Some(70));
        assert_eq!((map.take(), map.free_frames()), (None, 0));
    }

    #[test]
    fn a_range_is_given_to_the_bit() {
        for (start, end) in
            [(0, 0), (0, 64), (3, 5), (60, 200), (64, 128), (1, 1000), (500, 1500), (1020, 1030)]
        {
            let map = map(1024);
            assert_eq!(map.give_range(start, end), start.max(end.min(1024)) - start);
            let free: Vec<_> = (0..1200).filter(|index| map.is_free(*index)).collect();
            assert_eq!(free, (start..end.min(1024)).collect::<Vec<_>>());
            assert_eq!(map.free_frames(), free.len());
        }
    }

    #[test]
    fn frames_come_in_ascending_order() {
        let map = map(2048);
        for index in (0..2048).rev() {
            map.give(index);
        }
        assert!((0..2048).all(|index| map.take() == Some(index)));
    }

    /// Whole chunks are broken only when nothing else is left.
    #[test]
    fn single_frames_leave_whole_chunks_whole() {
        let map = map(4 * CHUNK);
        map.give_range(0, 3 * CHUNK + 10);
        assert_eq!(map.whole_chunks(), 3);
        assert!((0..10).all(|step| map.take() == Some(3 * CHUNK + step)));
        assert_eq!((map.whole_chunks(), map.take_run(MAX_ORDER, usize::MAX)), (3, Some(0)));
        // A run of 64 breaks the second chunk; what is left of it serves the next ones.
        assert_eq!(
            (map.take_run(6, usize::MAX), map.take(), map.whole_chunks()),
            (Some(CHUNK), Some(CHUNK + 64), 1)
        );
        assert_eq!(map.take_run(5, usize::MAX), Some(CHUNK + 96));
        map.give_range(0, CHUNK);
        assert_eq!(map.take_run(MAX_ORDER, usize::MAX), Some(0), "given back, it is whole again");
    }

    #[test]
    fn whole_chunks_in_a_row_are_the_highest_there_are() {
        let map = map(8 * CHUNK);
        map.give_range(0, 8 * CHUNK);
        assert_eq!(map.take_run(0, usize::MAX), Some(0));
        map.give(0);
        // One frame is missing in chunk 5: above it there are two whole ones, below it five.
        assert_eq!(map.take_chunks(2), Some(6 * CHUNK));
        assert_eq!(map.take_chunks(1), Some(5 * CHUNK));
        map.give_range(5 * CHUNK, 8 * CHUNK - 1);
        assert_eq!((map.take_chunks(8), map.take_chunks(7)), (None, Some(0)));
        assert_eq!((map.free_frames(), map.count()), (CHUNK - 1, CHUNK - 1));
        classes_are_right(&map, 8 * CHUNK);
        assert_eq!(map.take_chunks(1), None);
        map.give_range(0, CHUNK);
        assert_eq!((map.take_chunks(0), map.free_frames()), (Some(0), CHUNK - 1), "one at least");
    }

    #[test]
    fn a_limit_holds_for_the_last_frame_of_a_run() {
        let map = map(2 * CHUNK);
        map.give_range(8, 2 * CHUNK);
        assert_eq!((map.take_run(0, 8), map.take_run(3, 15), map.take_run(9, CHUNK)), (None, None, None));
        assert_eq!((map.take_run(3, 16), map.take_run(0, 17)), (Some(8), Some(16)));
        assert_eq!((map.take_run(0, 17), map.take_run(MAX_ORDER, usize::MAX)), (None, Some(CHUNK)));
    }

    /// More chunks than a word of a class has bits: the search begins where the lowest can be, and forgets none on the way.
    #[test]
    fn chunks_of_later_words_are_found_and_earlier_ones_not_forgotten() {
        const FRAMES: usize = 200 * CHUNK;
        let map = map(FRAMES);
        let whole = |map: &FreeMap| map.take_run(MAX_ORDER, usize::MAX).map(|index| index / CHUNK);
        for chunk in [199, 130, 64, 63] {
            map.give_range(chunk * CHUNK, (chunk + 1) * CHUNK);
            classes_are_right(&map, FRAMES);
        }
        assert_eq!(map.take_run(MAX_ORDER, 63 * CHUNK + 100), None, "the lowest one ends beyond");
        assert_eq!((whole(&map), whole(&map), map.whole_chunks()), (Some(63), Some(64), 2));
        assert_eq!(whole(&map), Some(130));
        map.give_range(70 * CHUNK, 71 * CHUNK);
        assert_eq!(whole(&map), Some(70), "given back below what was looked at last");
        map.give_range(3 * CHUNK + 64, 3 * CHUNK + 192);
        assert_eq!(map.take_run(6, usize::MAX), Some(3 * CHUNK + 64), "a broken chunk before a whole one");
        assert_eq!((whole(&map), whole(&map)), (Some(199), None));
        classes_are_right(&map, FRAMES);
        assert_eq!((map.take_run(6, usize::MAX), map.take()), (Some(3 * CHUNK + 128), None));
    }

    #[test]
    fn too_little_memory_is_a_map_of_nothing() {
        let map = FreeMap::new(&[], 100);
        assert_eq!((map.give_range(0, 100), map.take(), map.free_frames()), (0, None, 0));
    }

    /// The classes, worked out anew from the bits.
    fn classes_are_right(map: &FreeMap, frames: usize) {
        for chunk in 0..frames.div_ceil(CHUNK) {
            let bits: Vec<_> = map.chunk(chunk).iter().map(|word| word.load(Ordering::Relaxed)).collect();
            let right = (0..CLASSES).rev().find(|class| {
                (0..CHUNK)
                    .step_by(1 << class)
                    .any(|at| (at..at + (1 << class)).all(|at| bits[at / 64] >> (at % 64) & 1 == 1))
            });
            let told: Vec<_> = (0..CLASSES).filter(|class| map.is_in_class(chunk, *class)).collect();
            assert_eq!(told, Vec::from_iter(right), "chunk {chunk}");
        }
        assert_eq!(map.count(), map.free_frames());
    }

    proptest! {
        /// The short way for one frame says what the general one says.
        #[test]
        fn the_class_of_one_frame(full in any::<[bool; CHUNK_WORDS]>(), mut word in any::<u64>(), mask in any::<u64>(), at in 0..CHUNK) {
            word |= mask;
            let words = full.map(|full| AtomicU64::new(if full { u64::MAX } else { word }));
            prop_assert_eq!(class_at(&words, at), class_around(&words, at, 1));
        }

        /// Against a set of numbers: what is given out was free, is aligned, and is refused only if there is none.
        #[test]
        fn runs_are_found_exactly_when_there_are_some(
            steps in prop::collection::vec((0u32..10, any::<u16>(), 0u8..4), 1..120),
        ) {
            const FRAMES: usize = 3 * CHUNK - 100;
            let map = map(FRAMES);
            let mut free: std::collections::BTreeSet<usize> = (0..FRAMES).collect();
            map.give_range(0, FRAMES);
            for (order, number, what) in steps {
                let (size, number) = (1usize << order, usize::from(number) % (FRAMES + 600));
                if what == 0 {
                    let fresh = (number..number + size).filter(|at| *at < 3 * CHUNK && free.insert(*at)).count();
                    prop_assert_eq!(map.give_range(number, number + size), fresh);
                } else {
                    let end = if what == 1 { number } else { usize::MAX };
                    let fits = |at: usize| at + size <= end && (at..at + size).all(|at| free.contains(&at));
                    let any = (0..3 * CHUNK).step_by(size).any(fits);
                    match map.take_run(order, end) {
                        None => prop_assert!(!any, "order {} below {}", order, end),
                        Some(at) => {
                            prop_assert!(fits(at) && at % size == 0);
                            (at..at + size).for_each(|at| { free.remove(&at); });
                        }
                    }
                }
                classes_are_right(&map, FRAMES);
                prop_assert_eq!(map.free_frames(), free.len());
            }
        }
    }
}
