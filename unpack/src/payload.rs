//! Where in a file the packed kernel is, in which compression, and how much memory it takes to unpack it.
//!
//! A bzImage begins with a boot sector and some sectors of setup code, in which the *setup header* stands at 0x1f1. From protocol 2.08
//! on it says where the payload begins, counted from the end of the setup code, and how long it is (`boot.rst` of Linux's
//! documentation: `setup_sects`, `header`, `version`, `payload_offset`, `payload_length`). The payload's compression shows by its first
//! bytes. Behind the compressed data stand 4 more bytes: the length of what comes out, lowest byte first.

use core::fmt;

use crate::Error;

/// Number of setup sectors; 0 stands for 4.
pub(crate) const SETUP_SECTORS: usize = 0x1f1;
/// Length of what follows the setup code, in units of 16 bytes (`syssize`).
#[cfg(feature = "decoders")]
pub(crate) const IMAGE_LENGTH: usize = 0x1f4;
#[cfg(feature = "decoders")]
pub(crate) const IMAGE_UNIT: usize = 16;
/// `HdrS`: there is a setup header.
pub(crate) const MAGIC: (usize, &[u8; 4]) = (0x202, b"HdrS");
/// How an ELF file begins.
const ELF: &[u8] = b"\x7fELF";
/// Version of the boot protocol.
pub(crate) const VERSION: usize = 0x206;
/// The payload's place, counted from the end of the setup code.
pub(crate) const PAYLOAD_OFFSET: usize = 0x248;
/// Its length.
pub(crate) const PAYLOAD_LENGTH: usize = 0x24c;
/// The first version with these two.
const FIRST_VERSION: u16 = 0x208;
pub(crate) const SECTOR: usize = 512;
/// Sectors of setup code if the header says 0.
const DEFAULT_SECTORS: usize = 4;
/// Bytes of the length behind the payload.
const TRAILER: usize = 4;

/// What any decoder takes besides its window: state, tables, buffers of one block.
const DECODER_STATE: u64 = 4 << 20;
/// The same for Zstandard's, whose buffers grow by doubling, up to what a block that is too long can ask for before that is noticed: 2 MiB of
/// literals, 2.3 MiB of sequences, and what they have outgrown.
const ZSTD_STATE: u64 = 12 << 20;

/// A compression.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// LZMA2 in an XZ stream, as Debian's kernels.
    Xz,
    /// Deflate.
    Gzip,
    /// Zstandard.
    Zstd,
    /// LZ4, in the frame of its first versions.
    Lz4,
}

impl Format {
    /// The first bytes of each.
    const MAGICS: [(&'static [u8], Self); 4] = [
        (b"\xfd7zXZ\0", Self::Xz),
        (b"\x1f\x8b\x08", Self::Gzip),
        (b"\x28\xb5\x2f\xfd", Self::Zstd),
        (b"\x02\x21\x4c\x18", Self::Lz4),
    ];

    fn of(content: &[u8]) -> Option<Self> {
        Self::MAGICS.iter().find(|(magic, _)| content.starts_with(magic)).map(|(_, format)| *format)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xz => "XZ",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Lz4 => "LZ4",
        })
    }
}

/// What is in a file.
#[derive(Clone, Copy, Debug)]
pub enum Found<'a> {
    /// An ELF file, perhaps: all of it that is no bzImage, or a bzImage's payload that isn't compressed.
    AsItIs(&'a [u8]),
    /// A packed kernel.
    Packed(Packed<'a>),
}

impl<'a> Found<'a> {
    /// The packed kernel, if it is one.
    pub fn packed(self) -> Option<Packed<'a>> {
        match self {
            Self::AsItIs(_) => None,
            Self::Packed(packed) => Some(packed),
        }
    }
}

/// Whether a file begins as kernels do: a bzImage, or an ELF file.
pub fn begins_like_a_kernel(file: &[u8]) -> bool {
    let (at, magic) = MAGIC;
    file.starts_with(ELF) || file.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// A packed kernel.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    #[cfg_attr(not(feature = "decoders"), expect(dead_code, reason = "only decoders look at it"))]
    file: &'a [u8],
    content: &'a [u8],
    format: Format,
    length: u32,
    heap: u64,
}

impl<'a> Packed<'a> {
    /// Looks into a file.
    ///
    /// # Errors
    /// It is a bzImage that can't be unpacked.
    pub fn find(file: &'a [u8]) -> Result<Found<'a>, Error> {
        let (at, magic) = MAGIC;
        // An ELF file may have anything at that place.
        if file.starts_with(ELF) || !file.get(at..).is_some_and(|rest| rest.starts_with(magic)) {
            return Ok(Found::AsItIs(file));
        }
        let version = u16::from_le_bytes(field(file, VERSION)?);
        if version < FIRST_VERSION {
            return Err(Error::TooOld(version));
        }
        match payload(file)? {
            // Built without compression.
            payload if payload.starts_with(ELF) => Ok(Found::AsItIs(payload)),
            payload => Self::read(file, payload).map(Found::Packed),
        }
    }

    /// Judges a payload by its first and last bytes.
    fn read(file: &'a [u8], payload: &'a [u8]) -> Result<Self, Error> {
        let format = Format::of(payload).ok_or(Error::UnknownFormat)?;
        let (content, trailer) = payload.split_last_chunk::<TRAILER>().ok_or(Error::CutShort)?;
        let length = u32::from_le_bytes(*trailer);
        // gzip's own trailer is the one behind the payload.
        let content = if format == Format::Gzip { payload } else { content };
        let bad = Error::BadHeader(format);
        let heap = match format {
            Format::Xz => DECODER_STATE.saturating_add(xz_dictionary(content).ok_or(bad)?),
            Format::Zstd => ZSTD_STATE.saturating_add(zstd_buffer(content, length).ok_or(bad)?),
            Format::Gzip | Format::Lz4 => DECODER_STATE,
        };
        Ok(Self { file, content, format, length, heap })
    }

    /// Its compression.
    pub fn format(&self) -> Format {
        self.format
    }

    /// All of the file.
    #[cfg(feature = "decoders")]
    pub(crate) fn file(&self) -> &'a [u8] {
        self.file
    }

    /// The compressed data.
    pub fn content(&self) -> &'a [u8] {
        self.content
    }

    /// Bytes of what comes out, as the file says.
    pub fn length(&self) -> usize {
        self.length as usize
    }

    /// Bytes of heap that the decoder takes, at most.
    pub fn heap(&self) -> u64 {
        self.heap
    }
}

fn field<const SIZE: usize>(file: &[u8], at: usize) -> Result<[u8; SIZE], Error> {
    let bytes = file.get(at..).and_then(<[u8]>::first_chunk::<SIZE>);
    bytes.copied().ok_or(Error::CutShort)
}

fn number(file: &[u8], at: usize) -> Result<usize, Error> {
    Ok(u32::from_le_bytes(field(file, at)?) as usize)
}

/// Bytes of the boot sector and the setup code behind it.
fn setup_length(file: &[u8]) -> Result<usize, Error> {
    let [sectors] = field::<1>(file, SETUP_SECTORS)?;
    let sectors = if sectors == 0 { DEFAULT_SECTORS } else { usize::from(sectors) };
    Ok(sectors.saturating_add(1).saturating_mul(SECTOR))
}

/// Bytes of the file that are the kernel's: a signature may follow.
#[cfg(feature = "decoders")]
pub(crate) fn image_length(file: &[u8]) -> Option<usize> {
    let length = number(file, IMAGE_LENGTH).ok()?.checked_mul(IMAGE_UNIT)?;
    setup_length(file).ok()?.checked_add(length)
}

fn payload(file: &[u8]) -> Result<&[u8], Error> {
    let start = setup_length(file)?.saturating_add(number(file, PAYLOAD_OFFSET)?);
    let end = start.saturating_add(number(file, PAYLOAD_LENGTH)?);
    file.get(start..end).ok_or(Error::CutShort)
}

/// Bytes of the stream's header in XZ.
const XZ_STREAM_HEADER: usize = 12;
/// The filter that is LZMA2, and the highest number for the size of its dictionary.
const XZ_LZMA2: u64 = 0x21;
const XZ_LARGEST_DICTIONARY: u8 = 40;

/// Bytes of the dictionary that the first block asks for (`xz-file-format.txt`, 3.1 and 5.3.1). A later block that asks for more
/// fails when it is there.
pub(crate) fn xz_dictionary(content: &[u8]) -> Option<u64> {
    let mut header = content.get(XZ_STREAM_HEADER..)?.iter().copied();
    let (_size, flags) = (header.next()?, header.next()?);
    // Two fields that need not be there: the block's sizes.
    for present in [flags & 0x40, flags & 0x80] {
        if present != 0 {
            xz_number(&mut header)?;
        }
    }
    for _ in 0..=flags & 3 {
        let (filter, properties) = (xz_number(&mut header)?, xz_number(&mut header)?);
        if filter == XZ_LZMA2 {
            return xz_dictionary_size(header.next()?);
        }
        // No filter has more than a few bytes of them.
        for _ in 0..properties.min(16) {
            header.next()?;
        }
    }
    None
}

/// A number of 7 bits a byte, lowest first; the highest bit says that more follows.
fn xz_number(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let byte = bytes.next()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// 2 or 3 times a power of two.
fn xz_dictionary_size(number: u8) -> Option<u64> {
    match number {
        XZ_LARGEST_DICTIONARY => Some(u64::from(u32::MAX)),
        0..XZ_LARGEST_DICTIONARY => {
            let shift = u32::from(number >> 1).saturating_add(11);
            (2 | u64::from(number & 1)).checked_shl(shift)
        }
        _ => None,
    }
}

/// Largest window of Zstandard that is taken: what its own tool takes without being asked to, and what Linux's build uses.
pub(crate) const ZSTD_LARGEST_WINDOW: u64 = 128 << 20;
/// Where in a frame the header's descriptor stands, and the window's, if there is one.
const ZSTD_DESCRIPTOR: usize = 4;
const ZSTD_WINDOW: usize = 5;
/// In the descriptor: all of the content is one segment, so that the window is as long as that.
const ZSTD_SINGLE_SEGMENT: u8 = 0x20;
/// A block is never longer than this (RFC 8878, 3.1.1.2.4), nor longer than the window.
const ZSTD_BLOCK: u32 = 128 << 10;
/// The smallest window's logarithm.
const ZSTD_SMALLEST: u32 = 10;

/// What the decoder of Zstandard can take for what it has put out and may still be referred to: the window (RFC 8878, 3.1.1.1). Its buffer
/// begins with that, rounded up to a power of two; a block that exceeds it makes it twice as long, and the old one is still there
/// meanwhile.
fn zstd_buffer(content: &[u8], length: u32) -> Option<u64> {
    let mut header = content.get(ZSTD_DESCRIPTOR..)?.iter().copied();
    let descriptor = header.next()?;
    let declared = match descriptor & ZSTD_SINGLE_SEGMENT {
        0 => zstd_window(header.next()?),
        _ => zstd_content_size(descriptor, header)?,
    };
    if declared > ZSTD_LARGEST_WINDOW {
        return None;
    }
    let window = zstd_kept_window(content, length).map_or(declared, |(_, byte)| zstd_window(byte));
    window.checked_next_power_of_two()?.checked_mul(3)
}

/// The descriptor of the window that is kept, and its place, unless the frame is one segment: what comes out is `length` bytes long, so
/// nothing can refer to more than that, whatever the frame declares. (Linux's build declares 128 MiB, and kernels are shorter.)
pub(crate) fn zstd_kept_window(content: &[u8], length: u32) -> Option<(usize, u8)> {
    if content.get(ZSTD_DESCRIPTOR)? & ZSTD_SINGLE_SEGMENT != 0 {
        return None;
    }
    let enough = u64::from(length.max(ZSTD_BLOCK)).checked_next_power_of_two()?;
    // The exponent stands in the upper five bits, so that a larger number is a larger window.
    let enough = u8::try_from(enough.ilog2().checked_sub(ZSTD_SMALLEST)?).ok()? << 3;
    Some((ZSTD_WINDOW, (*content.get(ZSTD_WINDOW)?).min(enough)))
}

fn zstd_window(byte: u8) -> u64 {
    let base = 1u64.checked_shl(u32::from(byte >> 3).saturating_add(ZSTD_SMALLEST)).unwrap_or(0);
    base.saturating_add((base / 8).saturating_mul(u64::from(byte & 7)))
}

/// The length of the content behind the descriptor and the number of a dictionary.
fn zstd_content_size(descriptor: u8, header: impl Iterator<Item = u8>) -> Option<u64> {
    let dictionary = [0, 1, 2, 4].get(usize::from(descriptor & 3))?;
    let (bytes, least) = [(1, 0), (2, 256), (4, 0), (8, 0)].get(usize::from(descriptor >> 6))?;
    let mut header = header.skip(*dictionary);
    let mut size = [0; 8];
    for slot in size.iter_mut().take(*bytes) {
        *slot = header.next()?;
    }
    u64::from_le_bytes(size).checked_add(*least)
}

#[cfg(test)]
mod tests;
