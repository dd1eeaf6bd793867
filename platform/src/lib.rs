//! Boards: their devices, and how they describe themselves at boot.
//!
//! A module for each board: parsers of boot information, which are pure and compile everywhere, and drivers, which
//! exist only on the architecture that has the device.
#![cfg_attr(not(test), no_std)]

pub mod q35;
pub mod virt;
