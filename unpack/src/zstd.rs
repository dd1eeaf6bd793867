//! Zstandard (RFC 8878), by `ruzstd`: one frame, with its content's checksum, if it has one.
//!
//! What has come out is taken from the decoder after each block, so that it keeps no more than the window.

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use ruzstd::io::Read;

use crate::Error;
use crate::payload::{Format, ZSTD_LARGEST_WINDOW};

const CORRUPT: Error = Error::Corrupt(Format::Zstd);

/// Decodes one frame; bytes that came out.
pub fn decode(content: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let mut input = content;
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(ZSTD_LARGEST_WINDOW);
    decoder.init(&mut input).map_err(|_| Error::BadHeader(Format::Zstd))?;
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
