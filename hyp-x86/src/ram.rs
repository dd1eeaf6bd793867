//! Which machine memory is RAM.
//!
//! Firmware lists may be unsorted and may overlap. Here they become sorted stretches of whole frames that don't touch
//! each other, which is what the direct map is built from and what every access to a frame is checked against.

use hyp_core::address::{MachineFrame, PAGE_SHIFT, PAGE_SIZE};

/// Most stretches that are kept; firmware lists of real machines hold far fewer.
pub const CAPACITY: usize = 32;

/// A stretch of frames, `first` to `end` (not included).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stretch {
    /// Number of the first frame.
    pub first: u64,
    /// Number of the first frame beyond.
    pub end: u64,
}

/// The stretches, sorted, apart from each other.
#[derive(Clone, Debug)]
pub struct RamMap {
    stretches: [Stretch; CAPACITY],
    count: usize,
}

impl RamMap {
    /// The RAM that `regions` (byte ranges, start and end) hold below `limit` (bytes), rounded inwards to frames.
    ///
    /// `None` when there are more than [`CAPACITY`] stretches.
    pub fn new(regions: impl Iterator<Item = (u64, u64)>, limit: u64) -> Option<Self> {
        let mut map = Self { stretches: [Stretch::default(); CAPACITY], count: 0 };
        for (start, end) in regions {
            let first = start.div_ceil(PAGE_SIZE as u64);
            map.add(Stretch { first, end: end.min(limit) >> PAGE_SHIFT })?;
        }
        map.stretches[..map.count].sort_unstable_by_key(|stretch| stretch.first);
        Some(map)
    }

    /// Takes every stretch that overlaps or touches the new one into it, then adds it.
    fn add(&mut self, mut new: Stretch) -> Option<()> {
        if new.first >= new.end {
            return Some(());
        }
        let mut index = 0;
        while index < self.count {
            let old = self.stretches[index];
            if old.first <= new.end && new.first <= old.end {
                new = Stretch { first: old.first.min(new.first), end: old.end.max(new.end) };
                self.count -= 1;
                self.stretches[index] = self.stretches[self.count];
                index = 0;
            } else {
                index += 1;
            }
        }
        *self.stretches.get_mut(self.count)? = new;
        self.count += 1;
        Some(())
    }

    /// The stretches, lowest first.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches[..self.count]
    }

    /// The two largest stretches, the largest first; empty ones where there are fewer.
    pub fn largest(&self) -> [Stretch; 2] {
        self.stretches().iter().fold([Stretch::default(); 2], |[first, second], stretch| {
            let frames = |stretch: &Stretch| stretch.end - stretch.first;
            match frames(stretch) {
                count if count > frames(&first) => [*stretch, first],
                count if count > frames(&second) => [first, *stretch],
                _ => [first, second],
            }
        })
    }

    /// Whether the frame is RAM.
    #[inline]
    pub fn holds(&self, frame: MachineFrame) -> bool {
        let number = frame.number();
        self.stretches().iter().rev().any(|stretch| stretch.first <= number && number < stretch.end)
    }

    /// Whether all bytes from `start` to `end` (not included) are RAM.
    pub fn holds_bytes(&self, start: u64, end: u64) -> bool {
        let (first, end) = (start >> PAGE_SHIFT, end.div_ceil(PAGE_SIZE as u64));
        first >= end || self.stretches().iter().any(|stretch| stretch.first <= first && end <= stretch.end)
    }

    /// How many frames there are.
    pub fn frames(&self) -> u64 {
        self.stretches().iter().map(|stretch| stretch.end - stretch.first).sum()
    }

    /// Number of the first frame beyond all RAM.
    pub fn end(&self) -> u64 {
        self.stretches().last().map_or(0, |stretch| stretch.end)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn map(regions: &[(u64, u64)]) -> RamMap {
        RamMap::new(regions.iter().copied(), 1 << 40).unwrap()
    }

    #[test]
    fn the_largest_stretches_come_first() {
        let map = |regions: &[(u64, u64)]| {
            RamMap::new(regions.iter().map(|(first, end)| (first << 12, end << 12)), u64::MAX).unwrap()
        };
        let stretch = |first, end| Stretch { first, end };
        assert_eq!(map(&[(1, 3), (10, 20), (30, 35)]).largest(), [stretch(10, 20), stretch(30, 35)]);
        assert_eq!(map(&[(30, 35), (1, 3), (10, 13)]).largest(), [stretch(30, 35), stretch(10, 13)]);
        assert_eq!(map(&[(7, 9)]).largest(), [stretch(7, 9), Stretch::default()]);
    }

    #[test]
    fn sorts_merges_and_rounds_inwards() {
        let ram = map(&[(0x10_0000, 0x4000_0000), (0, 0x9_fc00), (0x3000_0000, 0x5000_0001), (0x10, 0x20)]);
        let expected = [Stretch { first: 0, end: 0x9f }, Stretch { first: 0x100, end: 0x5_0000 }];
        assert_eq!(ram.stretches(), expected);
        assert!(ram.holds_bytes(0x10_0000, 0x5000_0000));
        assert!(!ram.holds_bytes(0x9_e000, 0x10_1000));
    }

    #[test]
    fn too_many_stretches_are_refused() {
        assert!(RamMap::new((0..33).map(|at| (at * 0x4000, at * 0x4000 + 0x1000)), u64::MAX).is_none());
    }

    proptest! {
        #[test]
        fn holds_what_any_region_holds(regions in proptest::collection::vec((0u64..64, 0u64..64), 0..12), number in 0u64..64) {
            let regions: Vec<_> = regions.iter().map(|&(first, end)| (first << 12, end << 12)).collect();
            let expected = regions.iter().any(|&(start, end)| start <= number << 12 && (number + 1) << 12 <= end);
            let ram = map(&regions);
            prop_assert_eq!(ram.holds(MachineFrame::new(number).unwrap()), expected);
            prop_assert!(ram.stretches().windows(2).all(|pair| pair[0].end < pair[1].first));
        }

        #[test]
        fn arbitrary_regions_never_panic(regions in proptest::collection::vec(any::<(u64, u64)>(), 0..40)) {
            let _ = RamMap::new(regions.into_iter(), 1 << 46);
        }
    }
}
