//! Hypercalls: the registers in which they come, and those that are x86's own.
//!
//! Number in rax, arguments in rdi, rsi, rdx, r10, r8, r9, result in rax; `syscall` itself changes rcx and r11.

use hyp_core::Vcpu;
use hyp_core::hypercall::{Arguments, Call, Failure, Outcome, immediate, values};
use hyp_core::paging::Budget;
use hyp_x86::{descriptor_tables, layout};
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::x86_64::{SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER, SEGBASE_GS_USER_SEL, TrapInfo};
use x86_64::VirtAddr;
use x86_64::registers::model_specific::{FsBase, GsBase};

use crate::context::GuestContext;
use crate::machine::{HYPERVISOR, X86};
use crate::{bounce, cpu, guest_descriptors, trap};

/// Most entries of a trap table: one for each vector, and the end.
const MOST_TRAPS: u64 = 257;
/// What each of them costs of the budget.
const TRAP_COST: u32 = 1;

/// Carries out the hypercall that the guest's kernel asks for. Returns who goes on, as [`trap::go_on`].
#[inline(always)]
pub fn dispatch(vcpu: &'static Vcpu<X86>, context: &'static GuestContext) -> *const GuestContext {
    let frame = &context.frame;
    let number = frame.rax.get();
    // The one that returns nothing: every register is the context's that it loads.
    if number == number::IRET {
        return bounce::iret(vcpu, context);
    }
    if let Some(answer) = immediate(number, frame.rdi().get()) {
        frame.rax.set(answer);
        return trap::go_on(context);
    }
    carry_out(vcpu, context)
}

#[inline(never)]
fn carry_out(vcpu: &'static Vcpu<X86>, context: &'static GuestContext) -> *const GuestContext {
    let frame = &context.frame;
    if let Some(domain) = cpu::domain() {
        HYPERVISOR.hypercall_of(domain, vcpu, frame.rax.get(), &frame.arguments);
    }
    trap::go_on(context)
}

/// The hypercalls that only x86 has, alone or as part of a multicall.
#[inline(always)]
pub fn own(call: &Call<'_, X86>, number: u64, arguments: &Arguments) -> Outcome {
    // Told apart here, so that a number that is nobody's costs no stack.
    match number {
        number::SET_TRAP_TABLE
        | number::SET_GDT
        | number::UPDATE_DESCRIPTOR
        | number::STACK_SWITCH
        | number::SET_CALLBACKS
        | number::CALLBACK_OP
        | number::FPU_TASKSWITCH
        | number::SET_SEGMENT_BASE => carry_out_own(call, number, arguments),
        _ => Err(Errno::ENOSYS.into()),
    }
}

#[inline(never)]
fn carry_out_own(call: &Call<'_, X86>, number: u64, arguments: &Arguments) -> Outcome {
    let context = call.vcpu.context();
    let [first, second, ..] = values(arguments);
    if number == number::SET_GDT && call.budget.lacks(descriptor_tables::cost(second)) {
        return Err(Failure::Again(values(arguments)));
    }
    match number {
        number::SET_TRAP_TABLE => set_trap_table(call, context, first),
        number::SET_GDT => guest_descriptors::set_global(call, first, second),
        number::UPDATE_DESCRIPTOR => descriptor_tables::update(call, first, second),
        number::STACK_SWITCH => stack_switch(context, first, second),
        number::SET_CALLBACKS => set_callbacks(context, values(arguments)),
        number::CALLBACK_OP => callback_op(call, context, first, second),
        // The floating-point unit is switched at once, so there is nothing to be told.
        number::FPU_TASKSWITCH => Ok(()),
        number::SET_SEGMENT_BASE => set_segment_base(context, first, second),
        _ => Err(Errno::ENOSYS),
    }?;
    Ok(0)
}

/// Registers handlers; a null table takes all away. Handlers before a bad entry stay registered, as in Xen.
fn set_trap_table(call: &Call<'_, X86>, context: &GuestContext, table: u64) -> Result<(), Errno> {
    if table == 0 {
        call.budget.charge(Budget::OPERATION);
        context.traps.iter().for_each(|trap| trap.address.set(0));
        return Ok(());
    }
    for index in 0..MOST_TRAPS {
        call.budget.charge(TRAP_COST);
        let from = table.checked_add(index * size_of::<TrapInfo>() as u64).ok_or(Errno::EFAULT)?;
        let entry: TrapInfo = call.read(from)?;
        if entry.address == 0 {
            return Ok(());
        }
        let handler = context.traps.get(usize::from(entry.vector)).ok_or(Errno::EINVAL)?;
        handler.address.set(code_address(entry.address)?);
        handler.flags.set(entry.flags);
    }
    Err(Errno::EINVAL)
}

/// A handler's address: any canonical one; it is the guest's own loss if it isn't its own.
fn code_address(address: u64) -> Result<u64, Errno> {
    if layout::is_canonical(address) { Ok(address) } else { Err(Errno::EINVAL) }
}

/// The selector is always the flat one.
fn stack_switch(context: &GuestContext, _selector: u64, stack: u64) -> Result<(), Errno> {
    context.kernel_stack.set(code_address(stack)?);
    Ok(())
}

fn set_callbacks(context: &GuestContext, [event, failsafe, syscall, ..]: [u64; 6]) -> Result<(), Errno> {
    let [event, failsafe, syscall] = [code_address(event)?, code_address(failsafe)?, code_address(syscall)?];
    context.callbacks.event.set(event);
    context.callbacks.failsafe.set(failsafe);
    context.callbacks.syscall.set(syscall);
    Ok(())
}

/// `callback_op`: register (0) and unregister (1), for the event (0), failsafe (1) and system-call (2) callbacks.
fn callback_op(
    call: &Call<'_, X86>,
    context: &GuestContext,
    command: u64,
    argument: u64,
) -> Result<(), Errno> {
    // struct callback_register: type (2 bytes), flags (2 bytes), padding, address.
    let [kind, address]: [u64; 2] = call.read(argument)?;
    let address = match command {
        0 => code_address(address)?,
        1 => 0,
        _ => return Err(Errno::ENOSYS),
    };
    let callback = match kind & 0xffff {
        0 => &context.callbacks.event,
        1 => &context.callbacks.failsafe,
        2 => &context.callbacks.syscall,
        _ => return Err(Errno::ENOSYS),
    };
    callback.set(address);
    Ok(())
}

fn set_segment_base(context: &GuestContext, which: u64, base: u64) -> Result<(), Errno> {
    if which == SEGBASE_GS_USER_SEL {
        // Only the null selector can be had until a guest has a descriptor table of its own.
        return if base & 0xffff == 0 { Ok(()) } else { Err(Errno::EINVAL) };
    }
    let base = code_address(base)?;
    match which {
        SEGBASE_FS => FsBase::write(VirtAddr::new_truncate(base)),
        SEGBASE_GS_KERNEL => GsBase::write(VirtAddr::new_truncate(base)),
        SEGBASE_GS_USER => context.segments.other_gs_base.set(base),
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}
