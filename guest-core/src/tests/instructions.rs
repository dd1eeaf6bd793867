//! Instructions that no guest may execute: translation registers, privileged tables, other exception levels.
//!
//! Each must fault, and nothing that the domain's isolation rests on may have changed afterwards.

use super::check::Check;
use crate::architecture::Architecture;
use crate::guest::Guest;

/// Runs the test `instructions`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    check.that("faults can be caught", guest.catches_faults);
    if !guest.catches_faults {
        return;
    }
    check.that("a read of memory doesn't fault", A::try_read_word(guest.info.pt_base).is_some());
    check.that("a read of nothing faults", A::try_read_word(A::VIRT_BASE + (512 << 20)).is_none());
    check.that("a write to the M2P faults", !A::try_write_word(A::M2P_WINDOW + guest.root_frame() * 8, 0));
    check.that("the M2P stays as it was", guest.owns(guest.root_frame()));
    for &(name, is_refused) in A::FORBIDDEN {
        check.that(name, is_refused());
        check.that("translation goes on as before", guest.owns(guest.root_frame()));
    }
}
