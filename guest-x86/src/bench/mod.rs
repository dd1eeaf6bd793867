//! What faults and traps cost that go to this kernel's own handlers.
//!
//! The handlers are as short as they can be: they take the hypervisor's frame off the stack, step over the instruction, and
//! go back, by `iretq` (which a kernel in ring 3 may use) or by the hypercall.

mod upcall;
mod user;

use core::arch::{asm, global_asm};

use guest_core::architecture::Architecture;
use guest_core::bench::ArchitectureRow;
use guest_core::bench::upcall::send_to_itself;
use penumbra_abi::Errno;

use crate::machine::X86;
use crate::traps;

/// Rows that only x86-64 has.
pub const ROWS: &[ArchitectureRow<X86>] = &[
    ("page-fault-iretq", |_, count| page_faults(count, bench_fault_iretq)),
    ("int3", |_, count| breakpoints(count)),
    ("page-fault-iret-hypercall", |_, count| page_faults(count, bench_fault_iret)),
    ("event-upcall", |guest, count| send_to_itself(guest, count, &upcall::HANDLER)),
    ("system-call", user::system_calls),
];

/// An address that nothing is mapped at.
const NOWHERE: u64 = 0x7000_0000_0000;
const BREAKPOINT: u8 = 3;
const PAGE_FAULT: u8 = 14;

global_asm!(
    r#"
    .section .text.traps, "ax"
    // Stack, lowest first: rcx, r11, error code, rip, cs, rflags, rsp, ss. The faulting instruction has three bytes.
    bench_fault_iretq:
        popq %rcx
        popq %r11
        addq $8, %rsp
        addq $3, (%rsp)
        orq $3, 8(%rsp)
        iretq
    // The hypercall takes rax, r11, rcx and flags below the processor's frame.
    bench_fault_iret:
        popq %rcx
        popq %r11
        addq $3, 8(%rsp)
        movq $0, (%rsp)
        pushq %rcx
        pushq %r11
        pushq %rax
        movl ${iret}, %eax
        syscall
    // The saved address is already that after the instruction, and there is no error code.
    bench_breakpoint:
        popq %rcx
        popq %r11
        orq $3, 8(%rsp)
        iretq
    "#,
    iret = const penumbra_abi::hypercall::IRET,
    options(att_syntax)
);

unsafe extern "C" {
    fn bench_fault_iretq();
    fn bench_fault_iret();
    fn bench_breakpoint();
}

/// Counts `count` rounds of a loop around the instruction, and takes those of the empty loop away.
macro_rules! rounds {
    ($count:expr, $instruction:literal) => {{
        let timed = |start: u64| X86::counter().wrapping_sub(start);
        let start = X86::counter();
        // SAFETY: the instruction only raises an exception, whose handler steps over it; rax is its only result.
        unsafe {
            asm!("2:", $instruction, "dec {n}", "jnz 2b", n = inout(reg) $count => _, in("rdi") NOWHERE, inout("rax") 0u64 => _)
        };
        let with = timed(start);
        let start = X86::counter();
        // SAFETY: counts a register down.
        unsafe {
            asm!("2:", "dec {n}", "jnz 2b", n = inout(reg) $count => _, in("rdi") NOWHERE, inout("rax") 0u64 => _)
        };
        with.saturating_sub(timed(start))
    }};
}

fn page_faults(count: u64, handler: unsafe extern "C" fn()) -> Result<u64, Errno> {
    with_handler(PAGE_FAULT, handler, || rounds!(count, "mov rax, [rdi]"))
}

fn breakpoints(count: u64) -> Result<u64, Errno> {
    with_handler(BREAKPOINT, bench_breakpoint, || rounds!(count, "int3"))
}

/// Installs `handler` for the time of `measure`, then the usual handlers again.
fn with_handler(
    vector: u8,
    handler: unsafe extern "C" fn(),
    measure: impl FnOnce() -> u64,
) -> Result<u64, Errno> {
    traps::install_one(vector, 0, handler)?;
    let taken = measure();
    if traps::install() { Ok(taken) } else { Err(Errno::EINVAL) }
}
