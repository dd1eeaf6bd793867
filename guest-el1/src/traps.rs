//! Fault handlers: the kernel's own vectors, which the hypervisor never sees.
//!
//! In direct mode a stage-1 fault goes straight to EL1. Two outcomes: a read or write that was meant to be tried goes
//! on at its fix-up address; any other exception is reported and crashes the domain.

use core::arch::{asm, global_asm};
use core::sync::atomic::AtomicU64;
use guest_core::hypercalls;
use penumbra_abi::sched::SHUTDOWN_CRASH;

use crate::bare::{self, Bare};
use crate::machine::Arm;

/// Where a tried access goes on when it faults; 0 when none is being tried.
pub(crate) static FIXUP: AtomicU64 = AtomicU64::new(0);

/// Whether an exception that nobody expected has been reported, or at least begun to be.
static FATAL_BEFORE: AtomicU64 = AtomicU64::new(0);
/// What `shutdown` is told then.
static CRASH: u32 = SHUTDOWN_CRASH;

global_asm!(
    r#"
    .section .text.traps, "ax"
    .macro FATAL_VECTOR
        .balign 128
        b trap_fatal
    .endm

    .balign 2048
    .globl guest_vectors
    guest_vectors:
        // Current EL with SP_EL0: never used.
        FATAL_VECTOR
        FATAL_VECTOR
        FATAL_VECTOR
        FATAL_VECTOR
        // Current EL with SP_EL1: our own faults.
        .balign 128
        b trap_synchronous
        // An interrupt: events.
        .balign 128
        b trap_event
        FATAL_VECTOR
        FATAL_VECTOR
        // Lower EL: nothing runs there.
        .rept 8
        FATAL_VECTOR
        .endr

    trap_synchronous:
        // Not on the stack: a hostile kernel may have none just now. Nor in TPIDR_EL1, where the vCPU's number stands.
        msr tpidrro_el0, x0
        msr tpidr_el0, x1
        adrp x0, {fixup}
        add x0, x0, :lo12:{fixup}
        ldr x1, [x0]
        cbz x1, 1f
        str xzr, [x0]
        msr elr_el1, x1
        mrs x0, tpidrro_el0
        mrs x1, tpidr_el0
        eret
    1:  mrs x0, tpidrro_el0
        mrs x1, tpidr_el0
    trap_fatal:
        // The first time the stack is taken from its start again; the second time even that has failed.
        adrp x3, {fatal_before}
        add x3, x3, :lo12:{fatal_before}
        ldr x4, [x3]
        cbnz x4, 2f
        mov x4, #1
        str x4, [x3]
        adrp x3, boot_stack_end
        add x3, x3, :lo12:boot_stack_end
        mov sp, x3
        mrs x0, esr_el1
        mrs x1, far_el1
        mrs x2, elr_el1
        bl {fatal}
        brk #0
    2:  mov x16, #{sched_op}
        mov x0, #{shutdown}
        adrp x1, {crash}
        add x1, x1, :lo12:{crash}
        hvc #{tag}
        b 2b
    "#,
    fixup = sym FIXUP,
    fatal = sym fatal,
    fatal_before = sym FATAL_BEFORE,
    crash = sym CRASH,
    sched_op = const penumbra_abi::hypercall::SCHED_OP,
    shutdown = const penumbra_abi::sched::SCHEDOP_SHUTDOWN,
    tag = const penumbra_abi::aarch64::HVC_IMMEDIATE,
);

unsafe extern "C" {
    static guest_vectors: [u8; 2048];
}

/// Reports an exception that nobody expected, and crashes the domain.
extern "C" fn fatal(syndrome: u64, address: u64, link: u64) -> ! {
    if bare::is_native() {
        report::<Bare>(syndrome, address, link)
    }
    report::<Arm>(syndrome, address, link)
}

fn report<A: guest_core::Architecture>(syndrome: u64, address: u64, link: u64) -> ! {
    guest_core::say!(A, "guest kernel: exception, esr {syndrome:#x}, far {address:#x}, at {link:#x}");
    hypercalls::shutdown::<A>(SHUTDOWN_CRASH)
}

/// Installs the vectors.
pub fn install() {
    set_vectors((&raw const guest_vectors) as u64);
}

/// Takes the vectors away: the next fault finds no code at address 0, and none for that fault either.
pub fn remove() {
    set_vectors(0);
}

fn set_vectors(address: u64) {
    // SAFETY: the vectors are code of this kernel, or nowhere when the kernel means to die.
    unsafe { asm!("msr vbar_el1, {}", "isb", in(reg) address, options(nostack)) };
}

/// Executes instructions, and says whether they faulted. The block may use the operands that are given.
macro_rules! faults {
    ($($line:literal),+ $(; $($operands:tt)*)?) => {{
        let failed: u64;
        // SAFETY: the instructions are meant to fault, and go on at label 2 then; should one of them be carried out after
        // all, the hypervisor under test is broken, which is what the caller wants to find out.
        unsafe {
            core::arch::asm!(
                "adr {scratch}, 2f",
                "str {scratch}, [{fixup}]",
                "mov {failed}, #1",
                $($line,)+
                "mov {failed}, #0",
                "2:",
                "str xzr, [{fixup}]",
                scratch = out(reg) _,
                fixup = in(reg) crate::traps::FIXUP.as_ptr(),
                failed = out(reg) failed,
                $($($operands)*)?
            );
        }
        failed != 0
    }};
}
pub(crate) use faults;

/// Reads a word, or says that the read faulted.
pub fn try_read(address: u64) -> Option<u64> {
    let mut value = 0u64;
    let failed = faults!("ldr {value}, [{address}]"; value = inout(reg) value, address = in(reg) address);
    (!failed).then_some(value)
}

/// Writes a word, or says that the write faulted. No Rust object may live there.
pub fn try_write(address: u64, value: u64) -> bool {
    !faults!("str {value}, [{address}]"; value = in(reg) value, address = in(reg) address)
}
