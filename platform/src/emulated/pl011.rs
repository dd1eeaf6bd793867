//! The UART: a PL011 (Arm DDI 0183G, revision r1p4, whose FIFOs hold 16 characters).
//!
//! It behaves as the `virt` board's, which is a PL011 on a line without speed: a character that is written has left at once, so there is
//! always room, and one that has come in has waited for ever, so that the receive interrupt asks from the first character on, whatever
//! level was chosen, and with FIFOs on the receive timeout does too. Bits that only say how the line is driven (rate, format,
//! enables) are kept and change nothing, since code for that board doesn't set them: it writes its characters to the data register and is done.
//!
//! What comes in is never lost here: [`Pl011::receive`] says when there is no room, and whoever holds the character offers it again.

use super::{NoSuchAccess, Width};

/// Registers, by their offset (DDI 0183G, table 3-1).
mod register {
    pub const DATA: u64 = 0x000;
    pub const STATUS: u64 = 0x004;
    pub const FLAGS: u64 = 0x018;
    pub const LOW_POWER: u64 = 0x020;
    pub const RATE: u64 = 0x024;
    pub const RATE_FRACTION: u64 = 0x028;
    pub const LINE: u64 = 0x02c;
    pub const CONTROL: u64 = 0x030;
    pub const LEVELS: u64 = 0x034;
    pub const MASK: u64 = 0x038;
    pub const RAW: u64 = 0x03c;
    pub const MASKED: u64 = 0x040;
    pub const CLEAR: u64 = 0x044;
    pub const DMA: u64 = 0x048;
    pub const IDENTIFICATION: u64 = 0xfe0;
}

/// `UARTPeriphID0` to `3`, `UARTPCellID0` to `3`.
const IDENTIFICATION: [u8; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// Characters that the receive FIFO holds.
const DEPTH: u8 = 16;

/// Bits of `UARTFR`.
mod flag {
    pub const CLEAR_TO_SEND: u16 = 1 << 0;
    pub const DATA_SET_READY: u16 = 1 << 1;
    pub const CARRIER: u16 = 1 << 2;
    pub const RECEIVE_EMPTY: u16 = 1 << 4;
    pub const RECEIVE_FULL: u16 = 1 << 6;
    pub const TRANSMIT_EMPTY: u16 = 1 << 7;
    pub const RING: u16 = 1 << 8;
}

/// Bits of `UARTCR`.
mod control {
    pub const LOOPBACK: u16 = 1 << 7;
    pub const DATA_TERMINAL_READY: u16 = 1 << 10;
    pub const REQUEST_TO_SEND: u16 = 1 << 11;
    pub const OUT1: u16 = 1 << 12;
    pub const OUT2: u16 = 1 << 13;
}

/// Bits of the interrupt registers.
mod cause {
    pub const RING: u16 = 1 << 0;
    pub const CLEAR_TO_SEND: u16 = 1 << 1;
    pub const CARRIER: u16 = 1 << 2;
    pub const DATA_SET_READY: u16 = 1 << 3;
    pub const RECEIVE: u16 = 1 << 4;
    pub const TRANSMIT: u16 = 1 << 5;
    pub const RECEIVE_TIMEOUT: u16 = 1 << 6;
    pub const OVERRUN: u16 = 1 << 10;
}

/// `UARTLCR_H`: FIFOs on.
const FIFO_ENABLE: u16 = 1 << 4;
/// `UARTRSR`: characters came while there was no room. In `UARTDR` it stands 8 bits further up.
const OVERRUN: u8 = 1 << 3;

/// A PL011, as the guest sees it.
pub struct Pl011 {
    low_power: u16,
    rate: u16,
    rate_fraction: u16,
    line: u16,
    control: u16,
    levels: u16,
    mask: u16,
    dma: u16,
    raw: u16,
    /// `UARTRSR`.
    status: u8,
    /// The next character to be read carries the overrun bit.
    overran: bool,
    received: [u8; DEPTH as usize],
    /// Where in `received` the oldest character is, and how many there are from there on, wrapping.
    first: u8,
    waiting: u8,
}

impl Pl011 {
    /// One that nobody has begun to use: all zeros, so that it takes no room in an image.
    pub const fn new() -> Self {
        Self {
            low_power: 0,
            rate: 0,
            rate_fraction: 0,
            line: 0,
            control: 0,
            levels: 0,
            mask: 0,
            dma: 0,
            raw: 0,
            status: 0,
            overran: false,
            received: [0; DEPTH as usize],
            first: 0,
            waiting: 0,
        }
    }

    /// The state after reset (DDI 0183G, table 3-1): transmitter and receiver on, the UART itself off, levels at one half.
    pub const fn begin(&mut self) {
        *self = Self { control: 0x300, levels: 0x12, ..Self::new() };
    }

    /// What the guest reads. Narrow accesses get the low bytes of the register that they hit, wide ones two registers, as on the board.
    ///
    /// # Errors
    /// [`NoSuchAccess`] past the device, and across its registers.
    pub fn read(&mut self, offset: u64, width: Width) -> Result<u64, NoSuchAccess> {
        check(offset, width)?;
        let low = u64::from(self.read_register(offset & !3));
        let high = if width == Width::Double { self.read_register(offset + 4) } else { 0 };
        Ok((low | u64::from(high) << 32) & width.mask())
    }

    /// The guest writes: the character that leaves on the line, if that is what it was. A narrow write fills the rest of the register
    /// with zeros, a wide one is two.
    ///
    /// # Errors
    /// [`NoSuchAccess`] past the device, and across its registers.
    pub fn write(&mut self, offset: u64, width: Width, value: u64) -> Result<Option<u8>, NoSuchAccess> {
        check(offset, width)?;
        let value = value & width.mask();
        let sent = self.write_register(offset & !3, value as u16);
        if width == Width::Double {
            self.write_register(offset + 4, (value >> 32) as u16);
        }
        Ok(sent)
    }

    /// How many characters [`Self::receive`] takes now.
    pub const fn room(&self) -> usize {
        if self.is_loopback() { 0 } else { self.depth().saturating_sub(self.waiting) as usize }
    }

    /// A character comes in from the line. `false`: there is no room, and the caller keeps it.
    #[must_use]
    pub fn receive(&mut self, byte: u8) -> bool {
        let room = self.room() > 0;
        if room {
            self.take(byte);
        }
        room
    }

    /// The level of the combined interrupt, `UARTINTR`.
    pub const fn interrupt(&self) -> bool {
        self.raw & self.mask != 0
    }

    const fn is_loopback(&self) -> bool {
        self.control & control::LOOPBACK != 0
    }

    /// How many characters wait at most.
    const fn depth(&self) -> u8 {
        if self.has_fifo() { DEPTH } else { 1 }
    }

    const fn has_fifo(&self) -> bool {
        self.line & FIFO_ENABLE != 0
    }

    fn read_register(&mut self, offset: u64) -> u16 {
        match offset {
            register::DATA => self.read_data(),
            register::STATUS => u16::from(self.status),
            register::FLAGS => self.flags(),
            register::LOW_POWER => self.low_power,
            register::RATE => self.rate,
            register::RATE_FRACTION => self.rate_fraction,
            register::LINE => self.line,
            register::CONTROL => self.control,
            register::LEVELS => self.levels,
            register::MASK => self.mask,
            register::RAW => self.raw,
            register::MASKED => self.raw & self.mask,
            register::DMA => self.dma,
            register::IDENTIFICATION.. => {
                let index = (offset - register::IDENTIFICATION) / 4;
                IDENTIFICATION.get(index as usize).copied().unwrap_or(0).into()
            }
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u16) -> Option<u8> {
        match offset {
            register::DATA => return Some(self.send(value as u8)),
            // Any value clears the errors.
            register::STATUS => self.status = 0,
            register::LOW_POWER => self.low_power = value & 0xff,
            register::RATE => self.rate = value,
            register::RATE_FRACTION => self.rate_fraction = value & 0x3f,
            register::LINE => self.set_line(value & 0xff),
            register::CONTROL => self.set_control(value & 0xff87),
            register::LEVELS => self.levels = value & 0x3f,
            register::MASK => self.mask = value & 0x7ff,
            register::CLEAR => self.raw &= !value,
            register::DMA => self.dma = value & 7,
            _ => {}
        }
        None
    }

    fn flags(&self) -> u16 {
        let empty = if self.waiting == 0 { flag::RECEIVE_EMPTY } else { 0 };
        let full = if self.waiting >= self.depth() { flag::RECEIVE_FULL } else { 0 };
        flag::TRANSMIT_EMPTY | empty | full | modem(self.control)
    }

    /// The oldest character; from an empty FIFO, what was there last.
    fn read_data(&mut self) -> u16 {
        let byte = self.received.get(usize::from(self.first)).copied().unwrap_or(0);
        self.status = if self.overran { OVERRUN } else { 0 };
        self.overran = false;
        if self.waiting > 0 {
            self.waiting -= 1;
            self.first = (self.first + 1) % DEPTH;
        }
        if self.waiting == 0 {
            self.raw &= !(cause::RECEIVE | cause::RECEIVE_TIMEOUT);
        }
        u16::from(self.status) << 8 | u16::from(byte)
    }

    /// It has left as soon as it was written, and the transmitter asks for more.
    fn send(&mut self, byte: u8) -> u8 {
        self.raw |= cause::TRANSMIT;
        if self.is_loopback() {
            if self.waiting < self.depth() {
                self.take(byte);
            } else {
                self.overran = true;
                self.status |= OVERRUN;
                self.raw |= cause::OVERRUN;
            }
        }
        byte
    }

    /// Puts a character behind those that wait; there is room.
    fn take(&mut self, byte: u8) {
        let last = (self.first + self.waiting) % DEPTH;
        if let Some(slot) = self.received.get_mut(usize::from(last)) {
            *slot = byte;
        }
        self.waiting += 1;
        self.overran = false;
        self.raw |= cause::RECEIVE;
        if self.has_fifo() {
            self.raw |= cause::RECEIVE_TIMEOUT;
        }
    }

    /// Switching the FIFOs on or off empties them.
    fn set_line(&mut self, line: u16) {
        if (self.line ^ line) & FIFO_ENABLE != 0 {
            (self.first, self.waiting, self.overran) = (0, 0, false);
            self.raw &= !(cause::RECEIVE | cause::RECEIVE_TIMEOUT);
        }
        self.line = line;
    }

    /// The modem's lines change only in loopback; each change is a cause of its own.
    fn set_control(&mut self, control: u16) {
        let changed = modem(self.control) ^ modem(control);
        for (line, cause) in [
            (flag::RING, cause::RING),
            (flag::CLEAR_TO_SEND, cause::CLEAR_TO_SEND),
            (flag::CARRIER, cause::CARRIER),
            (flag::DATA_SET_READY, cause::DATA_SET_READY),
        ] {
            if changed & line != 0 {
                self.raw |= cause;
            }
        }
        self.control = control;
    }
}

impl Default for Pl011 {
    fn default() -> Self {
        Self::new()
    }
}

/// The modem's lines in `UARTFR`: no modem, but in loopback the outputs come back as inputs (DDI 0183G, 2.4.6).
const fn modem(control: u16) -> u16 {
    if control & control::LOOPBACK == 0 {
        return 0;
    }
    let mut lines = 0;
    if control & control::REQUEST_TO_SEND != 0 {
        lines |= flag::CLEAR_TO_SEND;
    }
    if control & control::DATA_TERMINAL_READY != 0 {
        lines |= flag::DATA_SET_READY;
    }
    if control & control::OUT1 != 0 {
        lines |= flag::CARRIER;
    }
    if control & control::OUT2 != 0 {
        lines |= flag::RING;
    }
    lines
}

/// Within the device's page, and within a register, or within two of them for the widest.
pub(super) fn check(offset: u64, width: Width) -> Result<(), NoSuchAccess> {
    if offset < 0x1000 && offset.is_multiple_of(width.bytes()) { Ok(()) } else { Err(NoSuchAccess) }
}

#[cfg(test)]
#[path = "pl011_tests.rs"]
mod tests;
