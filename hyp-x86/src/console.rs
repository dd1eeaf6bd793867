//! The serial line.

use platform::q35::options::Serial;
use platform::q35::serial::SerialPort;
use spin::Mutex;

static PORT: Mutex<Option<SerialPort>> = Mutex::new(None);

/// Sets the serial line up. Without a port everything that is written is lost, and nothing is ever read.
pub fn start(settings: Serial) {
    // SAFETY: this is the one place that takes COM1; guests have no access to ports.
    *PORT.lock() = unsafe { SerialPort::com1(settings) };
}

/// Writes bytes, waiting for the line.
pub fn write(bytes: &[u8]) {
    if let Some(port) = PORT.lock().as_mut() {
        port.write(bytes);
    }
}

/// A typed byte, if any.
pub fn read() -> Option<u8> {
    PORT.lock().as_mut()?.read()
}

/// Writes the last words of a hypervisor that stops: straight to the line, even if the fault came in the midst of writing.
pub struct LastWords;

impl core::fmt::Write for LastWords {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        // SAFETY: this CPU is the only one, interrupts are off, and whoever held the lock never runs again.
        unsafe { PORT.force_unlock() };
        write(text.as_bytes());
        Ok(())
    }
}
