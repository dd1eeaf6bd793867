//! How many instructions a machine executes from its reset to the ramdisk's first program.
//!
//! The machine's clock can't tell: where the emulator counts instructions it goes on while the processor waits, too. What was executed alone is
//! the count by which the emulator's recorder (`rr=record`) orders events. It is asked for it where the program reads the counter for the first
//! time, and the machine stands still: so the figure is exact.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol};

use crate::boot::Machine;
use crate::debugger::{Breakpoint, Debugger};
use crate::qemu::{self, Keyboard, Session};
use crate::workspace;

/// In seconds. Recording is slower than running.
const TIME_LIMIT: u64 = 600;
/// How many bytes of the program's code are compared, since other programs have other code at the same address.
const COMPARED: u64 = 16;

/// A part of the name of the program's function that reads the counter.
pub const COUNTER: &str = "5ticks";

/// Boots the machine, whose ramdisk is told to run the benchmark (`program`), up to the benchmark's beginning; returns what was executed.
pub fn executed(machine: &Machine, program: &Path, name: &str) -> Result<u64> {
    let breakpoint = beginning(program)?;
    let log = qemu::log_file(&workspace::logs()?, &format!("bench-start-{name}"));
    let record = Record(log.with_extension("record"));
    let mut command = machine.command()?;
    // Added to what `-icount` says already; nothing is executed before the debugger is there.
    command.arg("-icount").arg(format!("rr=record,rrfile={}", doubled_commas(&record.0)?)).arg("-S");
    let debugger = Debugger::of(&mut command);
    let limit = Duration::from_secs(TIME_LIMIT);
    let session =
        Session { limit: Some(limit), log, echo: false, keyboard: Keyboard::Closed, until: Vec::new() };
    let (count, outcome) = thread::scope(|scope| {
        let counting = scope.spawn(|| debugger.executed_until(&breakpoint, limit));
        let outcome = qemu::run(&mut command, session);
        (counting.join(), outcome)
    });
    let outcome = outcome?;
    let count = count.map_err(|_| anyhow::anyhow!("the debugger's side has panicked"))?;
    count.with_context(|| format!("the machine's last lines:\n{}", outcome.last_lines(8)))
}

fn doubled_commas(file: &Path) -> Result<String> {
    Ok(file.to_str().context("the log's name is no UTF-8")?.replace(',', ",,"))
}

/// Where the program reads the counter: the benchmark does it before anything else.
fn beginning(program: &Path) -> Result<Breakpoint> {
    let content = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let file = object::File::parse(&*content)?;
    let missing = || format!("{} has no function that reads the counter", program.display());
    let counter = file.symbols().find(|symbol| symbol.name().is_ok_and(|name| name.contains(COUNTER)));
    let address = counter.with_context(missing)?.address();
    let code = file.sections().find_map(|section| section.data_range(address, COMPARED).ok().flatten());
    let code = code.with_context(missing)?.to_vec();
    ensure!(!code.is_empty(), missing());
    Ok(Breakpoint { address, code })
}

/// The recorder's file, which goes with this value.
struct Record(PathBuf);

impl Drop for Record {
    fn drop(&mut self) {
        // The emulator may not have come so far.
        let _ = fs::remove_file(&self.0);
    }
}
