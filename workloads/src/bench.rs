//! What a kernel's own operations take: `BENCH NAME COUNT`, one line for each.
//!
//! The count is in ticks of the counter that a user program can read ([`ticks`]). Where the emulator counts instructions
//! (`-icount shift=0,sleep=off`), x86's time-stamp counter goes up by one with each instruction, so that these are
//! instructions, of the program, the kernel and whatever is below it together. On AArch64 the counter runs at a fixed
//! frequency, which is taken into account.
//!
//! Each operation is done some times before it is counted, so that no row pays for what is done only once.

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::libc::{SYS_getppid, syscall};
use nix::unistd::pipe;

use crate::Spoil;
use crate::exec;
use crate::memory::{Mapping, Rights, Sharing};
use crate::processes::{child, expect};

/// Pages of the rows that are counted by the page.
const PAGES: usize = 2048;
/// How often the rows of whole processes are repeated, and the short ones.
const FEW: u64 = 50;
const MANY: u64 = 2000;

/// A row's name, and what counts it.
type Row = (&'static str, fn() -> Result<u64>);

const ROWS: [Row; 8] = [
    ("system-call", system_call),
    ("fork-exit", fork_exit),
    ("fork-exec", fork_exec),
    ("first-touch", first_touch),
    ("mprotect", mprotect),
    ("write-after-mprotect", write_after_mprotect),
    ("copy-on-write-fault", copy_on_write_fault),
    ("pipe-switch", pipe_switch),
];

pub fn run() -> ExitCode {
    let mut status = ExitCode::SUCCESS;
    for (name, row) in ROWS {
        match row() {
            Ok(count) => println!("BENCH {name} {count}"),
            Err(error) => {
                println!("BENCH {name} failed: {error:#}");
                status = ExitCode::FAILURE;
            }
        }
    }
    println!("BENCH end");
    status
}

/// A tenth of the repetitions uncounted, then all of them counted: the average, rounded.
fn average(count: u64, mut once: impl FnMut() -> Result<()>) -> Result<u64> {
    (0..count / 10).try_for_each(|_| once())?;
    let start = ticks();
    (0..count).try_for_each(|_| once())?;
    Ok((ticks() - start + count / 2) / count)
}

/// The smallest of three rounds of `counted`, each by the page: what a single timer interrupt adds is no part of the row.
fn per_page(mut counted: impl FnMut() -> Result<u64>) -> Result<u64> {
    let mut least = u64::MAX;
    for _ in 0..3 {
        least = least.min(counted()?);
    }
    Ok((least + PAGES as u64 / 2) / PAGES as u64)
}

/// Ticks that `work` takes.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let start = ticks();
    work()?;
    Ok(ticks() - start)
}

/// The shortest system call that reaches the kernel.
fn system_call() -> Result<u64> {
    average(10 * MANY, || {
        // SAFETY: this call takes no argument and touches no memory.
        black_box(unsafe { syscall(SYS_getppid) });
        Ok(())
    })
}

fn fork_exit() -> Result<u64> {
    average(FEW, || expect(child(|| Ok(0))?, 0))
}

fn fork_exec() -> Result<u64> {
    average(FEW, || expect(child(|| exec::start(1))?, i32::from(exec::status(1))))
}

/// Memory mapped and each page written to for the first time, by the page.
fn first_touch() -> Result<u64> {
    per_page(|| {
        let mut memory = None;
        let ticks = timed(|| {
            let memory = memory.insert(Mapping::new(PAGES, Sharing::Private)?);
            touch(memory);
            Ok(())
        });
        drop(memory);
        ticks
    })
}

fn touch(memory: &Mapping) {
    (0..memory.pages()).for_each(|page| memory.write(page, 0, 1));
}

/// One call that takes the right to write from many pages, by the page.
fn mprotect() -> Result<u64> {
    let memory = touched()?;
    per_page(|| {
        let ticks = timed(|| memory.protect(0..PAGES, Rights::Read))?;
        memory.protect(0..PAGES, Rights::Write)?;
        touch(&memory);
        Ok(ticks)
    })
}

/// The right given back by another call, and each page written to, by the page. (Whether there are faults is up to the
/// kernel: Linux 6.1 makes pages of one's own writable at once.)
fn write_after_mprotect() -> Result<u64> {
    let memory = touched()?;
    per_page(|| {
        memory.protect(0..PAGES, Rights::Read)?;
        timed(|| {
            memory.protect(0..PAGES, Rights::Write)?;
            touch(&memory);
            Ok(())
        })
    })
}

/// A page that has been read only, and therefore is the kernel's page of zeros, is written to: a fault and a copy, by the page.
fn copy_on_write_fault() -> Result<u64> {
    per_page(|| {
        let memory = Mapping::new(PAGES, Sharing::Private)?;
        (0..PAGES).try_for_each(|page| memory.check_zeros(page))?;
        timed(|| {
            touch(&memory);
            Ok(())
        })
    })
}

fn touched() -> Result<Mapping> {
    let memory = Mapping::new(PAGES, Sharing::Private)?;
    (0..PAGES).for_each(|page| memory.fill(page, 1, Spoil(false)));
    Ok(memory)
}

/// Two processes that wake each other through two pipes: half of a round trip.
fn pipe_switch() -> Result<u64> {
    let (ask, answer) = (Line::new()?, Line::new()?);
    // As often as `average` asks.
    let times = MANY + MANY / 10;
    let other = child(|| {
        for _ in 0..times {
            ask.wait()?;
            answer.call()?;
        }
        Ok(0)
    })?;
    let round = average(MANY, || {
        ask.call()?;
        answer.wait()
    })?;
    expect(other, 0)?;
    Ok(round.div_ceil(2))
}

/// A pipe that carries single bytes.
struct Line {
    reader: std::fs::File,
    writer: std::fs::File,
}

impl Line {
    fn new() -> Result<Line> {
        let (reader, writer): (OwnedFd, OwnedFd) = pipe().context("pipe")?;
        Ok(Line { reader: reader.into(), writer: writer.into() })
    }

    fn call(&self) -> Result<()> {
        (&self.writer).write_all(&[0]).context("writing to a pipe")
    }

    fn wait(&self) -> Result<()> {
        (&self.reader).read_exact(&mut [0]).context("reading from a pipe")
    }
}

/// The time-stamp counter.
#[cfg(target_arch = "x86_64")]
fn ticks() -> u64 {
    // SAFETY: the instruction only reads a counter that the kernel lets programs read.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The virtual counter, in nanoseconds.
#[cfg(target_arch = "aarch64")]
fn ticks() -> u64 {
    let (count, frequency): (u64, u64);
    // SAFETY: the instructions only read registers that the kernel lets programs read.
    unsafe {
        std::arch::asm!("isb", "mrs {}, cntvct_el0", "mrs {}, cntfrq_el0", out(reg) count, out(reg) frequency);
    }
    (u128::from(count) * 1_000_000_000 / u128::from(frequency)) as u64
}
