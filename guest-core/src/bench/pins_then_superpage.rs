//! A multicall that spends nearly all of its budget on validating tables, and ends with the longest single write to a table.
//!
//! That write takes out the only mapping of a superpage whose 512 frames were given back before: all of them are freed at once.

use super::stretches::longest;
use super::window::{self, Say};
use crate::architecture::{Architecture, TABLE_ENTRIES};
use crate::guest::Guest;
use crate::hypercalls::{address_of, address_of_mut, call, mmuext};
use crate::pages::Page;
use penumbra_abi::memory::{
    MemoryExchange, MemoryReservation, XENMEM_DECREASE_RESERVATION, XENMEM_EXCHANGE, XENMEM_POPULATE_PHYSMAP,
};
use penumbra_abi::mmu::{MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_UNPIN_TABLE};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// log2 of the pages of a superpage, and their number.
const ORDER: u32 = 9;
const PAGES: u64 = 1 << ORDER;
/// Full tables that are pinned before: one more, and the budget would be spent by then.
const PINS: usize = 7;
/// The first of the pages that they map, counted from the domain's last one down: the superpage's come before.
const FIRST_MAPPED: u64 = 1024;
/// Words of a multicall's entry, and of an `mmuext_op`.
const ENTRY_WORDS: usize = 8;
const OPERATION_WORDS: usize = 3;
/// Where the `mmu_update` stands on the page of the operations.
const UPDATE: usize = PINS * OPERATION_WORDS;

/// Seven pins of level-1 tables, then the write.
pub fn run<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    let page = || guest.zeroed_page().ok_or(Errno::ENOMEM);
    let (list, second, operations, calls) = (page()?, page()?, page()?, page()?);
    map_superpage_given_back(guest, &list, &second)?;
    let tables = [const { None }; PINS].map(|_: Option<Page>| guest.zeroed_page());
    for (index, table) in tables.iter().flatten().enumerate() {
        fill(guest, index, table)?;
        guest.write(&operations, index * OPERATION_WORDS, MMUEXT_PIN_L1_TABLE.into());
        guest.write(&operations, index * OPERATION_WORDS + 1, guest.frame(table));
        entry(
            guest,
            &calls,
            index,
            number::MMUEXT_OP,
            guest.address(&operations) + word(index * OPERATION_WORDS),
        );
    }
    guest.write(&operations, UPDATE, guest.frame(&second) << 12);
    entry(guest, &calls, PINS, number::MMU_UPDATE, guest.address(&operations) + word(UPDATE));
    longest::<A>(true)?;
    call::<A>(number::MULTICALL, &[guest.address(&calls), PINS as u64 + 1])?;
    for index in 0..=PINS {
        Errno::from_return(guest.read(&calls, index * ENTRY_WORDS + 1))?;
    }
    for table in tables.into_iter().flatten().chain([second]) {
        mmuext::<A>(MMUEXT_UNPIN_TABLE, guest.frame(&table), 0)?;
        guest.release(table)?;
    }
    take_again(guest, &list)?;
    [list, operations, calls].into_iter().for_each(|page| guest.pages.free(page));
    Ok(())
}

/// Bytes of so many words.
const fn word(index: usize) -> u64 {
    index as u64 * 8
}

/// Entry `index` of the multicall: a batch of one operation, on the domain's own tables.
fn entry<A: Architecture>(guest: &Guest<A>, calls: &Page, index: usize, operation: u64, place: u64) {
    let words = [operation, 0, place, 1, 0, DOMID_SELF.into()];
    words.iter().enumerate().for_each(|(word, value)| guest.write(calls, index * ENTRY_WORDS + word, *value));
}

/// Makes a page a full level-1 table, which nobody has validated yet.
fn fill<A: Architecture>(guest: &Guest<A>, number: usize, table: &Page) -> Result<(), Errno> {
    for slot in 0..TABLE_ENTRIES {
        let page = FIRST_MAPPED + (number * TABLE_ENTRIES + slot) as u64;
        guest.write(table, slot, window::entry(guest, page, Say::Writable));
    }
    guest.set_writable(table, false)
}

/// One side of an exchange, or a reservation, of 512 pages in extents of that order.
fn pages<A: Architecture>(guest: &Guest<A>, list: &Page, extent_order: u32) -> MemoryReservation {
    MemoryReservation {
        extent_start: guest.address(list),
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

/// Gives the last pages for a superpage, maps that in the first entry of the table `second`, which gets pinned, and gives it back.
fn map_superpage_given_back<A: Architecture>(
    guest: &Guest<A>,
    list: &Page,
    second: &Page,
) -> Result<(), Errno> {
    let mut name = base(guest);
    (0..PAGES).for_each(|index| guest.write(list, index as usize, guest.p2m(name + index).unwrap_or(0)));
    let output = MemoryReservation { extent_start: address_of_mut(&mut name), ..pages(guest, list, ORDER) };
    let mut request = MemoryExchange { input: pages(guest, list, 0), output, nr_exchanged: 0 };
    call::<A>(number::MEMORY_OP, &[XENMEM_EXCHANGE, address_of_mut(&mut request)])?;
    guest.write(list, 0, name);
    guest.write(second, 0, A::superpage(name, true));
    guest.set_writable(second, false)?;
    mmuext::<A>(MMUEXT_PIN_L2_TABLE, guest.frame(second), 0)?;
    let request = pages(guest, list, ORDER);
    call::<A>(number::MEMORY_OP, &[XENMEM_DECREASE_RESERVATION, address_of(&request)]).map(drop)
}

/// Takes 512 single pages for those that were freed.
fn take_again<A: Architecture>(guest: &Guest<A>, list: &Page) -> Result<(), Errno> {
    (0..PAGES).for_each(|index| guest.write(list, index as usize, base(guest) + index));
    let request = pages(guest, list, 0);
    let got = call::<A>(number::MEMORY_OP, &[XENMEM_POPULATE_PHYSMAP, address_of(&request)])?;
    (0..got).for_each(|index| guest.set_p2m(base(guest) + index, guest.read(list, index as usize)));
    if got == PAGES { Ok(()) } else { Err(Errno::ENOMEM) }
}
