//! Time, from the processor's time-stamp counter.

use core::sync::atomic::{AtomicU64, Ordering};

/// The counter when the loader gave us the machine.
static START: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds for each count, as a binary fraction with [`FRACTION_BITS`] bits.
static SCALE: AtomicU64 = AtomicU64::new(1 << FRACTION_BITS);
/// Counts a second.
static FREQUENCY: AtomicU64 = AtomicU64::new(0);
const FRACTION_BITS: u32 = 32;

/// The counter.
#[inline]
pub fn counter() -> u64 {
    // SAFETY: reading the counter has no effect; ring 0 always may.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Says what the counter was when the machine was handed over.
pub fn set_start(start: u64) {
    START.store(start, Ordering::Relaxed);
}

/// Says how fast the counter counts (counts a second).
pub fn set_frequency(frequency: u64) {
    let scale = (1_000_000_000u128 << FRACTION_BITS) / u128::from(frequency.max(1));
    SCALE.store(u64::try_from(scale).unwrap_or(u64::MAX), Ordering::Relaxed);
    FREQUENCY.store(frequency, Ordering::Relaxed);
}

/// Counts since the machine was handed over.
pub fn since_start() -> u64 {
    counter().saturating_sub(START.load(Ordering::Relaxed))
}

/// Nanoseconds since the machine was handed over.
pub fn now() -> u64 {
    let scaled = u128::from(since_start()) * u128::from(SCALE.load(Ordering::Relaxed));
    (scaled >> FRACTION_BITS) as u64
}

/// What one count is called: under QEMU's `-icount shift=0` the counter counts one a nanosecond, and an instruction takes one.
pub fn unit() -> &'static str {
    let frequency = FREQUENCY.load(Ordering::Relaxed);
    if frequency.abs_diff(1_000_000_000) < 1_000_000 { "instructions" } else { "time-stamp counts" }
}
