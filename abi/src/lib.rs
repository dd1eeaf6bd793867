//! Xen's public ABI, as Penumbra speaks it.
//!
//! One definition for every side: the hypervisor core, its backends and the guest kernels all take numbers, structures
//! and error codes from here. Values are those of the public headers of Xen 4.17 (Debian's `libxen-dev`); each file
//! names the header it follows. What Penumbra adds of its own stands under names that begin with `PENUMBRA`.
//!
//! Structures have C layout and hold plain integers, so that any bytes a guest passes are a valid value: a decoded
//! structure is still a claim. Const assertions hold sizes and offsets to those of the C headers.
#![no_std]
#![forbid(unsafe_code)]

pub mod aarch64;
pub mod callback;
pub mod console;
pub mod domctl;
pub mod elfnote;
pub mod errno;
pub mod event_channel;
pub mod grant_table;
pub mod hypercall;
pub mod memory;
pub mod mmu;
pub mod multicall;
pub mod physdev;
pub mod sched;
pub mod shared_info;
pub mod start_info;
pub mod sysctl;
pub mod vcpu;
pub mod version;
pub mod vm_assist;
pub mod x86_64;

pub use errno::Errno;

/// The domain that asks (`DOMID_SELF`, `xen.h`).
pub const DOMID_SELF: u16 = 0x7ff0;
/// First of the numbers that never name a real domain (`DOMID_FIRST_RESERVED`, `xen.h`).
pub const DOMID_FIRST_RESERVED: u16 = 0x7ff0;
/// The owner of device memory (`DOMID_IO`, `xen.h`).
pub const DOMID_IO: u16 = 0x7ff1;
/// The owner of the hypervisor's own frames (`DOMID_XEN`, `xen.h`).
pub const DOMID_XEN: u16 = 0x7ff2;
/// A number that is no domain at all (`DOMID_INVALID`, `xen.h`).
pub const DOMID_INVALID: u16 = 0x7ff4;
