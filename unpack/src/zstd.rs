//! Zstandard (RFC 8878), by `ruzstd`: one frame, with its content's checksum, if it has one.
//!
//! What has come out is taken from the decoder after each block, so that it keeps no more than the window; and the window is no longer than what
//! is to come out.

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use ruzstd::io::Read;

use crate::Error;
use crate::payload::{Format, ZSTD_LARGEST_WINDOW, zstd_kept_window};

const CORRUPT: Error = Error::Corrupt(Format::Zstd);
const BAD_HEADER: Error = Error::BadHeader(Format::Zstd);
/// Bytes of a frame's header, at most: magic number, descriptor, window, dictionary, length of the content.
const LONGEST_HEADER: usize = 18;

/// Decodes one frame; bytes that came out.
pub fn decode(content: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(ZSTD_LARGEST_WINDOW);
    let mut input = begin(&mut decoder, content, out.len())?;
    let mut written = 0usize;
    while !decoder.is_finished() {
        decoder.decode_blocks(&mut input, BlockDecodingStrategy::UptoBlocks(1)).map_err(|_| CORRUPT)?;
        while decoder.can_collect() > 0 {
            let rest = out.get_mut(written..).filter(|rest| !rest.is_empty());
            let count = decoder.read(rest.ok_or(Error::WrongLength(Format::Zstd))?).map_err(|_| CORRUPT)?;
            written = written.saturating_add(count);
        }
    }
    // The decoder computes it, and leaves it to us to compare.
    match decoder.get_checksum_from_data() {
        said @ Some(_) if said != decoder.get_calculated_checksum() => Err(CORRUPT),
        _ => Ok(written),
    }
}

/// Shows the decoder the frame's header, with the window that is kept; the blocks behind it.
fn begin<'a>(decoder: &mut FrameDecoder, content: &'a [u8], length: usize) -> Result<&'a [u8], Error> {
    let mut header = [0; LONGEST_HEADER];
    header.iter_mut().zip(content).for_each(|(to, byte)| *to = *byte);
    let length = u32::try_from(length).map_err(|_| BAD_HEADER)?;
    if let Some((place, window)) = zstd_kept_window(content, length) {
        *header.get_mut(place).ok_or(BAD_HEADER)? = window;
    }
    let given = content.len().min(LONGEST_HEADER);
    let mut rest = header.get(..given).ok_or(BAD_HEADER)?;
    decoder.init(&mut rest).map_err(|_| BAD_HEADER)?;
    content.get(given.saturating_sub(rest.len())..).ok_or(BAD_HEADER)
}
