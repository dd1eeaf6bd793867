//! Programs that lean on a kernel's memory management, in one static executable: `workload NAME`. (A small one lies beside it, `answer`, for
//! what is about starting programs.)
//!
//! They are meant for an initial ramdisk without anything else in it, and know nothing of what lies below the kernel, so that the same
//! file runs on the bare machine, on Xen and on Penumbra. Each checks every byte that it wrote, says one line
//! (`WORKLOAD NAME ok`, `WORKLOAD NAME FAILED: why` or `WORKLOAD NAME skipped: why`) and ends with a status of its own.
//!
//! `workload NAME spoil` does the same with one bit of memory, or one status, falsified in passing, as a hypervisor's mistake might do it:
//! the program must then fail. `workload bench` counts what single operations take, `workload profile ROW` does one of them ([`bench`]).

mod balloon;
mod bench;
mod copy_on_write;
mod debugging;
mod exec;
mod faults;
mod fork_storm;
mod mappings;
mod memory;
mod pressure;
mod processes;
mod status;
mod threads;

use std::process::ExitCode;

use anyhow::Result;

/// How a workload that found nothing wrong came to its end.
pub enum Fate {
    /// Everything was as it must be; what was done.
    Passed(String),
    /// It can't be tried here; why.
    Skipped(String),
}

/// Whether something is to be falsified, to show that it would be noticed.
#[derive(Clone, Copy)]
pub struct Spoil(bool);

impl Spoil {
    /// The value as it is, or with one bit of it changed.
    pub fn word(self, value: u64) -> u64 {
        if self.0 { value ^ 1 << 17 } else { value }
    }

    /// A process's exit status, or another.
    pub fn status(self, status: i32) -> i32 {
        if self.0 { status ^ 1 } else { status }
    }

    /// What is falsified only once: here, if `chosen`.
    pub fn only(self, chosen: bool) -> Spoil {
        Spoil(self.0 && chosen)
    }
}

/// A workload's name, and what it does.
type Workload = (&'static str, fn(Spoil) -> Result<Fate>);

/// All of them, in the order in which a ramdisk runs them: the one that takes all memory comes last.
const WORKLOADS: [Workload; 9] = [
    ("fork-storm", fork_storm::run),
    ("mappings", mappings::run),
    ("copy-on-write", copy_on_write::run),
    ("exec", exec::run),
    ("threads", threads::run),
    ("faults", faults::run),
    ("debugging", debugging::run),
    ("balloon", balloon::run),
    ("memory-pressure", pressure::run),
];

/// Exit statuses besides success: something was found, it can't be tried here, the words make no sense.
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const SKIPPED: u8 = 3;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["list"] => list(),
        ["bench"] => bench::run(),
        ["profile", row] => bench::profile(row),
        [name] => run(name, Spoil(false)),
        [name, "spoil"] => run(name, Spoil(true)),
        _ => usage(),
    }
}

fn list() -> ExitCode {
    WORKLOADS.iter().for_each(|(name, _)| println!("{name}"));
    ExitCode::SUCCESS
}

fn run(name: &str, spoil: Spoil) -> ExitCode {
    let Some((_, workload)) = WORKLOADS.iter().find(|(known, _)| *known == name) else { return usage() };
    match workload(spoil) {
        Ok(Fate::Passed(what)) => {
            println!("WORKLOAD {name} ok: {what}");
            ExitCode::SUCCESS
        }
        Ok(Fate::Skipped(why)) => {
            println!("WORKLOAD {name} skipped: {why}");
            ExitCode::from(SKIPPED)
        }
        Err(why) => {
            println!("WORKLOAD {name} FAILED: {why:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn usage() -> ExitCode {
    let names: Vec<&str> = WORKLOADS.iter().map(|(name, _)| *name).collect();
    eprintln!("usage: workload NAME [spoil] | list | bench | profile ROW\nnames: {}", names.join(" "));
    ExitCode::from(USAGE)
}
