//! A ring of bytes that forgets the oldest.

/// The last `SIZE` bytes that were pushed and not popped.
pub struct Ring<const SIZE: usize> {
    bytes: [u8; SIZE],
    /// Bytes ever pushed. A byte's place is its number modulo `SIZE`.
    produced: u64,
    /// Bytes popped or forgotten.
    consumed: u64,
}

impl<const SIZE: usize> Default for Ring<SIZE> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const SIZE: usize> Ring<SIZE> {
    /// An empty ring, all zero.
    pub const fn new() -> Self {
        Self { bytes: [0; SIZE], produced: 0, consumed: 0 }
    }

    /// Whether nothing is left to pop.
    pub fn is_empty(&self) -> bool {
        self.produced == self.consumed
    }

    fn place(number: u64) -> usize {
        number.checked_rem(SIZE as u64).unwrap_or(0) as usize
    }

    /// Adds bytes; the oldest make room.
    pub fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(slot) = self.bytes.get_mut(Self::place(self.produced)) {
                *slot = *byte;
            }
            self.produced = self.produced.saturating_add(1);
        }
        self.consumed = self.consumed.max(self.oldest());
    }

    fn oldest(&self) -> u64 {
        self.produced.saturating_sub(SIZE as u64)
    }

    /// Takes the oldest bytes out; returns how many.
    pub fn pop(&mut self, into: &mut [u8]) -> usize {
        let count = self.peek(into);
        self.forget(count);
        count
    }

    /// Copies the oldest bytes, which stay; returns how many.
    pub fn peek(&self, into: &mut [u8]) -> usize {
        self.read(self.consumed, into).0
    }

    /// Forgets so many of the oldest bytes.
    pub fn forget(&mut self, count: usize) {
        self.consumed = self.consumed.saturating_add(count as u64).min(self.produced);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.consumed = self.produced;
    }

    /// Number of the oldest byte that is still here.
    pub fn start(&self) -> u64 {
        self.consumed
    }

    /// Copies bytes from number `from` on, or from the oldest there is; returns how many, and the number after the last.
    pub fn read(&self, from: u64, into: &mut [u8]) -> (usize, u64) {
        let mut at = from.max(self.consumed);
        let mut count = 0usize;
        for slot in into.iter_mut() {
            if at >= self.produced {
                break;
            }
            *slot = self.bytes.get(Self::place(at)).copied().unwrap_or(0);
            at = at.saturating_add(1);
            count = count.saturating_add(1);
        }
        (count, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_bytes_are_forgotten() {
        let mut ring = Ring::<4>::new();
        ring.push(b"abcdef");
        let mut out = [0; 8];
        assert_eq!(ring.read(0, &mut out), (4, 6));
        assert_eq!(&out[..4], b"cdef");
        assert_eq!(ring.pop(&mut out[..3]), 3);
        assert_eq!((ring.pop(&mut out), out[0], ring.is_empty()), (1, b'f', true));
    }

    #[test]
    fn reading_goes_on_where_it_ended() {
        let mut ring = Ring::<8>::new();
        ring.push(b"one");
        let mut out = [0; 8];
        let (_, next) = ring.read(0, &mut out);
        ring.push(b"two");
        assert_eq!(ring.read(next, &mut out), (3, 6));
        assert_eq!(&out[..3], b"two");
        ring.clear();
        assert_eq!(ring.read(0, &mut out).0, 0);
    }
}
