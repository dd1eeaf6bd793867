//! Domain 1 dies; the machine doesn't mind.
//!
//! The other domain is started with a word `die=`. This test waits until it is gone, and looks whether anything is left
//! of it: its frames must be nobody's, and every count must be right.

use super::check::Check;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::{self, memory_list, yield_cpu};
use penumbra_abi::Errno;

/// The domain that dies.
const NEIGHBOUR: u16 = 1;
/// How often to yield while waiting.
const PATIENCE: u32 = 1_000_000;
/// Frames of the neighbour's that are remembered, if it lives long enough to be asked.
const SAMPLE: usize = 32;

/// Runs the test `neighbour`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let mut frames = [0; SAMPLE];
    let known = memory_list::<A>(NEIGHBOUR, 0, &mut frames).unwrap_or(0);
    let gone = (0..PATIENCE).any(|_| {
        yield_cpu::<A>();
        memory_list::<A>(NEIGHBOUR, 0, &mut [0]) == Err(Errno::ESRCH)
    });
    check.that("domain 1 is gone", gone);
    // The teardown goes on in the background, a bounded piece at a time.
    let forgotten = |frame: &u64| guest.try_m2p(*frame).is_none_or(|pfn| pfn == !0);
    let freed = (0..PATIENCE).any(|_| {
        yield_cpu::<A>();
        frames.iter().take(known).all(forgotten)
    });
    check.that("its frames have no name any more", freed);
    let nobody = hypercalls::update_va_mapping_otherdomain::<A>(guest.info.pt_base, 0, NEIGHBOUR);
    check.refused("map one of its frames", nobody, &[Errno::ESRCH, Errno::EPERM, Errno::EINVAL]);
    check.that("this domain goes on", hypercalls::interface_version::<A>().is_ok());
}
