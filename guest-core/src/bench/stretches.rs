//! The longest operations that a guest can ask for, and the longest stretch of each without a preemption point.
//!
//! The hypervisor measures the stretches itself (`PENUMBRA_LONGEST_STRETCH`), since a preempted hypercall goes on without the guest's
//! noticing. One line for each: `STRETCH name instructions`. Long lists of requests are one page of them, mapped over and over in the
//! window, so that a small kernel can hand over a hundred thousand.

use super::window::{self, Say, Window};
use super::{grants, multicalls, then_superpage};
use crate::architecture::{Architecture, PAGE_SIZE, TABLE_ENTRIES};
use crate::emptied::EmptiedTables;
use crate::guest::Guest;
use crate::hypercalls::{self, address_of, address_of_mut, call, mmu_update, mmuext};
use crate::pages::Page;
use crate::say;
use penumbra_abi::domctl::{DESTROYDOMAIN, DomainInfo, Domctl};
use penumbra_abi::memory::{
    MemoryExchange, MemoryReservation, XENMEM_DECREASE_RESERVATION, XENMEM_EXCHANGE, XENMEM_POPULATE_PHYSMAP,
};
use penumbra_abi::mmu::{
    MMUEXT_NEW_BASEPTR, MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE, MmuUpdate,
};
use penumbra_abi::sched::{SCHEDOP_POLL, SchedPoll};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// Requests in the long `mmu_update`.
const REQUESTS: u64 = 100_000;
/// Calls in the long `multicall`.
const CALLS: u64 = 30_000;
/// log2 of the pages of a superpage.
const SUPERPAGE_ORDER: u32 = 9;
/// Level-1 tables of the large tree, each of 512 mappings.
const TABLES: usize = 64;
/// How often this kernel sleeps while it waits for the end of domain 1, and for how long (nanoseconds).
const PATIENCE: u32 = 1000;
const NAP: u64 = 20_000_000;
/// The domain that is destroyed.
const VICTIM: u16 = 1;

/// A hypercall, or several, that take long.
pub type Operation<A> = fn(&Guest<A>) -> Result<(), Errno>;

/// Measures every operation.
pub fn run<A: Architecture>(guest: &Guest<A>) {
    let operations: [(&str, Operation<A>); 15] = [
        ("mmu-update-100000", many_updates),
        ("multicall-30000", many_calls),
        ("tree-of-64-tables", large_tree),
        ("root-of-64-tables", large_root),
        ("balloon-512", balloon),
        ("exchange-512", exchange_for_a_superpage),
        ("hook-4-emptied-tables", hook_emptied_tables),
        ("hook-4-rewritten-tables", hook_rewritten_tables),
        ("multicall-poll-128", multicalls::polls),
        ("multicall-reset", multicalls::resets),
        ("multicall-initialise-vcpu", multicalls::second_starts),
        ("grants-500", grants::run),
        ("pins-then-superpage", then_superpage::after_pins),
        ("exchange-then-superpage", then_superpage::after_exchange),
        ("destroy-domain", destroy),
    ];
    for &(name, operation) in operations.iter().chain(A::STRETCHES) {
        match longest::<A>(true).and_then(|_| operation(guest)).and_then(|()| longest::<A>(false)) {
            Ok(ticks) => say!(A, "STRETCH {name} {}", ticks * A::COUNTER_UNIT),
            Err(error) => say!(A, "STRETCH {name} failed {error}"),
        }
    }
    say!(A, "STRETCH end");
}

/// The longest stretch so far, in units of the counter; from now on, if it is forgotten.
pub(super) fn longest<A: Architecture>(reset: bool) -> Result<u64, Errno> {
    call::<A>(number::PENUMBRA, &[number::PENUMBRA_LONGEST_STRETCH, reset.into()])
}

/// Hands `request` a list that repeats `page` over the whole window.
pub(super) fn with_long_list<A: Architecture>(
    guest: &Guest<A>,
    page: &Page,
    request: impl FnOnce(u64) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let window = Window::open(guest)?;
    let entry = A::leaf(guest.frame(page), true);
    let mut result = Ok(());
    for index in 0..TABLE_ENTRIES as u64 {
        let update = MmuUpdate { pointer: window.slot(index), value: entry };
        result = result.and(mmu_update::<A>(&[update], DOMID_SELF.into()).map(drop));
    }
    let result = result.and_then(|()| request(window.address(0)));
    window.close()?;
    result
}

/// `mmu_update` of 100,000 entries: 128 of a table are mapped and unmapped in turn.
fn many_updates<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    let (page, table) =
        (guest.zeroed_page().ok_or(Errno::ENOMEM)?, guest.zeroed_page().ok_or(Errno::ENOMEM)?);
    guest.set_writable(&table, false)?;
    mmuext::<A>(MMUEXT_PIN_L1_TABLE, guest.frame(&table), 0)?;
    for request in 0..256 {
        let say = if request < 128 { Say::Writable } else { Say::Absent };
        let index = request as u64 % 128;
        guest.write(&page, request * 2, (guest.frame(&table) << 12) | (index * 8));
        guest.write(&page, request * 2 + 1, window::entry(guest, index, say));
    }
    let result = with_long_list(guest, &page, |list| {
        call::<A>(number::MMU_UPDATE, &[list, REQUESTS, 0, DOMID_SELF.into()]).map(drop)
    });
    mmuext::<A>(MMUEXT_UNPIN_TABLE, guest.frame(&table), 0)?;
    guest.pages.free(page);
    guest.release(table)?;
    result
}

/// `multicall` of 30,000 calls, which make a page read-only and writable in turn.
fn many_calls<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    let page = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    let scratch = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    for entry in 0..64 {
        // Operation, result, six arguments: the page's own mapping, again and again.
        let words = [
            number::UPDATE_VA_MAPPING,
            0,
            guest.address(&scratch),
            A::leaf(guest.frame(&scratch), entry % 2 == 0),
        ];
        words.iter().enumerate().for_each(|(word, value)| guest.write(&page, entry * 8 + word, *value));
    }
    let result = with_long_list(guest, &page, |list| call::<A>(number::MULTICALL, &[list, CALLS]).map(drop));
    guest.release(scratch)?;
    guest.pages.free(page);
    result
}

/// Pins and unpins a tree of 64 full tables.
fn large_tree<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    with_large_tree(guest, |_, root| {
        mmuext::<A>(MMUEXT_PIN_L4_TABLE, root, 0)?;
        mmuext::<A>(MMUEXT_UNPIN_TABLE, root, 0).map(drop)
    })
}

/// Loads a root that leads to 64 full tables and was not validated before, and the old one again, which is the other's end.
fn large_root<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    with_large_tree(guest, |guest, root| {
        mmuext::<A>(MMUEXT_NEW_BASEPTR, root, 0)?;
        mmuext::<A>(MMUEXT_NEW_BASEPTR, guest.root_frame(), 0).map(drop)
    })
}

/// Hands `work` the frame of a root, not validated, which maps what the loaded one does, and has a tree of 64 full tables besides.
fn with_large_tree<A: Architecture>(
    guest: &Guest<A>,
    work: impl FnOnce(&Guest<A>, u64) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let tables = [const { None }; TABLES].map(|_: Option<Page>| guest.zeroed_page());
    let uppers = [guest.zeroed_page(), guest.zeroed_page()];
    let root = guest.copy_of_root().ok_or(Errno::ENOMEM)?;
    let [Some(second), Some(third)] = &uppers else { return Err(Errno::ENOMEM) };
    for (index, table) in tables.iter().flatten().enumerate() {
        for slot in 0..TABLE_ENTRIES {
            let page = (index * TABLE_ENTRIES + slot) as u64;
            guest.write(table, slot, window::entry(guest, page, Say::Writable));
        }
        guest.set_writable(table, false)?;
        guest.write(second, index, A::table(guest.frame(table)));
    }
    guest.write(third, 0, A::table(guest.frame(second)));
    let free = Guest::<A>::own_slots().find(|slot| guest.read(&root, *slot) == 0).ok_or(Errno::ENOSPC)?;
    guest.write(&root, free, A::table(guest.frame(third)));
    for table in [second, third, &root] {
        guest.set_writable(table, false)?;
    }
    let result = work(guest, guest.frame(&root));
    for page in uppers.into_iter().chain(tables).flatten().chain([root]) {
        guest.release(page)?;
    }
    result
}

/// Gives 512 pages back in one call, and takes them again.
fn balloon<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    let list = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    let pages = PAGE_SIZE / 8;
    let request = MemoryReservation {
        extent_start: guest.address(&list),
        nr_extents: pages,
        domid: DOMID_SELF,
        ..Default::default()
    };
    (0..pages).for_each(|index| guest.write(&list, index as usize, window::spare(guest, index)));
    call::<A>(number::MEMORY_OP, &[XENMEM_DECREASE_RESERVATION, address_of(&request)])?;
    let pfn = |index: u64| guest.info.nr_pages - 1 - index;
    (0..pages).for_each(|index| guest.write(&list, index as usize, pfn(index)));
    let got = call::<A>(number::MEMORY_OP, &[XENMEM_POPULATE_PHYSMAP, address_of(&request)])?;
    (0..got).for_each(|index| guest.set_p2m(pfn(index), guest.read(&list, index as usize)));
    guest.pages.free(list);
    if got == pages { Ok(()) } else { Err(Errno::ENOMEM) }
}

/// Gives 512 single pages for 2 MiB in one piece, and that for 512 single pages again.
fn exchange_for_a_superpage<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    let list = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    let names = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    let pages = PAGE_SIZE / 8;
    let base = guest.info.nr_pages - pages;
    let side = |page: &Page, order: u32| MemoryReservation {
        extent_start: guest.address(page),
        nr_extents: pages >> order,
        extent_order: order,
        domid: DOMID_SELF,
        ..Default::default()
    };
    let exchange = |old_order: u32, new_order: u32| {
        let (input, output) = (side(&list, old_order), side(&names, new_order));
        let mut request = MemoryExchange { input, output, nr_exchanged: 0 };
        call::<A>(number::MEMORY_OP, &[XENMEM_EXCHANGE, address_of_mut(&mut request)]).map(drop)
    };
    for index in 0..pages {
        guest.write(&list, index as usize, guest.p2m(base + index).unwrap_or(0));
    }
    guest.write(&names, 0, base);
    exchange(0, SUPERPAGE_ORDER)?;
    let first = guest.read(&names, 0);
    (0..pages).for_each(|index| guest.set_p2m(base + index, first + index));
    guest.write(&list, 0, first);
    (0..pages).for_each(|index| guest.write(&names, index as usize, base + index));
    exchange(SUPERPAGE_ORDER, 0)?;
    (0..pages).for_each(|index| guest.set_p2m(base + index, guest.read(&names, index as usize)));
    guest.pages.free(list);
    guest.pages.free(names);
    Ok(())
}

/// The next hypercall hooks four emptied tables in, and frees the pages.
fn hook_emptied_tables<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    let tables = EmptiedTables::new(guest)?;
    tables.take_out()?;
    tables.put_back()
}

/// The next hypercall hooks four tables in, of which every entry has changed.
fn hook_rewritten_tables<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    let tables = EmptiedTables::to_rewrite(guest)?;
    tables.rewrite()?;
    tables.put_back()
}

/// Destroys domain 1, and waits until nothing is left of it.
fn destroy<A: Architecture>(_guest: &Guest<A>) -> Result<(), Errno> {
    let mut operation = Domctl::new(DESTROYDOMAIN, VICTIM, &[]);
    call::<A>(number::DOMCTL, &[address_of_mut(&mut operation)])?;
    for _ in 0..PATIENCE {
        sleep::<A>();
        let mut domains = [DomainInfo::default(); 4];
        let count = hypercalls::domain_list::<A>(VICTIM, &mut domains)?;
        if !domains.iter().take(count).any(|domain| domain.domain == VICTIM) {
            return Ok(());
        }
    }
    Err(Errno::ETIMEDOUT)
}

/// Leaves the CPU idle for a while, in which the hypervisor does its work in the background. While instructions are counted, the
/// counter is no earlier than the system time.
fn sleep<A: Architecture>() {
    let poll = SchedPoll { timeout: A::counter() * A::COUNTER_UNIT + NAP, ..Default::default() };
    // Should it be refused, this is a yield without rest.
    let _ = call::<A>(number::SCHED_OP, &[SCHEDOP_POLL, address_of(&poll)]);
}
