//! Tables that take as long as any to be hooked in again: as many as a domain may have out of their trees, emptied by writes of its own,
//! where each of their entries alone held a page that the domain had given back. So each entry frees a page. Or they are rewritten: each entry
//! leads to another page than before, and only the last table's entries free one.

use crate::architecture::{Architecture, TABLE_ENTRIES};
use crate::guest::Guest;
use crate::hypercalls::{address_of, call, mmuext};
use crate::pages::Page;
use penumbra_abi::memory::{MemoryReservation, XENMEM_DECREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP};
use penumbra_abi::mmu::{MMUEXT_PIN_L2_TABLE, MMUEXT_UNPIN_TABLE};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// Tables that a domain may have unhooked.
const UNHOOKED: usize = 4;

/// The tables, of level 1, below a pinned one of level 2. They hold the domain's highest pages, which nothing else maps.
pub struct EmptiedTables<'a, A: Architecture> {
    guest: &'a Guest<A>,
    /// A list of frames, for the hypervisor.
    list: Page,
    second: Page,
    tables: [Page; UNHOOKED],
    /// The first table whose pages were given back.
    first_given: usize,
}

impl<'a, A: Architecture> EmptiedTables<'a, A> {
    /// Full tables, in their tree.
    ///
    /// # Errors
    /// There is no memory, or what the hypervisor refuses.
    pub fn new(guest: &'a Guest<A>) -> Result<Self, Errno> {
        Self::from_table(guest, 0)
    }

    /// The same, with no page of a table given back but of the last.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn to_rewrite(guest: &'a Guest<A>) -> Result<Self, Errno> {
        Self::from_table(guest, UNHOOKED - 1)
    }

    fn from_table(guest: &'a Guest<A>, first_given: usize) -> Result<Self, Errno> {
        let page = || guest.zeroed_page().ok_or(Errno::ENOMEM);
        let tables = [page()?, page()?, page()?, page()?];
        let made = Self { guest, list: page()?, second: page()?, tables, first_given };
        made.build()?;
        for index in first_given..UNHOOKED {
            let frame = |slot| guest.p2m(made.pfn(index, slot)).unwrap_or(0);
            (0..TABLE_ENTRIES).for_each(|slot| guest.write(&made.list, slot, frame(slot)));
            made.all_of(XENMEM_DECREASE_RESERVATION)?;
        }
        Ok(made)
    }

    fn build(&self) -> Result<(), Errno> {
        let Self { guest, second, .. } = self;
        for (index, table) in self.tables.iter().enumerate() {
            for slot in 0..TABLE_ENTRIES {
                guest.write(table, slot, A::leaf(guest.p2m(self.pfn(index, slot)).unwrap_or(0), true));
            }
            guest.set_writable(table, false)?;
            guest.write(second, index, A::table(guest.frame(table)));
        }
        guest.set_writable(second, false)?;
        mmuext::<A>(MMUEXT_PIN_L2_TABLE, guest.frame(second), 0)
    }

    fn pfn(&self, table: usize, slot: usize) -> u64 {
        self.guest.info.nr_pages - 1 - (table * TABLE_ENTRIES + slot) as u64
    }

    /// Has memory given back, or taken, for the whole list.
    fn all_of(&self, operation: u64) -> Result<(), Errno> {
        let extent_start = self.guest.address(&self.list);
        let nr_extents = TABLE_ENTRIES as u64;
        let request = MemoryReservation { extent_start, nr_extents, domid: DOMID_SELF, ..Default::default() };
        let done = call::<A>(number::MEMORY_OP, &[operation, address_of(&request)])?;
        if done == nr_extents { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// Unhooks and empties them all. From here on, until something has them hooked in, no hypercall but Penumbra's own.
    ///
    /// # Errors
    /// What the hypervisor refuses.
    pub fn take_out(&self) -> Result<(), Errno> {
        self.unhook(|_, _| 0)
    }

    /// The same, but has each entry lead to another page than before, which the hypervisor has to make an entry that it admits.
    ///
    /// # Errors
    /// What the hypervisor refuses.
    pub fn rewrite(&self) -> Result<(), Errno> {
        self.unhook(|table, slot| {
            let other = self.pfn(table + UNHOOKED, slot);
            A::leaf(self.guest.p2m(other).unwrap_or(0), true) & !A::ADDED_TO_LEAVES
        })
    }

    fn unhook(&self, entry: impl Fn(usize, usize) -> u64) -> Result<(), Errno> {
        for (index, table) in self.tables.iter().enumerate() {
            call::<A>(number::PENUMBRA, &[number::PENUMBRA_UNHOOK, self.guest.address(table)])?;
            (0..TABLE_ENTRIES).for_each(|slot| self.guest.write(table, slot, entry(index, slot)));
        }
        Ok(())
    }

    /// Where the first of them can be written while it is out, and not otherwise.
    pub fn place(&self) -> u64 {
        self.guest.address(&self.tables[0])
    }

    /// Whether they are all hooked in: the first one that isn't can be written still.
    pub fn are_in(&self) -> bool {
        !self.tables.iter().any(|table| A::try_write_word(self.guest.address(table), 0))
    }

    /// Takes the tree apart, and has new pages in place of those that were given back.
    ///
    /// # Errors
    /// What the hypervisor refuses.
    pub fn put_back(self) -> Result<(), Errno> {
        let guest = self.guest;
        mmuext::<A>(MMUEXT_UNPIN_TABLE, guest.frame(&self.second), 0)?;
        for index in self.first_given..UNHOOKED {
            (0..TABLE_ENTRIES).for_each(|slot| guest.write(&self.list, slot, self.pfn(index, slot)));
            self.all_of(XENMEM_POPULATE_PHYSMAP)?;
            (0..TABLE_ENTRIES)
                .for_each(|slot| guest.set_p2m(self.pfn(index, slot), guest.read(&self.list, slot)));
        }
        guest.pages.free(self.list);
        for page in self.tables.into_iter().chain([self.second]) {
            guest.release(page)?;
        }
        Ok(())
    }
}
