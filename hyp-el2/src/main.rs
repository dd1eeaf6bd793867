//! Penumbra for AArch64: the hypervisor at EL2.
//!
//! A trap goes through `vectors.s`, which saves the guest's registers straight into the running vCPU's [`context`],
//! to [`run`], which deals with it, or lets [`traps`] deal with what a guest must not do, and decides who runs next. The core
//! reaches the machine through [`machine`], [`memory`], [`guest_memory`] and [`board`]. [`control`] is the list of everything
//! that confines a guest in direct mode, where there is no second stage. [`start`] is the boot sequence, beginning in
//! `boot.s`; [`own_tables`] makes the hypervisor's own address space; [`frame_arrays`] what the core keeps about frames.
//! [`fault`] is the end of it all. [`oracle`] is there for tests only, in builds with the feature of that name.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod board;
#[cfg(target_os = "none")]
mod context;
#[cfg(target_os = "none")]
mod control;
#[cfg(target_os = "none")]
mod cpu;
#[cfg(target_os = "none")]
mod fault;
#[cfg(target_os = "none")]
mod frame_arrays;
#[cfg(target_os = "none")]
mod guest_memory;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod memory;
#[cfg(all(target_os = "none", feature = "oracle"))]
mod oracle;
#[cfg(all(target_os = "none", not(feature = "oracle")))]
#[path = "no_oracle.rs"]
mod oracle;
#[cfg(target_os = "none")]
mod own_tables;
#[cfg(target_os = "none")]
mod roots;
#[cfg(target_os = "none")]
mod run;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod traps;

#[cfg(target_os = "none")]
core::arch::global_asm!(include_str!("boot.s"));
#[cfg(target_os = "none")]
core::arch::global_asm!(include_str!("vectors.s"));

/// Everything the core keeps.
#[cfg(target_os = "none")]
static HYPERVISOR: hyp_core::Hypervisor<machine::El2> = hyp_core::Hypervisor::new(machine::El2);
