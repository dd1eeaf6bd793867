//! Numbers that look random and are the same for the same seed (SplitMix64, by Steele, Lea and Flood).

/// A stream of numbers.
pub struct Random(u64);

impl Random {
    /// The stream that belongs to `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `limit`; 0 when there is none.
    pub const fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.next() % limit }
    }

    /// True once in `often` times, on average.
    pub const fn once_in(&mut self, often: u64) -> bool {
        self.below(often) == 0
    }

    /// A number with as many significant bits as chance will have it.
    pub const fn of_any_size(&mut self) -> u64 {
        let shift = self.below(64);
        self.next() >> shift
    }
}

/// Scrambles a number: different inputs give different outputs.
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn a_seed_gives_the_numbers_that_others_publish_for_it() {
        let mut random = Random::new(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn nothing_is_below_nothing() {
        assert_eq!(Random::new(1).below(0), 0);
    }
}
