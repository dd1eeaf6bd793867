//! Time, from the processor's time-stamp counter; the time of day, from the board's clock.

use core::sync::atomic::{AtomicI8, AtomicU32, AtomicU64, Ordering};

use hyp_core::time::published::{FlatScale, GuestClock, Scale};
use platform::q35::rtc;

/// The counter when the loader gave us the machine.
static START: AtomicU64 = AtomicU64::new(0);
/// The counter's [`Scale`].
static MULTIPLIER: AtomicU32 = AtomicU32::new(1 << 31);
static SHIFT: AtomicI8 = AtomicI8::new(1);
/// The same as a [`FlatScale`].
static FLAT_SCALE: AtomicU64 = AtomicU64::new(1 << 56);
/// Counts a second.
static FREQUENCY: AtomicU64 = AtomicU64::new(0);
/// Seconds from 1970 to when the machine was handed over; 0: not known.
static TIME_OF_DAY: AtomicU64 = AtomicU64::new(0);

/// The counter.
#[inline]
pub fn counter() -> u64 {
    // SAFETY: reading the counter has no effect; ring 0 always may.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Says what the counter was when the machine was handed over.
pub fn set_start(start: u64) {
    // Relaxed, as all here: written before other CPUs and guests start, and each word is used by itself.
    START.store(start, Ordering::Relaxed);
}

/// Says how fast the counter counts (counts a second).
pub fn set_frequency(frequency: u64) {
    let scale = Scale::of(frequency);
    // Relaxed: as above.
    MULTIPLIER.store(scale.multiplier, Ordering::Relaxed);
    SHIFT.store(scale.shift, Ordering::Relaxed);
    FLAT_SCALE.store(FlatScale::from(scale).0, Ordering::Relaxed);
    FREQUENCY.store(frequency, Ordering::Relaxed);
}

/// Counts a second.
pub fn frequency() -> u64 {
    // Relaxed: as above.
    FREQUENCY.load(Ordering::Relaxed)
}

/// Asks the board for the time of day.
///
/// # Safety
/// Nobody else uses the board's clock meanwhile.
pub unsafe fn read_time_of_day() {
    // SAFETY: the caller's promise.
    if let Some(seconds) = unsafe { rtc::seconds() } {
        // Relaxed: as above.
        TIME_OF_DAY.store(seconds.saturating_sub(now() / 1_000_000_000), Ordering::Relaxed);
    }
}

/// Seconds from 1970 to when the machine was handed over.
pub fn time_of_day() -> Option<u64> {
    // Relaxed: as above.
    Some(TIME_OF_DAY.load(Ordering::Relaxed)).filter(|seconds| *seconds != 0)
}

/// The counter, as guests are told of it.
pub fn of_guests() -> GuestClock {
    // Relaxed, all: as above.
    let scale =
        Scale { multiplier: MULTIPLIER.load(Ordering::Relaxed), shift: SHIFT.load(Ordering::Relaxed) };
    GuestClock { start: START.load(Ordering::Relaxed), scale }
}

/// Counts since the machine was handed over.
pub fn since_start() -> u64 {
    // Relaxed: as above.
    counter().saturating_sub(START.load(Ordering::Relaxed))
}

/// Nanoseconds since the machine was handed over.
#[inline]
pub fn now() -> u64 {
    // Relaxed: as above.
    FlatScale(FLAT_SCALE.load(Ordering::Relaxed)).nanoseconds(since_start())
}

/// What one count is called: under QEMU's `-icount shift=0` the counter counts one a nanosecond, and an instruction takes one.
pub fn unit() -> &'static str {
    if frequency().abs_diff(1_000_000_000) < 1_000_000 { "instructions" } else { "time-stamp counts" }
}
