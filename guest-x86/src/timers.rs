//! Timers: they don't fire before their time, and soon afterwards, whatever the hypervisor's own tick is.
//!
//! How soon can be said only where executed instructions are counted: anywhere else the machine may have been held up meanwhile.

use guest_core::architecture::Architecture;
use guest_core::events::{self, Events};
use guest_core::guest::Guest;
use guest_core::hypercalls::call;
use guest_core::tests::Check;
use penumbra_abi::event_channel::VIRQ_TIMER;
use penumbra_abi::hypercall::SET_TIMER_OP;

use crate::interface::version::{emulated_cpuid, system_time};
use crate::machine::X86;

/// What is waited for, in nanoseconds, and how often.
const WAIT: u64 = 1_000_000;
const TIMES: u64 = 10;
/// How late a timer may be: much less than a tick of 10 ms.
const LATE: u64 = 200_000;

/// Runs the test `timers`.
pub fn run(guest: &Guest<X86>, check: &mut Check<X86>) {
    let Some(events) = Events::open(guest) else { return check.that("a page for events", false) };
    // The counter counts nanoseconds.
    let counted = emulated_cpuid(0x4000_0003)[2].abs_diff(1_000_000) < 1000;
    let info = events.address();
    let (mut early, mut late) = (0, 0);
    for _ in 0..TIMES {
        let deadline = system_time(info) + WAIT;
        let _ = events::poll::<X86>(&[], deadline);
        judge(system_time(info), deadline, &mut early, &mut late);
    }
    check.that("no wait ends before its time", early == 0);
    check.that("but soon afterwards", late == 0 || !counted);
    let Some(port) = check.done("the timer", events::bind_virq::<X86>(VIRQ_TIMER, 0)) else { return };
    check.done("it is unmasked", events::unmask::<X86>(port));
    for _ in 0..TIMES {
        let (deadline, before) = (system_time(info) + WAIT, events.count(port));
        check.done("set it", call::<X86>(SET_TIMER_OP, &[deadline]));
        // Not asleep: the event comes while the kernel runs.
        while events.count(port) == before && system_time(info) < deadline + 1000 * WAIT {
            X86::read_word(info);
        }
        judge(system_time(info), deadline, &mut early, &mut late);
    }
    check.that("no event comes before its time", early == 0);
    check.that("but soon afterwards, too", late == 0 || !counted);
    check.done("close the port", events::close::<X86>(port));
    check.done("give the page back", events.close());
}

/// The account of the two kinds of timers may differ by a nanosecond.
fn judge(now: u64, deadline: u64, early: &mut u32, late: &mut u32) {
    *early += u32::from(now + 1 < deadline);
    *late += u32::from(now > deadline + LATE);
}
