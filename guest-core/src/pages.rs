//! Pages to work with.
//!
//! What lies between the boot stack and the end of the bootstrap region belongs to nobody yet, and is mapped linearly:
//! these are the pages that tours and tests map, unmap, turn into tables and turn back.

use crate::architecture::{PAGE_SHIFT, PAGE_SIZE};
use core::cell::Cell;

/// Pages that the allocator keeps track of, at most.
const CAPACITY: u64 = 1024;

/// A page of the domain's own, by its pseudo-physical number. Whoever has it may do with the page as it likes.
#[derive(PartialEq, Eq, Debug)]
pub struct Page {
    pfn: u64,
}

impl Page {
    /// Its pseudo-physical frame number.
    pub const fn pfn(&self) -> u64 {
        self.pfn
    }
}

/// Gives out single pages.
pub struct PageAllocator {
    first: u64,
    count: u64,
    used: [Cell<u64>; (CAPACITY / 64) as usize],
}

impl PageAllocator {
    /// An allocator of the pages from PFN `first` up to and without `end`.
    pub fn new(first: u64, end: u64) -> Self {
        Self {
            first,
            count: end.saturating_sub(first).min(CAPACITY),
            used: [const { Cell::new(0) }; (CAPACITY / 64) as usize],
        }
    }

    /// A page that nobody uses, still mapped writable at its linear address. Its content is whatever it was.
    pub fn allocate(&self) -> Option<Page> {
        let index = (0..self.count).find(|&index| !self.is_used(index))?;
        self.flip(index);
        Some(Page { pfn: self.first + index })
    }

    /// Takes a page back. It must be mapped writable at its linear address again.
    pub fn free(&self, page: Page) {
        self.flip(page.pfn - self.first);
    }

    /// How many pages are left.
    pub fn available(&self) -> u64 {
        (0..self.count).filter(|&index| !self.is_used(index)).count() as u64
    }

    fn is_used(&self, index: u64) -> bool {
        self.used[(index / 64) as usize].get() >> (index % 64) & 1 == 1
    }

    fn flip(&self, index: u64) {
        let word = &self.used[(index / 64) as usize];
        word.set(word.get() ^ 1 << (index % 64));
    }
}

/// The PFN of the page that holds linear address `address`.
pub const fn linear_pfn(virt_base: u64, address: u64) -> u64 {
    address.wrapping_sub(virt_base) >> PAGE_SHIFT
}

/// The linear address of page `pfn`.
pub const fn linear_address(virt_base: u64, pfn: u64) -> u64 {
    virt_base.wrapping_add(pfn.wrapping_mul(PAGE_SIZE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_given_out_once_until_it_is_freed() {
        let pages = PageAllocator::new(10, 12);
        let (one, two) = (pages.allocate().unwrap(), pages.allocate().unwrap());
        assert_eq!((one.pfn(), two.pfn()), (10, 11));
        assert_eq!(pages.allocate(), None);
        pages.free(one);
        assert_eq!(pages.available(), 1);
        assert_eq!(pages.allocate().map(|page| page.pfn()), Some(10));
    }

    #[test]
    fn an_empty_or_backward_range_has_no_pages() {
        assert_eq!(PageAllocator::new(5, 5).allocate(), None);
        assert_eq!(PageAllocator::new(5, 4).allocate(), None);
    }
}
