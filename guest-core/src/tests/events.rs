//! Events of a domain to itself: upcalls, masks, virtual interrupts, time.

use super::check::Check;
use crate::architecture::Architecture;
use crate::events::{self, Events, bind_ipi, bind_virq, poll, send, status, unmask};
use crate::guest::Guest;
use crate::hypercalls::{self, address_of, call};
use penumbra_abi::event_channel::*;
use penumbra_abi::vcpu::{
    SetSingleshotTimer, VCPUOP_DOWN, VCPUOP_IS_UP, VCPUOP_SET_PERIODIC_TIMER, VCPUOP_SET_SINGLESHOT_TIMER,
    VCPUOP_STOP_PERIODIC_TIMER, VCPUOP_STOP_SINGLESHOT_TIMER, VCPUOP_UP,
};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// 30 ms, in nanoseconds: longer than a few ticks.
const A_WHILE: u64 = 30_000_000;
/// What reading the time may be behind.
const SLACK: u64 = 1_000_000;
/// A port that nobody has.
const NO_PORT: u32 = 1023;

/// Runs the test `events`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let Some(events) = Events::open(guest) else {
        return check.that("the shared-info page can be mapped", false);
    };
    masks(&events, check);
    pair(&events, check);
    refusals(check);
    timer(&events, check);
    polling(&events, check);
    check.done("give the page back", events.close());
}

/// An event comes as an upcall unless the port or all upcalls are masked; then it comes later, once.
fn masks<A: Architecture>(events: &Events<'_, A>, check: &mut Check<A>) {
    let Some(port) = check.done("bind a port to ourselves", bind_ipi::<A>(0)) else { return };
    let _ = unmask::<A>(port);
    check.done("send", send::<A>(port));
    check.that("the event was taken on the way out", events.count(port) == 1);
    check.that("nothing is pending any more", !events.is_pending(port) && !events.is_upcall_pending());
    events.mask_port(port);
    check.done("send to a masked port", send::<A>(port));
    check.that("no upcall, but the bit", events.count(port) == 1 && events.is_pending(port));
    check.done("unmask", unmask::<A>(port));
    check.that("it was told then", events.count(port) == 2);
    events.mask(true);
    check.done("send with upcalls masked", send::<A>(port));
    check.that("it waits", events.count(port) == 2 && events.is_upcall_pending());
    check.done("and once more", send::<A>(port));
    events.mask(false);
    // Where it is the hypervisor that looks, it looks at the next hypercall.
    let _ = hypercalls::interface_version::<A>();
    check.that("both came as one", events.count(port) == 3);
    let seen = status::<A>(DOMID_SELF, port).map(|answer| (answer.status, answer.vcpu));
    check.that("it is an IPI of vCPU 0", seen == Ok((EVTCHNSTAT_IPI, 0)));
    check.done("close", events::close::<A>(port));
    check.refused("send to a closed port", send::<A>(port), &[Errno::EINVAL]);
}

/// A channel from the domain to itself.
fn pair<A: Architecture>(events: &Events<'_, A>, check: &mut Check<A>) {
    let waiting = check.done("a port that waits", events::alloc_unbound::<A>(DOMID_SELF, DOMID_SELF));
    let Some(waiting) = waiting else { return };
    check.done("send to nobody", send::<A>(waiting));
    check.refused(
        "connect to a closed port",
        events::bind_interdomain::<A>(DOMID_SELF, NO_PORT),
        &[Errno::EINVAL],
    );
    let other = check.done("connect", events::bind_interdomain::<A>(DOMID_SELF, waiting));
    let Some(other) = other else { return };
    let _ = (unmask::<A>(waiting), unmask::<A>(other));
    check.that("a new connection has an event", events.count(other) == 1);
    check.done("send one way", send::<A>(waiting));
    check.done("send the other way", send::<A>(other));
    check.that("each end was told", events.count(other) == 2 && events.count(waiting) == 1);
    check.done("close one end", events::close::<A>(other));
    let left = status::<A>(DOMID_SELF, waiting).map(|answer| answer.status);
    check.that("the other waits again", left == Ok(EVTCHNSTAT_UNBOUND));
    check.done("close the other", events::close::<A>(waiting));
}

fn refusals<A: Architecture>(check: &mut Check<A>) {
    check.refused("an IPI to a vCPU that isn't there", bind_ipi::<A>(4000), &[Errno::ENOENT]);
    check.refused("a virtual interrupt too many", bind_virq::<A>(NR_VIRQS, 0), &[Errno::EINVAL]);
    check.refused("a domain-wide one for vCPU 1", bind_virq::<A>(VIRQ_CONSOLE, 1), &[Errno::EINVAL]);
    check.refused("close port 0", events::close::<A>(0), &[Errno::EINVAL]);
    check.refused("send to no port at all", send::<A>(u32::MAX), &[Errno::EINVAL]);
    check.refused("a port of no domain", events::alloc_unbound::<A>(0x7abc, 0), &[Errno::ESRCH]);
    let up = |operation, vcpu| call::<A>(number::VCPU_OP, &[operation, vcpu]);
    check.that("vCPU 0 is up", up(VCPUOP_IS_UP, 0) == Ok(1));
    for operation in [VCPUOP_IS_UP, VCPUOP_UP, VCPUOP_DOWN] {
        check.refused("a vCPU that isn't there", up(operation, 4000), &[Errno::ENOENT]);
    }
}

/// `VIRQ_TIMER`: at once if the time has passed, in time if not, again and again, and not once it is stopped.
fn timer<A: Architecture>(events: &Events<'_, A>, check: &mut Check<A>) {
    // On Xen a periodic timer runs from the start.
    check.done("no periodic timer", call::<A>(number::VCPU_OP, &[VCPUOP_STOP_PERIODIC_TIMER, 0]));
    let Some(port) = check.done("bind the timer", bind_virq::<A>(VIRQ_TIMER, 0)) else { return };
    let _ = unmask::<A>(port);
    check.refused("bind it twice", bind_virq::<A>(VIRQ_TIMER, 0), &[Errno::EEXIST]);
    let set = |when: u64| {
        let timer = SetSingleshotTimer { timeout_abs_ns: when, ..SetSingleshotTimer::default() };
        call::<A>(number::VCPU_OP, &[VCPUOP_SET_SINGLESHOT_TIMER, 0, address_of(&timer)])
    };
    check.done("a time that has passed", set(1));
    events.wait_until(|| events.count(port) == 1);
    let deadline = events::now::<A>() + A_WHILE;
    check.done("a time to come", call::<A>(number::SET_TIMER_OP, &[deadline]));
    // Whoever runs this machine may have let it wait until then.
    check.that("not yet", events.count(port) == 1 || events::now::<A>() >= deadline);
    events.wait_until(|| events.count(port) == 2);
    check.that("not before its time", events::now::<A>() + SLACK >= deadline);
    check.done("set and stop", set(events::now::<A>() + A_WHILE));
    check.done("stop", call::<A>(number::VCPU_OP, &[VCPUOP_STOP_SINGLESHOT_TIMER, 0]));
    let until_then = events.count(port);
    check.done("wait beyond it", poll::<A>(&[], events::now::<A>() + 2 * A_WHILE));
    check.that("it stays silent", events.count(port) == until_then);
    if guest_has_periodic_timers::<A>() {
        check.done("again and again", periodic::<A>(A_WHILE / 3));
        events.wait_until(|| events.count(port) >= 5);
        check.done("and no more", call::<A>(number::VCPU_OP, &[VCPUOP_STOP_PERIODIC_TIMER, 0]));
        check.refused("a period too short", periodic::<A>(1000), &[Errno::EINVAL]);
    }
    check.done("close the timer", events::close::<A>(port));
}

fn periodic<A: Architecture>(period: u64) -> Result<u64, Errno> {
    call::<A>(number::VCPU_OP, &[VCPUOP_SET_PERIODIC_TIMER, 0, address_of(&period)])
}

/// Xen's don't wake a vCPU that sleeps.
fn guest_has_periodic_timers<A: Architecture>() -> bool {
    hypercalls::audit::<A>() != Err(Errno::ENOSYS)
}

/// A poll ends with an event at its port, masked as it is, or at its time.
fn polling<A: Architecture>(events: &Events<'_, A>, check: &mut Check<A>) {
    let Some(port) = check.done("a port to poll", bind_ipi::<A>(0)) else { return };
    events.mask_port(port);
    let deadline = events::now::<A>() + A_WHILE;
    check.done("poll until a time", poll::<A>(&[port], deadline));
    check.that("it has come", events::now::<A>() + SLACK >= deadline);
    check.done("send to the masked port", send::<A>(port));
    check.done("poll for what is there", poll::<A>(&[port], 0));
    check.that("the event is there, untaken", events.is_pending(port) && events.count(port) == 0);
    check.refused("poll for too many", poll::<A>(&[port; 129], 0), &[Errno::EINVAL]);
    check.refused("poll for no port", poll::<A>(&[u32::MAX], 0), &[Errno::EINVAL]);
    check.done("close it", events::close::<A>(port));
}
