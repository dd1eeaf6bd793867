//! What a kernel in direct mode does alone: each operation takes as many instructions as it has, and no more.
//!
//! Only on a machine that counts instructions (`-icount shift=0,sleep=off`). A hypervisor that took part in any of them, even by an
//! empty handler, would show as tens of instructions more. The other way round, what has to trap takes that many more, even if its answer
//! tells nothing.

use super::check::Check;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::{hypercalls, say};

/// Operations that are counted at a time: short enough to lie between two ticks of the hypervisor's.
const TIMES: u64 = 1000;
/// A tick may lie within: the least of so many counts is the one without.
const COUNTS: usize = 4;

/// Runs the test `unseen`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let Some(page) = guest.zeroed_page() else { return check.that("a page", false) };
    (0..).zip(A::USER_CODE).for_each(|(index, word)| guest.write(&page, index, word));
    let address = guest.address(&page);
    let code = hypercalls::update_va_mapping::<A>(address, A::user_executable(guest.frame(&page)));
    check.done("a page for user mode's code", code);
    check.that("there is something to count", !A::UNSEEN.is_empty());
    for &(name, instructions, operation) in A::UNSEEN {
        let counts = (0..COUNTS).map(|_| operation(address, TIMES) * A::COUNTER_UNIT);
        let least = counts.min().unwrap_or(u64::MAX);
        let each = least.saturating_add(TIMES / 2) / TIMES;
        say!(A, "{name}: {each} instructions of {instructions}");
        // The emulator may or may not count an instruction that faults.
        check.that(name, each.abs_diff(instructions) <= 1);
    }
    for &(name, instructions, operation) in A::SEEN {
        let each = operation(address, TIMES) * A::COUNTER_UNIT / TIMES;
        say!(A, "{name}: {each} instructions, at least {instructions}");
        check.that(name, each >= instructions);
    }
    check.done("the page comes back", guest.release(page));
}
