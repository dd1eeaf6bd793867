//! An initial ramdisk for Linux: an archive in cpio's `newc` form, compressed by gzip (Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! The same content always gives the same bytes: there are no times in it.

use std::io::Write;

use anyhow::{Context, Result};
use cpio::newc::{self, Builder, ModeFileType};
use flate2::Compression;
use flate2::write::GzEncoder;

/// The archive so far.
pub struct Ramdisk {
    archive: Vec<u8>,
    /// Files without links between them need a number each.
    next: u32,
}

impl Ramdisk {
    /// An empty one.
    pub fn new() -> Ramdisk {
        Ramdisk { archive: Vec::new(), next: 1 }
    }

    /// Adds a folder; those above it come first.
    pub fn folder(&mut self, name: &str) -> Result<()> {
        self.add(Builder::new(name).mode(0o755).set_mode_file_type(ModeFileType::Directory), &[])
    }

    /// Adds a program, with everybody's right to run it.
    pub fn program(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.add(Builder::new(name).mode(0o755).set_mode_file_type(ModeFileType::Regular), content)
    }

    /// Adds another name for `target`.
    pub fn link(&mut self, name: &str, target: &str) -> Result<()> {
        let link = Builder::new(name).mode(0o777).set_mode_file_type(ModeFileType::Symlink);
        self.add(link, target.as_bytes())
    }

    /// Adds a device without blocks, by its numbers.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        let device = Builder::new(name).mode(0o600).set_mode_file_type(ModeFileType::Char);
        self.add(device.rdev_major(major).rdev_minor(minor), &[])
    }

    fn add(&mut self, entry: Builder, content: &[u8]) -> Result<()> {
        let length = u32::try_from(content.len()).context("a file too long for the ramdisk")?;
        let mut writer = entry.ino(self.next).nlink(1).write(&mut self.archive, length);
        writer.write_all(content)?;
        writer.finish()?;
        self.next += 1;
        Ok(())
    }

    /// The whole of it, compressed.
    pub fn compressed(self) -> Result<Vec<u8>> {
        let archive = newc::trailer(self.archive)?;
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&archive)?;
        Ok(encoder.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;

    /// An entry's name, mode, device and content.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    fn entries(packed: &[u8]) -> Vec<Entry> {
        let mut rest: Box<dyn Read + '_> = Box::new(GzDecoder::new(packed));
        let mut entries = Vec::new();
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                return entries;
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            let device = (entry.rdev_major(), entry.rdev_minor());
            entries.push((entry.name().to_owned(), entry.mode(), device, content));
            rest = reader.finish().unwrap();
        }
    }

    fn example() -> Vec<u8> {
        let mut ramdisk = Ramdisk::new();
        ramdisk.folder("bin").unwrap();
        ramdisk.program("bin/busybox", b"content").unwrap();
        ramdisk.link("bin/sh", "busybox").unwrap();
        ramdisk.folder("dev").unwrap();
        ramdisk.device("dev/console", 5, 1).unwrap();
        ramdisk.compressed().unwrap()
    }

    #[test]
    fn what_was_added_is_read_again() {
        let found = entries(&example());
        let entry = |name: &str, mode, device, content: &[u8]| (name.into(), mode, device, content.to_vec());
        let expected = [
            entry("bin", 0o040_755, (0, 0), b""),
            entry("bin/busybox", 0o100_755, (0, 0), b"content"),
            entry("bin/sh", 0o120_777, (0, 0), b"busybox"),
            entry("dev", 0o040_755, (0, 0), b""),
            entry("dev/console", 0o020_600, (5, 1), b""),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        assert_eq!(example(), example());
    }
}
