//! How long a vCPU was in which state (`struct vcpu_runstate_info`).

use penumbra_abi::vcpu::{
    RUNSTATE_BLOCKED, RUNSTATE_OFFLINE, RUNSTATE_RUNNABLE, RUNSTATE_RUNNING, RUNSTATE_UPDATE, RunstateInfo,
};
use penumbra_abi::vm_assist::VMASST_TYPE_RUNSTATE_UPDATE_FLAG;
use zerocopy::IntoBytes;

use crate::address::GuestVirtual;
use crate::domain::vcpu::{RunState, Vcpu};
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;

/// Within [`RunstateInfo`].
const ENTRY_TIME: u64 = core::mem::offset_of!(RunstateInfo, state_entry_time) as u64;

/// A vCPU's account. Nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    /// When the present state was entered; 0 while the vCPU has never changed its state.
    since: u64,
    /// By `RUNSTATE_*`.
    time: [u64; 4],
}

impl Account {
    pub const fn new() -> Self {
        Self { since: 0, time: [0; 4] }
    }

    /// Adds the time in `state` up to now.
    fn add(&mut self, state: RunState, now: u64) {
        let start = if self.since == 0 { now } else { self.since };
        if let Some(time) = self.time.get_mut(number(state) as usize) {
            *time = time.saturating_add(now.saturating_sub(start));
        }
    }
}

/// `RUNSTATE_*`.
const fn number(state: RunState) -> u32 {
    match state {
        RunState::Running => RUNSTATE_RUNNING,
        RunState::Runnable => RUNSTATE_RUNNABLE,
        RunState::Blocked => RUNSTATE_BLOCKED,
        RunState::Offline => RUNSTATE_OFFLINE,
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Changes a vCPU's state if it is still `from`, and keeps its account.
    pub(crate) fn change_state(&self, vcpu: &Vcpu<M>, from: RunState, to: RunState) -> bool {
        if vcpu.state() != from {
            return false;
        }
        let mut account = vcpu.account.lock();
        if !vcpu.change_state(from, to) {
            return false;
        }
        let now = self.machine.now();
        account.add(from, now);
        account.since = now;
        true
    }

    /// A vCPU's account, up to now.
    pub(crate) fn runstate(&self, vcpu: &Vcpu<M>) -> RunstateInfo {
        let account = vcpu.account.lock();
        let state = vcpu.state();
        let mut now = *account;
        now.add(state, self.machine.now());
        RunstateInfo { state: number(state), pad: 0, state_entry_time: account.since, time: now.time }
    }

    /// Writes the account of the vCPU that has just got the CPU where its guest wants to read it. If that can't be written (the guest's users
    /// run, and their tables don't have it), it stays as it is until the next time.
    pub(crate) fn publish_runstate(&self, vcpu: &Vcpu<M>) {
        let Some(area) = vcpu.runstate_area() else { return };
        let Some(domain) = self.domain(vcpu.domain_id()) else { return };
        let mut info = self.runstate(vcpu);
        let write = |to: u64, bytes: &[u8]| self.machine.write_guest(GuestVirtual::new(to), bytes).is_ok();
        if !domain.assists(VMASST_TYPE_RUNSTATE_UPDATE_FLAG) {
            let _ = write(area, info.as_bytes());
            return;
        }
        // The mark first, then what it guards, then the mark goes: the guest is on the same CPU, so the order of the writes is
        // all that another of its vCPUs could see.
        let Some(mark) = area.checked_add(ENTRY_TIME) else { return };
        let time = info.state_entry_time;
        info.state_entry_time = time | RUNSTATE_UPDATE;
        let marked = write(mark, info.state_entry_time.as_bytes()) && write(area, info.as_bytes());
        if marked {
            let _ = write(mark, time.as_bytes());
        }
    }
}
