//! Fault handlers, by Xen's trap table.
//!
//! The hypervisor bounces a fault to the kernel with a frame of `rcx`, `r11`, an error code (for some vectors), `rip`,
//! `cs`, `rflags`, `rsp`, `ss`. Two outcomes: a read or write that was meant to be tried goes on at its fix-up address;
//! any other fault is reported and crashes the domain.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_core::hypercalls;
use penumbra_abi::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::sched::SHUTDOWN_CRASH;
use penumbra_abi::x86_64::{FLAT_RING3_CS64, TrapInfo};

use crate::assembly::leave_handler;
use crate::machine::X86;

/// Where a tried access goes on when it faults; 0 when none is being tried.
pub(crate) static FIXUP: AtomicU64 = AtomicU64::new(0);
/// Vector and error code of the last fault that was tried.
static VECTOR: AtomicU64 = AtomicU64::new(0);
static ERROR: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
    .section .text.traps, "ax"
    trap_not_present:
        pushq $11
        jmp trap_with_error
    trap_general_protection:
        pushq $13
        jmp trap_with_error
    trap_page_fault:
        pushq $14
        jmp trap_with_error
    // The one without an error code. Stack, lowest first: rcx, r11, rip, cs, rflags, rsp, ss.
    trap_invalid_opcode:
        movq {fixup}(%rip), %rcx
        testq %rcx, %rcx
        jz 1f
        movq $0, {fixup}(%rip)
        movq %rcx, 16(%rsp)
        movq $6, {vector}(%rip)
        movq $0, {error}(%rip)
    "#,
    leave_handler!(),
    r#"
    1:  movl $6, %edi
        xorl %esi, %esi
        movq 16(%rsp), %rdx
        jmp trap_fatal

    // Stack, lowest first: vector, rcx, r11, error code, rip, cs, rflags, rsp, ss.
    trap_with_error:
        movq {fixup}(%rip), %rcx
        testq %rcx, %rcx
        jz 1f
        movq $0, {fixup}(%rip)
        movq %rcx, 32(%rsp)
        popq {vector}(%rip)
        popq %rcx
        popq %r11
        popq {error}(%rip)
        orq $3, 8(%rsp)
        iretq
    1:  movq 0(%rsp), %rdi
        movq 24(%rsp), %rsi
        movq 32(%rsp), %rdx
    trap_fatal:
        andq $-16, %rsp
        call {fatal}
        ud2
    "#,
    fixup = sym FIXUP,
    vector = sym VECTOR,
    error = sym ERROR,
    fatal = sym fatal,
    options(att_syntax)
);

unsafe extern "C" {
    fn trap_invalid_opcode();
    fn trap_not_present();
    fn trap_general_protection();
    pub(crate) fn trap_page_fault();
}

/// Reports a fault that nobody expected, and crashes the domain.
pub(crate) extern "C" fn fatal(vector: u64, error: u64, rip: u64) -> ! {
    guest_core::say!(X86, "guest kernel: fault {vector}, error code {error:#x}, at {rip:#x}");
    hypercalls::shutdown::<X86>(SHUTDOWN_CRASH)
}

fn trap(vector: u8, handler: unsafe extern "C" fn()) -> TrapInfo {
    TrapInfo { vector, flags: 0, cs: FLAT_RING3_CS64, pad: 0, address: handler as *const () as u64 }
}

/// Installs the handlers; false when the hypervisor doesn't take them.
pub fn install() -> bool {
    let table = [
        trap(6, trap_invalid_opcode),
        trap(11, trap_not_present),
        trap(13, trap_general_protection),
        trap(14, trap_page_fault),
        TrapInfo::default(),
    ];
    set_table(hypercalls::address_of(&table)).is_ok()
}

/// Installs one handler beside those that are there, with these flags (`trap_info`): the ring from which programs may call it by `int`, and
/// whether it masks events.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn install_one(vector: u8, flags: u8, handler: unsafe extern "C" fn()) -> Result<(), Errno> {
    let table = [TrapInfo { flags, ..trap(vector, handler) }, TrapInfo::default()];
    set_table(hypercalls::address_of(&table)).map(drop)
}

/// Removes all handlers: address 0 stands for an empty table.
pub fn remove() {
    // Without a table there is nothing to remove.
    let _ = set_table(0);
}

fn set_table(address: u64) -> Result<u64, Errno> {
    hypercalls::call::<X86>(number::SET_TRAP_TABLE, &[address])
}

/// Executes instructions, and says whether they faulted. The block may use the operands that are given.
macro_rules! faults {
    ($($line:literal),+ $(; $($operands:tt)*)?) => {{
        let failed: u64;
        // SAFETY: the instructions are meant to fault, and go on at label 2 then; should one of them be carried out after
        // all, the hypervisor under test is broken, which is what the caller wants to find out.
        unsafe {
            core::arch::asm!(
                "lea {scratch}, [rip + 2f]",
                "mov [{fixup}], {scratch}",
                "mov {failed:e}, 1",
                $($line,)+
                "xor {failed:e}, {failed:e}",
                "2:",
                "mov qword ptr [{fixup}], 0",
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

/// Vector of a general-protection fault.
const GENERAL_PROTECTION: u64 = 13;

/// Whether the last fault that was tried was a general-protection fault because of this segment selector.
pub fn refused_selector(selector: u64) -> bool {
    // The error code says which selector it was, but for its lowest two bits (Intel SDM volume 3, 6.13).
    VECTOR.load(Ordering::Relaxed) == GENERAL_PROTECTION && ERROR.load(Ordering::Relaxed) == selector & !3
}

/// The error code of the last fault that was tried.
pub fn error() -> u64 {
    ERROR.load(Ordering::Relaxed)
}

/// Reads a word, or says that the read faulted.
pub fn try_read(address: u64) -> Option<u64> {
    let mut value = 0u64;
    let failed = faults!(
        "mov {value}, [{address}]"; value = inout(reg) value, address = in(reg) address, options(nostack)
    );
    (!failed).then_some(value)
}

/// Writes a word, or says that the write faulted. No Rust object may live there.
pub fn try_write(address: u64, value: u64) -> bool {
    !faults!("mov [{address}], {value}"; value = in(reg) value, address = in(reg) address, options(nostack))
}
