//! Events on AArch64: an interrupt at the kernel's own vector, masked by PSTATE.I, and a second vCPU's first registers.
//!
//! The interrupt is pending for as long as the hypervisor believes that an event is; it looks again at each hypercall, and the
//! shared handler ends with one. Which vCPU executes something stands in `TPIDR_EL1`.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};
use guest_core::architecture::ForbiddenStart;
use guest_core::events;
use guest_core::hypercalls::{address_of, call};
use penumbra_abi::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::vcpu::{ArmGuestContext, VCPUOP_INITIALISE};

use crate::machine::Arm;
use crate::saved_registers::{restore_registers, save_registers};
use crate::traps;

/// EL1 with its own stack pointer; D, A, I and F masked.
const START_PSTATE: u64 = 0x3c5;

global_asm!(
    r#"
    .section .text.events, "ax"
    .globl trap_event
    trap_event:
    "#,
    save_registers!(192),
    r#"
        mrs x0, elr_el1
        mrs x1, spsr_el1
        stp x30, x0, [sp, #160]
        str x1, [sp, #176]
        bl {handle}
        ldr x1, [sp, #176]
        ldp x30, x0, [sp, #160]
        msr elr_el1, x0
        msr spsr_el1, x1
    "#,
    restore_registers!(192),
    r#"
        eret
    "#,
    handle = sym handle,
);

extern "C" fn handle() {
    events::handle::<Arm>();
}

/// Installs the vectors for the vCPU that executes this, and remembers its number.
pub fn install(vcpu: u64) {
    traps::install();
    // SAFETY: nothing else uses the register.
    unsafe { asm!("msr tpidr_el1, {}", in(reg) vcpu, options(nostack, nomem)) };
}

/// Which vCPU executes this. Only after [`install`].
pub fn vcpu_number() -> u64 {
    let vcpu;
    // SAFETY: reads a register that `install` has written.
    unsafe { asm!("mrs {}, tpidr_el1", out(reg) vcpu, options(nostack, nomem)) };
    vcpu
}

/// Masks interrupts, or unmasks them: what is pending comes at once.
pub fn mask(masked: bool) {
    // SAFETY: the handler preserves what it interrupts. Not `nomem`: the handler changes memory.
    unsafe {
        if masked {
            asm!("msr daifset, #2", options(nostack));
        } else {
            asm!("msr daifclr, #2", options(nostack));
        }
    }
}

/// Keeps the bits `keep` of a word and sets the bits `set`, atomically; what it held before.
pub fn change_word(address: u64, keep: u64, set: u64) -> u64 {
    // SAFETY: the caller names an aligned word of mapped, writable memory in which no Rust object but atomics lives.
    let word = unsafe { AtomicU64::from_ptr(address as *mut u64) };
    let change = |old| Some(old & keep | set);
    word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change).unwrap_or_else(|old| old)
}

/// Where a vCPU starts.
pub type Entry = extern "C" fn(u64) -> !;

/// Gives a vCPU its first registers.
pub fn initialise(vcpu: u64, root: u64, entry: Entry, stack: u64) -> Result<(), Errno> {
    initialise_with(vcpu, root, entry as *const () as u64, stack, |_| {})
}

fn initialise_with(
    vcpu: u64,
    root: u64,
    entry: u64,
    stack: u64,
    change: impl FnOnce(&mut ArmGuestContext),
) -> Result<(), Errno> {
    let mut context = ArmGuestContext::default();
    // SAFETY: reads registers, which has no effect: the new vCPU gets what this one has.
    unsafe {
        asm!("mrs {}, sctlr_el1", out(reg) context.sctlr, options(nostack, nomem));
        asm!("mrs {}, tcr_el1", out(reg) context.ttbcr, options(nostack, nomem));
    }
    context.ttbr1 = root << 12;
    context.user_regs.pc = entry;
    context.user_regs.cpsr = START_PSTATE;
    context.user_regs.sp_el1 = stack;
    context.user_regs.x[0] = vcpu;
    change(&mut context);
    call::<Arm>(number::VCPU_OP, &[VCPUOP_INITIALISE, vcpu, address_of(&context)]).map(drop)
}

/// An entry that is never reached.
const ENTRY: u64 = crate::machine::VIRT_BASE;

/// Registers that no guest may start with.
pub const FORBIDDEN_STARTS: &[ForbiddenStart] = &[
    // The MMU off: all of machine memory.
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.sctlr &= !1),
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.sctlr = 0),
    // Tables read big-endian.
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.sctlr |= 1 << 25),
    // Dirty bits managed by hardware.
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.ttbcr |= 3 << 39),
    // Other granules, sizes and output sizes, hierarchical permissions, an ignored top byte.
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.ttbcr ^= 1 << 14),
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.ttbcr ^= 1 << 30),
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.ttbcr ^= 1 << 16),
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.ttbcr ^= 1 << 32),
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.ttbcr |= 3 << 41),
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.ttbcr |= 3 << 37),
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.ttbcr |= 1 << 59),
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.ttbcr = 0),
    // Walks that aren't cacheable read other bytes than validation did.
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.ttbcr &= !(3 << 24)),
    // A user root that is no table, or has an address-space number.
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.ttbr0 = 1 << 12),
    |vcpu, root, stack| {
        initialise_with(vcpu, root, ENTRY, stack, |context| context.ttbr0 = root << 12 | 1 << 48)
    },
    // EL2, EL0, AArch32.
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.user_regs.cpsr = 0x3c8),
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.user_regs.cpsr = 0x3cd),
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.user_regs.cpsr = 0x1d0),
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.user_regs.cpsr = 0x1da),
    // Single-stepping, an illegal state.
    |vcpu, root, stack| {
        initialise_with(vcpu, root, ENTRY, stack, |context| context.user_regs.cpsr |= 1 << 21)
    },
    |vcpu, root, stack| {
        initialise_with(vcpu, root, ENTRY, stack, |context| context.user_regs.cpsr |= 1 << 20)
    },
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.user_regs.cpsr = 0x3c9),
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.user_regs.cpsr = 0x3c0),
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.user_regs.cpsr = 0x1d3),
    // A root with an address-space number, and one that isn't aligned.
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.ttbr1 |= 1 << 48),
    |vcpu, root, stack| initialise_with(vcpu, root, ENTRY, stack, |context| context.ttbr1 |= 1),
];
