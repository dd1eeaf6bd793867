//! Ways for a domain to come to an end, so that tests can see its neighbours go on.

use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::{hypercalls, say};
use penumbra_abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF};

/// Dies in the way that the word `die=` asks for, if it is there.
///
/// - `shutdown`: says goodbye.
/// - `crash`: reports a crash of its own.
/// - `fault`: takes its handlers away and executes what no guest may.
/// - `table-write`: takes its handlers away and stores into one of its own page tables.
/// - what the architecture has besides ([`Architecture::DEATHS`]).
pub fn die_if_asked<A: Architecture>(guest: &Guest<A>) {
    match guest.words().value("die") {
        Some("shutdown") => hypercalls::shutdown::<A>(SHUTDOWN_POWEROFF),
        Some("crash") => hypercalls::shutdown::<A>(SHUTDOWN_CRASH),
        Some("fault") => fault::<A>(),
        Some("table-write") => write_a_table(guest),
        Some(other) => match A::DEATHS.iter().find(|death| death.0 == other) {
            Some((_, die)) => die(guest),
            None => say!(A, "die={other}: no such way to die"),
        },
        None => {}
    }
}

fn fault<A: Architecture>() {
    say!(A, "executing a forbidden instruction with no handler");
    A::remove_traps();
    A::forbidden_instruction();
    say!(A, "still alive after a forbidden instruction");
}

fn write_a_table<A: Architecture>(guest: &Guest<A>) {
    say!(A, "storing into the root table at {:#x} with no handler", guest.info.pt_base);
    A::remove_traps();
    A::write_word(guest.info.pt_base, 0);
    say!(A, "still alive after a store into the root table");
}
