//! `cargo xtask run`: one machine, as a person asked for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use machine_tests::verdict::{self, Verdict};

use crate::boot::{Kind, Machine, Module};
use crate::cli::{Arch, Mode, RunOptions};
use crate::debian::{self, Debian, Task};
use crate::image::{self, Artefacts};
use crate::kernel;
use crate::qemu::{self, Ending, Keyboard, Outcome, Session};
use crate::setup;
use crate::terminal;
use crate::workspace;

/// Without a terminal, nobody waits longer than this (in seconds).
const TIME_LIMIT: u64 = 120;
/// The same for kernels that take longer to start than ours.
const LONG_TIME_LIMIT: u64 = 600;
/// A machine's least memory, in MiB: a hypervisor that boots in less may lie where there is no RAM, and never say a word.
const LEAST_MEMORY: u64 = 16;
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
    let (log, _lock) = log(options)?;
    let outcome = qemu::run(&mut machine.command()?, session(options, interactive, log))?;
    println!();
    judge(options, interactive, &first.wanted, &outcome)
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
    ensure!(options.mode != Some(Mode::Shadow), "--mode shadow is not there yet");
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
    check_mode(options)?;
    ensure!(
        options.mem >= LEAST_MEMORY,
        "--mem {}: below {LEAST_MEMORY} MiB the hypervisor and what the boot loader brings have no room, and nobody could say so",
        options.mem
    );
    ensure!(
        options.dom0_mem.is_none_or(|memory| memory < options.mem),
        "--dom0-mem: {} MiB do not fit into a machine of {} MiB",
        options.dom0_mem.unwrap_or_default(),
        options.mem
    );
    for file in kernel_file(options).iter().chain(&options.initrd) {
        workspace::is_file(file)?;
    }
    options.log.as_deref().map_or(Ok(()), check_log)
}

/// Whether the kernel can be run in the mode that was asked for, as far as that is known of the kernels that need no file.
fn check_mode(options: &RunOptions) -> Result<()> {
    match (options.mode, options.guest.as_str()) {
        (Some(Mode::Stage2), _) if options.arch != Arch::Aarch64 => {
            bail!("--mode stage-2 is for aarch64 only")
        }
        (Some(Mode::Stage2), "builtin") => {
            bail!("--mode stage-2: the builtin guest is paravirtual; add --guest debian, or a file")
        }
        (Some(Mode::Direct), "debian") if options.arch == Arch::Aarch64 => {
            bail!("--mode direct: Debian's kernel for aarch64 is not paravirtual, it needs --mode stage-2")
        }
        _ => Ok(()),
    }
}

/// Whether the first domain has a machine of its own, with a UART that reaches the serial line as it is.
fn has_own_machine(options: &RunOptions) -> bool {
    options.arch == Arch::Aarch64 && options.guest == "debian"
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

/// What the first domain is made of, and the verdicts without which the run is a failure, if nobody sits at the terminal.
struct First {
    modules: Vec<Module>,
    wanted: Vec<Topic>,
}

/// What the first domain gives a verdict on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Topic {
    Tour,
    /// The builtin guest's tests.
    Tests,
    Soak,
    /// Linux, on itself.
    Linux,
    /// The same, where it has the serial line for itself.
    LinuxAlone,
}

impl Topic {
    /// What these words of the builtin guest ask for.
    fn asked_for(words: &str) -> Vec<Topic> {
        let asks = |topic: &Topic| {
            words.split_ascii_whitespace().any(|word| match topic {
                Topic::Tour => word == "tour",
                Topic::Tests => word.starts_with("test="),
                Topic::Soak => word == "soak=control",
                Topic::Linux | Topic::LinuxAlone => false,
            })
        };
        [Topic::Tour, Topic::Tests, Topic::Soak].into_iter().filter(asks).collect()
    }

    fn name(self) -> &'static str {
        match self {
            Topic::Tour => "tour",
            Topic::Tests => "guest's test",
            Topic::Soak => "soak",
            Topic::Linux | Topic::LinuxAlone => "guest's check",
        }
    }

    fn verdict(self, text: &str) -> Option<Verdict> {
        match self {
            Topic::Tour => verdict::of_the_tour(text),
            Topic::Tests => verdict::of_the_tests(text),
            Topic::Soak => verdict::of_the_soak(text),
            Topic::Linux => verdict::of_linux(text),
            Topic::LinuxAlone => verdict::of_linux_alone(text),
        }
    }
}

fn first_domain(options: &RunOptions, artefacts: &Artefacts, interactive: bool) -> Result<First> {
    let words = options.append.clone();
    let (kernel, ramdisk, words, wanted) = match (options.guest.as_str(), kernel_file(options)) {
        ("debian", _) => {
            let Debian { kernel, ramdisk, name } = debian::ready(options.arch)?;
            println!("guest: Debian's {name}");
            let (words, wanted) = debian_words(options, interactive);
            (kernel, Some(ramdisk), words, wanted.into_iter().collect())
        }
        (_, Some(file)) => (kernel::unpacked(&file)?, None, words.unwrap_or_default(), Vec::new()),
        (_, None) => {
            let tour = if interactive { "tour then=shell" } else { "tour then=poweroff" };
            let words = words.unwrap_or_else(|| tour.into());
            let wanted = Topic::asked_for(&words);
            (artefacts.guest.clone(), None, words, wanted)
        }
    };
    let ramdisk = options.initrd.as_deref().map(absolute).transpose()?.or(ramdisk);
    let ramdisk = ramdisk.map(|file| Module { file, words: String::new(), kind: Kind::Ramdisk });
    let modules = [Module::kernel(kernel, words)].into_iter().chain(ramdisk).collect();
    Ok(First { modules, wanted })
}

/// The command line of Debian's kernel: its console, what the ramdisk is to do, and the person's words, which count more.
fn debian_words(options: &RunOptions, interactive: bool) -> (String, Option<Topic>) {
    let own = options.append.as_deref().unwrap_or_default();
    let (console, topic) = if has_own_machine(options) {
        (debian::UART, Topic::LinuxAlone)
    } else {
        (debian::CONSOLE, Topic::Linux)
    };
    // Who says what is to be done, or brings a ramdisk of another kind, is not to be told otherwise.
    let decided = ["test=", "then="].iter().any(|word| own.split(' ').any(|own| own.starts_with(word)));
    // Of its tasks, these two end with a verdict.
    let checks = ["test=self", "test=workloads"].iter().any(|task| own.split(' ').any(|own| own == *task));
    let (task, verdict) = match (decided || options.initrd.is_some(), interactive) {
        (true, _) => (String::new(), (checks && options.initrd.is_none()).then_some(topic)),
        (false, true) => (Task::Shell.words(), None),
        (false, false) => {
            let check = Task::SelfCheck { memory: first_memory(options), vcpus: options.vcpus };
            (check.words(), Some(topic))
        }
    };
    let words = [console, &task, own];
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
        cpus: 1,
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
    let mode = options.mode.filter(|_| options.arch == Arch::Aarch64 && options.guest != "builtin");
    let mode = mode.map(|mode| format!("mode={} ", mode.word())).unwrap_or_default();
    let more = options.hyp_append.as_deref().unwrap_or_default();
    format!("{console}dom0_mem={}M {vcpus}{mode}{more}", first_memory(options)).trim_end().to_owned()
}

fn absolute(file: &Path) -> Result<PathBuf> {
    file.canonicalize().with_context(|| format!("cannot open {}", file.display()))
}

/// Where the serial output goes, and what keeps other runs from writing there: they take a file of their own.
fn log(options: &RunOptions) -> Result<(PathBuf, Option<fs::File>)> {
    match &options.log {
        Some(file) => Ok((file.clone(), None)),
        None => usual_log(&workspace::logs()?, &format!("run-{}", options.arch)),
    }
}

fn usual_log(folder: &Path, name: &str) -> Result<(PathBuf, Option<fs::File>)> {
    let lock = workspace::try_lock(&folder.join(format!("{name}.lock")))?;
    let own = if lock.is_some() { name.to_owned() } else { format!("{name}-{}", std::process::id()) };
    Ok((qemu::log_file(folder, &own), lock))
}

fn session(options: &RunOptions, interactive: bool, log: PathBuf) -> Session {
    let usual = if options.guest == "builtin" { TIME_LIMIT } else { LONG_TIME_LIMIT };
    let limit = options.timeout.or((!interactive).then_some(usual));
    Session {
        limit: limit.map(Duration::from_secs),
        log,
        echo: true,
        keyboard: if interactive { Keyboard::Person(end_keys(&options.guest).0) } else { Keyboard::Closed },
        until: Vec::new(),
    }
}

/// The exit status: the verdicts where there are any, otherwise whether the machine came to an orderly end.
fn judge(options: &RunOptions, interactive: bool, wanted: &[Topic], outcome: &Outcome) -> Result<()> {
    let log = workspace::shown(&outcome.log);
    let end = || {
        let lines = outcome.last_lines(LAST_LINES);
        format!("{}\nthe machine's last lines (log: {log}):\n{lines}", how(outcome))
    };
    if let Some(line) = verdict::stopped(&outcome.text) {
        bail!("the hypervisor stopped: {line} (log: {log})");
    }
    // A verdict counts even where nobody asked for it: a person may have, at the guest's prompt.
    let usual = match options.guest.as_str() {
        "debian" if has_own_machine(options) => Topic::LinuxAlone,
        "debian" => Topic::Linux,
        _ => Topic::Tour,
    };
    let left = interactive && outcome.ending != Ending::TimedOut;
    let mut passed = false;
    for topic in wanted.iter().copied().chain((!wanted.contains(&usual)).then_some(usual)) {
        match topic.verdict(&outcome.text) {
            Some(Verdict::Fail(why)) => bail!("the {} failed: {why} (log: {log})", topic.name()),
            Some(Verdict::Pass) => passed = true,
            None => {
                ensure!(left || !wanted.contains(&topic), "no verdict of the {}: {}", topic.name(), end())
            }
        }
    }
    match outcome.ending {
        _ if left || (interactive && passed) => Ok(()),
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
        let arch = if line.contains("--arch") { [].as_slice() } else { &["--arch", "x86_64"] };
        let words = ["xtask", "run"].into_iter().chain(arch.iter().copied()).chain(line.split_whitespace());
        match Cli::parse_from(words).command {
            Command::Run(options) => options,
            _ => panic!("another command"),
        }
    }

    #[test]
    fn debian_checks_itself_where_nobody_sits_at_the_terminal() {
        let (words, verdict) = debian_words(&options("--guest debian --vcpus 2"), false);
        assert_eq!(words, "console=hvc0 test=self expect_memory=512 expect_vcpus=2 then=poweroff");
        assert_eq!(verdict, Some(Topic::Linux));
        assert_eq!(debian_words(&options("--guest debian"), true), ("console=hvc0 then=shell".into(), None));
    }

    #[test]
    fn a_kernel_with_a_machine_of_its_own_has_its_uart_there() {
        let own = options("--arch aarch64 --guest debian");
        let (words, verdict) = debian_words(&own, false);
        assert!(words.starts_with("console=ttyAMA0 earlycon=pl011,0x9000000 test=self "), "{words}");
        assert_eq!(verdict, Some(Topic::LinuxAlone));
        assert_eq!(hypervisor_words(&own), "dom0_mem=512M");
        let told = options("--arch aarch64 --guest file --mode stage-2 --vcpus 4");
        assert_eq!(hypervisor_words(&told), "dom0_mem=512M dom0_max_vcpus=4 mode=stage-2");
    }

    #[test]
    fn a_mode_that_the_kernel_is_not_made_for_is_refused() {
        for line in
            ["--mode stage-2", "--arch aarch64 --mode stage-2", "--arch aarch64 --guest debian --mode direct"]
        {
            assert!(check(&options(line)).is_err(), "{line} was taken");
        }
        for line in
            ["--mode direct", "--arch aarch64 --guest debian", "--arch aarch64 --guest debian --mode stage-2"]
        {
            assert!(check(&options(line)).is_ok(), "{line} was refused");
        }
    }

    #[test]
    fn a_persons_words_come_after_debians_own_and_count_more() {
        let quiet = debian_words(&options("--guest debian --append quiet --dom0-mem 300"), false);
        assert_eq!(quiet.0, "console=hvc0 test=self expect_memory=300 expect_vcpus=1 then=poweroff quiet");
        let own = debian_words(&options("--guest debian --append test=bench"), false);
        assert_eq!(own, ("console=hvc0 test=bench".into(), None));
        let asked = debian_words(&options("--guest debian --append test=workloads"), false);
        assert_eq!(asked, ("console=hvc0 test=workloads".into(), Some(Topic::Linux)));
        assert_eq!(debian_words(&options("--guest debian --initrd file"), false).0, "console=hvc0");
    }

    /// How a machine that said this and was switched off is judged.
    fn judged(words: &str, text: &str) -> Result<()> {
        let ending = Ending::Off(std::process::ExitStatus::default());
        let outcome = Outcome { text: text.into(), ending, log: "run.log".into() };
        judge(&options(""), false, &Topic::asked_for(words), &outcome)
    }

    #[test]
    fn a_run_is_as_good_as_the_verdicts_that_its_words_ask_for() {
        let (passed, failed) = ("(d0) TEST a: PASS\n", "(d0) TEST nosuch: FAIL there is no such test\n");
        assert!(judged("test=a then=poweroff", passed).is_ok());
        assert!(judged("test=a+nosuch then=poweroff", &format!("{passed}{failed}")).is_err());
        assert!(judged("test=a then=poweroff", "(d1) TEST a: PASS\n").is_err(), "no verdict");
        assert!(judged("tour test=a", "(d0) TOUR: PASS\n").is_err(), "one verdict of two");
        assert!(judged("tour test=a", "(d0) TOUR: PASS\n(d0) TEST a: PASS\n").is_ok());
        assert!(judged("soak=control", "(d0) SOAK: FAIL\n").is_err());
        assert!(judged("soak=control", "").is_err());
        assert!(judged("soak=control", "(d0) SOAK: PASS\n").is_ok());
        assert!(judged("note=tour", "").is_ok(), "no tour is asked for");
        assert!(judged("then=poweroff", "(d0) TOUR: FAIL 1\n").is_err(), "a person asked for it");
        assert!(judged("tour note=hypervisor panic", "(d0) hypervisor panic\n(d0) TOUR: PASS\n").is_ok());
    }

    #[test]
    fn the_first_domains_memory_has_room_in_the_machine() {
        assert_eq!(first_memory(&options("")), 256);
        assert_eq!(first_memory(&options("--guest debian")), 512);
        assert_eq!(first_memory(&options("--mem 300")), 150);
        assert_eq!(first_memory(&options("--guest debian --dom0-mem 1G --mem 2G")), 1024);
        assert!(check(&options("--dom0-mem 1G")).is_err());
        assert!(check(&options("--mem 15")).is_err() && check(&options("--mem 16")).is_ok());
    }

    #[test]
    fn a_guest_with_a_shell_gets_ctrl_c() {
        assert!(end_keys("builtin").0.contains(&3));
        for guest in ["debian", "vmlinuz"] {
            assert_eq!(end_keys(guest).0, [0x1d], "Ctrl-] alone");
        }
    }

    #[test]
    fn runs_at_the_same_time_have_logs_of_their_own() {
        let folder = workspace::tests::scratch("run-logs");
        let usual = folder.join("run-a.log");
        let first = usual_log(&folder, "run-a").unwrap();
        assert_eq!(first.0, usual);
        assert_ne!(usual_log(&folder, "run-a").unwrap().0, usual);
        drop(first);
        assert_eq!(usual_log(&folder, "run-a").unwrap().0, usual);
    }

    #[test]
    fn a_log_needs_a_folder_and_is_none() {
        assert!(check_log(Path::new("serial.log")).is_ok());
        assert!(check_log(&workspace::root().join("serial.log")).is_ok());
        assert!(check_log(workspace::root()).unwrap_err().to_string().contains("is a folder"));
        assert!(check_log(&workspace::root().join("no/such/serial.log")).is_err());
    }
}
