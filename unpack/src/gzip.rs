//! gzip (RFC 1952): its header and trailer here, the deflated data between them by `miniz_oxide`.

use alloc::boxed::Box;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use crate::Error;
use crate::payload::Format;

/// Bytes that every header has.
const HEADER: usize = 10;
/// Flags of what else it has: a check of itself, further fields, a name, a comment.
const HAS_CHECK: u8 = 1 << 1;
const HAS_EXTRA: u8 = 1 << 2;
const HAS_NAME: u8 = 1 << 3;
const HAS_COMMENT: u8 = 1 << 4;
/// The trailer: a check of the content, and its length.
const TRAILER: usize = 8;

/// Decodes one member; bytes that came out.
pub fn decode(content: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let (body, trailer) = body(content).ok_or(Error::BadHeader(Format::Gzip))?;
    let mut decoder = Box::<DecompressorOxide>::default();
    let (status, _, written) =
        decompress(&mut decoder, body, out, 0, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF);
    match status {
        TINFLStatus::Done => {}
        TINFLStatus::HasMoreOutput => return Err(Error::WrongLength(Format::Gzip)),
        _ => return Err(Error::Corrupt(Format::Gzip)),
    }
    let [a, b, c, d, ..] = *trailer;
    let unpacked = out.get(..written).unwrap_or(&[]);
    if crc32fast::hash(unpacked) == u32::from_le_bytes([a, b, c, d]) {
        Ok(written)
    } else {
        Err(Error::Corrupt(Format::Gzip))
    }
}

/// The deflated data, and the trailer.
fn body(content: &[u8]) -> Option<(&[u8], &[u8; TRAILER])> {
    let (content, trailer) = content.split_last_chunk::<TRAILER>()?;
    let (header, mut rest) = content.split_first_chunk::<HEADER>()?;
    let flags = header[3];
    if flags & HAS_EXTRA != 0 {
        let (length, behind) = rest.split_first_chunk::<2>()?;
        rest = behind.get(usize::from(u16::from_le_bytes(*length))..)?;
    }
    for text in [HAS_NAME, HAS_COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|byte| *byte == 0)?;
            rest = rest.get(end.checked_add(1)?..)?;
        }
    }
    if flags & HAS_CHECK != 0 {
        rest = rest.get(2..)?;
    }
    Some((rest, trailer))
}
