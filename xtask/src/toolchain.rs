//! Which compiler builds for the bare machine.
//!
//! Bare-metal code needs `core` and `alloc` for a target without an operating system. They come, in this order, from
//! 1. the active toolchain, when its target is installed;
//! 2. `rustup target add`, where that can download;
//! 3. the active toolchain's own library source (`rust-src`), compiled on the fly (`-Zbuild-std`);
//! 4. Debian's `rustc-web` and `rust-web-src`: a compiler and the library source that belongs to it.
//!
//! A `rust-toolchain.toml` that lists the targets would make rustup try a download at every call and fail where there
//! is none: so this file decides.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cli::Arch;
use crate::process;
use crate::setup;
use crate::workspace;

/// Debian's compiler, and its lint driver, stand here.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";

/// The oldest compiler that the workspace takes (its `rust-version`), as major and minor number.
const OLDEST: (u32, u32) = (1, 95);

/// The bare-metal target of an architecture. Neither uses floating-point registers, which belong to the guests.
pub fn target(arch: Arch) -> &'static str {
    match arch {
        Arch::Aarch64 => "aarch64-unknown-none-softfloat",
        Arch::X86_64 => "x86_64-unknown-none",
    }
}

/// Where `core` and `alloc` come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Library {
    /// The active toolchain has them, compiled.
    Installed,
    /// Compiled from the active toolchain's source.
    Source,
    /// Compiled from Debian's source, by Debian's compiler.
    Debian,
}

/// How to build for one bare-metal target.
pub struct Toolchain {
    target: &'static str,
    library: Library,
    linker: Option<PathBuf>,
}

impl Toolchain {
    /// The toolchain for `arch`, after installing what is missing.
    pub fn ready(arch: Arch) -> Result<Toolchain> {
        let target = target(arch);
        if has_target(target)? || add_target(target)? {
            return Ok(Toolchain { target, library: Library::Installed, linker: None });
        }
        let library = if has_source(&active_rustc())? { Library::Source } else { debian()? };
        Ok(Toolchain { target, library, linker: Some(linker()?) })
    }

    /// A `cargo build` for this target; packages, profile and the like are added by the caller.
    pub fn build(&self) -> Command {
        let mut command = Command::new(cargo());
        command.arg("build");
        self.complete(&mut command);
        command
    }

    /// A `cargo clippy` for this target, after installing clippy where it is missing.
    pub fn clippy(&self) -> Result<Command> {
        let mut command = match self.library {
            Library::Debian => debian_clippy()?,
            Library::Installed | Library::Source => {
                setup::component("clippy")?;
                let mut command = Command::new(cargo());
                command.arg("clippy");
                command
            }
        };
        self.complete(&mut command);
        Ok(command)
    }

    fn complete(&self, command: &mut Command) {
        command.current_dir(workspace::root()).args(["--target", self.target]);
        command.arg("--target-dir").arg(workspace::bare_target());
        // Flags meant for the host's programs would reach the bare machine's code too.
        command
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET");
        if self.library != Library::Installed {
            command.env("RUSTC_BOOTSTRAP", "1");
            command.arg("-Zbuild-std=core,alloc,compiler_builtins");
            command.arg("-Zbuild-std-features=compiler-builtins-mem");
        }
        if self.library == Library::Debian {
            command.env("RUSTC", DEBIAN_RUSTC).env_remove("RUSTUP_TOOLCHAIN");
        }
        if let Some(linker) = &self.linker {
            command.arg("--config").arg(format!(
                "target.{}.linker={:?}",
                self.target,
                linker.display().to_string()
            ));
        }
    }
}

/// The cargo that runs this program.
pub fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

fn active_rustc() -> PathBuf {
    env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from)
}

/// What a compiler answers to a question, without the line end.
fn ask(rustc: &Path, question: &[&str]) -> Result<String> {
    let output = process::output(Command::new(rustc).args(question))?;
    if !output.status.success() {
        bail!(
            "{} {} failed: {}",
            rustc.display(),
            question.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether the active toolchain carries the target's compiled library.
fn has_target(target: &str) -> Result<bool> {
    let folder = ask(&active_rustc(), &["--print", "target-libdir", "--target", target])?;
    let Ok(files) = fs::read_dir(folder) else { return Ok(false) };
    Ok(files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-")))
}

/// Whether the source of the library that belongs to this compiler is there.
fn has_source(rustc: &Path) -> Result<bool> {
    let sysroot = ask(rustc, &["--print", "sysroot"])?;
    Ok(Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists())
}

/// Sees to the compiled library of a target with an operating system.
pub fn need_target(target: &str) -> Result<()> {
    if has_target(target)? || add_target(target)? {
        return Ok(());
    }
    bail!(
        "the active Rust toolchain has no library for {target}: install it with `rustup target add {target}`"
    )
}

/// The same where there is another way: whether it could be had.
pub fn may_have_target(target: &str) -> Result<bool> {
    Ok(has_target(target)? || add_target(target)?)
}

/// Lets rustup download the target. A failure is remembered for this compiler, so that it costs its time once.
fn add_target(target: &str) -> Result<bool> {
    let Ok(rustup) = which::which("rustup") else { return Ok(false) };
    let compiler = ask(&active_rustc(), &["-vV"])?;
    let memory = workspace::artefacts()?.join(format!("no-download-of-{target}"));
    if fs::read_to_string(&memory).is_ok_and(|text| text == compiler) {
        return Ok(false);
    }
    println!("installing Rust's standard library for {target}: rustup target add {target}");
    let output = process::output(Command::new(rustup).args(["target", "add", target]))?;
    if output.status.success() && has_target(target)? {
        return Ok(true);
    }
    println!("rustup could not bring it; looking for the library's source");
    fs::write(&memory, compiler).with_context(|| format!("cannot write {}", memory.display()))?;
    Ok(false)
}

/// Sees to Debian's compiler and library source.
fn debian() -> Result<Library> {
    let rustc = Path::new(DEBIAN_RUSTC);
    if !rustc.exists() || !has_source(rustc)? {
        setup::packages("a compiler with its library's source", &["rustc-web", "rust-web-src"])?;
    }
    if !has_source(rustc)? {
        bail!(
            "{DEBIAN_RUSTC} has no library source beside it: install the packages rustc-web and rust-web-src"
        );
    }
    let version = ask(rustc, &["--version"])?;
    if parse_version(&version).is_none_or(|version| version < OLDEST) {
        bail!("{DEBIAN_RUSTC} is too old ({version}): at least {}.{} is needed", OLDEST.0, OLDEST.1);
    }
    Ok(Library::Debian)
}

/// Debian's compiler, whose library Debian has for other architectures, too.
pub fn debian_compiler() -> Result<&'static Path> {
    let rustc = Path::new(DEBIAN_RUSTC);
    if !rustc.exists() {
        setup::packages("a compiler whose library is there for arm64", &["rustc-web"])?;
    }
    Ok(rustc)
}

/// The major and minor number in `rustc 1.96.0 (...)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Debian's lint driver. A plain `cargo clippy` would find rustup's, which does not fit the library.
fn debian_clippy() -> Result<Command> {
    if !Path::new(DEBIAN_CLIPPY).exists() || !Path::new(DEBIAN_CARGO).exists() {
        setup::packages("the lint driver of that compiler", &["rust-web-clippy", "cargo-web"])?;
    }
    let mut command = Command::new(DEBIAN_CLIPPY);
    command.arg("clippy").env("PATH", "/usr/bin:/bin").env("CARGO", DEBIAN_CARGO);
    Ok(command)
}

/// A linker for bare-metal ELF: the active toolchain's `rust-lld`, or the system's `ld.lld`.
pub fn linker() -> Result<PathBuf> {
    let sysroot = ask(&active_rustc(), &["--print", "sysroot"])?;
    let host = ask(&active_rustc(), &["--print", "host-tuple"])?;
    let carried = Path::new(&sysroot).join(format!("lib/rustlib/{host}/bin/rust-lld"));
    if carried.exists() {
        return Ok(carried);
    }
    if which::which("ld.lld").is_err() {
        setup::packages("a linker", &["lld"])?;
    }
    which::which("ld.lld").context("no linker: neither rust-lld in the toolchain nor ld.lld")
}

#[cfg(test)]
mod tests {
    use super::parse_version;

    #[test]
    fn versions_are_read() {
        assert_eq!(
            parse_version("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"),
            Some((1, 96))
        );
        assert_eq!(parse_version("rustc 2.0.1-nightly"), Some((2, 0)));
        assert_eq!(parse_version("rustc"), None);
        assert_eq!(parse_version("rustc one.two"), None);
    }
}
