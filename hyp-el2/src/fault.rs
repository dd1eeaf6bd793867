//! The end: a fault of the hypervisor itself, or a panic. Says what is known, and stops the machine.
//!
//! The log isn't used for that, since its locks may be held by whatever failed.

use core::fmt::{self, Write};
use core::mem::offset_of;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU64, Ordering};

use aarch64_cpu::registers::{ELR_EL2, ESR_EL2, FAR_EL2, Readable, SPSR_EL2};
use hyp_core::machine::Board;

use crate::board::CONSOLE;
use crate::machine::El2;

/// What `vectors.s` leaves about a fault of the hypervisor.
#[repr(C)]
struct FaultRecord {
    /// x0 to x30 and SP.
    registers: [AtomicU64; 32],
    /// Not zero: a fault is being reported already, and the next one just stops.
    dying: AtomicU64,
}

const _: () = assert!(offset_of!(FaultRecord, dying) == 256);

#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
static fault_record: FaultRecord =
    FaultRecord { registers: [const { AtomicU64::new(0) }; 32], dying: AtomicU64::new(0) };

/// Names of the entries of the vector table, for the report.
const VECTORS: [&str; 4] = ["synchronous exception", "IRQ", "FIQ", "SError"];

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        CONSOLE.write(text.as_bytes());
        Ok(())
    }
}

/// Takes the serial line, whoever had it.
fn serial() -> Serial {
    // SAFETY: interrupts are masked and this CPU never goes back to what it did.
    unsafe { CONSOLE.break_lock() };
    Serial
}

/// Reports a fault of the hypervisor, on the emergency stack.
#[unsafe(no_mangle)]
extern "C" fn hypervisor_fault_report(vector: usize) -> ! {
    let kind = VECTORS.get(vector % 4).copied().unwrap_or("exception");
    // The result says only whether the serial line works.
    let _ = describe(kind);
    El2.power_off()
}

fn describe(kind: &str) -> fmt::Result {
    let mut out = serial();
    let (syndrome, address) = (ESR_EL2.get(), FAR_EL2.get());
    writeln!(out, "\n(PEN) hypervisor fault: {kind}, syndrome {syndrome:#x}, address {address:#x}")?;
    writeln!(out, "(PEN) pc {:#x} pstate {:#x}", ELR_EL2.get(), SPSR_EL2.get())?;
    for (number, register) in fault_record.registers.iter().enumerate() {
        let name = if number == 31 { "sp" } else { "x" };
        let end = if number % 4 == 3 { "\n" } else { "  " };
        let start = if number % 4 == 0 { "(PEN) " } else { "" };
        // Relaxed: this CPU wrote them before it came here.
        let value = register.load(Ordering::Relaxed);
        match number {
            31 => write!(out, "{start}{name} {value:#x}{end}")?,
            _ => write!(out, "{start}{name}{number} {value:#x}{end}")?,
        }
    }
    writeln!(out, "(PEN) the machine stops")
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(serial(), "\n(PEN) hypervisor panic: {info}\n(PEN) the machine stops");
    El2.power_off()
}
