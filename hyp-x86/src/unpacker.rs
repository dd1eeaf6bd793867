//! Packed kernels, opened in free memory.
//!
//! What comes out and the decoder's heap are each a piece of free memory, so large as the file says; without as much the file isn't
//! opened. The heap is given back as soon as the decoder is done, the kernel when the next one is opened, or when the [`Opener`]
//! goes. The same kernel once more (a copy of the file, for another domain) is still there and isn't unpacked again.

use core::ops::Range;
use core::slice;

use hyp_core::address::PAGE_BYTES;
use hyp_core::domain::unpacker::Unpacker;
use unpack::{Error, Found, Packed};

use crate::machine::HYPERVISOR;
use crate::{clock, heap, memory};

/// Opens kernels that the boot loader has left.
#[derive(Default)]
pub struct Opener<'f> {
    open: Option<Open<'f>>,
}

/// The kernel that was opened last.
struct Open<'f> {
    packed: Packed<'f>,
    kernel: Piece,
}

impl<'f> Unpacker<'f> for Opener<'f> {
    fn open<'s>(&'s mut self, file: &'f [u8]) -> Result<&'s [u8], Error>
    where
        'f: 's,
    {
        let packed = match Packed::find(file)? {
            Found::Packed(packed) => packed,
            Found::AsItIs(kernel) => {
                // Whoever builds from the file needs the memory.
                self.open = None;
                return Ok(kernel);
            }
        };
        if self.open.as_ref().is_none_or(|open| open.packed.content() != packed.content()) {
            self.open = None;
            self.open = Some(Open { packed, kernel: unpack(&packed)? });
        }
        let kernel = self.open.as_ref().map_or(&[][..], |open| open.kernel.bytes());
        Ok(kernel.get(..packed.length()).unwrap_or(kernel))
    }
}

fn unpack(packed: &Packed<'_>) -> Result<Piece, Error> {
    let start = clock::since_start();
    let out = packed.length() as u64;
    let free = HYPERVISOR.frames().free_frames() as u64 * PAGE_BYTES;
    let too_large = Error::TooLarge { needed: out.saturating_add(packed.heap()), free };
    let mut kernel = Piece::take(out).ok_or(too_large)?;
    let mut lent = Piece::take(packed.heap()).ok_or(too_large)?;
    // SAFETY: one CPU is running, and decoders keep nothing.
    unsafe { heap::with(lent.bytes_mut(), || packed.unpack(kernel.bytes_mut())) }?;
    let (ticks, unit) = (clock::since_start().saturating_sub(start), clock::unit());
    log::info!("a kernel is unpacked ({}): {} KiB, {ticks} {unit}", packed.format(), out >> 10);
    if !packed.is_vouched_for() {
        let format = packed.format();
        log::warn!(
            "nothing in that file vouches for what came out: damage to its {format} payload may go unnoticed"
        );
    }
    Ok(kernel)
}

/// A piece of free memory, given back when it goes.
struct Piece(Range<u64>);

impl Piece {
    fn take(bytes: u64) -> Option<Self> {
        HYPERVISOR.take_boot_memory(bytes).map(Self)
    }

    fn bytes(&self) -> &[u8] {
        let Range { start, end } = self.0;
        // SAFETY: `take_boot_memory` gives RAM that nobody else has until it is released, and the direct map shows all RAM.
        unsafe { slice::from_raw_parts(memory::direct(start), (end - start) as usize) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let Range { start, end } = self.0;
        // SAFETY: as above; and this is the only way to it for as long as the piece is borrowed.
        unsafe { slice::from_raw_parts_mut(memory::direct(start), (end - start) as usize) }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        HYPERVISOR.release_boot_memory(self.0.start, self.0.end);
    }
}
