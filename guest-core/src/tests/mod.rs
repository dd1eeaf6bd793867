//! Tests that the control domain runs on a live hypervisor, by the word `test=`.
//!
//! Each prints one line, `TEST name: PASS` or `TEST name: FAIL what`, which the machine tests look for.

use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::say;

/// What a test found: nothing wrong, or the first thing that was.
pub type Outcome = Result<(), &'static str>;

type Test<A> = (&'static str, fn(&Guest<A>) -> Outcome);

fn all<A: Architecture>() -> [Test<A>; 0] {
    []
}

/// Runs the tests in `names` (separated by commas), or all of them.
pub fn run<A: Architecture>(guest: &Guest<A>, names: &str) {
    for name in names.split(',') {
        let tests = all::<A>();
        let mut chosen = tests.iter().filter(|test| name == "all" || name == test.0).peekable();
        if chosen.peek().is_none() {
            say!(A, "TEST {name}: FAIL there is no such test");
        }
        for (name, test) in chosen {
            match test(guest) {
                Ok(()) => say!(A, "TEST {name}: PASS"),
                Err(what) => say!(A, "TEST {name}: FAIL {what}"),
            }
        }
    }
}
