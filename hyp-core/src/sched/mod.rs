//! Who runs next: round robin over all vCPUs that can run, on the one CPU that is started for now.
//!
//! A vCPU runs until the tick that ends its turn, until it yields or blocks, or until its domain dies. The backend asks
//! [`Hypervisor::reschedule_wanted`] on its way back to the guest, then [`Hypervisor::schedule`], switches, and reports with
//! [`Hypervisor::switched`] that nothing of the previous vCPU is loaded any more.

pub(crate) mod account;
pub(crate) mod wait;

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use penumbra_abi::event_channel::VIRQ_DOM_EXC;

use crate::address::DomainId;
use crate::domain::vcpu::{RunState, Vcpu};
use crate::domain::{Domain, Life, MAX_VCPUS};
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;

/// What a CPU does next.
pub enum Next<M: Machine> {
    /// Run this vCPU.
    Run(&'static Vcpu<M>),
    /// Nobody can run: do background work, then wait for an interrupt.
    Idle,
}

/// The scheduler's state.
pub struct Scheduler {
    /// The place after that of the vCPU whose turn it is or was last: where the search for the next begins. (All zero at
    /// first, so the control domain is the first to run.)
    next: AtomicU32,
    wanted: AtomicBool,
    /// Domains from this number on have never been built: nobody looks at them.
    reach: AtomicU32,
    /// When the last choice was made, in nanoseconds since boot.
    since: AtomicU64,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self::new()
    }
}

impl Scheduler {
    /// Nobody has run yet.
    pub const fn new() -> Self {
        Self {
            next: AtomicU32::new(0),
            wanted: AtomicBool::new(false),
            reach: AtomicU32::new(0),
            since: AtomicU64::new(0),
        }
    }

    /// Asks for a new choice at the next opportunity.
    pub fn want(&self) {
        // Relaxed: the same CPU reads it on its way out.
        self.wanted.store(true, Ordering::Relaxed);
    }
}

impl Scheduler {
    /// From now on there may be a domain with this number.
    pub fn reach(&self, id: DomainId) {
        // Relaxed: the domain's life orders what is seen of it, and it only runs after this CPU or another has been asked to choose.
        self.reach.fetch_max(u32::from(id.number()).saturating_add(1), Ordering::Relaxed);
    }
}

impl<M: Machine> Hypervisor<M> {
    /// The domains that there are or were.
    fn reached(&self) -> &[Domain<M>] {
        let reach = self.scheduler.reach.load(Ordering::Relaxed) as usize;
        self.domains.get(..reach).unwrap_or(&self.domains)
    }

    /// Whether the backend should call [`Self::schedule`] before it returns to the guest.
    pub fn reschedule_wanted(&self) -> bool {
        self.scheduler.wanted.load(Ordering::Relaxed)
    }

    /// Has the backend ask for a new choice before it returns to the guest, and look for what else has come.
    pub fn want_choice(&self) {
        self.scheduler.want();
    }

    /// Chooses who runs next. The one who ran goes to the end of the line, if it still can run.
    pub fn schedule(&'static self) -> Next<M> {
        // Relaxed, all of these: they are this CPU's own; a vCPU's state orders what goes with the vCPU.
        self.scheduler.wanted.store(false, Ordering::Relaxed);
        let start = self.scheduler.next.load(Ordering::Relaxed);
        if let Some(last) = start.checked_sub(1).and_then(|last| self.vcpu_at(last)) {
            self.charge(last);
            self.change_state(last, RunState::Running, RunState::Runnable);
        }
        let Some((place, vcpu)) = self.take_runnable(start as usize) else { return Next::Idle };
        self.scheduler.next.store(place.saturating_add(1) as u32, Ordering::Relaxed);
        vcpu.set_on_cpu(true);
        Next::Run(vcpu)
    }

    /// The first vCPU from a place on that can run, which it does from now on, and its own place.
    fn take_runnable(&self, start: usize) -> Option<(usize, &Vcpu<M>)> {
        let (first, skipped) = (start / MAX_VCPUS, start % MAX_VCPUS);
        // The first domain comes once more at the end, for the vCPUs before the place.
        let others = || (first.saturating_add(1)..self.reached().len()).chain(0..first.saturating_add(1));
        let found = self.take_runnable_of(first, skipped);
        found.or_else(|| others().find_map(|number| self.take_runnable_of(number, 0)))
    }

    /// As [`Self::take_runnable`], of one domain, without its first `skipped` vCPUs. Domains that don't run are passed over as a whole.
    fn take_runnable_of(&self, number: usize, skipped: usize) -> Option<(usize, &Vcpu<M>)> {
        let domain = self.reached().get(number).filter(|domain| domain.life() == Life::Alive)?;
        let mut vcpus = domain.vcpus.iter().enumerate().skip(skipped);
        let (index, vcpu) =
            vcpus.find(|(_, vcpu)| self.change_state(vcpu, RunState::Runnable, RunState::Running))?;
        Some((number.saturating_mul(MAX_VCPUS).saturating_add(index), vcpu))
    }

    /// Adds the time since the last choice to the domain of the vCPU that had the CPU, if it was not idle.
    fn charge(&self, last: &Vcpu<M>) {
        let now = self.machine.now();
        let since = self.scheduler.since.swap(now, Ordering::Relaxed);
        if let Some(domain) = self.domain(last.domain_id()).filter(|_| last.is_on_cpu()) {
            domain.add_cpu_time(now.saturating_sub(since));
        }
    }

    fn vcpu_at(&self, place: u32) -> Option<&Vcpu<M>> {
        let place = place as usize;
        self.domains.get(place.checked_div(MAX_VCPUS)?)?.vcpus.get(place.checked_rem(MAX_VCPUS)?)
    }

    /// The backend has left whatever ran before: no root but the running vCPU's is loaded on this CPU.
    pub fn switched(&self) {
        let present = self.reached().iter().filter(|domain| domain.is_present());
        for vcpu in present.flat_map(|domain| &domain.vcpus) {
            if !vcpu.is_on_cpu() {
                continue;
            }
            match vcpu.state() {
                RunState::Running => self.publish_runstate(vcpu),
                _ => vcpu.set_on_cpu(false),
            }
        }
    }

    /// The tick: fires the timers that are due, ends the turn of whoever runs, and gives dying domains a little time.
    pub fn tick(&self) {
        self.run_timers();
        self.scheduler.want();
        self.background();
    }

    /// Does a bounded piece of work for which nobody waits. `false`: there is none left.
    pub fn background(&self) -> bool {
        let Some(domain) = self.domains.iter().find(|domain| domain.can_be_torn_down(&self.frames)) else {
            return false;
        };
        if !domain.events.are_finished() {
            self.close_some(domain);
            return true;
        }
        if domain.teardown_step(self) {
            log::info!("{:?} is gone; {} frames are free", domain.id(), self.frames.free_frames());
            self.raise_control_virq(VIRQ_DOM_EXC);
        }
        true
    }

    /// Makes the blocked vCPUs of a domain runnable.
    pub fn wake(&self, domain: DomainId) {
        for vcpu in self.domain(domain).into_iter().flat_map(|domain| &domain.vcpus) {
            self.wake_vcpu(vcpu);
        }
    }
}
