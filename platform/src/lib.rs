//! platform
#![no_std]
