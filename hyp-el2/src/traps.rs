//! What traps besides hypercalls: reads of ID registers are answered, a few harmless things are done on the guest's behalf, and
//! everything else is an undefined instruction, which the guest's own handler gets to see.

use core::arch::asm;

use aarch64_cpu::registers::{
    CNTPCT_EL0, ELR_EL1, ESR_EL1, FAR_EL1, FAR_EL2, MAIR_EL1, Readable, SCTLR_EL1, SPSR_EL1, TCR_EL1,
    TTBR0_EL1, TTBR1_EL1, VBAR_EL1, Writeable,
};
use hyp_core::Vcpu;
use hyp_core::address::MachineFrame;
use hyp_el2::features;
use hyp_el2::injection::{UNDEFINED, synchronous};
use hyp_el2::syndrome::{Access, Cause, Encoding, Syndrome};

use crate::HYPERVISOR;
use crate::context::GuestContext;
use crate::guest_memory::translate;
use crate::machine::El2;
use crate::memory::{clean, direct, is_memory};

/// What to do with the vCPU after a trap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Afterwards {
    /// It goes on.
    Resume,
    /// Others may go first.
    Yield,
    /// It waits for an interrupt.
    Wait,
}

/// Deals with a trap that isn't a hypercall.
#[cold]
pub fn handle(vcpu: &Vcpu<El2>, context: &GuestContext, syndrome: Syndrome) -> Afterwards {
    match syndrome.cause() {
        Cause::WaitForInterrupt => {
            context.skip_instruction();
            return Afterwards::Wait;
        }
        Cause::WaitForEvent => {
            context.skip_instruction();
            return Afterwards::Yield;
        }
        Cause::SystemRegister(access) => {
            if system_register(context, access).is_some() {
                context.skip_instruction();
            } else {
                inject(context, UNDEFINED, context.pc());
            }
        }
        // The preferred return address of `hvc` is the next instruction; an undefined one's is its own.
        Cause::HypervisorCall(_) => inject(context, UNDEFINED, context.pc().wrapping_sub(4)),
        Cause::Debug => inject_debug(context, syndrome),
        Cause::Abort => {
            let (address, syndrome) = (FAR_EL2.get(), syndrome.0);
            HYPERVISOR.kill(vcpu, format_args!("an external abort at {address:#x} (syndrome {syndrome:#x})"));
        }
        Cause::Undefined => inject(context, UNDEFINED, context.pc()),
    }
    Afterwards::Resume
}

/// Takes a synchronous exception to EL1, whose registers are in the CPU.
fn inject(context: &GuestContext, syndrome: u64, return_address: u64) {
    let pstate = context.pstate();
    let (offset, new_pstate) = synchronous(pstate);
    ELR_EL1.set(return_address);
    SPSR_EL1.set(pstate);
    ESR_EL1.set(syndrome);
    context.resume_at(VBAR_EL1.get().wrapping_add(offset), new_pstate);
}

/// Debug exceptions come here only because their registers aren't for guests. Class numbers say whether they came from the same
/// exception level: `brk` has one number for both, the others have the next higher one.
fn inject_debug(context: &GuestContext, syndrome: Syndrome) {
    let from_kernel = context.pstate() & 0b1111 != 0;
    let same_level = u64::from(from_kernel && syndrome.class() < 0x38) << 26;
    FAR_EL1.set(FAR_EL2.get());
    inject(context, syndrome.0 | same_level, context.pc());
}

/// Does what a trapped access asks for; `None` if guests can't have that.
fn system_register(context: &GuestContext, access: Access) -> Option<()> {
    if access.is_read {
        let value = read(access.encoding)?;
        context.set_register(access.register, value);
        return Some(());
    }
    write(access.encoding, context.register(access.register))
}

fn read(encoding: Encoding) -> Option<u64> {
    match encoding {
        // REVIDR_EL1, AIDR_EL1 (HCR_EL2.TID1): revision and auxiliary information, none.
        Encoding(3, 0, 0, 0, 6) | Encoding(3, 1, 0, 0, 7) => Some(0),
        // CNTPCT_EL0: the same as CNTVCT_EL0, which doesn't trap.
        Encoding(3, 3, 14, 0, 1) => Some(CNTPCT_EL0.get()),
        _ => features::visible(encoding, real_id_register(encoding)),
    }
}

/// The CPU's own value of those ID registers that [`features`] lets anything through of.
fn real_id_register(encoding: Encoding) -> u64 {
    macro_rules! id_register {
        ($name:literal) => {{
            let value: u64;
            // SAFETY: reads an ID register.
            unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack)) };
            value
        }};
    }
    match encoding {
        Encoding(3, 0, 0, 4, 0) => id_register!("id_aa64pfr0_el1"),
        Encoding(3, 0, 0, 4, 1) => id_register!("id_aa64pfr1_el1"),
        Encoding(3, 0, 0, 6, 0) => id_register!("id_aa64isar0_el1"),
        Encoding(3, 0, 0, 6, 1) => id_register!("id_aa64isar1_el1"),
        Encoding(3, 0, 0, 7, 0) => id_register!("id_aa64mmfr0_el1"),
        Encoding(3, 0, 0, 7, 1) => id_register!("id_aa64mmfr1_el1"),
        Encoding(3, 0, 0, 7, 2) => id_register!("id_aa64mmfr2_el1"),
        _ => 0,
    }
}

fn write(encoding: Encoding, value: u64) -> Option<()> {
    match encoding {
        // Translation is fixed: roots change by hypercall. To write what is there already is allowed.
        Encoding(3, 0, 1, 0, 0) => (value == SCTLR_EL1.get()).then_some(()),
        Encoding(3, 0, 2, 0, 0) => (value == TTBR0_EL1.get()).then_some(()),
        Encoding(3, 0, 2, 0, 1) => (value == TTBR1_EL1.get()).then_some(()),
        Encoding(3, 0, 2, 0, 2) => (value == TCR_EL1.get()).then_some(()),
        Encoding(3, 0, 10, 2, 0) => (value == MAIR_EL1.get()).then_some(()),
        Encoding(3, 0, 10, 3, 0) => (value == 0).then_some(()),
        // These trap along with them, and are the guest's own.
        Encoding(3, 0, 5, 2, 0) => {
            ESR_EL1.set(value);
            Some(())
        }
        Encoding(3, 0, 6, 0, 0) => {
            FAR_EL1.set(value);
            Some(())
        }
        Encoding(3, 0, 5, 1, 0 | 1) => Some(()),
        Encoding(3, 0, 13, 0, 1) => {
            // SAFETY: a number that only debuggers look at.
            unsafe { asm!("msr contextidr_el1, {}", in(reg) value, options(nomem, nostack)) };
            Some(())
        }
        // dc ivac; dc cvac, cvap, cvadp, civac: all of them clean and invalidate, so that none can lose what is in the cache.
        Encoding(1, 0, 7, 6, 1) | Encoding(1, 3, 7, 10 | 12 | 13 | 14, 1) => {
            clean_guest_line(value);
            Some(())
        }
        _ => None,
    }
}

/// Cleans and invalidates the cache line at a guest's address, if there is memory that the guest can read.
fn clean_guest_line(address: u64) {
    let Some(machine) = translate(address, false) else { return };
    // The M2P and whatever else isn't RAM in the guests' tables is there read-only, and cleaning it harms nobody; but only RAM is in
    // the direct map.
    if is_memory(MachineFrame::containing(machine)) {
        clean(direct(machine.bytes() & !0xfff).wrapping_add(machine.offset_in_frame() & !63), 64);
    }
}
