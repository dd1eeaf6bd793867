//! Boards: their devices, and how they describe themselves at boot.
//!
//! [`emulated`] holds the devices of a machine that only guests see. A module for each board: parsers of boot information, which are pure and compile everywhere, and drivers, which
//! exist only on the architecture that has the device.
#![cfg_attr(not(test), no_std)]

pub mod emulated;
pub mod q35;
pub mod virt;
