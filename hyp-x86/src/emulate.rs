//! Instructions that are carried out for a guest: see `hyp_x86::decode` for which.

use core::arch::x86_64::__cpuid_count;
use core::sync::atomic::Ordering;

use hyp_core::Vcpu;
use hyp_core::hypercall::RootWrite;
use hyp_x86::control::CR0;
use hyp_x86::cpuid;
use hyp_x86::decode::Instruction;

use crate::access::Hooked;
use crate::context::GuestContext;
use crate::machine::{HYPERVISOR, X86};
use crate::ports::Accessed;
use crate::{clock, loaded, msr, ports};

/// CR0: floating point belongs to another task, and faults.
const TASK_SWITCHED: u64 = 1 << 3;
/// CR4 as a guest sees it: physical address extension, SSE.
const GUEST_CR4: u64 = 0x0620;
/// CR4: ring 3 can't read the time-stamp counter. A guest may say so for its users.
const COUNTER_FORBIDDEN: u64 = 1 << 2;

/// Carries an instruction out.
pub fn carry_out(
    vcpu: &'static Vcpu<X86>,
    context: &GuestContext,
    instruction: Instruction,
    hooked: Hooked,
) -> Accessed {
    match instruction {
        Instruction::In { port, size } => ports::read(vcpu, context, port, size),
        Instruction::Out { port, size } => ports::write(vcpu, context, port, size),
        Instruction::InOutString(access) => ports::string(vcpu, context, access, hooked),
        // Users may have it as well.
        Instruction::CpuId => {
            cpuid(vcpu, context);
            Accessed::Done
        }
        _ if context.user_mode.get() => Accessed::Refused,
        Instruction::WriteControl { control: 3, general } => {
            write_root(vcpu, context.frame.general(general).get())
        }
        other => match carry_out_for_kernel(vcpu, context, other) {
            Some(()) => Accessed::Done,
            None => Accessed::Refused,
        },
    }
}

/// `None`: it stays a fault of the guest's.
fn carry_out_for_kernel(vcpu: &Vcpu<X86>, context: &GuestContext, instruction: Instruction) -> Option<()> {
    let frame = &context.frame;
    match instruction {
        Instruction::WriteMsr => {
            let value = frame.rdx().get() << 32 | frame.rax.get() & 0xffff_ffff;
            msr::write(vcpu, frame.rcx.get() as u32, value)?;
        }
        Instruction::ReadMsr => put_halves(context, msr::read(vcpu, frame.rcx.get() as u32)?),
        Instruction::ReadControl { control, general } => {
            frame.general(general).set(read_control(vcpu, context, control)?);
        }
        Instruction::WriteControl { control, general } => {
            write_control(context, control, frame.general(general).get())?;
        }
        Instruction::ReadDebug { debug, general } => {
            frame.general(general).set(context.debug.get(debug.into())?);
        }
        Instruction::WriteDebug { debug, general } => {
            context.debug.set(debug.into(), frame.general(general).get()).ok()?;
            loaded::load_debug_registers(context);
        }
        Instruction::ClearTaskSwitched => loaded::set_task_switched(context, false),
        Instruction::ReadCounter { with_processor } => {
            put_halves(context, clock::counter());
            if with_processor {
                frame.rcx.set(0);
            }
        }
        // The guest's interrupt mask is a word of shared memory; the flag means nothing in ring 3. Caches hold nothing that
        // memory needs to have.
        Instruction::DisableInterrupts | Instruction::EnableInterrupts | Instruction::WriteBackCaches => {}
        _ => return None,
    }
    Some(())
}

/// A value in edx and eax.
fn put_halves(context: &GuestContext, value: u64) {
    context.frame.rax.set(value & 0xffff_ffff);
    context.frame.rdx().set(value >> 32);
}

fn cpuid(vcpu: &Vcpu<X86>, context: &GuestContext) {
    let frame = &context.frame;
    let (leaf, subleaf) = (frame.rax.get() as u32, frame.rcx.get() as u32);
    let [a, b, c, d] = match leaf {
        cpuid::XEN_LEAVES..cpuid::XEN_LEAVES_END => cpuid::own(leaf, subleaf, cpuid_machine()),
        _ => {
            let host = __cpuid_count(leaf, subleaf);
            cpuid::visible(leaf, subleaf, [host.eax, host.ebx, host.ecx, host.edx], vcpu.index())
        }
    };
    frame.rax.set(a.into());
    frame.rbx.set(b.into());
    frame.rcx.set(c.into());
    frame.rdx().set(d.into());
}

fn cpuid_machine() -> cpuid::Machine {
    let scale = clock::of_guests().scale;
    let last = HYPERVISOR.frames().extent().1.saturating_sub(1);
    cpuid::Machine {
        counter_khz: u32::try_from(clock::frequency() / 1000).unwrap_or(u32::MAX),
        multiplier: scale.multiplier,
        shift: scale.shift,
        address_bits: u64::BITS - last.leading_zeros() + 12,
    }
}

fn read_control(vcpu: &Vcpu<X86>, context: &GuestContext, control: u8) -> Option<u64> {
    match control {
        0 => Some(CR0 | if context.task_switched.get() { TASK_SWITCHED } else { 0 }),
        // Relaxed: a word between the guest and itself.
        2 => context.info().map(|info| info.cr2.load(Ordering::Relaxed)),
        3 => vcpu.kernel_root().map(|root| root.start().bytes()),
        4 => Some(GUEST_CR4 | if context.counter_forbidden.get() { COUNTER_FORBIDDEN } else { 0 }),
        _ => None,
    }
}

/// Control registers but for the root's: of 0 a guest may change the task-switched flag, of 4 what becomes of its users' `rdtsc`. Other bits
/// of 4 are ignored, as in Xen.
fn write_control(context: &GuestContext, control: u8, value: u64) -> Option<()> {
    match control {
        0 if (value ^ CR0) & !TASK_SWITCHED == 0 => {
            loaded::set_task_switched(context, value & TASK_SWITCHED != 0);
        }
        // Relaxed: as above.
        2 => context.info()?.cr2.store(value, Ordering::Relaxed),
        4 => {
            context.counter_forbidden.set(value & COUNTER_FORBIDDEN != 0);
            loaded::load_counter_right(context);
        }
        _ => return None,
    }
    Some(())
}

/// Another root for the kernel, by its machine address, as `MMUEXT_NEW_BASEPTR` has it by its frame.
fn write_root(vcpu: &Vcpu<X86>, value: u64) -> Accessed {
    match HYPERVISOR.write_kernel_root(vcpu, value >> 12) {
        RootWrite::Done => Accessed::Done,
        RootWrite::Again => Accessed::Again,
        RootWrite::Refused => Accessed::Refused,
    }
}
