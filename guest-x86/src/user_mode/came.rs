//! Where users come to the kernel: entries that note what they came with, and let them go on behind the instruction.

use core::arch::global_asm;
use core::array;
use core::sync::atomic::{AtomicU64, Ordering};

use penumbra_abi::Errno;
use penumbra_abi::hypercall as number;

use crate::assembly::leave_by_hypercall;
use crate::traps;
use crate::user::KERNEL_STACK;

pub const BREAKPOINT: u64 = 3;
pub const INVALID_OPCODE: u64 = 6;
/// A vector whose handler users may call by `int`; the next one has a handler for the kernel alone.
pub const FOR_USERS: u64 = 0x80;
pub const GENERAL_PROTECTION: u64 = 13;
pub const PAGE_FAULT: u64 = 14;
/// Flags of a handler: programs in ring 3 may call it by `int`; events are masked when it is entered.
const CALLED_FROM_RING_3: u8 = 3;
pub const MASKS_EVENTS: u8 = 1 << 2;
/// What stands for a vector when it was a system call.
pub const SYSTEM_CALL: u64 = 0x100;

/// Words of what the entries below leave: the registers in the order of their numbers, and then these.
pub const WORDS: usize = 23;
pub const VECTOR: usize = 16;
pub const ERROR: usize = 17;
pub const RIP: usize = 18;
pub const CS: usize = 19;
/// Numbers of registers.
pub const RAX: usize = 0;
pub const RCX: usize = 1;
pub const RDX: usize = 2;
pub const RBX: usize = 3;
pub const RSP: usize = 4;
pub const RDI: usize = 7;
pub const R11: usize = 11;

/// After so many traps a program that doesn't end is given up.
const MOST: u64 = 4;

/// Traps that came, but for the system call at the end; what the first of them left, and what that system call left.
static COUNT: AtomicU64 = AtomicU64::new(0);
static FIRST: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
static LAST: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
/// Bytes of the instruction that the user is to go on after.
static SKIP: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
    .section .text.traps, "ax"
    // Stack, lowest first: rcx, r11, (an error code), rip, cs, rflags, rsp, ss.
    user_mode_breakpoint:
        popq %rcx
        popq %r11
        pushq $0
        pushq $3
        jmp user_mode_came
    user_mode_for_users:
        popq %rcx
        popq %r11
        pushq $0
        pushq $0x80
        jmp user_mode_came
    user_mode_invalid_opcode:
        popq %rcx
        popq %r11
        pushq $0
        pushq $6
        jmp user_mode_came
    user_mode_general_protection:
        popq %rcx
        popq %r11
        pushq $13
        jmp user_mode_came
    user_mode_page_fault:
        popq %rcx
        popq %r11
        pushq $14
        jmp user_mode_came
    user_mode_system_call:
        popq %rcx
        popq %r11
        pushq $0
        pushq ${system_call}

    // Stack, lowest first: vector, error code, rip, cs, rflags, rsp, ss.
    user_mode_came:
        testb $3, 24(%rsp)
        jz 2f
        cld
        pushq %r15
        pushq %r14
        pushq %r13
        pushq %r12
        pushq %r11
        pushq %r10
        pushq %r9
        pushq %r8
        pushq %rdi
        pushq %rsi
        pushq %rbp
        pushq $0
        pushq %rbx
        pushq %rdx
        pushq %rcx
        pushq %rax
        movq %rsp, %rdi
        movq %rsp, %rbx
        andq $-16, %rsp
        call {came}
        movq %rbx, %rsp
        testb %al, %al
        jz 1f
        popq %rax
        popq %rcx
        popq %rdx
        popq %rbx
        addq $8, %rsp
        popq %rbp
        popq %rsi
        popq %rdi
        popq %r8
        popq %r9
        popq %r10
        popq %r11
        popq %r12
        popq %r13
        popq %r14
        popq %r15
        addq $16, %rsp
    "#,
    leave_by_hypercall!(),
    r#"
    1:  movq {kernel_stack}(%rip), %rsp
        ret
    // It was the kernel's own.
    2:  movq 0(%rsp), %rdi
        movq 8(%rsp), %rsi
        movq 16(%rsp), %rdx
        andq $-16, %rsp
        call {fatal}
        ud2
    "#,
    system_call = const SYSTEM_CALL,
    iret = const number::IRET,
    came = sym came,
    fatal = sym traps::fatal,
    kernel_stack = sym KERNEL_STACK,
    options(att_syntax)
);

unsafe extern "C" {
    fn user_mode_breakpoint();
    fn user_mode_for_users();
    fn user_mode_invalid_opcode();
    fn user_mode_general_protection();
    fn user_mode_page_fault();
    pub fn user_mode_system_call();
}

/// What came of a user's run.
pub struct Came {
    /// How often it came to the kernel before the end.
    pub count: u64,
    /// What it came with first, and at the end.
    pub first: [u64; WORDS],
    pub last: [u64; WORDS],
}

/// Installs the entries for exceptions.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn install() -> Result<(), Errno> {
    traps::install_one(BREAKPOINT as u8, 0, user_mode_breakpoint)?;
    traps::install_one(FOR_USERS as u8, CALLED_FROM_RING_3, user_mode_for_users)?;
    traps::install_one(FOR_USERS as u8 + 1, 0, user_mode_for_users)?;
    traps::install_one(INVALID_OPCODE as u8, 0, user_mode_invalid_opcode)?;
    traps::install_one(GENERAL_PROTECTION as u8, 0, user_mode_general_protection)?;
    install_for_page_faults(0)
}

/// Installs the entry for page faults anew, with these flags.
///
/// # Errors
/// As [`install`].
pub fn install_for_page_faults(flags: u8) -> Result<(), Errno> {
    traps::install_one(PAGE_FAULT as u8, flags, user_mode_page_fault)
}

/// Nothing has come so far; a user that traps is to go on so many bytes further on.
pub fn begin(skip: u64) {
    SKIP.store(skip, Ordering::Relaxed);
    COUNT.store(0, Ordering::Relaxed);
    store(&FIRST, &[0; WORDS]);
    store(&LAST, &[0; WORDS]);
}

/// What has come since.
pub fn end() -> Came {
    Came { count: COUNT.load(Ordering::Relaxed), first: load(&FIRST), last: load(&LAST) }
}

/// The user has come to the kernel: whether it goes on.
extern "C" fn came(frame: &mut [u64; WORDS]) -> bool {
    if frame[VECTOR] == SYSTEM_CALL && frame[RBX] == 0 {
        store(&LAST, frame);
        return false;
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    if count == 0 {
        store(&FIRST, frame);
    }
    frame[RIP] = frame[RIP].wrapping_add(SKIP.load(Ordering::Relaxed));
    count < MOST
}

fn store(to: &[AtomicU64; WORDS], frame: &[u64; WORDS]) {
    to.iter().zip(frame).for_each(|(to, word)| to.store(*word, Ordering::Relaxed));
}

fn load(from: &[AtomicU64; WORDS]) -> [u64; WORDS] {
    array::from_fn(|index| from[index].load(Ordering::Relaxed))
}
