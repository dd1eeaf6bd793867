//! The console: one serial line for everybody.
//!
//! The hypervisor's log goes out with the prefix `(PEN)` and is kept in a [`ring::Ring`], which the control domain can
//! read. Each domain's output carries its number, `(d1)`, and a line that somebody else interrupts is begun anew, so that
//! it is always clear who says what ([`line`]). Input goes to the control domain, or, after `CTRL-a` three times, to the
//! hypervisor's own keys ([`keys`]); as in Xen.

pub mod keys;
pub mod line;
pub mod ring;

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use spin::Mutex;

use penumbra_abi::event_channel::VIRQ_CONSOLE;

use crate::address::DomainId;
use crate::domain::Domain;
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;
use line::{SerialLine, Speaker};
use ring::Ring;

/// The key that, typed [`ESCAPE_COUNT`] times, switches the input: `CTRL-a`.
const ESCAPE: u8 = 1;
const ESCAPE_COUNT: u8 = 3;
/// Typed bytes that wait for the control domain.
const INPUT_SIZE: usize = 1024;

/// The console's state.
pub struct Console {
    /// The hypervisor's log.
    pub log: Mutex<Ring<16384>>,
    line: Mutex<SerialLine>,
    input: Mutex<Ring<INPUT_SIZE>>,
    /// Whether typed keys go to the hypervisor, and not to the control domain.
    to_hypervisor: AtomicBool,
    escapes: AtomicU8,
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// An empty console; input goes to the control domain.
    pub const fn new() -> Self {
        Self {
            log: Mutex::new(Ring::new()),
            line: Mutex::new(SerialLine::new()),
            input: Mutex::new(Ring::new()),
            to_hypervisor: AtomicBool::new(false),
            escapes: AtomicU8::new(0),
        }
    }

    /// Writes a domain's bytes to the serial line.
    pub fn write_for<M: Machine>(&self, machine: &M, domain: DomainId, bytes: &[u8]) {
        self.line.lock().write(Speaker::Domain(domain), bytes, &mut |out| machine.console_write(out));
    }

    /// Writes a line of the hypervisor's log, to the serial line and into the ring.
    fn write_log<M: Machine>(&self, machine: &M, arguments: fmt::Arguments<'_>) {
        struct Out<'a, M: Machine>(&'a Console, &'a M);
        impl<M: Machine> Write for Out<'_, M> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.log.lock().push(text.as_bytes());
                self.0.line.lock().write(Speaker::Hypervisor, text.as_bytes(), &mut |out| {
                    self.1.console_write(out);
                });
                Ok(())
            }
        }
        // Out never fails; an error could only come from a value's own formatting.
        let _ = writeln!(Out(self, machine), "{arguments}");
    }

    /// Takes typed bytes for the control domain; returns how many.
    pub fn read_input(&self, into: &mut [u8]) -> usize {
        self.input.lock().pop(into)
    }

    /// Whether typed bytes wait for the control domain.
    pub fn has_input(&self) -> bool {
        !self.input.lock().is_empty()
    }
}

/// Makes the log crate's macros write to this hypervisor's console.
pub fn init_logger<M: Machine>(hypervisor: &'static Hypervisor<M>) {
    // Fails only if a logger was set before, and then that one stays.
    if log::set_logger(hypervisor).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

impl<M: Machine> log::Log for Hypervisor<M> {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args();
        match record.level() {
            log::Level::Error => self.console.write_log(&self.machine, format_args!("error: {text}")),
            log::Level::Warn => self.console.write_log(&self.machine, format_args!("warning: {text}")),
            _ => self.console.write_log(&self.machine, *text),
        }
    }

    fn flush(&self) {}
}

impl<M: Machine> Hypervisor<M> {
    /// A domain writes to the console. The control domain's bytes appear at once (it has a prompt), another domain's line by line.
    pub(crate) fn domain_output(&self, domain: &Domain<M>, bytes: &[u8]) {
        let mut write = |piece: &[u8]| self.console.write_for(&self.machine, domain.id(), piece);
        if domain.is_control() { write(bytes) } else { domain.output.lock().push(bytes, &mut write) }
    }

    /// One byte was typed on the serial line.
    pub fn console_input(&self, byte: u8) {
        let console = &self.console;
        if byte == ESCAPE {
            // Relaxed, here and below: keys come in on one CPU, and these words say nothing of anything else.
            let escapes = console.escapes.load(Ordering::Relaxed).saturating_add(1);
            console.escapes.store(escapes % ESCAPE_COUNT, Ordering::Relaxed);
            if escapes == ESCAPE_COUNT {
                self.switch_input();
            }
            return;
        }
        // Fewer than three were meant for whoever reads the keys.
        let held_back = console.escapes.swap(0, Ordering::Relaxed);
        for _ in 0..held_back {
            self.deliver(ESCAPE);
        }
        self.deliver(byte);
    }

    fn switch_input(&self) {
        let to_hypervisor = !self.console.to_hypervisor.fetch_xor(true, Ordering::Relaxed);
        let to = if to_hypervisor { "the hypervisor (? for help)" } else { "the control domain" };
        log::info!("input goes to {to}; CTRL-a three times switches");
    }

    fn deliver(&self, byte: u8) {
        if self.console.to_hypervisor.load(Ordering::Relaxed) {
            self.key(byte);
        } else {
            self.console.input.lock().push(&[byte]);
            self.raise_control_virq(VIRQ_CONSOLE);
            // A guest that hasn't bound the interrupt may wait for bytes all the same.
            self.wake(DomainId::CONTROL);
        }
    }
}
