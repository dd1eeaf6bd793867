//! Timers: what a vCPU wants to be told at a certain time.
//!
//! Each vCPU has a timer that fires once, one that fires again and again, and the time at which a poll ends. Times are *system time*,
//! nanoseconds since boot ([`crate::machine::Board::now`]). The first two raise `VIRQ_TIMER`. A time that has passed already fires at once.
//!
//! Deadlines are looked at in the tick; the board is asked for an interrupt before its next tick if one comes earlier
//! ([`crate::machine::Board::interrupt_by`]). A board that can't do that lets timers be late, by a tick at most. How often that look
//! is worth it says `earliest`: no timer is set for any time before it.

pub mod published;

use core::sync::atomic::{AtomicU64, Ordering};

use penumbra_abi::event_channel::VIRQ_TIMER;

use crate::domain::vcpu::Vcpu;
use crate::domain::{Domain, Life};
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;

/// When something is to happen, in nanoseconds of system time; 0 is never. SeqCst, all of it: see `set_deadline`.
pub(crate) struct Deadline(AtomicU64);

impl Deadline {
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// When, if ever.
    pub fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::SeqCst)).filter(|when| *when != 0)
    }

    /// Takes it away; `true` if it was set.
    pub fn clear(&self) -> bool {
        self.0.swap(0, Ordering::SeqCst) != 0
    }

    /// Takes it away if it has come, and says so. `next` is when it comes again.
    fn take(&self, now: u64, next: impl FnOnce(u64) -> u64) -> bool {
        let Some(when) = self.get().filter(|when| *when <= now) else { return false };
        // Another CPU may have set it anew: then it hasn't come.
        self.0.compare_exchange(when, next(when), Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

/// A vCPU's timers.
pub(crate) struct Timers {
    pub singleshot: Deadline,
    periodic: Deadline,
    /// Nanoseconds.
    period: AtomicU64,
    /// When a poll ends.
    pub poll: Deadline,
}

impl Timers {
    pub const fn new() -> Self {
        Self {
            singleshot: Deadline::new(),
            periodic: Deadline::new(),
            period: AtomicU64::new(0),
            poll: Deadline::new(),
        }
    }

    /// Stops all of them.
    pub fn stop(&self) {
        self.singleshot.clear();
        self.stop_periodic();
        self.poll.clear();
    }

    pub fn stop_periodic(&self) {
        self.periodic.clear();
    }

    /// The periodic timer's next time after `now`, its last being `when`: times that were missed are skipped.
    fn next_period(&self, when: u64, now: u64) -> u64 {
        // Relaxed: whoever finds the deadline that was set after it, by a stronger ordering, finds it, too.
        let period = self.period.load(Ordering::Relaxed).max(1);
        let missed = now.saturating_sub(when).checked_div(period).unwrap_or(0);
        when.saturating_add(period.saturating_mul(missed.saturating_add(1)))
    }
}

/// The earliest of all timers. Zero, as at first: not known.
pub(crate) struct Earliest(AtomicU64);

impl Earliest {
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Sets a deadline; the board sees to it that it is looked at in time.
    pub(crate) fn set_deadline(&self, deadline: &Deadline, when: u64) {
        // SeqCst, here and in `run_timers`: either the other side's look at the deadline sees it, or `earliest` says
        // afterwards that it is there.
        deadline.0.store(when.max(1), Ordering::SeqCst);
        self.earliest.0.fetch_min(when, Ordering::SeqCst);
        self.machine.interrupt_by(when);
    }

    /// Sets a vCPU's timer that fires once. A time that has passed fires now.
    pub(crate) fn set_singleshot(&self, domain: &Domain<M>, vcpu: &Vcpu<M>, when: u64) {
        if when > self.machine.now() {
            self.set_deadline(&vcpu.timers.singleshot, when);
        } else {
            vcpu.timers.singleshot.clear();
            self.raise_vcpu_virq(domain, vcpu.index() as u8, VIRQ_TIMER);
        }
    }

    /// Sets a vCPU's timer that fires each `period` nanoseconds from now on.
    pub(crate) fn set_periodic(&self, vcpu: &Vcpu<M>, period: u64) {
        vcpu.timers.period.store(period, Ordering::Relaxed);
        self.set_deadline(&vcpu.timers.periodic, self.machine.now().saturating_add(period));
    }

    /// Fires what is due: in each tick, and in what interrupts the board has between them for the sake of timers.
    pub fn run_timers(&self) {
        let now = self.machine.now();
        let earliest = self.earliest.0.load(Ordering::SeqCst);
        if now < earliest {
            // The interrupt that there was for it may have come too early.
            if earliest != u64::MAX {
                self.machine.interrupt_by(earliest);
            }
            return;
        }
        self.earliest.0.store(u64::MAX, Ordering::SeqCst);
        for domain in self.domains.iter().filter(|domain| domain.life() == Life::Alive) {
            for vcpu in domain.usable_vcpus() {
                self.run_timers_of(domain, vcpu, now);
            }
        }
        let earliest = self.earliest.0.load(Ordering::SeqCst);
        if earliest != u64::MAX {
            self.machine.interrupt_by(earliest);
        }
    }

    fn run_timers_of(&self, domain: &Domain<M>, vcpu: &Vcpu<M>, now: u64) {
        let timers = &vcpu.timers;
        let fired = timers.singleshot.take(now, |_| 0);
        if timers.periodic.take(now, |when| timers.next_period(when, now)) || fired {
            self.raise_vcpu_virq(domain, vcpu.index() as u8, VIRQ_TIMER);
        }
        if timers.poll.take(now, |_| 0) {
            self.wake_vcpu(vcpu);
        }
        for deadline in [&timers.singleshot, &timers.periodic, &timers.poll] {
            if let Some(when) = deadline.get() {
                self.earliest.0.fetch_min(when, Ordering::SeqCst);
            }
        }
    }
}
