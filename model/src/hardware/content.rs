//! What frames hold: twice.
//!
//! *Cached* words are what CPUs and table walkers see, who are all coherent with each other. *Home* words are what stands in memory itself,
//! at the point of coherency, which only accesses past the caches see. A line is *dirty* when it was written and has not gone
//! home; *split* when home was written past it, and then there are two truths: a line that is evicted can bring back either.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hyp_core::address::MachineFrame;

/// Words of a frame.
pub const WORDS: usize = 512;
/// Words of a cache line, of 64 bytes.
const LINE: usize = 8;
/// Number of the first frame of RAM. The control domain is built first, and its tables lie in the first sixteen frames; behind them,
/// at [`SUPERPAGE`], it has as many that a superpage can map.
pub const FIRST: u64 = 1008;
/// Number of a frame at which a superpage can begin.
pub const SUPERPAGE: u64 = 1024;
/// All frames of RAM.
pub const FRAMES: usize = 160;
/// One past the highest frame.
pub const END: u64 = FIRST + FRAMES as u64;

/// The place of a frame among all frames of RAM, if it is one.
#[inline]
pub fn slot(frame: u64) -> Option<usize> {
    (FIRST..END).contains(&frame).then(|| (frame - FIRST) as usize)
}

/// The number of the frame in a place.
#[inline]
pub fn number(slot: usize) -> u64 {
    FIRST + slot as u64
}

/// The frame in a place.
///
/// # Panics
/// Never: all numbers of RAM are frame numbers.
pub fn frame(slot: usize) -> MachineFrame {
    MachineFrame::new(number(slot)).expect("a frame number")
}

/// All frames' content.
pub struct Content {
    cached: Vec<AtomicU64>,
    home: Vec<AtomicU64>,
    dirty: Vec<AtomicU64>,
    split: Vec<AtomicU64>,
}

impl Default for Content {
    fn default() -> Self {
        Self::new()
    }
}

impl Content {
    /// Rubbish, the same in caches and in memory.
    pub fn new() -> Self {
        let rubbish = || (0..FRAMES * WORDS).map(|word| AtomicU64::new(0xdead_beef ^ word as u64)).collect();
        let zeros = || (0..FRAMES).map(|_| AtomicU64::new(0)).collect();
        Self { cached: rubbish(), home: rubbish(), dirty: zeros(), split: zeros() }
    }

    /// What a coherent reader sees.
    #[inline]
    pub fn read(&self, slot: usize, index: usize) -> u64 {
        self.cached[slot * WORDS + index].load(Relaxed)
    }

    /// A coherent write: it stays in a cache for now.
    #[inline]
    pub fn write(&self, slot: usize, index: usize, value: u64) {
        self.cached[slot * WORDS + index].store(value, Relaxed);
        self.mark(slot, index);
    }

    #[inline]
    fn mark(&self, slot: usize, index: usize) {
        self.dirty[slot].store(self.dirty[slot].load(Relaxed) | 1 << (index / LINE), Relaxed);
    }

    /// A word itself, which is written behind the model's back: its line counts as dirty.
    pub fn word(&self, slot: usize, index: usize) -> &AtomicU64 {
        self.mark(slot, index);
        &self.cached[slot * WORDS + index]
    }

    /// A coherent compare-and-swap.
    ///
    /// # Errors
    /// What stands there instead.
    pub fn exchange(&self, slot: usize, index: usize, current: u64, new: u64) -> Result<(), u64> {
        self.cached[slot * WORDS + index].compare_exchange(current, new, Relaxed, Relaxed)?;
        self.mark(slot, index);
        Ok(())
    }

    /// What a reader past the caches sees.
    pub fn read_home(&self, slot: usize, index: usize) -> u64 {
        self.home[slot * WORDS + index].load(Relaxed)
    }

    /// A write past the caches.
    pub fn write_home(&self, slot: usize, index: usize, value: u64) {
        self.home[slot * WORDS + index].store(value, Relaxed);
        self.split[slot].fetch_or(1 << (index / LINE), Relaxed);
    }

    /// Writes dirty lines home, and forgets the rest, so that both are one again: clean and invalidate. Of a line that is split and clean,
    /// memory wins; of one that is split and dirty, the cache.
    pub fn clean(&self, slot: usize) {
        let (dirty, split) = (self.dirty[slot].swap(0, Relaxed), self.split[slot].swap(0, Relaxed));
        for line in (0..WORDS / LINE).filter(|line| (dirty | split) >> line & 1 != 0) {
            for at in slot * WORDS + line * LINE..slot * WORDS + (line + 1) * LINE {
                let (from, to) = match dirty >> line & 1 {
                    0 => (&self.home[at], &self.cached[at]),
                    _ => (&self.cached[at], &self.home[at]),
                };
                to.store(from.load(Relaxed), Relaxed);
            }
        }
    }

    /// Forgets what the caches hold and has not gone home (`DC IVAC`).
    pub fn invalidate(&self, slot: usize) {
        for at in slot * WORDS..(slot + 1) * WORDS {
            self.cached[at].store(self.home[at].load(Relaxed), Relaxed);
        }
        self.dirty[slot].store(0, Relaxed);
        self.split[slot].store(0, Relaxed);
    }

    /// Zeroes, and cleans if asked to.
    pub fn scrub(&self, slot: usize, clean: bool) {
        for at in slot * WORDS..(slot + 1) * WORDS {
            self.cached[at].store(0, Relaxed);
            if clean {
                self.home[at].store(0, Relaxed);
            }
        }
        self.dirty[slot].store(if clean { 0 } else { !0 }, Relaxed);
        self.split[slot].store(0, Relaxed);
    }

    /// Whether the line that holds a word has two truths.
    #[inline]
    pub fn is_split(&self, slot: usize, index: usize) -> bool {
        self.split[slot].load(Relaxed) >> (index / LINE) & 1 != 0
    }

    /// Whether nothing but zeros is there, in caches and in memory, and no line is on its way.
    pub fn is_blank(&self, slot: usize) -> bool {
        let words = slot * WORDS..(slot + 1) * WORDS;
        let zero = |words: &[AtomicU64]| words.iter().all(|word| word.load(Relaxed) == 0);
        self.dirty[slot].load(Relaxed) | self.split[slot].load(Relaxed) == 0
            && zero(&self.cached[words.clone()])
            && zero(&self.home[words])
    }
}
