//! What in the file vouches for what comes out of it.
//!
//! A damaged byte of the packed data may still unpack to something of the right length. Three of the formats have a check of the
//! content, which the decoders hold against what came out; LZ4's first frame has none. There is one more: Linux's build put a CRC-32
//! over the whole bzImage at its end (`boot.rst` of Linux's documentation, "The image checksum"), until 6.15. Whoever signs a kernel for
//! secure boot writes into the header and spoils it, so that it is computed here as if the signature weren't there: without the
//! two fields that a signer fills in (PE format specification, "Optional Header": `CheckSum`, and the directory entry `Certificate
//! Table`), and without what stands behind the image.
//!
//! A checksum that doesn't hold proves nothing, since newer kernels have none: it is for the caller to say so.

use crc32fast::Hasher;

use crate::Packed;
use crate::payload::{Format, image_length};

/// The CRC-32 of a file whose last four bytes are the CRC-32 of what is before them (not complemented), complemented as usual.
const HOLDS: u32 = u32::MAX;
/// Where the PE header's place stands, and what it begins with.
const PE_PLACE: usize = 0x3c;
const PE_MAGIC: &[u8] = b"PE\0\0";
/// From there to the optional header, and what that begins with: 32-bit and 64-bit.
const OPTIONAL: usize = 24;
const PE32: &[u8] = &[0x0b, 0x01];
const PE32_PLUS: &[u8] = &[0x0b, 0x02];
/// In the optional header: `CheckSum`, and its length.
const CHECKSUM: (usize, usize) = (64, 4);
/// Entry 4 of the data directory, whose place is another in either form.
const CERTIFICATES: (usize, usize) = (112 + 4 * 8, 8);
const CERTIFICATES_PE32: (usize, usize) = (96 + 4 * 8, 8);
/// In an XZ stream's header: which check there is, if any.
const XZ_CHECK: (usize, u8) = (7, 0x0f);
/// In a zstd frame's header: there is a checksum.
const ZSTD_CHECK: (usize, u8) = (4, 0x04);

impl Packed<'_> {
    /// Whether damage to the content, once it is unpacked without an error, can be ruled out: by a check of the format's, or by the
    /// whole file's.
    pub fn is_vouched_for(&self) -> bool {
        self.has_check() || checksum_holds(self.file())
    }

    /// Whether the packed data has a check of the content, which its decoder looks at.
    fn has_check(&self) -> bool {
        let flag = |(at, mask): (usize, u8)| self.content().get(at).is_some_and(|byte| byte & mask != 0);
        match self.format() {
            Format::Gzip => true,
            Format::Xz => flag(XZ_CHECK),
            Format::Zstd => flag(ZSTD_CHECK),
            Format::Lz4 => false,
        }
    }
}

/// Whether the file's own checksum is that of its content.
fn checksum_holds(file: &[u8]) -> bool {
    let Some(image) = image_length(file).and_then(|length| file.get(..length)) else { return false };
    let mut hasher = Hasher::new();
    let mut done = 0usize;
    for (at, length) in signers_fields(image).into_iter().flatten() {
        let end = at.saturating_add(length);
        hasher.update(image.get(done..at).unwrap_or(&[]));
        hasher.update([0; 8].get(..length).unwrap_or(&[]));
        done = end;
    }
    let Some(rest) = image.get(done..) else { return false };
    hasher.update(rest);
    hasher.finalize() == HOLDS
}

/// The fields that a signer fills in, in their order: place and length. Nothing for a kernel without a PE header.
fn signers_fields(image: &[u8]) -> Option<[(usize, usize); 2]> {
    let place = image.get(PE_PLACE..)?.first_chunk::<4>()?;
    let header = u32::from_le_bytes(*place) as usize;
    image.get(header..).filter(|header| header.starts_with(PE_MAGIC))?;
    let optional = header.checked_add(OPTIONAL)?;
    let form = image.get(optional..)?;
    let certificates = match form {
        form if form.starts_with(PE32_PLUS) => CERTIFICATES,
        form if form.starts_with(PE32) => CERTIFICATES_PE32,
        _ => return None,
    };
    let place = |(at, length): (usize, usize)| Some((optional.checked_add(at)?, length));
    Some([place(CHECKSUM)?, place(certificates)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::{FORMATS, bzimage, payload, seal, text};

    fn vouched(file: &[u8]) -> bool {
        Packed::find(file).unwrap().packed().unwrap().is_vouched_for()
    }

    fn kernel(format: Format) -> Vec<u8> {
        bzimage(&payload(format, &text(3000)))
    }

    #[test]
    fn what_is_whole_is_vouched_for() {
        for format in FORMATS {
            assert!(vouched(&kernel(format)), "{format}");
        }
        let whole = kernel(Format::Lz4);
        let known: u32 = whole.iter().fold(u32::MAX, |crc, byte| {
            (0..8)
                .fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 != 0 { 0xedb8_8320 } else { 0 })
        });
        assert_eq!(known, 0, "the remainder over the whole file, as boot.rst has it");
    }

    #[test]
    fn any_bit_of_a_file_that_has_nothing_else_is_its_checksums() {
        let whole = kernel(Format::Lz4);
        // But for those that say where the payload is.
        for at in (0x260..whole.len()).step_by(7) {
            let mut file = whole.clone();
            file[at] ^= 1 << (at % 8);
            assert!(
                !Packed::find(&file).is_ok_and(|found| found.packed().unwrap().is_vouched_for()),
                "{at:#x}"
            );
        }
    }

    #[test]
    fn a_format_with_a_check_needs_no_other() {
        for format in [Format::Xz, Format::Gzip, Format::Zstd] {
            let mut file = kernel(format);
            let last = file.len() - 1;
            file[last] ^= 1;
            assert!(vouched(&file), "{format}");
        }
        let mut unchecked = kernel(Format::Zstd);
        let at = unchecked.windows(4).position(|bytes| bytes == b"\x28\xb5\x2f\xfd").unwrap();
        unchecked[at + 4] &= !0x04;
        assert!(!vouched(&unchecked), "the frame says that it has no checksum, and the file's doesn't hold");
    }

    #[test]
    fn a_signature_changes_nothing() {
        for (magic, entry) in [(PE32_PLUS, CERTIFICATES), (PE32, CERTIFICATES_PE32)] {
            let mut file = kernel(Format::Lz4);
            let header = 0x40;
            file[PE_PLACE] = header as u8;
            file[header..header + 4].copy_from_slice(PE_MAGIC);
            file[header + OPTIONAL..][..2].copy_from_slice(magic);
            seal(&mut file);
            assert!(vouched(&file));
            file[header + OPTIONAL + CHECKSUM.0..][..4].fill(0x5a);
            file[header + OPTIONAL + entry.0..][..8].fill(0xa5);
            file.extend([0x77; 400]);
            assert!(vouched(&file));
            file[header + OPTIONAL + 8] = 1;
            assert!(!vouched(&file), "another field");
        }
    }

    #[test]
    fn a_header_that_points_nowhere_vouches_for_nothing() {
        let mut file = kernel(Format::Lz4);
        file[PE_PLACE..PE_PLACE + 4].fill(0xff);
        assert!(!vouched(&file));
        seal(&mut file);
        assert!(vouched(&file), "there is no PE header then");
        file[0x1f4..0x1f8].fill(0xff);
        assert!(!vouched(&file), "longer than the file");
    }
}
