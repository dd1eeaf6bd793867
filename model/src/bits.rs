//! A set of frame slots, as a few words.

/// Frames that a modelled machine can have.
pub const CAPACITY: usize = 256;
const WORDS: usize = CAPACITY / 64;

/// A set of numbers below [`CAPACITY`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bits([u64; WORDS]);

impl Bits {
    /// No number at all.
    pub const EMPTY: Self = Self([0; WORDS]);

    /// Whether `slot` is in the set.
    #[inline]
    pub fn has(&self, slot: usize) -> bool {
        self.0[slot / 64] >> (slot % 64) & 1 != 0
    }

    /// Adds `slot`; `true` if it was not there.
    #[inline]
    pub fn insert(&mut self, slot: usize) -> bool {
        let bit = 1 << (slot % 64);
        let fresh = self.0[slot / 64] & bit == 0;
        self.0[slot / 64] |= bit;
        fresh
    }

    /// Takes `slot` away.
    pub fn remove(&mut self, slot: usize) {
        self.0[slot / 64] &= !(1 << (slot % 64));
    }

    /// The lowest number that is here and not in `other`.
    #[inline]
    pub fn first_outside(&self, other: &Self) -> Option<usize> {
        let mut words = self.0.iter().zip(&other.0).enumerate();
        words.find_map(|(at, (mine, theirs))| {
            let left = mine & !theirs;
            (left != 0).then(|| at * 64 + left.trailing_zeros() as usize)
        })
    }

    /// All that is in either set.
    pub fn union(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] | other.0[at]))
    }
}
