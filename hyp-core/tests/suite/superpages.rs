//! Superpages: one entry that maps many frames, each of which counts for itself; and linear tables, an entry that
//! maps a root's own tables.
//!
//! On the fake machine a superpage has 16 frames.

use crate::common::{POOL, Rig, frame, leaf, place, table};
use hyp_core::address::MachineFrame;
use hyp_core::fake::format::READ_ONLY;
use hyp_core::frame::FrameType;
use hyp_core::paging::update::HardwareBits;
use hyp_core::paging::{Budget, ROOM_FOR_A_TABLE, Stop};
use penumbra_abi::errno::Errno;
use penumbra_abi::memory;

/// Frames of a superpage.
const SPAN: u64 = 16;

/// A level-2 table of the builder's, and the index of an entry in it that is empty.
fn empty_entry(rig: &Rig, who: usize) -> (MachineFrame, usize) {
    let root = rig.domains[who].root;
    let two = rig.prepare(who, 40, &[]);
    rig.update(who, &[(place(root, 5), table(two))]).expect("an empty level-2 table");
    (two, 3)
}

/// The first of 16 pool frames that follow each other from a multiple of 16, and its index in the pool.
pub fn run(rig: &Rig, who: usize) -> (u64, MachineFrame) {
    let follows = |index: u64| {
        (0..SPAN).all(|step| rig.pool(who, index + step).number() == rig.pool(who, index).number() + step)
    };
    let first = (0..24).find(|index| rig.pool(who, *index).number().is_multiple_of(SPAN) && follows(*index));
    let first = first.expect("16 frames in a row");
    (first, rig.pool(who, first))
}

fn put(rig: &Rig, who: usize, at: (MachineFrame, usize), raw: u64) -> Result<u64, Errno> {
    let before = rig.entry(at.0, at.1);
    let outcome = rig.update(who, &[(place(at.0, at.1), raw)]);
    if outcome.is_err() {
        assert_eq!(rig.entry(at.0, at.1), before);
    }
    rig.check();
    outcome
}

#[test]
fn a_superpage_counts_each_of_its_frames() {
    let rig = Rig::new(1);
    let at = empty_entry(&rig, 1);
    let (_, first) = run(&rig, 1);
    let references = |rig: &Rig| -> Vec<u32> {
        (0..SPAN).map(|step| rig.hv.frames().hold(frame(first.number() + step)).unwrap().references).collect()
    };
    let before = references(&rig);
    assert_eq!(put(&rig, 1, at, leaf(first, true)), Ok(0));
    assert!(references(&rig).iter().zip(&before).all(|(now, before)| *now == before + 1));
    assert!((0..SPAN).all(|step| rig.uses(frame(first.number() + step)) == 2));
    // To read-only, back, and away.
    assert_eq!(put(&rig, 1, at, leaf(first, false)), Ok(0));
    assert!((0..SPAN).all(|step| rig.uses(frame(first.number() + step)) == 1));
    assert_eq!(put(&rig, 1, at, leaf(first, true)), Ok(0));
    assert_eq!(put(&rig, 1, at, 0), Ok(0));
    assert_eq!(references(&rig), before);
}

/// All of its frames come and go in one piece: that waits for another budget if too much of this one is spent, and only then.
#[test]
fn a_superpage_waits_for_a_budget_that_covers_it() {
    let rig = Rig::new(1);
    let (table, index) = empty_entry(&rig, 1);
    let (_, first) = run(&rig, 1);
    let set = |raw, spent| {
        let budget = Budget::new(ROOM_FOR_A_TABLE + 200);
        budget.charge(spent);
        rig.space(1, &budget).update(table, 2, index, raw, HardwareBits::Replace)
    };
    for raw in [leaf(first, true), leaf(first, false), 0] {
        assert_eq!(set(raw, 201), Err(Stop::Preempted));
        assert_eq!(set(raw, 200), Ok(()));
        assert_eq!(rig.entry(table, index), raw);
        rig.check();
    }
    // Half of a hypercall's budget is enough.
    let budget = Budget::new(Budget::HYPERCALL);
    budget.charge(Budget::HYPERCALL / 2);
    let outcome = rig.space(1, &budget).update(table, 2, index, leaf(first, true), HardwareBits::Replace);
    assert_eq!(outcome, Ok(()));
}

/// So does the end of a table that maps one: the domain's next hypercall goes on with it.
#[test]
fn a_table_that_ends_keeps_its_superpage_for_a_budget_that_covers_it() {
    for (spent, waits) in [(0, false), (190, false), (201, true)] {
        let rig = Rig::new(1);
        let (_, first) = run(&rig, 1);
        let two = rig.prepare(1, 40, &[(7, leaf(first, true))]);
        assert_eq!(rig.pin(1, two, 2), Ok(0));
        let budget = Budget::new(ROOM_FOR_A_TABLE + 200);
        budget.charge(spent);
        let mut space = rig.space(1, &budget);
        space.unpin(two).expect("it was pinned");
        drop(space);
        assert_eq!(rig.uses(first) == 2, waits, "{spent} spent");
        rig.space(1, &Budget::unbounded()).settle(None).expect("all of it");
        assert_eq!(rig.uses(first), 1);
        rig.check();
    }
}

/// XSA-148: the writable bit of a superpage must count, or a guest writes to its own page tables through it.
#[test]
fn xsa_148_a_superpage_over_a_table_is_refused_if_writable() {
    let rig = Rig::new(1);
    let at = empty_entry(&rig, 1);
    let (index, first) = run(&rig, 1);
    for position in [0, 7, SPAN - 1] {
        let inside = rig.free_up(1, index + position);
        assert_eq!(rig.pin(1, inside, 1), Ok(0));
        assert_eq!(put(&rig, 1, at, leaf(first, true)), Err(Errno::EBUSY), "frame {position} is a table");
        assert_eq!(put(&rig, 1, at, leaf(first, false)), Ok(0), "to read it is allowed");
        assert_eq!(put(&rig, 1, at, leaf(first, true)), Err(Errno::EBUSY), "and not to widen that (XSA-182)");
        assert_eq!(put(&rig, 1, at, 0), Ok(0));
        assert_eq!(rig.unpin(1, inside), Ok(0));
    }
    // The other way round: what a superpage lets be written can't become a table.
    assert_eq!(put(&rig, 1, at, leaf(first, true)), Ok(0));
    assert_eq!(rig.pin(1, rig.pool(1, index + 7), 1), Err(Errno::EINVAL));
    assert_eq!(put(&rig, 1, at, 0), Ok(0));
    assert_eq!(rig.pin(1, rig.pool(1, index + 7), 1), Ok(0));
    rig.check();
}

/// XSA-167: the frames of a superpage are all checked, not only the first; and its number must be a multiple.
#[test]
fn xsa_167_a_superpage_with_a_frame_that_is_not_the_domains_is_refused() {
    let rig = Rig::new(2);
    let at = empty_entry(&rig, 1);
    let (index, first) = run(&rig, 1);
    let given = rig.free_up(1, index + 9);
    assert_eq!(rig.memory(1, memory::XENMEM_DECREASE_RESERVATION, 0x7ff0, &[given.number()]), Ok(1));
    for writable in [false, true] {
        assert_eq!(put(&rig, 1, at, leaf(first, writable)), Err(Errno::EBUSY), "one frame is free");
        assert_eq!(put(&rig, 1, at, leaf(frame(first.number() + 1), writable)), Err(Errno::EINVAL));
    }
    let (_, foreign) = run(&rig, 2);
    assert_eq!(put(&rig, 1, at, leaf(foreign, false)), Err(Errno::EBUSY), "another domain's");
    let (_, end) = rig.hv.frames().extent();
    assert_eq!(put(&rig, 1, at, leaf(frame(end), false)), Err(Errno::EPERM), "no memory at all");
}

/// The guest splits a superpage into a table of pages, and joins them again; the frames are held all the time.
#[test]
fn a_superpage_can_be_split_and_joined() {
    let rig = Rig::new(1);
    let at = empty_entry(&rig, 1);
    let (_, first) = run(&rig, 1);
    assert_eq!(put(&rig, 1, at, leaf(first, true)), Ok(0));
    let pages: Vec<_> =
        (0..SPAN).map(|step| (step as usize, leaf(frame(first.number() + step), true))).collect();
    let one = rig.prepare(1, 41, &pages);
    assert_eq!(put(&rig, 1, at, table(one)), Ok(0));
    assert_eq!(rig.hv.frames().usage(one).unwrap().kind, FrameType::Table(1));
    assert_eq!(put(&rig, 1, at, leaf(first, true)), Ok(0));
    assert_eq!(rig.uses(one), 0, "the table is let go");
    assert_eq!(put(&rig, 1, at, 0), Ok(0));
}

/// The auditor would not notice a superpage's entry whose references were dropped in part.
#[test]
fn tables_of_superpages_are_validated_and_dropped_in_pieces() {
    let rig = Rig::new(1);
    let (_, first) = run(&rig, 1);
    let entries: Vec<_> = (0..8).map(|index| (index, leaf(first, index % 2 == 0))).collect();
    let two = rig.prepare(1, 41, &entries);
    for allowed in [1, 16, 17, 33] {
        let mut steps = 0;
        let outcome = loop {
            let budget = Budget::new(allowed);
            steps += 1;
            // The lock has to be given up before the books are looked at.
            let outcome = rig.space(1, &budget).pin(two, 2);
            rig.check();
            if outcome != Err(Stop::Preempted) {
                break outcome;
            }
        };
        assert_eq!(outcome, Ok(()));
        assert!(steps > 1, "{allowed}: a superpage costs what its frames cost");
        rig.check();
        let budget = Budget::new(allowed);
        rig.space(1, &budget).unpin(two).unwrap();
        rig.check();
    }
}

/// A frame in a superpage can't be freed, nor a domain's last reference to it be forgotten when the domain dies.
#[test]
fn a_domain_that_dies_gives_back_what_superpages_held() {
    let rig = Rig::new(1);
    let free = rig.hv.frames().free_frames();
    let at = empty_entry(&rig, 1);
    let (_, first) = run(&rig, 1);
    assert_eq!(put(&rig, 1, at, leaf(first, true)), Ok(0));
    let (index, _) = run(&rig, 1);
    rig.remap(1, POOL + index, 0).unwrap();
    assert_eq!(rig.memory(1, memory::XENMEM_DECREASE_RESERVATION, 0x7ff0, &[first.number()]), Ok(1));
    assert!(rig.hv.frames().hold(first).unwrap().owner.is_some(), "still mapped");
    rig.check();
    rig.bury(1);
    assert!(rig.hv.frames().free_frames() > free);
    rig.check();
}

// ---- Linear tables -------------------------------------------------------------------------------------

#[test]
fn a_root_may_lead_to_itself_if_nothing_can_be_written_there() {
    let rig = Rig::new(1);
    let root = rig.domains[1].root;
    let uses = rig.uses(root);
    assert_eq!(put(&rig, 1, (root, 31), table(root)), Err(Errno::EINVAL), "with write permission");
    assert_eq!(put(&rig, 1, (root, 31), table(root) | READ_ONLY), Ok(0));
    assert_eq!(rig.uses(root), uses, "it holds nothing: else it could never be let go");
    assert_eq!(put(&rig, 1, (root, 31), table(root)), Err(Errno::EINVAL), "nor can it be widened (XSA-182)");
    assert_eq!(put(&rig, 1, (root, 30), table(root) | READ_ONLY), Ok(0), "twice is no harm");
    assert_eq!(put(&rig, 1, (root, 31), 0), Ok(0));
    rig.bury(1);
    rig.check();
}

/// XSA-240: tables that lead to their own level, without bound.
#[test]
fn xsa_240_only_the_root_itself_may_be_led_to() {
    let rig = Rig::new(1);
    let root = rig.domains[1].root;
    let other = rig.prepare(1, 30, &[]);
    assert_eq!(rig.pin(1, other, 3), Ok(0));
    assert_eq!(put(&rig, 1, (root, 31), table(other) | READ_ONLY), Err(Errno::EINVAL), "another root");
    let two = rig.prepare(1, 31, &[]);
    assert_eq!(rig.pin(1, two, 2), Ok(0));
    assert_eq!(put(&rig, 1, (two, 0), table(two) | READ_ONLY), Err(Errno::EINVAL), "a table of level 2");
    assert_eq!(put(&rig, 1, (two, 0), table(root) | READ_ONLY), Err(Errno::EINVAL), "the root, from below");
}

#[test]
fn a_root_with_a_linear_entry_is_pinned_in_pieces_and_dropped() {
    let rig = Rig::new(1);
    let other = rig.free_up(1, 30);
    rig.update(1, &[(place(other, 4), table(other) | READ_ONLY)]).unwrap();
    for allowed in [1, 2, 7] {
        let outcome = loop {
            let outcome = rig.space(1, &Budget::new(allowed)).pin(other, 3);
            rig.check();
            if outcome != Err(Stop::Preempted) {
                break outcome;
            }
        };
        assert_eq!(outcome, Ok(()));
        rig.space(1, &Budget::new(allowed)).unpin(other).unwrap();
        rig.check();
    }
    rig.space(1, &Budget::unbounded()).settle(None).unwrap();
    assert_eq!(rig.uses(other), 0);
}
