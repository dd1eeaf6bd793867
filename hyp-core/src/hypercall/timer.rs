//! `set_timer_op`: the vCPU's one-shot timer (`xen.h`).

use super::{Arguments, Call, Outcome, values};
use crate::machine::Machine;

/// A time further away than this (13 days), or before the machine was started, is none that a guest means.
const FURTHEST: u64 = 1 << 50;
/// What it gets instead, as in Xen: old guests name such times when they have nothing to wait for, and when they have
/// counted beyond the end.
const INSTEAD: u64 = 100_000_000;

impl<M: Machine> Call<'_, M> {
    /// Argument: the time in nanoseconds of system time, or 0 for none.
    #[inline(never)]
    pub(super) fn set_timer_op(&self, arguments: &Arguments) -> Outcome {
        let [when, ..] = values(arguments);
        let now = self.hypervisor.machine.now();
        if when == 0 {
            self.vcpu.timers.singleshot.clear();
        } else if when > now.saturating_add(FURTHEST) {
            self.hypervisor.set_singleshot(self.domain, self.vcpu, now.saturating_add(INSTEAD));
        } else {
            self.hypervisor.set_singleshot(self.domain, self.vcpu, when);
        }
        Ok(0)
    }
}
