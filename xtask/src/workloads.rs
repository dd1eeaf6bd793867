//! Compiling the programs for a Linux guest, the crate `workloads`, into static executables.
//!
//! They need a library for their architecture's Linux, which comes, in this order, from
//! 1. the computer itself, where it is a Linux of that architecture with glibc: nothing has to be installed;
//! 2. the active toolchain's target with musl, which `rustup target add` brings where it can download;
//! 3. for AArch64, Debian: its compiler, that compiler's library for arm64, and the C library to go with it. The last two are unpacked, not
//!    installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt;
use crate::cli::Arch;
use crate::process;
use crate::toolchain;
use crate::workspace;

const PACKAGE: &str = "workloads";
/// Programs of their own size at a fixed address: what they cost to start is then the same on every computer.
const FLAGS: &str = "-Ctarget-feature=+crt-static -Crelocation-model=static -Cstrip=debuginfo";
/// Besides for AArch64: out of the way of Debian's Xen, whose code stands at the addresses where the linker would put programs, since a breakpoint in one
/// would be met in the other all the time.
const PLACE: &str = " -Clink-arg=--image-base=0x10000000";
/// Debian's packages with the libraries: Rust's, C's and the compiler's own.
const DEBIAN: [&str; 3] = ["libstd-rust-web-dev", "libc6-dev", "libgcc-12-dev"];

/// The programs for a Linux guest.
pub struct Workloads {
    /// That which has them all, but for
    pub workload: PathBuf,
    /// the small one that it starts.
    pub answer: PathBuf,
}

/// The programs for a Linux guest of this architecture, for who can't do without.
pub fn needed(arch: Arch) -> Result<Workloads> {
    if let Some(target) = own_target(arch) {
        return build(target, FLAGS, &[]);
    }
    let target = musl(arch);
    match arch {
        Arch::X86_64 => toolchain::need_target(target)?,
        Arch::Aarch64 if !toolchain::may_have_target(target)? => return by_debian(),
        Arch::Aarch64 => {}
    }
    let flags = if arch == Arch::Aarch64 { [FLAGS, PLACE].concat() } else { FLAGS.to_owned() };
    build(target, &flags, &["--config", &format!("target.{target}.linker=\"rust-lld\"")])
}

/// The same where a ramdisk may do without: why it has to is said.
pub fn wanted(arch: Arch) -> Result<Option<Workloads>> {
    match (needed(arch), arch) {
        (Err(error), Arch::Aarch64) => {
            eprintln!("the ramdisk has no workloads: {error:#}");
            Ok(None)
        }
        (workloads, _) => workloads.map(Some),
    }
}

/// This computer's own target, if its programs run in such a guest.
fn own_target(arch: Arch) -> Option<&'static str> {
    let glibc = cfg!(all(target_os = "linux", target_env = "gnu"));
    match arch {
        Arch::Aarch64 if glibc && cfg!(target_arch = "aarch64") => Some("aarch64-unknown-linux-gnu"),
        Arch::X86_64 if glibc && cfg!(target_arch = "x86_64") => Some("x86_64-unknown-linux-gnu"),
        _ => None,
    }
}

fn musl(arch: Arch) -> &'static str {
    match arch {
        Arch::Aarch64 => "aarch64-unknown-linux-musl",
        Arch::X86_64 => "x86_64-unknown-linux-musl",
    }
}

/// By Debian's compiler, which takes its library's arm64 package as it is.
fn by_debian() -> Result<Workloads> {
    let compiler = toolchain::debian_compiler()?;
    let lock = apt::lock()?;
    let mut files = Vec::new();
    for name in DEBIAN {
        files.push(apt::package(Arch::Aarch64, name, &lock)?.files.join("usr"));
    }
    drop(lock);
    let [rust, c, gcc] = files.as_slice() else { bail!("not all of {DEBIAN:?} are there") };
    let c = c.join("lib/aarch64-linux-gnu");
    let gcc = gcc.join("lib/gcc/aarch64-linux-gnu/12");
    let flags = debian_flags(rust, &c, &gcc, &toolchain::linker()?)?;
    let rustc = format!("build.rustc={:?}", compiler.display().to_string());
    build("aarch64-unknown-linux-gnu", &flags, &["--config", &rustc])
}

/// What a C compiler would tell the linker: no such compiler for arm64 is there.
fn debian_flags(rust: &Path, c: &Path, gcc: &Path, linker: &Path) -> Result<String> {
    let mut flags = vec![[FLAGS, PLACE].concat()];
    let mut add = |flag: &str, path: &Path| -> Result<()> {
        let path = path.to_str().filter(|path| !path.contains(' '));
        flags.push(format!("{flag}{}", path.context("a path with blanks can't be told the compiler")?));
        Ok(())
    };
    add("--sysroot=", rust)?;
    add("-Clinker=", linker)?;
    // What comes before the program, and behind it.
    for file in [c.join("crt1.o"), c.join("crti.o"), gcc.join("crtbeginT.o")] {
        add("-Zpre-link-arg=", &file)?;
    }
    add("-L", c)?;
    add("-L", gcc)?;
    for word in ["--start-group", "-lc", "-lgcc", "-lgcc_eh", "--end-group"] {
        add("-Clink-arg=", Path::new(word))?;
    }
    for file in [gcc.join("crtend.o"), c.join("crtn.o")] {
        add("-Clink-arg=", &file)?;
    }
    flags.push("-Clinker-flavor=ld.lld".into());
    Ok(flags.join(" "))
}

fn build(target: &str, flags: &str, more: &[&str]) -> Result<Workloads> {
    let folder = workspace::target().join("static");
    let mut command = Command::new(toolchain::cargo());
    command.current_dir(workspace::root()).args(["build", "--release", "--package", PACKAGE]);
    command.args(["--target", target, "--target-dir"]).arg(&folder).args(more);
    command.env("RUSTFLAGS", flags);
    command.env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_BUILD_TARGET");
    if flags.contains("-Z") {
        command.env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
    }
    process::step(&format!("building the workloads for {target}"), &mut command)?;
    let folder = folder.join(target).join("release");
    Ok(Workloads { workload: folder.join("workload"), answer: folder.join("answer") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_and_ends_a_c_program_is_in_its_order() {
        let flags = debian_flags(Path::new("/r"), Path::new("/c"), Path::new("/g"), Path::new("/l")).unwrap();
        let order =
            ["/c/crt1.o", "/c/crti.o", "/g/crtbeginT.o", "-lc", "-lgcc_eh", "/g/crtend.o", "/c/crtn.o"];
        let places: Vec<usize> = order.iter().map(|file| flags.find(file).unwrap()).collect();
        assert!(places.is_sorted(), "{flags}");
        assert!(debian_flags(Path::new("/a b"), Path::new("/c"), Path::new("/g"), Path::new("/l")).is_err());
    }
}
