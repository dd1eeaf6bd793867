//! User mode: code of a user's, in a page of its own under a root of its own.
//!
//! The user's system calls come to an entry that goes back at once; at one with a count of zero (in rbx), it goes back to where the
//! kernel had left for the user instead.

use core::arch::{asm, global_asm};
use core::sync::atomic::AtomicU64;

use guest_core::architecture::{Architecture, PAGE_SHIFT, PAGE_SIZE};
use guest_core::guest::Guest;
use guest_core::hypercalls::{address_of, call, mmuext, update_entry};
use guest_core::pages::Page;
use penumbra_abi::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::mmu::{MMUEXT_NEW_USER_BASEPTR, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE};
use penumbra_abi::x86_64::{FLAT_RING3_CS64, FLAT_RING3_SS64, VGCF_IN_SYSCALL};

use crate::assembly::{keep_registers, load_kept_registers};
use crate::machine::{VIRT_BASE, X86};

/// `callback_op`: register, and the kind of callback that is called for system calls (`callback.h`).
const REGISTER: u64 = 0;
const SYSTEM_CALL: u64 = 2;
/// In an entry: users may use it.
const USER: u64 = 1 << 2;
/// Where the user's page is: the first entry of each table, but for the last.
pub const USER_CODE: u64 = PAGE_SIZE;

/// The kernel's stack pointer while the user runs: who loads it and executes `ret` ends the user's run.
pub static KERNEL_STACK: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
    .section .text.traps, "ax"
    // Stack, lowest first: rcx, r11, rip, cs, rflags, rsp, ss.
    user_system_call:
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

    // Runs the user at rdi with rsi in rbx, the flags in rdx, the code segment in rcx and the stack segment in r8. Changes every register that
    // a caller doesn't expect to be kept.
    enter_user:
    "#,
    keep_registers!(),
    r#"
        call 1f
    "#,
    load_kept_registers!(),
    r#"
        ret
    1:  movq %rsp, {kernel_stack}(%rip)
        movq %rsi, %rbx
        pushq %r8
        pushq $0
        pushq %rdx
        pushq %rcx
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
    kernel_stack = sym KERNEL_STACK,
    options(att_syntax)
);

unsafe extern "C" {
    fn user_system_call();
    fn enter_user(code: u64, count: u64, flags: u64, code_segment: u64, stack_segment: u64);
}

/// A user.
pub struct User<'a> {
    guest: &'a Guest<X86>,
    /// Its page and the tables that lead to it, lowest first.
    tree: [Page; 5],
    /// Of the kernel's, for its system calls.
    stack: Page,
}

impl<'a> User<'a> {
    /// A user whose code these bytes are, of a page at most. There is one at a time.
    ///
    /// # Errors
    /// There is no memory, or what the hypervisor refuses.
    pub fn new(guest: &'a Guest<X86>, code: &[u64]) -> Result<Self, Errno> {
        Self::with_entry(guest, code, user_system_call)
    }

    /// The same, with system calls that come to `entry`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_entry(
        guest: &'a Guest<X86>,
        code: &[u64],
        entry: unsafe extern "C" fn(),
    ) -> Result<Self, Errno> {
        let argument = [SYSTEM_CALL, entry as *const () as u64];
        call::<X86>(number::CALLBACK_OP, &[REGISTER, address_of(&argument)])?;
        let stack = guest.pages.allocate().ok_or(Errno::ENOMEM)?;
        call::<X86>(number::STACK_SWITCH, &[FLAT_RING3_SS64.into(), guest.address(&stack) + PAGE_SIZE])?;
        let user = Self { guest, tree: tree(guest, code)?, stack };
        mmuext::<X86>(MMUEXT_PIN_L4_TABLE, user.root(), 0)?;
        mmuext::<X86>(MMUEXT_NEW_USER_BASEPTR, user.root(), 0)?;
        Ok(user)
    }

    fn root(&self) -> u64 {
        self.tree.last().map_or(0, |page| self.guest.frame(page))
    }

    /// Runs the code with `count` in rbx, until it makes a system call with zero there.
    pub fn run(&self, count: u64) {
        self.run_in(FLAT_RING3_CS64.into(), count);
    }

    /// The same, in this code segment.
    pub fn run_in(&self, code_segment: u64, count: u64) {
        let flags: u64;
        // SAFETY: reads the flags.
        unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
        self.run_by(code_segment, flags, FLAT_RING3_SS64.into(), count);
    }

    /// The same, with these words for `iret`.
    pub fn run_by(&self, code_segment: u64, flags: u64, stack_segment: u64, count: u64) {
        // SAFETY: whatever the code does, it does with a user's rights; a system call with a count of zero ends it, whose handler returns to
        // here with this stack; every register that this function may not change is on that stack.
        unsafe { enter_user(USER_CODE, count, flags, code_segment, stack_segment) };
    }

    /// The kernel's stack for what the user comes with: the first address beyond it.
    pub fn stack_end(&self) -> u64 {
        self.guest.address(&self.stack) + PAGE_SIZE
    }

    /// Has the user's tree lead to the kernel's memory as well, where the kernel may read and write it.
    ///
    /// # Errors
    /// What the hypervisor refuses.
    pub fn share_kernel(&self) -> Result<(), Errno> {
        const SLOT: u64 = 511 * 8;
        let entry = X86::table(self.guest.walk(VIRT_BASE).nth(1).map_or(0, |step| step.table_frame));
        update_entry::<X86>(self.root() << PAGE_SHIFT | SLOT, entry)
    }

    /// Gives its pages back.
    ///
    /// # Errors
    /// What the hypervisor refuses.
    pub fn end(self) -> Result<(), Errno> {
        mmuext::<X86>(MMUEXT_NEW_USER_BASEPTR, 0, 0)?;
        mmuext::<X86>(MMUEXT_UNPIN_TABLE, self.root(), 0)?;
        for page in self.tree.into_iter().rev() {
            self.guest.release(page)?;
        }
        self.guest.pages.free(self.stack);
        Ok(())
    }
}

/// The user's page and the tables that lead to it, lowest first: all of them read-only, as tables must be.
fn tree(guest: &Guest<X86>, code: &[u64]) -> Result<[Page; 5], Errno> {
    let page = || guest.zeroed_page().ok_or(Errno::ENOMEM);
    let tree = [page()?, page()?, page()?, page()?, page()?];
    code.iter().enumerate().for_each(|(index, &word)| guest.write(&tree[0], index, word));
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
