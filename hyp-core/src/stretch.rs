//! The longest stretch without a preemption point.
//!
//! The hypervisor is not interrupted: between entering it and the next preemption point, which is the way back to a guest or the end
//! of a step in the background, nothing else happens on this CPU. When asked to, it measures these stretches in the board's
//! finest ticks and keeps the longest. It costs a load and a branch while nobody asks.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::machine::Machine;

/// What is known of stretches.
pub(crate) struct Stretches {
    measuring: AtomicBool,
    longest: AtomicU64,
}

impl Stretches {
    pub(crate) const fn new() -> Self {
        Self { measuring: AtomicBool::new(false), longest: AtomicU64::new(0) }
    }

    /// Whether stretches are measured. Relaxed, as everything here: the figures depend on nothing else, and nothing on them.
    #[inline(always)]
    pub(crate) fn are_measured(&self) -> bool {
        self.measuring.load(Ordering::Relaxed)
    }

    /// Does `work`, which is one stretch.
    pub(crate) fn measure<M: Machine, R>(&self, machine: &M, work: impl FnOnce() -> R) -> R {
        let start = machine.ticks();
        let result = work();
        self.longest.fetch_max(machine.ticks().wrapping_sub(start), Ordering::Relaxed);
        result
    }

    /// The longest stretch so far.
    pub(crate) fn longest(&self) -> u64 {
        self.longest.load(Ordering::Relaxed)
    }

    /// Forgets it, and measures from now on.
    pub(crate) fn reset(&self) {
        self.longest.store(0, Ordering::Relaxed);
        self.measuring.store(true, Ordering::Relaxed);
    }
}
