//! Stories of CPUs that want the same frame at the same time. (Those of frames that change hands are in `hands.rs`.)
//!
//! Each was seen failing, with these defects put in by hand: the flush before the type is locked, no flush, or one that the
//! new type decides on; `complete` and `take_type` relaxed; a second writer that doesn't wait; a last use that
//! forgets the type; a claim read and then cleared; a reference looked up and then added; the owner not looked at; a frame
//! free before its record is vacated, or without a flush. Of the short ways to a complete table and back: a number of uses that is
//! looked at and then dropped, or looked at and then stored, in either direction; a last use that counts as one of many; a type that
//! is complete, but another, or the right one, but incomplete; a refused use that keeps its reference, and a use that goes without it;
//! `take_complete` relaxed. Not to be seen, since another ordering does the same work: the two
//! stores of `vacate` swapped.

use loom::thread;
use races::address::MachineFrame;
use races::cpu::{ONE, TWO, World};
use races::explore;
use races::frame::FrameType;
use races::frame::uses::Locked;

/// A frame that is a table of that level, with one use, and not validated yet.
fn incomplete_table(world: &World, level: u8) -> MachineFrame {
    let frame = world.allocate(ONE).expect("a frame");
    assert_eq!(world.frames.lock_table(frame, level, ONE, &world.machine), Ok(Locked::Incomplete));
    frame
}

/// The same, validated.
fn complete_table(world: &World, level: u8) -> MachineFrame {
    let frame = incomplete_table(world, level);
    world.frames.complete(frame);
    frame
}

/// One CPU takes a reference while another drops the last: either the reference holds the frame, or there is none to be had.
/// Never is a frame free, or another's, that somebody holds.
#[test]
fn getting_against_freeing() {
    explore(|| {
        let world = World::new(1);
        let frame = world.allocate(ONE).expect("a frame");
        let getter = thread::spawn(move || {
            if world.frames.get(frame, ONE).is_ok() {
                let hold = world.frames.hold(frame).expect("memory");
                assert_eq!(hold.owner, Some(ONE), "held, and yet another's");
                assert!(!world.frames.free_map().expect("a map").is_free(0), "held, and yet free");
                world.frames.put(frame, &world.machine);
            }
        });
        if world.frames.unclaim(frame) {
            world.frames.put(frame, &world.machine);
        }
        getter.join().expect("the getter");
        assert_eq!(world.frames.free_frames(), 1, "all references are gone, so the frame is free");
        assert_eq!(world.frames.owned(ONE), 0);
    });
}

/// Two CPUs give the same frame back: the claim is given up once, and the frame freed once.
#[test]
fn giving_back_twice() {
    explore(|| {
        let world = World::new(1);
        let frame = world.allocate(ONE).expect("a frame");
        let give_back = move || {
            // As `decrease_reservation`: hold it, give up the claim if it is still there, let go.
            if world.frames.get(frame, ONE).is_err() {
                return false;
            }
            let given = world.frames.unclaim(frame);
            if given {
                world.frames.put(frame, &world.machine);
            }
            world.frames.put(frame, &world.machine);
            given
        };
        let other = thread::spawn(give_back);
        let mine = give_back();
        let others = other.join().expect("the other");
        assert!(mine != others, "given back once: {mine} {others}");
        assert_eq!((world.frames.free_frames(), world.frames.owned(ONE)), (1, 0));
    });
}

/// A frame goes from one domain to another: the new owner finds it scrubbed and without a type, and the old one, who comes late
/// with its number, gets nothing.
#[test]
fn vacating_against_assigning() {
    explore(|| {
        let world = World::new(1);
        let frame = world.allocate(ONE).expect("a frame");
        world.frames.get_writable(frame, ONE, &world.machine).expect("one's own");
        world.use_mapping(frame);
        let next_owner = thread::spawn(move || {
            let Some(got) = world.allocate(TWO) else { return };
            assert!(!world.is_dirty(got), "another domain's bytes");
            assert!(!world.is_cached_writable(got), "another domain's translations");
            let usage = world.frames.usage(got).expect("memory");
            assert_eq!((usage.kind, usage.uses), (FrameType::None, 0), "a type from a former life");
            assert!(world.frames.get(got, ONE).is_err(), "the old owner");
        });
        assert!(world.frames.unclaim(frame));
        world.frames.put(frame, &world.machine);
        world.frames.put_use(frame, &world.machine);
        next_owner.join().expect("the next owner");
    });
}

/// XSA-401: the cache was flushed *before* the type was locked. Between the two, another CPU mapped the frame writable, used
/// the mapping, and let it go (A-B-A): the frame became a table with a writable translation still cached.
#[test]
fn a_frame_that_is_written_while_it_becomes_a_table() {
    explore(|| {
        let world = World::new(1);
        let frame = world.allocate(ONE).expect("a frame");
        let writer = thread::spawn(move || {
            for _ in 0..2 {
                if world.frames.get_writable(frame, ONE, &world.machine).is_ok() {
                    world.use_mapping(frame);
                    world.frames.put_use(frame, &world.machine);
                }
            }
        });
        if let Ok(locked) = world.frames.lock_table(frame, 1, ONE, &world.machine) {
            assert_eq!(locked, Locked::Incomplete, "nobody has validated it");
            assert!(!world.is_cached_writable(frame), "a table that some CPU can still write to");
            world.frames.complete(frame);
            world.frames.unlock_table(frame, &world.machine);
        }
        writer.join().expect("the writer");
    });
}

/// XSA-408: the mend of the former looked at the new type to decide whether to flush, not at the old. Here two CPUs go the
/// other way, too: from a table back to a writable frame, whose first user flushes while the second has to wait for it.
#[test]
fn two_writers_of_what_was_a_table() {
    explore(|| {
        let world = World::new(1);
        let frame = complete_table(world, 1);
        world.frames.unlock_table(frame, &world.machine);
        let map = move || {
            world.frames.get_writable(frame, ONE, &world.machine).expect("no table any more");
            assert!(world.frames.usage(frame).expect("memory").complete, "mapped before the flush was done");
            world.frames.put_use(frame, &world.machine);
        };
        let other = thread::spawn(map);
        map();
        other.join().expect("the other");
    });
}

/// The last use of a type goes while another CPU asks for the same type: the use is counted to the old life or begins a
/// new one, and in a new one the table has to be validated again.
#[test]
fn the_last_use_against_a_new_one() {
    explore(|| {
        let world = World::new(1);
        let frame = complete_table(world, 2);
        let user = thread::spawn(move || {
            let locked = world.frames.lock_table(frame, 2, ONE, &world.machine).expect("the same type");
            let usage = world.frames.usage(frame).expect("memory");
            assert_eq!(locked == Locked::Complete, usage.complete, "complete, if and only if it says so");
            if locked == Locked::Incomplete {
                world.frames.complete(frame);
            }
            world.frames.unlock_table(frame, &world.machine);
        });
        world.frames.unlock_table(frame, &world.machine);
        user.join().expect("the user");
        assert_eq!(world.frames.usage(frame).expect("memory").uses, 0);
    });
}

/// One CPU wants a frame as a table, another wants it writable, both at once: at most one has it.
#[test]
fn types_exclude_each_other() {
    explore(|| {
        let world = World::new(1);
        let frame = world.allocate(ONE).expect("a frame");
        let writer = thread::spawn(move || world.frames.get_writable(frame, ONE, &world.machine).is_ok());
        let table = world.frames.lock_table(frame, 1, ONE, &world.machine).is_ok();
        let writable = writer.join().expect("the writer");
        assert!(table != writable, "table: {table}, writable: {writable}");
        let references = world.frames.hold(frame).expect("memory").references;
        assert_eq!(references, 2, "the claim, and the one that won");
    });
}

/// Fails unless the owner's claim is all that holds the frame.
fn assert_claim_alone(world: &World, frame: MachineFrame) {
    let (hold, usage) = (world.frames.hold(frame), world.frames.usage(frame).expect("memory"));
    assert_eq!((hold.expect("memory").references, usage.uses), (1, 0), "the claim alone");
}

/// Two CPUs drop a use each of a table that has two: each may find it to be one of many when it looks, but one of them has the last,
/// and with it the entries to see to. None does that twice, and none leaves it to the other.
#[test]
fn one_of_many_is_never_the_last() {
    explore(|| {
        let world = World::new(1);
        let frame = complete_table(world, 2);
        assert!(world.frames.get_complete_table(frame, 2, ONE, &world.machine));
        let drop_one = move || {
            let one_of_many = world.frames.put_one_of_many(frame, &world.machine);
            if !one_of_many {
                let usage = world.frames.usage(frame).expect("memory");
                assert_eq!((usage.uses, usage.complete), (1, true), "the last, still as it was");
                world.frames.unlock_table(frame, &world.machine);
            }
            one_of_many
        };
        let other = thread::spawn(drop_one);
        let mine = drop_one();
        let others = other.join().expect("the other");
        assert!(mine != others, "one of them had the last: {mine} {others}");
        let (hold, usage) = (world.frames.hold(frame), world.frames.usage(frame).expect("memory"));
        assert_eq!((hold.expect("memory").references, usage.uses, usage.complete), (1, 0, false));
        assert!(!world.frames.put_one_of_many(frame, &world.machine), "no use, no reference");
    });
}

/// One CPU takes the short way to a complete table while another gives up its last use and makes a writable frame of it, and once
/// more a table: of which the first has a use, or hasn't, and then it has no reference either. What it has stays a table.
#[test]
fn a_complete_table_against_its_end() {
    explore(|| {
        let world = World::new(1);
        let frame = complete_table(world, 2);
        let getter = thread::spawn(move || {
            if world.frames.get_complete_table(frame, 2, ONE, &world.machine) {
                let usage = world.frames.usage(frame).expect("memory");
                assert_eq!(
                    (usage.kind, usage.complete),
                    (FrameType::Table(2), true),
                    "held, and yet no table"
                );
                assert!(!world.is_cached_writable(frame), "a table that some CPU can still write to");
                world.frames.unlock_table(frame, &world.machine);
            }
        });
        world.frames.unlock_table(frame, &world.machine);
        if world.frames.get_writable(frame, ONE, &world.machine).is_ok() {
            world.use_mapping(frame);
            world.frames.put_use(frame, &world.machine);
        }
        if world.frames.lock_table(frame, 2, ONE, &world.machine) == Ok(Locked::Incomplete) {
            assert!(!world.frames.get_complete_table(frame, 1, ONE, &world.machine), "of another level");
        }
        world.frames.unlock_table(frame, &world.machine);
        getter.join().expect("the getter");
        assert_claim_alone(world, frame);
    });
}

/// Two CPUs hold a table and let it go by the short ways, as `TableSpace` does, under the domain's table lock; a third, without the
/// lock, wants its frame writable, as a grant's other end does. Whoever holds the table finds its entries validated.
#[test]
fn holding_and_letting_go_against_a_writer() {
    use loom::sync::Mutex;
    explore(|| {
        let world = World::new(1);
        let frame = world.allocate(ONE).expect("a frame");
        // Under the lock: how many entries are validated. Under the type alone, a validated table's entries stay as they are.
        let validated: &'static Mutex<u32> = Box::leak(Box::new(Mutex::new(0)));
        let hold_and_let_go = move || {
            let mut entries = validated.lock().expect("no thread panics and goes on");
            if !world.frames.get_complete_table(frame, 2, ONE, &world.machine) {
                match world.frames.lock_table(frame, 2, ONE, &world.machine) {
                    Ok(locked) => assert_eq!(locked, Locked::Incomplete, "complete, and yet not to be had"),
                    Err(_) => return,
                }
                *entries += 1;
                world.frames.complete(frame);
            }
            assert_eq!(*entries, 1, "validated once in each life");
            drop(entries);
            assert!(!world.is_cached_writable(frame), "a table that some CPU can still write to");
            let mut entries = validated.lock().expect("no thread panics and goes on");
            if !world.frames.put_one_of_many(frame, &world.machine) {
                *entries -= 1;
                world.frames.unlock_table(frame, &world.machine);
            }
        };
        let other = thread::spawn(hold_and_let_go);
        let writer = thread::spawn(move || {
            if world.frames.get_writable(frame, ONE, &world.machine).is_ok() {
                world.use_mapping(frame);
                world.frames.put_use(frame, &world.machine);
            }
        });
        hold_and_let_go();
        other.join().expect("the other");
        writer.join().expect("the writer");
        assert_claim_alone(world, frame);
    });
}

/// As below, by the short way: what a table's entries hold is there for who finds the table complete.
#[test]
fn complete_means_the_same_by_the_short_way() {
    use loom::sync::atomic::{AtomicU64, Ordering};
    explore(|| {
        let world = World::new(1);
        let frame = incomplete_table(world, 1);
        let entry: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
        let other = thread::spawn(move || {
            if world.frames.get_complete_table(frame, 1, ONE, &world.machine) {
                assert_eq!(entry.load(Ordering::Relaxed), 7, "complete, but not to be seen");
            }
        });
        entry.store(7, Ordering::Relaxed);
        world.frames.complete(frame);
        other.join().expect("the other");
    });
}

/// Two domains ask for the last free frame.
#[test]
fn one_frame_for_two() {
    explore(|| {
        let world = World::new(1);
        let other = thread::spawn(move || world.allocate(TWO).is_some());
        let mine = world.allocate(ONE).is_some();
        let others = other.join().expect("the other");
        assert!(mine != others);
        assert_eq!((world.frames.owned(ONE), world.frames.owned(TWO)), (u64::from(mine), u64::from(others)));
    });
}

/// One CPU completes a table while another reads an entry under the flag: it sees what the validation saw.
#[test]
fn complete_means_that_the_entries_are_there() {
    use loom::sync::atomic::{AtomicU64, Ordering};
    explore(|| {
        let world = World::new(1);
        let frame = incomplete_table(world, 1);
        let entry: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(0)));
        let other = thread::spawn(move || {
            if world.frames.lock_table(frame, 1, ONE, &world.machine) == Ok(Locked::Complete) {
                assert_eq!(
                    entry.load(Ordering::Relaxed),
                    7,
                    "complete, but what was validated can't be seen"
                );
            }
        });
        entry.store(7, Ordering::Relaxed);
        world.frames.complete(frame);
        other.join().expect("the other");
    });
}
