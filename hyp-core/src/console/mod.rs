//! The console: one serial line for everybody.
//!
//! The hypervisor's log goes out with the prefix `(PEN)` and is kept in a [`ring::Ring`], which the control domain can
//! read. Each domain's output carries its number, `(d1)`, and a line that somebody else interrupts is begun anew, so that
//! it is always clear who says what ([`line`]). A domain writes by `console_io`, or into the console page that it shares with the hypervisor
//! ([`guest`]); it is shown at once while the domain has the input, and line by line otherwise. Input goes to the first domain, or, after
//! `CTRL-a` three times, to the next in a round of all those who can use it ([`focus`]), the last of which are the hypervisor's own
//! keys ([`keys`]); as in Xen.

mod focus;
pub(crate) mod guest;
pub mod keys;
pub mod line;
pub(crate) mod page;
pub mod ring;

use core::fmt::{self, Write};
use core::sync::atomic::AtomicU8;

use spin::Mutex;

use crate::address::DomainId;
use crate::domain::Domain;
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;
use focus::Focus;
use line::{SerialLine, Speaker};
use ring::Ring;

/// The key that, typed [`ESCAPE_COUNT`] times, switches the input: `CTRL-a`.
const ESCAPE: u8 = 1;
const ESCAPE_COUNT: u8 = 3;

/// The console's state.
pub struct Console {
    /// The hypervisor's log.
    pub log: Mutex<Ring<16384>>,
    line: Mutex<SerialLine>,
    /// Who gets what is typed.
    focus: Focus,
    escapes: AtomicU8,
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Console {
    /// An empty console; input goes to the first domain.
    pub const fn new() -> Self {
        Self {
            log: Mutex::new(Ring::new()),
            line: Mutex::new(SerialLine::new()),
            focus: Focus::new(),
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
    /// A domain writes to the console. What the control domain writes appears at once, and what the domain that has the input writes (there is a
    /// prompt, and an answer to each key); what others write, line by line.
    pub(crate) fn domain_output(&self, domain: &Domain<M>, bytes: &[u8]) {
        let mut write = |piece: &[u8]| self.console.write_for(&self.machine, domain.id(), piece);
        if domain.is_control() || self.has_focus(domain.id()) {
            write(bytes);
        } else {
            domain.output.lock().push(bytes, &mut write);
        }
    }

    /// Shows what waits for the end of a domain's line.
    pub(crate) fn flush_output(&self, domain: &Domain<M>) {
        domain.output.lock().flush(&mut |line| self.console.write_for(&self.machine, domain.id(), line));
    }
}
