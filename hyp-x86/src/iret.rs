//! The way back out of a handler: the `iret` hypercall; and the change between a guest's kernel and its users.

use core::sync::atomic::Ordering;

use hyp_core::Vcpu;
use hyp_core::address::MachineFrame;
use hyp_x86::layout;
use penumbra_abi::x86_64::{FLAT_RING3_CS64, FLAT_RING3_SS64, VGCF_IN_SYSCALL};

use crate::access::{self, Hooked};
use crate::context::{BY_IRET, BY_SYSCALL, FLAG_INTERRUPT, GUEST_FLAGS, GuestContext};
use crate::machine::{HYPERVISOR, X86};
use crate::{cpu, loaded, trap};

/// `iret`: takes a context from the kernel's stack. The domain ends if there is none that could be used.
#[inline(never)]
pub fn iret(vcpu: &'static Vcpu<X86>, context: &GuestContext) -> *const GuestContext {
    let frame = &context.frame;
    let Some(hooked) = Hooked::now() else { return cpu::later(context) };
    let stack = frame.rsp.get();
    let Ok(how) = access::pop_frame(stack, frame, hooked) else { return no_context(vcpu, stack) };
    let Some(info) = context.info() else { return no_context(vcpu, stack) };
    if context.non_maskable.is_handled() {
        end_non_maskable(context);
    }
    let (cs, flags) = (frame.cs.get(), frame.rflags.get());
    // Relaxed: the guest's own word, which orders nothing; an event that comes meanwhile is looked for on the way out.
    info.mask.store(u8::from(flags & FLAG_INTERRUPT == 0), Ordering::Relaxed);
    // Whatever the segments are, they are ring 3's: a wrong selector then faults on the way out.
    frame.cs.set(cs & 0xffff | 3);
    frame.ss.set(frame.ss.get() & 0xffff | 3);
    frame.rflags.set(flags & GUEST_FLAGS | FLAG_INTERRUPT);
    let flat = frame.cs.get() == FLAT_RING3_CS64.into() && frame.ss.get() == FLAT_RING3_SS64.into();
    // A place that isn't canonical is for the processor to refuse.
    let by_sysret = how & VGCF_IN_SYSCALL != 0 && flat && layout::is_canonical(frame.rip.get());
    frame.vector.set(if by_sysret { BY_SYSCALL } else { BY_IRET });
    if cs & 3 == 3 { to_user_mode(vcpu, context) } else { trap::go_on(context) }
}

#[inline(never)]
fn to_user_mode(vcpu: &'static Vcpu<X86>, context: &GuestContext) -> *const GuestContext {
    let Some(root) = vcpu.user_root() else { return no_root(vcpu) };
    change_mode(context, true, root);
    trap::go_on(context)
}

/// The way out looks whether another is due.
#[cold]
#[inline(never)]
fn end_non_maskable(context: &GuestContext) {
    if context.non_maskable.end() {
        HYPERVISOR.want_choice();
    }
}

#[cold]
#[inline(never)]
fn no_context(vcpu: &'static Vcpu<X86>, stack: u64) -> *const GuestContext {
    vcpu.context().set_fault_address(Some(stack));
    HYPERVISOR.kill(vcpu, format_args!("iret without a context that could be used at {stack:#x}"));
    cpu::next()
}

#[cold]
#[inline(never)]
fn no_root(vcpu: &'static Vcpu<X86>) -> *const GuestContext {
    HYPERVISOR.kill(vcpu, format_args!("iret to user mode without a root for it"));
    cpu::next()
}

/// From the guest's users to its kernel. A kernel without a root is that of a dead domain, and won't run.
#[inline(always)]
pub fn to_kernel_mode(vcpu: &Vcpu<X86>, context: &GuestContext) {
    if let Some(root) = vcpu.kernel_root().or_else(cpu::own_root) {
        change_mode(context, false, root);
    }
}

/// Between the guest's kernel and its users: another root, another base of `gs`.
#[inline(always)]
fn change_mode(context: &GuestContext, user: bool, root: MachineFrame) {
    context.user_mode.set(user);
    loaded::swap_gs_bases();
    // SAFETY: it is the hypervisor's own, or the core holds a reference to it as a validated root of the vCPU's, whose reserved slots it has
    // filled.
    unsafe { cpu::load_root(root) };
}
