//! What is particular to AArch64 (`arch-arm.h`, and Penumbra's own direct mode).
//!
//! Xen has no direct mode on Arm. Penumbra takes the hypercall instruction and registers from Xen on Arm, and the
//! address-space layout from Xen's direct mode on x86-64, so that one guest can know both.

/// The immediate of the `hvc` instruction that is a hypercall (`XEN_HYPERCALL_TAG`).
pub const HVC_IMMEDIATE: u16 = 0xea1;

/// First address of the hypervisor's part of the address space (slot 256 of the kernel's root).
pub const HYPERVISOR_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// One beyond its last (slot 272).
pub const HYPERVISOR_VIRT_END: u64 = 0xffff_8800_0000_0000;
/// Where the guest finds the M2P, 8 bytes a frame.
pub const MACH2PHYS_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// One beyond the M2P's window.
pub const MACH2PHYS_VIRT_END: u64 = 0xffff_8040_0000_0000;

/// First slot of a kernel root that belongs to the hypervisor.
pub const RESERVED_ROOT_SLOT_FIRST: usize = 256;
/// One beyond the last.
pub const RESERVED_ROOT_SLOT_END: usize = 272;

/// The memory attributes that every entry uses: `MAIR_EL1` index 0 is Normal memory, write-back.
pub const ATTRIBUTE_INDEX_NORMAL: u64 = 0;
