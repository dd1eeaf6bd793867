//! Memory before the frame table exists.
//!
//! The backend says which byte ranges are RAM and which of them are taken (image, modules, boot information); what is left
//! can be allocated, never to be given back. Whatever remains at the end becomes free frames. Everything here comes from
//! a boot loader, so it may be nonsense: ranges may overlap, wrap, or be too many, and nothing here can panic.

use crate::address::{MachineAddress, PAGE_BYTES};

/// Ranges of each kind that can be remembered.
const CAPACITY: usize = 64;

/// More ranges than can be remembered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooManyRanges;

/// A range of bytes, `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Span {
    start: u64,
    end: u64,
}

#[derive(Debug)]
struct Spans {
    spans: [Span; CAPACITY],
    count: usize,
}

impl Spans {
    const fn new() -> Self {
        Self { spans: [Span { start: 0, end: 0 }; CAPACITY], count: 0 }
    }

    fn push(&mut self, span: Span) -> Result<(), TooManyRanges> {
        *self.spans.get_mut(self.count).ok_or(TooManyRanges)? = span;
        self.count = self.count.saturating_add(1);
        Ok(())
    }

    fn iter(&self) -> impl Iterator<Item = Span> + '_ {
        self.spans.iter().take(self.count).copied()
    }

    /// The span that holds `address`, if any.
    fn holding(&self, address: u64) -> Option<Span> {
        self.iter().find(|span| span.start <= address && address < span.end)
    }
}

/// RAM, and what of it is taken.
#[derive(Debug)]
pub struct BootMemory {
    ram: Spans,
    taken: Spans,
}

impl Default for BootMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl BootMemory {
    /// No memory at all.
    pub const fn new() -> Self {
        Self { ram: Spans::new(), taken: Spans::new() }
    }

    /// Says that the bytes `start..end` (machine addresses) are RAM; rounded inwards to whole frames.
    ///
    /// # Errors
    /// [`TooManyRanges`]; the range is then not used.
    pub fn add_ram(&mut self, start: u64, end: u64) -> Result<(), TooManyRanges> {
        let limit = crate::address::MachineFrame::LIMIT << crate::address::PAGE_SHIFT;
        let start = start.min(limit).checked_next_multiple_of(PAGE_BYTES).unwrap_or(limit);
        let end = round_down(end.min(limit));
        if start < end { self.ram.push(Span { start, end }) } else { Ok(()) }
    }

    /// Says that the bytes `start..end` are in use; rounded outwards to whole frames.
    ///
    /// # Errors
    /// [`TooManyRanges`]: then memory isn't safe to use.
    pub fn reserve(&mut self, start: u64, end: u64) -> Result<(), TooManyRanges> {
        let end = end.checked_next_multiple_of(PAGE_BYTES).unwrap_or(u64::MAX);
        let start = round_down(start);
        if start < end { self.taken.push(Span { start, end }) } else { Ok(()) }
    }

    /// Takes `bytes` bytes, rounded up to whole frames, at a multiple of `align` (a power of two, at least a frame):
    /// the lowest place there is. `None` when there is no such place.
    pub fn allocate(&mut self, bytes: u64, align: u64) -> Option<MachineAddress> {
        let bytes = bytes.max(1).checked_next_multiple_of(PAGE_BYTES)?;
        let align = align.max(PAGE_BYTES);
        let start = self.ram.iter().filter_map(|ram| self.fit(ram, bytes, align)).min()?;
        self.taken.push(Span { start, end: start.checked_add(bytes)? }).ok()?;
        MachineAddress::new(start)
    }

    fn fit(&self, ram: Span, bytes: u64, align: u64) -> Option<u64> {
        let mut start = ram.start.checked_next_multiple_of(align)?;
        loop {
            let end = start.checked_add(bytes).filter(|end| *end <= ram.end)?;
            match self.taken.iter().find(|taken| taken.start < end && start < taken.end) {
                // Strictly upwards, so this ends.
                Some(taken) => start = taken.end.checked_next_multiple_of(align)?,
                None => return Some(start),
            }
        }
    }

    /// One past the highest byte of RAM; 0 without RAM.
    pub fn end_of_ram(&self) -> u64 {
        self.ram.iter().map(|span| span.end).max().unwrap_or(0)
    }

    /// The lowest byte of RAM; 0 without RAM.
    pub fn start_of_ram(&self) -> u64 {
        self.ram.iter().map(|span| span.start).min().unwrap_or(0)
    }

    /// The ranges of RAM as they were added: `(start, end)` in bytes.
    pub fn ram(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ram.iter().map(|span| (span.start, span.end))
    }

    /// Calls `visit` with each maximal range of frames that is RAM and not taken: `(first, one past the last)`, as
    /// frame numbers, each frame at most once for each range of RAM that holds it.
    pub fn for_each_free_range(&self, mut visit: impl FnMut(u64, u64)) {
        for ram in self.ram.iter() {
            let mut at = ram.start;
            while at < ram.end {
                if let Some(taken) = self.taken.holding(at) {
                    at = taken.end;
                    continue;
                }
                let next = self.taken.iter().map(|taken| taken.start).filter(|start| *start > at).min();
                let end = next.unwrap_or(ram.end).min(ram.end);
                visit(at / PAGE_BYTES, end / PAGE_BYTES);
                at = end;
            }
        }
    }
}

fn round_down(bytes: u64) -> u64 {
    bytes & !PAGE_BYTES.wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn allocations_are_aligned_and_apart() {
        let mut memory = BootMemory::new();
        memory.add_ram(0x1000, 0x40_0000).unwrap();
        memory.reserve(0x20_0000, 0x20_0001).unwrap();
        assert_eq!(memory.allocate(1, 1).unwrap().bytes(), 0x1000);
        assert_eq!(memory.allocate(0x1001, 0x10_0000).unwrap().bytes(), 0x10_0000);
        assert_eq!(memory.allocate(0x1000, 0x20_0000), None, "2 MiB is reserved, 4 MiB is the end");
        let mut free = 0;
        memory.for_each_free_range(|first, end| free += end - first);
        assert_eq!(free, 0x3ff - 1 - 1 - 2);
    }

    #[test]
    fn the_ends_of_ram_are_the_outermost_whole_frames() {
        let mut memory = BootMemory::new();
        assert_eq!((memory.start_of_ram(), memory.end_of_ram()), (0, 0));
        memory.add_ram(0x9001, 0xb000).unwrap();
        memory.add_ram(0x4000, 0x6fff).unwrap();
        assert_eq!((memory.start_of_ram(), memory.end_of_ram()), (0x4000, 0xb000));
        let limit = crate::address::MachineFrame::LIMIT << crate::address::PAGE_SHIFT;
        memory.add_ram(1 << 40, u64::MAX).unwrap();
        assert_eq!(memory.end_of_ram(), limit, "no frame has a higher number");
        memory.add_ram(limit, u64::MAX).unwrap();
        assert_eq!(memory.ram().count(), 3);
    }

    /// A place is as good between two others as at the end.
    #[test]
    fn an_allocation_fits_exactly_between_what_is_taken() {
        let mut memory = BootMemory::new();
        memory.add_ram(0x1000, 0x9000).unwrap();
        memory.reserve(0x1000, 0x2000).unwrap();
        memory.reserve(0x4000, 0x5000).unwrap();
        assert_eq!(memory.allocate(0x2000, 1).unwrap().bytes(), 0x2000);
        assert_eq!(memory.allocate(0x4000, 1).unwrap().bytes(), 0x5000);
        assert_eq!(memory.allocate(1, 1), None);
    }

    #[test]
    fn an_empty_range_takes_nothing_and_no_room() {
        let mut memory = BootMemory::new();
        for _ in 0..=CAPACITY {
            memory.add_ram(0x3000, 0x3000).unwrap();
            memory.add_ram(0x3001, 0x3fff).unwrap();
            memory.reserve(0x2000, 0x2000).unwrap();
        }
        memory.add_ram(0x1000, 0x3000).unwrap();
        assert_eq!(memory.allocate(0x2000, 1).unwrap().bytes(), 0x1000);
    }

    proptest! {
        #[test]
        fn nonsense_from_a_boot_loader_is_survived(
            ram in prop::collection::vec(any::<(u64, u64)>(), 0..70),
            taken in prop::collection::vec(any::<(u64, u64)>(), 0..70),
            bytes in any::<u64>(), align in 0u32..64,
        ) {
            let mut memory = BootMemory::new();
            for (start, end) in ram { let _ = memory.add_ram(start, end); }
            for (start, end) in taken { let _ = memory.reserve(start, end); }
            let before = memory.allocate(bytes, 1 << align);
            if let Some(at) = before {
                memory.for_each_free_range(|first, end| assert!(
                    at.bytes() >> 12 < first || at.bytes() >> 12 >= end, "allocated memory is still free"));
            }
        }
    }
}
