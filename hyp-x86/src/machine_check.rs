//! Machine checks: errors that the processor finds in itself, in memory and on the way there.
//!
//! Without permission for the exception they end in a shutdown, of which nothing is left to read. So it is given, and every bank of error
//! registers is told to report everything that it can. What comes is fatal to the machine (`fault.rs`), and leaves on the serial line what
//! the banks hold. Guests see none of this: their kernels find banks of their own in which nothing ever stands (`msr.rs`).
//!
//! Source: Intel SDM volume 3, 16.3 (registers) and 16.8 (initialization); AMD64 APM volume 2, 9.3.

use core::fmt::{self, Write};

use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::model_specific::Msr;

/// Leaf 1, edx: the exception; the registers.
const EXCEPTION: u32 = 1 << 7;
const REGISTERS: u32 = 1 << 14;
/// How many banks there are, in the lowest byte; and whether there is [`CONTROL`].
const CAPABILITY: u32 = 0x179;
const HAS_CONTROL: u64 = 1 << 8;
const STATUS: u32 = 0x17a;
const CONTROL: u32 = 0x17b;
/// Each bank's four registers: control, status, address, more.
const FIRST_BANK: u32 = 0x400;
/// As many as have their registers there; others are numbered elsewhere, and start well.
const MOST_BANKS: u32 = 32;
/// A bank's status: it holds an error; the address register belongs to it.
const VALID: u64 = 1 << 63;
const HAS_ADDRESS: u64 = 1 << 58;

/// From now on machine checks come as exceptions, where the processor can tell of them. What stands in the banks is of a time before this
/// hypervisor's, and goes.
///
/// # Safety
/// Once on each CPU, in ring 0, when the exception has its gate and its stack.
pub unsafe fn enable() {
    let processor = core::arch::x86_64::__cpuid(1);
    if processor.edx & REGISTERS != 0 {
        // SAFETY: the processor says that it has the registers; in them are switches for error reports, which go to the gate below.
        unsafe { open_banks(first_with_control(processor.eax)) };
    }
    if processor.edx & EXCEPTION != 0 {
        // SAFETY: the processor has the bit, and the caller has the gate.
        unsafe { Cr4::update(|flags| *flags |= Cr4Flags::MACHINE_CHECK_EXCEPTION) };
    }
}

/// # Safety
/// The registers are there.
unsafe fn open_banks(first_with_control: u32) {
    let (banks, has_control) = banks();
    // SAFETY: the capability says that these are there; every switch of theirs may be on, and zero is what clears a status.
    unsafe {
        if has_control {
            Msr::new(CONTROL).write(u64::MAX);
        }
        for bank in 0..banks {
            if bank >= first_with_control {
                Msr::new(FIRST_BANK + 4 * bank).write(u64::MAX);
            }
            Msr::new(FIRST_BANK + 4 * bank + 1).write(0);
        }
    }
}

/// How many banks there are, and whether there is [`CONTROL`]. For a processor with the registers.
fn banks() -> (u32, bool) {
    // SAFETY: reading it changes nothing, and it is there.
    let capability = unsafe { Msr::new(CAPABILITY).read() };
    ((capability as u32 & 0xff).min(MOST_BANKS), capability & HAS_CONTROL != 0)
}

/// Old processors of family 6 (`version` is leaf 1, eax) keep the first bank's control for the firmware.
fn first_with_control(version: u32) -> u32 {
    let (family, model) = (version >> 8 & 0xf, version >> 4 & 0xf | version >> 12 & 0xf0);
    u32::from(family == 6 && model < 0x1a)
}

/// What the banks hold, a line each.
pub fn describe(out: &mut impl Write) -> fmt::Result {
    if core::arch::x86_64::__cpuid(1).edx & REGISTERS == 0 {
        return Ok(());
    }
    // SAFETY: as above; nothing is changed, and a bank says itself whether it has an address.
    let read = |register| unsafe { Msr::new(register).read() };
    writeln!(out, "(PEN) machine-check status {:#x}", read(STATUS))?;
    for bank in 0..banks().0 {
        let at = FIRST_BANK + 4 * bank;
        let status = read(at + 1);
        if status & VALID != 0 {
            write!(out, "(PEN) bank {bank}: status {status:#018x}")?;
            if status & HAS_ADDRESS != 0 {
                write!(out, ", address {:#x}", read(at + 2))?;
            }
            writeln!(out)?;
        }
    }
    Ok(())
}
