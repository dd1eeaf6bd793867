//! guest-core
#![no_std]
