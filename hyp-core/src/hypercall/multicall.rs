//! `multicall`: several hypercalls in one (`xen.h`).
//!
//! Entries are read [`AHEAD`] at a time: what the guest changes in them meanwhile, it changes too late. Each result is written at
//! once, by the tables that are loaded by then: where an entry takes the list away, nothing after it is done (XSA-213). Entries
//! that change mappings keep the table lock from one to the next, and the page that their results go to ([`super::va_mapping`]).

use core::cell::Cell;
use core::mem::offset_of;

use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::multicall::MulticallEntry;

use super::ahead::AHEAD;
use super::va_mapping::Row;
use super::{Arguments, Call, Failure, Outcome, immediate, values};
use crate::domain::Life;
use crate::machine::Machine;
use crate::paging::Budget;

const ENTRY_BYTES: u64 = size_of::<MulticallEntry>() as u64;

impl<'a, M: Machine> Call<'a, M> {
    /// Arguments: guest address of an array of [`MulticallEntry`]; their number. Each entry's own result is written into it; an
    /// error in one doesn't stop the next. Multicalls don't nest.
    #[inline(never)]
    pub(super) fn multicall(&self, arguments: &Arguments) -> Outcome {
        let [next, count, ..] = values(arguments);
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
        self.charge_flushes();
        // An entry may end the domain itself.
        while left > 0 && self.domain.life() == Life::Alive {
            let read = self.read_ahead(next, left, &mut ahead)?;
            let count = read.len() as u64;
            let start = next;
            next = self.run_entries(next, read, &mut row)?;
            self.charge_flushes();
            let done = next.wrapping_sub(start) / ENTRY_BYTES;
            left = left.saturating_sub(done);
            if done < count && self.domain.life() == Life::Alive {
                return Err(Failure::Again([next, left, 0, 0, 0, 0]));
            }
        }
        Ok(0)
    }

    /// Carries out entries that stand at `next`, until one is preempted or the domain is no more. Returns where it stopped.
    #[inline(always)]
    fn run_entries(
        &self,
        mut next: u64,
        entries: &mut [MulticallEntry],
        row: &mut Option<Row<'a, M>>,
    ) -> Result<u64, Errno> {
        for entry in entries {
            if !self.budget.take(Budget::OPERATION) {
                break;
            }
            let arguments = Cell::from_mut(&mut entry.arguments).as_array_of_cells();
            let outcome = match entry.operation {
                number::UPDATE_VA_MAPPING => self.mapping_in_row(row, arguments),
                operation => {
                    *row = None;
                    self.other_operation(operation, arguments)
                }
            };
            let result = match outcome {
                Ok(value) => value,
                Err(Failure::Errno(errno)) => errno.to_return(),
                Err(Failure::Again(rest)) => {
                    self.put_rest(next, entry, rest)?;
                    break;
                }
            };
            self.write_result(next, result, row)?;
            next = next.wrapping_add(ENTRY_BYTES);
            if entry.operation != number::UPDATE_VA_MAPPING && self.domain.life() != Life::Alive {
                break;
            }
        }
        Ok(next)
    }

    /// Writes the result of the entry at `place`.
    #[inline(always)]
    fn write_result(&self, place: u64, result: u64, row: &mut Option<Row<'a, M>>) -> Result<(), Errno> {
        let to = place.wrapping_add(offset_of!(MulticallEntry, result) as u64);
        if row.as_mut().is_some_and(|row| row.write(self, to, result)) {
            return Ok(());
        }
        self.write(to, &result)
    }

    /// What is left of a preempted entry takes its place.
    #[cold]
    #[inline(never)]
    fn put_rest(&self, place: u64, entry: &mut MulticallEntry, rest: [u64; 6]) -> Result<(), Errno> {
        entry.arguments = rest;
        self.write(place, &*entry)
    }

    #[inline(always)]
    fn other_operation(&self, operation: u64, arguments: &Arguments) -> Outcome {
        let [first, ..] = values(arguments);
        match immediate(operation, first) {
            Some(answer) => Ok(answer),
            None if operation == number::MULTICALL => Err(Errno::EINVAL.into()),
            None => self.dispatch(operation, arguments),
        }
    }
}
