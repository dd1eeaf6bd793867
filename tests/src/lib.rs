//! Whole-machine tests: what is booted, and how its serial output is judged.
//!
//! This crate says *what* is tested, as a table of [`Case`]s ([`table`]); `cargo xtask test` boots each one in an
//! emulated machine and hands the output to [`judge`](case::Case::judge). Nothing here starts a program, so that the
//! judging itself is tested on the host.
#![forbid(unsafe_code)]

mod aarch64;
pub mod bad_input;
pub mod case;
mod console;
mod debian;
mod oracle;
mod own_fault;
mod packed;
pub mod soak;
mod stacks;
mod stock;
pub mod stretch;
pub mod table;
pub mod verdict;
