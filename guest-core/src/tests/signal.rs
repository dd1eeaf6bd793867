//! Two domains signal each other; then one of them ends, and the other hears of it.
//!
//! Domain 1 is started with the word `echo=`: it answers each event at the port where it comes, so often, and shuts down.

use super::check::Check;
use crate::architecture::Architecture;
use crate::events::{self, Events, alloc_unbound, bind_interdomain, bind_virq, send, status, unmask};
use crate::guest::Guest;
use penumbra_abi::event_channel::{EVTCHNSTAT_INTERDOMAIN, EVTCHNSTAT_UNBOUND, VIRQ_DOM_EXC};
use penumbra_abi::{DOMID_INVALID, DOMID_SELF, Errno};

/// The other domain.
const OTHER: u16 = 1;
/// How often it answers, by its word: the first event is that of the connection.
const ANSWERS: u64 = 50;

/// Runs the test `signal`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let Some(events) = Events::open(guest) else {
        return check.that("the shared-info page can be mapped", false);
    };
    let end = check.done("hear of domains that end", bind_virq::<A>(VIRQ_DOM_EXC, 0)).unwrap_or(0);
    // The control domain may open a port for another domain.
    let waiting = check.done("a port of domain 1", alloc_unbound::<A>(OTHER, 0)).unwrap_or(0);
    check.refused("it waits for us", bind_interdomain::<A>(OTHER, waiting + 1), &[Errno::EINVAL]);
    let port = check.done("connect", bind_interdomain::<A>(OTHER, waiting)).unwrap_or(0);
    check.that("unmask", unmask::<A>(port).is_ok() && unmask::<A>(end).is_ok());
    let other = status::<A>(OTHER, waiting).map(|answer| (answer.status, answer.detail, answer.remote_port));
    check.that("both ends know", other == Ok((EVTCHNSTAT_INTERDOMAIN, 0, port)));
    check.that("the connection itself is an event", events.count(port) == 1);
    for turn in 1..=ANSWERS {
        check.done("send", send::<A>(port));
        events.wait_until(|| events.count(port) > turn);
    }
    check.that("each was answered once", events.count(port) == ANSWERS + 1);
    events.wait_until(|| events.count(end) >= 1);
    check.done("send to a domain that ends", send::<A>(port));
    // Its ports are closed before anything else of it.
    let closed = || status::<A>(DOMID_SELF, port).map(|answer| (answer.status, answer.detail));
    events.wait_until(|| events.count(end) >= 2 || closed().is_ok_and(|state| state.0 == EVTCHNSTAT_UNBOUND));
    check.that("we wait for nobody", closed() == Ok((EVTCHNSTAT_UNBOUND, u32::from(DOMID_INVALID))));
    check.done("close", events::close::<A>(port));
    check.done("close the other", events::close::<A>(end));
    check.done("give the page back", events.close());
}
