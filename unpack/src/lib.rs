//! Kernels that come packed.
//!
//! Distributions ship Linux as a *bzImage*: a loader for machines without anything, and behind it the real kernel, an ELF file, in one
//! of several compressions. [`Packed::find`] reads the form of such a file ([`payload`]), and [`Packed::unpack`] gives back the ELF
//! file in memory that the caller has.
//!
//! The file is a claim. Before anything is unpacked it is known how long the result would be ([`Packed::length`]) and how much heap the
//! decoder could take at most ([`Packed::heap`]); whoever has less memory than that says so and leaves it. Nothing is ever
//! written beyond the memory that was given, and whatever is wrong inside ends in an [`Error`].
//!
//! The decoders are others' work, each in a module of its own that says what is asked of it.
#![cfg_attr(not(any(test, feature = "pack")), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

#[cfg(feature = "decoders")]
extern crate alloc;

#[cfg(feature = "decoders")]
mod check;
#[cfg(feature = "decoders")]
mod gzip;
#[cfg(feature = "decoders")]
mod lz4;
#[cfg(feature = "pack")]
pub mod pack;
pub mod payload;
#[cfg(feature = "decoders")]
mod xz;
#[cfg(feature = "decoders")]
mod zstd;

use core::fmt;

pub use payload::{Format, Found, Packed, begins_like_a_kernel};

/// Why a packed kernel can't be unpacked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// It ends before its payload does.
    CutShort,
    /// It follows an older protocol than the first that says where the payload is.
    TooOld(u16),
    /// The payload is in none of the compressions that are known here.
    UnknownFormat,
    /// What the payload says about itself is impossible, or none of what is known here.
    BadHeader(Format),
    /// The payload is damaged.
    Corrupt(Format),
    /// What came out is longer or shorter than was said.
    WrongLength(Format),
    /// The memory that it would take: bytes needed, bytes there are.
    TooLarge {
        /// For what comes out, and for the decoder.
        needed: u64,
        /// In all.
        free: u64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutShort => write!(f, "the file is cut short"),
            Self::TooOld(version) => {
                write!(f, "it follows boot protocol {}.{:02}, which is too old", version >> 8, version & 0xff)
            }
            Self::UnknownFormat => write!(f, "its payload is in no compression that is known"),
            Self::BadHeader(format) => write!(f, "what its {format} payload says about itself can't be"),
            Self::Corrupt(format) => write!(f, "its {format} payload is corrupt"),
            Self::WrongLength(format) => write!(f, "its {format} payload isn't as long as it says"),
            Self::TooLarge { needed, free } => {
                write!(
                    f,
                    "unpacking it takes {} KiB of memory in two pieces, and {} KiB are free",
                    needed >> 10,
                    free >> 10
                )
            }
        }
    }
}

#[cfg(feature = "decoders")]
impl Packed<'_> {
    /// Unpacks into the first [`Self::length`] bytes of `out`.
    ///
    /// # Errors
    /// What is wrong. `out` may then hold anything.
    pub fn unpack(&self, out: &mut [u8]) -> Result<(), Error> {
        let too_large = Error::TooLarge { needed: self.length() as u64, free: out.len() as u64 };
        let out = out.get_mut(..self.length()).ok_or(too_large)?;
        let length = match self.format() {
            Format::Xz => xz::decode(self.content(), out),
            Format::Gzip => gzip::decode(self.content(), out),
            Format::Zstd => zstd::decode(self.content(), out),
            Format::Lz4 => lz4::decode(self.content(), out),
        }?;
        if length == self.length() { Ok(()) } else { Err(Error::WrongLength(self.format())) }
    }
}
