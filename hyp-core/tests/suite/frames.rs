//! The frame table by itself: what is asked of it before there are domains, and what it counts.

use std::sync::atomic::AtomicU64;

use hyp_core::address::{DomainId, MachineFrame};
use hyp_core::fake::Fake;
use hyp_core::frame::extent::{NoExtent, Wanted};
use hyp_core::frame::{BootMemory, FrameRecord, FrameTable, FrameType, Memory, Unreferenced, allocator};
use hyp_core::machine::FrameMemory;

/// The lowest frame of RAM, and how many there are.
const FIRST: u64 = 512;
const FRAMES: usize = 64;
const ONE: DomainId = DomainId::new(1);

/// A frame table of which the frames numbered `reserved` are taken during boot.
fn frame_table(reserved: std::ops::Range<u64>) -> FrameTable {
    let zeros = |count: usize| -> &'static [AtomicU64] {
        (0..count).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak()
    };
    let mut boot = BootMemory::new();
    boot.add_ram(FIRST << 12, (FIRST + FRAMES as u64) << 12).expect("room for one range");
    boot.reserve(reserved.start << 12, reserved.end << 12).expect("room for one range");
    let memory = Memory {
        first: MachineFrame::new(FIRST).expect("a frame number"),
        records: (0..FRAMES).map(|_| FrameRecord::new()).collect::<Vec<_>>().leak(),
        free_map: zeros(allocator::words(FRAMES)),
        m2p: zeros(FRAMES),
    };
    let table = FrameTable::new();
    table.initialise(memory, &boot, u64::MAX);
    table
}

/// What boot needed no longer is given back, as far as it is whole frames of RAM that nobody has taken in the meantime.
#[test]
fn memory_of_boot_becomes_free_by_whole_frames_and_once() {
    let table = frame_table(520..530);
    let free = |count: usize| assert_eq!((table.free_frames(), table.managed()), (count, count as u64));
    free(54);
    table.release_boot_memory((520 << 12) + 1, (523 << 12) - 1);
    free(55);
    table.release_boot_memory(520 << 12, 522 << 12);
    free(56);
    let machine = Fake::new(FRAMES);
    let owned = table.allocate(ONE, 1, &machine).expect("a free frame");
    table.release_boot_memory(0, u64::MAX);
    assert_eq!(
        (table.free_frames(), table.managed()),
        (FRAMES - 1, FRAMES as u64),
        "but for the frame that is owned"
    );
    assert_eq!(table.hold(owned).and_then(|hold| hold.owner), Some(ONE));
}

/// Frames whose last references are gone wait for their common flush; whoever drops more of them has to know when there is no room.
#[test]
fn frames_that_wait_for_a_flush_share_it_and_are_no_more_than_there_is_room_for() {
    let (table, machine) = (frame_table(0..0), Fake::new(FRAMES));
    let mut dropped = Unreferenced::<2>::new();
    table.free_all(Unreferenced::<2>::new(), &machine);
    assert_eq!(machine.flushes(), 0, "nothing to flush for");
    for full in [false, true] {
        let frame = table.allocate(ONE, 2, &machine).expect("a free frame");
        assert!(!dropped.is_full());
        table.put_into(frame, &mut dropped);
        assert_eq!(dropped.is_full(), full);
    }
    assert_eq!((table.owned(ONE), table.free_frames()), (2, FRAMES - 2), "theirs until they are flushed");
    table.free_all(dropped, &machine);
    assert_eq!((table.owned(ONE), table.free_frames(), machine.flushes()), (0, FRAMES, 1));
}

/// The short ways to one more use of a complete table and back from it: whatever else there is to do is left to the long ones.
#[test]
fn uses_of_complete_tables_come_and_go_in_one_step_but_for_the_first_and_the_last() {
    let (table, machine) = (frame_table(0..0), Fake::new(FRAMES));
    let frame = table.allocate(ONE, 1, &machine).expect("a free frame");
    let counts =
        || (table.hold(frame).map(|hold| hold.references), table.usage(frame).map(|usage| usage.uses));
    let get = |level, owner| table.get_complete_table(frame, level, owner, &machine);
    assert!(!get(2, ONE) && counts() == (Some(1), Some(0)), "no table");
    table.lock_table(frame, 2, ONE, &machine).expect("a frame that is used as nothing");
    assert!(!get(2, ONE) && counts() == (Some(2), Some(1)), "incomplete");
    table.complete(frame);
    assert!(!get(1, ONE) && !get(2, DomainId::new(2)) && counts() == (Some(2), Some(1)));
    assert!(get(2, ONE) && counts() == (Some(3), Some(2)));
    assert!(table.put_one_of_many(frame, &machine) && counts() == (Some(2), Some(1)));
    assert!(!table.put_one_of_many(frame, &machine) && counts() == (Some(2), Some(1)), "the last use");
    let hole = MachineFrame::new(FIRST - 1).expect("a frame number");
    assert!(!table.get_complete_table(hole, 2, ONE, &machine) && !table.put_one_of_many(hole, &machine));
    table.unlock_table(frame, &machine);
    assert!(!table.put_one_of_many(frame, &machine) && counts() == (Some(1), Some(0)), "no use at all");
}

/// A frame that is held is neither given out again nor, as *writable*, made a table; let go, it is as it was before, or free.
#[test]
fn a_held_frame_is_kept_and_let_go() {
    let (table, machine) = (frame_table(0..0), Fake::new(FRAMES));
    let frame = table.allocate(ONE, 1, &machine).expect("a free frame");
    let counts =
        || (table.hold(frame).map(|hold| hold.references), table.usage(frame).map(|usage| usage.uses));
    let reference = table.hold_reference(frame, ONE, &machine).expect("one's own frame");
    assert_eq!((reference.frame(), counts()), (frame, (Some(2), Some(0))));
    let writable = table.hold_writable(frame, ONE, &machine).expect("one's own frame");
    assert_eq!((writable.frame(), counts()), (frame, (Some(3), Some(1))));
    assert_eq!(table.usage(frame).map(|usage| usage.kind), Some(FrameType::Writable));
    assert!(table.lock_table(frame, 1, ONE, &machine).is_err(), "writable");
    drop(writable);
    assert_eq!(counts(), (Some(2), Some(0)));
    assert!(!table.put(frame, &machine) && table.free_frames() == FRAMES - 1, "held by the other one");
    assert!(reference.release() && table.free_frames() == FRAMES);
    let again = table.allocate(ONE, 1, &machine).expect("a free frame");
    let kept = table.hold_writable(again, ONE, &machine).expect("one's own frame");
    assert!(!table.put(again, &machine));
    drop(kept);
    assert_eq!(table.free_frames(), FRAMES, "the last one frees");
}

/// Refused, nothing is held.
#[test]
fn who_may_not_have_a_frame_does_not_hold_it() {
    let (table, machine) = (frame_table(0..0), Fake::new(FRAMES));
    let frame = table.allocate(ONE, 1, &machine).expect("a free frame");
    let hole = MachineFrame::new(FIRST - 1).expect("a frame number");
    for (frame, owner) in [(frame, DomainId::new(2)), (hole, ONE)] {
        assert!(table.hold_reference(frame, owner, &machine).is_err());
        assert!(table.hold_writable(frame, owner, &machine).is_err());
    }
    table.lock_table(frame, 2, ONE, &machine).expect("a frame that is used as nothing");
    table.complete(frame);
    assert!(table.hold_writable(frame, ONE, &machine).is_err(), "a table");
    let read = table.hold_reference(frame, ONE, &machine).expect("tables can be read");
    assert!(!read.release());
    assert_eq!(table.hold(frame).map(|hold| hold.references), Some(2));
    assert_eq!(table.usage(frame).map(|usage| usage.uses), Some(1));
}

/// The fake machine's clock goes on by one each time that it is looked at.
#[test]
fn the_time_that_scrubbing_takes_is_added_up() {
    let (table, machine) = (frame_table(0..0), Fake::new(FRAMES));
    for round in 1..=3 {
        let frame = table.allocate(ONE, 1, &machine).expect("a free frame");
        let before = table.scrub_ticks();
        assert!(table.put(frame, &machine));
        assert_eq!(table.scrub_ticks(), before + 1, "scrubbed when it is freed, round {round}");
    }
    assert_eq!(table.scrub_ticks(), machine.scrubbed());
}

/// The only free frame goes from one domain to another: what the first wrote is gone by then, whenever that costs its time.
#[test]
fn frames_that_are_freed_unscrubbed_are_scrubbed_for_their_next_owner() {
    let (table, machine) = (frame_table(FIRST + 1..FIRST + FRAMES as u64), Fake::new(FRAMES));
    let last = 511;
    for unscrubbed in [true, false, true] {
        let frame = table.allocate(ONE, 1, &machine).expect("the free frame");
        machine.write_frame(frame, 8 * last, b"a secret");
        let before = (machine.flushes(), machine.scrubbed());
        let freed =
            if unscrubbed { table.put_unscrubbed(frame, &machine) } else { table.put(frame, &machine) };
        let at_once = u64::from(!unscrubbed);
        assert!(freed, "it was the last reference");
        assert_eq!((machine.flushes(), machine.scrubbed()), (before.0 + 1, before.1 + at_once));
        let next = table.allocate(DomainId::new(2), 1, &machine).expect("the free frame");
        assert_eq!((next, machine.read_word(next, last)), (frame, 0), "another domain's, without a trace");
        assert_eq!(machine.scrubbed(), before.1 + 1, "once");
        assert!(table.put(next, &machine));
    }
}

/// An extent that a guest can't be told about is given back; the next one finds it as it was, but scrubbed.
#[test]
fn a_cancelled_extent_leaves_no_trace() {
    let (table, machine) = (frame_table(0..0), Fake::new(FRAMES));
    let wanted = |limit| Wanted { owner: ONE, limit, order: 3, end: u64::MAX };
    let extent = table.reserve(wanted(8), &machine, || true).expect("free memory");
    assert_eq!((table.owned(ONE), table.free_frames()), (8, FRAMES - 8));
    assert_eq!(
        table.reserve(wanted(8), &machine, || true).err(),
        Some(NoExtent::None),
        "all that it may have"
    );
    let first = extent.first;
    assert!(first.number().is_multiple_of(8) && extent.frames().count() == 8);
    table.cancel(extent);
    assert_eq!((table.owned(ONE), table.free_frames(), machine.scrubbed()), (0, FRAMES, 8));
    let again = table.reserve(wanted(8), &machine, || false).expect("free memory, scrubbed already");
    assert_eq!((again.first, machine.scrubbed()), (first, 8));
    table.commit(again);
    assert!(again.frames().all(|frame| table.hold(frame).and_then(|hold| hold.owner) == Some(ONE)));
}
