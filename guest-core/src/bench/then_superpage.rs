//! Multicalls that spend nearly all of their budget, and end with the end of a superpage that was given back ([`GivenBack`]).

use super::given_back::{Entry, GivenBack, ORDER, PAGES, side};
use super::window::{self, Say};
use crate::architecture::{Architecture, TABLE_ENTRIES};
use crate::guest::Guest;
use crate::hypercalls::{address_of, address_of_mut, call, mmuext};
use crate::pages::Page;
use penumbra_abi::memory::{MemoryExchange, XENMEM_EXCHANGE};
use penumbra_abi::mmu::{MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE};
use penumbra_abi::sched::{SCHEDOP_POLL, SchedPoll};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// Full tables that are pinned before: one more, and the budget would be spent by then.
const PINS: usize = 7;
/// The first of the pages that they map, counted from the domain's last one down: the superpage's come before.
const FIRST_MAPPED: u64 = 1024;
/// The first of the scattered pages, counted in the same way, and how far apart they are.
const FIRST_SCATTERED: u64 = 8192;
const APART: u64 = 2;
/// Words of an `mmuext_op`.
const OPERATION_WORDS: usize = 3;
/// Where the `mmu_update` stands on the page of the operations.
const UPDATE: usize = PINS * OPERATION_WORDS;
/// Polls after the exchange, of so many ports each, of which the last is none.
const POLLS: usize = 11;
const POLLED: u32 = 128;
const NO_PORT: u64 = 9999;

/// What is measured as `pins-then-superpage`: seven pins of level-1 tables, then the write that takes the superpage out of its table.
pub fn after_pins<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    let operations = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    let given = GivenBack::new(guest, 0)?;
    let tables = [const { None }; PINS].map(|_: Option<Page>| guest.zeroed_page());
    for (index, table) in tables.iter().flatten().enumerate() {
        fill(guest, index, table)?;
        guest.write(&operations, index * OPERATION_WORDS, MMUEXT_PIN_L1_TABLE.into());
        guest.write(&operations, index * OPERATION_WORDS + 1, guest.frame(table));
    }
    guest.write(&operations, UPDATE, guest.frame(&given.table) << 12);
    let on = |call, word: usize| -> Entry {
        [call, guest.address(&operations) + word as u64 * 8, 1, 0, DOMID_SELF.into(), 0]
    };
    let mut entries = [on(number::MMU_UPDATE, UPDATE); PINS + 1];
    for (index, entry) in entries.iter_mut().take(PINS).enumerate() {
        *entry = on(number::MMUEXT_OP, index * OPERATION_WORDS);
    }
    given.multicall(&entries, None)?;
    mmuext::<A>(MMUEXT_UNPIN_TABLE, guest.frame(&given.table), 0)?;
    for table in tables.into_iter().flatten() {
        mmuext::<A>(MMUEXT_UNPIN_TABLE, guest.frame(&table), 0)?;
        guest.release(table)?;
    }
    guest.pages.free(operations);
    given.take_again()
}

/// Makes a page a full level-1 table, which nobody has validated yet.
fn fill<A: Architecture>(guest: &Guest<A>, number: usize, table: &Page) -> Result<(), Errno> {
    for slot in 0..TABLE_ENTRIES {
        let page = FIRST_MAPPED + (number * TABLE_ENTRIES + slot) as u64;
        guest.write(table, slot, window::entry(guest, page, Say::Writable));
    }
    guest.set_writable(table, false)
}

/// What is measured as `exchange-then-superpage`: 512 scattered pages become a superpage, then come polls that are refused at their last port,
/// then the end of the table that holds the other superpage, in its last entry.
pub fn after_exchange<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    let page = || guest.zeroed_page().ok_or(Errno::ENOMEM);
    let (list, names, ports) = (page()?, page()?, page()?);
    let given = GivenBack::new(guest, TABLE_ENTRIES - 1)?;
    (0..POLLED as usize / 2).for_each(|pair| guest.write(&ports, pair, 1 << 32 | 1));
    guest.write(&ports, POLLED as usize / 2 - 1, NO_PORT << 32 | 1);
    let poll = SchedPoll { ports: guest.address(&ports), nr_ports: POLLED, ..Default::default() };
    let pfn = |index: u64| guest.info.nr_pages - FIRST_SCATTERED + index * APART;
    (0..PAGES).for_each(|index| guest.write(&list, index as usize, guest.p2m(pfn(index)).unwrap_or(0)));
    guest.write(&names, 0, pfn(0));
    let exchange = |old_order, new_order| MemoryExchange {
        input: side(guest.address(&list), old_order),
        output: side(guest.address(&names), new_order),
        nr_exchanged: 0,
    };
    let mut request = exchange(0, ORDER);
    let mut before = [[number::SCHED_OP, SCHEDOP_POLL, address_of(&poll), 0, 0, 0]; POLLS + 1];
    if let Some(first) = before.first_mut() {
        *first = [number::MEMORY_OP, XENMEM_EXCHANGE, address_of_mut(&mut request), 0, 0, 0];
    }
    given.unpinned_after(&before, Some((number::SCHED_OP, Errno::EINVAL)))?;
    // Back to single pages.
    guest.write(&list, 0, guest.read(&names, 0));
    (0..PAGES).for_each(|index| guest.write(&names, index as usize, pfn(index)));
    let mut request = exchange(ORDER, 0);
    call::<A>(number::MEMORY_OP, &[XENMEM_EXCHANGE, address_of_mut(&mut request)])?;
    (0..PAGES).for_each(|index| guest.set_p2m(pfn(index), guest.read(&names, index as usize)));
    [list, names, ports].into_iter().for_each(|page| guest.pages.free(page));
    given.take_again()
}
