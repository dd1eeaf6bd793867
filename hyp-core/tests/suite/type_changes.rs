//! XSA-401 and 408: what a frame's change of type owes to the caches.
//!
//! Xen flushed before it locked the new type, so that a mapping made and used in between stayed cached (401); its mend decided
//! by the new type whether to flush, where the old one counts (408). The race itself is tried in every interleaving by loom
//! (`races/tests/frames.rs`); here, that each way of changing a type flushes, once, and only when it must.

use crate::common::{POOL, Rig, leaf, table};
use hyp_core::fake::FakeFormat;
use hyp_core::machine::PageTableFormat;
use hyp_core::paging::Budget;
use penumbra_abi::errno::Errno;

/// Everything that was flushed while `action` ran.
fn flushed(rig: &Rig, action: impl FnOnce()) -> u64 {
    let before = rig.hv.machine().flushes();
    action();
    rig.hv.machine().flushes() - before
}

fn changed(answer: Result<u64, Errno>, what: &str) {
    assert_eq!(answer, Ok(0), "{what}");
}

#[test]
fn xsa_401_a_frame_that_was_writable_is_flushed_when_it_becomes_a_table() {
    let rig = Rig::new(1);
    // Mapped writable by the builder, unmapped without a flush: translations may be cached anywhere.
    let frame = rig.free_up(1, 0);
    let count = flushed(&rig, || changed(rig.pin(1, frame, 1), "an empty table"));
    assert!(count >= 1, "a table that can still be written");
    rig.check();
    // The same type again: nobody could write meanwhile.
    rig.unpin(1, frame).expect("pinned");
    assert_eq!(flushed(&rig, || changed(rig.pin(1, frame, 1), "as before")), 0);
    rig.check();
}

#[test]
fn xsa_401_no_fast_path_leads_around_the_flush() {
    let rig = Rig::new(1);
    // The same frame becomes a table by being hooked in below another, not by a pin of its own.
    let low = rig.free_up(1, 0);
    let high = rig.prepare(1, 1, &[(0, table(low))]);
    assert!(flushed(&rig, || changed(rig.pin(1, high, 2), "a tree of two")) >= 2, "one for each frame");
    rig.check();
}

#[test]
fn xsa_408_what_decides_is_the_type_that_was() {
    let rig = Rig::new(1);
    let frame = rig.free_up(1, 0);
    rig.pin(1, frame, 1).expect("an empty table");
    rig.unpin(1, frame).expect("pinned");
    // From a table to a writable frame: the walker's caches may hold entries of it.
    let map = || changed(rig.remap(1, POOL, leaf(frame, true)), "one's own frame");
    assert!(flushed(&rig, map) >= 1, "a table whose entries are still cached");
    rig.check();
    // From one level to another.
    rig.remap(1, POOL, 0).expect("unmapped");
    for level in [1, 2, 1] {
        assert!(flushed(&rig, || changed(rig.pin(1, frame, level), "an empty table")) >= 1, "level {level}");
        rig.unpin(1, frame).expect("pinned");
        rig.check();
    }
}

/// Each frame that was a table costs its flush where it is mapped, so that a batch of such tables stops in time.
#[test]
fn flushes_of_a_table_s_frames_are_charged_while_it_is_validated() {
    let (entries, former) = (FakeFormat::entries(1) as u32, 4);
    for (spare, spent) in [(0, true), (1, false)] {
        let rig = Rig::new(1);
        let frames: Vec<_> = (0..former).map(|index| rig.free_up(1, index)).collect();
        for frame in &frames {
            rig.pin(1, *frame, 1).expect("an empty table");
            rig.unpin(1, *frame).expect("pinned");
        }
        let leaves: Vec<_> =
            frames.iter().enumerate().map(|(index, frame)| (index, leaf(*frame, true))).collect();
        let low = rig.prepare(1, former, &leaves);
        let budget = Budget::new(entries + former as u32 * Budget::FLUSH + spare);
        assert_eq!(rig.space(1, &budget).pin(low, 1), Ok(()));
        assert_eq!(budget.is_spent(), spent, "{spare} more than that");
        rig.check();
    }
}
