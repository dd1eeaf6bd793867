//! Where packed kernels become files that can be loaded.
//!
//! The core builds domains from ELF files. A boot loader may leave others; what they take to be opened (memory, decoders) is the
//! backend's to have or not to have.

use unpack::Error;

/// Opens packed kernels, which are files that live as long as `'f`.
pub trait Unpacker<'f> {
    /// The ELF file that is in `file`, or `file` itself if it isn't packed. It is there until the next call.
    ///
    /// # Errors
    /// It is packed, and can't be opened.
    fn open<'s>(&'s mut self, file: &'f [u8]) -> Result<&'s [u8], Error>
    where
        'f: 's;
}

/// Opens nothing: files have to be what they should be.
pub struct AsTheyAre;

impl<'f> Unpacker<'f> for AsTheyAre {
    fn open<'s>(&'s mut self, file: &'f [u8]) -> Result<&'s [u8], Error>
    where
        'f: 's,
    {
        Ok(file)
    }
}
