//! The content of tables, written straight into memory, and then asked for as tables of any level.
//!
//! The fake format goes the whole way; the entries are also judged by both real formats: what they admit must decode to itself and
//! be admitted again, unchanged.
#![no_main]

use arbitrary::Arbitrary;
use hyp_core::machine::{Entry, Mmu, PageTableFormat};
use libfuzzer_sys::fuzz_target;
use penumbra_fuzz::common::{POOL, Rig};
use penumbra_fuzz::{Claim, FEW, with_rig};

#[derive(Arbitrary, Debug)]
struct Input {
    /// For each of a few frames: entries.
    contents: Vec<Vec<(u8, Claim)>>,
    /// Frame and level to pin, or to make the root.
    asked: Vec<(u8, u8)>,
}

fuzz_target!(|input: Input| {
    for (_, claim) in input.contents.iter().flatten() {
        if let Claim::Any(raw) = claim {
            judge::<hyp_x86::format::X86Format>(*raw);
            judge::<hyp_el2::format::VmsaStage1>(*raw);
        }
    }
    with_rig(|rig| tables(rig, &input));
});

/// An entry that is admitted stays so, and means the same.
fn judge<F: PageTableFormat>(raw: u64) {
    for level in 1..=F::LEVELS {
        let Ok((stands, entry)) = F::admit(level, raw) else { continue };
        assert_eq!(F::admit(level, stands), Ok((stands, entry)), "admitted once, and not again");
        if entry != Entry::Absent {
            assert_eq!(F::decode(level, stands), entry, "judged as one thing, walked as another");
        }
    }
}

fn tables(rig: &Rig, input: &Input) {
    for (index, entries) in (0..FEW).zip(&input.contents) {
        let frame = rig.pool(1, index);
        // What former inputs have left is taken back, as far as that goes.
        let _ = (rig.unpin(1, frame), rig.remap(1, POOL + index, 0));
        if rig.uses(frame) != 0 || rig.hv.frames().get(frame, rig.domains[1].id()).is_err() {
            continue;
        }
        rig.hv.frames().put(frame, rig.hv.machine());
        // Straight into memory, as a guest does before it asks for a table.
        for (at, claim) in entries.iter().take(32) {
            rig.hv.machine().write_entry(frame, usize::from(*at) % 32, claim.number(rig, 1));
        }
    }
    for (index, level) in input.asked.iter().take(16) {
        let frame = rig.pool(1, u64::from(*index) % FEW);
        let _ = if level & 0x80 == 0 {
            rig.pin(1, frame, u32::from(*level) % 5 + 1)
        } else {
            rig.unpin(1, frame)
        };
        rig.check();
    }
}
