//! Debian's Xen, fetched and unpacked into the target folder; nothing of it is installed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use flate2::read::GzDecoder;

use crate::process;
use crate::setup;
use crate::workspace;

/// The package that carries the reference hypervisor.
const PACKAGE: &str = "xen-hypervisor-4.17-amd64";
/// Where it stands inside.
const INSIDE: &str = "boot/xen-4.17-amd64.gz";

/// Whether this system's package manager could bring it.
pub fn can_be_had() -> bool {
    ["apt-get", "dpkg-deb"].iter().all(|program| which::which(program).is_ok())
}

/// The unpacked hypervisor, fetched at the first call; whoever asks meanwhile waits.
pub fn hypervisor() -> Result<PathBuf> {
    static FETCHING: Mutex<()> = Mutex::new(());
    let _alone = FETCHING.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = workspace::folder(workspace::artefacts()?.join("reference"))?;
    let elf = folder.join("xen-4.17-amd64");
    if elf.exists() {
        return Ok(elf);
    }
    println!("fetching the reference hypervisor: apt-get download {PACKAGE}");
    let package = download(&folder)?;
    let unpack = process::output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&folder))?;
    if !unpack.status.success() {
        bail!("cannot unpack {}: {}", package.display(), String::from_utf8_lossy(&unpack.stderr).trim());
    }
    inflate(&folder.join(INSIDE), &elf)?;
    Ok(elf)
}

fn download(folder: &Path) -> Result<PathBuf> {
    let mut fetch = Command::new("apt-get");
    fetch.args(["download", PACKAGE]).current_dir(folder);
    if !process::output(&mut fetch)?.status.success() {
        // A fresh machine may have no package lists yet, or old ones.
        let mut update = setup::as_root()?;
        process::step("updating the package lists: apt-get update", update.args(["apt-get", "update"]))?;
        process::step(&format!("fetching {PACKAGE}"), &mut fetch)?;
    }
    let mut files =
        fs::read_dir(folder).context("cannot read the reference's folder")?.flatten().map(|file| file.path());
    files
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .context("apt-get download left no package")
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
