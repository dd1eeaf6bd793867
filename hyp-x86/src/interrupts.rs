//! Interrupts of the hypervisor's own: the timer's, of the local APIC.
//!
//! It is set anew each time, to the next tick or to the first of the guests' timers, whichever is earlier. The tick ends turns, and looks after
//! the console; a guest's timer disturbs nobody but whom it wakes.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use hyp_core::machine::Board;
use platform::q35::apic::{Apic, Vectors};
use platform::q35::pit;

use crate::machine::HYPERVISOR;
use crate::{clock, console};

/// Nanoseconds from tick to tick.
const TICK: u64 = 10_000_000;
/// The least nanoseconds until an interrupt: guests that set many timers mustn't keep the CPU busy with interrupts alone.
const LEAST: u64 = 50_000;

/// Interrupt vectors. Device interrupts come above the exceptions; the timer's is higher than any of them.
pub const VECTORS: Vectors = Vectors { timer: 0xf0, error: 0xfe, spurious: 0xff };

/// The local APIC of the one CPU that is started.
struct ThisCpu(UnsafeCell<Option<Apic>>);

// SAFETY: only the one CPU uses it, with interrupts off: at boot, in handlers, and while it deals with a guest.
unsafe impl Sync for ThisCpu {}

static APIC: ThisCpu = ThisCpu(UnsafeCell::new(None));
/// Counts of the timer for 2^32 nanoseconds.
static COUNTS: AtomicU64 = AtomicU64::new(0);
/// When the next tick is due, and when the timer will interrupt: nanoseconds of system time.
static NEXT_TICK: AtomicU64 = AtomicU64::new(0);
static NEXT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Starts the local APIC, measures its timer and the time-stamp counter, and sets the tick going.
///
/// # Errors
/// A line for the log.
///
/// # Safety
/// Once, with interrupts off, descriptor tables loaded, and the APIC's registers mapped at `registers`.
pub unsafe fn start(registers: u64) -> Result<(), &'static str> {
    // SAFETY: as the caller promises; the vectors' stubs lead to `handle` and to nothing.
    let mut apic = unsafe { Apic::start(registers, VECTORS) }?;
    // SAFETY: nobody else uses the 8254.
    let [counter, timer] = unsafe { pit::measure(|| [clock::counter(), apic.elapsed()]) };
    clock::set_frequency(counter);
    log::info!("clocks: time-stamp counter {} kHz, tick timer {} kHz", counter / 1000, timer / 1000);
    // Relaxed, as all here: this CPU's alone, with interrupts off.
    COUNTS.store(((u128::from(timer) << 32) / 1_000_000_000) as u64, Ordering::Relaxed);
    apic.enable_timer();
    // SAFETY: interrupts are off, and nobody else has a reference.
    unsafe { *APIC.0.get() = Some(apic) };
    // Relaxed: as above.
    NEXT_TICK.store(clock::now() + TICK, Ordering::Relaxed);
    interrupt_by(NEXT_TICK.load(Ordering::Relaxed));
    Ok(())
}

/// Sees to it that the timer interrupts no later than at `deadline` (nanoseconds of system time), or a little after.
pub fn interrupt_by(deadline: u64) {
    // Relaxed, as all here: this CPU's alone, with interrupts off.
    if deadline >= NEXT.load(Ordering::Relaxed) {
        return;
    }
    NEXT.store(deadline, Ordering::Relaxed);
    // The next tick is never further away, so no more than this is ever asked for.
    let wait = deadline.saturating_sub(clock::now()).clamp(LEAST, TICK);
    // Relaxed: as above.
    let counts = (u128::from(wait) * u128::from(COUNTS.load(Ordering::Relaxed))) >> 32;
    // SAFETY: interrupts are off in the hypervisor, and no reference is kept while anything else is called.
    if let Some(apic) = unsafe { (*APIC.0.get()).as_mut() } {
        apic.interrupt_after(u32::try_from(counts).unwrap_or(u32::MAX).max(1));
    }
}

/// Handles an interrupt (a vector above the exceptions).
pub fn handle(vector: u64) {
    if vector == u64::from(VECTORS.spurious) {
        return;
    }
    // SAFETY: as in `interrupt_by`.
    if let Some(apic) = unsafe { (*APIC.0.get()).as_mut() } {
        apic.end_of_interrupt();
    }
    if vector == u64::from(VECTORS.timer) {
        timer();
    }
}

fn timer() {
    // Relaxed, all of them: this CPU's alone, with interrupts off.
    NEXT.store(u64::MAX, Ordering::Relaxed);
    let now = HYPERVISOR.machine().now();
    let tick = NEXT_TICK.load(Ordering::Relaxed);
    if now < tick {
        HYPERVISOR.run_timers();
    } else {
        // Ticks that were missed are left out.
        NEXT_TICK.store((tick + TICK).max(now + TICK / 2), Ordering::Relaxed);
        poll_console();
        HYPERVISOR.tick();
    }
    interrupt_by(NEXT_TICK.load(Ordering::Relaxed));
}

/// Typed bytes wait in the 16550 until the tick: at most 16, which is what arrives in 10 ms at 115200 and a little over.
fn poll_console() {
    for _ in 0..16 {
        let Some(byte) = console::read() else { break };
        HYPERVISOR.console_input(byte);
    }
}
