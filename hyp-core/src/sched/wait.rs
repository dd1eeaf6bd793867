//! Waiting and waking: `block`, `poll`, and what ends them.
//!
//! A vCPU that blocks waits for an upcall; one that polls waits for certain ports as well, masked or not, and until a certain time at
//! most. Either way its state is *blocked*; what it polls for stands beside it, and an event for the poll takes it away. A vCPU that waits
//! may find itself awake for nothing, as anyone who waits must expect.
//!
//! No wake-up is lost: who waits says so first and then looks whether there is anything to wait for; who has an event sets its bits
//! first and then looks who waits. Both write one word and then read another, which only `SeqCst` keeps in that order.

use core::sync::atomic::{Ordering, fence};

use crate::domain::Domain;
use crate::domain::vcpu::{RunState, Vcpu};
use crate::event::channel::Port;
use crate::event::upcall;
use crate::hypervisor::Hypervisor;
use crate::machine::{Context, Machine};

/// In [`Vcpu::poll`]: doesn't poll.
const NOTHING: u32 = 0;
/// In [`Vcpu::poll`]: an event at any port ends the wait. (Or else it is the one port's number.)
const ANY: u32 = u32::MAX;

impl<M: Machine> Vcpu<M> {
    /// From now on an event at any port ends a wait.
    pub(crate) fn poll_any(&self) {
        self.poll.store(ANY, Ordering::SeqCst);
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Lets events through, and waits for one. What has already come ends the wait at once.
    pub(crate) fn block(&self, domain: &Domain<M>, vcpu: &Vcpu<M>) {
        vcpu.poll.store(NOTHING, Ordering::SeqCst);
        vcpu.timers.poll.clear();
        vcpu.context().unmask_events();
        if M::SHARED_INFO.has_upcall_mask
            && let Some(word) = self.info_word(vcpu, 0)
        {
            word.fetch_and(!upcall::MASK, Ordering::SeqCst);
        }
        self.wait_unless(vcpu, || self.upcall_due(vcpu) || (domain.is_first() && domain.console.take_news()));
    }

    /// Waits for an upcall, or an event at one port (`None`: at any), until `timeout` (nanoseconds of system time; 0: for ever).
    /// The vCPU has said before that it polls.
    pub(crate) fn wait_for_ports(
        &self,
        domain: &Domain<M>,
        vcpu: &Vcpu<M>,
        only: Option<Port>,
        timeout: u64,
    ) {
        if let Some(port) = only {
            vcpu.poll.store(port.number().into(), Ordering::SeqCst);
        }
        if timeout != 0 {
            self.set_deadline(&vcpu.timers.poll, timeout);
        } else {
            vcpu.timers.poll.clear();
        }
        self.wait_unless(vcpu, || {
            // Who has an event for a poll says so by taking the poll away.
            let polled = vcpu.poll.load(Ordering::SeqCst) == NOTHING
                || only.is_some_and(|port| self.is_pending(domain, port));
            let passed = timeout != 0 && timeout <= self.machine.now();
            polled || passed || (!vcpu.context().are_events_masked() && self.upcall_due(vcpu))
        });
    }

    /// Gives the CPU away until somebody wakes the vCPU, unless there is a reason not to wait.
    fn wait_unless(&self, vcpu: &Vcpu<M>, reason: impl FnOnce() -> bool) {
        if !self.change_state(vcpu, RunState::Running, RunState::Blocked) {
            return;
        }
        // See the module's text: between saying and looking.
        fence(Ordering::SeqCst);
        if reason() {
            self.change_state(vcpu, RunState::Blocked, RunState::Running);
        }
        // Even if it doesn't wait: what unmasking has changed of its registers is loaded by those who choose.
        self.scheduler.want();
    }

    /// Makes a vCPU runnable if it is blocked.
    pub(crate) fn wake_vcpu(&self, vcpu: &Vcpu<M>) {
        // See the module's text: between the event and the look at who waits.
        fence(Ordering::SeqCst);
        if vcpu.state() == RunState::Blocked {
            self.end_wait(vcpu);
        }
    }

    /// Out of the way of events for those that don't wait.
    #[inline(never)]
    fn end_wait(&self, vcpu: &Vcpu<M>) {
        if self.change_state(vcpu, RunState::Blocked, RunState::Runnable) {
            self.scheduler.want();
        }
    }

    /// Wakes the vCPUs of a domain that poll for a port.
    pub(crate) fn wake_pollers(&self, domain: &Domain<M>, port: Port) {
        for vcpu in domain.usable_vcpus() {
            let polled = vcpu.poll.load(Ordering::SeqCst);
            if polled == ANY || polled == u32::from(port.number()) {
                self.end_poll(vcpu);
            }
        }
    }

    #[inline(never)]
    fn end_poll(&self, vcpu: &Vcpu<M>) {
        vcpu.poll.store(NOTHING, Ordering::SeqCst);
        self.wake_vcpu(vcpu);
    }
}
