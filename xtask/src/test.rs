//! `cargo xtask test`: style, host tests, and whole machines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use machine_tests::case::{self, Board, Case, Ended, File, Hypervisor};
use machine_tests::table;

use crate::apart;
use crate::attacks;
use crate::boot::{Kind, Machine, Module};
use crate::check;
use crate::cli::{Arch, Profile, TestOptions};
use crate::debian;
use crate::debugger::Debugger;
use crate::files;
use crate::image::Artefacts;
use crate::iso;
use crate::machines::{self, Job};
use crate::model;
use crate::process;
use crate::progress::Step;
use crate::qemu::{self, Ending, Keyboard, Outcome, Session};
use crate::report::{Fate, Report};
use crate::script::{self, Script};
use crate::soak;
use crate::toolchain;
use crate::workspace;
use crate::xen;

/// How many of a machine's last lines a failure shows.
const LAST_LINES: usize = 8;

/// What a disc's menu calls the kernel of a case.
const SECOND_ENTRY: &str = "the second entry";

/// `cargo xtask test`.
pub fn test(options: &TestOptions) -> Result<()> {
    let only = options.only.as_deref();
    let chosen = |name: &str| only.is_none_or(|only| name.contains(only));
    let arches = Arch::chosen(options.arch);
    let cases: Vec<Case> = arches.iter().flat_map(|arch| table::cases(board(*arch))).collect();
    let cases: Vec<Case> = cases.into_iter().filter(|case| chosen(&case.name)).collect();
    let mut style = check::checks();
    style.retain(|(name, _)| chosen(name));
    let models = model::names().iter().any(|name| chosen(name));
    let targets: Vec<_> = apart::TARGETS.into_iter().filter(|name| chosen(&format!("fuzz/{name}"))).collect();
    let races = races_filter(only);
    let apart = !targets.is_empty() || races.is_some();
    let soaks: Vec<Arch> = arches.into_iter().filter(|arch| chosen(&soak::name(*arch))).collect();
    let named = !cases.is_empty() || !soaks.is_empty() || !style.is_empty() || models || apart;
    let host = host_filter(only, named);
    ensure!(
        named || host.is_none_or(may_be_in_a_name),
        "no test's name contains {:?}",
        only.unwrap_or_default()
    );
    let report = Report::default();
    check::report(&style, &report)?;
    if let Some(filter) = host {
        let tests = host_tests(filter, options.profile, &report)?;
        ensure!(named || tests > 0, "no test's name contains {:?}", only.unwrap_or_default());
    }
    model::test(chosen, options.model_operations, &report)?;
    if let Some(filter) = races {
        apart::races(filter, &report)?;
    }
    if !targets.is_empty() {
        apart::fuzz(targets, options.fuzz_seconds, &report)?;
    }
    let jobs: Vec<Job> =
        soaks.into_iter().map(Job::Soak).chain(cases.into_iter().map(Box::new).map(Job::Machine)).collect();
    if !jobs.is_empty() {
        machines::run(jobs, options, &report)?;
    }
    report.close()
}

/// The board of an architecture.
pub fn board(arch: Arch) -> Board {
    match arch {
        Arch::Aarch64 => Board::Virt,
        Arch::X86_64 => Board::Q35,
    }
}

/// The architecture of a board.
pub fn arch(board: Board) -> Arch {
    match board {
        Board::Virt => Arch::Aarch64,
        Board::Q35 => Arch::X86_64,
    }
}

/// Which of cargo's own tests to run, as a part of their names; `None`: none of them. Since they have to be built before
/// their names are known, a word that names other tests is not looked for among them, unless it says `host`.
fn host_filter(only: Option<&str>, names_others: bool) -> Option<&str> {
    match only {
        None | Some("host") => Some(""),
        Some(only) => only.strip_prefix("host/").or((!names_others).then_some(only)),
    }
}

/// Whether one of cargo's own tests could have this in its name. Names are modules and functions, and files for tests in documentation: what
/// stands in no source and in no file's name is found out here, before anything is built.
fn may_be_in_a_name(filter: &str) -> bool {
    let mut sources = String::new();
    let folders = fs::read_dir(workspace::root()).into_iter().flatten().flatten().map(|entry| entry.path());
    let crates = folders.filter(|folder| folder.join("Cargo.toml").exists());
    crates.for_each(|folder| attacks::gather(&folder, &mut sources));
    filter.split("::").all(|part| part.contains([' ', '/', '.']) || sources.contains(part))
}

/// Which of loom's tests to run, in the same way; they have to be asked for by `loom`.
fn races_filter(only: Option<&str>) -> Option<&str> {
    match only {
        None | Some("loom") => Some(""),
        Some(only) => only.strip_prefix("loom/"),
    }
}

/// Cargo's own tests of every crate whose names contain `filter`. Each of its lines becomes one of ours; their number.
fn host_tests(filter: &str, profile: Profile, report: &Report) -> Result<usize> {
    let mut command = Command::new(toolchain::cargo());
    command.current_dir(workspace::root()).args(["test", "--workspace", "--no-fail-fast"]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    if !filter.is_empty() {
        command.args(["--", filter]);
    }
    let output = Step::around("host tests: cargo test --workspace", |_| process::output(&mut command))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (mut tests, mut failures) = (0, 0);
    for (name, fate) in text.lines().filter_map(host_test) {
        tests += 1;
        failures += usize::from(matches!(fate, Fate::Failed(_)));
        report.enter(&format!("host/{name}"), &fate, None);
    }
    if !output.status.success() {
        println!("{}", relevant(&text, &String::from_utf8_lossy(&output.stderr)));
        if failures == 0 {
            report.enter("host/build", &Fate::Failed("cargo test failed; see above".into()), None);
            tests += 1;
        }
    }
    Ok(tests)
}

/// A line of the test harness: `test NAME ... ok`.
pub fn host_test(line: &str) -> Option<(&str, Fate)> {
    let (name, fate) = line.strip_prefix("test ")?.split_once(" ... ")?;
    match fate.split_once(',').map_or(fate, |(word, _)| word).trim() {
        "ok" => Some((name, Fate::Passed)),
        "FAILED" => Some((name, Fate::Failed("see its output below".into()))),
        "ignored" => Some((name, Fate::Skipped("marked so".into()))),
        _ => None,
    }
}

/// Of what cargo said, the part that explains a failure.
pub fn relevant(stdout: &str, stderr: &str) -> String {
    let failures = stdout.lines().filter(|line| host_test(line).is_none() && !line.starts_with("running "));
    let errors = stderr.lines().skip_while(|line| !line.starts_with("error"));
    failures.chain(errors).filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("\n")
}

/// What the machines are made of.
pub struct Parts {
    pub arch: Arch,
    pub artefacts: Artefacts,
    /// The hypervisor with the oracle, if a case wants it.
    pub oracle: Option<PathBuf>,
}

/// Boots one machine and judges it.
pub fn run(case: &Case, parts: &[Parts], patience: u32) -> Result<Fate> {
    if let Some(why) = obstacle(case) {
        return Ok(Fate::Skipped(why));
    }
    let parts =
        parts.iter().find(|parts| parts.arch == arch(case.board)).context("its images were not built")?;
    let mut command = machine(case, parts)?.command()?;
    let session = session(case, &mut command, patience)?;
    let outcome = qemu::run(&mut command, session)?;
    let verdict = case.judge(&outcome.text, ended(&outcome));
    Ok(Fate::from(verdict.map_err(|why| explained(&why, &outcome))))
}

/// Why a case cannot be tried here.
fn obstacle(case: &Case) -> Option<String> {
    if case.hypervisor == Hypervisor::DebianXen
        && let Some(why) = xen::obstacle(arch(case.board))
    {
        return Some(why);
    }
    if case.hypervisor == Hypervisor::PenumbraOnDisc
        && let Err(error) = iso::tools()
    {
        return Some(format!("what makes discs cannot be had on this system: {error:#}"));
    }
    if let Some(why) = case.modules.iter().find_map(|(file, _)| debian::obstacle(arch(case.board), *file)) {
        return Some(why);
    }
    let available = available_memory()?;
    (available < case.memory)
        .then(|| format!("it takes {} MiB of memory, and {available} are available", case.memory))
}

/// The host's memory that can still be used, in MiB; `None` where it does not say.
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
}

fn machine(case: &Case, parts: &Parts) -> Result<Machine> {
    let artefacts = &parts.artefacts;
    let arch = arch(case.board);
    let modules: Result<Vec<Module>> = case
        .modules
        .iter()
        .map(|(file, words)| {
            let ramdisk = matches!(file, File::Ramdisk | File::LargeRamdisk | File::DebianRamdisk);
            let kind = if ramdisk { Kind::Ramdisk } else { Kind::Kernel };
            Ok(Module { file: content(*file, &artefacts.guest, case)?, words: (*words).into(), kind })
        })
        .collect();
    let modules = modules?;
    Ok(Machine {
        arch,
        memory: case.memory,
        gic: case.gic,
        cpu: case.cpu,
        cpus: case.cpus,
        bare: case.hypervisor == Hypervisor::Nothing,
        icount: case.icount,
        hypervisor: match case.hypervisor {
            Hypervisor::Penumbra => artefacts.hypervisor.clone(),
            Hypervisor::PenumbraWithOracle => parts.oracle.clone().context("the oracle was not built")?,
            Hypervisor::Nothing if runs_linux(case) => debian::ready(arch)?.kernel,
            Hypervisor::Nothing => artefacts.guest.with_extension("img"),
            Hypervisor::DebianXen => xen::hypervisor(arch)?,
            Hypervisor::PenumbraOnDisc => disc(artefacts, &modules, case)?,
        },
        words: match case.hypervisor {
            Hypervisor::Nothing => case.words.into(),
            Hypervisor::DebianXen => format!("{}{}", xen::console_words(arch), case.words),
            _ => format!("{}{}", arch.console_words(), case.words),
        },
        modules: if case.hypervisor == Hypervisor::PenumbraOnDisc { Vec::new() } else { modules },
    })
}

/// Whether a machine without a hypervisor is Debian's kernel's: then it has the ramdisk.
fn runs_linux(case: &Case) -> bool {
    case.modules.iter().any(|(file, _)| *file == File::DebianRamdisk)
}

/// A disc for this case: the modules, if there are any, are those of the menu's second entry.
fn disc(artefacts: &Artefacts, modules: &[Module], case: &Case) -> Result<PathBuf> {
    let guest = modules.first().map(|kernel| iso::Guest {
        name: SECOND_ENTRY.into(),
        kernel: kernel.file.clone(),
        ramdisk: modules.get(1).map(|ramdisk| ramdisk.file.clone()),
        words: kernel.words.clone(),
    });
    let folder = workspace::folder(workspace::artefacts()?.join("modules"))?;
    let disc = folder.join(file_name(case)).with_extension("iso");
    iso::make(artefacts, guest.as_ref(), &disc)?;
    Ok(disc)
}

/// The file with a module's content. What is made for a case has the case's name, since two machines run at a time.
fn content(file: File, guest: &Path, case: &Case) -> Result<PathBuf> {
    let whole = || fs::read(guest).with_context(|| format!("cannot read {}", guest.display()));
    let content = match file {
        File::Guest => return Ok(guest.to_owned()),
        File::CutGuest => whole().map(|bytes| bytes[..bytes.len() / 2].to_vec())?,
        File::FirstBytesOfGuest => whole().map(|bytes| bytes[..bytes.len().min(40)].to_vec())?,
        File::Text => b"This is no kernel, but a text of one line.\n".repeat(20),
        File::Empty => Vec::new(),
        File::OtherMachine => files::for_the_other_machine(whole()?, case.board),
        File::Changed(change) => files::changed(whole()?, change)?,
        File::Packed(packing, damage) => files::packed(&whole()?, packing, damage),
        File::Ramdisk => case::ramdisk(),
        File::LargeRamdisk => vec![0; 9 << 20],
        File::DebianKernel => return Ok(debian::ready(arch(case.board))?.kernel),
        File::DebianGrub => return debian::grub(),
        File::DebianRamdisk => return Ok(debian::ready(arch(case.board))?.ramdisk),
    };
    let folder = workspace::folder(workspace::artefacts()?.join("modules"))?;
    let path = folder.join(file_name(case));
    workspace::replace(&path, &content)?;
    Ok(path)
}

/// A case's name as a file's.
fn file_name(case: &Case) -> String {
    case.name.replace('/', "-")
}

/// How the machine that `command` starts is run.
fn session(case: &Case, command: &mut Command, patience: u32) -> Result<Session> {
    let steps = case.keys.iter().map(|keys| script::Step {
        after: keys.after.iter().map(|text| (*text).to_owned()).collect(),
        deeds: keys.deeds.clone(),
        typed: keys.typed.into(),
        overtaken: keys.overtaken,
    });
    let mut script: Script = steps.collect();
    if case.keys.iter().any(|keys| !keys.deeds.is_empty()) {
        script = script.with_debugger(Debugger::of(command));
    }
    Ok(Session {
        limit: Some(Duration::from_secs(case.limit) * patience),
        log: qemu::log_file(&workspace::logs()?, &file_name(case)),
        echo: false,
        keyboard: if case.keys.is_empty() { Keyboard::Closed } else { Keyboard::Script(script) },
        until: case.last_words().into_iter().map(str::to_owned).collect(),
    })
}

fn ended(outcome: &Outcome) -> Ended {
    match outcome.ending {
        Ending::Off(status) if status.success() => Ended::Off,
        Ending::Off(_) => Ended::Failed,
        Ending::Awaited => Ended::SaidLastWords,
        Ending::TimedOut => Ended::TimedOut,
    }
}

fn explained(why: &str, outcome: &Outcome) -> String {
    let lines = outcome.last_lines(LAST_LINES).replace('\n', "\n    | ");
    let ending = if outcome.ending == Ending::TimedOut { " (the time was up)" } else { "" };
    format!("{why}{ending}\n    log: {}\n    | {lines}", workspace::shown(&outcome.log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_lines_are_read() {
        assert_eq!(host_test("test a::b ... ok"), Some(("a::b", Fate::Passed)));
        assert!(matches!(host_test("test a ... FAILED"), Some(("a", Fate::Failed(_)))));
        assert!(matches!(host_test("test a ... ignored, slow"), Some(("a", Fate::Skipped(_)))));
        assert_eq!(host_test("test result: ok. 3 passed; 0 failed"), None);
        assert_eq!(host_test("running 3 tests"), None);
    }

    #[test]
    fn host_tests_are_chosen_by_their_prefix_or_when_nothing_else_is() {
        assert_eq!(host_filter(None, true), Some(""));
        assert_eq!(host_filter(Some("host"), true), Some(""));
        assert_eq!(host_filter(Some("host/ring"), false), Some("ring"));
        assert_eq!(host_filter(Some("tour"), true), None);
        assert_eq!(host_filter(Some("ring::"), false), Some("ring::"));
        assert_eq!((races_filter(None), races_filter(Some("loom/last"))), (Some(""), Some("last")));
        assert_eq!(races_filter(Some("tour")), None);
    }

    #[test]
    fn a_name_that_nothing_has_is_known_before_anything_is_built() {
        for name in ["", "may_be_in", "report::tests::nothing_tested", "hyp-core/src/lib.rs"] {
            assert!(may_be_in_a_name(name), "{name}");
        }
        // Not as a word of this file.
        let typo = ["qzx", "vk"].concat();
        for name in [typo.clone(), format!("report::{typo}")] {
            assert!(!may_be_in_a_name(&name), "{name}");
        }
    }

    #[test]
    fn every_board_is_an_architecture() {
        for one in Arch::ALL {
            assert_eq!(arch(board(one)), one);
            assert_eq!(machine_tests::case::architecture(board(one)), one.name());
        }
    }
}
