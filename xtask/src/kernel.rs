//! A kernel's file as a person names it, brought into the form that the machine's loader takes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;

use crate::workspace;

/// With what gzip's files begin (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The kernel as it is to lie in memory: the file itself, or what comes out of it where gzip has packed it, as distributions' `Image.gz` and some
/// `vmlinuz` are.
pub fn unpacked(file: &Path) -> Result<PathBuf> {
    let file = file.canonicalize().with_context(|| format!("cannot open {}", file.display()))?;
    if !is_packed(&file)? {
        return Ok(file);
    }
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let folder = workspace::folder(workspace::artefacts()?.join("modules"))?;
    let plain = folder.join(format!("unpacked-{}-{name}", std::process::id()));
    unpack(&file, &plain)?;
    Ok(plain)
}

fn is_packed(file: &Path) -> Result<bool> {
    let mut head = Vec::new();
    let opened = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    opened.take(2).read_to_end(&mut head).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(head == GZIP)
}

fn unpack(from: &Path, to: &Path) -> Result<()> {
    let packed = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    let mut plain = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let done = io::copy(&mut MultiGzDecoder::new(packed), &mut plain);
    if done.is_err() {
        // Half a kernel is none.
        let _ = fs::remove_file(to);
    }
    done.map(drop).with_context(|| format!("{} begins like a file of gzip's, but is none", from.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::workspace::tests::scratch;

    #[test]
    fn a_kernel_is_unpacked_where_it_is_packed() {
        let folder = scratch("kernel");
        let (plain, packed) = (folder.join("Image"), folder.join("Image.gz"));
        fs::write(&plain, b"a kernel").unwrap();
        let mut encoder = GzEncoder::new(File::create(&packed).unwrap(), Compression::default());
        encoder.write_all(b"a kernel").unwrap();
        encoder.finish().unwrap();
        assert_eq!(unpacked(&plain).unwrap(), plain.canonicalize().unwrap());
        let unpacked = unpacked(&packed).unwrap();
        assert_eq!(fs::read(&unpacked).unwrap(), b"a kernel");
        fs::remove_file(unpacked).unwrap();
    }

    #[test]
    fn a_damaged_file_leaves_nothing() {
        let folder = scratch("damaged-kernel");
        let (packed, plain) = (folder.join("Image.gz"), folder.join("Image"));
        fs::write(&packed, [0x1f, 0x8b, 8, 0, 1]).unwrap();
        assert!(unpack(&packed, &plain).is_err());
        assert!(!plain.exists());
        fs::write(&packed, []).unwrap();
        assert!(!is_packed(&packed).unwrap());
    }
}
