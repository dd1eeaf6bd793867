//! Debian's Xen: the reference hypervisor, unpacked into the target folder.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::read::GzDecoder;

use crate::apt;
use crate::cli::Arch;

/// The package that carries it.
fn package(arch: Arch) -> &'static str {
    match arch {
        Arch::Aarch64 => "xen-hypervisor-4.17-arm64",
        Arch::X86_64 => "xen-hypervisor-4.17-amd64",
    }
}

/// What it has to be told besides `dom0_mem`, so that it uses the serial line.
pub fn console_words(arch: Arch) -> &'static str {
    match arch {
        Arch::Aarch64 => "console=dtuart dtuart=/pl011@9000000 ",
        Arch::X86_64 => arch.console_words(),
    }
}

/// Why this system can't bring it, if that is so.
pub fn obstacle(arch: Arch) -> Option<String> {
    apt::obstacle(arch, package(arch))
}

/// The unpacked hypervisor, fetched at the first call; whoever asks meanwhile waits.
pub fn hypervisor(arch: Arch) -> Result<PathBuf> {
    let lock = apt::lock()?;
    let package = apt::package(arch, package(arch), &lock)?;
    if arch == Arch::Aarch64 {
        // It isn't packed.
        return Ok(package.files.join("boot/xen-4.17-arm64"));
    }
    // Inside, so that whoever removes the package for a newer one gets that.
    let elf = package.folder.join("xen-4.17-amd64");
    if !elf.exists() {
        inflate(&package.files.join("boot/xen-4.17-amd64.gz"), &elf)?;
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
