//! What a kernel's own operations take: `BENCH NAME COUNT`, one line for each.
//!
//! The count is in ticks of the counter that a user program can read ([`ticks`]). Where the emulator counts instructions
//! (`-icount shift=0,sleep=off`), x86's time-stamp counter goes up by one with each instruction, so that these are
//! instructions, of the program, the kernel and whatever is below it together. On AArch64 the counter runs at a fixed
//! frequency, which is taken into account.
//!
//! `workload profile ROW` does a row with few repetitions, for a log of every instruction.
//!
//! Each operation is done some times before it is counted, so that no row pays for what is done only once.

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use nix::libc::{SYS_getppid, syscall};
use nix::unistd::{pipe, read, write};

use crate::Spoil;
use crate::exec::Program;
use crate::memory::{Mapping, Rights, Sharing};
use crate::processes::{child, expect};

/// How often operations are repeated.
#[derive(Clone, Copy)]
struct Size {
    /// Pages of the rows that are counted by the page.
    pages: usize,
    /// Repetitions of the rows of whole processes.
    few: u64,
    /// Repetitions of the short ones.
    many: u64,
}

/// For figures.
const USUAL: Size = Size { pages: 2048, few: 50, many: 2000 };
/// For a log of every instruction.
const SMALL: Size = Size { pages: 256, few: 2, many: 20 };

/// A row's name, what counts it, and how many operations that are.
type Row = (&'static str, fn(Size) -> Result<u64>, fn(Size) -> u64);

const ROWS: [Row; 8] = [
    ("system-call", system_call, |size| size.many),
    ("fork-exit", fork_exit, |size| size.few),
    ("fork-exec", fork_exec, |size| size.few),
    ("first-touch", first_touch, |size| size.pages as u64),
    ("mprotect", mprotect, |size| size.pages as u64),
    ("write-after-mprotect", write_after_mprotect, |size| size.pages as u64),
    ("copy-on-write-fault", copy_on_write_fault, |size| size.pages as u64),
    ("pipe-switch", pipe_switch, |size| 2 * size.many),
];

pub fn run() -> ExitCode {
    let mut status = ExitCode::SUCCESS;
    // For who counts what it takes to come here, and waits for the first call of this function.
    black_box(ticks());
    for (name, row, _) in ROWS {
        match row(USUAL) {
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

/// One row, small, as soon as somebody types a line: whoever logs what the processor does begins with that before.
pub fn profile(name: &str) -> ExitCode {
    let Some((name, row, operations)) = ROWS.into_iter().find(|(known, ..)| *known == name) else {
        println!("PROFILE end: there is no row {name}");
        return ExitCode::FAILURE;
    };
    println!("PROFILE operations {}", operations(SMALL));
    println!("PROFILE ready");
    // Whatever is typed, and even if nothing can be.
    let _ = std::io::stdin().read_line(&mut String::new());
    match row(SMALL) {
        Ok(count) => println!("BENCH {name} {count}"),
        Err(error) => println!("BENCH {name} failed: {error:#}"),
    }
    println!("PROFILE end");
    ExitCode::SUCCESS
}

/// A tenth of the repetitions uncounted, or one, then all of them counted: the average, rounded.
fn average(count: u64, mut once: impl FnMut() -> Result<()>) -> Result<u64> {
    (0..(count / 10).max(1)).try_for_each(|_| once())?;
    let start = ticks();
    (0..count).try_for_each(|_| once())?;
    Ok((ticks() - start + count / 2) / count)
}

/// The smallest of three rounds of `counted`, each by the page: what a single timer interrupt adds is no part of the row.
fn per_page(pages: usize, mut counted: impl FnMut() -> Result<u64>) -> Result<u64> {
    let mut least = u64::MAX;
    for _ in 0..3 {
        least = least.min(counted()?);
    }
    Ok((least + pages as u64 / 2) / pages as u64)
}

/// Ticks that `work` takes.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let start = ticks();
    work()?;
    Ok(ticks() - start)
}

/// The shortest system call that reaches the kernel.
fn system_call(size: Size) -> Result<u64> {
    average(size.many, || {
        // SAFETY: this call takes no argument and touches no memory.
        black_box(unsafe { syscall(SYS_getppid) });
        Ok(())
    })
}

fn fork_exit(size: Size) -> Result<u64> {
    average(size.few, || expect(child(|| Ok(0))?, 0))
}

fn fork_exec(size: Size) -> Result<u64> {
    let program = Program::find()?;
    average(size.few, || program.answers(1, Spoil(false)))
}

/// Memory mapped and each page written to for the first time, by the page.
fn first_touch(size: Size) -> Result<u64> {
    per_page(size.pages, || {
        let mut memory = None;
        let ticks = timed(|| {
            let memory = memory.insert(Mapping::new(size.pages, Sharing::Private)?);
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
fn mprotect(size: Size) -> Result<u64> {
    let memory = touched(size.pages)?;
    per_page(size.pages, || {
        let ticks = timed(|| memory.protect(0..size.pages, Rights::Read))?;
        memory.protect(0..size.pages, Rights::Write)?;
        touch(&memory);
        Ok(ticks)
    })
}

/// The right given back by another call, and each page written to, by the page. (Whether there are faults is up to the
/// kernel: Linux 6.1 makes pages of one's own writable at once.)
fn write_after_mprotect(size: Size) -> Result<u64> {
    let memory = touched(size.pages)?;
    per_page(size.pages, || {
        memory.protect(0..size.pages, Rights::Read)?;
        timed(|| {
            memory.protect(0..size.pages, Rights::Write)?;
            touch(&memory);
            Ok(())
        })
    })
}

/// A page that has been read only, and therefore is the kernel's page of zeros, is written to: a fault and a copy, by the page.
fn copy_on_write_fault(size: Size) -> Result<u64> {
    per_page(size.pages, || {
        let memory = Mapping::new(size.pages, Sharing::Private)?;
        (0..size.pages).try_for_each(|page| memory.check_zeros(page))?;
        timed(|| {
            touch(&memory);
            Ok(())
        })
    })
}

fn touched(pages: usize) -> Result<Mapping> {
    let memory = Mapping::new(pages, Sharing::Private)?;
    (0..pages).for_each(|page| memory.fill(page, 1, Spoil(false)));
    Ok(memory)
}

/// Two processes that wake each other through two pipes: half of a round trip.
fn pipe_switch(size: Size) -> Result<u64> {
    let (ask, answer) = (Line::new()?, Line::new()?);
    // As often as `average` asks.
    let times = size.many + (size.many / 10).max(1);
    let other = child(|| {
        for _ in 0..times {
            ask.wait()?;
            answer.call()?;
        }
        Ok(0)
    })?;
    let round = average(size.many, || {
        ask.call()?;
        answer.wait()
    })?;
    expect(other, 0)?;
    Ok(round.div_ceil(2))
}

/// A pipe that carries single bytes.
struct Line {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Line {
    fn new() -> Result<Line> {
        let (reader, writer) = pipe().context("pipe")?;
        Ok(Line { reader, writer })
    }

    fn call(&self) -> Result<()> {
        ensure!(write(&self.writer, &[0]) == Ok(1), "writing to a pipe");
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        ensure!(read(&self.reader, &mut [0]) == Ok(1), "reading from a pipe");
        Ok(())
    }
}

/// The time-stamp counter. A function of its own, so that it is found in a log of what was executed.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
fn ticks() -> u64 {
    // SAFETY: the instruction only reads a counter that the kernel lets programs read.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The virtual counter, in nanoseconds.
#[cfg(target_arch = "aarch64")]
#[inline(never)]
fn ticks() -> u64 {
    let (count, frequency): (u64, u64);
    // SAFETY: the instructions only read registers that the kernel lets programs read.
    unsafe {
        std::arch::asm!("isb", "mrs {}, cntvct_el0", "mrs {}, cntfrq_el0", out(reg) count, out(reg) frequency);
    }
    (u128::from(count) * 1_000_000_000 / u128::from(frequency)) as u64
}
