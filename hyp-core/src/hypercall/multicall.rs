//! `multicall`: several hypercalls in one (`xen.h`).

use core::mem::offset_of;

use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::multicall::MulticallEntry;

use super::{Arguments, Call, Failure, Outcome};
use crate::domain::Life;
use crate::machine::Machine;
use crate::paging::Budget;

impl<M: Machine> Call<'_, M> {
    /// Arguments: guest address of an array of [`MulticallEntry`]; their number. Each entry's own result is written into it; an
    /// error in one doesn't stop the next. Multicalls don't nest.
    #[inline(never)]
    pub(super) fn multicall(&self, arguments: Arguments) -> Outcome {
        let [mut next, count, ..] = arguments;
        let mut left = count & 0xffff_ffff;
        let mut entry = MulticallEntry::default();
        // An entry may end the domain itself.
        while left > 0 && self.domain.life() == Life::Alive {
            if self.budget.is_spent() {
                return Err(Failure::Again([next, left, 0, 0, 0, 0]));
            }
            self.budget.charge(Budget::OPERATION);
            self.read_into(next, &mut entry)?;
            let outcome = match entry.operation {
                number::MULTICALL => Err(Errno::EINVAL.into()),
                operation => self.dispatch(operation, entry.arguments),
            };
            let place = next.wrapping_add(offset_of!(MulticallEntry, result) as u64);
            match outcome {
                Ok(value) => self.write(place, &value)?,
                Err(Failure::Errno(errno)) => self.write(place, &errno.to_return())?,
                Err(Failure::Again(rest)) => {
                    // What is left of the entry takes its place.
                    entry.arguments = rest;
                    self.write(next, &entry)?;
                    return Err(Failure::Again([next, left, 0, 0, 0, 0]));
                }
            }
            next = next.wrapping_add(size_of::<MulticallEntry>() as u64);
            left = left.saturating_sub(1);
        }
        Ok(0)
    }
}
