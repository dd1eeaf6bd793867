//! The hypervisor's stacks: one for the CPU, and one for each exception that must not trust any other stack.
//!
//! There is no stack per vCPU: a guest's registers are saved in its context, and nothing of the hypervisor's is left on
//! the CPU's stack when a guest runs. Below each stack lies a page that the hypervisor's own tables leave unmapped.

use core::cell::UnsafeCell;

/// Bytes of the CPU's stack. The decoders of packed kernels take most of it, at boot.
pub const CPU_STACK_BYTES: usize = 128 << 10;
/// Bytes of an exception's stack.
pub const EXCEPTION_STACK_BYTES: usize = 8 << 10;
/// Bytes of a guard.
pub const GUARD_BYTES: usize = 4096;

/// A stack with its guard, `BYTES` without it.
#[repr(C, align(4096))]
pub struct Stack<const BYTES: usize> {
    guard: [u8; GUARD_BYTES],
    body: UnsafeCell<[u8; BYTES]>,
}

// SAFETY: Rust code never touches the content through this type; only the stack pointer of one CPU does.
unsafe impl<const BYTES: usize> Sync for Stack<BYTES> {}

impl<const BYTES: usize> Stack<BYTES> {
    const fn new() -> Self {
        Self { guard: [0; GUARD_BYTES], body: UnsafeCell::new([0; BYTES]) }
    }

    /// Address of the guard page.
    pub fn guard(&self) -> u64 {
        self.guard.as_ptr() as u64
    }

    /// Where the stack starts: the first byte beyond it.
    pub fn top(&self) -> u64 {
        self.body.get() as u64 + BYTES as u64
    }
}

/// The CPU's stack, from boot on.
pub static CPU: Stack<CPU_STACK_BYTES> = Stack::new();
/// For non-maskable interrupts.
pub static NON_MASKABLE: Stack<EXCEPTION_STACK_BYTES> = Stack::new();
/// For double faults: above all for an overflow of the CPU's stack.
pub static DOUBLE_FAULT: Stack<EXCEPTION_STACK_BYTES> = Stack::new();
/// For machine checks.
pub static MACHINE_CHECK: Stack<EXCEPTION_STACK_BYTES> = Stack::new();
/// For debug exceptions: a guest's breakpoint on data can hit at the first instruction after its `syscall`, on the guest's own stack
/// (CVE-2018-8897).
pub static DEBUG: Stack<EXCEPTION_STACK_BYTES> = Stack::new();

/// The guards of all stacks.
pub fn guards() -> [u64; 5] {
    [CPU.guard(), NON_MASKABLE.guard(), DOUBLE_FAULT.guard(), MACHINE_CHECK.guard(), DEBUG.guard()]
}
