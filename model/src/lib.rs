//! A machine beneath the core that is as careless as architecture allows, and a naive specification above it.
//!
//! * [`mod@format`]: what hardware does with entries, for the fake format and for both real ones;
//! * [`hardware`]: TLBs, walk caches, and caches of data;
//! * [`machine`]: the traits of `hyp_core::machine` on top of them;
//! * [`spec`]: what must happen, worked out naively from the tables themselves;
//! * [`operation`], [`author`], [`session`]: random operations of several domains, made up, carried out, and held against it.
#![forbid(unsafe_code)]

pub mod author;
pub mod bits;
pub mod format;
pub mod guest;
pub mod hardware;
pub mod machine;
pub mod operation;
pub mod session;
pub mod spec;
