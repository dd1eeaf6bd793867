//! QEMU's `q35`, and PC-compatible boards like it.
//!
//! What the loader says ([`multiboot`], [`multiboot2`], [`options`]) is parsed by pure code. The devices (`serial`, `pit`, `rtc`,
//! `apic`, `power`) exist on x86-64 only.

pub mod list;
pub mod multiboot;
pub mod multiboot2;
pub mod options;

#[cfg(target_arch = "x86_64")]
pub mod apic;
#[cfg(target_arch = "x86_64")]
pub mod pit;
#[cfg(target_arch = "x86_64")]
pub mod power;
#[cfg(target_arch = "x86_64")]
pub mod rtc;
#[cfg(target_arch = "x86_64")]
pub mod serial;
