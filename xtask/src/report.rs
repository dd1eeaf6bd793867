//! One line for each test as it ends, and a last line that counts them. Many threads may report.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

/// What became of a test.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    Passed,
    /// With what was wrong.
    Failed(String),
    /// With the reason.
    Skipped(String),
}

impl From<Result<(), String>> for Fate {
    fn from(result: Result<(), String>) -> Fate {
        result.map_or_else(Fate::Failed, |()| Fate::Passed)
    }
}

/// The tests' fates so far.
#[derive(Default)]
pub struct Report {
    passed: AtomicUsize,
    failures: Mutex<Vec<String>>,
    skipped: AtomicUsize,
}

impl Report {
    /// Prints a test's line and counts it; `bar` is the progress bar of the tests that are under way.
    pub fn enter(&self, name: &str, fate: &Fate, bar: Option<&ProgressBar>) {
        let line = match fate {
            Fate::Passed => {
                self.passed.fetch_add(1, Ordering::Relaxed);
                format!("ok       {name}")
            }
            Fate::Failed(why) => {
                self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
                format!("FAILED   {name}: {why}")
            }
            Fate::Skipped(why) => {
                self.skipped.fetch_add(1, Ordering::Relaxed);
                format!("skipped  {name}: {why}")
            }
        };
        match bar {
            Some(bar) => bar.suspend(|| println!("{line}")),
            None => println!("{line}"),
        }
    }

    /// The last line. An error if anything failed, or if nothing was tested: there was nothing, or all of it was skipped.
    pub fn close(self) -> Result<()> {
        let passed = self.passed.into_inner();
        let failures = self.failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        let skipped = match self.skipped.into_inner() {
            0 => String::new(),
            count => format!(", {count} skipped"),
        };
        if !failures.is_empty() {
            println!("\nfailed:\n  {}", failures.join("\n  "));
        }
        println!("\n{passed} passed, {} failed{skipped}", failures.len());
        ensure!(failures.is_empty(), "{} of the tests failed", failures.len());
        ensure!(passed > 0, "nothing was tested{skipped}");
        Ok(())
    }
}

/// Prints something beside the tests' lines.
pub fn note(line: &str, bar: Option<&ProgressBar>) {
    match bar {
        Some(bar) => bar.suspend(|| println!("         {line}")),
        None => println!("         {line}"),
    }
}

/// A bar that counts to `length`, on a terminal.
pub fn bar(length: u64, what: &str) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::new(length).with_message(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {elapsed}") {
        bar.set_style(style);
    }
    bar.tick();
    Some(bar)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a report with these tests is closed.
    fn closed(fates: &[Fate]) -> Result<(), String> {
        let report = Report::default();
        fates.iter().for_each(|fate| report.enter("a", fate, None));
        report.close().map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_tested_is_no_success() {
        let (failed, skipped) = (Fate::Failed("x".into()), Fate::Skipped("y".into()));
        assert_eq!(closed(&[Fate::Passed]), Ok(()));
        assert_eq!(closed(&[skipped.clone(), Fate::Passed]), Ok(()));
        assert_eq!(closed(&[Fate::Passed, failed]), Err("1 of the tests failed".into()));
        assert_eq!(closed(&[]), Err("nothing was tested".into()));
        assert_eq!(closed(&[skipped]), Err("nothing was tested, 1 skipped".into()));
    }
}
