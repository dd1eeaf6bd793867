//! Taking a dead domain apart, a bounded piece at a time.
//!
//! Once no CPU has its roots loaded: first everything that holds tables is let go (roots, an interrupted operation, pins), and
//! with it the pages shared with the hypervisor; then what it has mapped by grants goes back to the lenders; then
//! the domain's claim to each frame is dropped, which frees it, scrubbed, unless somebody else still has it mapped. The place in the domain
//! table is vacant again when no frame is left. Nothing here can fail: a step that is out of budget goes on in the next.

use core::ops::ControlFlow;

use super::{Domain, Life};
use crate::address::MachineFrame;
use crate::frame::{FrameTable, Unreferenced};
use crate::hypervisor::Hypervisor;
use crate::machine::{Context, Machine, PageTableFormat};
use crate::paging::{Budget, Stop, TableSpace};

/// What is being done to a dying domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Phase {
    /// Roots and the interrupted operation.
    #[default]
    Holders,
    /// Pins, up to this frame number.
    Pins(u64),
    /// Mappings by grants, now that no table of the domain's is left in which they could stand.
    Borrowed,
    /// Claims, up to this frame number.
    Claims(u64),
    /// Waiting for frames that others still have mapped. The number can't be given to another domain while a frame still says
    /// that it belongs to this one.
    Leftovers,
}

/// How far the tear-down of a domain is.
#[derive(Debug, Default)]
pub struct Teardown {
    phase: Phase,
}

/// Frame records looked at in one step.
const RECORDS_A_STEP: u64 = 4096;
/// Frames freed, and so scrubbed, in one step.
const FRAMES_A_STEP: usize = 128;

impl Teardown {
    /// Not begun.
    pub const fn new() -> Self {
        Self { phase: Phase::Holders }
    }
}

impl<M: Machine> Domain<M> {
    /// Whether a step of tear-down would do anything: it is dying, no CPU can be using its tables, and it doesn't just
    /// wait for others.
    pub(crate) fn can_be_torn_down(&self, frames: &FrameTable) -> bool {
        self.life() == Life::Dying
            && !self.vcpus.iter().any(super::Vcpu::is_on_cpu)
            && (self.teardown.lock().phase != Phase::Leftovers || frames.owned(self.id()) == 0)
    }

    /// Does one step; `true` when the domain is gone.
    pub(crate) fn teardown_step(&self, hypervisor: &Hypervisor<M>) -> bool {
        let (machine, frames) = (&hypervisor.machine, &hypervisor.frames);
        let mut teardown = self.teardown.lock();
        let next = match teardown.phase {
            Phase::Holders => self.drop_holders(machine, frames),
            Phase::Pins(from) => self.drop_pins(machine, frames, from),
            Phase::Borrowed if hypervisor.release_borrowed(self) => Some(Phase::Claims(frames.extent().0)),
            Phase::Borrowed => Some(Phase::Borrowed),
            Phase::Claims(from) => self.drop_claims(machine, frames, from),
            Phase::Leftovers => (frames.owned(self.id()) != 0).then_some(Phase::Leftovers),
        };
        let gone = next.is_none();
        teardown.phase = next.unwrap_or_default();
        gone && self.change_life(Life::Dying, Life::Vacant)
    }

    /// The domain's tables, all of them in their trees; `None`: not yet.
    fn space<'a>(
        &'a self,
        machine: &'a M,
        frames: &'a FrameTable,
        budget: &'a Budget,
    ) -> Option<TableSpace<'a, M>> {
        let mut space = self.table_space(machine, frames, budget);
        // One that can't be hooked in any more holds nothing any more either.
        (space.hook_all() != Err(Stop::Preempted)).then_some(space)
    }

    fn drop_holders(&self, machine: &M, frames: &FrameTable) -> Option<Phase> {
        let budget = Budget::new(Budget::HYPERCALL);
        let Some(mut space) = self.space(machine, frames, &budget) else { return Some(Phase::Holders) };
        for vcpu in &self.vcpus {
            while let Some(root) = vcpu.replace_kernel_root(None).or_else(|| vcpu.replace_user_root(None)) {
                if space.settle(None).is_err() {
                    // Still held: put it back for the next step.
                    vcpu.replace_kernel_root(Some(root));
                    return Some(Phase::Holders);
                }
                space.let_go(root, M::Format::LEVELS);
            }
        }
        if space.settle(None).is_err() {
            return Some(Phase::Holders);
        }
        for vcpu in &self.vcpus {
            if let Some(info) = vcpu.forget_info() {
                frames.put_use(info, machine);
            }
            vcpu.context().for_each_descriptor_page(&mut |frame| {
                frames.put_use(frame, machine);
            });
            vcpu.context().forget_descriptor_pages();
        }
        if let Some(shared_info) = self.shared_info.replace(None) {
            frames.put_use(shared_info, machine);
        }
        self.console.release(machine, frames);
        self.store.release(machine, frames);
        self.close_grant_table(machine, frames);
        Some(Phase::Pins(frames.extent().0))
    }

    /// Gives back the frames of the grant table. Nobody gets a grant from it any more: its life has ended before, which
    /// is looked at under the same lock. What is in use stays pinned.
    fn close_grant_table(&self, machine: &M, frames: &FrameTable) {
        let mut table = self.grants.table.lock();
        self.grants.set_frames(0);
        while let Some(frame) = table.take_frame() {
            frames.put_use(frame, machine);
        }
    }

    fn drop_pins(&self, machine: &M, frames: &FrameTable, from: u64) -> Option<Phase> {
        let budget = Budget::new(Budget::HYPERCALL);
        let Some(mut space) = self.space(machine, frames, &budget) else { return Some(Phase::Pins(from)) };
        let stopped = each_record(frames, from, |frame| {
            if space.pinned_level(frame).is_some() && space.unpin(frame).is_err() {
                return ControlFlow::Break(frame.number());
            }
            if budget.is_spent() { ControlFlow::Break(frame.number()) } else { ControlFlow::Continue(()) }
        });
        match stopped {
            Some(next) => Some(Phase::Pins(next)),
            None if space.settle(None).is_err() => Some(Phase::Pins(frames.extent().1)),
            None => Some(Phase::Borrowed),
        }
    }

    fn drop_claims(&self, machine: &M, frames: &FrameTable, from: u64) -> Option<Phase> {
        // The last references are dropped first, then everything is flushed, and only then a frame is free: the domain's own
        // translations, and those of mappings that others have given up just now, are gone by then.
        let mut dropped = Unreferenced::<FRAMES_A_STEP>::new();
        let stopped = each_record(frames, from, |frame| {
            let ours = frames.hold(frame).is_some_and(|hold| hold.owner == Some(self.id()));
            if ours && frames.unclaim(frame) {
                frames.put_into(frame, &mut dropped);
            }
            if dropped.is_full() { ControlFlow::Break(frame.number()) } else { ControlFlow::Continue(()) }
        });
        frames.free_all(dropped, machine);
        Some(stopped.map_or(Phase::Leftovers, Phase::Claims))
    }
}

/// Visits the frames numbered from `from` on, a step's worth; returns where to go on, or `None` at the end.
fn each_record(
    frames: &FrameTable,
    from: u64,
    mut visit: impl FnMut(MachineFrame) -> ControlFlow<u64>,
) -> Option<u64> {
    let (_, end) = frames.extent();
    let stop = from.saturating_add(RECORDS_A_STEP).min(end);
    for number in from..stop {
        if let Some(ControlFlow::Break(next)) = MachineFrame::new(number).map(&mut visit) {
            return Some(next);
        }
    }
    (stop < end).then_some(stop)
}
