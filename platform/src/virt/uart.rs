//! The PL011, behind a lock, as the hypervisor's console.

use core::ptr::NonNull;

use arm_pl011_uart::{Interrupts, PL011Registers, Uart, UniqueMmioPointer};
use spin::Mutex;

/// How often a full FIFO is asked again before its byte is given up: a line that sends nothing (switched off, or held by flow
/// control) must not stop the machine. At 9600 baud a byte takes a millisecond, far fewer questions than these.
const PATIENCE: u32 = 1_000_000;

/// A PL011 that firmware or the board has set up (speed and format are left as they are).
pub struct Console {
    uart: Mutex<Option<Uart<'static>>>,
}

impl Console {
    /// A console that swallows everything until [`Self::attach`].
    pub const fn new() -> Self {
        Self { uart: Mutex::new(None) }
    }

    /// Starts using the UART whose registers are mapped at `registers`.
    ///
    /// # Safety
    /// `registers` must point to the registers of a PL011, mapped as device memory for as long as this console is used, and
    /// nothing else may use them.
    pub unsafe fn attach(&self, registers: NonNull<u8>) {
        // SAFETY: the caller promises that these are the registers, mapped, and ours alone.
        let pointer = unsafe { UniqueMmioPointer::<PL011Registers>::new(registers.cast()) };
        *self.uart.lock() = Some(Uart::new(pointer));
    }

    /// Sends bytes, waiting while the transmit FIFO is full, but not for ever. A newline is sent as carriage return and newline.
    pub fn write(&self, bytes: &[u8]) {
        if let Some(uart) = self.uart.lock().as_mut() {
            for &byte in bytes {
                if byte == b'\n' {
                    send(uart, b'\r');
                }
                send(uart, byte);
            }
        }
    }

    /// Raises an interrupt from now on whenever something has been received.
    pub fn enable_receive_interrupt(&self) {
        if let Some(uart) = self.uart.lock().as_mut() {
            uart.clear_interrupts(Interrupts::all());
            uart.set_interrupt_masks(Interrupts::RXI | Interrupts::RTI);
        }
    }

    /// Takes one received byte, if there is one. Bytes with a framing or parity error are dropped.
    pub fn read(&self) -> Option<u8> {
        let mut guard = self.uart.lock();
        let uart = guard.as_mut()?;
        // Bounded, so that a line that breaks all the time can't keep us here.
        (0..16).find_map(|_| uart.read_word().transpose())?.ok()
    }

    /// Takes the lock by force: for the report of a fault that may have happened while the lock was held.
    ///
    /// # Safety
    /// Only when nothing else will ever run again.
    pub unsafe fn break_lock(&self) {
        // SAFETY: the caller promises that whoever held the lock won't go on.
        unsafe { self.uart.force_unlock() };
    }
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

/// Sends a byte, or gives it up when nothing leaves the FIFO.
fn send(uart: &mut Uart<'_>, byte: u8) {
    for _ in 0..PATIENCE {
        if !uart.is_tx_fifo_full() {
            return uart.write_word(byte);
        }
        core::hint::spin_loop();
    }
}
