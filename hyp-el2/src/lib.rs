//! The parts of the AArch64 backend that are pure: they compile, and are tested, on any host.
//!
//! - [`layout`]: where things are in EL2's virtual address space;
//! - [`format`](mod@format): the guests' page tables, as the core sees them;
//! - [`store`](mod@store) and [`remembered`]: when an entry of theirs may be stored, and what TLBs have to forget before;
//! - [`confinement`]: the values of the registers that confine guests;
//! - [`first_registers`]: what a guest may choose of a vCPU that it starts;
//! - [`mapper`]: building and surveying the hypervisor's own tables;
//! - [`syndrome`]: what a trap's syndrome says;
//! - [`features`]: what guests see of the CPU's ID registers;
//! - [`injection`]: where a guest's own exception handler gets control.
//!
//! Everything that touches the machine is in the binary of the same name.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod confinement;
pub mod features;
pub mod first_registers;
pub mod format;
pub mod injection;
pub mod layout;
pub mod mapper;
pub mod remembered;
pub mod store;
pub mod syndrome;

/// One name for the atomics, so that `remembered` can be compiled a second time with loom's (`races/`).
mod sync {
    pub use core::sync::atomic;
}
