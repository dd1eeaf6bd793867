//! LZ4 in the frame of its first versions (`lz4 -l`, "legacy frame"), which is what Linux's build makes: a magic number, and then blocks,
//! each with its packed length in front, and all but the last one 8 MiB long when they are unpacked. The blocks, by `lz4_flex`, know
//! nothing of each other. There is no check of the content: [`super::check`].

use lz4_flex::block::decompress_into;

use crate::Error;
use crate::payload::Format;

/// Bytes of the magic number.
const MAGIC: usize = 4;
/// Bytes that a block has unpacked, at most.
const BLOCK: usize = 8 << 20;

/// Decodes one frame; bytes that came out.
pub fn decode(content: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let mut blocks = content.get(MAGIC..).unwrap_or(&[]);
    let mut written = 0usize;
    while let Some((length, rest)) = blocks.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (block, behind) = rest.split_at_checked(length).ok_or(Error::Corrupt(Format::Lz4))?;
        let rest = out.get_mut(written..).unwrap_or(&mut []);
        let end = rest.len().min(BLOCK);
        let room = rest.get_mut(..end).unwrap_or(&mut []);
        let count = decompress_into(block, room).map_err(|_| Error::Corrupt(Format::Lz4))?;
        written = written.saturating_add(count);
        blocks = behind;
    }
    if blocks.is_empty() { Ok(written) } else { Err(Error::Corrupt(Format::Lz4)) }
}
