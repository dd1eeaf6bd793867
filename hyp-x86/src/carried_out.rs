//! The way on behind an instruction that was carried out for a guest.

use hyp_core::Vcpu;
use hyp_x86::debug_registers::SINGLE_STEP;

use crate::context::{BY_IRET, FLAG_RESUME, FLAG_TRAP, Frame, GuestContext, TO_HAND_ON};
use crate::machine::X86;
use crate::trap::{self, DEBUG};

/// Goes past it, or, by no bytes, has the guest execute it again.
#[inline(always)]
pub fn pass(frame: &Frame, bytes: u64) {
    frame.rip.set(frame.rip.get().wrapping_add(bytes));
    frame.vector.set(BY_IRET);
}

/// Who goes on, behind the instruction; with every register to be loaded from the context.
#[inline(always)]
pub fn go_on(vcpu: &'static Vcpu<X86>, context: &GuestContext) -> *const GuestContext {
    if context.frame.rflags.get() & (FLAG_TRAP | FLAG_RESUME) == 0 {
        return trap::go_on_with(context);
    }
    end_of_instruction(vcpu)
}

/// What the processor does at an instruction's end, and hasn't done, since it has executed none: breakpoints count again from here on, and
/// whoever goes in single steps has gone one. As in Xen, the guest hears of that at once.
#[cold]
#[inline(never)]
fn end_of_instruction(vcpu: &'static Vcpu<X86>) -> *const GuestContext {
    let context = vcpu.context();
    let flags = context.frame.rflags.get() & !FLAG_RESUME;
    context.frame.rflags.set(flags);
    if flags & FLAG_TRAP == 0 {
        return trap::go_on_with(context);
    }
    context.debug.record_status(SINGLE_STEP);
    context.frame.vector.set(TO_HAND_ON + DEBUG);
    // A write may have unhooked its table: then it waits, as any trap does.
    let next = trap::again(vcpu, context);
    if next.is_null() { context } else { next }
}
