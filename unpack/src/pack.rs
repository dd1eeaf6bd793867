//! The other direction, for tests: a bzImage around any content, in each format, as Linux's build makes them.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "only tests use it, with content of their own"
)]

use alloc::vec;
use alloc::vec::Vec;
use std::io::Write;

use lzma_rust2::{FilterType, XzOptions, XzWriter};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::Format;
use crate::payload::{
    IMAGE_LENGTH, IMAGE_UNIT, MAGIC, PAYLOAD_LENGTH, PAYLOAD_OFFSET, SECTOR, SETUP_SECTORS, VERSION,
};

/// Each format.
pub const FORMATS: [Format; 4] = [Format::Xz, Format::Gzip, Format::Zstd, Format::Lz4];

/// Sectors of setup code, which is all zeros here.
const SETUP: u8 = 1;
/// The payload's place behind it.
const OFFSET: u32 = 0x2c;

/// A bzImage with this payload, and a checksum at its end.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; (usize::from(SETUP) + 1) * SECTOR + OFFSET as usize];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(SETUP_SECTORS, &[SETUP]);
    put(MAGIC.0, MAGIC.1);
    put(VERSION, &0x20fu16.to_le_bytes());
    put(PAYLOAD_OFFSET, &OFFSET.to_le_bytes());
    put(PAYLOAD_LENGTH, &(payload.len() as u32).to_le_bytes());
    file.extend(payload);
    let setup = (usize::from(SETUP) + 1) * SECTOR;
    file.resize((file.len() + CHECKSUM - setup).next_multiple_of(IMAGE_UNIT) + setup, 0);
    let units = ((file.len() - setup) / IMAGE_UNIT) as u32;
    file[IMAGE_LENGTH..IMAGE_LENGTH + 4].copy_from_slice(&units.to_le_bytes());
    seal(&mut file);
    file
}

/// Bytes of the checksum at the end of a bzImage.
const CHECKSUM: usize = 4;

/// Makes the last bytes of a bzImage the checksum of those before them.
pub fn seal(file: &mut [u8]) {
    let (content, checksum) = file.split_at_mut(file.len() - CHECKSUM);
    checksum.copy_from_slice(&(!crc32fast::hash(content)).to_le_bytes());
}

/// The payload of a bzImage, with its trailer.
pub fn payload(format: Format, content: &[u8]) -> Vec<u8> {
    let mut packed = match format {
        Format::Xz => xz(content),
        Format::Gzip => return gzip(content),
        Format::Zstd => compress_to_vec(content, CompressionLevel::Fastest),
        Format::Lz4 => lz4(content),
    };
    packed.extend((content.len() as u32).to_le_bytes());
    packed
}

fn xz(content: &[u8]) -> Vec<u8> {
    let mut options = XzOptions::with_preset(3);
    options.prepend_pre_filter(FilterType::BcjX86, 0);
    let mut writer = XzWriter::new(Vec::new(), options).expect("these are options that it has");
    writer.write_all(content).expect("memory takes everything");
    writer.finish().expect("memory takes everything")
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut file = b"\x1f\x8b\x08\x08\0\0\0\0\x02\x03vmlinux\0".to_vec();
    file.extend(miniz_oxide::deflate::compress_to_vec(content, 6));
    file.extend(crc32fast::hash(content).to_le_bytes());
    file.extend((content.len() as u32).to_le_bytes());
    file
}

fn lz4(content: &[u8]) -> Vec<u8> {
    let mut file = b"\x02\x21\x4c\x18".to_vec();
    for block in content.chunks(8 << 20) {
        let packed = lz4_flex::block::compress(block);
        file.extend((packed.len() as u32).to_le_bytes());
        file.extend(packed);
    }
    file
}

/// Something to pack that is a little like a kernel: text that comes again, calls for the filter of x86 code, noise, zeros.
pub fn text(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut content = Vec::with_capacity(length + 64);
    while content.len() < length {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match state >> 29 {
            0..4 => content.extend(b"the quick brown fox jumps over the lazy dog"),
            4 | 5 => {
                content.push(0xe8);
                content.extend((state >> 12 & 0xffff).to_le_bytes());
            }
            6 => content.extend(state.to_le_bytes()),
            _ => content.extend([0; 31]),
        }
    }
    content.truncate(length);
    content
}

/// How a zstd payload that no tool makes goes past its window with its last block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Excess {
    /// By literals: one byte again and again, 8 times as long as a block may be.
    Literals,
    /// By a sequence: the block was as long as it may be before it, which is noticed after it.
    Sequence,
}

impl Excess {
    /// The block's content, and how many bytes come out of it.
    fn block(self) -> (&'static [u8], u32) {
        match self {
            // Literals of type 1 with a length of 20 bits, and no sequences.
            Self::Literals => (&[0xfd, 0xff, 0xff, b'B', 0], (1 << 20) - 1),
            // No literals; two sequences, whose three codes are each one byte for both: nothing, the offset before the last, and a match
            // of 65,539 and 16 more bits, which the second has first.
            Self::Sequence => (&[0, 2, 0x54, 0, 0, 52, 0xff, 0xff, 0xfd, 0xff, 1], 131_072 + 131_074),
        }
    }
}

/// A zstd payload with its trailer: it fills a window of `1 << exponent` bytes and more, and then exceeds it.
pub fn beyond_the_window(exponent: u8, excess: Excess) -> Vec<u8> {
    let window = 1u32 << exponent;
    let size = window.min(128 << 10);
    let header = |size: u32, kind: u32, is_last: bool| {
        let [a, b, c, _] = (size << 3 | kind << 1 | u32::from(is_last)).to_le_bytes();
        [a, b, c]
    };
    let mut packed = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (exponent - 10) << 3];
    let count = window / size + 1;
    for _ in 0..count {
        packed.extend(header(size, 1, false));
        packed.push(b'A');
    }
    let (content, length) = excess.block();
    packed.extend(header(content.len() as u32, 2, true));
    packed.extend(content);
    packed.extend((count * size + length).to_le_bytes());
    packed
}
