//! Memory that domains get, give back and exchange: `memory_op`.

use crate::common::{self, Guest, LIST, POOL, Rig, SELF, address, frame, leaf, place};
use hyp_core::address::{MachineFrame, PseudoFrame};
use hyp_core::frame::FrameType;
use hyp_core::paging::Budget;
use penumbra_abi::domctl::{self, Domctl, GetMemoryList};
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::memory::{
    self, ForeignMemoryMap, MEMORY_MAP_RAM, MachphysMapping, MemoryExchange, MemoryMap, MemoryMapEntry,
    MemoryReservation,
};
use penumbra_abi::multicall::MulticallEntry;
use zerocopy::{FromBytes, IntoBytes};

const INCREASE: u64 = memory::XENMEM_INCREASE_RESERVATION;
const DECREASE: u64 = memory::XENMEM_DECREASE_RESERVATION;
const POPULATE: u64 = memory::XENMEM_POPULATE_PHYSMAP;

/// Pages of a guest that nothing needs: 512 of them.
const SPARE: u64 = 300;

/// One's own extents of an order.
fn own(order: u32) -> MemoryReservation {
    MemoryReservation { extent_order: order, domid: SELF as u16, ..MemoryReservation::default() }
}

fn name(rig: &Rig, mfn: MachineFrame) -> Option<u64> {
    rig.hv.frames().m2p().unwrap().get(mfn).map(PseudoFrame::number)
}

fn is_empty(rig: &Rig, mfn: MachineFrame) -> bool {
    (0..512).all(|at| rig.entry(mfn, at) == 0)
}

fn pages(rig: &Rig, who: usize) -> u64 {
    rig.domains[who].domain.pages(rig.hv.frames())
}

/// A rig whose domain 1 has given 512 frames back.
fn ballooned() -> Rig {
    let rig = Rig::new(1);
    let gone = rig.unmap(1, SPARE, 512);
    assert_eq!(rig.reserve(1, DECREASE, &gone, own(0)), Ok(512));
    rig
}

// ---- Reservations ------------------------------------------------------------------------------------------

#[test]
fn two_mebibytes_come_in_one_piece_and_go_in_one() {
    let rig = ballooned();
    assert_eq!(rig.reserve(1, POPULATE, &[SPARE], own(9)), Ok(1));
    let first = rig.list(1, 1)[0];
    assert!(first.is_multiple_of(512), "{first:#x} isn't aligned");
    let frames: Vec<_> = (first..first + 512).map(frame).collect();
    for (mfn, pfn) in frames.iter().zip(SPARE..) {
        assert_eq!(name(&rig, *mfn), Some(pfn));
        assert!(is_empty(&rig, *mfn), "{mfn:?} isn't scrubbed");
    }
    assert_eq!((pages(&rig, 1), rig.reserve(1, INCREASE, &[0], own(0))), (1024, Ok(0)));
    rig.check();
    // They are memory like any other: each for itself.
    assert_eq!(rig.remap(1, SPARE, leaf(frames[0], true)), Ok(0));
    assert_eq!(rig.remap(1, SPARE + 1, leaf(frames[511], false)), Ok(0));
    rig.check();
    assert_eq!(rig.reserve(1, DECREASE, &[first], own(9)), Ok(1));
    assert_eq!(pages(&rig, 1), 512 + 2, "two of them are still mapped");
    assert_eq!((rig.remap(1, SPARE, 0), rig.remap(1, SPARE + 1, 0)), (Ok(0), Ok(0)));
    assert_eq!(pages(&rig, 1), 512);
    rig.check();
}

#[test]
fn extents_of_every_order_are_aligned_and_apart() {
    let rig = ballooned();
    let mut all = std::collections::BTreeSet::new();
    for order in 0..9 {
        assert_eq!(rig.reserve(1, INCREASE, &[0], own(order)), Ok(1), "order {order}");
        let first = rig.list(1, 1)[0];
        assert!(first.is_multiple_of(1 << order));
        assert!((first..first + (1 << order)).all(|mfn| all.insert(mfn)), "order {order} overlaps");
        rig.check();
    }
    assert_eq!((all.len(), pages(&rig, 1)), (511, 1023));
    assert_eq!(rig.reserve(1, INCREASE, &[0], own(1)), Ok(0), "one more than it may have");
    assert_eq!(rig.reserve(1, INCREASE, &[0, 0], own(0)), Ok(1));
}

/// Giving 2 MiB back is cut in pieces within the extent, and nothing is done twice or left out.
#[test]
fn a_large_extent_is_given_back_piece_by_piece() {
    let rig = ballooned();
    rig.reserve(1, POPULATE, &[SPARE], own(9)).unwrap();
    let first = rig.list(1, 1)[0];
    let extent_start = rig.give(1, LIST, first.as_bytes());
    let reservation = MemoryReservation { extent_start, nr_extents: 1, ..own(9) };
    let at = rig.give(1, 16, reservation.as_bytes());
    let (mut arguments, mut rounds) = ([DECREASE, at, 0, 0, 0, 0], 0);
    let result = loop {
        match rig.call_once(1, number::MEMORY_OP, arguments) {
            Ok(result) => break result,
            Err(again) => arguments = again,
        }
        rounds += 1;
        rig.check();
        assert!(pages(&rig, 1) > 512);
    };
    assert_eq!((result, pages(&rig, 1)), (1, 512));
    assert!(rounds >= 4, "512 frames in {} rounds", rounds + 1);
}

/// Memory that was never used is scrubbed on the way, which takes several rounds; in between nobody has it.
#[test]
fn a_large_extent_is_scrubbed_piece_by_piece() {
    let rig = ballooned();
    // The machine's last chunks have never been anybody's, and hold rubbish.
    let extent_start = rig.give(1, LIST, SPARE.as_bytes());
    let reservation = MemoryReservation { extent_start, nr_extents: 1, ..own(9) };
    let at = rig.give(1, 16, reservation.as_bytes());
    let free = rig.hv.frames().free_frames();
    let (mut arguments, mut rounds) = ([POPULATE, at, 0, 0, 0, 0], 0);
    while let Err(again) = rig.call_once(1, number::MEMORY_OP, arguments) {
        arguments = again;
        rounds += 1;
        assert_eq!((rig.hv.frames().free_frames(), pages(&rig, 1)), (free, 512));
        rig.check();
    }
    assert!((4..20).contains(&rounds), "512 frames in {} rounds", rounds + 1);
    assert_eq!((rig.hv.frames().free_frames(), pages(&rig, 1)), (free - 512, 1024));
    let first = rig.list(1, 1)[0];
    assert!((first..first + 512).all(|mfn| is_empty(&rig, frame(mfn))));
}

/// What can't be done at all is answered as Xen does: with the number of extents done, which is where it began.
#[test]
fn impossible_reservations_do_nothing() {
    let rig = ballooned();
    let free = rig.hv.frames().free_frames();
    let cases = [
        ("an order too large", MemoryReservation { extent_order: 10, ..own(0) }),
        ("an order far too large", MemoryReservation { extent_order: u32::MAX, ..own(0) }),
        ("no such domain", MemoryReservation { domid: 77, ..own(0) }),
        ("no frame is that low", MemoryReservation { mem_flags: 12, ..own(0) }),
        ("no such frame is there", MemoryReservation { mem_flags: 21, ..own(0) }),
    ];
    for operation in [INCREASE, POPULATE] {
        for (what, reservation) in cases {
            assert_eq!(rig.reserve(0, operation, &[1], reservation), Ok(0), "{what}");
            rig.check();
        }
    }
    let on_demand = MemoryReservation { mem_flags: memory::XENMEMF_POPULATE_ON_DEMAND, ..own(0) };
    assert_eq!(rig.reserve(1, POPULATE, &[1], on_demand), Ok(0));
    assert_eq!(rig.hv.frames().free_frames(), free);
    let endless = MemoryReservation { nr_extents: 1 << 26, ..own(0) };
    let at = rig.give(1, 16, endless.as_bytes());
    for start in [0, 5, 1 << 30] {
        assert_eq!(rig.call(1, number::MEMORY_OP, [INCREASE | start << 6, at, 0, 0, 0, 0]), Ok(start));
    }
    assert_eq!(rig.call(1, number::MEMORY_OP, [INCREASE | 3 << 6, 0, 0, 0, 0, 0]), Ok(3), "no structure");
    assert_eq!(rig.hv.frames().free_frames(), free);
}

#[test]
fn a_limit_of_address_bits_holds() {
    let rig = Rig::new(1);
    let below = |bits: u32| MemoryReservation { mem_flags: bits, ..own(0) };
    // Two free frames of the control domain's, and two of domain 1's, which got its memory further up.
    let (low, high) = (rig.unmap(0, SPARE, 2), rig.unmap(1, SPARE, 2));
    let limit = 1 << (64 - low[1].leading_zeros());
    assert!(
        low[0] < limit && high.iter().all(|frame| *frame >= limit),
        "the test's layout: {low:?} {high:?}"
    );
    assert_eq!(rig.reserve(0, DECREASE, &low, own(0)), Ok(2));
    assert_eq!(rig.reserve(1, DECREASE, &high, own(0)), Ok(2));
    assert_eq!(rig.reserve(1, INCREASE, &[0], below(21)), Ok(0), "no frame is that low");
    let bits = 12 + limit.trailing_zeros();
    assert_eq!(rig.reserve(1, INCREASE, &[0, 0], below(bits)), Ok(2));
    assert!(rig.list(1, 2).iter().all(|frame| low.contains(frame)));
    assert_eq!(rig.reserve(0, INCREASE, &[0, 0], below(bits)), Ok(0), "the low ones are gone");
    assert_eq!(rig.reserve(0, INCREASE, &[0, 0], below(64)), Ok(2));
    rig.check();
}

/// A guest names frames of extents that it doesn't have, in whole or in part.
#[test]
fn an_extent_is_taken_back_up_to_the_first_frame_that_is_not_there() {
    let rig = ballooned();
    rig.reserve(1, POPULATE, &[SPARE], own(3)).unwrap();
    let first = rig.list(1, 1)[0];
    assert_eq!(rig.reserve(1, DECREASE, &[first + 5], own(0)), Ok(1));
    assert_eq!(rig.reserve(1, DECREASE, &[first], own(3)), Ok(0));
    assert_eq!(pages(&rig, 1), 512 + 2, "five of eight, then one was missing");
    for mfn in [u64::MAX, MachineFrame::LIMIT - 1, 0, rig.pool(0, 0).number()] {
        assert_eq!(rig.reserve(1, DECREASE, &[mfn], own(9)), Ok(0), "{mfn:#x}");
    }
    rig.check();
}

/// XSA-252: memory that a guest gave back was implicitly unpinned, and a preempted unpin then dropped one reference too many. Here a
/// pinned table isn't given back, neither alone nor within an extent.
#[test]
fn xsa_252_a_pinned_table_is_not_given_back() {
    let rig = ballooned();
    rig.reserve(1, POPULATE, &[SPARE], own(2)).unwrap();
    let first = rig.list(1, 1)[0];
    rig.pin(1, frame(first + 2), 2).unwrap();
    assert_eq!(rig.reserve(1, DECREASE, &[first + 2], own(0)), Ok(0));
    assert_eq!(rig.reserve(1, DECREASE, &[first], own(2)), Ok(0));
    assert_eq!(rig.uses(frame(first + 2)), 1);
    assert_eq!(pages(&rig, 1), 512 + 2, "the two before it are gone");
    rig.check();
    rig.unpin(1, frame(first + 2)).unwrap();
    assert_eq!(rig.reserve(1, DECREASE, &[first + 2, first + 3], own(0)), Ok(2));
    rig.check();
}

#[test]
fn one_domain_has_no_say_in_anothers_memory() {
    let rig = Rig::new(2);
    for target in [0, 2] {
        let theirs = MemoryReservation { domid: target, ..own(0) };
        let frames = [rig.pool(usize::from(target), 0).number()];
        for operation in [INCREASE, DECREASE, POPULATE] {
            assert_eq!(rig.reserve(1, operation, &frames, theirs), Err(Errno::EPERM));
        }
        let exchange = Exchange { domid: target, ..Exchange::new(&frames, 0, &[7], 0) };
        assert_eq!(exchange.ask(&rig, 1).0, Err(Errno::EPERM));
        let map = ForeignMemoryMap { domid: target, ..ForeignMemoryMap::default() };
        let at = rig.give(1, 16, map.as_bytes());
        let set = [memory::XENMEM_SET_MEMORY_MAP, at, 0, 0, 0, 0];
        assert_eq!(rig.call(1, number::MEMORY_OP, set), Err(Errno::EPERM));
        rig.give(1, 16, target.as_bytes());
        assert_eq!(
            rig.call(1, number::MEMORY_OP, [memory::XENMEM_MAXIMUM_GPFN, at, 0, 0, 0, 0]),
            Err(Errno::EPERM)
        );
    }
    let map = [memory::XENMEM_MACHINE_MEMORY_MAP, address(common::SCRATCH), 0, 0, 0, 0];
    assert_eq!(rig.call(1, number::MEMORY_OP, map), Err(Errno::EPERM));
    rig.check();
    // The control domain may.
    let theirs = MemoryReservation { domid: 2, ..own(0) };
    let frames = rig.unmap(2, POOL, 1);
    assert_eq!(rig.reserve(0, DECREASE, &frames, theirs), Ok(1));
    assert_eq!(pages(&rig, 2), 1023);
    assert_eq!(rig.reserve(0, POPULATE, &[POOL], theirs), Ok(1));
    assert_eq!(name(&rig, frame(rig.list(0, 1)[0])), Some(POOL));
    assert_eq!(pages(&rig, 2), 1024);
    rig.check();
}

// ---- Exchange ----------------------------------------------------------------------------------------------

/// An exchange, with its lists.
#[derive(Clone)]
struct Exchange {
    old: Vec<u64>,
    old_order: u32,
    new: Vec<u64>,
    new_order: u32,
    domid: u16,
    bits: u32,
}

/// Where in the scratch memory the new extents' list lies; the old ones' is at [`LIST`].
const NEW: u64 = 2 * LIST;

impl Exchange {
    fn new(old: &[u64], old_order: u32, new: &[u64], new_order: u32) -> Self {
        let (old, new) = (old.to_vec(), new.to_vec());
        Self { old, old_order, new, new_order, domid: SELF as u16, bits: 0 }
    }

    fn structure(&self, rig: &Rig, who: usize) -> MemoryExchange {
        let old = rig.give(who, LIST, self.old.as_bytes());
        let new = rig.give(who, NEW, self.new.as_bytes());
        let extents = |extent_start, list: &[u64], extent_order| MemoryReservation {
            extent_start,
            nr_extents: list.len() as u64,
            extent_order,
            domid: self.domid,
            ..MemoryReservation::default()
        };
        MemoryExchange {
            input: extents(old, &self.old, self.old_order),
            output: MemoryReservation { mem_flags: self.bits, ..extents(new, &self.new, self.new_order) },
            nr_exchanged: 0,
        }
    }

    /// The result, and how many of the old extents are said to be done.
    fn ask(&self, rig: &Rig, who: usize) -> (Result<u64, Errno>, u64) {
        ask(rig, who, self.structure(rig, who))
    }
}

fn ask(rig: &Rig, who: usize, exchange: MemoryExchange) -> (Result<u64, Errno>, u64) {
    let at = rig.give(who, 16, exchange.as_bytes());
    let result = rig.call(who, number::MEMORY_OP, [memory::XENMEM_EXCHANGE, at, 0, 0, 0, 0]);
    (result, rig.word(who, 16 + 64))
}

/// A chunk can't be cut: it waits for a whole budget if others have spent too much of this one, and only then.
#[test]
fn an_exchange_late_in_a_multicall_waits_for_the_next_turn() {
    for (before, waits) in [(0, false), (3, false), (9, true)] {
        let rig = Rig::new(1);
        // A run of four that needs no scrubbing is free.
        let spare = rig.unmap(1, POOL + 4, 4);
        assert_eq!(rig.reserve(1, DECREASE, &spare, own(0)), Ok(4));
        assert_eq!(rig.reserve(1, POPULATE, &[POOL + 4], own(2)), Ok(1));
        let run = rig.list(1, 1);
        assert_eq!(rig.reserve(1, DECREASE, &run, own(2)), Ok(1));
        let old = rig.unmap(1, POOL, 4);
        let at = rig.give(1, 16, Exchange::new(&old, 0, &[7], 2).structure(&rig, 1).as_bytes());
        let entry = |operation, first, second| MulticallEntry {
            operation,
            result: 0,
            arguments: [first, second, 0, 0, 0, 0],
        };
        let mut list = vec![entry(number::XEN_VERSION, 0, 0); before];
        list.push(entry(number::MEMORY_OP, memory::XENMEM_EXCHANGE, at));
        let at = rig.give(1, 3 * LIST, list.as_bytes());
        let vcpu = rig.domains[1].vcpu();
        let mut arguments = [at, list.len() as u64, 0, 0, 0, 0];
        let mut turns = 0;
        loop {
            vcpu.context().take();
            rig.hv.hypercall_within(vcpu, number::MULTICALL, arguments, &Budget::new(4 * Budget::FRAME + 70));
            turns += 1;
            let Some(again) = vcpu.context().take().again else { break };
            assert_eq!(again[1], 1, "the exchange alone");
            arguments = again;
        }
        assert_eq!(turns, 1 + u32::from(waits), "{before} calls before it");
        assert_eq!(rig.word(1, 16 + 64), 4, "extents exchanged");
        rig.check();
    }
}

fn new_list(rig: &Rig, who: usize, count: usize) -> Vec<u64> {
    (0..count as u64).map(|index| rig.word(who, NEW + 8 * index)).collect()
}

fn owner(rig: &Rig, mfn: u64) -> Option<u16> {
    rig.hv.frames().hold(frame(mfn)).unwrap().owner.map(|owner| owner.number())
}

/// What a guest does that needs contiguous memory: single frames for a run of 512, and back.
#[test]
fn single_frames_are_exchanged_for_two_mebibytes_and_back() {
    let rig = Rig::new(1);
    let free = rig.hv.frames().free_frames();
    let old = rig.unmap(1, SPARE, 512);
    assert_eq!(Exchange::new(&old, 0, &[SPARE], 9).ask(&rig, 1), (Ok(0), 512));
    rig.check();
    let first = new_list(&rig, 1, 1)[0];
    assert!(first.is_multiple_of(512) && old.iter().all(|mfn| owner(&rig, *mfn).is_none()));
    for (mfn, pfn) in (first..first + 512).map(frame).zip(SPARE..) {
        assert_eq!((name(&rig, mfn), owner(&rig, mfn.number())), (Some(pfn), Some(1)));
        assert!(is_empty(&rig, mfn), "{mfn:?} isn't scrubbed");
    }
    assert_eq!((pages(&rig, 1), rig.hv.frames().free_frames()), (1024, free));
    let names: Vec<_> = (SPARE..SPARE + 512).collect();
    assert_eq!(Exchange::new(&[first], 9, &names, 0).ask(&rig, 1), (Ok(0), 1));
    rig.check();
    let singles = new_list(&rig, 1, 512);
    assert!(singles.iter().zip(SPARE..).all(|(mfn, pfn)| name(&rig, frame(*mfn)) == Some(pfn)));
    assert!(singles.iter().all(|mfn| owner(&rig, *mfn) == Some(1) && is_empty(&rig, frame(*mfn))));
    assert_eq!((pages(&rig, 1), rig.hv.frames().free_frames()), (1024, free));
}

/// Extents of other sizes of the same total, several chunks of them.
#[test]
fn extents_of_all_orders_can_be_exchanged() {
    let rig = ballooned();
    for (old_order, new_order) in [(0, 0), (2, 0), (0, 2), (3, 5), (5, 3), (4, 4)] {
        rig.reserve(1, POPULATE, &[SPARE], own(6)).unwrap();
        let first = rig.list(1, 1)[0];
        let old: Vec<_> = (first..first + 64).step_by(1 << old_order).collect();
        let new: Vec<_> = (SPARE..SPARE + 64).step_by(1 << new_order).collect();
        let exchange = Exchange::new(&old, old_order, &new, new_order);
        assert_eq!(exchange.ask(&rig, 1), (Ok(0), old.len() as u64), "{old_order} for {new_order}");
        rig.check();
        let new = new_list(&rig, 1, new.len());
        assert!(new.iter().all(|mfn| mfn.is_multiple_of(1 << new_order)));
        assert_eq!(rig.reserve(1, DECREASE, &new, own(new_order)), Ok(new.len() as u64));
        rig.check();
    }
    assert_eq!(pages(&rig, 1), 512);
}

#[test]
fn an_exchange_is_preempted_between_chunks_and_goes_on() {
    let rig = Rig::new(1);
    let old = rig.unmap(1, SPARE, 256);
    let names: Vec<_> = (SPARE..SPARE + 256).collect();
    let exchange = Exchange::new(&old, 0, &names, 0).structure(&rig, 1);
    let at = rig.give(1, 16, exchange.as_bytes());
    let mut arguments = [memory::XENMEM_EXCHANGE, at, 0, 0, 0, 0];
    let mut done = vec![0];
    while let Err(again) = rig.call_once(1, number::MEMORY_OP, arguments) {
        arguments = again;
        rig.check();
        done.push(rig.word(1, 16 + 64));
        assert!(done.len() < 100, "no progress");
    }
    assert!(done.len() > 3 && done.is_sorted(), "{done:?}");
    assert_eq!(rig.word(1, 16 + 64), 256);
    assert!(
        new_list(&rig, 1, 256).iter().zip(SPARE..).all(|(mfn, pfn)| name(&rig, frame(*mfn)) == Some(pfn))
    );
}

/// All or nothing for each chunk: what is wrong with one frame keeps the others where they are.
#[test]
fn a_chunk_that_fails_is_put_back() {
    let rig = Rig::new(2);
    let good = rig.unmap(1, SPARE, 3);
    let table = rig.prepare(1, 0, &[]);
    rig.pin(1, table, 1).unwrap();
    let bad = [
        ("mapped", rig.pool(1, 9).number()),
        ("a pinned table", table.number()),
        ("another domain's", rig.pool(2, 0).number()),
        ("named twice", good[1]),
        ("no memory", 0),
        ("no frame", u64::MAX),
        ("the shared page", rig.domains[1].domain.shared_info().unwrap().number()),
        ("free", rig.hv.frames().extent().1 - 1),
    ];
    let free = rig.hv.frames().free_frames();
    for (what, mfn) in bad {
        for position in 0..4 {
            let mut old = good.clone();
            old.insert(position, mfn);
            let exchange = Exchange::new(&old, 0, &[SPARE], 2);
            assert_eq!(exchange.ask(&rig, 1), (Err(Errno::EINVAL), 0), "{what} at {position}");
            assert!(good.iter().all(|mfn| owner(&rig, *mfn) == Some(1)));
            assert_eq!((rig.hv.frames().free_frames(), new_list(&rig, 1, 1)), (free, vec![SPARE]));
            rig.check();
        }
    }
    // The first chunk is done, the second isn't.
    let old = [good[0], good[1], good[2], rig.pool(1, 9).number()];
    assert_eq!(Exchange::new(&old, 0, &[SPARE, SPARE + 2], 1).ask(&rig, 1), (Err(Errno::EINVAL), 2));
    assert_eq!((owner(&rig, good[0]), owner(&rig, good[2])), (None, Some(1)));
    assert_eq!(new_list(&rig, 1, 2)[1], SPARE + 2);
    rig.check();
}

#[test]
fn exchanges_that_make_no_sense_are_refused() {
    let rig = Rig::new(1);
    let old = rig.unmap(1, SPARE, 4);
    let good = Exchange::new(&old, 0, &[SPARE], 2).structure(&rig, 1);
    let with = |change: fn(&mut MemoryExchange)| {
        let mut exchange = good;
        change(&mut exchange);
        ask(&rig, 1, exchange)
    };
    assert_eq!(with(|exchange| exchange.output.extent_order = 10).0, Err(Errno::EPERM));
    assert_eq!(with(|exchange| exchange.input.extent_order = u32::MAX).0, Err(Errno::EPERM));
    assert_eq!(with(|exchange| exchange.output.nr_extents = 2).0, Err(Errno::EINVAL));
    assert_eq!(with(|exchange| exchange.input.nr_extents = u64::MAX).0, Err(Errno::EINVAL));
    assert_eq!(with(|exchange| exchange.output.domid = 1).0, Err(Errno::EINVAL));
    assert_eq!(with(|exchange| exchange.nr_exchanged = 5), (Err(Errno::EINVAL), 5));
    assert_eq!(
        with(|exchange| {
            exchange.input.domid = 99;
            exchange.output.domid = 99;
        })
        .0,
        Err(Errno::EPERM)
    );
    assert_eq!(with(|exchange| exchange.input.extent_start = 1 << 40).0, Err(Errno::EFAULT));
    assert_eq!(with(|exchange| exchange.output.extent_start = u64::MAX - 3).0, Err(Errno::EFAULT));
    assert_eq!(with(|exchange| exchange.output.mem_flags = 12).0, Err(Errno::ENOMEM));
    assert_eq!(with(|exchange| exchange.output.mem_flags = 20).0, Err(Errno::ENOMEM));
    let continued = [memory::XENMEM_EXCHANGE | 1 << 6, address(common::SCRATCH) + 16, 0, 0, 0, 0];
    assert_eq!(rig.call(1, number::MEMORY_OP, continued), Err(Errno::EINVAL));
    assert_eq!(rig.call(1, number::MEMORY_OP, [memory::XENMEM_EXCHANGE, 0, 0, 0, 0, 0]), Err(Errno::EFAULT));
    rig.check();
    assert!(old.iter().all(|mfn| owner(&rig, *mfn) == Some(1)));
    assert_eq!(ask(&rig, 1, good), (Ok(0), 4), "and the good one is good");
}

/// XSA-214: a page that a guest transferred away kept its validated type, so that its next owner could have a page table it had never
/// been asked about, and write to it. Here a frame's type is forgotten, after a flush, when the frame changes hands.
#[test]
fn xsa_214_a_frame_that_changes_hands_has_no_type() {
    let rig = Rig::new(2);
    let table = rig.prepare(1, 0, &[(0, leaf(rig.pool(1, 1), true))]);
    rig.pin(1, table, 1).unwrap();
    assert_eq!(Exchange::new(&[table.number()], 0, &[POOL], 0).ask(&rig, 1).0, Err(Errno::EINVAL));
    rig.unpin(1, table).unwrap();
    let usage = |mfn| rig.hv.frames().usage(mfn).unwrap();
    assert_eq!(usage(table).kind, FrameType::Table(1), "it was a table once");
    let flushes = rig.hv.machine().flushes();
    assert_eq!(Exchange::new(&[table.number()], 0, &[POOL], 0).ask(&rig, 1), (Ok(0), 1));
    assert!(rig.hv.machine().flushes() > flushes);
    assert_eq!(
        (usage(table).kind, usage(table).complete, owner(&rig, table.number())),
        (FrameType::None, false, None)
    );
    // The other domain gets every frame that is low, so this one, too.
    let gone = rig.unmap(2, SPARE, 1);
    rig.reserve(2, DECREASE, &gone, own(0)).unwrap();
    let bits = 64 - (table.number() + 1).leading_zeros() + 12;
    rig.reserve(2, INCREASE, &[0], MemoryReservation { mem_flags: bits, ..own(0) }).unwrap();
    let got = frame(rig.list(2, 1)[0]);
    assert_eq!(got, table, "the test's layout");
    assert!(is_empty(&rig, got), "the old owner's entries are still there");
    assert_eq!(rig.remap(2, SPARE, leaf(got, true)), Ok(0));
    rig.check();
}

/// XSA-287: a page was stolen from its owner while somebody else still held a reference, so that what was known of it was wrong
/// afterwards. Here each kind of reference keeps the frame where it is.
#[test]
fn xsa_287_a_frame_that_anyone_holds_is_not_stolen() {
    let rig = Rig::new(1);
    let steal = |mfn: MachineFrame| Exchange::new(&[mfn.number()], 0, &[POOL], 0).ask(&rig, 1);
    let refused = (Err(Errno::EINVAL), 0);
    let mine = rig.free_up(1, 0);
    // Its own read-only mapping, the control domain's, a table's entry, a table's use, a root's.
    rig.remap(1, POOL + 1, leaf(mine, false)).unwrap();
    assert_eq!(steal(mine), refused);
    rig.remap(1, POOL + 1, 0).unwrap();
    let (table, index) = rig.builder_entry(0, POOL);
    rig.update_for(0, &[(place(table, index), leaf(mine, false))], 1).unwrap();
    assert_eq!(steal(mine), refused, "the control domain looks at it");
    rig.remap(0, POOL, 0).unwrap();
    let one = rig.prepare(1, 2, &[(0, leaf(mine, true))]);
    rig.pin(1, one, 1).unwrap();
    assert_eq!((steal(mine), steal(one)), (refused, refused));
    assert_eq!(steal(rig.domains[1].root), refused);
    rig.unpin(1, one).unwrap();
    rig.check();
    assert_eq!((steal(mine), steal(one)), ((Ok(0), 1), (Ok(0), 1)));
    rig.check();
}

#[test]
fn the_control_domain_exchanges_for_another() {
    let rig = Rig::new(1);
    let old = rig.unmap(1, SPARE, 2);
    let exchange = Exchange { domid: 1, ..Exchange::new(&old, 0, &[SPARE], 1) };
    assert_eq!(exchange.ask(&rig, 0), (Ok(0), 2));
    let first = new_list(&rig, 0, 1)[0];
    assert_eq!((owner(&rig, first), owner(&rig, first + 1), pages(&rig, 1)), (Some(1), Some(1), 1024));
    rig.check();
}

// ---- Maps and lists ----------------------------------------------------------------------------------------

fn map(rig: &Rig, who: usize, operation: u64, room: u32) -> (Result<u64, Errno>, Vec<MemoryMapEntry>) {
    let buffer = address(common::SCRATCH) + LIST;
    let at = rig.give(who, 16, MemoryMap { nr_entries: room, pad: 0, buffer }.as_bytes());
    let result = rig.call(who, number::MEMORY_OP, [operation, at, 0, 0, 0, 0]);
    let count = if result.is_ok() { rig.word(who, 16) as u32 } else { 0 };
    let bytes: Vec<u8> = (0..64).flat_map(|index| rig.word(who, LIST + 8 * index).to_le_bytes()).collect();
    let entries =
        (0..count as usize).map(|index| MemoryMapEntry::read_from_bytes(&bytes[20 * index..][..20]).unwrap());
    (result, entries.collect())
}

#[test]
fn a_domain_has_a_memory_map_and_may_set_its_own() {
    let rig = Rig::new(1);
    let ram = MemoryMapEntry { address: 0, size: 1024 << 12, kind: MEMORY_MAP_RAM };
    let get = memory::XENMEM_MEMORY_MAP;
    assert_eq!(map(&rig, 1, get, 10), (Ok(0), vec![ram]));
    assert_eq!(map(&rig, 1, get, 0), (Ok(0), vec![]));
    let mine = [ram, MemoryMapEntry { address: 1 << 32, size: 5, kind: 2 }];
    let set = |count: u32, buffer: u64| {
        let map = MemoryMap { nr_entries: count, pad: 0, buffer };
        let at = rig.give(1, 16, ForeignMemoryMap { domid: SELF as u16, pad: [0; 3], map }.as_bytes());
        rig.call(1, number::MEMORY_OP, [memory::XENMEM_SET_MEMORY_MAP, at, 0, 0, 0, 0])
    };
    let buffer = rig.give(1, LIST, mine.as_bytes());
    assert_eq!((set(33, buffer), set(2, 0)), (Err(Errno::EINVAL), Err(Errno::EFAULT)));
    assert_eq!(map(&rig, 1, get, 10).1, [ram]);
    rig.give(1, LIST, mine.as_bytes());
    assert_eq!(set(2, buffer), Ok(0));
    assert_eq!((map(&rig, 1, get, 10).1, map(&rig, 1, get, 1).1), (mine.to_vec(), vec![ram]));
    rig.bury(1);
    let heir = Rig { hv: rig.hv, domains: vec![Guest::new(rig.hv, false)] };
    assert_eq!(map(&heir, 0, get, 10).1, [ram], "the next domain in its place has its own");
}

#[test]
fn the_machines_map_is_the_control_domains() {
    let rig = Rig::new(1);
    let machine = memory::XENMEM_MACHINE_MEMORY_MAP;
    let all =
        MemoryMapEntry { address: 512 << 12, size: (common::MACHINE as u64) << 12, kind: MEMORY_MAP_RAM };
    assert_eq!(map(&rig, 0, machine, 2), (Ok(0), vec![all]));
    assert_eq!(map(&rig, 0, machine, 1).0, Err(Errno::EINVAL), "as Xen: one more than there are");
    assert_eq!(map(&rig, 1, machine, 2).0, Err(Errno::EPERM));
    let at = rig.give(0, 16, MemoryMap::default().as_bytes());
    assert_eq!(rig.call(0, number::MEMORY_OP, [machine, at, 0, 0, 0, 0]), Ok(0));
    assert_eq!(rig.word(0, 16) as u32, 1, "without a buffer, only their number");
}

#[test]
fn what_memory_there_is_can_be_asked() {
    let rig = Rig::new(1);
    let at = rig.give(1, 16, SELF.as_bytes());
    let ask = |operation: u64| rig.call(1, number::MEMORY_OP, [operation, at, 0, 0, 0, 0]);
    let end = rig.hv.frames().extent().1;
    assert_eq!(ask(memory::XENMEM_MAXIMUM_RAM_PAGE), Ok(end - 1));
    assert_eq!(ask(memory::XENMEM_CURRENT_RESERVATION), Ok(1024));
    assert_eq!(ask(memory::XENMEM_MAXIMUM_RESERVATION), Ok(1024));
    assert_eq!(ask(memory::XENMEM_MAXIMUM_GPFN), Ok(1023));
    for operation in [2, 3, 4, 14] {
        assert_eq!(ask(operation | 1 << 6), Err(Errno::EINVAL), "operation {operation}, continued");
    }
    let refused =
        [memory::XENMEM_MACHPHYS_MFN_LIST, memory::XENMEM_SET_POD_TARGET, memory::XENMEM_GET_POD_TARGET, 63];
    for operation in refused {
        assert_eq!(ask(operation), Err(Errno::ENOSYS), "operation {operation}");
    }
    assert_eq!(ask(memory::XENMEM_MACHPHYS_MAPPING), Ok(0));
    let words: Vec<u8> = (0..3).flat_map(|index| rig.word(1, 16 + 8 * index).to_le_bytes()).collect();
    let window = MachphysMapping::read_from_bytes(&words).unwrap();
    assert_eq!((window.v_end - window.v_start, window.max_mfn), (8 * end, end - 1));
}

/// The list of a domain's frames, from some number on, so many of them.
fn memory_list(rig: &Rig, start_pfn: u64, max_pfns: u64, budget: u32) -> (Vec<u64>, u32) {
    let buffer = address(common::SCRATCH) + LIST;
    let list = GetMemoryList { max_pfns, start_pfn, buffer, ..GetMemoryList::default() };
    let at = rig.give(0, 16, Domctl::new(domctl::GETMEMLIST, 1, list.as_bytes()).as_bytes());
    let vcpu = rig.domains[0].vcpu();
    let (mut arguments, mut rounds) = ([at, 77, 77, 77, 77, 77], 0);
    loop {
        rounds += 1;
        rig.hv.hypercall_within(vcpu, number::DOMCTL, arguments, &Budget::new(budget));
        let registers = vcpu.context().take();
        if let Some(result) = registers.result {
            assert_eq!(result, 0);
            break;
        }
        arguments = registers.again.unwrap();
    }
    let bytes: Vec<u8> = (0..size_of::<Domctl>() as u64 / 8)
        .flat_map(|index| rig.word(0, 16 + 8 * index).to_le_bytes())
        .collect();
    let list: GetMemoryList = Domctl::read_from_prefix(&bytes).unwrap().0.read_body().unwrap();
    ((0..list.num_pfns).map(|index| rig.word(0, LIST + 8 * index)).collect(), rounds)
}

#[test]
fn the_list_of_frames_is_the_same_however_it_is_cut() {
    let rig = Rig::new(1);
    let mut all: Vec<_> = rig.domains[1].p2m.iter().map(|mfn| mfn.number()).collect();
    all.sort_unstable();
    for (start, count) in [(0, 1024), (0, 1), (0, 0), (100, 63), (100, 64), (100, 65), (1000, 500), (2000, 5)]
    {
        let wanted: Vec<_> = all.iter().copied().skip(start).take(count).collect();
        for budget in [1, 7, 100, Budget::HYPERCALL] {
            let (list, rounds) = memory_list(&rig, start as u64, count as u64, budget);
            assert_eq!(list, wanted, "{count} from {start} on, budget {budget}");
            assert!(budget > 100 || count < 63 || rounds > 2, "in {rounds} rounds");
        }
    }
}

// ---- Destruction -------------------------------------------------------------------------------------------

/// However much memory a domain has, each step of its destruction does a bounded amount of work: it looks at so many records, frees so many
/// frames. A domain of 4 GiB takes more steps, not longer ones.
#[test]
fn destruction_is_cut_in_steps_of_bounded_size() {
    let rig = ballooned();
    rig.reserve(1, POPULATE, &[SPARE], own(9)).unwrap();
    rig.hv.kill(rig.domains[1].vcpu(), format_args!("a test"));
    let (mut steps, mut most) = (0, 0);
    loop {
        let before = (rig.hv.machine().scrubbed(), rig.hv.frames().free_frames());
        let more = rig.hv.background();
        most = most.max(rig.hv.machine().scrubbed() - before.0);
        assert!(rig.hv.frames().free_frames() - before.1 <= 128);
        steps += 1;
        rig.check();
        if !more {
            break;
        }
    }
    assert!((9..200).contains(&steps), "1024 frames in {steps} steps");
    assert_eq!(most, 128);
}
