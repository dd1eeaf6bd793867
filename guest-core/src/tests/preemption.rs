//! Two domains that never give the CPU away, and both go on: the timer tick sees to it.
//!
//! Domain 1 is started with the word `spin`: it counts in its published page without any hypercall. The control domain
//! looks at the count without yielding. It can change between two looks only if the control domain was preempted, and
//! another look follows only if domain 1 was.

use super::check::Check;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::tour::{Subject, Word};

/// Turns that domain 1 must have had.
const TURNS: usize = 5;
/// How often the control domain looks at the count, at most.
const LOOKS: usize = 5_000_000;

/// How often the control domain waits, and domain 1 must have run meanwhile.
const WAITS: usize = 5;

/// Runs the test `preemption`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let subject = match Subject::find(guest) {
        Ok(subject) => subject,
        Err(what) => return check.that(what, false),
    };
    let mut last = subject.word(Word::Content);
    let turns = (0..LOOKS).filter(|_| {
        let count = subject.word(Word::Content);
        core::mem::replace(&mut last, count) != count
    });
    check.that("domain 1 and the control domain take turns", turns.take(TURNS).count() == TURNS);
    for &(name, wait) in A::WAITS {
        // Now and then the tick preempts by chance; not each time.
        let moved = (0..WAITS).filter(|_| {
            let before = subject.word(Word::Content);
            wait();
            subject.word(Word::Content) != before
        });
        check.that(name, moved.count() == WAITS);
    }
    subject.close();
}
