//! The real-time clock: a PL031 (Arm DDI 0224C).
//!
//! A counter of seconds, a value to compare it with, and an interrupt for when they are equal. It has no time of its own: whoever
//! carries an access to it says what time it is, in seconds since 1970, which is where the counter starts. As on the `virt` board it always runs.

use super::pl011::check;
use super::{NoSuchAccess, Width};

/// Registers, by their offset (DDI 0224C, table 3-1).
mod register {
    pub const DATA: u64 = 0x000;
    pub const MATCH: u64 = 0x004;
    pub const LOAD: u64 = 0x008;
    pub const CONTROL: u64 = 0x00c;
    pub const MASK: u64 = 0x010;
    pub const RAW: u64 = 0x014;
    pub const MASKED: u64 = 0x018;
    pub const CLEAR: u64 = 0x01c;
    pub const IDENTIFICATION: u64 = 0xfe0;
}

/// `RTCPeriphID0` to `3`, `RTCPCellID0` to `3`.
const IDENTIFICATION: [u8; 8] = [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// A PL031, as the guest sees it.
pub struct Pl031 {
    /// What the counter is ahead of the time, wrapping.
    ahead: u32,
    match_value: u32,
    load: u32,
    mask: bool,
    raw: bool,
    /// Whether the guest has said what to compare with, and when, in the caller's seconds, it is reached next.
    armed: bool,
    alarm: u64,
}

impl Pl031 {
    /// One that nobody has begun to use: all zeros.
    pub const fn new() -> Self {
        Self { ahead: 0, match_value: 0, load: 0, mask: false, raw: false, armed: false, alarm: 0 }
    }

    /// The state after reset, but for the counter, which a battery keeps.
    pub const fn begin(&mut self) {
        *self = Self::new();
    }

    /// What the guest reads at the time `now`. As on the board, an access between two registers' beginnings meets nothing.
    ///
    /// # Errors
    /// [`NoSuchAccess`] past the device, and across its registers.
    pub fn read(&mut self, offset: u64, width: Width, now: u64) -> Result<u64, NoSuchAccess> {
        check(offset, width)?;
        self.settle(now);
        let low = u64::from(self.read_register(offset, now));
        let high = if width == Width::Double { self.read_register(offset + 4, now) } else { 0 };
        Ok((low | u64::from(high) << 32) & width.mask())
    }

    /// The guest writes at the time `now`.
    ///
    /// # Errors
    /// [`NoSuchAccess`] past the device, and across its registers.
    pub fn write(&mut self, offset: u64, width: Width, value: u64, now: u64) -> Result<(), NoSuchAccess> {
        check(offset, width)?;
        self.settle(now);
        let value = value & width.mask();
        self.write_register(offset, value as u32, now);
        if width == Width::Double {
            self.write_register(offset + 4, (value >> 32) as u32, now);
        }
        Ok(())
    }

    /// When [`Self::interrupt`] becomes true by itself; `None` if it won't, or is.
    pub const fn deadline(&self) -> Option<u64> {
        if self.armed && self.mask && !self.raw { Some(self.alarm) } else { None }
    }

    /// The level of the interrupt, `RTCINTR`, at the time `now`.
    pub const fn interrupt(&self, now: u64) -> bool {
        self.mask && (self.raw || self.armed && self.alarm <= now)
    }

    const fn counter(&self, now: u64) -> u32 {
        (now as u32).wrapping_add(self.ahead)
    }

    /// Lets an alarm go off whose time has come; the counter is there again when it has been round.
    const fn settle(&mut self, now: u64) {
        if self.armed && self.alarm <= now {
            self.raw = true;
            self.arm(now);
        }
    }

    /// The next time that the counter reaches the match value, after this second.
    const fn arm(&mut self, now: u64) {
        let distance = match self.match_value.wrapping_sub(self.counter(now)) {
            0 => 1 << 32,
            seconds => seconds as u64,
        };
        self.armed = true;
        self.alarm = now.saturating_add(distance);
    }

    /// After a change of the counter or of the match value: equal already counts.
    const fn compare(&mut self, now: u64) {
        if self.match_value == self.counter(now) {
            self.raw = true;
        }
        self.arm(now);
    }

    fn read_register(&self, offset: u64, now: u64) -> u32 {
        match offset {
            register::DATA => self.counter(now),
            register::MATCH => self.match_value,
            register::LOAD => self.load,
            register::CONTROL => 1,
            register::MASK => self.mask.into(),
            register::RAW => self.raw.into(),
            register::MASKED => (self.raw && self.mask).into(),
            register::IDENTIFICATION.. => {
                let index = (offset - register::IDENTIFICATION) / 4;
                IDENTIFICATION.get(index as usize).copied().unwrap_or(0).into()
            }
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32, now: u64) {
        match offset {
            register::MATCH => {
                self.match_value = value;
                self.compare(now);
            }
            register::LOAD => {
                self.load = value;
                self.ahead = value.wrapping_sub(now as u32);
                self.compare(now);
            }
            register::MASK => self.mask = value & 1 != 0,
            register::CLEAR if value & 1 != 0 => self.raw = false,
            _ => {}
        }
    }
}

impl Default for Pl031 {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
#[path = "pl031_tests.rs"]
mod tests;
