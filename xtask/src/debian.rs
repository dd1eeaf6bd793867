//! Debian's own kernel as a guest: the package's file as it is, and a ramdisk that is busybox, this project's `workload`
//! programs and a script (`workloads/init`).
//!
//! The same two files of an architecture boot on the bare machine, on Debian's Xen and on Penumbra; only the console's name on the kernel's
//! command line differs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use machine_tests::case::File;

use crate::apt;
use crate::cli::Arch;
use crate::ramdisk::Ramdisk;
use crate::workloads::{self, Workloads};
use crate::workspace;

/// What the name of a kernel's package begins with.
const KERNEL: &str = "linux-image-";
/// The package with GRUB's image for Xen's paravirtual guests, and where it is there.
const GRUB: (&str, &str) = ("grub-xen-host", "usr/lib/grub-xen/grub-x86_64-xen.bin");
/// One program with everything that a shell needs.
const BUSYBOX: &str = "busybox-static";
/// Where a paravirtual guest's kernel has its console, on its command line.
pub const CONSOLE: &str = "console=hvc0";
/// The same where the kernel has a machine of its own (stage-2 mode, and the `virt` machine): its UART, from the first line on.
pub const UART: &str = "console=ttyAMA0 earlycon=pl011,0x9000000";
/// The ramdisk's first process.
const INIT: &str = "workloads/init";

/// The package that always depends on Debian's newest kernel.
fn newest_kernel(arch: Arch) -> &'static str {
    match arch {
        Arch::Aarch64 => "linux-image-arm64",
        Arch::X86_64 => "linux-image-amd64",
    }
}

/// The guest's two files.
#[derive(Clone, Debug)]
pub struct Debian {
    /// The kernel: a bzImage (x86-64), or an Image (AArch64).
    pub kernel: PathBuf,
    /// The initial ramdisk.
    pub ramdisk: PathBuf,
    /// The kernel's package and its version.
    pub name: String,
}

/// Sees to both files of an architecture, at the first call; whoever asks meanwhile waits.
pub fn ready(arch: Arch) -> Result<Debian> {
    static READY: Mutex<Vec<(Arch, Debian)>> = Mutex::new(Vec::new());
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, debian)) = ready.iter().find(|(known, _)| *known == arch) {
        return Ok(debian.clone());
    }
    let debian = make(arch)?;
    ready.push((arch, debian.clone()));
    Ok(debian)
}

/// GRUB as a guest.
pub fn grub() -> Result<PathBuf> {
    let (package, file) = GRUB;
    Ok(apt::package(Arch::X86_64, package, &apt::lock()?)?.files.join(file))
}

fn make(arch: Arch) -> Result<Debian> {
    let workloads = workloads::wanted(arch)?;
    let lock = apt::lock()?;
    let package = kernel_package(arch, &lock)?;
    let kernel = apt::package(arch, &package, &lock)?;
    let busybox = apt::package(arch, BUSYBOX, &lock)?;
    let ramdisk = apt::cache(arch)?.join("initramfs.cpio.gz");
    let content = content(&busybox.files.join("bin/busybox"), workloads.as_ref())?;
    workspace::replace(&ramdisk, &content)?;
    let release = package.trim_start_matches(KERNEL);
    let image = kernel.files.join(format!("boot/vmlinuz-{release}"));
    Ok(Debian { kernel: image, ramdisk, name: format!("{package} {}", kernel.version) })
}

/// The file that tells which package the kernel is in, among the packages.
const MEMORY: &str = "kernel-package";

/// Which package the kernel is in; remembered, so that a cache that is whole needs neither apt nor its lists.
fn kernel_package(arch: Arch, lock: &fs::File) -> Result<String> {
    let cache = apt::cache(arch)?;
    if let Some(name) = remembered(&cache) {
        return Ok(name);
    }
    let resolve = || apt::dependency(arch, newest_kernel(arch), KERNEL);
    let name = newest(resolve, |name| apt::package(arch, name, lock).map(drop))?;
    workspace::replace(&cache.join(MEMORY), name.as_bytes())?;
    Ok(name)
}

/// The package that `resolve` names, once `fetch` has brought it. Old lists may name one that isn't there any more; whoever tries to fetch
/// it updates them, and then they name another.
fn newest(
    mut resolve: impl FnMut() -> Result<String>,
    mut fetch: impl FnMut(&str) -> Result<()>,
) -> Result<String> {
    let old = resolve()?;
    let Err(error) = fetch(&old) else { return Ok(old) };
    match resolve() {
        Ok(new) if new != old => fetch(&new).map(|()| new),
        _ => Err(error),
    }
}

/// Why this system can't bring these files of a guest's, if that is so.
pub fn obstacle(arch: Arch, file: File) -> Option<String> {
    let cache = apt::cache(arch).ok()?;
    let kernel = if remembered(&cache).is_some() { None } else { Some(newest_kernel(arch)) };
    let wanted = match file {
        File::DebianKernel => vec![kernel],
        File::DebianRamdisk => vec![kernel, Some(BUSYBOX)],
        File::DebianGrub => vec![Some(GRUB.0)],
        _ => Vec::new(),
    };
    wanted.into_iter().flatten().find_map(|name| apt::obstacle(arch, name))
}

/// The name that is remembered, for as long as the package is there: Debian may have a newer one, and not this one any more.
fn remembered(cache: &Path) -> Option<String> {
    let name = fs::read_to_string(cache.join(MEMORY)).ok()?.trim().to_owned();
    apt::is_there(cache, &name).then_some(name)
}

/// The ramdisk's files.
fn content(busybox: &Path, workloads: Option<&Workloads>) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let mut ramdisk = Ramdisk::new();
    ["bin", "dev", "proc", "sys", "tmp", "root"].iter().try_for_each(|name| ramdisk.folder(name))?;
    ramdisk.device("dev/console", 5, 1)?;
    ramdisk.device("dev/null", 1, 3)?;
    ramdisk.program("bin/busybox", &read(busybox)?)?;
    ramdisk.link("bin/sh", "busybox")?;
    if let Some(workloads) = workloads {
        ramdisk.program("bin/workload", &read(&workloads.workload)?)?;
        ramdisk.program("bin/answer", &read(&workloads.answer)?)?;
    }
    ramdisk.program("init", &read(&workspace::root().join(INIT))?)?;
    ramdisk.compressed()
}

/// What the ramdisk is asked to do, in the words that `workloads/init` reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task {
    /// Come to a shell.
    Shell,
    /// Look whether everything is there, in a domain of this size (in MiB) with so many vCPUs, and switch off.
    SelfCheck { memory: u64, vcpus: u32 },
}

impl Task {
    /// The words.
    pub fn words(self) -> String {
        match self {
            Task::Shell => "then=shell".into(),
            Task::SelfCheck { memory, vcpus } => {
                format!("test=self expect_memory={memory} expect_vcpus={vcpus} then=poweroff")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::scratch;

    #[test]
    fn a_kernel_that_only_old_lists_know_is_asked_for_anew() {
        let mut lists = ["new", "old"].map(str::to_owned).to_vec();
        let only_new =
            |name: &str| if name == "new" { Ok(()) } else { Err(anyhow::anyhow!("{name} is gone")) };
        assert_eq!(newest(|| lists.pop().context("asked too often"), only_new).unwrap(), "new");
        let stays = newest(|| Ok("old".into()), only_new).unwrap_err();
        assert_eq!(stays.to_string(), "old is gone");
    }

    #[test]
    fn a_kernel_whose_package_is_gone_is_asked_for_anew() {
        let cache = scratch("kernel-package");
        assert_eq!(remembered(&cache), None);
        fs::write(cache.join(MEMORY), "linux-image-1\n").unwrap();
        assert_eq!(remembered(&cache), None);
        fs::create_dir(cache.join("linux-image-1")).unwrap();
        fs::write(cache.join("linux-image-1/version"), "1").unwrap();
        assert_eq!(remembered(&cache).as_deref(), Some("linux-image-1"));
    }
}
