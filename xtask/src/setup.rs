//! Installing what a fresh Debian or Ubuntu machine lacks: one line for each thing, no questions.

use std::process::Command;

use anyhow::{Result, bail};

use crate::cli::Arch;
use crate::process;
use crate::toolchain::{Toolchain, cargo};

/// The emulator of an architecture, and the package that brings it.
pub fn emulator(arch: Arch) -> (&'static str, &'static str) {
    match arch {
        Arch::Aarch64 => ("qemu-system-aarch64", "qemu-system-arm"),
        Arch::X86_64 => ("qemu-system-x86_64", "qemu-system-x86"),
    }
}

/// `cargo xtask setup`: everything that the other commands would install when they need it.
pub fn everything() -> Result<()> {
    component("rustfmt")?;
    component("clippy")?;
    for arch in Arch::ALL {
        Toolchain::ready(arch)?.clippy()?;
    }
    emulators(&Arch::ALL)?;
    cxx_compiler()?;
    println!("everything is there");
    Ok(())
}

/// Sees to the emulators.
pub fn emulators(arches: &[Arch]) -> Result<()> {
    let missing =
        arches.iter().map(|arch| emulator(*arch)).filter(|(program, _)| which::which(program).is_err());
    let missing: Vec<&str> = missing.map(|(_, package)| package).collect();
    if missing.is_empty() { Ok(()) } else { packages("emulators", &missing) }
}

/// Sees to a C++ compiler: libFuzzer is made of C++.
pub fn cxx_compiler() -> Result<()> {
    if which::which("c++").is_ok() { Ok(()) } else { packages("a C++ compiler", &["g++"]) }
}

/// Sees to a component of the active toolchain: `rustfmt` or `clippy`.
pub fn component(name: &str) -> Result<()> {
    if component_works(name)? {
        return Ok(());
    }
    if let Ok(rustup) = which::which("rustup") {
        println!("installing {name}: rustup component add {name}");
        process::output(Command::new(rustup).args(["component", "add", name]))?;
    }
    if component_works(name)? {
        return Ok(());
    }
    bail!("{name} is missing from the active Rust toolchain: install it with `rustup component add {name}`")
}

fn component_works(name: &str) -> Result<bool> {
    let subcommand = if name == "rustfmt" { "fmt" } else { name };
    Ok(process::output(Command::new(cargo()).args([subcommand, "--version"]))?.status.success())
}

/// Installs Debian packages, on a system that has them.
pub fn packages(what: &str, names: &[&str]) -> Result<()> {
    let list = names.join(" ");
    if which::which("apt-get").is_err() {
        bail!(
            "{what} missing: on Debian or Ubuntu the packages are `{list}`; please install their like, then try again"
        );
    }
    println!("installing {what}: apt-get install {list}");
    let mut install = as_root()?;
    install.args(["apt-get", "install", "--yes", "--no-install-recommends"]).args(names);
    if process::output(install.env("DEBIAN_FRONTEND", "noninteractive"))?.status.success() {
        return Ok(());
    }
    // A fresh machine may have no package lists yet, or old ones.
    let mut update = as_root()?;
    process::step("updating the package lists: apt-get update", update.args(["apt-get", "update"]))?;
    process::step(&format!("installing {list}"), &mut install)
}

/// Starts a command that runs as root: directly, or by sudo.
pub fn as_root() -> Result<Command> {
    if rustix::process::geteuid().is_root() {
        return Ok(Command::new("/usr/bin/env"));
    }
    if which::which("sudo").is_err() {
        bail!("neither root nor sudo: cannot install packages");
    }
    // sudo may ask for a password on the terminal; it does so itself, once.
    let mut command = Command::new("sudo");
    command.args(["--", "/usr/bin/env"]);
    Ok(command)
}
