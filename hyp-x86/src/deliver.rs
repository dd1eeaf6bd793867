//! What comes to a guest's kernel by itself, on the way out: events, non-maskable interrupts, and word that a segment register is lost.
//!
//! Each gets a frame as an exception does (`bounce.rs`). None can come while tables are unhooked; it stays due then.

use hyp_core::Vcpu;

use crate::access::{self, Hooked};
use crate::bounce::{Interrupted, Target, arrive, enter_kernel, handler, leave_user_mode, no_stack, saved};
use crate::context::GuestContext;
use crate::machine::X86;
use crate::non_maskable;

/// A segment register of the guest's can't be loaded with what it held before others had the CPU: its failsafe callback gets what the
/// registers were meant to hold, and compares. `false`: tables are unhooked, and it waits.
#[cold]
#[inline(never)]
#[must_use]
pub fn failsafe(vcpu: &'static Vcpu<X86>) -> bool {
    let Some(hooked) = Hooked::now() else { return false };
    let context = vcpu.context();
    context.lost_segment.set(false);
    let (of_user, mode) = interrupted(vcpu, context);
    if enter_failsafe(hooked, context, mode, context.segments.selectors()).is_none() {
        no_stack(vcpu, of_user, format_args!("the failsafe callback"));
    }
    true
}

/// The frame: as for an exception, with ds, es, fs and gs between r11 and rip.
fn enter_failsafe(
    _: Hooked,
    context: &GuestContext,
    interrupted: Interrupted,
    [ds, es, fs, gs]: [u16; 4],
) -> Option<()> {
    let frame = &context.frame;
    let saved = saved(context, &interrupted)?;
    let words = [
        frame.rcx.get(),
        frame.r11.get(),
        ds.into(),
        es.into(),
        fs.into(),
        gs.into(),
        frame.rip.get(),
        saved.cs,
        saved.flags,
        frame.rsp.get(),
        frame.ss.get(),
    ];
    let bottom = (interrupted.stack & !15).wrapping_sub(words.len() as u64 * 8);
    for (index, word) in (0u64..).zip(words) {
        access::write(bottom.wrapping_add(index * 8), &word.to_le_bytes()).ok()?;
    }
    let callbacks = &context.callbacks;
    let target = Target { address: callbacks.failsafe.get(), mask: callbacks.failsafe_masks.get() };
    arrive(context, &target, bottom)
}

/// A non-maskable interrupt is due: the kernel's handler gets it. `false`: tables are unhooked, and it stays due.
#[cold]
#[inline(never)]
#[must_use]
pub fn non_maskable(vcpu: &'static Vcpu<X86>) -> bool {
    let context = vcpu.context();
    let Some(handler) = handler(context, non_maskable::VECTOR) else {
        context.non_maskable.take(false);
        return true;
    };
    let Some(hooked) = Hooked::now() else { return false };
    context.non_maskable.take(true);
    let (of_user, mode) = interrupted(vcpu, context);
    if enter_kernel(hooked, context, Target::of(handler), mode, None).is_none() {
        no_stack(vcpu, of_user, format_args!("a non-maskable interrupt"));
    }
    true
}

/// An event is pending, and not masked: the kernel's event callback gets it, with events masked. A guest without a callback
/// polls, and is left alone. `false`: tables are unhooked, and the event stays pending.
#[must_use]
pub fn upcall(vcpu: &'static Vcpu<X86>) -> bool {
    let context = vcpu.context();
    let callback = context.callbacks.event.get();
    if callback == 0 {
        return true;
    }
    let Some(hooked) = Hooked::now() else { return false };
    if context.user_mode.get() {
        upcall_of_user(hooked, vcpu, context, callback);
    } else {
        upcall_to::<false>(hooked, vcpu, context, callback, Interrupted::kernel(context));
    }
    true
}

#[inline(never)]
fn upcall_of_user(hooked: Hooked, vcpu: &'static Vcpu<X86>, context: &GuestContext, callback: u64) {
    let mode = leave_user_mode(vcpu, context);
    upcall_to::<true>(hooked, vcpu, context, callback, mode);
}

#[inline(always)]
fn upcall_to<const OF_USER: bool>(
    hooked: Hooked,
    vcpu: &Vcpu<X86>,
    context: &GuestContext,
    callback: u64,
    mode: Interrupted,
) {
    let target = Target { address: callback, mask: true };
    if enter_kernel(hooked, context, target, mode, None).is_none() {
        no_stack(vcpu, OF_USER, format_args!("an event"));
    }
}

/// Whether it came from user mode, which is left then; and what was interrupted.
fn interrupted(vcpu: &'static Vcpu<X86>, context: &GuestContext) -> (bool, Interrupted) {
    let of_user = context.user_mode.get();
    (of_user, if of_user { leave_user_mode(vcpu, context) } else { Interrupted::kernel(context) })
}
