//! Counting: the same loop with and without the operation, and the least of several runs.
//!
//! The least, because the hypervisor's timer interrupts some runs and not others; every run that it leaves alone gives the
//! same count. A counter that doesn't count single instructions (AArch64's counts sixteen at a time) is made exact enough
//! by the number of repetitions.

use crate::architecture::Architecture;
use crate::hypercalls;
use core::sync::atomic::{AtomicU32, Ordering};
use penumbra_abi::Errno;

/// How often a short operation is repeated within one run.
pub const REPETITIONS: u64 = 512;
/// Runs of which the least counts.
static RUNS: AtomicU32 = AtomicU32::new(7);

/// Measures once only from now on, for somebody who looks at the instructions themselves.
pub fn measure_once() {
    RUNS.store(1, Ordering::Relaxed);
}

/// How a measured loop issues its hypercalls: really, or not at all.
pub type Issue = fn(u64, [u64; 6]) -> u64;

/// Instructions for one call of `action`, which gets its number within the run, from 0 to below `count`. `prepare` is done
/// before each run and not counted.
///
/// # Errors
/// The first that `prepare` or a hypercall of `action` comes to.
pub fn calls<A: Architecture>(
    count: u64,
    mut prepare: impl FnMut() -> Result<(), Errno>,
    mut action: impl FnMut(Issue, u64) -> u64,
) -> Result<u64, Errno> {
    let with = least(|| {
        prepare()?;
        timed::<A>(A::hypercall, count, &mut action)
    })?;
    let without = least(|| timed::<A>(A::no_hypercall, count, &mut action))?;
    Ok(each(with.saturating_sub(without) * A::COUNTER_UNIT, count))
}

/// As [`calls`], for operations that need no preparation.
///
/// # Errors
/// The first that a hypercall comes to.
pub fn simple_calls<A: Architecture>(action: impl FnMut(Issue, u64) -> u64) -> Result<u64, Errno> {
    calls::<A>(REPETITIONS, || Ok(()), action)
}

/// Instructions for one call of `action`, those of `other`, with which it is compared, taken away.
///
/// # Errors
/// The first that `prepare` comes to.
pub fn difference<A: Architecture>(
    count: u64,
    mut prepare: impl FnMut() -> Result<(), Errno>,
    mut action: impl FnMut(u64),
    mut other: impl FnMut(u64),
) -> Result<u64, Errno> {
    let with = least(|| {
        prepare()?;
        timed::<A>(A::no_hypercall, count, &mut |_, index| {
            action(index);
            0
        })
    })?;
    let without = least(|| {
        timed::<A>(A::no_hypercall, count, &mut |_, index| {
            other(index);
            0
        })
    })?;
    Ok(each(with.saturating_sub(without) * A::COUNTER_UNIT, count))
}

/// Units of the counter that one run takes. Never inlined, so that the loop is the same code whatever is issued.
///
/// # Errors
/// The last that `action` comes to.
#[inline(never)]
pub fn timed<A: Architecture>(
    issue: Issue,
    count: u64,
    action: &mut impl FnMut(Issue, u64) -> u64,
) -> Result<u64, Errno> {
    // Opaque: the compiler must not make a loop of its own for each way to issue.
    let issue = core::hint::black_box(issue);
    let mut failed = 0;
    let start = A::counter();
    for index in 0..count {
        let result = action(issue, index);
        if Errno::from_return(result).is_err() {
            failed = result;
        }
    }
    let end = A::counter();
    Errno::from_return(failed).map(|_| end.wrapping_sub(start))
}

/// The least result of several runs.
///
/// # Errors
/// The first error.
pub fn least(mut run: impl FnMut() -> Result<u64, Errno>) -> Result<u64, Errno> {
    (0..RUNS.load(Ordering::Relaxed)).try_fold(u64::MAX, |least, _| run().map(|now| least.min(now)))
}

/// `total` counter units spread over `count` operations, rounded.
pub const fn each(total: u64, count: u64) -> u64 {
    (total + count / 2) / count
}

/// A hypercall outside of all measurements, its value dropped.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn ask<A: Architecture>(number: u64, arguments: [u64; 6]) -> Result<(), Errno> {
    hypercalls::call::<A>(number, &arguments).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_counts_and_errors_end_it() {
        let mut runs = [9, 3, 7, 8, 4, 5, 6].into_iter();
        assert_eq!(least(|| Ok(runs.next().unwrap())), Ok(3));
        assert_eq!(least(|| Err(Errno::ENOSYS)), Err(Errno::ENOSYS));
    }

    #[test]
    fn shares_are_rounded() {
        assert_eq!((each(10, 4), each(9, 4), each(0, 4)), (3, 2, 0));
    }
}
