//! Atomics, locks, and what to do while waiting for another CPU.
//!
//! One name for all, so that the frame table's sources can be compiled a second time with loom's atomics in the place of the
//! processor's (`races/`), which then tries every interleaving.

pub use core::hint::spin_loop;
pub use core::sync::atomic;

pub use spin::Mutex;

// Said here, since it is so only with the processor's atomics.
const _: () = assert!(size_of::<crate::frame::FrameRecord>() == 16);
