//! Hypercalls that carry an array of operations: `mmu_update` and `mmuext_op`.
//!
//! Operations are done in order until one is refused. The guest can ask for the number of those done. Preempted, the
//! guest issues the hypercall again for the rest, with [`MMU_UPDATE_PREEMPTED`] in the count, which says that the number
//! done so far is to be read back first. (A guest that sets the bit itself deceives only itself.)

use penumbra_abi::errno::Errno;
use penumbra_abi::mmu::MMU_UPDATE_PREEMPTED;
use zerocopy::{FromBytes, IntoBytes};

use super::{Arguments, Call, Failure, Outcome};
use crate::machine::Machine;
use crate::paging::{Budget, Refusal, Stop};

/// Why one operation of a batch was not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NotDone {
    /// It never will be.
    Errno(Errno),
    /// Not yet.
    Preempted,
}

impl From<Errno> for NotDone {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<Refusal> for NotDone {
    fn from(refusal: Refusal) -> Self {
        Self::Errno(refusal.errno())
    }
}

impl From<Stop> for NotDone {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Refused(refusal) => refusal.into(),
            Stop::Preempted => Self::Preempted,
        }
    }
}

impl<M: Machine> Call<'_, M> {
    /// Does `one` for each operation. Arguments: guest address of the array; how many operations; where to write how many were
    /// done (4 bytes), or 0; a fourth one that is the hypercall's own.
    pub(super) fn batch<T: FromBytes + IntoBytes>(
        &self,
        arguments: Arguments,
        mut one: impl FnMut(T) -> Result<(), NotDone>,
    ) -> Outcome {
        let [mut next, count, done_place, foreign, ..] = arguments;
        let mut left = count & !MMU_UPDATE_PREEMPTED & 0xffff_ffff;
        let resumed = count & MMU_UPDATE_PREEMPTED != 0 && done_place != 0;
        let mut done: u32 = if resumed { self.read(done_place)? } else { 0 };
        let outcome = loop {
            if left == 0 {
                break Ok(0);
            }
            let flushes = self.hypervisor.frames.type_flushes();
            let result = if self.budget.is_spent() {
                Err(NotDone::Preempted)
            } else {
                self.read(next).map_err(NotDone::from).and_then(&mut one)
            };
            // Frames that changed their type have cost a flush each.
            let flushes = self.hypervisor.frames.type_flushes().wrapping_sub(flushes);
            self.budget.charge((flushes as u32).saturating_mul(Budget::FLUSH));
            match result {
                Ok(()) => {}
                Err(NotDone::Errno(errno)) => break Err(errno.into()),
                Err(NotDone::Preempted) => {
                    let rest = [next, left | MMU_UPDATE_PREEMPTED, done_place, foreign, 0, 0];
                    break Err(Failure::Again(rest));
                }
            }
            done = done.saturating_add(1);
            left = left.saturating_sub(1);
            // An address that wraps around is refused when it is read.
            next = next.wrapping_add(size_of::<T>() as u64);
        };
        if done_place != 0 {
            self.write(done_place, &done)?;
        }
        outcome
    }
}
