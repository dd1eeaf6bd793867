//! Files that are packed kernels, and files that only seem to be.

use super::*;

/// A file with one setup sector and this payload behind it, at offset 4 from the end of the setup code.
fn file(version: u16, payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 2 * SECTOR + 4];
    file[SETUP_SECTORS] = 1;
    file[MAGIC.0..MAGIC.0 + 4].copy_from_slice(MAGIC.1);
    file[VERSION..VERSION + 2].copy_from_slice(&version.to_le_bytes());
    file[PAYLOAD_OFFSET] = 4;
    file[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file.extend(payload);
    file
}

#[test]
fn what_is_no_bzimage_is_left_as_it_is() {
    for file in [&b""[..], b"\x7fELF", &[0; 0x202], b"#!/bin/sh\n", &[0; 4096]] {
        assert!(is_as_it_is(file, file));
        assert_eq!(begins_like_a_kernel(file), file.starts_with(b"\x7fELF"));
    }
    let mut elf = file(0x20f, b"");
    elf[..4].copy_from_slice(b"\x7fELF");
    assert!(is_as_it_is(&elf, &elf), "HdrS by chance");
}

fn is_as_it_is(file: &[u8], kernel: &[u8]) -> bool {
    Packed::find(file).is_ok_and(|found| matches!(found, Found::AsItIs(found) if found == kernel))
}

#[test]
fn a_payload_without_compression_is_the_kernel() {
    let elf = b"\x7fELF\x02\x01\x01\0 and so on";
    let whole = file(0x20f, elf);
    assert!(is_as_it_is(&whole, elf) && begins_like_a_kernel(&whole));
    let behind = [&whole[..], b"a signature"].concat();
    assert!(is_as_it_is(&behind, elf), "what follows the payload isn't the kernel's");
    assert_eq!(Packed::find(&whole[..whole.len() - 1]).err(), Some(Error::CutShort));
}

#[test]
fn the_payload_is_where_the_header_says() {
    let file = file(0x208, b"\x02\x21\x4c\x18\x00\x01\x00\x00");
    let packed = Packed::find(&file).unwrap().packed().unwrap();
    assert_eq!(
        (packed.format(), packed.length(), packed.content()),
        (Format::Lz4, 256, &b"\x02\x21\x4c\x18"[..])
    );
}

#[test]
fn no_number_of_sectors_is_four() {
    let mut four = file(0x208, b"");
    four[SETUP_SECTORS] = 0;
    four.resize(5 * SECTOR + 4, 0);
    four[PAYLOAD_LENGTH] = 8;
    four.extend(b"\x02\x21\x4c\x18\x00\x01\x00\x00");
    assert!(Packed::find(&four).unwrap().packed().is_some());
}

#[test]
fn a_header_that_cannot_be_is_named() {
    let judge = |version, payload: &[u8]| Packed::find(&file(version, payload)).err();
    assert_eq!(judge(0x207, b""), Some(Error::TooOld(0x207)));
    assert_eq!(Error::TooOld(0x207).to_string(), "it follows boot protocol 2.07, which is too old");
    assert_eq!(judge(0x20f, b"BZh91AY&"), Some(Error::UnknownFormat));
    assert_eq!(judge(0x20f, b"\x02\x21\x4c\x18"), None, "nothing but the magic: its own length");
    assert_eq!(judge(0x20f, b"\xfd7zXZ\0\0\0"), Some(Error::BadHeader(Format::Xz)));
    assert_eq!(judge(0x20f, b"\x28\xb5\x2f\xfd\0\0\0\0"), Some(Error::BadHeader(Format::Zstd)));
    // A window of 2 GiB.
    assert_eq!(judge(0x20f, b"\x28\xb5\x2f\xfd\x00\xa8\0\0\0\0\0"), Some(Error::BadHeader(Format::Zstd)));
    let whole = file(0x20f, b"\x02\x21\x4c\x18\x00\x01\x00\x00");
    for length in MAGIC.0 + 4..whole.len() {
        assert_eq!(Packed::find(&whole[..length]).err(), Some(Error::CutShort), "{length}");
    }
}

#[test]
fn numbers_that_overflow_are_cut_short() {
    let mut far = file(0x20f, b"\x02\x21\x4c\x18\x00\x01\x00\x00");
    far[PAYLOAD_OFFSET..PAYLOAD_LENGTH + 4].fill(0xff);
    assert_eq!(Packed::find(&far).err(), Some(Error::CutShort));
}

#[test]
fn the_heap_is_as_large_as_the_window() {
    assert_eq!(xz_dictionary_size(0), Some(4096));
    assert_eq!(xz_dictionary_size(26), Some(32 << 20));
    assert_eq!(xz_dictionary_size(39), Some(3 << 30));
    assert_eq!((xz_dictionary_size(40), xz_dictionary_size(41)), (Some(u32::MAX.into()), None));
    // Debian's: a block header of 16 bytes, x86 code before LZMA2 with 32 MiB.
    let debian = b"\xfd7zXZ\0\0\x01\x69\x22\xde\x36\x03\x01\x04\x00\x21\x01\x1a\0\0\0\0\0\0\0";
    assert_eq!(xz_dictionary(debian), Some(32 << 20));
    // Both sizes are given, too.
    let sized = b"\xfd7zXZ\0\0\x01\x69\x22\xde\x36\x03\xc0\x80\x01\xff\xff\x01\x21\x01\x10\0\0";
    assert_eq!(xz_dictionary(sized), Some(1 << 20));
    let long = 8 << 20;
    assert_eq!(zstd_buffer(b"\x28\xb5\x2f\xfd\x00\x58", long), Some(6 << 20), "a window of 2 MiB");
    assert_eq!(zstd_buffer(b"\x28\xb5\x2f\xfd\x00\x5a", long), Some(12 << 20), "one of 2.5 MiB");
    assert_eq!(
        zstd_buffer(b"\x28\xb5\x2f\xfd\xa0\x01\x02\x03\x00", long),
        Some(768 << 10),
        "197,121 bytes in one segment"
    );
}

#[test]
fn no_window_is_longer_than_what_comes_out() {
    let declares = |byte, length| zstd_kept_window(&[0x28, 0xb5, 0x2f, 0xfd, 0, byte], length);
    let of_128_mib = 17 << 3;
    assert_eq!(declares(of_128_mib, 60 << 20), Some((5, 16 << 3)), "64 MiB");
    assert_eq!(declares(of_128_mib, 64 << 20), Some((5, 16 << 3)));
    assert_eq!(declares(of_128_mib, (64 << 20) + 1), Some((5, of_128_mib)));
    assert_eq!(declares(of_128_mib, u32::MAX), Some((5, of_128_mib)));
    assert_eq!(declares(of_128_mib, 5), Some((5, 7 << 3)), "a block has to fit");
    assert_eq!(declares(1, 5), Some((5, 1)), "nor than what is declared");
    assert_eq!(zstd_kept_window(b"\x28\xb5\x2f\xfd\xa0\x01", 5), None);
    assert_eq!(zstd_kept_window(b"\x28\xb5\x2f\xfd\x00", 5), None);
}
