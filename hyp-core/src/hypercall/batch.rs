//! Hypercalls that carry an array of operations: `mmu_update` and `mmuext_op`.
//!
//! Operations are done in order until one is refused. The guest can ask for the number of those done. Preempted, the
//! guest issues the hypercall again for the rest, with [`MMU_UPDATE_PREEMPTED`] in the count, which says that the number
//! done so far is to be read back first. (A guest that sets the bit itself deceives only itself.)

use penumbra_abi::errno::Errno;
use penumbra_abi::mmu::MMU_UPDATE_PREEMPTED;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{Arguments, Call, Failure, Outcome, values};
use crate::machine::Machine;
use crate::paging::{Refusal, Stop};

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

/// The part of a guest's array that was read ahead.
struct Ahead<T, const COUNT: usize> {
    operations: [T; COUNT],
    at: usize,
    end: usize,
}

impl<T: FromBytes + IntoBytes + Copy, const COUNT: usize> Ahead<T, COUNT> {
    fn new() -> Self {
        Self { operations: <[T; COUNT]>::new_zeroed(), at: 0, end: 0 }
    }

    /// Those operations from `next` on, of which `left` are to come, that have been read and not been done: one at least.
    #[inline(always)]
    fn rest<M: Machine>(&mut self, call: &Call<'_, M>, next: u64, left: u64) -> Result<&[T], NotDone> {
        if self.at >= self.end {
            self.fill(call, next, left)?;
        }
        self.operations.get(self.at..self.end).ok_or(NotDone::Errno(Errno::EFAULT))
    }

    #[inline(never)]
    fn fill<M: Machine>(&mut self, call: &Call<'_, M>, next: u64, left: u64) -> Result<(), Errno> {
        self.end = call.read_ahead(next, left, &mut self.operations)?.len();
        self.at = 0;
        Ok(())
    }
}

impl<M: Machine> Call<'_, M> {
    /// Whether it is one operation, not counted for the guest, and can be done now: the usual case, for [`Self::single`].
    #[inline(always)]
    pub(super) fn is_single(&self, arguments: &Arguments) -> bool {
        let [_, count, done_place, ..] = values(arguments);
        count & !MMU_UPDATE_PREEMPTED == 1 && done_place == 0 && !self.budget.is_spent()
    }

    /// Whether it is two operations, not counted for the guest.
    #[inline(always)]
    pub(super) fn is_pair(&self, arguments: &Arguments) -> bool {
        let [_, count, done_place, ..] = values(arguments);
        count == 2 && done_place == 0
    }

    /// As [`Self::batch`], of a single operation.
    #[inline(always)]
    pub(super) fn single<T: FromBytes + IntoBytes>(
        &self,
        arguments: &Arguments,
        one: impl FnOnce(&T) -> Result<(), NotDone>,
    ) -> Outcome {
        let [place, _, done_place, foreign, ..] = values(arguments);
        // Not by way of a result: beside an error of two bytes, compiled code moves the structure about in halfwords.
        let mut operation = T::new_zeroed();
        let read = self.read_into(place, &mut operation).map_err(NotDone::from);
        match read.and_then(|()| one(&operation)) {
            Ok(()) => Ok(0),
            Err(NotDone::Errno(errno)) => Err(errno.into()),
            Err(NotDone::Preempted) => {
                Err(Failure::Again([place, 1 | MMU_UPDATE_PREEMPTED, done_place, foreign, 0, 0]))
            }
        }
    }

    /// Does `some` of the operations, and again, until all are done: it gets those that are next, `COUNT` at most, and says how many of
    /// them it has done, one at least. Arguments: guest address of the array; how many operations; where to write how many were
    /// done (4 bytes), or 0; a fourth one that is the hypercall's own.
    #[inline(always)]
    pub(super) fn batch<T: FromBytes + IntoBytes + Copy, const COUNT: usize>(
        &self,
        arguments: &Arguments,
        mut some: impl FnMut(&[T]) -> Result<usize, NotDone>,
    ) -> Outcome {
        let [mut next, count, done_place, foreign, ..] = values(arguments);
        let mut left = count & !MMU_UPDATE_PREEMPTED & 0xffff_ffff;
        let resumed = count & MMU_UPDATE_PREEMPTED != 0 && done_place != 0;
        let mut done: u32 = if resumed { self.read(done_place)? } else { 0 };
        let mut ahead = Ahead::<T, COUNT>::new();
        self.charge_flushes();
        let outcome = loop {
            if left == 0 {
                break Ok(0);
            }
            let result = if self.budget.is_spent() {
                Err(NotDone::Preempted)
            } else {
                ahead.rest(self, next, left).and_then(&mut some)
            };
            self.charge_flushes();
            let count = match result {
                Ok(count) => count,
                Err(NotDone::Errno(errno)) => break Err(errno.into()),
                Err(NotDone::Preempted) => {
                    let rest = [next, left | MMU_UPDATE_PREEMPTED, done_place, foreign, 0, 0];
                    break Err(Failure::Again(rest));
                }
            };
            ahead.at = ahead.at.saturating_add(count);
            done = done.saturating_add(count as u32);
            left = left.saturating_sub(count as u64);
            // An address that wraps around is refused when it is read.
            next = next.wrapping_add((size_of::<T>() as u64).wrapping_mul(count as u64));
        };
        if done_place != 0 {
            self.write(done_place, &done)?;
        }
        outcome
    }
}
