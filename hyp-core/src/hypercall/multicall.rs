//! `multicall`: several hypercalls in one (`xen.h`).
//!
//! Entries are read and written [`AHEAD`] at a time: reaching a guest's memory costs more than most entries do. So what the guest
//! changes in them meanwhile, it changes too late. Those that change mappings keep the table lock from one to the next
//! ([`super::va_mapping`]).

use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::multicall::MulticallEntry;
use zerocopy::IntoBytes;

use super::va_mapping::Row;
use super::{Arguments, Call, Failure, Outcome};
use crate::domain::Life;
use crate::machine::Machine;
use crate::paging::Budget;

/// Entries that are read from the guest at once.
const AHEAD: usize = 8;
const ENTRY_BYTES: u64 = size_of::<MulticallEntry>() as u64;

/// Whether the rest of a multicall is for later.
enum Progress {
    Done,
    Preempted,
}

impl<'a, M: Machine> Call<'a, M> {
    /// Arguments: guest address of an array of [`MulticallEntry`]; their number. Each entry's own result is written into it; an
    /// error in one doesn't stop the next. Multicalls don't nest.
    #[inline(never)]
    pub(super) fn multicall(&self, arguments: &Arguments) -> Outcome {
        let [next, count, ..] = *arguments;
        match count & 0xffff_ffff {
            1 => self.entries::<1>(next, 1),
            count => self.entries::<AHEAD>(next, count),
        }
    }

    /// Goes through `left` entries from `next` on, `COUNT` of them at a time.
    #[inline(always)]
    fn entries<const COUNT: usize>(&self, mut next: u64, mut left: u64) -> Outcome {
        let mut ahead = [MulticallEntry::default(); COUNT];
        let mut row = None;
        let mut flushes = self.hypervisor.frames.type_flushes();
        // An entry may end the domain itself.
        while left > 0 && self.domain.life() == Life::Alive {
            let wanted = usize::try_from(left).unwrap_or(COUNT).min(COUNT);
            // Where the last of them can't be read, the first may be.
            let read = match self.read_entries(next, ahead.get_mut(..wanted)) {
                Ok(()) => wanted,
                Err(_) => self.read_entries(next, ahead.get_mut(..1)).map(|()| 1)?,
            };
            let (done, progress) = self.run_entries(ahead.get_mut(..read).unwrap_or_default(), &mut row);
            self.charge_flushes(&mut flushes);
            // One that is preempted stands there with what is left of it.
            let touched = done.saturating_add(usize::from(matches!(progress, Progress::Preempted)));
            self.write_bytes(next, ahead.get(..touched.min(read)).unwrap_or_default().as_bytes())?;
            next = next.wrapping_add((done as u64).wrapping_mul(ENTRY_BYTES));
            left = left.saturating_sub(done as u64);
            if matches!(progress, Progress::Preempted) {
                return Err(Failure::Again([next, left, 0, 0, 0, 0]));
            }
        }
        Ok(0)
    }

    fn read_entries(&self, from: u64, into: Option<&mut [MulticallEntry]>) -> Result<(), Errno> {
        self.read_bytes(from, into.ok_or(Errno::EFAULT)?.as_mut_bytes())
    }

    /// Carries out entries, until one is preempted or the domain is no more. Returns how many are done.
    #[inline(always)]
    fn run_entries(&self, entries: &mut [MulticallEntry], row: &mut Option<Row<'a, M>>) -> (usize, Progress) {
        for (done, entry) in entries.iter_mut().enumerate() {
            if self.budget.is_spent() {
                return (done, Progress::Preempted);
            }
            self.budget.charge(Budget::OPERATION);
            let outcome = match entry.operation {
                number::UPDATE_VA_MAPPING => self.mapping_in_row(row, &entry.arguments),
                operation => {
                    *row = None;
                    self.other_operation(operation, &entry.arguments)
                }
            };
            match outcome {
                Ok(value) => entry.result = value,
                Err(Failure::Errno(errno)) => entry.result = errno.to_return(),
                Err(Failure::Again(rest)) => {
                    entry.arguments = rest;
                    return (done, Progress::Preempted);
                }
            }
            if self.domain.life() != Life::Alive {
                return (done.saturating_add(1), Progress::Done);
            }
        }
        (entries.len(), Progress::Done)
    }

    #[inline(always)]
    fn other_operation(&self, operation: u64, arguments: &Arguments) -> Outcome {
        match operation {
            number::MULTICALL => Err(Errno::EINVAL.into()),
            _ => self.dispatch(operation, arguments),
        }
    }
}
