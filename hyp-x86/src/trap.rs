//! What guests come for: hypercalls, exceptions, and interrupts that happened to come while they ran.
//!
//! Each function here gets the running vCPU's context, from `entry.s`, and returns the context of the vCPU that goes on; null
//! stands for the same one, with none of the registers changed that a function must preserve: those need no reloading then.

use core::ptr;

use hyp_core::Vcpu;
use hyp_x86::decode;
use x86_64::registers::control::Cr2;

use crate::access::{self, Hooked};
use crate::context::{BY_COMPATIBILITY_SYSCALL, BY_SYSCALL, GuestContext, TO_HAND_ON};
use crate::machine::{HYPERVISOR, X86};
use crate::ports::Accessed;
use crate::{
    bounce, carried_out, code, cpu, deliver, emulate, fault, hypercall, interrupts, loaded, writable_tables,
};

pub const DEBUG: u64 = 1;
const INVALID_OPCODE: u64 = 6;
const NO_FLOATING_POINT: u64 = 7;
const GENERAL_PROTECTION: u64 = 13;
/// In the error code of a general-protection fault: whose fault it is (not the program's own), and whether the rest is a gate's number.
const ERROR_KIND: u64 = 0b11;
const ERROR_GATE: u64 = 0b10;
/// The opcode of `int`, which has one byte more.
const INT: u8 = 0xcd;
/// In a page fault's error code: a write; ring 3's.
const ERROR_WRITE: u64 = 1 << 1;
const ERROR_USER: u64 = 1 << 2;

/// A `syscall` from 64-bit code: a hypercall from the guest's kernel, a system call from its users.
pub extern "C" fn syscall(context: &'static GuestContext) -> *const GuestContext {
    match cpu::entered() {
        Some(vcpu) => syscall_of(vcpu, context),
        None => measured(context),
    }
}

#[inline(always)]
fn syscall_of(vcpu: &'static Vcpu<X86>, context: &'static GuestContext) -> *const GuestContext {
    if context.user_mode.get() {
        return bounce::system_call(vcpu, context);
    }
    hypercall::dispatch(vcpu, context)
}

/// An exception in a guest, or an interrupt while a guest ran. Page faults are the most frequent, and go the shortest way.
pub extern "C" fn trap(context: &'static GuestContext) -> *const GuestContext {
    match cpu::entered() {
        Some(vcpu) => trap_of(vcpu, context),
        None => measured(context),
    }
}

#[inline(always)]
fn trap_of(vcpu: &'static Vcpu<X86>, context: &'static GuestContext) -> *const GuestContext {
    let vector = context.frame.vector.get();
    if vector == bounce::PAGE_FAULT {
        let address = Cr2::read_raw();
        let may_emulate = writable_tables::may_emulate(context);
        return match Hooked::now() {
            Some(hooked) if !may_emulate => bounce::page_fault(vcpu, context, address, hooked),
            _ => writable_tables::fault(vcpu, context, address, may_emulate),
        };
    }
    other_trap(vcpu, context, vector)
}

/// Deals with what a guest came for, which its frame says: with what could not be dealt with at once (`cpu::later`).
#[cold]
#[inline(never)]
pub fn again(vcpu: &'static Vcpu<X86>, context: &'static GuestContext) -> *const GuestContext {
    match context.frame.vector.get() {
        BY_SYSCALL => syscall_of(vcpu, context),
        _ => trap_of(vcpu, context),
    }
}

/// The same, while stretches without a preemption point are measured.
#[cold]
#[inline(never)]
fn measured(context: &'static GuestContext) -> *const GuestContext {
    HYPERVISOR.stretch(|| match cpu::current() {
        Some(vcpu) => again(vcpu, context),
        None => cpu::next(),
    })
}

/// The way out: the short one (null), unless somebody else is due. An event that is pending is delivered, which changes none of the
/// registers that would need reloading.
#[inline(always)]
pub fn go_on(context: &GuestContext) -> *const GuestContext {
    if HYPERVISOR.reschedule_wanted() {
        return cpu::next();
    }
    if context.upcall_due() { deliver() } else { ptr::null() }
}

#[inline(never)]
fn deliver() -> *const GuestContext {
    // Where emptied tables have to come back first, it takes the long way.
    let delivered = cpu::current().is_some_and(deliver::upcall);
    // The upcall may have been the domain's end.
    if !delivered || HYPERVISOR.reschedule_wanted() { cpu::next() } else { ptr::null() }
}

/// As [`go_on`], with every register to be loaded from the context.
#[inline(always)]
pub fn go_on_with(context: &GuestContext) -> *const GuestContext {
    let next = go_on(context);
    if next.is_null() { context } else { next }
}

#[inline(never)]
fn other_trap(vcpu: &'static Vcpu<X86>, context: &'static GuestContext, vector: u64) -> *const GuestContext {
    if (32..BY_SYSCALL).contains(&vector) {
        return interrupt(context, vector);
    }
    // The guest's instruction is read, and its stack written.
    let Some(hooked) = Hooked::now() else { return cpu::later(context) };
    match vector {
        BY_COMPATIBILITY_SYSCALL => bounce::compatibility_system_call(vcpu, context, hooked),
        DEBUG => {
            context.debug.record_status(loaded::take_debug_status());
            bounce::exception(vcpu, context, vector, None, hooked)
        }
        NO_FLOATING_POINT => {
            // It was the guest that has set the flag, and as in Xen its handler finds it clear.
            loaded::set_task_switched(context, false);
            bounce::exception(vcpu, context, vector, None, hooked)
        }
        INVALID_OPCODE | GENERAL_PROTECTION => perhaps_emulated(vcpu, context, vector, hooked),
        // Of what is to be handed on, nothing else is looked at.
        _ => {
            let vector = vector % TO_HAND_ON;
            let error = has_error_code(vector).then_some(context.frame.error.get());
            bounce::exception(vcpu, context, vector, error, hooked)
        }
    }
}

#[inline(never)]
fn interrupt(context: &GuestContext, vector: u64) -> *const GuestContext {
    interrupts::handle(vector);
    go_on(context)
}

/// Faults of instructions some of which are carried out for the guest.
#[inline(never)]
fn perhaps_emulated(
    vcpu: &'static Vcpu<X86>,
    context: &'static GuestContext,
    vector: u64,
    hooked: Hooked,
) -> *const GuestContext {
    let error = context.frame.error.get();
    if vector == GENERAL_PROTECTION && error != 0 {
        return selector_error(vcpu, context, error, hooked);
    }
    match decoded(vcpu, context, vector, hooked) {
        Accessed::Done => carried_out::go_on(vcpu, context),
        Accessed::Again => go_on_with(context),
        Accessed::Refused => {
            bounce::exception(vcpu, context, vector, has_error_code(vector).then_some(error), hooked)
        }
        Accessed::Fault { address, write } => {
            context.frame.error.set(ERROR_USER | if write { ERROR_WRITE } else { 0 });
            bounce::page_fault(vcpu, context, address, hooked)
        }
    }
}

/// A general-protection fault that names a selector, or, by `int`, a gate: no instruction that is carried out makes one.
fn selector_error(
    vcpu: &'static Vcpu<X86>,
    context: &GuestContext,
    error: u64,
    hooked: Hooked,
) -> *const GuestContext {
    // Which gate it was says the instruction as well; QEMU's emulator up to version 7.2 has its number wrong in the error code.
    let mut bytes = [0; 2];
    let by_int = error & ERROR_KIND == ERROR_GATE
        && code::place(context).is_some_and(|code| access::read(code.address, &mut bytes).is_ok());
    let taken = match bytes {
        [INT, vector] if by_int => bounce::software_interrupt(vcpu, context, vector.into(), hooked),
        _ => None,
    };
    taken.unwrap_or_else(|| bounce::exception(vcpu, context, GENERAL_PROTECTION, Some(error), hooked))
}

/// Carries out the instruction at which the guest stands, if it is one of those that are.
fn decoded(vcpu: &'static Vcpu<X86>, context: &GuestContext, vector: u64, hooked: Hooked) -> Accessed {
    let mut bytes = [0; 16];
    let Some(code) = code::place(context) else { return Accessed::Refused };
    let available = read_instruction(code.address, &mut bytes);
    let decode = match (vector, code.is_long) {
        (INVALID_OPCODE, _) => decode::undefined,
        (_, true) => decode::privileged,
        (_, false) => decode::privileged_in_short_code,
    };
    let Some(decoded) = bytes.get(..available).and_then(decode) else { return Accessed::Refused };
    let accessed = emulate::carry_out(vcpu, context, decoded.instruction, hooked);
    match accessed {
        Accessed::Done => carried_out::pass(&context.frame, decoded.length),
        // Whatever has changed is loaded from the context.
        Accessed::Again => carried_out::pass(&context.frame, 0),
        Accessed::Refused | Accessed::Fault { .. } => {}
    }
    accessed
}

/// Reads instruction bytes; fewer if the next page can't be read.
fn read_instruction(address: u64, bytes: &mut [u8; 16]) -> usize {
    let in_page = 4096 - (address % 4096) as usize;
    if in_page >= bytes.len() {
        return if access::read_code(address, bytes).is_ok() { bytes.len() } else { 0 };
    }
    access::read_code_over_two_pages(address, bytes, in_page)
}

/// The exceptions with which the processor pushes an error code, as bits: double fault, segments and pages (10 to 14), alignment,
/// control protection, and AMD's two for encrypted guests (Intel SDM volume 3, 6.3.1; AMD APM volume 2, 8.2).
pub const WITH_ERROR_CODE: u32 = 1 << 8 | 0b11111 << 10 | 1 << 17 | 1 << 21 | 1 << 29 | 1 << 30;

fn has_error_code(vector: u64) -> bool {
    vector < 32 && WITH_ERROR_CODE >> vector & 1 != 0
}

/// The end of a guest that has no handler for an exception. Returns who goes on.
#[cold]
#[inline(never)]
pub fn unhandled(vcpu: &Vcpu<X86>, vector: u64, address: Option<u64>) -> *const GuestContext {
    let name = fault::name(vector);
    vcpu.context().set_fault_address(address);
    match address {
        Some(address) => HYPERVISOR.kill(vcpu, format_args!("{name} at address {address:#x}, no handler")),
        None => HYPERVISOR.kill(vcpu, format_args!("{name}, no handler")),
    }
    cpu::next()
}
