//! Hypercall numbers (`xen.h`).
//!
//! x86-64: number in `rax`, arguments in `rdi`, `rsi`, `rdx`, `r10`, `r8`, `r9`, result in `rax`, by `syscall`.
//! AArch64: number in `x16`, arguments in `x0` to `x5`, result in `x0`, by [`crate::aarch64::HVC_IMMEDIATE`].

/// Installs the guest's trap handlers (x86).
pub const SET_TRAP_TABLE: u64 = 0;
/// A batch of page-table and M2P updates.
pub const MMU_UPDATE: u64 = 1;
/// Installs the guest's segment descriptor table (x86).
pub const SET_GDT: u64 = 2;
/// Sets the kernel stack for entries from user mode (x86).
pub const STACK_SWITCH: u64 = 3;
/// Installs event and failsafe callbacks (x86).
pub const SET_CALLBACKS: u64 = 4;
/// Sets or clears the task-switched flag (x86).
pub const FPU_TASKSWITCH: u64 = 5;
/// `sched_op` as it was before interface 0x00030101.
pub const SCHED_OP_COMPAT: u64 = 6;
/// Operations on the platform, for the control domain.
pub const PLATFORM_OP: u64 = 7;
/// Writes a debug register (x86).
pub const SET_DEBUGREG: u64 = 8;
/// Reads a debug register (x86).
pub const GET_DEBUGREG: u64 = 9;
/// Writes one segment descriptor (x86).
pub const UPDATE_DESCRIPTOR: u64 = 10;
/// Reservations and the memory map: [`crate::memory`].
pub const MEMORY_OP: u64 = 12;
/// Several hypercalls in one: [`crate::multicall`].
pub const MULTICALL: u64 = 13;
/// Writes the leaf entry of one virtual address.
pub const UPDATE_VA_MAPPING: u64 = 14;
/// Sets the one-shot timer.
pub const SET_TIMER_OP: u64 = 15;
/// `event_channel_op` as it was before interface 0x00030202.
pub const EVENT_CHANNEL_OP_COMPAT: u64 = 16;
/// Version and features: [`crate::version`].
pub const XEN_VERSION: u64 = 17;
/// The emergency console: [`crate::console`].
pub const CONSOLE_IO: u64 = 18;
/// `physdev_op` as it was before interface 0x00030202.
pub const PHYSDEV_OP_COMPAT: u64 = 19;
/// Grants of pages to other domains.
pub const GRANT_TABLE_OP: u64 = 20;
/// Switches assistance on or off.
pub const VM_ASSIST: u64 = 21;
/// [`UPDATE_VA_MAPPING`] with a frame of another domain.
pub const UPDATE_VA_MAPPING_OTHERDOMAIN: u64 = 22;
/// Returns from a trap (x86).
pub const IRET: u64 = 23;
/// Virtual CPUs.
pub const VCPU_OP: u64 = 24;
/// Sets a segment base (x86-64).
pub const SET_SEGMENT_BASE: u64 = 25;
/// Pinning, roots and flushes: [`crate::mmu`].
pub const MMUEXT_OP: u64 = 26;
/// The security module.
pub const XSM_OP: u64 = 27;
/// Non-maskable interrupts.
pub const NMI_OP: u64 = 28;
/// Yield, block, shut down: [`crate::sched`].
pub const SCHED_OP: u64 = 29;
/// Registers callbacks (x86).
pub const CALLBACK_OP: u64 = 30;
/// Profiling.
pub const XENOPROF_OP: u64 = 31;
/// Event channels.
pub const EVENT_CHANNEL_OP: u64 = 32;
/// Physical devices and interrupts.
pub const PHYSDEV_OP: u64 = 33;
/// Fully virtualised domains.
pub const HVM_OP: u64 = 34;
/// Control of the whole system: [`crate::sysctl`].
pub const SYSCTL: u64 = 35;
/// Control of one domain: [`crate::domctl`].
pub const DOMCTL: u64 = 36;
/// Crash kernels.
pub const KEXEC_OP: u64 = 37;
/// Transcendent memory (gone).
pub const TMEM_OP: u64 = 38;
/// Messages between domains.
pub const ARGO_OP: u64 = 39;
/// Performance counters.
pub const XENPMU_OP: u64 = 40;
/// Device models.
pub const DM_OP: u64 = 41;
/// The hypervisor's file system.
pub const HYPFS_OP: u64 = 42;
/// First of the eight numbers that belong to the architecture (`__HYPERVISOR_arch_0`).
pub const ARCH_0: u64 = 48;

/// What Xen doesn't have: number 55 (`__HYPERVISOR_arch_7`), which Xen leaves free on both architectures. The first
/// argument is the sub-operation.
pub const PENUMBRA: u64 = 55;
/// Sub-operation of [`PENUMBRA`]: recount every reference and type from the tables themselves. Control domain only;
/// returns the number of findings, 0 when all is well.
pub const PENUMBRA_AUDIT: u64 = 0;
/// Sub-operation of [`PENUMBRA`]: take the page table that is mapped read-only at the guest-virtual address in the second
/// argument out of its tree, and make that mapping writable. What it translated is absent until it is hooked in again.
pub const PENUMBRA_UNHOOK: u64 = 1;
/// Sub-operation of [`PENUMBRA`]: validate the unhooked table that translates the guest-virtual address in the second argument
/// ([`PENUMBRA_HOOK_ALL`]: every unhooked table), make its mapping read-only again, and put it back into its tree.
pub const PENUMBRA_HOOK: u64 = 2;
/// For [`PENUMBRA_HOOK`]: all unhooked tables of the domain.
pub const PENUMBRA_HOOK_ALL: u64 = !0;
/// Sub-operation of [`PENUMBRA`]: the longest stretch in the hypervisor without a preemption point, whatever a CPU came there for, in the
/// board's finest ticks (instructions under `-icount`); with a second argument of 1 it is set back to zero. Control domain only.
pub const PENUMBRA_LONGEST_STRETCH: u64 = 3;
