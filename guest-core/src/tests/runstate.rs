//! How long a vCPU was in which state, kept up to date where its kernel reads it without asking.

use super::check::Check;
use crate::architecture::Architecture;
use crate::events::{self, poll, runstate};
use crate::guest::Guest;
use crate::hypercalls::{address_of, call};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};
use penumbra_abi::vcpu::{
    RUNSTATE_BLOCKED, RUNSTATE_OFFLINE, RUNSTATE_RUNNABLE, RUNSTATE_RUNNING, RUNSTATE_UPDATE, RunstateInfo,
    VCPUOP_GET_RUNSTATE_INFO, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA,
};
use penumbra_abi::vm_assist::{VMASST_CMD_DISABLE, VMASST_CMD_ENABLE, VMASST_TYPE_RUNSTATE_UPDATE_FLAG};
use penumbra_abi::{Errno, hypercall as number};

/// Words of the structure.
const WORDS: usize = size_of::<RunstateInfo>() / 8;
/// 30 ms, in nanoseconds: longer than a few ticks.
const A_WHILE: u64 = 30_000_000;
/// What a sleep may be shorter, since the time at which it begins is read before.
const SLACK: u64 = 1_000_000;
/// What stands in the area before it is registered.
const NOTHING: u64 = 0x5a5a_5a5a_5a5a_5a5a;
/// How often an account is read before it counts that each time the CPU was gone in between.
const PATIENCE: u32 = 100;

/// Areas: the hypervisor's to write once they are registered.
type Area = [AtomicU64; WORDS];
static AREA: Area = [const { AtomicU64::new(NOTHING) }; WORDS];
static OTHER: Area = [const { AtomicU64::new(NOTHING) }; WORDS];

/// Runs the test `runstate`.
pub fn run<A: Architecture>(_guest: &Guest<A>, check: &mut Check<A>) {
    refusals(check);
    check.done("register an area", register::<A>(0, address_of(&AREA)));
    let first = area();
    check.that("it is filled at once", first.state == RUNSTATE_RUNNING && first.pad == 0);
    check.that("with times that have been", total(&first) > 0 && total(&first) < NOTHING);
    let slept = sleep(check);
    agrees(check);
    marked(check);
    let last = area();
    check.that("no time is taken back", (0..4).all(|state| last.time[state] >= slept.time[state]));
    check.that(
        "it was never offline",
        last.time[RUNSTATE_OFFLINE as usize] == first.time[RUNSTATE_OFFLINE as usize],
    );
    // Registered again, it is the new place that counts.
    check.done("register another", register::<A>(0, address_of(&OTHER)));
    let stays = area();
    check.done("sleep", poll::<A>(&[], events::now::<A>() + A_WHILE));
    check.that("the old one is left alone", area() == stays);
    check.that("the new one is not", said_in(&OTHER).state_entry_time > stays.state_entry_time);
}

fn refusals<A: Architecture>(check: &mut Check<A>) {
    check.refused(
        "an area of a vCPU that isn't there",
        register::<A>(4000, address_of(&AREA)),
        &[Errno::ENOENT],
    );
    let nowhere = call::<A>(number::VCPU_OP, &[VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, 0, 8]);
    check.refused("an area said nowhere", nowhere, &[Errno::EFAULT]);
    let nowhere = call::<A>(number::VCPU_OP, &[VCPUOP_GET_RUNSTATE_INFO, 0, 8]);
    check.refused("an account to nowhere", nowhere, &[Errno::EFAULT]);
}

/// A sleep is time in which the vCPU was blocked, from one entry of a state to the next.
fn sleep<A: Architecture>(check: &mut Check<A>) -> RunstateInfo {
    let before = area();
    check.done("sleep", poll::<A>(&[], events::now::<A>() + A_WHILE));
    let after = area();
    let blocked = RUNSTATE_BLOCKED as usize;
    check.that("it runs again", after.state == RUNSTATE_RUNNING);
    check.that("the sleep counts as one", after.time[blocked] + SLACK >= before.time[blocked] + A_WHILE);
    check.that(
        "it has had the CPU since then",
        after.state_entry_time + SLACK >= before.state_entry_time + A_WHILE,
    );
    check.that(
        "what it has run counts, too",
        after.time[RUNSTATE_RUNNING as usize] > before.time[RUNSTATE_RUNNING as usize],
    );
    // Time passes as fast in the account as outside: each state ends where the next begins.
    let passed = after.state_entry_time.saturating_sub(before.state_entry_time);
    let counted = total(&after).saturating_sub(total(&before));
    check.that("no time is lost", counted.abs_diff(passed) < A_WHILE);
    after
}

/// The area says what the hypercall says, as long as the vCPU has the CPU.
fn agrees<A: Architecture>(check: &mut Check<A>) {
    for _ in 0..PATIENCE {
        let before = area();
        let Some(asked) = check.done("ask for the account", runstate::<A>()) else { return };
        if before != area() {
            continue;
        }
        let since = before.state_entry_time & !RUNSTATE_UPDATE;
        check.that(
            "state and entry are what the hypercall says",
            (asked.state, asked.state_entry_time) == (before.state, since),
        );
        let others = [RUNSTATE_RUNNABLE, RUNSTATE_BLOCKED, RUNSTATE_OFFLINE].map(|state| state as usize);
        check.that("so are the times", others.iter().all(|state| asked.time[*state] == before.time[*state]));
        return check.that("but for the one that runs", asked.time[0] >= before.time[0]);
    }
    check.that("the vCPU keeps the CPU for two hypercalls", false);
}

/// With the mark switched on, it is gone when an update is done.
fn marked<A: Architecture>(check: &mut Check<A>) {
    let assist = |command: u32| {
        call::<A>(number::VM_ASSIST, &[u64::from(command), u64::from(VMASST_TYPE_RUNSTATE_UPDATE_FLAG)])
    };
    check.done("switch the mark on", assist(VMASST_CMD_ENABLE));
    let after = sleep(check);
    check.that("the mark is gone", after.state_entry_time & RUNSTATE_UPDATE == 0);
    check.done("switch it off", assist(VMASST_CMD_DISABLE));
}

fn register<A: Architecture>(vcpu: u64, area: u64) -> Result<u64, Errno> {
    call::<A>(number::VCPU_OP, &[VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, vcpu, address_of(&area)])
}

fn area() -> RunstateInfo {
    said_in(&AREA)
}

/// What an area says, read in one piece: until nothing has changed meanwhile.
fn said_in(area: &Area) -> RunstateInfo {
    const _: () =
        assert!(offset_of!(RunstateInfo, state_entry_time) == 8 && offset_of!(RunstateInfo, time) == 16);
    let words = || area.each_ref().map(|word| word.load(Ordering::Acquire));
    let mut now = words();
    loop {
        let again = words();
        if again == now {
            break;
        }
        now = again;
    }
    let [states, state_entry_time, time @ ..] = now;
    RunstateInfo { state: states as u32, pad: (states >> 32) as u32, state_entry_time, time }
}

fn total(account: &RunstateInfo) -> u64 {
    account.time.iter().sum()
}
