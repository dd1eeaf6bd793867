//! The 8254 timer, as the one clock of known frequency that every PC has: other clocks are measured against it.

use x86_64::instructions::port::Port;

/// Input clock of the 8254 (Hz).
const FREQUENCY: u64 = 1_193_182;
/// How long a measurement lasts (ticks of the 8254): 0.4 ms, so that booting stays short.
const DURATION: u16 = 477;
/// Command: channel 2, low byte then high byte, mode 0 (count down once), binary.
const COUNT_DOWN_CHANNEL_2: u8 = 0xb0;
/// Command: latch the count of channel 2.
const LATCH_CHANNEL_2: u8 = 0x80;

/// Channel 2, which no interrupt depends on.
struct Channel2 {
    command: Port<u8>,
    count: Port<u8>,
    gate: Port<u8>,
}

impl Channel2 {
    const fn new() -> Self {
        Self { command: Port::new(0x43), count: Port::new(0x42), gate: Port::new(0x61) }
    }

    /// Starts counting down from 0xffff.
    fn start(&mut self) {
        // SAFETY: these ports belong to the timer's channel 2, which drives only the speaker; it is switched off (bit 1).
        unsafe {
            let gate = self.gate.read();
            self.gate.write(gate & !0b10 | 0b01);
            self.command.write(COUNT_DOWN_CHANNEL_2);
            self.count.write(0xff);
            self.count.write(0xff);
        }
    }

    /// Ticks since the start.
    fn elapsed(&mut self) -> u16 {
        // SAFETY: as in `start`; a latched count is read in two halves.
        let count = unsafe {
            self.command.write(LATCH_CHANNEL_2);
            u16::from(self.count.read()) | u16::from(self.count.read()) << 8
        };
        0xffff - count
    }
}

/// Counts per second of two counters that are read through `sample`, for instance a time-stamp counter and a timer.
///
/// Takes about 0.4 ms. Both must count up.
///
/// # Safety
/// Nobody else uses channel 2 of the 8254 meanwhile.
pub unsafe fn measure<const N: usize>(mut sample: impl FnMut() -> [u64; N]) -> [u64; N] {
    let mut channel = Channel2::new();
    channel.start();
    // The first time through is slow (caches; an emulator translates the code), which would make the counters look late.
    let _ = (channel.elapsed(), sample());
    let first = (channel.elapsed(), sample());
    let mut last = (channel.elapsed(), sample());
    while last.0.wrapping_sub(first.0) < DURATION {
        last = (channel.elapsed(), sample());
    }
    let ticks = u64::from(last.0.wrapping_sub(first.0)).max(1);
    core::array::from_fn(|index| {
        let counts = last.1[index].wrapping_sub(first.1[index]);
        counts.saturating_mul(FREQUENCY) / ticks
    })
}
