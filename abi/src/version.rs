//! `xen_version`: who the hypervisor is and what it can do (`version.h`, `features.h`).
//!
//! Arguments: the operation, and the guest address of a buffer of the length given at each.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Returns major version in bits 31 to 16, minor version below. No buffer.
pub const XENVER_VERSION: u64 = 0;
/// Writes the extra version, a string of [`XEN_EXTRAVERSION_LEN`] bytes.
pub const XENVER_EXTRAVERSION: u64 = 1;
/// Writes compiler, user, domain and date.
pub const XENVER_COMPILE_INFO: u64 = 2;
/// Writes the kinds of guests that can run, a string of [`XEN_CAPABILITIES_INFO_LEN`] bytes.
pub const XENVER_CAPABILITIES: u64 = 3;
/// Writes the source revision, a string of [`XEN_CHANGESET_INFO_LEN`] bytes.
pub const XENVER_CHANGESET: u64 = 4;
/// Writes the start of the hypervisor's part of the address space, 8 bytes.
pub const XENVER_PLATFORM_PARAMETERS: u64 = 5;
/// Reads and writes a [`FeatureInfo`].
pub const XENVER_GET_FEATURES: u64 = 6;
/// Returns the page size. No buffer.
pub const XENVER_PAGESIZE: u64 = 7;
/// Writes the calling domain's unique number, 16 bytes.
pub const XENVER_GUEST_HANDLE: u64 = 8;
/// Writes the hypervisor's command line, a string of 1024 bytes.
pub const XENVER_COMMANDLINE: u64 = 9;
/// Writes the build's identity.
pub const XENVER_BUILD_ID: u64 = 10;

/// Bytes of the buffer of [`XENVER_EXTRAVERSION`].
pub const XEN_EXTRAVERSION_LEN: usize = 16;
/// Bytes of the buffer of [`XENVER_CAPABILITIES`].
pub const XEN_CAPABILITIES_INFO_LEN: usize = 1024;
/// Bytes of the buffer of [`XENVER_CHANGESET`].
pub const XEN_CHANGESET_INFO_LEN: usize = 64;
/// Bytes of the buffer of [`XENVER_COMMANDLINE`].
pub const XEN_COMMANDLINE_LEN: usize = 1024;

/// Buffer of [`XENVER_GET_FEATURES`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FeatureInfo {
    /// In: which group of 32 features; there is one, 0.
    pub submap_idx: u32,
    /// Out: one bit a feature.
    pub submap: u32,
}

const _: () = assert!(size_of::<FeatureInfo>() == 8);

/// Buffer of [`XENVER_COMPILE_INFO`]: four strings that end with a zero byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CompileInfo {
    /// The compiler.
    pub compiler: [u8; 64],
    /// Who compiled.
    pub compile_by: [u8; 16],
    /// Where.
    pub compile_domain: [u8; 32],
    /// When.
    pub compile_date: [u8; 32],
}

const _: () = assert!(size_of::<CompileInfo>() == 144);

/// Bit: the guest needn't write-protect its page tables itself.
pub const XENFEAT_WRITABLE_PAGE_TABLES: u32 = 0;
/// Bit: the guest needn't write-protect its segment descriptors itself.
pub const XENFEAT_WRITABLE_DESCRIPTOR_TABLES: u32 = 1;
/// Bit: the hypervisor translates pseudo-physical frames (not in direct mode).
pub const XENFEAT_AUTO_TRANSLATED_PHYSMAP: u32 = 2;
/// Bit: the guest's kernel runs at the highest privilege that guests have.
pub const XENFEAT_SUPERVISOR_MODE_KERNEL: u32 = 3;
/// Bit: page directories may lie above 4 GiB.
pub const XENFEAT_PAE_PGDIR_ABOVE_4GB: u32 = 4;
/// Bit: `mmu_update` knows [`crate::mmu::MMU_PT_UPDATE_PRESERVE_AD`].
pub const XENFEAT_MMU_PT_UPDATE_PRESERVE_AD: u32 = 5;
/// Bit: `mmuext_op` knows clear and copy.
pub const XENFEAT_HIGHMEM_ASSIST: u32 = 6;
/// Bit: grant mappings carry the guest's available bits.
pub const XENFEAT_GNTTAB_MAP_AVAIL_BITS: u32 = 7;
/// Bit: an interrupt vector can be the callback.
pub const XENFEAT_HVM_CALLBACK_VECTOR: u32 = 8;
/// Bit: paravirtual time is safe to use.
pub const XENFEAT_HVM_SAFE_PVCLOCK: u32 = 9;
/// Bit: physical interrupts over event channels.
pub const XENFEAT_HVM_PIRQS: u32 = 10;
/// Bit: the asking domain is the control domain.
pub const XENFEAT_DOM0: u32 = 11;
/// Bit: `memory_op` knows virtual nodes.
pub const XENFEAT_MEMORY_OP_VNODE_SUPPORTED: u32 = 13;
/// Bit: Arm's SMC calling convention is answered.
pub const XENFEAT_ARM_SMCCC_SUPPORTED: u32 = 14;

/// Bit: the domain's pseudo-physical frames aren't the machine's, as the hypervisor counts them.
pub const XENFEAT_NOT_DIRECT_MAPPED: u32 = 16;
/// Bit: the frames that a guest passes to the hypervisor are the machine's.
pub const XENFEAT_DIRECT_MAPPED: u32 = 17;

/// The submap of [`XENVER_GET_FEATURES`] that holds Penumbra's own features; Xen has submap 0 only, and answers EINVAL.
pub const PENUMBRA_FEATURE_SUBMAP: u32 = 1;
/// Bit of Penumbra's own submap: an entry of a level-2 table may map 2 MiB.
pub const PENUMBRA_FEATURE_SUPERPAGES: u32 = 0;
