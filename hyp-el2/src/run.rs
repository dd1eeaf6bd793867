//! What happens when a guest comes to EL2, and who runs afterwards.
//!
//! `vectors.s` calls one of the `guest_*` functions with the registers saved; each returns the context of the vCPU to run next,
//! most often the same one.

use core::sync::atomic::{AtomicU32, Ordering};

use aarch64_cpu::registers::{ELR_EL1, ESR_EL2, Readable, SPSR_EL1, VBAR_EL1};
use hyp_core::hypercall::immediate;
use hyp_core::{Next, Vcpu};
use hyp_el2::injection;
use hyp_el2::syndrome::Syndrome;
use penumbra_abi::hypercall as number;

use crate::board::{self, CONSOLE, INTERRUPTS};
use crate::context::GuestContext;
use crate::cpu::Cpu;
use crate::machine::El2;
use crate::traps::{self, Afterwards};
use crate::{HYPERVISOR, oracle, roots};

/// INTIDs of the tick and of the UART (0: polled only).
static TICK: AtomicU32 = AtomicU32::new(0);
static UART: AtomicU32 = AtomicU32::new(0);

/// More interrupts than this in a row, and the guest gets its turn first.
const MOST_INTERRUPTS: usize = 16;
/// More input than this at once, and the rest waits for the next tick.
const MOST_INPUT: usize = 64;

/// Remembers which interrupts mean what.
pub fn set_interrupts(tick: u32, uart: Option<u32>) {
    // Relaxed, as where they are read: numbers, set before interrupts are taken.
    TICK.store(tick, Ordering::Relaxed);
    UART.store(uart.unwrap_or(0), Ordering::Relaxed);
}

/// A hypercall. Returns the context to load, or `None` if the same vCPU just goes on: what has changed of its registers is
/// among those that `vectors.s` loads in any case (x0 to x19, x30, the program counter).
#[unsafe(no_mangle)]
extern "C" fn guest_hypercall(
    context: &'static GuestContext,
    cpu: &'static Cpu,
) -> Option<&'static GuestContext> {
    match cpu.entered() {
        Some(vcpu) => hypercall_of(vcpu, context, cpu),
        None => measured_hypercall(context, cpu),
    }
}

#[cold]
#[inline(never)]
fn measured_hypercall(context: &'static GuestContext, cpu: &'static Cpu) -> Option<&'static GuestContext> {
    HYPERVISOR.stretch(|| match cpu.current() {
        Some(vcpu) => hypercall_of(vcpu, context, cpu),
        None => Some(next(cpu)),
    })
}

#[inline(always)]
fn hypercall_of(
    vcpu: &'static Vcpu<El2>,
    context: &'static GuestContext,
    cpu: &'static Cpu,
) -> Option<&'static GuestContext> {
    let number = context.register(16);
    match immediate(number, context.register(0)) {
        Some(answer) => context.set_register(0, answer),
        None => carry_out(cpu, vcpu, context, number),
    }
    oracle::check(vcpu);
    if HYPERVISOR.reschedule_wanted() {
        return Some(next(cpu));
    }
    show_upcall(cpu, vcpu);
    None
}

#[inline(always)]
fn carry_out(cpu: &Cpu, vcpu: &Vcpu<El2>, context: &GuestContext, number: u64) {
    match number {
        number::MMU_UPDATE => at_once_or_fully::<{ number::MMU_UPDATE }>(cpu, vcpu, context),
        number::MMUEXT_OP => at_once_or_fully::<{ number::MMUEXT_OP }>(cpu, vcpu, context),
        _ => carry_out_fully(cpu, vcpu, context),
    }
}

/// A hypercall that can nearly always be done at once. A function for each.
#[inline(never)]
fn at_once_or_fully<const NUMBER: u64>(cpu: &Cpu, vcpu: &Vcpu<El2>, context: &GuestContext) {
    if !HYPERVISOR.is_done_at_once(cpu.domain(), vcpu, NUMBER, context.arguments()) {
        carry_out_fully(cpu, vcpu, context);
    }
}

#[inline(never)]
fn carry_out_fully(cpu: &Cpu, vcpu: &Vcpu<El2>, context: &GuestContext) {
    if let Some(domain) = cpu.domain() {
        HYPERVISOR.hypercall_of(domain, vcpu, context.register(16), context.arguments());
    }
}

/// An upcall is an interrupt of the guest's own: as long as an event is pending, `HCR_EL2.VI` is set, and PSTATE.I is the mask. The
/// guest's handler clears `evtchn_upcall_pending`, handles what is pending, and makes a hypercall, by which this is looked
/// at again. Costs two loads when there is nothing.
#[inline(always)]
fn show_upcall(cpu: &Cpu, vcpu: &Vcpu<El2>) {
    if vcpu.upcall_wanted() | cpu.virtual_interrupt() {
        change_upcall(cpu, vcpu);
    }
}

#[inline(never)]
fn change_upcall(cpu: &Cpu, vcpu: &Vcpu<El2>) {
    cpu.show_virtual_interrupt(HYPERVISOR.upcall_due(vcpu));
}

/// Something that traps, and is no hypercall.
#[unsafe(no_mangle)]
extern "C" fn guest_synchronous(context: &'static GuestContext, cpu: &'static Cpu) -> &'static GuestContext {
    match cpu.entered() {
        Some(vcpu) => synchronous_of(vcpu, context, cpu),
        None => HYPERVISOR.stretch(|| match cpu.current() {
            Some(vcpu) => synchronous_of(vcpu, context, cpu),
            None => next(cpu),
        }),
    }
}

fn synchronous_of(
    vcpu: &'static Vcpu<El2>,
    context: &'static GuestContext,
    cpu: &'static Cpu,
) -> &'static GuestContext {
    let syndrome = ESR_EL2.get();
    if oracle::judge(vcpu, Syndrome(syndrome)) {
        return resume(cpu, context);
    }
    if injection::is_aarch32(context.pstate()) {
        return kill(cpu, context, AARCH32);
    }
    match traps::handle(vcpu, context, Syndrome(syndrome)) {
        Afterwards::Resume => resume(cpu, context),
        Afterwards::Yield => next(cpu),
        Afterwards::Wait => wait(cpu, vcpu),
    }
}

/// An interrupt: all of them are the hypervisor's.
#[unsafe(no_mangle)]
extern "C" fn guest_interrupt(context: &'static GuestContext, cpu: &'static Cpu) -> &'static GuestContext {
    if HYPERVISOR.measures_stretches() {
        return HYPERVISOR.stretch(|| interrupt_of(context, cpu));
    }
    interrupt_of(context, cpu)
}

fn interrupt_of(context: &'static GuestContext, cpu: &'static Cpu) -> &'static GuestContext {
    let ticked = handle_interrupts();
    if injection::is_aarch32(context.pstate()) {
        return kill(cpu, context, AARCH32);
    }
    if ticked
        && let Some(vcpu) = cpu.current()
        && is_hopeless(context)
    {
        HYPERVISOR.kill(vcpu, format_args!("a fault with no handler"));
    }
    resume(cpu, context)
}

/// An error that the memory system reports late.
#[unsafe(no_mangle)]
extern "C" fn guest_system_error(context: &'static GuestContext, cpu: &'static Cpu) -> &'static GuestContext {
    kill(cpu, context, "a system error (SError)")
}

/// Never called: these vectors are for an EL1 in AArch32, which `HCR_EL2.RW` rules out.
#[unsafe(no_mangle)]
extern "C" fn guest_aarch32(context: &'static GuestContext, cpu: &'static Cpu) -> &'static GuestContext {
    kill(cpu, context, AARCH32)
}

/// Why a domain ends that is found with a user program in AArch32, whatever brought it to EL2 (it comes through the same vectors as
/// AArch64). The ID registers say that there is no such state; see `control`.
const AARCH32: &str = "AArch32 state, which guests don't have";

#[cold]
fn kill(cpu: &'static Cpu, context: &'static GuestContext, reason: &str) -> &'static GuestContext {
    if let Some(vcpu) = cpu.current() {
        HYPERVISOR.kill(vcpu, format_args!("{reason}"));
    }
    resume(cpu, context)
}

/// Back to the same vCPU, or to another one if it is time.
fn resume(cpu: &'static Cpu, context: &'static GuestContext) -> &'static GuestContext {
    if HYPERVISOR.reschedule_wanted() {
        return next(cpu);
    }
    if let Some(vcpu) = cpu.current() {
        show_upcall(cpu, vcpu);
    }
    context
}

/// Whether the guest takes the same exception for ever, because there is nothing at its vector.
fn is_hopeless(context: &GuestContext) -> bool {
    let (vectors, exception_return) = (VBAR_EL1.get(), ELR_EL1.get());
    injection::has_no_handler(context.pc(), context.pstate(), vectors, exception_return, SPSR_EL1.get())
}

/// Deals with what is pending. `true`: the tick was among it.
fn handle_interrupts() -> bool {
    let mut ticked = false;
    for _ in 0..MOST_INTERRUPTS {
        let Some(interrupt) = INTERRUPTS.take() else { break };
        if interrupt.number() == TICK.load(Ordering::Relaxed) {
            board::arm_tick();
            take_input();
            HYPERVISOR.tick();
            ticked = true;
        } else if interrupt.number() == UART.load(Ordering::Relaxed) {
            take_input();
        }
        INTERRUPTS.end(interrupt);
    }
    ticked
}

fn take_input() {
    for byte in core::iter::from_fn(|| CONSOLE.read()).take(MOST_INPUT) {
        HYPERVISOR.console_input(byte);
    }
}

/// The vCPU has nothing to do until an interrupt: others go first, and if there are none, the CPU sleeps.
fn wait(cpu: &'static Cpu, vcpu: &'static Vcpu<El2>) -> &'static GuestContext {
    let context = next(cpu);
    // A pending event ends the wait, masked or not, as an interrupt does.
    if core::ptr::eq(context, vcpu.context()) && !HYPERVISOR.upcall_due(vcpu) {
        HYPERVISOR.preemption_point(board::wait_for_interrupt);
        handle_interrupts();
        return resume(cpu, context);
    }
    context
}

/// Chooses who runs next, and gets it ready.
pub fn next(cpu: &'static Cpu) -> &'static GuestContext {
    loop {
        match HYPERVISOR.schedule() {
            Next::Run(vcpu) => {
                switch(cpu, vcpu);
                cpu.show_virtual_interrupt(HYPERVISOR.upcall_due(vcpu));
                return vcpu.context();
            }
            Next::Idle => idle(cpu),
        }
    }
}

/// Gives the CPU to `next`.
fn switch(cpu: &'static Cpu, next: &'static Vcpu<El2>) {
    cpu.set_entered();
    if cpu.current().is_some_and(|current| core::ptr::eq(current, next)) {
        return;
    }
    if let Some(current) = cpu.current() {
        current.context().save();
    }
    next.context().load();
    roots::switch_to(next);
    cpu.set_current(Some(next));
    HYPERVISOR.switched();
}

/// Nobody can run: leaves the last guest's roots, does background work, and sleeps when there is none.
fn idle(cpu: &'static Cpu) {
    if let Some(current) = cpu.current() {
        current.context().save();
        roots::leave();
        cpu.set_current(None);
        HYPERVISOR.switched();
    }
    loop {
        // What has come meanwhile goes before the next piece of work.
        HYPERVISOR.preemption_point(|| ());
        handle_interrupts();
        if HYPERVISOR.reschedule_wanted() {
            return;
        }
        if !HYPERVISOR.background() {
            HYPERVISOR.preemption_point(board::wait_for_interrupt);
        }
    }
}
