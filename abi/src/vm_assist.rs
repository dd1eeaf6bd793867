//! `vm_assist`: assistance that a domain switches on or off (`xen.h`).

/// Switches a kind of assistance on. Second argument: which.
pub const VMASST_CMD_ENABLE: u32 = 0;
/// Switches a kind of assistance off. Second argument: which.
pub const VMASST_CMD_DISABLE: u32 = 1;

/// Full 4 GiB segments, simulated (32-bit x86 guests).
pub const VMASST_TYPE_4GB_SEGMENTS: u32 = 0;
/// A trap whenever a segment had to be simulated (32-bit x86 guests).
pub const VMASST_TYPE_4GB_SEGMENTS_NOTIFY: u32 = 1;
/// Direct writes to tables of the lowest level are validated and carried out (x86).
pub const VMASST_TYPE_WRITABLE_PAGETABLES: u32 = 2;
/// Roots above 4 GiB (32-bit x86 guests).
pub const VMASST_TYPE_PAE_EXTENDED_CR3: u32 = 3;
/// The I/O privilege level in the flags register, as a real processor has it (x86).
pub const VMASST_TYPE_ARCHITECTURAL_IOPL: u32 = 4;
/// A mark in the run-state area while the hypervisor writes to it.
pub const VMASST_TYPE_RUNSTATE_UPDATE_FLAG: u32 = 5;
/// The machine-to-physical table is hidden from user mode (64-bit x86 guests).
pub const VMASST_TYPE_M2P_STRICT: u32 = 32;
