//! Stories of CPUs that empty and fill entries of tables, while others make all TLBs forget (break-before-make on AArch64).
//!
//! Each was seen failing, with these defects put in by hand: a flush that takes the note away before it begins, or whatever stands there
//! when it is complete; all CPUs of one number; a note that is a plain store, or relaxed; one that comes before the entry is absent; a flush that
//! takes the note relaxed, or is complete relaxed; a look at the note that is relaxed.

use std::sync::Arc;

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;
use races::remembered::Remembered;

/// What stands in an entry at first, and what it is filled with.
const OLD: u64 = 1;
const NEW: u64 = 2;

/// Two entries, each in a table of its own, and whether a TLB remembers what stood there at first.
struct Machine {
    entries: [AtomicU64; 2],
    cached: [AtomicU64; 2],
    remembered: Remembered,
}

impl Machine {
    fn new() -> Arc<Self> {
        let machine = Self {
            entries: [OLD, OLD].map(AtomicU64::new),
            cached: [OLD, OLD].map(AtomicU64::new),
            remembered: Remembered::new(),
        };
        // Every atomic is made before there are other threads.
        machine.remembered.is_any();
        Arc::new(machine)
    }

    /// Makes the TLB forget. A walker takes in at once what it sees; that may be the old entry still.
    fn flush(&self) {
        for (entry, cached) in self.entries.iter().zip(&self.cached) {
            if entry.load(Ordering::Relaxed) != OLD {
                cached.store(NEW, Ordering::Relaxed);
            }
        }
    }

    fn forget(&self, cpu: u64) {
        self.remembered.forget(cpu, || self.flush());
    }

    fn empty(&self, index: usize) {
        self.entries[index].store(0, Ordering::Relaxed);
        self.remembered.note();
    }

    fn fill(&self, index: usize, cpu: u64) {
        if self.remembered.is_any() {
            self.forget(cpu);
        }
        assert_ne!(self.cached[index].load(Ordering::Relaxed), OLD, "two meanings of one entry");
        self.entries[index].store(NEW, Ordering::Release);
    }
}

fn explore(story: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    // What two CPUs of one number would do takes four interruptions.
    model.preemption_bound = model.preemption_bound.max(Some(4));
    model.check(story);
}

/// One CPU empties an entry and fills it, another one flushes everything for a reason of its own, a third as well.
#[test]
fn filling_against_flushing() {
    explore(|| {
        let machine = Machine::new();
        let flushers = [3, 4].map(|cpu| {
            let machine = Arc::clone(&machine);
            thread::spawn(move || machine.forget(cpu))
        });
        machine.empty(0);
        machine.fill(0, 2);
        for flusher in flushers {
            flusher.join().expect("a flush");
        }
    });
}

/// Two CPUs empty and fill each an entry of its own table: what one notes or takes away is the other's affair, too.
#[test]
fn two_that_empty_and_fill() {
    explore(|| {
        let machine = Machine::new();
        let other = Arc::clone(&machine);
        let other = thread::spawn(move || {
            other.empty(1);
            other.fill(1, 3);
        });
        machine.empty(0);
        machine.fill(0, 2);
        other.join().expect("the other");
    });
}

/// A table's lock goes from the CPU that empties an entry to the one that fills it, while a third empties another entry and flushes.
#[test]
fn emptied_here_and_filled_there() {
    explore(|| {
        let machine = Machine::new();
        let other = Arc::clone(&machine);
        let other = thread::spawn(move || {
            other.empty(1);
            other.forget(3);
        });
        let emptying = Arc::clone(&machine);
        let emptying = thread::spawn(move || emptying.empty(0));
        emptying.join().expect("the lock is given up");
        machine.fill(0, 2);
        other.join().expect("the other");
    });
}
