//! Tests that are compiled apart, each in a workspace of its own: `races/` with loom's atomics, `fuzz/` with counters at every
//! branch.
//!
//! The fuzz targets are libFuzzer's, laid out as cargo-fuzz wants them, and `cargo fuzz run TARGET` works with
//! `RUSTC_BOOTSTRAP=1`. Here they are built with the instrumentation alone, which a stable compiler has, and without a
//! sanitizer, since the code under test has no unsafe block.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::process;
use crate::progress::Step;
use crate::report::{self, Fate, Report};
use crate::setup;
use crate::toolchain;
use crate::workspace;

/// The fuzz targets.
pub const TARGETS: [&str; 11] = [
    "hypercalls",
    "tables",
    "image",
    "device_tree",
    "multiboot",
    "multiboot2",
    "command_line",
    "emulate",
    "unpack",
    "board",
    "devices",
];
/// Targets that run at the same time.
const AT_ONCE: usize = 2;
/// What cargo-fuzz gives to the compiler, but for its sanitizer.
const INSTRUMENTATION: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares";
/// How often loom interrupts a CPU where it doesn't wait by itself.
const PREEMPTIONS: &str = "3";
/// Runs after which a target's process ends and another goes on, where each run may leave a machine behind that lives as long as
/// the process (some 6 MiB).
const RUNS_A_PROCESS: [(&str, u32); 1] = [("hypercalls", 900)];
/// How many lines of a crash are shown.
const COMPLAINT: usize = 12;

/// loom's tests whose names contain `filter`. An error if there are none.
pub fn races(filter: &str, report: &Report) -> Result<()> {
    let mut command = cargo("races");
    command.args(["test", "--locked", "--no-fail-fast", "--", filter]);
    command.env("LOOM_MAX_PREEMPTIONS", PREEMPTIONS);
    let output = Step::around("every interleaving: cargo test in races", |_| process::output(&mut command))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let tests = enter(&text, report);
    if !output.status.success() {
        println!("{}", crate::test::relevant(&text, &String::from_utf8_lossy(&output.stderr)));
        report.enter("loom/all", &Fate::Failed("see above".into()), None);
        return Ok(());
    }
    ensure!(tests > 0, "no test of loom's has a name that contains {filter:?}");
    Ok(())
}

/// Enters each test that the harness has run; their number.
fn enter(text: &str, report: &Report) -> usize {
    let tests = text.lines().filter_map(crate::test::host_test);
    tests.map(|(name, fate)| report.enter(&format!("loom/{name}"), &fate, None)).count()
}

/// Runs these targets, each for so many seconds.
pub fn fuzz(targets: Vec<&'static str>, seconds: u64, report: &Report) -> Result<()> {
    setup::cxx_compiler()?;
    let host = host()?;
    let mut build = cargo("fuzz");
    build.args(["build", "--locked", "--release", "--target", &host]).env("RUSTFLAGS", INSTRUMENTATION);
    process::step("building the fuzz targets", &mut build)?;
    let bar = report::bar(targets.len() as u64, "fuzz targets");
    let queue = Mutex::new(targets.into_iter());
    let next = || queue.lock().ok().and_then(|mut targets| targets.next());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(target) = next() {
                    let fate = run(target, &host, seconds).unwrap_or_else(|e| Fate::Failed(format!("{e:#}")));
                    report.enter(&format!("fuzz/{target}"), &fate, bar.as_ref());
                    bar.iter().for_each(|bar| bar.inc(1));
                }
            });
        }
    });
    bar.iter().for_each(|bar| bar.finish_and_clear());
    Ok(())
}

/// Runs one target: what it finds goes into a folder of the artefacts, and the corpus of the repository stays as it is.
fn run(target: &str, host: &str, seconds: u64) -> Result<Fate> {
    let start = Instant::now();
    loop {
        let left = seconds.saturating_sub(start.elapsed().as_secs()).max(1);
        let fate = run_process(target, host, left)?;
        if !matches!(fate, Fate::Passed) || start.elapsed().as_secs() + 1 >= seconds {
            return Ok(fate);
        }
    }
}

/// Runs a target for so many seconds, or as long as a process may, since what it found is where the next one begins.
fn run_process(target: &str, host: &str, seconds: u64) -> Result<Fate> {
    let found = workspace::folder(workspace::artefacts()?.join("fuzz").join(target))?;
    let crash = found.with_extension("crash");
    let _ = fs::remove_file(&crash);
    let program = folder("fuzz").join(host).join("release").join(target);
    let mut command = Command::new(program);
    command.arg(&found).arg(workspace::root().join("fuzz/corpus").join(target));
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-exact_artifact_path={}", crash.display()));
    command.args(["-timeout=60", "-rss_limit_mb=10240", "-max_len=8192", "-verbosity=0"]);
    if let Some((_, runs)) = RUNS_A_PROCESS.iter().find(|(leaking, _)| *leaking == target) {
        command.arg(format!("-runs={runs}"));
    }
    let output = process::output(&mut command)?;
    if output.status.success() {
        return Ok(Fate::Passed);
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    // What went wrong is said at the end.
    let complaint = lines.split_off(lines.len().saturating_sub(COMPLAINT));
    let told: String = complaint.iter().map(|line| format!("\n    | {line}")).collect();
    Ok(Fate::Failed(format!("the input is in {}{told}", workspace::shown(&crash))))
}

/// Where a workspace of its own is built.
fn folder(name: &str) -> PathBuf {
    workspace::target().join(name)
}

/// Cargo, in a folder of the house that is no member of its workspace.
fn cargo(name: &str) -> Command {
    let mut command = Command::new(toolchain::cargo());
    command.current_dir(workspace::root().join(name)).env("CARGO_TARGET_DIR", folder(name));
    command
}

/// The host's name, as the compiler has it. Named as a target, it keeps the counters out of build scripts.
fn host() -> Result<String> {
    let output = process::output(Command::new("rustc").arg("-vV"))?;
    ensure!(output.status.success(), "rustc -vV failed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc doesn't say what its host is")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the crates of the house in this lock file depend on, and the lock file doesn't know of.
    fn unlocked(lock: &str) -> Vec<String> {
        let mut missing = Vec::new();
        for package in lock.split("[[package]]\n").filter(|package| !package.contains("\nsource = ")) {
            let name = package.lines().find_map(|line| line.strip_prefix("name = ")).unwrap_or_default();
            let name = name.trim_matches('"').replace("penumbra-", "");
            let Ok(manifest) = fs::read_to_string(workspace::root().join(&name).join("Cargo.toml")) else {
                continue;
            };
            let wanted = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
            let wanted = wanted.lines().take_while(|line| !line.starts_with('['));
            let wanted = wanted.filter(|line| !line.contains("optional") && !line.starts_with('#'));
            let names =
                wanted.filter_map(|line| line.split(['.', ' ']).next()).filter(|name| !name.is_empty());
            missing.extend(
                names
                    .filter(|wanted| !package.contains(&format!("\"{wanted}")))
                    .map(|wanted| format!("{name}: {wanted}")),
            );
        }
        missing
    }

    #[test]
    fn the_lock_files_know_what_the_house_depends_on() {
        for name in ["races", "fuzz"] {
            let lock =
                fs::read_to_string(workspace::root().join(name).join("Cargo.lock")).expect("the lock file");
            assert_eq!(unlocked(&lock), [""; 0], "{name}: cargo check there mends it");
        }
        assert_eq!(unlocked("[[package]]\nname = \"hyp-core\"\n").len(), 7);
    }

    #[test]
    fn nothing_that_loom_ran_is_no_success() {
        assert_eq!(enter("running 0 tests\n\ntest result: ok. 0 passed\n", &Report::default()), 0);
        assert_eq!(enter("test one ... ok\ntest two ... FAILED\n", &Report::default()), 2);
    }

    #[test]
    fn every_target_has_its_file_and_its_corpus() {
        for target in TARGETS {
            let root = workspace::root().join("fuzz");
            assert!(root.join("fuzz_targets").join(format!("{target}.rs")).exists(), "{target}");
            assert!(root.join("corpus").join(target).is_dir(), "{target}");
        }
        let files = fs::read_dir(workspace::root().join("fuzz/fuzz_targets")).expect("the targets' folder");
        assert_eq!(files.count(), TARGETS.len());
    }
}
