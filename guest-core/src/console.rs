//! Writing to the console, line by line.
//!
//! Domains share the serial line, so text goes out a line at a time: a line that is written by one hypercall can't be
//! torn apart by another domain's.

use crate::architecture::Architecture;
use crate::hypercalls;
use core::fmt::{self, Write};
use core::marker::PhantomData;

/// Bytes of the longest line that goes out in one piece.
const LINE_CAPACITY: usize = 240;

/// Gathers text until a line is complete, then hands it to a sink.
pub struct LineBuffer<S: FnMut(&[u8])> {
    bytes: [u8; LINE_CAPACITY],
    length: usize,
    sink: S,
}

impl<S: FnMut(&[u8])> LineBuffer<S> {
    /// An empty buffer in front of `sink`.
    pub fn new(sink: S) -> Self {
        Self { bytes: [0; LINE_CAPACITY], length: 0, sink }
    }

    /// Hands over what is there, complete or not.
    pub fn flush(&mut self) {
        if self.length > 0 {
            (self.sink)(&self.bytes[..self.length]);
            self.length = 0;
        }
    }

    /// Adds raw bytes; anything but a newline and printable ASCII is shown as `?`.
    pub fn push(&mut self, text: &[u8]) {
        for &byte in text {
            let printable = byte == b'\n' || (b' '..=b'~').contains(&byte);
            self.bytes[self.length] = if printable { byte } else { b'?' };
            self.length += 1;
            if byte == b'\n' || self.length == LINE_CAPACITY {
                self.flush();
            }
        }
    }
}

impl<S: FnMut(&[u8])> Write for LineBuffer<S> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

impl<S: FnMut(&[u8])> Drop for LineBuffer<S> {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The console of the domain on architecture `A`.
pub struct Console<A>(PhantomData<A>);

impl<A: Architecture> Console<A> {
    /// Writes formatted text, in whole lines.
    pub fn print(arguments: fmt::Arguments<'_>) {
        let mut line = Self::writer();
        // The buffer's own writes can't fail; a failing Display of ours has nobody to be told.
        let _ = line.write_fmt(arguments);
    }

    /// A place to write text to; complete lines go out at once, the rest when it is dropped.
    pub fn writer() -> LineBuffer<impl FnMut(&[u8])> {
        // A domain that may not write to the console has no other place to complain.
        LineBuffer::new(|line| {
            let _ = hypercalls::console_write::<A>(line);
        })
    }
}

/// Writes a line to the console of architecture `$a`.
#[macro_export]
macro_rules! say {
    ($a:ty) => { $crate::console::Console::<$a>::print(format_args!("\n")) };
    ($a:ty, $format:literal $($rest:tt)*) => {
        $crate::console::Console::<$a>::print(format_args!("{}\n", format_args!($format $($rest)*)))
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec::Vec;

    #[test]
    fn lines_go_out_whole() {
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        {
            let mut buffer = LineBuffer::new(|bytes: &[u8]| pieces.push(bytes.to_vec()));
            write!(buffer, "a{}", 1).unwrap();
            write!(buffer, "b\nrest\x1b").unwrap();
        }
        assert_eq!(pieces, [b"a1b\n".to_vec(), b"rest?".to_vec()]);
    }

    #[test]
    fn a_line_beyond_the_capacity_goes_out_in_pieces() {
        let mut total = 0;
        LineBuffer::new(|bytes: &[u8]| total += bytes.len()).push(&[b'x'; 1000]);
        assert_eq!(total, 1000);
    }
}
