//! What attacks work with: tables of their own, and 2 MiB in one piece.

use crate::architecture::{Architecture, Level, PAGE_SHIFT};
use crate::guest::Guest;
use crate::hypercalls::{reservation, reservation_of, update_entry};
use crate::pages::Page;
use crate::tests::Check;
use penumbra_abi::memory::{XENMEM_DECREASE_RESERVATION as DECREASE, XENMEM_POPULATE_PHYSMAP as POPULATE};
use penumbra_abi::{DOMID_SELF, Errno};

/// A slot of the root that nobody uses, in the kernel's half.
pub const SLOT: u64 = 302;
const START: u64 = 0xffff_0000_0000_0000 | SLOT << 39;
/// Frames of a superpage.
pub const SUPERPAGE: u64 = 512;

/// One table of each level below the root, in use, and empty but for the entries that lead from one to the next.
pub struct Tree<'a, A: Architecture> {
    guest: &'a Guest<A>,
    /// Levels 1 to 3.
    tables: [Page; 3],
}

impl<'a, A: Architecture> Tree<'a, A> {
    /// Builds the tables and puts them below the root.
    pub fn build(guest: &'a Guest<A>, check: &mut Check<A>) -> Option<Self> {
        let tables = [guest.zeroed_page()?, guest.zeroed_page()?, guest.zeroed_page()?];
        let tree = Self { guest, tables };
        for level in [3, 2] {
            guest.write(tree.table(level), 0, A::table(tree.frame(level - 1)));
        }
        for table in &tree.tables {
            check.done("a table is read-only", guest.set_writable(table, false));
        }
        check.done("the tables are in use", update_entry::<A>(root_slot(guest), A::table(tree.frame(3))));
        Some(tree)
    }

    /// The table of `level`, 1 to 3.
    pub fn table(&self, level: Level) -> &Page {
        &self.tables[usize::from(level - 1)]
    }

    /// Its machine frame.
    pub fn frame(&self, level: Level) -> u64 {
        self.guest.frame(self.table(level))
    }

    /// Machine address (bytes) of an entry.
    pub fn place(&self, level: Level, index: u64) -> u64 {
        (self.frame(level) << PAGE_SHIFT) | (index * 8)
    }

    /// Has an entry written.
    pub fn put(&self, level: Level, index: u64, entry: u64) -> Result<(), Errno> {
        update_entry::<A>(self.place(level, index), entry)
    }

    /// What an entry holds, hardware's own bits apart.
    pub fn entry(&self, level: Level, index: u64) -> u64 {
        self.guest.read(self.table(level), index as usize) & !A::HARDWARE_BITS
    }

    /// The address that entry `second` of level 2 and `first` of level 1 translate.
    pub fn address(second: u64, first: u64) -> u64 {
        START | second << 21 | first << PAGE_SHIFT
    }

    /// Takes the tables out of use; what their entries led to is free with that.
    pub fn remove(self, check: &mut Check<A>) {
        check.done("the tables are out of use", update_entry::<A>(root_slot(self.guest), 0));
        for page in self.tables {
            check.done("a table is a page again", self.guest.release(page));
        }
    }
}

/// Machine address of the root's entry for [`SLOT`].
pub fn root_slot<A: Architecture>(guest: &Guest<A>) -> u64 {
    (guest.root_frame() << PAGE_SHIFT) | (SLOT * 8)
}

/// 512 frames in a row, the first at a multiple of 512, in the place of the domain's last 512 pages. Nothing maps them.
pub struct Extent {
    /// The first frame.
    pub first: u64,
    /// Its page number.
    pfn: u64,
}

impl Extent {
    /// Gives the domain's last pages back and takes an extent of order 9 instead.
    pub fn take<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) -> Option<Self> {
        let pfn = guest.info.nr_pages.checked_sub(SUPERPAGE)?;
        let mut frames = core::array::from_fn::<u64, { SUPERPAGE as usize }, _>(|index| {
            guest.p2m(pfn + index as u64).unwrap_or(0)
        });
        let given = reservation::<A>(DECREASE, &mut frames);
        check.that("single pages are given back", given == Ok(SUPERPAGE));
        let mut list = [pfn];
        let taken = reservation_of::<A>(POPULATE, &mut list, 9, DOMID_SELF);
        check.that("2 MiB in one piece", taken == Ok(1) && list[0].is_multiple_of(SUPERPAGE));
        let extent = Self { first: list[0], pfn };
        (0..SUPERPAGE).for_each(|index| guest.set_p2m(pfn + index, extent.first + index));
        (taken == Ok(1)).then_some(extent)
    }

    /// Gives it back and takes single pages again.
    pub fn give_back<A: Architecture>(self, guest: &Guest<A>, check: &mut Check<A>) {
        let given = reservation_of::<A>(DECREASE, &mut [self.first], 9, DOMID_SELF);
        check.that("2 MiB are given back", given == Ok(1));
        let mut list =
            core::array::from_fn::<u64, { SUPERPAGE as usize }, _>(|index| self.pfn + index as u64);
        check.that("single pages again", reservation::<A>(POPULATE, &mut list) == Ok(SUPERPAGE));
        (self.pfn..).zip(list).for_each(|(pfn, frame)| guest.set_p2m(pfn, frame));
    }
}
