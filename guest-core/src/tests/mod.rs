//! Tests that the control domain runs on a live hypervisor, by the word `test=`.
//!
//! Each prints one line, `TEST name: PASS` or `TEST name: FAIL what`, which the machine tests look for; every check
//! that failed has a line of its own before it. They run on Xen, too, where errors are expected to be Xen's own.

mod attacks;
mod balloon;
mod check;
mod console;
mod events;
mod grant_table;
mod hypercalls;
mod instructions;
mod linear;
mod memory;
mod multicall;
mod neighbour;
mod pin;
mod preemption;
mod registers;
mod reservation;
mod ring;
mod root;
mod runstate;
mod share;
mod signal;
mod superpages;
mod unseen;
mod vcpus;

use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::say;
pub use check::Check;
use penumbra_abi::Errno;
pub use registers::keep as keep_registers;

/// What using a table as a page, or the other way round, is refused with.
const REFUSED_TABLE: &[Errno] = &[Errno::EINVAL, Errno::EBUSY, Errno::EPERM];

/// A test: its name, and what it does.
pub type Test<A> = (&'static str, fn(&Guest<A>, &mut Check<A>));

/// All tests that one domain can run by itself.
fn alone<A: Architecture>() -> [Test<A>; 13] {
    [
        ("hypercalls", hypercalls::run),
        ("instructions", instructions::run),
        ("pin", pin::run),
        ("linear", linear::run),
        ("superpages", superpages::run),
        ("root", root::run),
        ("reservation", reservation::run),
        ("memory", memory::run),
        ("multicall", multicall::run),
        ("console", console::run),
        ("events", events::run),
        ("runstate", runstate::run),
        ("grant-table", grant_table::run),
    ]
}

/// Those, and the tests that only this architecture has.
fn every<A: Architecture>() -> impl Iterator<Item = Test<A>> {
    alone::<A>().into_iter().chain(A::TESTS.iter().copied())
}

/// Runs the tests in `names` (separated by `+`, since QEMU takes commas for itself); `all` means those that need nothing else: not
/// a domain 1 that lends its memory (`balloon`), with `die=` (as `neighbour`), `spin` (`preemption`) `echo=` (`signal`), `registers=` (`registers`) or `lend`
/// (`share`), nor a console page and somebody who types (`console-ring`), nor any (`attacks`, which are Penumbra's alone), nor a second vCPU (`vcpus`), nor a machine that counts instructions (`unseen`).
pub fn run<A: Architecture>(guest: &Guest<A>, names: &str) {
    for name in names.split('+') {
        match name {
            "all" => every::<A>().for_each(|test| run_one(guest, test)),
            "attacks" => attacks::all::<A>().into_iter().for_each(|test| run_one(guest, test)),
            "preemption" => run_one(guest, ("preemption", preemption::run)),
            "console-ring" => run_one(guest, ("console-ring", ring::run)),
            "signal" => run_one(guest, ("signal", signal::run)),
            "vcpus" => run_one(guest, ("vcpus", vcpus::run)),
            "registers" => run_one(guest, ("registers", registers::run)),
            "unseen" => run_one(guest, ("unseen", unseen::run)),
            "balloon" => run_one(guest, ("balloon", balloon::run)),
            "share" => run_one(guest, ("share", share::run)),
            "neighbour" => run_one(guest, ("neighbour", neighbour::run)),
            _ => match every::<A>().chain(attacks::all()).find(|test| test.0 == name) {
                Some(test) => run_one(guest, test),
                None => say!(A, "TEST {name}: FAIL there is no such test"),
            },
        }
    }
}

fn run_one<A: Architecture>(guest: &Guest<A>, (name, test): Test<A>) {
    let mut check = Check::new(name);
    let pages = guest.pages.available();
    test(guest, &mut check);
    check.that("all pages came back", guest.pages.available() == pages);
    if guest.on_penumbra && guest.is_control() {
        check.that("the audit finds nothing", crate::hypercalls::audit::<A>() == Ok(0));
    }
    check.report();
}
