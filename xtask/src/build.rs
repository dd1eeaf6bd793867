//! Compiling the bare-metal programs, and those for a Linux guest.

use std::path::PathBuf;
use std::process::Command;

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

/// The package of the programs for a Linux guest.
const WORKLOADS: &str = "workloads";

/// The programs for a Linux guest.
pub struct Workloads {
    /// That which has them all, but for
    pub workload: PathBuf,
    /// the small one that it starts.
    pub answer: PathBuf,
}

/// The programs for a Linux guest of this architecture, unless no library for them can be had: then a ramdisk does without.
pub fn workloads(arch: Arch) -> Result<Option<Workloads>> {
    match arch {
        Arch::Aarch64 => Ok(None),
        Arch::X86_64 => pc_workloads().map(Some),
    }
}

/// Compiles the programs for an x86-64 Linux guest into static executables, and returns where they are.
///
/// On an x86-64 computer with glibc that is the host's own target, linked statically: nothing has to be installed. Others need
/// the target's library and a linker for it.
fn pc_workloads() -> Result<Workloads> {
    let target = if cfg!(all(target_arch = "x86_64", target_os = "linux", target_env = "gnu")) {
        "x86_64-unknown-linux-gnu"
    } else {
        "x86_64-unknown-linux-musl"
    };
    toolchain::need_target(target)?;
    let folder = workspace::target().join("static");
    let mut command = Command::new(toolchain::cargo());
    command.current_dir(workspace::root()).args(["build", "--release", "--package", WORKLOADS]);
    command.args(["--target", target, "--target-dir"]).arg(&folder);
    // Programs of their own size at a fixed address: what they cost to start is then the same on every computer.
    command.env("RUSTFLAGS", "-Ctarget-feature=+crt-static -Crelocation-model=static -Cstrip=debuginfo");
    command.env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("CARGO_BUILD_TARGET");
    if !cfg!(target_arch = "x86_64") {
        command.args(["--config", &format!("target.{target}.linker=\"rust-lld\"")]);
    }
    process::step("building the workloads for a Linux guest", &mut command)?;
    let folder = folder.join(target).join(self::folder(Profile::Release));
    Ok(Workloads { workload: folder.join("workload"), answer: folder.join("answer") })
}
