//! Compiling the bare-metal programs.

use std::path::PathBuf;

use anyhow::Result;

use crate::cli::{Arch, Profile};
use crate::process;
use crate::toolchain::{self, Toolchain};
use crate::workspace;

/// The two programs of an architecture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    Hypervisor,
    Guest,
    /// The hypervisor with the oracle, for tests (aarch64).
    Oracle,
}

/// A program's package, which is also its binary's name.
pub fn package(program: Program, arch: Arch) -> &'static str {
    match (program, arch) {
        (Program::Hypervisor | Program::Oracle, Arch::Aarch64) => "hyp-el2",
        (Program::Hypervisor | Program::Oracle, Arch::X86_64) => "hyp-x86",
        (Program::Guest, Arch::Aarch64) => "guest-el1",
        (Program::Guest, Arch::X86_64) => "guest-x86",
    }
}

/// Compiles one program and returns where its ELF file is.
pub fn build(toolchain: &Toolchain, program: Program, arch: Arch, profile: Profile) -> Result<PathBuf> {
    let package = package(program, arch);
    let mut command = toolchain.build();
    command.args(["--package", package, "--bin", package]);
    match profile {
        Profile::Release => drop(command.arg("--release")),
        // The checks of arithmetic are what this profile is for; without any optimisation a recount of 8 GiB in an
        // emulated machine would take minutes. Labels in assembly are a unit's own, so that a crate has to be one.
        Profile::Dev => drop(command.args([
            "--config",
            "profile.dev.opt-level=2",
            "--config",
            "profile.dev.codegen-units=1",
        ])),
    }
    if program == Program::Oracle {
        command.args(["--features", "oracle"]);
    }
    if program == Program::Guest {
        // The whole file is loaded into the machine as a module: leave out what only a debugger reads.
        command.args([
            "--config",
            "profile.release.strip=\"debuginfo\"",
            "--config",
            "profile.dev.strip=\"debuginfo\"",
        ]);
    }
    process::step(&format!("building {package} for {}", toolchain::target(arch)), &mut command)?;
    Ok(workspace::bare_target().join(toolchain::target(arch)).join(folder(profile)).join(package))
}

/// Cargo's folder for a profile.
fn folder(profile: Profile) -> &'static str {
    match profile {
        Profile::Release => "release",
        Profile::Dev => "debug",
    }
}
