//! The shared-info page (`xen.h`, `arch-x86/xen.h`, `arch-arm.h`).
//!
//! Event channels' bits, each vCPU's part, and the wall clock. Both architectures have the same parts, of other sizes,
//! so each has a structure of its own.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Time as one vCPU sees it (`struct vcpu_time_info`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VcpuTimeInfo {
    /// Odd while an update is in progress.
    pub version: u32,
    /// Padding.
    pub pad0: u32,
    /// The counter at the last update.
    pub tsc_timestamp: u64,
    /// Nanoseconds since boot at the last update.
    pub system_time: u64,
    /// Multiplier from counter to nanoseconds, 32 binary places.
    pub tsc_to_system_mul: u32,
    /// Shift of the counter before the multiplication; negative is to the right.
    pub tsc_shift: i8,
    /// Flags.
    pub flags: u8,
    /// Padding.
    pub pad1: [u8; 2],
}

/// One vCPU's part on x86-64 (`struct vcpu_info`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct X86VcpuInfo {
    /// Non-zero: an event is pending.
    pub evtchn_upcall_pending: u8,
    /// Non-zero: no upcalls.
    pub evtchn_upcall_mask: u8,
    /// Padding that C inserts.
    pub pad: [u8; 6],
    /// One bit for each word of pending channels.
    pub evtchn_pending_sel: u64,
    /// The address of the last page fault.
    pub cr2: u64,
    /// Padding.
    pub pad1: u64,
    /// Time.
    pub time: VcpuTimeInfo,
}

/// What only x86 has in the shared-info page (`struct arch_shared_info`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct X86ArchSharedInfo {
    /// Entries of the P2M that are valid.
    pub max_pfn: u64,
    /// Frame of the P2M's three-level list.
    pub pfn_to_mfn_frame_list_list: u64,
    /// Reason of a non-maskable interrupt.
    pub nmi_reason: u64,
    /// Root of the address space in which `p2m_vaddr` is valid.
    pub p2m_cr3: u64,
    /// Virtual address of the P2M.
    pub p2m_vaddr: u64,
    /// Odd while the P2M's mapping changes.
    pub p2m_generation: u64,
}

/// The page on x86-64, 3136 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct X86SharedInfo {
    /// The first 32 vCPUs.
    pub vcpu_info: [X86VcpuInfo; 32],
    /// One bit a channel: pending.
    pub evtchn_pending: [u64; 64],
    /// One bit a channel: masked.
    pub evtchn_mask: [u64; 64],
    /// Odd while the wall clock is updated.
    pub wc_version: u32,
    /// Seconds, low half.
    pub wc_sec: u32,
    /// Nanoseconds.
    pub wc_nsec: u32,
    /// Seconds, high half.
    pub wc_sec_hi: u32,
    /// What only x86 has.
    pub arch: X86ArchSharedInfo,
}

/// One vCPU's part on AArch64.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ArmVcpuInfo {
    /// Non-zero: an event is pending.
    pub evtchn_upcall_pending: u8,
    /// Padding; the interrupt mask is the CPU's own.
    pub pad: [u8; 7],
    /// One bit for each word of pending channels.
    pub evtchn_pending_sel: u64,
    /// Time.
    pub time: VcpuTimeInfo,
}

/// The page on AArch64, 1088 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ArmSharedInfo {
    /// The first vCPU; others register a place of their own.
    pub vcpu_info: [ArmVcpuInfo; 1],
    /// One bit a channel: pending.
    pub evtchn_pending: [u64; 64],
    /// One bit a channel: masked.
    pub evtchn_mask: [u64; 64],
    /// Odd while the wall clock is updated.
    pub wc_version: u32,
    /// Seconds, low half.
    pub wc_sec: u32,
    /// Nanoseconds.
    pub wc_nsec: u32,
    /// Seconds, high half.
    pub wc_sec_hi: u32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<VcpuTimeInfo>() == 32 && size_of::<X86VcpuInfo>() == 64);
    assert!(offset_of!(X86VcpuInfo, cr2) == 16 && offset_of!(X86VcpuInfo, time) == 32);
    assert!(size_of::<X86SharedInfo>() == 3136 && offset_of!(X86SharedInfo, evtchn_pending) == 2048);
    assert!(offset_of!(X86SharedInfo, evtchn_mask) == 2560 && offset_of!(X86SharedInfo, wc_version) == 3072);
    assert!(offset_of!(X86SharedInfo, arch) == 3088);
    assert!(size_of::<ArmVcpuInfo>() == 48 && size_of::<ArmSharedInfo>() == 1088);
    assert!(offset_of!(ArmSharedInfo, evtchn_pending) == 48 && offset_of!(ArmSharedInfo, wc_version) == 1072);
};
