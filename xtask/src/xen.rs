//! Debian's Xen: the reference hypervisor, unpacked into the target folder.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::read::GzDecoder;

use crate::apt;

/// The package that carries it.
const PACKAGE: &str = "xen-hypervisor-4.17-amd64";
/// Where it stands inside.
const INSIDE: &str = "boot/xen-4.17-amd64.gz";

/// Why this system can't bring it, if that is so.
pub fn obstacle() -> Option<String> {
    apt::obstacle(PACKAGE)
}

/// The unpacked hypervisor, fetched at the first call; whoever asks meanwhile waits.
pub fn hypervisor() -> Result<PathBuf> {
    let lock = apt::lock()?;
    let package = apt::package(PACKAGE, &lock)?;
    // Inside, so that whoever removes the package for a newer one gets that.
    let elf = package.folder.join("xen-4.17-amd64");
    if !elf.exists() {
        inflate(&package.files.join(INSIDE), &elf)?;
    }
    Ok(elf)
}

/// Unpacks under another name first, so that an interrupted run leaves nothing that looks whole.
fn inflate(from: &Path, to: &Path) -> Result<()> {
    let partial = to.with_extension("partial");
    let packed = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
    let mut unpacked =
        File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
    io::copy(&mut GzDecoder::new(packed), &mut unpacked).context("cannot unpack the reference hypervisor")?;
    fs::rename(&partial, to).context("cannot name the reference hypervisor")
}
