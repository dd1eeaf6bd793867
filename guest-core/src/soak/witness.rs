//! The neighbour that must lose nothing.
//!
//! It maps all of its memory, fills what it doesn't need with a pattern that names every word, and remembers its page
//! tables, its P2M and the read-only part of its own image. Each round looks at all of it, changes the pattern, uses
//! a few hypercalls as an honest guest would, and says one line; the lines must come whole and in order.

use super::random::mix;
use crate::architecture::{Architecture, PAGE_SIZE, TABLE_ENTRIES, table_index};
use crate::guest::Guest;
use crate::hypercalls::{self, update_entry, update_va_mapping};
use crate::pages::linear_address;
use crate::say;
use core::ops::Range;

/// Pages that one level-1 table maps.
const BLOCK: u64 = TABLE_ENTRIES as u64;
/// The most pages of page tables that are looked at.
const TABLES: usize = 64;

/// Looks after its memory for ever.
pub fn run<A: Architecture>(guest: &Guest<A>) -> ! {
    let Some(witness) = Witness::new(guest) else {
        say!(A, "witness: LOST its start: its memory can't be mapped");
        loop {
            hypercalls::block::<A>();
        }
    };
    let mut round = 0;
    witness.fill(round);
    loop {
        let lost = witness.check(round);
        round += 1;
        witness.fill(round);
        match lost {
            None => {
                say!(A, "witness: round {round}, {} pages, sum {:#x}", witness.pages(), mix(round));
            }
            Some(what) => say!(A, "witness: LOST {what} in round {round}"),
        }
        hypercalls::yield_cpu::<A>();
    }
}

struct Witness<'a, A: Architecture> {
    guest: &'a Guest<A>,
    /// Pages that hold the pattern.
    pattern: Range<u64>,
    /// Machine frames of the domain's page tables, and what they held.
    tables: [(u64, u64); TABLES],
    table_count: usize,
    image: u64,
    list: u64,
}

impl<'a, A: Architecture> Witness<'a, A> {
    fn new(guest: &'a Guest<A>) -> Option<Self> {
        let first_free = guest.pages.allocate()?;
        // Whatever `map_all` takes as tables comes before the pattern.
        let blocks = guest.info.nr_pages.div_ceil(BLOCK);
        let start = first_free.pfn() + 1 + blocks;
        map_all(guest)?;
        let mut witness = Self {
            guest,
            pattern: start..guest.info.nr_pages,
            tables: [(0, 0); TABLES],
            table_count: 0,
            image: 0,
            list: 0,
        };
        witness.remember_tables();
        (witness.image, witness.list) = (witness.sum_of_image(), witness.sum_of_list());
        Some(witness)
    }

    const fn pages(&self) -> u64 {
        self.pattern.end - self.pattern.start
    }

    fn words(&self) -> impl Iterator<Item = (u64, u64)> {
        let address = |pfn| linear_address(A::VIRT_BASE, pfn);
        self.pattern.clone().flat_map(move |pfn| {
            (0..PAGE_SIZE / 8).map(move |index| (address(pfn) + index * 8, pfn << 9 | index))
        })
    }

    fn fill(&self, round: u64) {
        self.words().for_each(|(address, name)| A::write_word(address, name ^ mix(round)));
    }

    /// What isn't as it was, if anything.
    fn check(&self, round: u64) -> Option<&'static str> {
        if self.words().any(|(address, name)| A::read_word(address) != name ^ mix(round)) {
            return Some("a word of its memory");
        }
        if self.tables().any(|&(frame, sum)| self.sum_of_table(frame) != sum) {
            return Some("an entry of its page tables");
        }
        if self.image != self.sum_of_image() {
            return Some("a word of its image");
        }
        if self.list != self.sum_of_list() {
            return Some("a frame of its list");
        }
        let named = |pfn| self.guest.p2m(pfn).is_some_and(|mfn| self.guest.m2p(mfn) == pfn);
        if !(0..self.guest.info.nr_pages).all(named) {
            return Some("a name in the M2P");
        }
        (!self.is_served(round)).then_some("the service of the hypervisor")
    }

    /// Whether a mapping changes and changes back, as for any guest.
    fn is_served(&self, round: u64) -> bool {
        let pfn = self.pattern.start + round % self.pages();
        let address = linear_address(A::VIRT_BASE, pfn);
        let (Some(step), Some(frame)) = (self.guest.leaf(address), self.guest.p2m(pfn)) else { return false };
        let read_only = update_va_mapping::<A>(address, A::leaf(frame, false)).is_ok();
        let refuses = !A::try_write_word(address, 0);
        read_only && refuses && update_va_mapping::<A>(address, step.entry).is_ok()
    }

    fn tables(&self) -> impl Iterator<Item = &(u64, u64)> {
        self.tables.iter().take(self.table_count)
    }

    /// Every table that leads to a page of the linear mapping, once.
    fn remember_tables(&mut self) {
        let guest = self.guest;
        for pfn in (0..guest.info.nr_pages).step_by(BLOCK as usize) {
            for step in guest.walk(linear_address(A::VIRT_BASE, pfn)) {
                let known = self.tables().any(|&(frame, _)| frame == step.table_frame);
                if !known && self.table_count < TABLES {
                    self.tables[self.table_count] = (step.table_frame, self.sum_of_table(step.table_frame));
                    self.table_count += 1;
                }
            }
        }
    }

    fn sum_of_table(&self, frame: u64) -> u64 {
        let start = self.guest.linear_of_frame(frame);
        sum_words::<A>(start..start + PAGE_SIZE, |index, word| mix(word & !A::HARDWARE_BITS ^ mix(index)))
    }

    fn sum_of_image(&self) -> u64 {
        sum_words::<A>(A::read_only_image(), |index, word| mix(word ^ mix(index)))
    }

    fn sum_of_list(&self) -> u64 {
        let start = self.guest.info.mfn_list;
        sum_words::<A>(start..start + self.guest.info.nr_pages * 8, |index, word| mix(word ^ mix(index)))
    }
}

fn sum_words<A: Architecture>(bytes: Range<u64>, of: impl Fn(u64, u64) -> u64) -> u64 {
    let words = (bytes.end - bytes.start) / 8;
    (0..words).fold(0, |sum, index| sum.wrapping_add(of(index, A::read_word(bytes.start + index * 8))))
}

/// Maps what the bootstrap region leaves out: one level-1 table for each block that has none.
fn map_all<A: Architecture>(guest: &Guest<A>) -> Option<()> {
    for first in (0..guest.info.nr_pages).step_by(BLOCK as usize) {
        let address = linear_address(A::VIRT_BASE, first);
        let step = guest.walk(address).last()?;
        match step.level {
            1 => (first..first + BLOCK)
                .filter(|&pfn| pfn < guest.info.nr_pages)
                .try_for_each(|pfn| map(guest, pfn))?,
            2 => hook(guest, first, step.machine_address())?,
            _ => return None,
        }
    }
    Some(())
}

/// Maps a page whose level-1 entry is still empty.
fn map<A: Architecture>(guest: &Guest<A>, pfn: u64) -> Option<()> {
    let address = linear_address(A::VIRT_BASE, pfn);
    match guest.mapping(address) {
        Some(_) => Some(()),
        None => update_va_mapping::<A>(address, A::leaf(guest.p2m(pfn)?, true)).ok(),
    }
}

/// Puts a new table, which maps the block from page `first` on, at the level-2 entry `place`.
fn hook<A: Architecture>(guest: &Guest<A>, first: u64, place: u64) -> Option<()> {
    let table = guest.zeroed_page()?;
    for pfn in (first..first + BLOCK).filter(|&pfn| pfn < guest.info.nr_pages) {
        let index = table_index(linear_address(A::VIRT_BASE, pfn), 1);
        guest.write(&table, index, A::leaf(guest.p2m(pfn)?, true));
    }
    guest.set_writable(&table, false).ok()?;
    update_entry::<A>(place, A::table(guest.frame(&table))).ok()
}
