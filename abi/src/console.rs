//! The two consoles that a guest has: `console_io`, the emergency console (`xen.h`), and the page that it shares with whoever shows its
//! output (`io/console.h`).
//!
//! Arguments of `console_io`: the operation, a number of bytes, the guest address of a buffer.

/// Writes bytes to the console. Returns 0.
pub const CONSOLEIO_WRITE: u64 = 0;
/// Reads bytes that were typed, without waiting. Returns how many there were.
pub const CONSOLEIO_READ: u64 = 1;

/// Bytes of the ring that carries what was typed to the guest. A power of two.
pub const INPUT_RING: usize = 1024;
/// Bytes of the ring that carries what the guest writes. A power of two.
pub const OUTPUT_RING: usize = 2048;

/// The start of the console page (`struct xencons_interface`).
///
/// The four indices count bytes from the beginning of time, modulo 2^32; a byte's place in its ring is its number modulo the
/// ring's size. Who reads a ring moves its `cons`, who writes it moves its `prod`, and then tells the other side through the console's
/// event channel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ConsolePage {
    /// What was typed.
    pub input: [u8; INPUT_RING],
    /// What the guest writes.
    pub output: [u8; OUTPUT_RING],
    /// How many bytes of `input` the guest has read.
    pub in_cons: u32,
    /// How many bytes of `input` were ever written.
    pub in_prod: u32,
    /// How many bytes of `output` were read.
    pub out_cons: u32,
    /// How many bytes of `output` the guest has written.
    pub out_prod: u32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(ConsolePage, output) == 1024 && offset_of!(ConsolePage, in_cons) == 3072);
    assert!(offset_of!(ConsolePage, in_prod) == 3076 && offset_of!(ConsolePage, out_cons) == 3080);
    assert!(offset_of!(ConsolePage, out_prod) == 3084 && size_of::<ConsolePage>() == 3088);
};
