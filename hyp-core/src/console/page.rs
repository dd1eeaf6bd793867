//! A domain's console page (`io/console.h`): two rings of bytes that the domain and the hypervisor share.
//!
//! The domain writes output and reads input; the hypervisor does the opposite. Each ring has two indices, which count bytes modulo 2^32: how
//! many were written, and how many read. All of the page is the domain's to scribble on, so the indices are claims: if more bytes
//! seem to wait than the ring holds, none do; a place is a number modulo the ring's size; whatever the bytes are, they are only text.
//! What the hypervisor keeps of a ring between two looks at it is nothing.
//!
//! Both indices of a ring stand in one word of memory, which is read and changed as a whole, though each side owns but one half. (Both
//! architectures are little-endian: the index of the reader is the lower half.)

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use penumbra_abi::console::{ConsolePage, INPUT_RING, OUTPUT_RING};

use crate::address::MachineFrame;
use crate::machine::FrameMemory;

/// How often an index is moved anew whose other half the domain changes at that very moment. A domain that does so again and again holds up
/// nobody but itself.
const ATTEMPTS: usize = 64;

/// One of the two rings: where its bytes begin in the page, how many there are (a power of two), and which 8-byte word its indices are.
pub(crate) struct Place {
    pub bytes: usize,
    pub size: u32,
    pub indices: usize,
}

const INPUT: Place = Place {
    bytes: offset_of!(ConsolePage, input),
    size: INPUT_RING as u32,
    indices: offset_of!(ConsolePage, in_cons) / 8,
};
const OUTPUT: Place = Place {
    bytes: offset_of!(ConsolePage, output),
    size: OUTPUT_RING as u32,
    indices: offset_of!(ConsolePage, out_cons) / 8,
};

/// What a ring's two indices say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Indices {
    consumed: u32,
    produced: u32,
}

impl Indices {
    const fn decode(word: u64) -> Self {
        Self { consumed: word as u32, produced: (word >> 32) as u32 }
    }

    const fn encode(self) -> u64 {
        self.consumed as u64 | (self.produced as u64) << 32
    }

    /// How many bytes wait to be read, if the ring can hold as many.
    fn waiting(self, size: u32) -> Option<u32> {
        Some(self.produced.wrapping_sub(self.consumed)).filter(|waiting| *waiting <= size)
    }

    /// After so many bytes were read.
    const fn consume(self, count: u32) -> Self {
        Self { consumed: self.consumed.wrapping_add(count), ..self }
    }

    /// After so many bytes were written.
    const fn produce(self, count: u32) -> Self {
        Self { produced: self.produced.wrapping_add(count), ..self }
    }
}

/// A console page, for as long as it is held as *writable*.
pub(crate) struct Page<'a, F: FrameMemory> {
    pub memory: &'a F,
    pub frame: MachineFrame,
}

impl<F: FrameMemory> Page<'_, F> {
    /// Whether output waits.
    pub fn has_output(&self) -> bool {
        self.waiting(&OUTPUT) != 0
    }

    /// Takes output, at most as much as fits; returns how many bytes.
    pub fn take_output(&self, into: &mut [u8]) -> usize {
        self.take(&OUTPUT, into)
    }

    /// How many bytes of input there is room for.
    pub fn input_room(&self) -> usize {
        self.room(&INPUT)
    }

    /// Gives input, no more than there is room for; returns how many bytes.
    pub fn give_input(&self, from: &[u8]) -> usize {
        self.give(&INPUT, from)
    }

    /// How many bytes wait in a ring.
    pub fn waiting(&self, place: &Place) -> usize {
        let waiting = self.indices(place).and_then(|(_, indices)| indices.waiting(place.size));
        waiting.unwrap_or(0) as usize
    }

    /// How many bytes more a ring has room for.
    pub fn room(&self, place: &Place) -> usize {
        let waiting = self.indices(place).and_then(|(_, indices)| indices.waiting(place.size));
        waiting.map_or(0, |waiting| place.size.saturating_sub(waiting) as usize)
    }

    /// Takes bytes out of a ring, at most as many as fit; returns how many.
    pub fn take(&self, place: &Place, into: &mut [u8]) -> usize {
        let Some((word, indices)) = self.indices(place) else { return 0 };
        let waiting = indices.waiting(place.size).unwrap_or(0);
        let count = waiting.min(u32::try_from(into.len()).unwrap_or(u32::MAX));
        let (first, rest) = halves(place, indices.consumed, count);
        let Some((head, tail)) = into.split_at_mut_checked(first.length) else { return 0 };
        self.memory.read_frame(self.frame, first.offset, head);
        self.memory.read_frame(self.frame, rest.offset, tail.get_mut(..rest.length).unwrap_or(&mut []));
        let moved =
            change(word, indices, |now| (now.consumed == indices.consumed).then(|| now.consume(count)));
        if moved { count as usize } else { 0 }
    }

    /// Puts bytes into a ring, no more than there is room for; returns how many.
    pub fn give(&self, place: &Place, from: &[u8]) -> usize {
        let Some((word, indices)) = self.indices(place) else { return 0 };
        let Some(waiting) = indices.waiting(place.size) else { return 0 };
        let room = place.size.saturating_sub(waiting);
        let count = room.min(u32::try_from(from.len()).unwrap_or(u32::MAX));
        let (first, rest) = halves(place, indices.produced, count);
        let Some((head, tail)) = from.split_at_checked(first.length) else { return 0 };
        self.memory.write_frame(self.frame, first.offset, head);
        self.memory.write_frame(self.frame, rest.offset, tail.get(..rest.length).unwrap_or(&[]));
        let moved =
            change(word, indices, |now| (now.produced == indices.produced).then(|| now.produce(count)));
        if moved { count as usize } else { 0 }
    }

    /// Where a ring's indices stand, and what they say now.
    fn indices(&self, place: &Place) -> Option<(&AtomicU64, Indices)> {
        let word = self.memory.shared_word(self.frame, place.indices)?;
        // Acquire: the bytes that the domain has written before it moved its index are seen, and room that it has made is no longer read.
        Some((word, Indices::decode(word.load(Ordering::Acquire))))
    }
}

/// A piece of the page: bytes.
struct Span {
    offset: usize,
    length: usize,
}

/// Where `count` bytes from number `from` on lie: up to the ring's end, and the rest from its beginning. `count` is at most the ring's size.
fn halves(place: &Place, from: u32, count: u32) -> (Span, Span) {
    let start = from & place.size.wrapping_sub(1);
    let first = count.min(place.size.saturating_sub(start));
    let rest = count.saturating_sub(first);
    let offset = place.bytes.saturating_add(start as usize);
    (Span { offset, length: first as usize }, Span { offset: place.bytes, length: rest as usize })
}

/// Changes a ring's indices from what they were to what `next` says, which is asked anew when the domain has changed them meanwhile. Whether
/// that was done; it isn't if `next` says so, or the domain gives no chance.
fn change(word: &AtomicU64, from: Indices, next: impl Fn(Indices) -> Option<Indices>) -> bool {
    let mut now = from;
    for _ in 0..ATTEMPTS {
        let Some(new) = next(now) else { return false };
        // Release: the domain that sees the new index sees the bytes, and doesn't overwrite any that are still to be read.
        match word.compare_exchange(now.encode(), new.encode(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return true,
            Err(found) => now = Indices::decode(found),
        }
    }
    false
}
