//! A domain that tries everything.
//!
//! Each operation is one of those below, chosen and filled in by the seed; what the hypervisor answers doesn't matter. Between
//! them the domain repairs its arena, so that later operations still have something to begin with.

use super::claims::Claims;
use crate::architecture::{Architecture, Level, PAGE_SIZE};
use crate::guest::Guest;
use crate::hypercalls::{self, call, mmuext, update_va_mapping};
use crate::pages::linear_address;
use crate::{say, words};
use penumbra_abi::hypercall as number;
use penumbra_abi::memory::{XENMEM_DECREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP};
use penumbra_abi::mmu::{
    MMU_MACHPHYS_UPDATE, MMU_UPDATE_KIND_MASK, MMUEXT_NEW_BASEPTR, MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE,
};
use penumbra_abi::sched::{SCHEDOP_BLOCK, SCHEDOP_POLL, SCHEDOP_SHUTDOWN, SHUTDOWN_POWEROFF};
use penumbra_abi::{DOMID_SELF, Errno};

/// Operations, if the command line says nothing.
const OPERATIONS: u64 = 20_000;
/// Operations between two repairs.
const REPAIR: u64 = 3;
/// Hypercall numbers are below this; a few above it are tried as well.
const NUMBERS: u64 = 64;
/// Entries of the longest batch that is built.
const BATCH: usize = 6;

/// What came of the operations.
#[derive(Default)]
struct Tally {
    done: u64,
    refused: u64,
    faults: u64,
}

/// An operation on a hostile domain.
type Operation<A> = fn(&mut Claims<'_, A>, &mut Tally);

/// Runs until all operations are done, then shuts down; dies before that if it must.
pub fn run<A: Architecture>(guest: &Guest<A>) {
    let word = |name| guest.words().value(name).and_then(words::number);
    let (seed, operations) = (word("seed").unwrap_or(1), word("operations").unwrap_or(OPERATIONS));
    (0..word("wait").unwrap_or(0)).for_each(|_| hypercalls::yield_cpu::<A>());
    let Some(mut claims) = Claims::new(guest, seed) else {
        return say!(A, "hostile: no pages for the arena");
    };
    say!(A, "hostile: seed {seed:#x}, {operations} operations");
    let mut tally = Tally::default();
    for count in 0..operations {
        claims.next_operation();
        let operation = claims.one_of(&operations_of::<A>());
        operation(&mut claims, &mut tally);
        if count % REPAIR == 0 {
            repair(&mut claims);
        }
    }
    say!(
        A,
        "hostile: all {operations} operations: {} done, {} refused, {} faults",
        tally.done,
        tally.refused,
        tally.faults
    );
    hypercalls::shutdown::<A>(SHUTDOWN_POWEROFF)
}

/// What there is to choose from; what is listed twice is chosen more often.
fn operations_of<A: Architecture>() -> [Operation<A>; 16] {
    [
        update_entries,
        update_entries,
        update_address,
        extended,
        extended,
        build_table,
        build_table,
        reservation,
        reservation,
        several_calls,
        structured,
        structured,
        anything,
        access,
        instruction,
        forbidden,
    ]
}

/// Issues a hypercall, if this domain wants to live with what it does, and counts the answer.
fn issue<A: Architecture>(claims: &Claims<'_, A>, tally: &mut Tally, number: u64, arguments: &[u64]) {
    if !claims.reckless && is_the_end(claims, number, arguments) {
        return;
    }
    count(tally, call::<A>(number, arguments));
    if number == number::SET_TRAP_TABLE {
        A::install_traps();
    }
}

fn count(tally: &mut Tally, answer: Result<u64, Errno>) {
    match answer {
        Ok(_) => tally.done += 1,
        Err(_) => tally.refused += 1,
    }
}

/// Whether a hypercall ends the domain, puts it to sleep for good, lets it go on somewhere else, or takes away what it
/// lives on.
fn is_the_end<A: Architecture>(claims: &Claims<'_, A>, number: u64, arguments: &[u64]) -> bool {
    let first = arguments.first().copied().unwrap_or(0);
    match number {
        number::UPDATE_VA_MAPPING | number::UPDATE_VA_MAPPING_OTHERDOMAIN => claims.lives_at(first),
        number::SCHED_OP => [SCHEDOP_BLOCK, SCHEDOP_SHUTDOWN, SCHEDOP_POLL].contains(&first),
        number::SCHED_OP_COMPAT => first != 0,
        number::IRET | number::CONSOLE_IO => true,
        _ => false,
    }
}

/// `mmu_update`.
fn update_entries<A: Architecture>(claims: &mut Claims<'_, A>, tally: &mut Tally) {
    let mut requests = [0; 2 * BATCH];
    for request in requests.chunks_exact_mut(2) {
        let kind = if claims.random.once_in(3) { claims.random.below(4) } else { 0 };
        let level = claims.random.below(4) as Level + 1;
        let (place, entry) = match kind {
            MMU_MACHPHYS_UPDATE => (claims.own_frame() << 12, claims.random.below(1 << 20)),
            _ => (claims.place(), claims.entry(level)),
        };
        request.copy_from_slice(&[place & !MMU_UPDATE_KIND_MASK | kind, entry]);
    }
    let length = claims.random.below(BATCH as u64) + 1;
    let list = claims.store(&requests[..2 * length as usize]);
    let done = if claims.random.once_in(2) { 0 } else { claims.address() };
    let arguments = [claims.pointer(list), claims.count(length), done, claims.domain()];
    issue(claims, tally, number::MMU_UPDATE, &arguments);
}

/// `update_va_mapping`, for this domain's frames or another's.
fn update_address<A: Architecture>(claims: &mut Claims<'_, A>, tally: &mut Tally) {
    let address = claims.address();
    let flags = if claims.random.once_in(4) { claims.address() } else { claims.random.below(8) };
    let arguments = [address, claims.entry(1), flags, claims.domain()];
    let number = claims.one_of(&[number::UPDATE_VA_MAPPING, number::UPDATE_VA_MAPPING_OTHERDOMAIN]);
    issue(claims, tally, number, &arguments);
}

/// `mmuext_op`.
fn extended<A: Architecture>(claims: &mut Claims<'_, A>, tally: &mut Tally) {
    let mut operations = [0; 3 * BATCH];
    for operation in operations.chunks_exact_mut(3) {
        let command = claims.random.below(24) as u32;
        let changes_root = [MMUEXT_NEW_BASEPTR, MMUEXT_NEW_USER_BASEPTR].contains(&command);
        let argument = match claims.random.below(3) {
            _ if changes_root => root(claims),
            0 => claims.address(),
            _ => claims.frame(),
        };
        operation.copy_from_slice(&[u64::from(command), argument, claims.argument()]);
    }
    let own = claims.guest.root_frame();
    for operation in operations.chunks_exact_mut(3) {
        if operation[0] == u64::from(MMUEXT_NEW_BASEPTR) && operation[1] != own {
            visit_root(claims, tally, operation[1]);
            operation[1] = own;
        }
    }
    let length = claims.random.below(BATCH as u64) + 1;
    let list = claims.store(&operations[..3 * length as usize]);
    let done = if claims.random.once_in(2) { 0 } else { claims.address() };
    let arguments = [claims.pointer(list), claims.count(length), done, claims.domain()];
    issue(claims, tally, number::MMUEXT_OP, &arguments);
}

/// Another root, and at once the own one again: what comes before might clear its page, and what comes later its entries. A kernel whose own fault
/// handlers aren't mapped any more is caught in one fault for ever. Nothing of it stays in memory, where a wild list could find it.
fn visit_root<A: Architecture>(claims: &mut Claims<'_, A>, tally: &mut Tally, root: u64) {
    let (enter, own) = (u64::from(MMUEXT_NEW_BASEPTR), claims.guest.root_frame());
    let list = claims.store(&[enter, root, 0, enter, own, 0]);
    if claims.is_good_root(root) {
        issue(claims, tally, number::MMUEXT_OP, &[list, 2, 0, u64::from(DOMID_SELF)]);
    }
    A::try_write_word(list + 8, own);
}

/// A root to live under, made of a page of the arena now and then.
fn root<A: Architecture>(claims: &mut Claims<'_, A>) -> u64 {
    let (own, pfn) = (claims.guest.root_frame(), claims.page());
    let frame = claims.guest.p2m(pfn).unwrap_or(0);
    if claims.random.once_in(2) || !claims.arena.contains(&pfn) {
        return own;
    }
    let (from, to) = (claims.guest.info.pt_base, linear_address(A::VIRT_BASE, pfn));
    for index in A::RESERVED_SLOTS.end as u64..512 {
        A::try_write_word(to + index * 8, A::read_word(from + index * 8));
    }
    let _ = update_va_mapping::<A>(to, A::leaf(frame, false));
    if claims.is_good_root(frame) { frame } else { own }
}

/// Fills a page with entries and asks for it as a table; sometimes hooks it in below an unused slot of the root.
fn build_table<A: Architecture>(claims: &mut Claims<'_, A>, tally: &mut Tally) {
    let pfn = claims.page();
    let (address, frame) = (linear_address(A::VIRT_BASE, pfn), claims.guest.p2m(pfn).unwrap_or(0));
    let level = claims.random.below(4) as Level + 1;
    for _ in 0..claims.random.below(24) {
        let (index, entry) = (claims.random.below(512), claims.entry(level));
        tally.faults += u64::from(!A::try_write_word(address + index * 8, entry));
    }
    if !claims.random.once_in(8) {
        let _ = update_va_mapping::<A>(address, A::leaf(frame, false));
    }
    let command = MMUEXT_PIN_L1_TABLE + u32::from(level) - 1;
    count(tally, mmuext::<A>(command, frame, 0).map(|()| 0));
    let place = claims.place();
    if claims.random.once_in(2) {
        count(tally, hypercalls::update_entry::<A>(place & !7, A::table(frame)).map(|()| 0));
    }
    if claims.random.once_in(2) {
        count(tally, mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0).map(|()| 0));
    }
}

/// `memory_op` with a reservation.
fn reservation<A: Architecture>(claims: &mut Claims<'_, A>, tally: &mut Tally) {
    let mut frames = [0; BATCH];
    for frame in &mut frames {
        *frame = if claims.random.once_in(4) { claims.foreign_frame() } else { claims.own_frame() };
    }
    let list = claims.store(&frames);
    let order = if claims.random.once_in(8) { claims.random.of_any_size() & 0xffff_ffff } else { 0 };
    let structure = [
        claims.pointer(list),
        claims.count(BATCH as u64),
        order | claims.random.of_any_size() << 32,
        claims.domain(),
        claims.argument(),
        claims.count(1),
        claims.argument(),
        claims.domain(),
    ];
    let place = claims.store(&structure);
    let mut operation = claims.random.below(28);
    if claims.random.once_in(8) {
        operation |= claims.random.of_any_size() << 6;
    }
    let arguments = [operation, claims.pointer(place)];
    issue(claims, tally, number::MEMORY_OP, &arguments);
}

/// `multicall`.
fn several_calls<A: Architecture>(claims: &mut Claims<'_, A>, tally: &mut Tally) {
    let mut calls = [0; 8 * BATCH];
    for entry in calls.chunks_exact_mut(8) {
        let number = claims.random.below(NUMBERS + 4);
        let arguments: [u64; 6] = core::array::from_fn(|_| claims.argument());
        let number = if is_the_end(claims, number, &arguments) { number::MULTICALL } else { number };
        entry[0] = number;
        entry[2..].copy_from_slice(&arguments);
    }
    let length = claims.random.below(BATCH as u64) + 1;
    let list = claims.store(&calls[..8 * length as usize]);
    let arguments = [claims.pointer(list), claims.count(length)];
    issue(claims, tally, number::MULTICALL, &arguments);
    A::install_traps();
}

/// A sub-operation whose structure is made of plausible words.
fn structured<A: Architecture>(claims: &mut Claims<'_, A>, tally: &mut Tally) {
    const CALLS: [(u64, u64); 12] = [
        (number::EVENT_CHANNEL_OP, 16),
        (number::GRANT_TABLE_OP, 14),
        (number::VCPU_OP, 16),
        (number::SCHED_OP, 10),
        (number::PHYSDEV_OP, 34),
        (number::XEN_VERSION, 12),
        (number::VM_ASSIST, 6),
        (number::CALLBACK_OP, 4),
        (number::SET_SEGMENT_BASE, 6),
        (number::DOMCTL, 4),
        (number::SYSCTL, 4),
        (number::PENUMBRA, 6),
    ];
    let (number, operations) = claims.one_of(&CALLS);
    let words: [u64; 12] = core::array::from_fn(|_| match claims.random.below(4) {
        0 => claims.random.below(8) | claims.random.below(8) << 32,
        1 => claims.domain() & 0xffff | claims.random.below(64) << 32,
        _ => claims.argument(),
    });
    let place = claims.store(&words);
    let second = match number {
        number::VCPU_OP => claims.random.below(10),
        number::PENUMBRA | number::VM_ASSIST | number::SET_SEGMENT_BASE => claims.argument(),
        _ => claims.pointer(place),
    };
    let third = if number == number::VCPU_OP { claims.pointer(place) } else { claims.count(1) };
    let arguments = [claims.random.below(operations), second, third];
    issue(claims, tally, number, &arguments);
}

/// Any hypercall with any arguments.
fn anything<A: Architecture>(claims: &mut Claims<'_, A>, tally: &mut Tally) {
    let number =
        if claims.random.once_in(16) { claims.random.of_any_size() } else { claims.random.below(NUMBERS) };
    let arguments: [u64; 6] = core::array::from_fn(|_| claims.argument());
    issue(claims, tally, number, &arguments);
}

/// Reads and writes memory, tables included: a fault is the domain's own to handle.
fn access<A: Architecture>(claims: &mut Claims<'_, A>, tally: &mut Tally) {
    for _ in 0..8 {
        let address = claims.address() & !7;
        tally.faults += u64::from(A::try_read_word(address).is_none());
        // Its own tables are written at places where it can live with what it gets.
        let address = claims.arena_address() + claims.random.below(PAGE_SIZE / 8) * 8;
        let level = claims.random.below(4) as Level + 1;
        tally.faults += u64::from(!A::try_write_word(address, claims.entry(level)));
        let place = claims.place();
        let page =
            claims.guest.try_m2p((place >> 12).min(1 << 28)).filter(|pfn| *pfn < claims.guest.info.nr_pages);
        if let Some(pfn) = page.filter(|pfn| claims.arena.contains(pfn) || *pfn == root_page(claims)) {
            let entry = linear_address(A::VIRT_BASE, pfn) | place & 0xff8;
            tally.faults += u64::from(!A::try_write_word(entry, claims.entry(level)));
        }
    }
}

fn root_page<A: Architecture>(claims: &Claims<'_, A>) -> u64 {
    crate::pages::linear_pfn(A::VIRT_BASE, claims.guest.info.pt_base)
}

/// Executes instructions that the seed has made up, in a page of the arena.
fn instruction<A: Architecture>(claims: &mut Claims<'_, A>, tally: &mut Tally) {
    let pfn = claims.page();
    if !claims.arena.contains(&pfn) {
        return;
    }
    let (code, frame) = (linear_address(A::VIRT_BASE, pfn), claims.guest.p2m(pfn).unwrap_or(0));
    let made_up = A::made_up_code(&mut claims.random);
    let written = made_up.iter().enumerate().all(|(i, &word)| A::try_write_word(code + i as u64 * 8, word));
    let data = claims.arena_address();
    if !written || data == code || update_va_mapping::<A>(code, A::executable(frame)).is_err() {
        return;
    }
    if A::try_read_word(code) == Some(made_up[0]) {
        A::execute(code, data);
        tally.faults += 1;
        A::install_traps();
    }
    let _ = update_va_mapping::<A>(code, A::leaf(frame, true));
}

/// Executes an instruction that must be refused.
fn forbidden<A: Architecture>(claims: &mut Claims<'_, A>, tally: &mut Tally) {
    let (name, execute) = claims.one_of(A::FORBIDDEN);
    let refused = execute();
    tally.faults += u64::from(refused);
    if !refused {
        say!(A, "hostile: ALLOWED: {name}");
    }
}

/// Brings a page of the arena back to what it was: its own, mapped writable, a table no longer.
fn repair<A: Architecture>(claims: &mut Claims<'_, A>) {
    let pfn = claims.page();
    let address = linear_address(A::VIRT_BASE, pfn);
    let frame = claims.guest.p2m(pfn).unwrap_or(0);
    let is_mine = claims.guest.try_m2p(frame) == Some(pfn);
    while mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0).is_ok() {}
    if update_va_mapping::<A>(address, A::leaf(frame, true)).is_ok() && is_mine {
        return;
    }
    // It has been given away, or is in use as a table for good: another frame takes its place.
    let _ = update_va_mapping::<A>(address, 0);
    let _ = reserve::<A>(XENMEM_DECREASE_RESERVATION, frame);
    if let Some(frame) = reserve::<A>(XENMEM_POPULATE_PHYSMAP, pfn) {
        claims.guest.set_p2m(pfn, frame);
        let _ = update_va_mapping::<A>(address, A::leaf(frame, true));
    }
}

/// One extent given back, or taken; the frame number that stands in the list afterwards.
fn reserve<A: Architecture>(operation: u64, number: u64) -> Option<u64> {
    let mut list = [number];
    hypercalls::reservation::<A>(operation, &mut list).ok().filter(|&done| done == 1).map(|_| list[0])
}
