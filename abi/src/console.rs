//! `console_io`: the emergency console (`xen.h`).
//!
//! Arguments: the operation, a number of bytes, the guest address of a buffer.

/// Writes bytes to the console. Returns 0.
pub const CONSOLEIO_WRITE: u64 = 0;
/// Reads bytes that were typed, without waiting. Returns how many there were.
pub const CONSOLEIO_READ: u64 = 1;
