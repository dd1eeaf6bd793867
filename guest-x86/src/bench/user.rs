//! A system call of a user's: through the hypervisor to the kernel, and by the `iret` hypercall back.
//!
//! The user's code is a loop of `syscall`, in a page of its own under a root of its own. The kernel's entry goes back at once;
//! at the last system call, with a count of zero, it goes back to where the kernel had left for the user instead.

use core::arch::{asm, global_asm};
use core::sync::atomic::AtomicU64;

use guest_core::architecture::{Architecture, PAGE_SIZE};
use guest_core::guest::Guest;
use guest_core::hypercalls::{address_of, call, mmuext};
use guest_core::pages::Page;
use penumbra_abi::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::mmu::{MMUEXT_NEW_USER_BASEPTR, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE};
use penumbra_abi::x86_64::{FLAT_RING3_CS64, FLAT_RING3_SS64, VGCF_IN_SYSCALL};

use crate::machine::X86;

/// `callback_op`: register, and the kind of callback that is called for system calls (`callback.h`).
const REGISTER: u64 = 0;
const SYSTEM_CALL: u64 = 2;
/// In an entry: users may use it.
const USER: u64 = 1 << 2;
/// Where the user's page is: the first entry of each table, but for the last.
const USER_CODE: u64 = PAGE_SIZE;
/// `1: syscall; dec rbx; jnz 1b; syscall; jmp .`
const USER_LOOP: u64 = u64::from_le_bytes([0x0f, 0x05, 0x48, 0xff, 0xcb, 0x75, 0xf9, 0x0f]);
const USER_END: u64 = u64::from_le_bytes([0x05, 0xeb, 0xfe, 0, 0, 0, 0, 0]);

/// The kernel's stack pointer while the user runs.
static KERNEL_STACK: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
    .section .text.traps, "ax"
    // Stack, lowest first: rcx, r11, rip, cs, rflags, rsp, ss.
    bench_system_call:
        popq %rcx
        popq %r11
        testq %rbx, %rbx
        jz 1f
        pushq ${in_syscall}
        pushq %rcx
        pushq %r11
        pushq %rax
        movl ${iret}, %eax
        syscall
    1:  movq {kernel_stack}(%rip), %rsp
        ret

    // Runs the user at rdi for rsi system calls, with the flags in rdx. Changes every register that a caller doesn't expect to be kept.
    bench_enter_user:
        pushq %rbx
        pushq %rbp
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        call 1f
        popq %r15
        popq %r14
        popq %r13
        popq %r12
        popq %rbp
        popq %rbx
        ret
    1:  movq %rsp, {kernel_stack}(%rip)
        movq %rsi, %rbx
        pushq ${stack_segment}
        pushq $0
        pushq %rdx
        pushq ${code_segment}
        pushq %rdi
        pushq $0
        pushq $0
        pushq $0
        pushq $0
        movl ${iret}, %eax
        syscall
        ud2
    "#,
    in_syscall = const VGCF_IN_SYSCALL,
    iret = const number::IRET,
    stack_segment = const FLAT_RING3_SS64,
    code_segment = const FLAT_RING3_CS64,
    kernel_stack = sym KERNEL_STACK,
    options(att_syntax)
);

unsafe extern "C" {
    fn bench_system_call();
    fn bench_enter_user(code: u64, count: u64, flags: u64);
}

/// `count` system calls of a user's, the loop around them taken away.
pub fn system_calls(guest: &Guest<X86>, count: u64) -> Result<u64, Errno> {
    let argument = [SYSTEM_CALL, bench_system_call as *const () as u64];
    call::<X86>(number::CALLBACK_OP, &[REGISTER, address_of(&argument)])?;
    let stack = guest.pages.allocate().ok_or(Errno::ENOMEM)?;
    call::<X86>(number::STACK_SWITCH, &[FLAT_RING3_SS64.into(), guest.address(&stack) + PAGE_SIZE])?;
    let tree = user_tree(guest)?;
    let root = tree.last().map_or(0, |page| guest.frame(page));
    mmuext::<X86>(MMUEXT_PIN_L4_TABLE, root, 0)?;
    mmuext::<X86>(MMUEXT_NEW_USER_BASEPTR, root, 0)?;
    let taken = enter(count).saturating_sub(enter(0)).saturating_sub(empty_loop(count));
    mmuext::<X86>(MMUEXT_NEW_USER_BASEPTR, 0, 0)?;
    mmuext::<X86>(MMUEXT_UNPIN_TABLE, root, 0)?;
    for page in tree.into_iter().rev() {
        guest.release(page)?;
    }
    guest.pages.free(stack);
    Ok(taken)
}

/// Units of the counter from the kernel to the user and back, with `count` system calls in between. With none, the user's first
/// one is the last: its count is zero.
fn enter(count: u64) -> u64 {
    let flags: u64;
    let start = X86::counter();
    // SAFETY: the code is a loop in the user's page that ends in a system call with a count of zero, whose handler returns to here with
    // this stack; every register that this function may not change is on that stack.
    unsafe {
        asm!("pushfq", "pop {}", out(reg) flags);
        bench_enter_user(USER_CODE, count, flags);
    }
    X86::counter().wrapping_sub(start)
}

/// The user's loop without the system call.
fn empty_loop(count: u64) -> u64 {
    // Two instructions a round.
    count * 2
}

/// The user's page and the tables that lead to it, lowest first: all of them read-only, as tables must be.
fn user_tree(guest: &Guest<X86>) -> Result<[Page; 5], Errno> {
    let page = || guest.zeroed_page().ok_or(Errno::ENOMEM);
    let tree = [page()?, page()?, page()?, page()?, page()?];
    guest.write(&tree[0], 0, USER_LOOP);
    guest.write(&tree[0], 1, USER_END);
    let index = (USER_CODE / PAGE_SIZE) as usize;
    guest.write(&tree[1], index, X86::leaf(guest.frame(&tree[0]), false) | USER);
    for upper in 2..5 {
        guest.write(&tree[upper], 0, X86::table(guest.frame(&tree[upper - 1])));
    }
    for page in &tree {
        guest.set_writable(page, false)?;
    }
    Ok(tree)
}
