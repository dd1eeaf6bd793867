//! Stories of frames that change hands while another CPU wants them: given out, taken from their owner, given back many at once.
//!
//! Each was seen failing, with these defects put in by hand: in `allocate`, an owner before the scrubbing; a relaxed `assign`; in `steal`, a word that is
//! looked at and then stored, references that aren't looked at, a claim that goes and leaves its reference, relaxed orderings; frames stolen and freed
//! without a flush, or without their record being vacated; a restored frame without its claim; a reserved extent that is its owner's before it is
//! committed, or is not counted out when it is cancelled; frames dropped together, or unscrubbed, that are freed without a flush, or are said to
//! be scrubbed; a reference that is looked at and then dropped; a pin's mark that is looked at and then stored, or taken away so.

use loom::thread;
use races::address::MachineFrame;
use races::cpu::{ONE, TWO, World, frame};
use races::explore;
use races::frame::extent::{NoExtent, Wanted};
use races::frame::uses::Locked;
use races::frame::{FrameType, Unreferenced};

/// One frame, of domain 1's, which a guest has written to.
fn written(world: &World) -> MachineFrame {
    let frame = world.allocate(ONE).expect("a frame");
    world.frames.get_writable(frame, ONE, &world.machine).expect("one's own");
    world.use_mapping(frame);
    frame
}

/// What somebody who holds a frame finds of its last owner's: nothing.
fn assert_nothing_is_left(world: &World, frame: MachineFrame) {
    assert!(!world.is_dirty(frame), "another domain's bytes");
    assert!(!world.is_cached_writable(frame), "another domain's translations");
    let usage = world.frames.usage(frame).expect("memory");
    assert_eq!((usage.kind, usage.uses), (FrameType::None, 0), "a type from a former life");
}

/// A second CPU of domain 2's has guessed which frame its domain is about to be given, and takes a reference as soon as it can: it
/// finds the frame as the first CPU does.
fn guess(world: &'static World) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        if world.frames.get(frame(0), TWO).is_ok() {
            assert_nothing_is_left(world, frame(0));
            world.frames.put(frame(0), &world.machine);
        }
    })
}

/// The one frame there is, unless another has it.
fn reserve(world: &World, owner: races::address::DomainId) -> Option<races::frame::extent::Extent> {
    let wanted = Wanted { owner, limit: 64, order: 0, end: u64::MAX };
    match world.frames.reserve(wanted, &world.machine, || true) {
        Ok(extent) => Some(extent),
        Err(NoExtent::None) => None,
        Err(NoExtent::Preempted) => panic!("it may go on"),
    }
}

/// A frame that was given up as it was is scrubbed before it is anybody's, not only before its new owner hears of it.
#[test]
fn what_is_allocated_is_scrubbed_before_it_is_anybodys() {
    explore(|| {
        let world = World::new(1);
        let frame = written(world);
        assert!(world.frames.unclaim(frame) && !world.frames.put_use(frame, &world.machine));
        assert!(world.frames.put_unscrubbed(frame, &world.machine) && world.is_dirty(frame));
        let guesser = guess(world);
        assert_eq!(world.allocate(TWO), Some(frame));
        guesser.join().expect("the guesser");
    });
}

/// The same of a reserved extent. Until it is committed nobody can have it.
#[test]
fn what_is_reserved_is_scrubbed_before_it_is_anybodys() {
    explore(|| {
        let world = World::new(1);
        let frame = written(world);
        assert!(world.frames.unclaim(frame) && !world.frames.put_use(frame, &world.machine));
        assert!(world.frames.put_unscrubbed(frame, &world.machine) && world.is_dirty(frame));
        let guesser = guess(world);
        let extent = reserve(world, TWO).expect("a free frame");
        assert!(world.frames.get(frame, TWO).is_err(), "reserved, and had already");
        world.frames.commit(extent);
        guesser.join().expect("the guesser");
        let hold = world.frames.hold(frame).expect("memory");
        assert_eq!((hold.owner, hold.references, world.frames.owned(TWO)), (Some(TWO), 1, 1));
    });
}

/// An extent is reserved and cancelled while another domain asks for memory, and the first one's other CPU tries the frame: that one never
/// has it, and afterwards it is the other domain's or free.
#[test]
fn a_cancelled_extent_leaves_no_trace() {
    explore(|| {
        let world = World::new(1);
        let other = thread::spawn(move || {
            let got = world.allocate(TWO);
            if let Some(frame) = got {
                assert_nothing_is_left(world, frame);
                let hold = world.frames.hold(frame).expect("memory");
                assert_eq!((hold.owner, hold.references), (Some(TWO), 1));
            }
            got.is_some()
        });
        let guesser = thread::spawn(move || world.frames.get(frame(0), ONE).is_ok());
        if let Some(extent) = reserve(world, ONE) {
            world.frames.cancel(extent);
        }
        assert!(!guesser.join().expect("the guesser"), "had, and never committed");
        let others = other.join().expect("the other");
        assert_eq!((world.frames.owned(ONE), world.frames.owned(TWO)), (0, u64::from(others)));
        assert_eq!(world.frames.free_frames(), usize::from(!others));
    });
}

/// XSA-287: a frame is stolen, and goes to another domain, while a second CPU of its owner's maps it: the mapping came first, and the frame stays
/// its owner's; or it was stolen first, and there is nothing to map.
#[test]
fn stealing_against_mapping() {
    explore(|| {
        let world = World::new(1);
        let frame = world.allocate(ONE).expect("a frame");
        let mapper = thread::spawn(move || {
            if world.frames.get_writable(frame, ONE, &world.machine).is_ok() {
                world.use_mapping(frame);
                let (hold, usage) = (world.frames.hold(frame), world.frames.usage(frame).expect("memory"));
                assert_eq!(hold.expect("memory").owner, Some(ONE), "mapped, and yet another's");
                assert_eq!((usage.kind, usage.uses), (FrameType::Writable, 1), "mapped, and no use");
                world.frames.put_use(frame, &world.machine);
            }
        });
        let stolen = world.frames.steal(frame, ONE);
        if stolen {
            assert_eq!(world.frames.hold(frame).expect("memory").references, 0, "stolen, and held");
            world.frames.free_stolen(core::iter::once(frame), ONE, &world.machine);
            assert_eq!(world.allocate(TWO), Some(frame));
            assert_nothing_is_left(world, frame);
        }
        mapper.join().expect("the mapper");
        let hold = world.frames.hold(frame).expect("memory");
        let owner = if stolen { TWO } else { ONE };
        assert_eq!((hold.owner, hold.references, hold.allocated), (Some(owner), 1, true));
        assert_eq!(
            (world.frames.owned(ONE), world.frames.owned(TWO)),
            (u64::from(!stolen), u64::from(stolen))
        );
    });
}

/// A frame is stolen and, since something else has failed, given back to its owner, of whom two other CPUs take references meanwhile, one of them
/// more than once: whoever has one has it of the owner's frame, and none is lost or made up.
#[test]
fn stealing_and_restoring_against_getting() {
    explore(|| {
        let world = World::new(1);
        let frame = world.allocate(ONE).expect("a frame");
        let get_and_put = move || {
            if world.frames.get(frame, ONE).is_ok() {
                let hold = world.frames.hold(frame).expect("memory");
                assert_eq!((hold.owner, hold.allocated), (Some(ONE), true), "held, and yet stolen");
                world.frames.put(frame, &world.machine);
            }
        };
        let getters = [
            thread::spawn(move || {
                get_and_put();
                get_and_put();
            }),
            thread::spawn(get_and_put),
        ];
        if world.frames.steal(frame, ONE) {
            assert!(world.frames.get(frame, ONE).is_err(), "stolen, and to be had");
            world.frames.restore(frame, ONE);
        }
        getters.into_iter().for_each(|getter| getter.join().expect("the getter"));
        let hold = world.frames.hold(frame).expect("memory");
        assert_eq!((hold.owner, hold.references, hold.allocated), (Some(ONE), 1, true));
        assert!(world.frames.unclaim(frame) && world.frames.put(frame, &world.machine));
        assert_eq!((world.frames.free_frames(), world.frames.owned(ONE)), (1, 0));
    });
}

/// Two CPUs steal the same frame, as two chunks of an exchange that name it twice: one has it.
#[test]
fn stealing_twice() {
    explore(|| {
        let world = World::new(1);
        let frame = world.allocate(ONE).expect("a frame");
        let other = thread::spawn(move || world.frames.steal(frame, ONE));
        let mine = world.frames.steal(frame, ONE);
        let others = other.join().expect("the other");
        assert!(mine != others, "stolen once: {mine} {others}");
        world.frames.free_stolen(core::iter::once(frame), ONE, &world.machine);
        assert_eq!((world.frames.free_frames(), world.frames.owned(ONE)), (1, 0));
    });
}

/// A frame whose last reference is dropped goes to another domain, of which two CPUs look out for it.
fn changes_hands(let_go: fn(&World, MachineFrame)) {
    explore(move || {
        let world = World::new(1);
        let frame = written(world);
        let next_owner = thread::spawn(move || {
            if let Some(got) = world.allocate(TWO) {
                assert_nothing_is_left(world, got);
                assert!(world.frames.get(got, ONE).is_err(), "the old owner");
            }
        });
        let guesser = guess(world);
        assert!(world.frames.unclaim(frame));
        world.frames.put_use(frame, &world.machine);
        let_go(world, frame);
        guesser.join().expect("the guesser");
        next_owner.join().expect("the next owner");
        let given = world.frames.owned(TWO);
        assert_eq!((world.frames.owned(ONE), world.frames.free_frames() as u64), (0, 1 - given));
    });
}

/// Frames that are freed together wait for their flush, and are nobody's until then.
#[test]
fn freed_together_against_assigning() {
    changes_hands(|world, frame| {
        let mut dropped = Unreferenced::<2>::new();
        world.frames.put_into(frame, &mut dropped);
        world.frames.free_all(dropped, &world.machine);
    });
}

/// Frames that are freed as they are.
#[test]
fn freed_unscrubbed_against_assigning() {
    changes_hands(|world, frame| assert!(world.frames.put_unscrubbed(frame, &world.machine)));
}

/// Two CPUs drop the last two references, one of them together with others: the frame is freed by one of them, once.
#[test]
fn the_last_reference_is_dropped_once() {
    explore(|| {
        let world = World::new(1);
        let frame = world.allocate(ONE).expect("a frame");
        world.frames.get(frame, ONE).expect("one's own");
        assert!(world.frames.unclaim(frame));
        let other = thread::spawn(move || world.frames.put(frame, &world.machine));
        let mut dropped = Unreferenced::<1>::new();
        world.frames.put_into(frame, &mut dropped);
        let mine = dropped.is_full();
        world.frames.free_all(dropped, &world.machine);
        let others = other.join().expect("the other");
        assert!(mine != others, "freed once: {mine} {others}");
        assert_eq!((world.frames.free_frames(), world.frames.owned(ONE)), (1, 0));
    });
}

/// One more use of a complete table, by the long way if another CPU has come in between.
fn use_table(world: &World, frame: MachineFrame) {
    if !world.frames.get_complete_table(frame, 2, ONE, &world.machine) {
        assert_eq!(world.frames.lock_table(frame, 2, ONE, &world.machine), Ok(Locked::Complete));
    }
}

/// A table is pinned, and unpinned, while another CPU takes a use of it and gives one back: neither loses what the other does. Whoever finds
/// the mark finds a table that is in use.
#[test]
fn the_pin_mark_against_counting() {
    explore(|| {
        let world = World::new(1);
        let frame = world.allocate(ONE).expect("a frame");
        assert_eq!(world.frames.lock_table(frame, 2, ONE, &world.machine), Ok(Locked::Incomplete));
        world.frames.complete(frame);
        let user = thread::spawn(move || {
            use_table(world, frame);
            let usage = world.frames.usage(frame).expect("memory");
            let uses = 2 + u32::from(usage.pinned);
            assert!(usage.uses >= uses, "the first, the pin's, and this one's: {usage:?}");
            assert!(world.frames.put_one_of_many(frame, &world.machine), "one of many");
        });
        use_table(world, frame);
        world.frames.set_pinned(frame, true);
        assert!(world.frames.usage(frame).expect("memory").pinned, "the mark was lost");
        world.frames.set_pinned(frame, false);
        assert!(world.frames.put_one_of_many(frame, &world.machine), "the pin's, not the last");
        user.join().expect("the user");
        let (hold, usage) = (world.frames.hold(frame), world.frames.usage(frame).expect("memory"));
        assert_eq!((hold.expect("memory").references, usage.uses, usage.pinned), (2, 1, false));
    });
}
