//! ELF notes by which a kernel says how it wants to be started (`elfnote.h`).
//!
//! Numbers are 8 bytes (4 are accepted), strings end with a zero byte.

/// The notes' owner, with the zero byte that counts in its length.
pub const OWNER: &[u8] = b"Xen\0";

/// Information string of old kernels.
pub const INFO: u32 = 0;
/// Virtual address of the first instruction.
pub const ENTRY: u32 = 1;
/// Virtual address of the page for hypercall code.
pub const HYPERCALL_PAGE: u32 = 2;
/// Virtual address at which pseudo-physical frame 0 would be mapped.
pub const VIRT_BASE: u32 = 3;
/// What is subtracted from the ELF file's physical addresses.
pub const PADDR_OFFSET: u32 = 4;
/// `"xen-3.0"`.
pub const XEN_VERSION: u32 = 5;
/// Name of the operating system.
pub const GUEST_OS: u32 = 6;
/// Its version.
pub const GUEST_VERSION: u32 = 7;
/// `"generic"`.
pub const LOADER: u32 = 8;
/// `"yes"` (32-bit x86; kept for loaders that look).
pub const PAE_MODE: u32 = 9;
/// Features wanted, separated by `|`; `!` in front of one that is required.
pub const FEATURES: u32 = 10;
/// Symbols for the BSDs.
pub const BSD_SYMTAB: u32 = 11;
/// Lowest address that the hypervisor may use for itself.
pub const HV_START_LOW: u32 = 12;
/// Mask and value that tell a valid L1 entry.
pub const L1_MFN_VALID: u32 = 13;
/// A cancelled suspend is understood.
pub const SUSPEND_CANCEL: u32 = 14;
/// Virtual address at which the P2M shall be mapped.
pub const INIT_P2M: u32 = 15;
/// 1: the module needn't be mapped, its PFN is enough.
pub const MOD_START_PFN: u32 = 16;
/// Features supported, one bit each.
pub const SUPPORTED_FEATURES: u32 = 17;
/// 32-bit entry with physical addresses.
pub const PHYS32_ENTRY: u32 = 18;
