//! `cargo xtask check`: format, lints for the host and for both bare machines, house rules.

use std::process::Command;

use anyhow::Result;

use crate::build::{self, Program};
use crate::cli::Arch;
use crate::house;
use crate::process;
use crate::progress::Step;
use crate::report::{Fate, Report};
use crate::setup;
use crate::toolchain::{self, Toolchain};
use crate::workspace;

/// `cargo xtask check`.
pub fn check() -> Result<()> {
    let report = Report::default();
    self::report(&checks(), &report)?;
    report.close()
}

/// A check's name as a test, and how it is made.
pub type Check = (String, Box<dyn Fn() -> Result<Fate>>);

/// Every check.
pub fn checks() -> Vec<Check> {
    let rules = house::RULES.into_iter().map(|rule| -> Check {
        (format!("style/{}", rule.name), Box::new(move || Ok(rule_fate(&(rule.broken)()?))))
    });
    let tools: [Check; 2] =
        [("style/format".into(), Box::new(format)), ("style/lints-host".into(), Box::new(host_lints))];
    let bare = Arch::ALL
        .into_iter()
        .map(|arch| -> Check { (format!("style/lints-{arch}"), Box::new(move || bare_lints(arch))) });
    rules.chain(tools).chain(bare).collect()
}

/// Makes these checks and enters each as a test.
pub fn report(checks: &[Check], report: &Report) -> Result<()> {
    for (name, check) in checks {
        report.enter(name, &check()?, None);
    }
    Ok(())
}

fn rule_fate(broken: &[String]) -> Fate {
    if broken.is_empty() { Fate::Passed } else { Fate::Failed(indented(broken)) }
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n    {line}")).collect()
}

fn format() -> Result<Fate> {
    setup::component("rustfmt")?;
    fate("format: cargo fmt --check", cargo("fmt").args(["--all", "--", "--check", "--color", "never"]))
}

fn host_lints() -> Result<Fate> {
    setup::component("clippy")?;
    fate(
        "lints for the host: cargo clippy",
        cargo("clippy").args(["--workspace", "--all-targets", "--", "-Dwarnings"]),
    )
}

/// The lints, as the bare machine's compiler sees the code.
fn bare_lints(arch: Arch) -> Result<Fate> {
    let mut command = Toolchain::ready(arch)?.clippy()?;
    for program in [Program::Hypervisor, Program::Guest] {
        command.args(["--package", build::package(program, arch)]);
    }
    fate(&format!("lints for {}: cargo clippy", toolchain::target(arch)), command.args(["--", "-Dwarnings"]))
}

fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(toolchain::cargo());
    command.arg(subcommand).current_dir(workspace::root());
    command
}

/// How many lines of a tool's complaint are shown.
const COMPLAINT: usize = 60;

fn fate(what: &str, command: &mut Command) -> Result<Fate> {
    let step = Step::begin(what);
    let output = process::output(command)?;
    step.done();
    if output.status.success() {
        return Ok(Fate::Passed);
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let told = text.lines().filter(|line| !process::is_progress(line)).map(str::to_owned);
    Ok(Fate::Failed(indented(&told.take(COMPLAINT).collect::<Vec<_>>())))
}
