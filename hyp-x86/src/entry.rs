//! The assembly of `entry.s` and `short.s`, and its names in Rust.

use core::arch::global_asm;
use core::mem::offset_of;

use hyp_core::Vcpu;
use hyp_x86::layout;

use penumbra_abi::x86_64::{FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64};

use crate::context::{self, GuestContext, TrapHandler, VcpuInfo};
use crate::machine::X86;
use crate::{bounce, cpu};

global_asm!(
    include_str!("entry.s"),
    cpu = sym cpu::ENTRY,
    cpu_guest_stack = const cpu::GUEST_STACK_OFFSET,
    cpu_frame_end = const cpu::FRAME_END_OFFSET,
    cpu_context = const cpu::CONTEXT_OFFSET,
    host_stack = const context::HOST_STACK_OFFSET,
    flat_cs = const FLAT_RING3_CS64,
    flat_cs32 = const FLAT_RING3_CS32,
    flat_ss = const FLAT_RING3_SS64,
    by_syscall = const context::BY_SYSCALL,
    by_compatibility_syscall = const context::BY_COMPATIBILITY_SYSCALL,
    with_error_code = const crate::trap::WITH_ERROR_CODE,
    iret = const penumbra_abi::hypercall::IRET,
    syscall = sym crate::trap::syscall,
    trap = sym crate::trap::trap,
    own_trap = sym crate::fault::own_trap,
    critical = sym crate::fault::critical,
    options(att_syntax)
);

global_asm!(
    include_str!("short.s"),
    cpu = sym cpu::ENTRY,
    cpu_context = const cpu::CONTEXT_OFFSET,
    cpu_unhooked = const cpu::UNHOOKED_OFFSET,
    entered = sym cpu::ENTERED,
    host_stack = const context::HOST_STACK_OFFSET,
    user_mode = const context::USER_MODE_OFFSET,
    kernel_stack = const context::KERNEL_STACK_OFFSET,
    info = const context::INFO_OFFSET,
    handler = const context::FAULT_HANDLER_OFFSET + offset_of!(TrapHandler, address),
    handler_flags = const context::FAULT_HANDLER_OFFSET + offset_of!(TrapHandler, flags),
    mask_events = const bounce::MASK_EVENTS,
    cleared_in_handler = const bounce::CLEARED_IN_HANDLER,
    pending = const offset_of!(VcpuInfo, pending),
    mask = const offset_of!(VcpuInfo, mask),
    cr2 = const offset_of!(VcpuInfo, cr2),
    kernel_root = const Vcpu::<X86>::KERNEL_ROOT_OFFSET,
    user_root = const Vcpu::<X86>::USER_ROOT_OFFSET,
    below_guests = const layout::RESERVED_END.wrapping_neg(),
    fault_frames = const layout::GUEST_WORDS - 8 * 8,
    iret_frames = const layout::GUEST_WORDS - 9 * 8,
    iret = const penumbra_abi::hypercall::IRET,
    kept_flags = const context::GUEST_FLAGS | context::FLAG_INTERRUPT,
    flag_interrupt = const context::FLAG_INTERRUPT,
    options(att_syntax)
);

unsafe extern "C" {
    /// Where `syscall` leads from 64-bit code.
    pub safe static entry_syscall: u8;
    /// Where `syscall` leads from 32-bit code.
    pub safe static entry_compatibility_syscall: u8;
    /// 256 stubs of [`STUB_BYTES`] each.
    pub safe static entry_stubs: u8;
    /// The one instruction of the full way out that can fault because of what a guest chose.
    pub safe static exit_iret: u8;
    /// The same, of the short way back from the `iret` hypercall.
    pub safe static exit_iret_shortly: u8;

    /// Leaves the hypervisor for the guest with this context, for good: the stack is empty afterwards.
    ///
    /// # Safety
    /// The CPU has been switched to this context's vCPU.
    pub unsafe fn enter_guest(context: *const GuestContext) -> !;

    /// Copies `length` bytes; returns how many weren't, as far as 0 or not.
    ///
    /// # Safety
    /// One side is a guest's address range, outside the hypervisor's part of the address space (it may well fault); the other
    /// is `length` bytes of the hypervisor's, valid for the access.
    pub unsafe fn copy_guest(to: *mut u8, from: *const u8, length: usize) -> usize;
}

/// Distance of the stubs.
pub const STUB_BYTES: u64 = 16;

/// The address of a label.
pub fn address(label: &'static u8) -> u64 {
    &raw const *label as u64
}
