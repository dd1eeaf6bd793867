//! Events on x86: the callback that the hypervisor enters, the mask in `vcpu_info`, and a second vCPU's first registers.
//!
//! The callback gets a frame like an exception's without an error code, with events masked. It goes back by the hypervisor's `iret`,
//! which restores the mask and the registers in one step. Which vCPU executes something is found through the base of `gs`.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};
use guest_core::architecture::ForbiddenStart;
use guest_core::events::{self, VCPUS};
use guest_core::hypercalls::{self, address_of, call};
use penumbra_abi::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::vcpu::{VCPUOP_INITIALISE, VGCF_IN_KERNEL, X86GuestContext};
use penumbra_abi::x86_64::{FLAT_RING3_CS64, FLAT_RING3_SS64, SEGBASE_GS_KERNEL};
use zerocopy::FromZeros;

use crate::machine::X86;

/// What the base of `gs` leads to: each vCPU's number.
static NUMBERS: [AtomicU64; VCPUS] = [AtomicU64::new(0), AtomicU64::new(1)];

global_asm!(
    r#"
    .section .text.events, "ax"
    // Stack, lowest first: rcx, r11, rip, cs, rflags, rsp, ss. The hypervisor's iret wants: rax, r11, rcx, flags, rip, ...
    event_callback:
        cld
        popq %rcx
        popq %r11
        pushq $0
        pushq %rcx
        pushq %r11
        pushq %rax
        pushq %rdi
        pushq %rsi
        pushq %rdx
        pushq %r8
        pushq %r9
        pushq %r10
        pushq %rbx
        movq %rsp, %rbx
        andq $-16, %rsp
        call {handle}
        movq %rbx, %rsp
        popq %rbx
        popq %r10
        popq %r9
        popq %r8
        popq %rdx
        popq %rsi
        popq %rdi
        movl ${iret}, %eax
        syscall
        ud2
    "#,
    handle = sym handle,
    iret = const number::IRET,
    options(att_syntax)
);

unsafe extern "C" {
    fn event_callback();
}

extern "C" fn handle() {
    events::handle::<X86>();
}

fn callback() -> u64 {
    event_callback as *const () as u64
}

/// What the base of `gs` is for a vCPU.
fn number_address(vcpu: u64) -> u64 {
    NUMBERS.get(vcpu as usize).map_or(0, |number| number.as_ptr() as u64)
}

/// Installs the callback for the vCPU that executes this.
pub fn install(vcpu: u64) {
    // Both are documented never to fail with addresses of the kernel's own.
    let _ = call::<X86>(number::SET_SEGMENT_BASE, &[SEGBASE_GS_KERNEL, number_address(vcpu)]);
    let _ = call::<X86>(number::SET_CALLBACKS, &[callback(), 0, 0]);
}

/// Which vCPU executes this. Only after [`install`].
pub fn vcpu_number() -> u64 {
    let vcpu;
    // SAFETY: the base of `gs` is the address of a static word, see `install`.
    unsafe { asm!("mov {}, gs:[0]", out(reg) vcpu, options(nostack, readonly, preserves_flags)) };
    vcpu
}

/// Masks upcalls in `vcpu_info`, or unmasks them, and then takes what is pending.
pub fn mask(info: u64, masked: bool) {
    let state = change_word(info, !0xff00, u64::from(masked) << 8);
    if !masked && state & 0xff != 0 {
        // The hypervisor looks on its way out.
        let _ = hypercalls::interface_version::<X86>();
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
    change: impl FnOnce(&mut X86GuestContext),
) -> Result<(), Errno> {
    let mut context = X86GuestContext::new_zeroed();
    context.flags = VGCF_IN_KERNEL;
    context.user_regs.rip = entry;
    context.user_regs.rdi = vcpu;
    // As if the function had been called.
    context.user_regs.rsp = stack - 8;
    context.user_regs.cs = FLAT_RING3_CS64.into();
    context.user_regs.ss = FLAT_RING3_SS64.into();
    context.kernel_ss = FLAT_RING3_SS64.into();
    context.kernel_sp = stack;
    context.ctrlreg[3] = root << 12;
    context.event_callback_eip = callback();
    context.gs_base_kernel = number_address(vcpu);
    change(&mut context);
    call::<X86>(number::VCPU_OP, &[VCPUOP_INITIALISE, vcpu, address_of(&context)]).map(drop)
}

/// Not an address: bit 47 isn't repeated above.
const NOT_CANONICAL: u64 = 1 << 63;

/// Registers that no guest may start with, or that nobody could return to.
pub const FORBIDDEN_STARTS: &[ForbiddenStart] = &[
    |vcpu, root, stack| initialise_with(vcpu, root, NOT_CANONICAL, stack, |_| {}),
    |vcpu, root, stack| initialise_with(vcpu, root, callback(), stack, |context| context.flags = 0),
    |vcpu, root, stack| initialise_with(vcpu, root, callback(), stack, |context| context.gdt_ents = 1 << 32),
    // A page table as a table of descriptors, and a page that there isn't.
    |vcpu, root, stack| {
        initialise_with(vcpu, root, callback(), stack, |context| {
            (context.gdt_ents, context.gdt_frames[0]) = (16, root)
        })
    },
    |vcpu, root, stack| {
        initialise_with(vcpu, root, callback(), stack, |context| {
            (context.gdt_ents, context.gdt_frames[0]) = (16, u64::MAX)
        })
    },
    |vcpu, root, stack| {
        initialise_with(vcpu, root, callback(), stack, |context| context.gs_base_user = NOT_CANONICAL)
    },
    |vcpu, root, stack| {
        initialise_with(vcpu, root, callback(), stack, |context| {
            context.trap_ctxt[14].address = NOT_CANONICAL
        })
    },
];

/// More of them, which Xen takes: it has local descriptor tables there, and leaves out what is wrong with a debug register.
pub const STARTS_THAT_XEN_TAKES: &[ForbiddenStart] = &[
    |vcpu, root, stack| initialise_with(vcpu, root, callback(), stack, |context| context.ldt_ents = 1),
    // A debug register with general detect, and one at what is no address.
    |vcpu, root, stack| {
        initialise_with(vcpu, root, callback(), stack, |context| context.debugreg[7] = 1 << 13)
    },
    |vcpu, root, stack| {
        initialise_with(vcpu, root, callback(), stack, |context| context.debugreg[0] = NOT_CANONICAL)
    },
];
