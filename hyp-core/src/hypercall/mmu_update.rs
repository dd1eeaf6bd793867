//! `mmu_update`: a batch of changes to page-table entries and to the machine-to-physical table (`xen.h`).

use penumbra_abi::errno::Errno;
use penumbra_abi::mmu::{self, MmuUpdate};

use super::{Arguments, Call, Failure, Outcome};
use crate::address::{DomainId, MachineAddress, MachineFrame, PseudoFrame};
use crate::domain::Domain;
use crate::machine::Machine;
use crate::paging::update::HardwareBits;
use crate::paging::{Budget, Refusal, Stop, TableSpace};

/// A batch under way.
struct Batch {
    /// Guest address of the next update.
    next: u64,
    left: u64,
    /// Guest address of the count of updates done, or 0.
    done_place: u64,
    done: u32,
    foreign: u64,
}

impl<'a, M: Machine> Call<'a, M> {
    /// Arguments: guest address of an array of [`MmuUpdate`]; their number; where to write how many were done, or 0; whose tables
    /// and whose frames ([`mmu::decode_foreign_domain`]). Stops at the first that is refused, with its error.
    pub(super) fn mmu_update(&self, arguments: Arguments) -> Outcome {
        let [next, count, done_place, foreign, ..] = arguments;
        let mut batch = Batch {
            next,
            left: count & !mmu::MMU_UPDATE_PREEMPTED & 0xffff_ffff,
            done_place,
            done: 0,
            foreign,
        };
        let (owner, target) = self.foreign_domains(foreign)?;
        if count & mmu::MMU_UPDATE_PREEMPTED != 0 && done_place != 0 {
            batch.done = self.read(done_place)?;
        }
        let mut space = self.tables(owner, target);
        let outcome = self.run_batch(&mut space, &mut batch);
        drop(space);
        if done_place != 0 {
            self.write(done_place, &batch.done)?;
        }
        outcome
    }

    /// Whose tables, and whose frames they may map.
    fn foreign_domains(&self, argument: u64) -> Result<(&'a Domain<M>, DomainId), Errno> {
        let (table_owner, frame_owner) = mmu::decode_foreign_domain(argument);
        let owner = self.named_domain(table_owner.unwrap_or(DomainId::SELF.number()))?;
        Ok((owner, self.named_domain(frame_owner)?.id()))
    }

    fn run_batch(&self, space: &mut TableSpace<'_, M>, batch: &mut Batch) -> Outcome {
        while batch.left > 0 {
            let update: MmuUpdate = self.read(batch.next)?;
            match self.one_update(space, update) {
                Ok(()) => {}
                Err(Stop::Refused(refusal)) => return Err(refusal.errno().into()),
                Err(Stop::Preempted) => return Err(batch.again()),
            }
            batch.done = batch.done.saturating_add(1);
            batch.left = batch.left.saturating_sub(1);
            // An address that wraps around is refused when it is read.
            batch.next = batch.next.wrapping_add(size_of::<MmuUpdate>() as u64);
            if batch.left > 0 && self.budget.is_spent() {
                return Err(batch.again());
            }
        }
        Ok(0)
    }

    fn one_update(&self, space: &mut TableSpace<'_, M>, update: MmuUpdate) -> Result<(), Stop> {
        let place =
            MachineAddress::new(update.pointer & !mmu::MMU_UPDATE_KIND_MASK).ok_or(Refusal::Unaligned)?;
        match update.pointer & mmu::MMU_UPDATE_KIND_MASK {
            mmu::MMU_NORMAL_PT_UPDATE => space.update_at(place, update.value, HardwareBits::Replace),
            mmu::MMU_PT_UPDATE_PRESERVE_AD => space.update_at(place, update.value, HardwareBits::Preserve),
            mmu::MMU_MACHPHYS_UPDATE => {
                self.budget.charge(Budget::OPERATION);
                self.name_frame(space, MachineFrame::containing(place), update.value)
            }
            _ => Err(Refusal::NoSuchLevel.into()),
        }
    }

    /// The domain says what it calls one of its frames.
    fn name_frame(&self, space: &TableSpace<'_, M>, frame: MachineFrame, name: u64) -> Result<(), Stop> {
        space.frames.get(frame, space.target).map_err(Refusal::Table)?;
        if let Some(m2p) = space.frames.m2p() {
            m2p.set(frame, Some(PseudoFrame::new(name)));
        }
        space.frames.put(frame, space.machine);
        Ok(())
    }
}

impl Batch {
    /// The rest of the batch, as the guest will ask for it again.
    fn again(&self) -> Failure {
        Failure::Again([
            self.next,
            self.left | mmu::MMU_UPDATE_PREEMPTED,
            self.done_place,
            self.foreign,
            0,
            0,
        ])
    }
}
