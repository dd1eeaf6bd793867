//! `cargo xtask run`: one machine, as a person asked for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use machine_tests::verdict::{self, Verdict};

use crate::boot::{Kind, Machine, Module};
use crate::cli::{Arch, Mode, RunOptions};
use crate::image::{self, Artefacts};
use crate::qemu::{self, Ending, Keyboard, Outcome, Session};
use crate::setup;
use crate::terminal;
use crate::workspace;

/// Without a terminal, nobody waits longer than this (in seconds).
const TIME_LIMIT: u64 = 120;
/// What the second domain is told besides the tour.
const SECOND_DOMAIN: &str = "domain=guest memory=64M tour";
/// How many of the machine's last lines explain a failure.
const LAST_LINES: usize = 15;

/// `cargo xtask run`.
pub fn run(options: &RunOptions) -> Result<()> {
    refuse_what_comes_later(options)?;
    check(options)?;
    setup::emulators(&[options.arch])?;
    let artefacts = image::artefacts(options.arch, options.profile)?;
    let machine = machine(options, &artefacts)?;
    let interactive = terminal::interactive();
    if interactive {
        println!(
            "Ctrl-C ends the machine; CTRL-a three times switches to the hypervisor's prompt and back.\n"
        );
    }
    let outcome = qemu::run(&mut machine.command()?, session(options, interactive)?)?;
    println!();
    judge(options, interactive, &outcome)
}

/// One clear line for each thing that is described but not there yet.
fn refuse_what_comes_later(options: &RunOptions) -> Result<()> {
    match options.mode {
        Mode::Direct => {}
        Mode::Shadow => bail!("--mode shadow is not there yet: today every domain runs in direct mode"),
        Mode::Stage2 => bail!("--mode stage-2 is not there yet: today every domain runs in direct mode"),
    }
    ensure!(
        options.guest != "debian",
        "--guest debian is not there yet: use the builtin guests, or a kernel FILE"
    );
    ensure!(options.cpus == 1, "--cpus {}: the hypervisor uses one CPU today", options.cpus);
    ensure!(
        options.domains.is_none(),
        "--domains is not there yet: a second domain starts beside the builtin guest"
    );
    Ok(())
}

/// Mistakes that clap cannot see.
fn check(options: &RunOptions) -> Result<()> {
    ensure!(options.arch == Arch::Aarch64 || options.gic.is_none(), "--gic is for aarch64 only");
    for file in kernel_file(options).iter().chain(&options.initrd) {
        ensure!(!file.is_dir(), "{} is a folder, not a file", file.display());
        ensure!(file.is_file(), "there is no file {}", file.display());
    }
    options.log.as_deref().map_or(Ok(()), check_log)
}

/// Whether a log can be written there, as far as that can be told beforehand.
fn check_log(log: &Path) -> Result<()> {
    ensure!(!log.is_dir(), "--log {}: this is a folder, not a file", log.display());
    let folder = log.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(folder.is_dir(), "--log {}: there is no folder {}", log.display(), folder.display());
    Ok(())
}

/// The file that `--guest` names, unless it names the builtin guest.
fn kernel_file(options: &RunOptions) -> Option<PathBuf> {
    (options.guest != "builtin").then(|| PathBuf::from(&options.guest))
}

fn machine(options: &RunOptions, artefacts: &Artefacts) -> Result<Machine> {
    Ok(Machine {
        arch: options.arch,
        memory: options.mem,
        gic: options.gic.unwrap_or(3),
        cpu: None,
        bare: false,
        icount: options.icount,
        hypervisor: artefacts.hypervisor.clone(),
        words: hypervisor_words(options),
        modules: modules(options, artefacts)?,
    })
}

fn hypervisor_words(options: &RunOptions) -> String {
    let console = options.arch.console_words();
    let vcpus = if options.vcpus == 1 { String::new() } else { format!("dom0_max_vcpus={} ", options.vcpus) };
    let more = options.hyp_append.as_deref().unwrap_or_default();
    format!("{console}dom0_mem={}M {vcpus}{more}", options.dom0_mem).trim_end().to_owned()
}

/// The control domain's kernel, its ramdisk if there is one, and beside the builtin guest a second domain.
fn modules(options: &RunOptions, artefacts: &Artefacts) -> Result<Vec<Module>> {
    let file = kernel_file(options);
    let builtin = file.is_none();
    let kernel = file.map_or_else(|| Ok(artefacts.guest.clone()), |file| absolute(&file))?;
    let mut modules = vec![Module::kernel(kernel, control_words(options, builtin))];
    if let Some(ramdisk) = &options.initrd {
        modules.push(Module { file: absolute(ramdisk)?, words: String::new(), kind: Kind::Ramdisk });
    }
    if builtin {
        modules.push(Module::kernel(&artefacts.guest, SECOND_DOMAIN));
    }
    Ok(modules)
}

fn absolute(file: &Path) -> Result<PathBuf> {
    file.canonicalize().with_context(|| format!("cannot open {}", file.display()))
}

/// The control domain's command line: the person's, or the tour and what comes after it.
fn control_words(options: &RunOptions, builtin: bool) -> String {
    match &options.append {
        Some(words) => words.clone(),
        None if builtin && terminal::interactive() => "tour then=shell".into(),
        None if builtin => "tour then=poweroff".into(),
        None => String::new(),
    }
}

fn session(options: &RunOptions, interactive: bool) -> Result<Session> {
    let limit = options.timeout.or((!interactive).then_some(TIME_LIMIT));
    let log = match &options.log {
        Some(file) => file.clone(),
        None => qemu::log_file(&workspace::logs()?, &format!("run-{}", options.arch)),
    };
    Ok(Session {
        limit: limit.map(Duration::from_secs),
        log,
        echo: true,
        keyboard: if interactive { Keyboard::Person } else { Keyboard::Closed },
        until: verdict::STOPPED.map(str::to_owned).to_vec(),
    })
}

/// The exit status: the tour's verdict where there was a tour, otherwise whether the machine came to an orderly end.
fn judge(options: &RunOptions, interactive: bool, outcome: &Outcome) -> Result<()> {
    let log = workspace::shown(&outcome.log);
    if let Some(line) = verdict::stopped(&outcome.text) {
        bail!("the hypervisor stopped: {line} (log: {log})");
    }
    match verdict::of_the_tour(&outcome.text) {
        Some(Verdict::Fail(why)) => bail!("the tour failed: {why} (log: {log})"),
        Some(Verdict::Pass) if interactive => return Ok(()),
        Some(Verdict::Pass) => {}
        None if interactive && outcome.ending != Ending::TimedOut => return Ok(()),
        None if control_words(options, kernel_file(options).is_none()).contains("tour") => {
            bail!(
                "no verdict: {}\nthe machine's last lines (log: {log}):\n{}",
                how(outcome),
                outcome.last_lines(LAST_LINES)
            )
        }
        None => {}
    }
    match outcome.ending {
        Ending::Off(status) if status.success() => Ok(()),
        _ => bail!(
            "{}\nthe machine's last lines (log: {log}):\n{}",
            how(outcome),
            outcome.last_lines(LAST_LINES)
        ),
    }
}

fn how(outcome: &Outcome) -> String {
    match outcome.ending {
        Ending::Off(status) if status.success() => "the machine was switched off".into(),
        Ending::Off(status) => format!("the emulator ended with {status}"),
        Ending::Awaited => "the hypervisor stopped".into(),
        Ending::TimedOut => "the machine did not end in time".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_needs_a_folder_and_is_none() {
        assert!(check_log(Path::new("serial.log")).is_ok());
        assert!(check_log(&workspace::root().join("serial.log")).is_ok());
        assert!(check_log(workspace::root()).unwrap_err().to_string().contains("is a folder"));
        assert!(check_log(&workspace::root().join("no/such/serial.log")).is_err());
    }
}
