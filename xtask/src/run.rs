//! `cargo xtask run`: one machine, as a person asked for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use machine_tests::verdict::{self, Verdict};

use crate::boot::{Kind, Machine, Module};
use crate::cli::{Arch, Mode, RunOptions};
use crate::debian::{self, Debian, Task};
use crate::image::{self, Artefacts};
use crate::qemu::{self, Ending, Keyboard, Outcome, Session};
use crate::setup;
use crate::terminal;
use crate::workspace;

/// Without a terminal, nobody waits longer than this (in seconds).
const TIME_LIMIT: u64 = 120;
/// The same for kernels that take longer to start than ours.
const LONG_TIME_LIMIT: u64 = 600;
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
    let interactive = terminal::interactive();
    let first = first_domain(options, &artefacts, interactive)?;
    let machine = machine(options, &artefacts, &first);
    if interactive {
        println!(
            "{}; CTRL-a three times switches to the hypervisor's prompt and back.\n",
            end_keys(&options.guest).1
        );
    }
    let outcome = qemu::run(&mut machine.command()?, session(options, interactive)?)?;
    println!();
    judge(options, interactive, first.verdict, &outcome)
}

/// The keys that end the machine, and how a person is told. A guest with a shell of its own has a use for Ctrl-C; the key that stays is the
/// one by which other hypervisors' consoles are left.
fn end_keys(guest: &str) -> (&'static [u8], &'static str) {
    match guest {
        "builtin" => (b"\x03\x1d", "Ctrl-C ends the machine"),
        _ => (b"\x1d", "Ctrl-] ends the machine (Ctrl-C is the guest's)"),
    }
}

/// One clear line for each thing that is described but not there yet.
fn refuse_what_comes_later(options: &RunOptions) -> Result<()> {
    match options.mode {
        Mode::Direct => {}
        Mode::Shadow => bail!("--mode shadow is not there yet: today every domain runs in direct mode"),
        Mode::Stage2 => bail!("--mode stage-2 is not there yet: today every domain runs in direct mode"),
    }
    ensure!(
        options.guest != "debian" || options.arch == Arch::X86_64,
        "--guest debian is there for x86_64 only: add --arch x86_64"
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
    ensure!(
        options.dom0_mem.is_none_or(|memory| memory < options.mem),
        "--dom0-mem: {} MiB do not fit into a machine of {} MiB",
        options.dom0_mem.unwrap_or_default(),
        options.mem
    );
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

/// The file that `--guest` names, if it names one.
fn kernel_file(options: &RunOptions) -> Option<PathBuf> {
    (!["builtin", "debian"].contains(&options.guest.as_str())).then(|| PathBuf::from(&options.guest))
}

/// Memory of the first domain, in MiB.
fn first_memory(options: &RunOptions) -> u64 {
    let usual = if options.guest == "builtin" { 256 } else { 512 };
    options.dom0_mem.unwrap_or(usual.min(options.mem.div_ceil(2)))
}

/// What the first domain is made of, and what it is expected to say.
struct First {
    modules: Vec<Module>,
    verdict: Option<Wanted>,
}

/// A verdict without which the run is a failure, if nobody sits at the terminal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    /// The tour's.
    Tour,
    /// That of Linux on itself.
    Linux,
}

fn first_domain(options: &RunOptions, artefacts: &Artefacts, interactive: bool) -> Result<First> {
    let words = options.append.clone();
    let (kernel, ramdisk, words, verdict) = match (options.guest.as_str(), kernel_file(options)) {
        ("debian", _) => {
            let Debian { kernel, ramdisk, name } = debian::ready()?;
            println!("guest: Debian's {name}");
            let (words, verdict) = debian_words(options, interactive);
            (kernel, Some(ramdisk), words, verdict)
        }
        (_, Some(file)) => (absolute(&file)?, None, words.unwrap_or_default(), None),
        (_, None) => {
            let tour = if interactive { "tour then=shell" } else { "tour then=poweroff" };
            let words = words.unwrap_or_else(|| tour.into());
            let verdict = words.contains("tour").then_some(Wanted::Tour);
            (artefacts.guest.clone(), None, words, verdict)
        }
    };
    let ramdisk = options.initrd.as_deref().map(absolute).transpose()?.or(ramdisk);
    let ramdisk = ramdisk.map(|file| Module { file, words: String::new(), kind: Kind::Ramdisk });
    let modules = [Module::kernel(kernel, words)].into_iter().chain(ramdisk).collect();
    Ok(First { modules, verdict })
}

/// The command line of Debian's kernel: its console, what the ramdisk is to do, and the person's words, which count more.
fn debian_words(options: &RunOptions, interactive: bool) -> (String, Option<Wanted>) {
    let own = options.append.as_deref().unwrap_or_default();
    // Who says what is to be done, or brings a ramdisk of another kind, is not to be told otherwise.
    let decided = ["test=", "then="].iter().any(|word| own.split(' ').any(|own| own.starts_with(word)));
    let (task, verdict) = match (decided || options.initrd.is_some(), interactive) {
        (true, _) => (String::new(), None),
        (false, true) => (Task::Shell.words(), None),
        (false, false) => {
            let check = Task::SelfCheck { memory: first_memory(options), vcpus: options.vcpus };
            (check.words(), Some(Wanted::Linux))
        }
    };
    let words = [debian::CONSOLE, &task, own];
    (words.into_iter().filter(|words| !words.is_empty()).collect::<Vec<_>>().join(" "), verdict)
}

fn machine(options: &RunOptions, artefacts: &Artefacts, first: &First) -> Machine {
    let mut modules = first.modules.clone();
    if options.guest == "builtin" {
        modules.push(Module::kernel(&artefacts.guest, SECOND_DOMAIN));
    }
    Machine {
        arch: options.arch,
        memory: options.mem,
        gic: options.gic.unwrap_or(3),
        cpu: None,
        bare: false,
        icount: options.icount,
        hypervisor: artefacts.hypervisor.clone(),
        words: hypervisor_words(options),
        modules,
    }
}

fn hypervisor_words(options: &RunOptions) -> String {
    let console = options.arch.console_words();
    let vcpus = if options.vcpus == 1 { String::new() } else { format!("dom0_max_vcpus={} ", options.vcpus) };
    let more = options.hyp_append.as_deref().unwrap_or_default();
    format!("{console}dom0_mem={}M {vcpus}{more}", first_memory(options)).trim_end().to_owned()
}

fn absolute(file: &Path) -> Result<PathBuf> {
    file.canonicalize().with_context(|| format!("cannot open {}", file.display()))
}

fn session(options: &RunOptions, interactive: bool) -> Result<Session> {
    let usual = if options.guest == "builtin" { TIME_LIMIT } else { LONG_TIME_LIMIT };
    let limit = options.timeout.or((!interactive).then_some(usual));
    let log = match &options.log {
        Some(file) => file.clone(),
        None => qemu::log_file(&workspace::logs()?, &format!("run-{}", options.arch)),
    };
    Ok(Session {
        limit: limit.map(Duration::from_secs),
        log,
        echo: true,
        keyboard: if interactive { Keyboard::Person(end_keys(&options.guest).0) } else { Keyboard::Closed },
        until: Vec::new(),
    })
}

/// The exit status: the verdict where there is one, otherwise whether the machine came to an orderly end.
fn judge(options: &RunOptions, interactive: bool, wanted: Option<Wanted>, outcome: &Outcome) -> Result<()> {
    let log = workspace::shown(&outcome.log);
    let end = || {
        let lines = outcome.last_lines(LAST_LINES);
        format!("{}\nthe machine's last lines (log: {log}):\n{lines}", how(outcome))
    };
    if let Some(line) = verdict::stopped(&outcome.text) {
        bail!("the hypervisor stopped: {line} (log: {log})");
    }
    let (what, verdict) = match options.guest.as_str() {
        "debian" => ("guest's check", verdict::of_linux(&outcome.text)),
        _ => ("tour", verdict::of_the_tour(&outcome.text)),
    };
    match verdict {
        Some(Verdict::Fail(why)) => bail!("the {what} failed: {why} (log: {log})"),
        Some(Verdict::Pass) if interactive => return Ok(()),
        Some(Verdict::Pass) => {}
        None if interactive && outcome.ending != Ending::TimedOut => return Ok(()),
        None => ensure!(wanted.is_none(), "no verdict: {}", end()),
    }
    match outcome.ending {
        Ending::Off(status) if status.success() => Ok(()),
        _ => bail!("{}", end()),
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
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn options(line: &str) -> RunOptions {
        let words = ["xtask", "run", "--arch", "x86_64"].into_iter().chain(line.split_whitespace());
        match Cli::parse_from(words).command {
            Command::Run(options) => options,
            _ => panic!("another command"),
        }
    }

    #[test]
    fn debian_checks_itself_where_nobody_sits_at_the_terminal() {
        let (words, verdict) = debian_words(&options("--guest debian --vcpus 2"), false);
        assert_eq!(words, "console=hvc0 test=self expect_memory=512 expect_vcpus=2 then=poweroff");
        assert_eq!(verdict, Some(Wanted::Linux));
        assert_eq!(debian_words(&options("--guest debian"), true), ("console=hvc0 then=shell".into(), None));
    }

    #[test]
    fn a_persons_words_come_after_debians_own_and_count_more() {
        let quiet = debian_words(&options("--guest debian --append quiet --dom0-mem 300"), false);
        assert_eq!(quiet.0, "console=hvc0 test=self expect_memory=300 expect_vcpus=1 then=poweroff quiet");
        let own = debian_words(&options("--guest debian --append test=bench"), false);
        assert_eq!(own, ("console=hvc0 test=bench".into(), None));
        assert_eq!(debian_words(&options("--guest debian --initrd file"), false).0, "console=hvc0");
    }

    #[test]
    fn the_first_domains_memory_has_room_in_the_machine() {
        assert_eq!(first_memory(&options("")), 256);
        assert_eq!(first_memory(&options("--guest debian")), 512);
        assert_eq!(first_memory(&options("--mem 300")), 150);
        assert_eq!(first_memory(&options("--guest debian --dom0-mem 1G --mem 2G")), 1024);
        assert!(check(&options("--dom0-mem 1G")).is_err());
    }

    #[test]
    fn a_guest_with_a_shell_gets_ctrl_c() {
        assert!(end_keys("builtin").0.contains(&3));
        for guest in ["debian", "vmlinuz"] {
            assert_eq!(end_keys(guest).0, [0x1d], "Ctrl-] alone");
        }
    }

    #[test]
    fn a_log_needs_a_folder_and_is_none() {
        assert!(check_log(Path::new("serial.log")).is_ok());
        assert!(check_log(&workspace::root().join("serial.log")).is_ok());
        assert!(check_log(workspace::root()).unwrap_err().to_string().contains("is a folder"));
        assert!(check_log(&workspace::root().join("no/such/serial.log")).is_err());
    }
}
