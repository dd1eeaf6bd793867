//! Whole kernels come back; what is damaged in any way ends in an error, or, where a format has no check, in other bytes, and never
//! in anything else.

use proptest::prelude::*;
use unpack::pack::{FORMATS, bzimage, payload, text};
use unpack::{Error, Format, Packed};

fn open(file: &[u8]) -> Result<Vec<u8>, Error> {
    let packed = Packed::find(file)?.packed().expect("a bzImage");
    assert!(packed.length() < 64 << 20, "the test has no more memory");
    let mut out = vec![0xa5; packed.length() + 16];
    let result = packed.unpack(&mut out);
    assert!(out[packed.length()..].iter().all(|byte| *byte == 0xa5), "written beyond the end");
    out.truncate(packed.length());
    result.map(|()| out)
}

#[test]
fn a_kernel_comes_back_from_every_format() {
    for length in [1, 5000, 300_000, 9 << 20] {
        let content = text(length);
        for format in FORMATS {
            let file = bzimage(&payload(format, &content));
            assert!(open(&file).as_ref() == Ok(&content), "{format}, {length} bytes");
        }
    }
}

#[test]
fn memory_that_is_too_small_is_left_alone() {
    for format in FORMATS {
        let file = bzimage(&payload(format, &text(5000)));
        let packed = Packed::find(&file).unwrap().packed().unwrap();
        let mut out = vec![0xa5; 4999];
        assert_eq!(packed.unpack(&mut out), Err(Error::TooLarge { needed: 5000, free: 4999 }));
        assert!(out.iter().all(|byte| *byte == 0xa5));
    }
}

#[test]
fn a_payload_that_is_cut_short_is_no_kernel() {
    for format in FORMATS {
        let whole = payload(format, &text(20_000));
        let trailer = whole[whole.len() - 4..].to_vec();
        for length in (4..whole.len() - 4).step_by(whole.len() / 200) {
            let cut = [&whole[..length], &trailer[..]].concat();
            assert!(open(&bzimage(&cut)).is_err(), "{format}, {length} of {} bytes", whole.len());
        }
    }
}

#[test]
fn a_length_that_is_not_the_contents_is_noticed() {
    for format in FORMATS {
        for wrong in [0u32, 1, 19_999, 20_001, 30_000] {
            let mut payload = payload(format, &text(20_000));
            let at = payload.len() - 4;
            payload[at..].copy_from_slice(&wrong.to_le_bytes());
            let error = open(&bzimage(&payload)).unwrap_err();
            assert!(
                matches!(error, Error::WrongLength(_) | Error::Corrupt(_)),
                "{format}, {wrong} bytes: {error}"
            );
        }
    }
}

/// Each piece is too large for any of the others' windows: a stream that never ends must not be followed for ever.
#[test]
fn a_bomb_ends_where_the_room_ends() {
    let zeros = vec![0; 32 << 20];
    for format in FORMATS {
        let mut payload = payload(format, &zeros);
        let at = payload.len() - 4;
        payload[at..].copy_from_slice(&4096u32.to_le_bytes());
        assert!(open(&bzimage(&payload)).is_err(), "{format}");
    }
}

#[test]
fn a_piece_of_a_block_at_the_end_is_noticed() {
    for more in 1..4 {
        let mut payload = payload(Format::Lz4, &text(20_000));
        let trailer = payload.split_off(payload.len() - 4);
        payload.extend(vec![0; more]);
        payload.extend(trailer);
        assert_eq!(open(&bzimage(&payload)), Err(Error::Corrupt(Format::Lz4)));
    }
}

/// A frame's flag that says that there is a check may itself be hit.
fn has_check(format: Format, payload: &[u8]) -> bool {
    match format {
        Format::Xz | Format::Gzip => true,
        Format::Zstd => payload[4] & 0x04 != 0,
        Format::Lz4 => false,
    }
}

/// In whichever byte of the packed content: what comes out of a format with a check is right, or nothing does.
#[test]
fn each_format_with_a_check_notices_a_changed_bit() {
    let content = text(5000);
    for format in [Format::Xz, Format::Gzip, Format::Zstd] {
        let whole = payload(format, &content);
        for at in 0..whole.len() - 4 {
            let mut payload = whole.clone();
            payload[at] ^= 1 << (at % 8);
            if let Ok(out) = open(&bzimage(&payload)) {
                let right = out == content || !has_check(format, &payload);
                assert!(right, "{format}: a bit of byte {at} is another, and nobody noticed");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bits_are_an_error_or_harmless(
        format in prop::sample::select(&FORMATS[..]),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..6),
    ) {
        let content = text(20_000);
        let mut payload = payload(format, &content);
        // The trailer's upper bytes ask for more memory than a test has.
        let end = payload.len() - 3;
        for (at, bit) in flips {
            payload[at.index(end)] ^= 1 << bit;
        }
        if let Ok(out) = open(&bzimage(&payload)) {
            prop_assert!(out == content || !has_check(format, &payload), "{} is damaged, and nobody noticed", format);
        }
    }

    #[test]
    fn noise_behind_a_magic_is_survived(
        format in prop::sample::select(&FORMATS[..]),
        noise in prop::collection::vec(any::<u8>(), 0..2000),
        keep in 4usize..40,
    ) {
        let mut payload = payload(format, &text(3000));
        payload.truncate(keep);
        payload.extend(noise);
        payload.extend(3000u32.to_le_bytes());
        let _ = open(&bzimage(&payload));
    }
}
