//! Memory operations and page operations with every kind of argument, right and wrong.
//!
//! The same test runs on Debian's Xen, so what is expected here is what Xen answers. Where the two differ on purpose, the check
//! says so.

use super::check::Check;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::{
    address_of, address_of_mut, call, exchange, mmu_update, mmuext, reservation, reservation_of,
};
use crate::pages::Page;
use penumbra_abi::memory::{
    self, MemoryExchange, MemoryMap, MemoryReservation, XENMEM_DECREASE_RESERVATION as DECREASE,
    XENMEM_INCREASE_RESERVATION as INCREASE, XENMEM_POPULATE_PHYSMAP as POPULATE,
};
use penumbra_abi::mmu::{self, MmuUpdate};
use penumbra_abi::version::{self, FeatureInfo};
use penumbra_abi::vm_assist::{
    VMASST_CMD_DISABLE, VMASST_CMD_ENABLE, VMASST_TYPE_RUNSTATE_UPDATE_FLAG, VMASST_TYPE_WRITABLE_PAGETABLES,
};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// An address at which nothing is.
const NOWHERE: u64 = 0x1000;
/// Pages that are exchanged: one extent of order 2.
const FOUR: usize = 4;

/// Runs the test `memory`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    match (guest.zeroed_page(), guest.zeroed_page()) {
        (Some(one), Some(two)) => {
            pages(guest, check, &one, &two);
            flushes(guest, check, &one);
            guest.pages.free(two);
            guest.pages.free(one);
        }
        _ => check.that("there are two pages for the test", false),
    }
    commands(guest, check);
    assists::<A>(check);
    reservations(check);
    exchanges(guest, check);
    maps(guest, check);
}

fn is_filled<A: Architecture>(guest: &Guest<A>, page: &Page, value: u64) -> bool {
    (0..512).all(|index| guest.read(page, index) == value)
}

/// Pages are cleared and copied, if they are one's own and not tables.
fn pages<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, one: &Page, two: &Page) {
    let (from, to, root) = (guest.frame(one), guest.frame(two), guest.root_frame());
    (0..512).for_each(|index| guest.write(one, index, 0x1234));
    check.done("copy a page", mmuext::<A>(mmu::MMUEXT_COPY_PAGE, to, from));
    check.that("the copy is whole", is_filled(guest, two, 0x1234));
    check.done("clear a page", mmuext::<A>(mmu::MMUEXT_CLEAR_PAGE, from, 0));
    check.that("the page is clear", is_filled(guest, one, 0) && is_filled(guest, two, 0x1234));
    let first_entry = A::read_word(guest.info.pt_base);
    for bad in [root, A::DEVICE_FRAME, u64::MAX, 1 << 40] {
        check.refused("clear what can't be", mmuext::<A>(mmu::MMUEXT_CLEAR_PAGE, bad, 0), &[Errno::EINVAL]);
        check.refused("copy to what can't be", mmuext::<A>(mmu::MMUEXT_COPY_PAGE, bad, to), &[Errno::EINVAL]);
    }
    check.refused("copy from nowhere", mmuext::<A>(mmu::MMUEXT_COPY_PAGE, to, u64::MAX), &[Errno::EINVAL]);
    check.that("the root is as it was", A::read_word(guest.info.pt_base) == first_entry);
    check.done("copy from a table", mmuext::<A>(mmu::MMUEXT_COPY_PAGE, to, root));
    check.that("that is the table's content", guest.read(two, 0) == first_entry);
    let update = MmuUpdate { pointer: to << 12 | mmu::MMU_PT_UPDATE_NO_TRANSLATE, value: 77 };
    check.done("an untranslated update", mmu_update::<A>(&[update], u64::from(DOMID_SELF)));
    check.that("it is a write like any other", guest.read(two, 0) == 77);
}

/// Flushes with a set of vCPUs.
fn flushes<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, page: &Page) {
    for set in [0u64, 1, u64::MAX] {
        let place = address_of(&set);
        check.done("flush for a set", mmuext::<A>(mmu::MMUEXT_TLB_FLUSH_MULTI, 0, place));
        check.done(
            "flush a page for a set",
            mmuext::<A>(mmu::MMUEXT_INVLPG_MULTI, guest.address(page), place),
        );
    }
    for command in [mmu::MMUEXT_TLB_FLUSH_MULTI, mmu::MMUEXT_INVLPG_MULTI] {
        check.refused("a set that isn't there", mmuext::<A>(command, 0, NOWHERE), &[Errno::EINVAL]);
    }
    for command in [mmu::MMUEXT_TLB_FLUSH_ALL, mmu::MMUEXT_INVLPG_ALL, mmu::MMUEXT_TLB_FLUSH_LOCAL] {
        check.done("flush", mmuext::<A>(command, guest.address(page), 0));
    }
    let set = 1u64;
    let entry = A::leaf(guest.frame(page), true);
    let map = |flags: u64| call::<A>(number::UPDATE_VA_MAPPING, &[guest.address(page), entry, flags]);
    for kind in [mmu::UVMF_TLB_FLUSH, mmu::UVMF_INVLPG] {
        check.done("map, flush for a set", map(kind | address_of(&set)));
        check.done("map, flush for all", map(kind | mmu::UVMF_ALL));
        check.refused("map, a set that isn't there", map(kind | NOWHERE), &[Errno::EFAULT]);
    }
    check.done("map, no kind of flush", map(NOWHERE));
    check.done("map, both kinds of flush", map(mmu::UVMF_FLUSHTYPE_MASK));
}

/// Commands that not every domain, not every machine or nobody has.
fn commands<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let mfn = guest.root_frame();
    for command in [mmu::MMUEXT_MARK_SUPER, mmu::MMUEXT_UNMARK_SUPER] {
        check.refused("superpage marks", mmuext::<A>(command, mfn, 0), &[Errno::EOPNOTSUPP]);
    }
    for command in [14, 21, u32::MAX] {
        check.refused("an unknown command", mmuext::<A>(command, mfn, 0), &[Errno::ENOSYS]);
    }
    let caches =
        [mmu::MMUEXT_FLUSH_CACHE, mmu::MMUEXT_FLUSH_CACHE_GLOBAL].map(|command| mmuext::<A>(command, 0, 0));
    // All memory is cached and coherent on the one machine; on the other, the control domain may want this.
    let expected = match A::HAS_CACHE_FLUSH {
        true => [Ok(()), Ok(())],
        false => [Err(Errno::EACCES), Err(Errno::EINVAL)],
    };
    check.that("the caches are flushed where that has a meaning", caches == expected);
    let features = |submap_idx: u32| {
        let mut info = FeatureInfo { submap_idx, submap: 0 };
        call::<A>(number::XEN_VERSION, &[version::XENVER_GET_FEATURES, address_of_mut(&mut info)])
            .map(|_| info.submap)
    };
    let ours = features(version::PENUMBRA_FEATURE_SUBMAP);
    check.that("features of its own has Penumbra alone", ours.is_ok() == guest.on_penumbra);
    check.refused("features that nobody has", features(2), &[Errno::EINVAL]);
}

fn assists<A: Architecture>(check: &mut Check<A>) {
    let assist =
        |command: u32, kind: u32| call::<A>(number::VM_ASSIST, &[u64::from(command), u64::from(kind)]);
    check.done("switch a mark on", assist(VMASST_CMD_ENABLE, VMASST_TYPE_RUNSTATE_UPDATE_FLAG));
    check.done("and off", assist(VMASST_CMD_DISABLE, VMASST_TYPE_RUNSTATE_UPDATE_FLAG));
    check.refused("an unknown switch", assist(2, VMASST_TYPE_RUNSTATE_UPDATE_FLAG), &[Errno::ENOSYS]);
    for kind in [6, 31, 33, 63, 64, u32::MAX] {
        check.refused("an unknown assistance", assist(VMASST_CMD_ENABLE, kind), &[Errno::EINVAL]);
        check.refused("an unknown switch of it", assist(7, kind), &[Errno::EINVAL]);
    }
    for kind in 0..VMASST_TYPE_RUNSTATE_UPDATE_FLAG {
        let answer = assist(VMASST_CMD_DISABLE, kind);
        let known = A::HAS_SEGMENTS && kind <= 4 || kind == VMASST_TYPE_WRITABLE_PAGETABLES && answer.is_ok();
        check.that("assistance for segments, tables, roots, privilege", answer.is_ok() == known);
    }
}

/// Reservations that are wrong from the start: nothing is done, and that is the answer.
fn reservations<A: Architecture>(check: &mut Check<A>) {
    let mut list = [0u64; 2];
    let good = MemoryReservation {
        extent_start: address_of_mut(&mut list),
        nr_extents: 2,
        domid: DOMID_SELF,
        ..Default::default()
    };
    let cases = [
        ("an order beyond all", MemoryReservation { extent_order: 60, ..good }),
        ("no such domain", MemoryReservation { domid: 0x7abc, ..good }),
        ("no frame is so low", MemoryReservation { mem_flags: 12, ..good }),
        ("no list there", MemoryReservation { extent_start: NOWHERE, ..good }),
        ("too many", MemoryReservation { nr_extents: 1 << 26, extent_start: NOWHERE, ..good }),
        ("none", MemoryReservation { nr_extents: 0, ..good }),
    ];
    for (what, wrong) in cases {
        for operation in [INCREASE, POPULATE] {
            let done = call::<A>(number::MEMORY_OP, &[operation, address_of(&wrong)]);
            check.that(what, done == Ok(0));
        }
    }
    let on_demand = MemoryReservation { mem_flags: memory::XENMEMF_POPULATE_ON_DEMAND, ..good };
    check.that("on demand", call::<A>(number::MEMORY_OP, &[POPULATE, address_of(&on_demand)]) == Ok(0));
    for operation in [INCREASE, POPULATE, DECREASE] {
        for start in [2, 3, 1 << 20] {
            let done = call::<A>(number::MEMORY_OP, &[operation | start << 6, address_of(&good)]);
            check.that("a start beyond the end", done == Ok(start));
        }
        check.that(
            "no structure there",
            call::<A>(number::MEMORY_OP, &[operation | 5 << 6, NOWHERE]) == Ok(5),
        );
    }
}

/// Four single pages for four in a row, and what can be wrong with that.
fn exchanges<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let pfns = core::array::from_fn::<u64, FOUR, _>(|i| guest.info.nr_pages - FOUR as u64 + i as u64);
    let old = pfns.map(|pfn| guest.p2m(pfn).unwrap_or(0));
    let refused = |check: &mut Check<A>, what, errno, change: &dyn Fn(&mut MemoryExchange)| {
        let mut lists = (old, [pfns[0]; 1]);
        let mut request = exchange(&mut lists.0, 0, &mut lists.1, 2);
        change(&mut request);
        let result = call::<A>(number::MEMORY_OP, &[memory::XENMEM_EXCHANGE, address_of_mut(&mut request)]);
        check.refused(what, result, &[errno]);
        check.that("nothing was exchanged", lists.1 == [pfns[0]] && guest.m2p(old[0]) == pfns[0]);
    };
    refused(check, "an order beyond all", Errno::EPERM, &|request| request.output.extent_order = 60);
    refused(check, "more than is given", Errno::EINVAL, &|request| request.output.nr_extents = 2);
    refused(check, "other domains", Errno::EINVAL, &|request| request.output.domid = 1);
    refused(check, "more done than there is", Errno::EINVAL, &|request| request.nr_exchanged = 5);
    refused(check, "no list there", Errno::EFAULT, &|request| request.input.extent_start = NOWHERE);
    let [table, mine] = [guest.root_frame(), guest.p2m(0).unwrap_or(0)];
    for (what, frame) in [
        ("a table", table),
        ("mapped", mine),
        ("twice", old[1]),
        ("no frame", u64::MAX),
        ("a device", A::DEVICE_FRAME),
    ] {
        let list = [old[0], old[1], old[2], frame];
        refused(check, what, Errno::EINVAL, &|request| request.input.extent_start = address_of(&list));
    }
    let continued = call::<A>(number::MEMORY_OP, &[memory::XENMEM_EXCHANGE | 1 << 6, NOWHERE]);
    check.refused("continued", continued, &[Errno::EINVAL]);
    let unreadable = call::<A>(number::MEMORY_OP, &[memory::XENMEM_EXCHANGE, NOWHERE]);
    check.refused("no structure", unreadable, &[Errno::EFAULT]);
    let mut lists = (old, [pfns[0]; 1]);
    let mut request = exchange(&mut lists.0, 0, &mut lists.1, 2);
    let result = call::<A>(number::MEMORY_OP, &[memory::XENMEM_EXCHANGE, address_of_mut(&mut request)]);
    check.that("four pages for four in a row", result == Ok(0) && request.nr_exchanged == FOUR as u64);
    let first = lists.1[0];
    check.that("they are aligned", first.is_multiple_of(FOUR as u64));
    for (frame, pfn) in (first..).zip(pfns) {
        check.that("the M2P has the name of each", guest.m2p(frame) == pfn);
        guest.set_p2m(pfn, frame);
    }
    let mut frames = [first];
    check.that("give them back", reservation_of::<A>(DECREASE, &mut frames, 2, DOMID_SELF) == Ok(1));
    let mut frames = pfns;
    check.that("take single ones", reservation::<A>(POPULATE, &mut frames) == Ok(FOUR as u64));
    pfns.iter().zip(frames).for_each(|(pfn, frame)| guest.set_p2m(*pfn, frame));
}

fn maps<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let domain = DOMID_SELF;
    for operation in [
        memory::XENMEM_CURRENT_RESERVATION,
        memory::XENMEM_MAXIMUM_RESERVATION,
        memory::XENMEM_MAXIMUM_GPFN,
        memory::XENMEM_MAXIMUM_RAM_PAGE,
    ] {
        check.done("how much memory", call::<A>(number::MEMORY_OP, &[operation, address_of(&domain)]));
        let continued = call::<A>(number::MEMORY_OP, &[operation | 1 << 6, address_of(&domain)]);
        check.refused("continued", continued, &[Errno::EINVAL]);
    }
    let ask =
        |operation: u64, map: &mut MemoryMap| call::<A>(number::MEMORY_OP, &[operation, address_of_mut(map)]);
    let machine = memory::XENMEM_MACHINE_MEMORY_MAP;
    let mut map = MemoryMap::default();
    if A::HAS_SEGMENTS || guest.on_penumbra {
        check.done("how many regions of the machine", ask(machine, &mut map));
        check.that("there are some", map.nr_entries > 0);
        let mut short = MemoryMap { nr_entries: 1, buffer: NOWHERE, pad: 0 };
        check.refused("a buffer that is too small", ask(machine, &mut short), &[Errno::EINVAL]);
        let mut bad = MemoryMap { nr_entries: 100, buffer: NOWHERE, pad: 0 };
        check.refused("no buffer there", ask(machine, &mut bad), &[Errno::EFAULT]);
    }
    // Xen's control domain has no map of its own, and asks for the machine's.
    let mut buffer = [0u32; 10];
    let mut map = MemoryMap { nr_entries: 2, buffer: address_of_mut(&mut buffer), pad: 0 };
    let own = ask(memory::XENMEM_MEMORY_MAP, &mut map);
    check
        .that("a domain's own map", if guest.on_penumbra { own == Ok(0) } else { own == Err(Errno::ENOSYS) });
    let size = u64::from(buffer[2]) | u64::from(buffer[3]) << 32;
    check.that(
        "it is all RAM",
        !guest.on_penumbra || map.nr_entries == 1 && size >= guest.info.nr_pages << 12,
    );
}
