//! The parts of Xen's PV interface that a stock kernel leans on and that are no page tables: what the processor's privileged instructions
//! come to in ring 3, and the hypercalls that stand for others. The same on Penumbra and on Xen.

mod callbacks;
mod debug;
mod instructions;
mod non_maskable;
mod steps;
pub mod version;

use guest_core::guest::Guest;
use guest_core::tests::Check;

use crate::machine::X86;
use crate::traps;

/// Runs the test `interface`.
pub fn run(guest: &Guest<X86>, check: &mut Check<X86>) {
    version::run(guest, check);
    instructions::run(check);
    debug::run(check);
    steps::run(guest, check);
    callbacks::run(guest, check);
    non_maskable::run(guest, check);
    traps::remove();
    check.that("the handlers that were there before", traps::install());
}
