//! What is particular to x86-64 (`arch-x86/xen.h`, `arch-x86/xen-x86_64.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The hypervisor's flat 64-bit code segment for ring 3, in every descriptor table (index 262).
pub const FLAT_RING3_CS64: u16 = 0xe033;
/// The same for 32-bit code (index 260).
pub const FLAT_RING3_CS32: u16 = 0xe023;
/// The flat stack segment for ring 3 (index 261).
pub const FLAT_RING3_SS64: u16 = 0xe02b;
/// The flat data segment: the null selector in 64-bit mode.
pub const FLAT_RING3_DS64: u16 = 0;
/// First descriptor index that belongs to the hypervisor.
pub const FIRST_RESERVED_GDT_ENTRY: u32 = 14 * 4096 / 8;

/// First address of the hypervisor's part of the address space (root slot 256).
pub const HYPERVISOR_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// One beyond its last (root slot 272).
pub const HYPERVISOR_VIRT_END: u64 = 0xffff_8800_0000_0000;
/// Where the guest finds the M2P, 8 bytes a frame.
pub const MACH2PHYS_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// One beyond the M2P's window.
pub const MACH2PHYS_VIRT_END: u64 = 0xffff_8040_0000_0000;

/// `set_segment_base`: the base of `fs`.
pub const SEGBASE_FS: u64 = 0;
/// `set_segment_base`: the base of `gs` in user mode.
pub const SEGBASE_GS_USER: u64 = 1;
/// `set_segment_base`: the base of `gs` in the kernel.
pub const SEGBASE_GS_KERNEL: u64 = 2;
/// `set_segment_base`: the selector of `gs` in user mode.
pub const SEGBASE_GS_USER_SEL: u64 = 3;

/// A trap handler (`struct trap_info`). A table of these ends with an `address` of zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TrapInfo {
    /// The exception's number.
    pub vector: u8,
    /// Bits 0 and 1: the privilege level that may raise it by `int`; bit 2: mask events on entry.
    pub flags: u8,
    /// Code segment of the handler.
    pub cs: u16,
    /// Padding that C inserts.
    pub pad: u32,
    /// The handler.
    pub address: u64,
}

/// What [`crate::hypercall::IRET`] takes from the guest's stack (`struct iret_context`), lowest address first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IretContext {
    /// Restored register.
    pub rax: u64,
    /// Restored register.
    pub r11: u64,
    /// Restored register.
    pub rcx: u64,
    /// [`VGCF_IN_SYSCALL`] or 0.
    pub flags: u64,
    /// Where to go on.
    pub rip: u64,
    /// Code segment; privilege level 3 means user mode.
    pub cs: u64,
    /// Flags; the interrupt flag clear means that events are masked.
    pub rflags: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Stack segment.
    pub ss: u64,
}

/// Return by `sysret`: `rcx` and `r11` needn't be restored.
pub const VGCF_IN_SYSCALL: u64 = 1 << 8;

const _: () = assert!(size_of::<TrapInfo>() == 16 && size_of::<IretContext>() == 72);
