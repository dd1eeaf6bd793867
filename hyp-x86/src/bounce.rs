//! Exceptions, handed on to the guest's own handlers.
//!
//! The hypervisor writes a frame on the guest kernel's stack and lets it go on at the handler: from the kernel on the stack
//! that it is using, from user mode on the one that `stack_switch` named. From the lowest address up the frame holds rcx, r11,
//! an error code if the exception has one, and what the processor would push. The saved code segment says in its lowest
//! two bits which mode was interrupted (0 kernel, 3 user), and in bits 32 to 39 the event mask as it was.

use hyp_core::Vcpu;
use hyp_core::address::GuestVirtual;
use hyp_core::machine::{FrameMemory, GuestMemory};
use hyp_x86::layout;
use penumbra_abi::x86_64::{FLAT_RING3_CS64, FLAT_RING3_SS64, IretContext};
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;
use zerocopy::{FromZeros, IntoBytes};

use crate::context::{BY_IRET, FLAG_INTERRUPT, GuestContext};
use crate::machine::{HYPERVISOR, X86};
use crate::{cpu, trap};

/// Flags that a guest may have: arithmetic, trap, direction, resume, alignment check, identification; and the always-one bit.
const GUEST_FLAGS: u64 = 0x0025_0dd7;
/// Flags that are off in a handler: trap, nested task, resume, alignment check, virtual-8086.
const CLEARED_IN_HANDLER: u64 = 0x0007_4100;
/// In a page fault's error code: the access was a user's.
const ERROR_USER: u64 = 1 << 2;
/// In a trap handler's flags: mask events.
const MASK_EVENTS: u8 = 1 << 2;
/// Within `struct vcpu_info`: the event mask, and the faulting address.
const VCPU_INFO_MASK: usize = 1;
const VCPU_INFO_CR2: usize = 16;

/// Words of the longest frame.
const LONGEST: usize = 8;

/// Hands an exception on; ends the domain if it has no handler, or no stack for it.
pub fn exception(vcpu: &'static Vcpu<X86>, vector: u64, error: Option<u64>, address: Option<u64>) {
    let context = vcpu.context();
    let Some(handler) = context.traps.get(vector as usize).filter(|handler| handler.address.get() != 0)
    else {
        return trap::unhandled(vcpu, vector, address);
    };
    let user = context.user_mode.get();
    // The processor says "user" of everything in ring 3; the guest means its own user mode.
    let error = match (error, address) {
        (Some(error), Some(_)) if !user => Some(error & !ERROR_USER),
        _ => error,
    };
    if let Some(address) = address {
        write_info(vcpu, VCPU_INFO_CR2, address.as_bytes());
    }
    let mask = handler.flags.get() & MASK_EVENTS != 0;
    if push_frame(vcpu, error, mask).is_none() {
        return HYPERVISOR
            .kill(vcpu, format_args!("no stack for exception {vector} at {:#x}", context.frame.rsp.get()));
    }
    context.frame.rip.set(handler.address.get());
}

/// A system call from user mode, which goes to the kernel's callback.
pub fn system_call(vcpu: &'static Vcpu<X86>) {
    let context = vcpu.context();
    let callback = context.callbacks.syscall.get();
    if callback == 0 || push_frame(vcpu, None, true).is_none() {
        return HYPERVISOR.kill(vcpu, format_args!("a system call without a callback or a stack for it"));
    }
    context.frame.rip.set(callback);
}

/// Writes the frame and makes the context that of the kernel's handler, but for the handler's address.
fn push_frame(vcpu: &'static Vcpu<X86>, error: Option<u64>, mask: bool) -> Option<()> {
    let context = vcpu.context();
    let frame = &context.frame;
    let user = context.user_mode.get();
    let stack = if user { context.kernel_stack.get() } else { frame.rsp.get() };
    if user {
        change_mode(vcpu, false);
    }
    let masked = read_mask(vcpu);
    let cs = frame.cs.get() & !3 | if user { 3 } else { 0 } | u64::from(masked) << 32;
    let rflags = frame.rflags.get() & !FLAG_INTERRUPT | if masked == 0 { FLAG_INTERRUPT } else { 0 };
    let mut words = [0; LONGEST];
    let saved = [frame.rcx.get(), frame.r11.get()].into_iter().chain(error);
    let pushed = [frame.rip.get(), cs, rflags, frame.rsp.get(), frame.ss.get()];
    let mut count = 0;
    for (slot, word) in words.iter_mut().zip(saved.chain(pushed)) {
        *slot = word;
        count += 1;
    }
    let words = words.get(..count)?;
    let bottom = (stack & !15).checked_sub(words.len() as u64 * 8)?;
    HYPERVISOR.machine().write_guest(GuestVirtual::new(bottom), words.as_bytes()).ok()?;
    if mask {
        write_info(vcpu, VCPU_INFO_MASK, &[1]);
    }
    frame.rsp.set(bottom);
    frame.ss.set(FLAT_RING3_SS64.into());
    frame.cs.set(FLAT_RING3_CS64.into());
    frame.rflags.set(frame.rflags.get() & !CLEARED_IN_HANDLER);
    frame.vector.set(BY_IRET);
    Some(())
}

/// `iret`: takes a context from the kernel's stack. `None`: there is none that could be used.
pub fn iret(vcpu: &'static Vcpu<X86>) -> Option<()> {
    let context = vcpu.context();
    let mut wanted = IretContext::new_zeroed();
    let from = GuestVirtual::new(context.frame.rsp.get());
    HYPERVISOR.machine().read_guest(from, wanted.as_mut_bytes()).ok()?;
    if !layout::is_canonical(wanted.rip) {
        return None;
    }
    let user = wanted.cs & 3 == 3;
    if user {
        vcpu.user_root()?;
        change_mode(vcpu, true);
    }
    write_info(vcpu, VCPU_INFO_MASK, &[u8::from(wanted.rflags & FLAG_INTERRUPT == 0)]);
    restore(context, &wanted);
    Some(())
}

fn restore(context: &GuestContext, wanted: &IretContext) {
    let frame = &context.frame;
    frame.rax.set(wanted.rax);
    frame.r11.set(wanted.r11);
    frame.rcx.set(wanted.rcx);
    frame.rip.set(wanted.rip);
    // Whatever the segments are, they are ring 3's: a wrong selector then faults on the way out.
    frame.cs.set(wanted.cs & 0xffff | 3);
    frame.rflags.set(wanted.rflags & GUEST_FLAGS | FLAG_INTERRUPT);
    frame.rsp.set(wanted.rsp);
    frame.ss.set(wanted.ss & 0xffff | 3);
    frame.vector.set(BY_IRET);
}

/// Between the guest's kernel and its users: another root, another base of `gs`.
fn change_mode(vcpu: &'static Vcpu<X86>, user: bool) {
    let context = vcpu.context();
    context.user_mode.set(user);
    let other = context.segments.other_gs_base.replace(GsBase::read().as_u64());
    GsBase::write(VirtAddr::new_truncate(other));
    cpu::load_roots_of(vcpu);
}

fn read_mask(vcpu: &Vcpu<X86>) -> u8 {
    let mut mask = [0];
    if let Some((frame, offset)) = info(vcpu) {
        HYPERVISOR.machine().read_frame(frame, offset + VCPU_INFO_MASK, &mut mask);
    }
    mask[0]
}

fn write_info(vcpu: &Vcpu<X86>, field: usize, bytes: &[u8]) {
    if let Some((frame, offset)) = info(vcpu) {
        HYPERVISOR.machine().write_frame(frame, offset + field, bytes);
    }
}

/// Where the vCPU's `vcpu_info` lies.
fn info(vcpu: &Vcpu<X86>) -> Option<(hyp_core::address::MachineFrame, usize)> {
    vcpu.info_place()
}
