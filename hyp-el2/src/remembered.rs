//! Whether some TLB may still remember what an entry led to before it was made absent.
//!
//! One word for the whole machine. Who makes a valid entry absent says so ([`Remembered::note`]); who makes an absent entry valid asks
//! ([`Remembered::is_any`]), and if there is something, makes all TLBs forget before ([`Remembered::forget`]). Nothing narrower would
//! do: the table needn't be of the domain that runs, and a flush of one CPU, or a guest's own maintenance, leaves the other CPUs
//! or domains. Why this is so at all: docs/decisions/break-before-make.md.

use crate::sync::atomic::{AtomicU64, Ordering};

const NOTHING: u64 = 0;
const SOMETHING: u64 = 1;

/// What TLBs may remember: nothing, something, or what the CPU of that number is just making them forget.
#[derive(Debug)]
pub struct Remembered(AtomicU64);

impl Default for Remembered {
    fn default() -> Self {
        Self::new()
    }
}

impl Remembered {
    /// Nothing is remembered.
    pub const fn new() -> Self {
        Self(AtomicU64::new(NOTHING))
    }

    /// An entry that was valid has just been made absent. *Has been*: said before, a flush between the two would take the note away, and
    /// a walker could meet the entry after it.
    #[inline(always)]
    pub fn note(&self) {
        // Release: who takes the note away sees the absent entry, and so does every walker after its flush. A swap, since a plain store
        // over another CPU's note would make that of its own: then only this CPU's entries were sure to be seen.
        self.0.swap(SOMETHING, Ordering::Release);
    }

    /// Whether anything may be remembered. Whoever noted something of the entry that is to be written did so under the lock that the
    /// caller has, or before it.
    #[inline(always)]
    pub fn is_any(&self) -> bool {
        // Acquire: nothing is remembered only once the flush is complete that said so; the entry is written after it.
        self.0.load(Ordering::Acquire) != NOTHING
    }

    /// Makes all TLBs forget everything, by `flush`. `cpu` is a number above 1 that no other CPU has.
    ///
    /// Until the flush is complete, the word says so: another CPU that wants to fill an entry meanwhile makes a flush of its own. A note
    /// that comes meanwhile stays, since this flush may be too early for it.
    #[inline(always)]
    pub fn forget(&self, cpu: u64, flush: impl FnOnce()) {
        // Acquire: the entries that were made absent before, by whichever CPU, are so to the walkers once the flush is complete.
        self.0.swap(cpu, Ordering::Acquire);
        flush();
        // Release: the flush was before. If another number stands there, or a note, it isn't for this CPU to take away: relaxed then.
        let _ = self.0.compare_exchange(cpu, NOTHING, Ordering::Release, Ordering::Relaxed);
    }
}
