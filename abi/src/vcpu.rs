//! `vcpu_op` (`vcpu.h`), and the structures with which a vCPU is started (`arch-x86/xen.h`, `arch-arm.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::x86_64::TrapInfo;

/// Gives a vCPU its first registers: [`X86GuestContext`] or [`ArmGuestContext`].
pub const VCPUOP_INITIALISE: u64 = 0;
/// Lets it run.
pub const VCPUOP_UP: u64 = 1;
/// Stops it.
pub const VCPUOP_DOWN: u64 = 2;
/// Whether it may run.
pub const VCPUOP_IS_UP: u64 = 3;
/// How long it was in which state: [`RunstateInfo`].
pub const VCPUOP_GET_RUNSTATE_INFO: u64 = 4;
/// Where the hypervisor keeps a [`RunstateInfo`] up to date: an 8-byte guest address.
pub const VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA: u64 = 5;
/// Sets the timer that comes again and again: 8 bytes, the period in nanoseconds.
pub const VCPUOP_SET_PERIODIC_TIMER: u64 = 6;
/// Stops it.
pub const VCPUOP_STOP_PERIODIC_TIMER: u64 = 7;
/// Sets the timer that comes once: [`SetSingleshotTimer`].
pub const VCPUOP_SET_SINGLESHOT_TIMER: u64 = 8;
/// Stops it.
pub const VCPUOP_STOP_SINGLESHOT_TIMER: u64 = 9;
/// Says where the `vcpu_info` shall lie: [`RegisterVcpuInfo`].
pub const VCPUOP_REGISTER_VCPU_INFO: u64 = 10;
/// Sends a non-maskable interrupt.
pub const VCPUOP_SEND_NMI: u64 = 11;

/// Has a CPU.
pub const RUNSTATE_RUNNING: u32 = 0;
/// Waits for a CPU.
pub const RUNSTATE_RUNNABLE: u32 = 1;
/// Waits for an event.
pub const RUNSTATE_BLOCKED: u32 = 2;
/// Neither.
pub const RUNSTATE_OFFLINE: u32 = 3;
/// In [`RunstateInfo::state_entry_time`]: the structure is being updated (`XEN_RUNSTATE_UPDATE`).
pub const RUNSTATE_UPDATE: u64 = 1 << 63;

/// In [`SetSingleshotTimer::flags`]: a time that has passed is an error.
pub const VCPU_SSHOTTMR_FUTURE: u32 = 1;

/// How long a vCPU was in which state (`struct vcpu_runstate_info`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RunstateInfo {
    /// `RUNSTATE_*`.
    pub state: u32,
    /// Padding that C inserts.
    pub pad: u32,
    /// Since when (system time, nanoseconds).
    pub state_entry_time: u64,
    /// Nanoseconds in each state.
    pub time: [u64; 4],
}

/// [`VCPUOP_SET_SINGLESHOT_TIMER`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetSingleshotTimer {
    /// When (system time, nanoseconds).
    pub timeout_abs_ns: u64,
    /// `VCPU_SSHOTTMR_*`.
    pub flags: u32,
    /// Padding that C inserts.
    pub pad: u32,
}

/// [`VCPUOP_REGISTER_VCPU_INFO`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegisterVcpuInfo {
    /// Machine frame.
    pub mfn: u64,
    /// Offset in it, in bytes.
    pub offset: u32,
    /// Unused.
    pub rsvd: u32,
}

/// The general registers of an x86-64 guest (`struct cpu_user_regs`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the processor's own names")]
pub struct X86UserRegs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub error_code: u32,
    pub entry_vector: u32,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub es: u64,
    pub ds: u64,
    pub fs: u64,
    pub gs: u64,
}

/// The first registers of an x86-64 vCPU (`struct vcpu_guest_context`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct X86GuestContext {
    /// As `fxsave` lays it out; used if [`Self::flags`] say so.
    pub fpu_ctxt: [u8; 512],
    /// `VGCF_*`.
    pub flags: u64,
    /// General registers.
    pub user_regs: X86UserRegs,
    /// Handlers of exceptions.
    pub trap_ctxt: [TrapInfo; 256],
    /// The local descriptor table's address.
    pub ldt_base: u64,
    /// And its number of entries.
    pub ldt_ents: u64,
    /// Machine frames of the descriptor table.
    pub gdt_frames: [u64; 16],
    /// And its number of entries.
    pub gdt_ents: u64,
    /// Stack segment for entries from user mode.
    pub kernel_ss: u64,
    /// And the stack.
    pub kernel_sp: u64,
    /// Control registers: 3 is the kernel's root, 1 the user mode's, both as machine addresses.
    pub ctrlreg: [u64; 8],
    /// Debug registers.
    pub debugreg: [u64; 8],
    /// The event handler.
    pub event_callback_eip: u64,
    /// The handler of failures on the way back to the guest.
    pub failsafe_callback_eip: u64,
    /// The handler of system calls.
    pub syscall_callback_eip: u64,
    /// Assistance to switch on.
    pub vm_assist: u64,
    /// Base of `fs`.
    pub fs_base: u64,
    /// Base of `gs` in the kernel.
    pub gs_base_kernel: u64,
    /// Base of `gs` in user mode.
    pub gs_base_user: u64,
}

/// In [`X86GuestContext::flags`]: [`X86GuestContext::fpu_ctxt`] holds something.
pub const VGCF_I387_VALID: u64 = 1 << 0;
/// In [`X86GuestContext::flags`]: the vCPU starts in the guest's kernel.
pub const VGCF_IN_KERNEL: u64 = 1 << 2;
/// In [`X86GuestContext::flags`]: events are masked when the failsafe handler is entered.
pub const VGCF_FAILSAFE_DISABLES_EVENTS: u64 = 1 << 3;
/// In [`X86GuestContext::flags`]: events are masked when the system-call handler is entered.
pub const VGCF_SYSCALL_DISABLES_EVENTS: u64 = 1 << 4;

/// The registers of an AArch64 guest (`struct vcpu_guest_core_regs`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ArmCoreRegs {
    /// General registers, x0 to x30.
    pub x: [u64; 31],
    /// First instruction.
    pub pc: u64,
    /// Execution state.
    pub cpsr: u64,
    /// Saved state of EL1.
    pub spsr_el1: u64,
    /// AArch32 only.
    pub spsr_aarch32: [u32; 4],
    /// Stack pointer of EL0.
    pub sp_el0: u64,
    /// Stack pointer of EL1.
    pub sp_el1: u64,
    /// Return address of EL1's exceptions.
    pub elr_el1: u64,
}

/// The first registers of an AArch64 vCPU (`struct vcpu_guest_context`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ArmGuestContext {
    /// Bit 0: the vCPU is online.
    pub flags: u32,
    /// Padding that C inserts.
    pub pad: u32,
    /// Core registers.
    pub user_regs: ArmCoreRegs,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// TCR_EL1.
    pub ttbcr: u64,
    /// TTBR0_EL1: the user mode's root, as a machine address, or 0.
    pub ttbr0: u64,
    /// TTBR1_EL1: the kernel's.
    pub ttbr1: u64,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<RunstateInfo>() == 48 && size_of::<SetSingleshotTimer>() == 16);
    assert!(size_of::<RegisterVcpuInfo>() == 16 && size_of::<X86UserRegs>() == 200);
    assert!(size_of::<X86GuestContext>() == 5168 && offset_of!(X86GuestContext, ctrlreg) == 4984);
    assert!(size_of::<ArmCoreRegs>() == 312 && size_of::<ArmGuestContext>() == 352);
};
