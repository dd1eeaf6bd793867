//! What must be true of all frames together, and of the roots.

use super::{Finding, Holders, Report};
use crate::address::{DomainId, MachineFrame};
use crate::frame::table::OWNERS;
use crate::frame::{FrameTable, FrameType};
use crate::machine::{Machine, PageTableFormat};

/// Checks the totals and the roots.
pub(super) fn check<M: Machine>(frames: &FrameTable, holders: &dyn Holders, report: &mut Report) {
    holders.for_each_root(&mut |root| {
        let is_root = frames.usage(root).is_some_and(|usage| {
            usage.complete && usage.uses > 0 && usage.kind == FrameType::Table(M::Format::LEVELS)
        });
        if !is_root {
            report.add(Finding::Root(root));
        }
    });
    holders.for_each_odd_lender(&mut |lender| report.add(Finding::Grants(lender)));
    let owned = count_owners(frames, report);
    check_owners(frames, holders, &owned, report);
    check_free(frames, owned.iter().sum(), report);
}

/// Frames of each owner, by the records.
fn count_owners(frames: &FrameTable, report: &mut Report) -> [u64; OWNERS] {
    let mut counts = [0u64; OWNERS];
    let (first, end) = frames.extent();
    for frame in (first..end).filter_map(MachineFrame::new) {
        let Some(owner) = frames.hold(frame).and_then(|hold| hold.owner) else { continue };
        if let Some(count) = counts.get_mut(usize::from(owner.number())) {
            *count = count.saturating_add(1);
        }
        report.frames = report.frames.saturating_add(1);
        let index = frame.number().saturating_sub(first) as usize;
        if frames.free_map().is_some_and(|map| map.is_free(index)) {
            report.add(Finding::FreeAndHeld(frame));
        }
    }
    counts
}

fn check_owners(frames: &FrameTable, holders: &dyn Holders, counts: &[u64], report: &mut Report) {
    for (number, counted) in counts.iter().copied().enumerate() {
        let owner = DomainId::new(number as u16);
        let recorded = frames.owned(owner);
        if recorded != counted {
            report.add(Finding::Owned { owner, recorded, counted });
        }
        if counted != 0 && !holders.exists(owner) {
            report.add(Finding::Orphans(owner));
        }
    }
}

fn check_free(frames: &FrameTable, owned: u64, report: &mut Report) {
    let free = frames.free_map().map_or(0, |map| map.count() as u64);
    let (recorded, managed) = (frames.free_frames() as u64, frames.managed());
    if recorded != free {
        report.add(Finding::Free { recorded, counted: free });
    }
    let counted = free.saturating_add(owned);
    if counted != managed {
        report.add(Finding::Total { managed, counted });
    }
}
