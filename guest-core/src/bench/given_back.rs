//! A superpage of which a table holds the last that there is: when its entry goes, 512 frames are freed at once.
//!
//! The longest single write to a table there is, and a long single step of a table's end. Here it comes at the end of a multicall that has spent
//! nearly all that may be spent between two preemption points.

use super::stretches::longest;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::{address_of, address_of_mut, call, mmuext};
use crate::pages::Page;
use penumbra_abi::memory::{
    MemoryExchange, MemoryReservation, XENMEM_DECREASE_RESERVATION, XENMEM_EXCHANGE, XENMEM_POPULATE_PHYSMAP,
};
use penumbra_abi::mmu::{MMUEXT_PIN_L2_TABLE, MMUEXT_UNPIN_TABLE};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// log2 of the pages of a superpage, and their number.
pub const ORDER: u32 = 9;
/// See [`ORDER`].
pub const PAGES: u64 = 1 << ORDER;
/// Words of a multicall's entry.
const ENTRY_WORDS: usize = 8;

/// A call of a multicall: its number and its arguments.
pub type Entry = [u64; 6];

/// The superpage, in place of the domain's last pages, and the pinned table of level 2 that maps it.
pub struct GivenBack<'a, A: Architecture> {
    guest: &'a Guest<A>,
    list: Page,
    /// The table.
    pub table: Page,
}

impl<'a, A: Architecture> GivenBack<'a, A> {
    /// Gives pages for a superpage, maps that in entry `slot` of the table, and gives it back.
    ///
    /// # Errors
    /// There is no memory, or what the hypervisor refuses.
    pub fn new(guest: &'a Guest<A>, slot: usize) -> Result<Self, Errno> {
        let page = || guest.zeroed_page().ok_or(Errno::ENOMEM);
        let (list, table) = (page()?, page()?);
        let mut name = base(guest);
        (0..PAGES).for_each(|index| guest.write(&list, index as usize, guest.p2m(name + index).unwrap_or(0)));
        let output = side(address_of_mut(&mut name), ORDER);
        let mut request = MemoryExchange { input: side(guest.address(&list), 0), output, nr_exchanged: 0 };
        call::<A>(number::MEMORY_OP, &[XENMEM_EXCHANGE, address_of_mut(&mut request)])?;
        guest.write(&list, 0, name);
        guest.write(&table, slot, A::superpage(name, true));
        guest.set_writable(&table, false)?;
        mmuext::<A>(MMUEXT_PIN_L2_TABLE, guest.frame(&table), 0)?;
        let request = side(guest.address(&list), ORDER);
        call::<A>(number::MEMORY_OP, &[XENMEM_DECREASE_RESERVATION, address_of(&request)])?;
        Ok(Self { guest, list, table })
    }

    /// Has these calls carried out in one multicall, all of which must come to no error but those to `refused`.
    ///
    /// # Errors
    /// What they came to.
    pub fn multicall(&self, entries: &[Entry], refused: Option<(u64, Errno)>) -> Result<(), Errno> {
        let guest = self.guest;
        let calls = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
        for (index, [operation, arguments @ ..]) in entries.iter().enumerate() {
            guest.write(&calls, index * ENTRY_WORDS, *operation);
            let place = |argument| index * ENTRY_WORDS + 2 + argument;
            arguments.iter().enumerate().for_each(|(at, value)| guest.write(&calls, place(at), *value));
        }
        longest::<A>(true)?;
        call::<A>(number::MULTICALL, &[guest.address(&calls), entries.len() as u64])?;
        for (index, [operation, ..]) in entries.iter().enumerate() {
            match Errno::from_return(guest.read(&calls, index * ENTRY_WORDS + 1)) {
                Err(errno) if refused != Some((*operation, errno)) => return Err(errno),
                _ => {}
            }
        }
        guest.pages.free(calls);
        Ok(())
    }

    /// Does the calls, and then has the table unpinned.
    ///
    /// # Errors
    /// As [`Self::multicall`].
    pub fn unpinned_after(&self, before: &[Entry], refused: Option<(u64, Errno)>) -> Result<(), Errno> {
        let guest = self.guest;
        let operation = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
        guest.write(&operation, 0, MMUEXT_UNPIN_TABLE.into());
        guest.write(&operation, 1, guest.frame(&self.table));
        let unpin = [number::MMUEXT_OP, guest.address(&operation), 1, 0, DOMID_SELF.into(), 0];
        let mut entries = [unpin; MOST];
        let count = before.len().min(MOST - 1);
        entries.iter_mut().zip(before).take(count).for_each(|(entry, before)| *entry = *before);
        self.multicall(entries.get(..=count).unwrap_or(&[]), refused)?;
        guest.pages.free(operation);
        Ok(())
    }

    /// Takes 512 single pages for those that were freed. The table is unpinned.
    ///
    /// # Errors
    /// What the hypervisor refuses.
    pub fn take_again(self) -> Result<(), Errno> {
        let Self { guest, list, table } = self;
        guest.release(table)?;
        (0..PAGES).for_each(|index| guest.write(&list, index as usize, base(guest) + index));
        let request = side(guest.address(&list), 0);
        let got = call::<A>(number::MEMORY_OP, &[XENMEM_POPULATE_PHYSMAP, address_of(&request)])?;
        (0..got).for_each(|index| guest.set_p2m(base(guest) + index, guest.read(&list, index as usize)));
        guest.pages.free(list);
        if got == PAGES { Ok(()) } else { Err(Errno::ENOMEM) }
    }
}

/// Most calls of [`GivenBack::unpinned_after`], the last one included.
const MOST: usize = 16;

/// One side of an exchange, or a reservation, of 512 pages in extents of that order, which are listed at `place`.
pub fn side(place: u64, extent_order: u32) -> MemoryReservation {
    MemoryReservation {
        extent_start: place,
        nr_extents: PAGES >> extent_order,
        extent_order,
        domid: DOMID_SELF,
        ..Default::default()
    }
}

/// The first of the pages that become the superpage: the domain's last ones.
const fn base<A: Architecture>(guest: &Guest<A>) -> u64 {
    guest.info.nr_pages - PAGES
}
