//! Exceptions in the hypervisor itself.
//!
//! Three are expected: an interrupt while the CPU idles, a guest's address that can't be used (a copy to or from a guest), and
//! a way back to the guest that the processor refuses (`iretq` with values that the guest chose). Any other is a bug
//! of ours: the registers go out on the serial line, and the machine stops.

use core::cell::Cell;
use core::fmt::Write;

use hyp_core::Vcpu;
use x86_64::registers::control::Cr2;

use crate::console::LastWords;
use crate::context::{Frame, GuestContext, TO_HAND_ON};
use crate::machine::{HYPERVISOR, X86, halt};
use crate::{access, cpu, entry, interrupts, loaded, machine_check, trap};

/// What instructions call the stack pointer among the general registers.
const STACK_POINTER: u8 = 4;
const DEBUG: u64 = 1;
const NON_MASKABLE: u64 = 2;
const NOT_PRESENT: u64 = 11;
const STACK_FAULT: u64 = 12;
const GENERAL_PROTECTION: u64 = 13;
const PAGE_FAULT: u64 = 14;
const MACHINE_CHECK: u64 = 18;

/// An exception or interrupt in the hypervisor. Null: what was interrupted goes on.
pub extern "C" fn own_trap(frame: &Frame) -> *const GuestContext {
    let (vector, rip) = (frame.vector.get(), frame.rip.get());
    if vector >= 32 {
        HYPERVISOR.stretch(|| interrupts::handle(vector));
        return core::ptr::null();
    }
    if matches!(vector, NOT_PRESENT | STACK_FAULT | GENERAL_PROTECTION | PAGE_FAULT)
        && let Some(target) = access::fixup(rip)
    {
        frame.rip.set(target);
        return core::ptr::null();
    }
    if rip == entry::address(&entry::exit_iret)
        && let Some(vcpu) = cpu::current()
    {
        return HYPERVISOR.stretch(|| bad_return(vcpu, frame));
    }
    if rip == entry::address(&entry::exit_iret_shortly)
        && let Some(vcpu) = cpu::current()
    {
        take_short_return(frame, vcpu.context());
        return bad_return(vcpu, frame);
    }
    stop(frame)
}

/// On the short way (`short.s`) the context doesn't hold what the guest would have gone on with: that is in the registers, and in the five
/// words that `iretq` was to take from the CPU's stack.
fn take_short_return(frame: &Frame, context: &GuestContext) {
    let to = &context.frame;
    for register in (0..16).filter(|register| *register != STACK_POINTER) {
        to.general(register).set(frame.general(register).get());
    }
    // SAFETY: the stack pointer was that of `iretq`, where `short.s` has pushed the five words on this CPU's stack, below which the frame
    // lies.
    let words = unsafe { &*(frame.rsp.get() as *const [Cell<u64>; 5]) };
    let places = [&to.rip, &to.cs, &to.rflags, &to.rsp, &to.ss];
    for (place, word) in places.into_iter().zip(words) {
        place.set(word.get());
    }
}

/// The processor refuses the segments or the place at which a guest is to go on: as in Xen, that is the guest's own exception, as if it
/// had got there. It had not: so what stands there is not looked at, and nothing is carried out for it. Its handler is entered by
/// segments that the processor doesn't refuse, so this doesn't come twice in a row. (It is never a page fault, whose address would have to be told:
/// the guest's descriptors are always mapped, in a place of their own, and marked as accessed.)
fn bad_return(vcpu: &'static Vcpu<X86>, frame: &Frame) -> *const GuestContext {
    let context = vcpu.context();
    context.frame.vector.set(TO_HAND_ON + frame.vector.get() % 32);
    context.frame.error.set(frame.error.get());
    let next = trap::again(vcpu, context);
    // Every register is to come from the context.
    if next.is_null() { context } else { next }
}

/// A non-maskable interrupt, a double fault or a machine check, wherever it came; a debug exception in the hypervisor, which is a guest's
/// breakpoint on memory of its own that the hypervisor has just touched for it, and is passed over.
pub extern "C" fn critical(frame: &Frame) {
    match frame.vector.get() {
        NON_MASKABLE => {}
        DEBUG => {
            let _ = loaded::take_debug_status();
        }
        _ => stop(frame),
    }
}

fn stop(frame: &Frame) -> ! {
    let mut out = LastWords;
    // Nothing can be done about a write that fails here.
    let _ = writeln!(out, "\n(PEN) hypervisor fault {}: the machine stops", name(frame.vector.get()));
    let _ = writeln!(out, "(PEN) cr2 {:#018x}", Cr2::read_raw());
    let _ = frame.describe(&mut out);
    let _ = out.write_str("\n");
    if frame.vector.get() == MACHINE_CHECK {
        let _ = machine_check::describe(&mut out);
    }
    halt()
}

/// What an exception is called.
pub fn name(vector: u64) -> &'static str {
    const NAMES: [&str; 32] = [
        "divide error",
        "debug",
        "non-maskable interrupt",
        "breakpoint",
        "overflow",
        "bound range exceeded",
        "invalid opcode",
        "device not available",
        "double fault",
        "coprocessor segment overrun",
        "invalid TSS",
        "segment not present",
        "stack fault",
        "general protection",
        "page fault",
        "reserved",
        "x87 error",
        "alignment check",
        "machine check",
        "SIMD error",
        "virtualization",
        "control protection",
        "reserved",
        "reserved",
        "reserved",
        "reserved",
        "reserved",
        "reserved",
        "hypervisor injection",
        "VMM communication",
        "security",
        "reserved",
    ];
    NAMES.get(vector as usize).copied().unwrap_or("interrupt")
}

#[panic_handler]
fn panic(information: &core::panic::PanicInfo<'_>) -> ! {
    x86_64::instructions::interrupts::disable();
    let _ = writeln!(LastWords, "\n(PEN) hypervisor fault: {information}");
    halt()
}
