//! Interrupts of the hypervisor's own: the tick.

use core::cell::UnsafeCell;

use platform::q35::apic::{Apic, Vectors};
use platform::q35::pit;

use crate::machine::HYPERVISOR;
use crate::{clock, console};

/// Ticks a second.
const TICKS_PER_SECOND: u64 = 100;

/// Interrupt vectors. Device interrupts come above the exceptions; the tick's is higher than any of them.
pub const VECTORS: Vectors = Vectors { timer: 0xf0, error: 0xfe, spurious: 0xff };

/// The local APIC of the one CPU that is started.
struct ThisCpu(UnsafeCell<Option<Apic>>);

// SAFETY: only the one CPU uses it, with interrupts off: at boot, and in the tick's handler.
unsafe impl Sync for ThisCpu {}

static APIC: ThisCpu = ThisCpu(UnsafeCell::new(None));

/// Starts the local APIC, measures its timer and the time-stamp counter, and sets the tick going.
///
/// # Errors
/// A line for the log.
///
/// # Safety
/// Once, with interrupts off, descriptor tables loaded, and the APIC's registers mapped at `registers`.
pub unsafe fn start(registers: u64) -> Result<(), &'static str> {
    // SAFETY: as the caller promises; the vectors' stubs lead to `tick` and to nothing.
    let mut apic = unsafe { Apic::start(registers, VECTORS) }?;
    // SAFETY: nobody else uses the 8254.
    let [counter, timer] = unsafe { pit::measure(|| [clock::counter(), apic.elapsed()]) };
    clock::set_frequency(counter);
    log::info!("clocks: time-stamp counter {} kHz, tick timer {} kHz", counter / 1000, timer / 1000);
    apic.tick_every(u32::try_from(timer / TICKS_PER_SECOND).unwrap_or(u32::MAX).max(1));
    // SAFETY: interrupts are off, and nobody else has a reference.
    unsafe { *APIC.0.get() = Some(apic) };
    Ok(())
}

/// Handles an interrupt (a vector above the exceptions).
pub fn handle(vector: u64) {
    if vector == u64::from(VECTORS.spurious) {
        return;
    }
    // SAFETY: interrupts are off in handlers, and this is the only CPU.
    if let Some(apic) = unsafe { (*APIC.0.get()).as_mut() } {
        apic.end_of_interrupt();
    }
    if vector == u64::from(VECTORS.timer) {
        poll_console();
        HYPERVISOR.tick();
    }
}

/// Typed bytes wait in the 16550 until the tick: at most 16, which is what arrives in 10 ms at 115200 and a little over.
fn poll_console() {
    for _ in 0..16 {
        let Some(byte) = console::read() else { break };
        HYPERVISOR.console_input(byte);
    }
}
