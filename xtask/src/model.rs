//! Random operations on the modelled machine, held against a naive specification (`model/`): a fixed amount in `cargo xtask test`, and for
//! as long as one likes in `cargo xtask fuzz`.
//!
//! The program is built with a profile of its own (fast code, every check on), and prints how many operations it has done as it goes. A session's
//! number is its seed: what fails is told with the command that repeats it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cli::FuzzOptions;
use crate::process::{self, Supervised};
use crate::report::{self, Fate, Report};
use crate::toolchain;
use crate::workspace;

/// A table format, and its part of all operations in percent. The full ones have real tables of 512 entries, which take longer.
const FORMATS: [(&str, u64); 5] = [("fake", 28), ("x86", 35), ("arm", 35), ("x86-full", 1), ("arm-full", 1)];
/// Operations of a piece of `cargo xtask fuzz`, which is a process of its own.
const PIECE: u64 = 2_000_000;

/// Names of the tests.
pub fn names() -> Vec<String> {
    FORMATS.iter().map(|(format, _)| format!("model/{format}")).collect()
}

/// Runs the tests that are `chosen`: `operations` in all, of which each has its part.
pub fn test(chosen: impl Fn(&str) -> bool, operations: u64, report: &Report) -> Result<()> {
    let wanted: Vec<_> = FORMATS.iter().filter(|(format, _)| chosen(&format!("model/{format}"))).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let program = build()?;
    for (format, percent) in wanted {
        let part = part(operations, *percent);
        let bar = report::bar(part, format);
        let outcome =
            run(&program, format, 1, part, |done| bar.iter().for_each(|bar| bar.set_position(done)))?;
        bar.iter().for_each(|bar| bar.finish_and_clear());
        let fate = match outcome {
            Outcome::Fine(line) => {
                println!("         {line}");
                Fate::Passed
            }
            Outcome::Failed(why) => Fate::Failed(why),
        };
        report.enter(&format!("model/{format}"), &fate, None);
    }
    Ok(())
}

/// A format's part of all operations: at least one.
fn part(operations: u64, percent: u64) -> u64 {
    operations.saturating_mul(percent).div_ceil(100)
}

/// `cargo xtask fuzz`: new seeds on all CPUs until the time is up.
pub fn fuzz(options: &FuzzOptions) -> Result<()> {
    let program = build()?;
    let minutes = options.hours.saturating_mul(60).saturating_add(options.minutes);
    let time = Duration::from_secs(minutes.max(1).saturating_mul(60));
    let start = Instant::now();
    let mut seed = options.seed.unwrap_or_else(new_seed);
    println!("first seed: {seed}");
    let bar = report::bar(time.as_secs(), "seconds");
    let clear = || bar.iter().for_each(|bar| bar.finish_and_clear());
    let (mut operations, mut turn) = (0u64, 0usize);
    while start.elapsed() < time {
        let (format, _) = FORMATS[turn % FORMATS.len()];
        let piece = if format.ends_with("full") { PIECE / 20 } else { PIECE };
        let outcome = run(&program, format, seed, piece, |done| {
            let Some(bar) = &bar else { return };
            bar.set_position(start.elapsed().as_secs());
            bar.set_message(format!("{format}, {} operations", operations + done));
        })?;
        if let Outcome::Failed(why) = outcome {
            clear();
            bail!("{why}");
        }
        operations += piece;
        seed = seed.wrapping_add(1 << 20);
        turn += 1;
    }
    clear();
    println!("{operations} operations without a finding, {turn} seeds apart by 2^20");
    Ok(())
}

/// A seed that was never tried: the time in nanoseconds.
fn new_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |time| time.as_nanos() as u64)
}

fn build() -> Result<PathBuf> {
    let mut command = Command::new(toolchain::cargo());
    command.current_dir(workspace::root()).args(["build", "--profile", "model", "--package", "model"]);
    process::step("building the modelled machine", &mut command)?;
    Ok(workspace::target().join("model").join("model"))
}

enum Outcome {
    /// With its last line.
    Fine(String),
    /// With what went wrong.
    Failed(String),
}

fn run(
    program: &PathBuf,
    format: &str,
    seed: u64,
    operations: u64,
    mut progress: impl FnMut(u64),
) -> Result<Outcome> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut command = Command::new(program);
    command.args(["--format", format, "--seed", &seed.to_string()]);
    command.args(["--operations", &operations.to_string(), "--threads", &threads.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut running = Supervised::start(&mut command)?;
    let pipe = running.child().stdout.take().context("the program's output")?;
    let (mut last, mut failure) = (String::new(), Vec::new());
    for line in BufReader::new(pipe).lines() {
        let line = line?;
        match line.strip_prefix("operations ").and_then(|count| count.parse().ok()) {
            Some(done) => progress(done),
            None if line.starts_with("failed ") || !failure.is_empty() => failure.push(line),
            None => last = line,
        }
    }
    if running.wait()?.success() {
        return Ok(Outcome::Fine(last));
    }
    let program = workspace::shown(program);
    failure.push(format!("again: {program} --format {format} --sessions 1 --seed (the seed above)"));
    Ok(Outcome::Failed(failure.join("\n    ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_its_part_of_the_operations() {
        assert_eq!(FORMATS.iter().map(|(_, percent)| percent).sum::<u64>(), 100);
        assert!(FORMATS.iter().all(|(_, percent)| part(1, *percent) == 1 && part(u64::MAX, *percent) > 1));
        assert_eq!(part(10_200_000, 28), 2_856_000);
    }

    #[test]
    fn what_failed_is_told_with_the_program_that_was_run() {
        let folder = workspace::tests::scratch("model-again");
        let program = folder.join("model");
        std::fs::write(&program, "#!/bin/sh\necho failed at 7\nexit 1\n").unwrap();
        assert!(Command::new("chmod").arg("+x").arg(&program).status().unwrap().success());
        let Outcome::Failed(why) = run(&program, "fake", 1, 1, |_| {}).unwrap() else { panic!("it failed") };
        let again = format!("again: {} --format fake ", workspace::shown(&program));
        assert!(why.starts_with("failed at 7\n") && why.contains(&again), "{why}");
    }
}
