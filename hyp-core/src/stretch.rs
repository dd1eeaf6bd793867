//! The longest stretch without a preemption point.
//!
//! The hypervisor is not interrupted: between a guest's way into it and the next preemption point, which is the way back to a guest, or
//! where a backend lets interrupts come in between, nothing else happens on this CPU. When asked to, it measures these stretches in
//! the board's finest ticks and keeps the longest: whatever brought the CPU into the hypervisor, a hypercall, a trap or an
//! interrupt. What is not counted is the saving and loading of registers around it.
//!
//! It costs nothing while nobody asks: a backend finds out when it chooses who runs, and sends the guests that it runs from then on
//! through another entrance, which calls [`Hypervisor::stretch`].
//!
//! One CPU is started. With more, a stretch belongs to each.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::hypervisor::Hypervisor;
use crate::machine::Machine;

/// What is known of stretches. Relaxed, all of it: the figures depend on nothing else, and nothing on them.
pub(crate) struct Stretches {
    measuring: AtomicBool,
    /// When the present one began, in ticks plus one; 0: none has, or it doesn't count.
    start: AtomicU64,
    longest: AtomicU64,
}

impl Stretches {
    pub(crate) const fn new() -> Self {
        Self { measuring: AtomicBool::new(false), start: AtomicU64::new(0), longest: AtomicU64::new(0) }
    }

    fn begin(&self, now: u64) {
        if self.measuring.load(Ordering::Relaxed) {
            self.start.store(now.saturating_add(1), Ordering::Relaxed);
        }
    }

    fn end(&self, now: u64) {
        if let Some(start) = self.start.swap(0, Ordering::Relaxed).checked_sub(1) {
            self.longest.fetch_max(now.wrapping_sub(start), Ordering::Relaxed);
        }
    }

    /// The present stretch doesn't count: it recounts the whole machine, because the control domain has asked for that.
    pub(crate) fn forget(&self) {
        self.start.store(0, Ordering::Relaxed);
    }

    /// The longest stretch so far.
    pub(crate) fn longest(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }

    /// Forgets it, and measures from now on.
    pub(crate) fn reset(&self) {
        self.forget();
        self.longest.store(0, Ordering::Relaxed);
        self.measuring.store(true, Ordering::Relaxed);
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Whether stretches are measured. It begins with a hypercall that asks for a new choice of who runs, and doesn't end.
    pub fn measures_stretches(&self) -> bool {
        self.stretches.measuring.load(Ordering::Relaxed)
    }

    /// Does `work`, which is one stretch, but for the preemption points in it. For backends, while stretches are measured.
    pub fn stretch<R>(&self, work: impl FnOnce() -> R) -> R {
        self.stretches.begin(self.machine.ticks());
        let result = work();
        self.stretches.end(self.machine.ticks());
        result
    }

    /// A preemption point in the middle of a stretch: what happens in `pause` is no part of it.
    pub fn preemption_point<R>(&self, pause: impl FnOnce() -> R) -> R {
        self.stretches.end(self.machine.ticks());
        let result = pause();
        self.stretches.begin(self.machine.ticks());
        result
    }
}
