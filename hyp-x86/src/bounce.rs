//! Exceptions, handed on to the guest's own handlers.
//!
//! The hypervisor writes a frame on the guest kernel's stack and lets it go on at the handler: from the kernel on the stack
//! that it is using, from user mode on the one that `stack_switch` named. From the lowest address up the frame holds rcx, r11,
//! an error code if the exception has one, and what the processor would push. The saved code segment says in its lowest
//! two bits which mode was interrupted (0 kernel, 3 user), and in bits 32 to 39 the event mask as it was.

use core::fmt;
use core::sync::atomic::Ordering;

use hyp_core::Vcpu;
use penumbra_abi::x86_64::{FLAT_RING3_CS64, FLAT_RING3_SS64};

use crate::access::{self, Hooked, Saved};
use crate::context::{BY_SYSCALL, FLAG_INTERRUPT, GuestContext, TrapHandler};
use crate::machine::{HYPERVISOR, X86};
use crate::{cpu, iret, trap};

/// Flags that are off in a handler: trap, nested task, resume, alignment check, virtual-8086.
pub const CLEARED_IN_HANDLER: u64 = 0x0007_4100;
/// In a page fault's error code: the access was a user's.
const ERROR_USER: u64 = 1 << 2;
/// In a trap handler's flags: mask events.
pub const MASK_EVENTS: u8 = 1 << 2;
/// In a trap handler's flags: the lowest ring whose `int` it takes. User mode is 3; what is less is for the kernel alone.
const CALLERS: u8 = 0b11;
/// Bytes of `int` and of `syscall`.
const INT_BYTES: u64 = 2;
const SYSCALL_BYTES: u64 = 2;
const INVALID_OPCODE: u64 = 6;
/// Bytes of an exception's frame with an error code; without one, there is a word less.
const LONGEST_FRAME: u64 = 8 * 8;
/// The page fault's vector.
pub const PAGE_FAULT: u64 = 14;

/// Hands an exception on; ends the domain if it has no handler, or no stack for it. Returns who goes on, as [`trap::go_on`].
pub fn exception(
    vcpu: &'static Vcpu<X86>,
    context: &GuestContext,
    vector: u64,
    error: Option<u64>,
    hooked: Hooked,
) -> *const GuestContext {
    if context.user_mode.get() {
        return exception_of_user(vcpu, context, vector, error, hooked);
    }
    let Some(handler) = handler(context, vector) else { return trap::unhandled(vcpu, vector, None) };
    let mode = Interrupted::kernel(context);
    finish::<false>(vcpu, context, vector, enter_kernel(hooked, context, Target::of(handler), mode, error))
}

#[inline(never)]
fn exception_of_user(
    vcpu: &'static Vcpu<X86>,
    context: &GuestContext,
    vector: u64,
    error: Option<u64>,
    hooked: Hooked,
) -> *const GuestContext {
    let mode = leave_user_mode(vcpu, context);
    let Some(handler) = handler(context, vector) else { return trap::unhandled(vcpu, vector, None) };
    finish::<true>(vcpu, context, vector, enter_kernel(hooked, context, Target::of(handler), mode, error))
}

/// Hands a page fault on, as [`exception`] does the others.
#[inline(always)]
pub fn page_fault(
    vcpu: &'static Vcpu<X86>,
    context: &GuestContext,
    address: u64,
    hooked: Hooked,
) -> *const GuestContext {
    if context.user_mode.get() {
        return page_fault_of_user(vcpu, context, address, hooked);
    }
    let Some(handler) = handler(context, PAGE_FAULT) else {
        return trap::unhandled(vcpu, PAGE_FAULT, Some(address));
    };
    // The processor says "user" of everything in ring 3; the guest means its own user mode.
    let error = context.frame.error.get() & !ERROR_USER;
    tell_address(context, address);
    let entered =
        enter_kernel(hooked, context, Target::of(handler), Interrupted::kernel(context), Some(error));
    finish::<false>(vcpu, context, PAGE_FAULT, entered)
}

#[inline(never)]
fn page_fault_of_user(
    vcpu: &'static Vcpu<X86>,
    context: &GuestContext,
    address: u64,
    hooked: Hooked,
) -> *const GuestContext {
    let mode = leave_user_mode(vcpu, context);
    let Some(handler) = handler(context, PAGE_FAULT) else {
        return trap::unhandled(vcpu, PAGE_FAULT, Some(address));
    };
    tell_address(context, address);
    let error = context.frame.error.get();
    finish::<true>(
        vcpu,
        context,
        PAGE_FAULT,
        enter_kernel(hooked, context, Target::of(handler), mode, Some(error)),
    )
}

#[inline(always)]
fn tell_address(context: &GuestContext, address: u64) {
    if let Some(info) = context.info() {
        // Relaxed: the guest reads it on this CPU, later.
        info.cr2.store(address, Ordering::Relaxed);
    }
}

/// `OF_USER`: it came from user mode.
#[inline(always)]
fn finish<const OF_USER: bool>(
    vcpu: &'static Vcpu<X86>,
    context: &GuestContext,
    vector: u64,
    entered: Option<()>,
) -> *const GuestContext {
    match entered {
        Some(()) => trap::go_on(context),
        None => no_stack_for_trap(vcpu, vector, OF_USER),
    }
}

#[cold]
#[inline(never)]
fn no_stack_for_trap(vcpu: &Vcpu<X86>, vector: u64, of_user: bool) -> *const GuestContext {
    match vector {
        BY_SYSCALL => no_stack(vcpu, of_user, format_args!("a system call")),
        _ => no_stack(vcpu, of_user, format_args!("exception {vector}")),
    }
    cpu::next()
}

/// The end of a guest whose kernel has no stack for what has come. The log walks to the lowest word of the frame that it would have got.
#[cold]
#[inline(never)]
pub fn no_stack(vcpu: &Vcpu<X86>, of_user: bool, what: fmt::Arguments<'_>) {
    let context = vcpu.context();
    let stack = if of_user { context.kernel_stack.get() } else { context.frame.rsp.get() };
    context.set_fault_address(Some((stack & !15).wrapping_sub(LONGEST_FRAME)));
    HYPERVISOR.kill(vcpu, format_args!("no stack for {what} at {stack:#x}"));
}

/// A system call from user mode, which goes to the kernel's callback.
#[inline(never)]
pub fn system_call(vcpu: &'static Vcpu<X86>, context: &GuestContext) -> *const GuestContext {
    let Some(hooked) = Hooked::now() else { return cpu::later(context) };
    let address = context.callbacks.syscall.get();
    if address == 0 {
        return no_callback(vcpu, context, hooked);
    }
    let mode = leave_user_mode(vcpu, context);
    let target = Target { address, mask: context.callbacks.syscall_masks.get() };
    finish::<true>(vcpu, context, BY_SYSCALL, enter_kernel(hooked, context, target, mode, None))
}

/// A `syscall` in 32-bit code: a user's goes to the kernel's callback for that; the kernel itself has none.
#[cold]
#[inline(never)]
pub fn compatibility_system_call(
    vcpu: &'static Vcpu<X86>,
    context: &GuestContext,
    hooked: Hooked,
) -> *const GuestContext {
    let address = context.callbacks.syscall32.get();
    if address == 0 || !context.user_mode.get() {
        return no_callback(vcpu, context, hooked);
    }
    let mode = leave_user_mode(vcpu, context);
    let target = Target { address, mask: context.callbacks.syscall32_masks.get() };
    finish::<true>(vcpu, context, BY_SYSCALL, enter_kernel(hooked, context, target, mode, None))
}

/// As in Xen, a `syscall` that goes nowhere is an invalid opcode.
#[cold]
#[inline(never)]
fn no_callback(vcpu: &'static Vcpu<X86>, context: &GuestContext, hooked: Hooked) -> *const GuestContext {
    context.frame.rip.set(context.frame.rip.get().wrapping_sub(SYSCALL_BYTES));
    exception(vcpu, context, INVALID_OPCODE, None, hooked)
}

/// `int` by the guest, to a handler that lets its callers in: as the processor would, without an error code, behind the instruction.
/// `None`: it stays a general-protection fault.
pub fn software_interrupt(
    vcpu: &'static Vcpu<X86>,
    context: &GuestContext,
    vector: u64,
    hooked: Hooked,
) -> Option<*const GuestContext> {
    let handler = handler(context, vector)?;
    if context.user_mode.get() && handler.flags.get() & CALLERS != CALLERS {
        return None;
    }
    context.frame.rip.set(context.frame.rip.get().wrapping_add(INT_BYTES));
    Some(exception(vcpu, context, vector, None, hooked))
}

#[inline(always)]
pub fn handler(context: &GuestContext, vector: u64) -> Option<&TrapHandler> {
    context.traps.get(vector as usize).filter(|handler| handler.address.get() != 0)
}

/// Where the kernel goes on.
pub struct Target {
    pub address: u64,
    /// Whether events are masked from then on.
    pub mask: bool,
}

impl Target {
    #[inline(always)]
    pub fn of(handler: &TrapHandler) -> Self {
        Self { address: handler.address.get(), mask: handler.flags.get() & MASK_EVENTS != 0 }
    }
}

/// What was interrupted.
pub struct Interrupted {
    /// Where the kernel's stack is.
    pub stack: u64,
    /// The lowest two bits of the code segment, as the handler sees it.
    pub ring: u64,
}

impl Interrupted {
    #[inline(always)]
    pub fn kernel(context: &GuestContext) -> Self {
        Self { stack: context.frame.rsp.get(), ring: 0 }
    }
}

#[inline(always)]
pub fn leave_user_mode(vcpu: &'static Vcpu<X86>, context: &GuestContext) -> Interrupted {
    iret::to_kernel_mode(vcpu, context);
    Interrupted { stack: context.kernel_stack.get(), ring: 3 }
}

/// Writes the frame and makes the context that of the kernel at `target`. `None`: the frame can't be written there.
///
/// The way out is by `sysret`, which changes rcx and r11: the frame holds both, and every handler takes them from there.
#[inline(always)]
pub fn enter_kernel(
    hooked: Hooked,
    context: &GuestContext,
    target: Target,
    interrupted: Interrupted,
    error: Option<u64>,
) -> Option<()> {
    let frame = &context.frame;
    let saved = saved(context, &interrupted)?;
    let top = interrupted.stack & !15;
    let bottom = match error {
        None => {
            let bottom = top.wrapping_sub(LONGEST_FRAME - 8);
            access::push_frame(bottom, frame, saved, hooked).ok()?;
            bottom
        }
        Some(error) => {
            let bottom = top.wrapping_sub(LONGEST_FRAME);
            access::push_frame_with_error(bottom, frame, error, saved, hooked).ok()?;
            bottom
        }
    };
    arrive(context, &target, bottom)
}

/// What the handler finds in place of the frame's own.
#[inline(always)]
pub fn saved(context: &GuestContext, interrupted: &Interrupted) -> Option<Saved> {
    let frame = &context.frame;
    // Relaxed: the guest writes it on this CPU; from elsewhere it is a race of the guest's own.
    let masked = context.info()?.mask.load(Ordering::Relaxed);
    let flags = frame.rflags.get();
    Some(Saved {
        cs: frame.cs.get() & 0xfffc | interrupted.ring | u64::from(masked) << 32,
        // The interrupt flag is on whenever a guest runs; what the guest sees there is its own mask.
        flags: if masked == 0 { flags } else { flags & !FLAG_INTERRUPT },
    })
}

/// Makes the context that of the kernel at `target`, with a frame at `bottom`.
#[inline(always)]
pub fn arrive(context: &GuestContext, target: &Target, bottom: u64) -> Option<()> {
    let frame = &context.frame;
    if target.mask {
        // Relaxed: as above.
        context.info()?.mask.store(1, Ordering::Relaxed);
    }
    frame.rip.set(target.address);
    frame.rsp.set(bottom);
    frame.ss.set(FLAT_RING3_SS64.into());
    frame.cs.set(FLAT_RING3_CS64.into());
    frame.rflags.set(frame.rflags.get() & !CLEARED_IN_HANDLER);
    frame.vector.set(BY_SYSCALL);
    Some(())
}
