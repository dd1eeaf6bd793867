//! Hypercalls: the registers in which they come, and those that are x86's own.
//!
//! Number in rax, arguments in rdi, rsi, rdx, r10, r8, r9, result in rax; `syscall` itself changes rcx and r11.

use hyp_core::Vcpu;
use hyp_core::hypercall::{Arguments, Call, Failure, Outcome, immediate, values};
use hyp_core::paging::Budget;
use hyp_x86::descriptor_tables;
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::x86_64::{SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER, SEGBASE_GS_USER_SEL, TrapInfo};

use crate::callbacks::{self, code_address};
use crate::context::GuestContext;
use crate::machine::{HYPERVISOR, X86};
use crate::{cpu, guest_descriptors, iret, loaded, ports, trap};

/// Most entries of a trap table: one for each vector, and the end.
const MOST_TRAPS: u64 = 257;
/// What each of them costs of the budget.
const TRAP_COST: u32 = 1;

/// Carries out the hypercall that the guest's kernel asks for. Returns who goes on, as [`trap::go_on`].
#[inline(always)]
pub fn dispatch(vcpu: &'static Vcpu<X86>, context: &'static GuestContext) -> *const GuestContext {
    let frame = &context.frame;
    let number = frame.rax.get();
    // By itself, and before the others, since what the core does at once for it is all that it mostly needs.
    if number == number::MMU_UPDATE {
        return at_once_or_fully::<{ number::MMU_UPDATE }>(vcpu, context);
    }
    // One comparison for all that have numbers above these.
    if number > AT_ONCE { carry_out(vcpu, context) } else { dispatch_other(vcpu, context) }
}

#[inline(never)]
fn dispatch_other(vcpu: &'static Vcpu<X86>, context: &'static GuestContext) -> *const GuestContext {
    let frame = &context.frame;
    let number = frame.rax.get();
    if number == number::MMUEXT_OP {
        return at_once_or_fully::<{ number::MMUEXT_OP }>(vcpu, context);
    }
    if let Some(answer) = immediate(number, frame.rdi().get()) {
        frame.rax.set(answer);
        return trap::go_on(context);
    }
    match number {
        // The one that returns nothing: every register is the context's that it loads.
        number::IRET => iret::iret(vcpu, context),
        number::SET_SEGMENT_BASE => set_segment_base_at_once(context),
        number::STACK_SWITCH => stack_switch_at_once(context),
        _ => carry_out(vcpu, context),
    }
}

/// The highest number of those that aren't carried out like the others.
const AT_ONCE: u64 = number::MMUEXT_OP;
const _: () = assert!(
    number::IRET <= AT_ONCE
        && number::STACK_SWITCH <= AT_ONCE
        && number::SET_SEGMENT_BASE <= AT_ONCE
        && number::XEN_VERSION <= AT_ONCE,
    "they are asked for below it"
);

/// A hypercall that can nearly always be done at once. A function for each.
#[inline(never)]
fn at_once_or_fully<const NUMBER: u64>(
    vcpu: &'static Vcpu<X86>,
    context: &'static GuestContext,
) -> *const GuestContext {
    if HYPERVISOR.is_done_at_once(cpu::domain(), vcpu, NUMBER, &context.frame.arguments) {
        return trap::go_on(context);
    }
    carry_out(vcpu, context)
}

/// What kernels ask for whenever they change from one process to another, and what concerns registers alone: no domain comes into it, no budget,
/// and no address of the guest's, so that its unhooked tables may stay where they are.
#[inline(never)]
fn set_segment_base_at_once(context: &GuestContext) -> *const GuestContext {
    let [which, base, ..] = values(&context.frame.arguments);
    finish(context, set_segment_base(which, base))
}

/// As [`set_segment_base_at_once`].
#[inline(never)]
fn stack_switch_at_once(context: &GuestContext) -> *const GuestContext {
    let [selector, stack, ..] = values(&context.frame.arguments);
    finish(context, stack_switch(context, selector, stack))
}

#[inline(always)]
fn finish(context: &GuestContext, result: Result<(), Errno>) -> *const GuestContext {
    context.frame.rax.set(result.map_or_else(Errno::to_return, |()| 0));
    trap::go_on(context)
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
        | number::NMI_OP
        | number::FPU_TASKSWITCH
        | number::SET_DEBUGREG
        | number::GET_DEBUGREG
        | number::PHYSDEV_OP
        | number::PLATFORM_OP
        | number::KEXEC_OP
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
        number::SET_CALLBACKS => {
            callbacks::set_all(context, values(arguments));
            Ok(())
        }
        number::CALLBACK_OP => callbacks::operation(call, context, first, second),
        number::NMI_OP => callbacks::non_maskable(call, context, first, second),
        number::FPU_TASKSWITCH => {
            loaded::set_task_switched(context, first as u32 != 0);
            Ok(())
        }
        number::SET_SEGMENT_BASE => set_segment_base(first, second),
        number::SET_DEBUGREG => set_debug_register(context, first, second),
        number::GET_DEBUGREG => return Ok(context.debug.get(first).ok_or(Errno::ENODEV)?),
        number::PHYSDEV_OP => ports::operation(call, context, first, second),
        // For the domain that has the devices; there is none.
        number::PLATFORM_OP | number::KEXEC_OP if !call.domain.is_control() => Err(Errno::EPERM),
        _ => Err(Errno::ENOSYS),
    }?;
    Ok(0)
}

/// Registers handlers; a null table takes all away. Handlers before a bad entry stay registered, as in Xen.
fn set_trap_table(call: &Call<'_, X86>, context: &GuestContext, table: u64) -> Result<(), Errno> {
    if table == 0 {
        call.budget.charge(Budget::OPERATION);
        context.traps.iter().for_each(|trap| trap.set(0, 0));
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
        handler.set(code_address(entry.address)?, entry.flags);
    }
    Err(Errno::EINVAL)
}

/// The selector is always the flat one.
#[inline(always)]
fn stack_switch(context: &GuestContext, _selector: u64, stack: u64) -> Result<(), Errno> {
    context.kernel_stack.set(code_address(stack)?);
    Ok(())
}

fn set_debug_register(context: &GuestContext, number: u64, value: u64) -> Result<(), Errno> {
    context.debug.set(number, value)?;
    loaded::load_debug_registers(context);
    Ok(())
}

#[inline(always)]
fn set_segment_base(which: u64, base: u64) -> Result<(), Errno> {
    if which == SEGBASE_GS_USER_SEL {
        loaded::load_user_gs(base as u16);
        return Ok(());
    }
    let base = code_address(base)?;
    match which {
        SEGBASE_FS => loaded::set_fs_base(base),
        SEGBASE_GS_KERNEL => loaded::set_gs_base(base),
        SEGBASE_GS_USER => loaded::set_other_gs_base(base),
        _ => return Err(Errno::EINVAL),
    }
    Ok(())
}
