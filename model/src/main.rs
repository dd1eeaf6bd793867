//! `model`: random operations against the specification, for as long as one likes.
//!
//! Sessions are numbered; a session's number is its seed, so any of them is repeated by `model --seed N --sessions 1`. What `cargo xtask
//! test` and `cargo xtask fuzz` run. One line goes to standard output for each piece of progress, and one at the end.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use hyp_core::fake::FakeFormat;
use hyp_el2::format::VmsaStage1;
use hyp_x86::format::X86Format;
use model::format::trimmed::Trimmed;
use model::session::{self, Plan, Tally};

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Format {
    Fake,
    X86,
    X86Full,
    Arm,
    ArmFull,
}

/// Random operations of several domains on a modelled machine, held against a naive specification
#[derive(Parser)]
struct Options {
    /// Table format; the full ones have 512 entries a table, the others 16
    #[arg(long, value_enum, default_value = "fake")]
    format: Format,
    /// Seed of the first session; each further one has the next number
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Operations in all, at least
    #[arg(long, default_value_t = 1_000_000)]
    operations: u64,
    /// Steps of a session
    #[arg(long, default_value_t = 20_000)]
    steps: u64,
    /// Sessions at most
    #[arg(long)]
    sessions: Option<u64>,
    /// The auditor looks after every so many steps
    #[arg(long, default_value_t = 1)]
    audit_every: u64,
    /// Sessions at the same time
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn run(format: Format, plan: Plan, progress: impl Fn(u64)) -> Result<Tally, String> {
    match format {
        Format::Fake => session::run::<FakeFormat>(plan, progress),
        Format::X86 => session::run::<Trimmed<X86Format>>(plan, progress),
        Format::X86Full => session::run::<X86Format>(plan, progress),
        Format::Arm => session::run::<Trimmed<VmsaStage1>>(plan, progress),
        Format::ArmFull => session::run::<VmsaStage1>(plan, progress),
    }
}

/// Operations between two lines of progress.
const LINE_EVERY: u64 = 100_000;

fn main() -> ExitCode {
    let options = Options::parse();
    // What a session says of a panic is enough.
    std::panic::set_hook(Box::new(|_| {}));
    let start = Instant::now();
    let (next, done, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new(Tally::default());
    let progress = |count: u64| {
        let before = done.fetch_add(count, Ordering::Relaxed);
        if before / LINE_EVERY != (before + count) / LINE_EVERY {
            println!("operations {}", before + count);
        }
    };
    let worker = || {
        while !failed.load(Ordering::Relaxed) && done.load(Ordering::Relaxed) < options.operations {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if options.sessions.is_some_and(|most| number >= most) {
                break;
            }
            let plan = Plan {
                seed: options.seed.wrapping_add(number),
                steps: options.steps,
                audit_every: options.audit_every,
            };
            match run(options.format, plan, progress) {
                Ok(tally) => total.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).add(&tally),
                Err(what) => {
                    failed.store(true, Ordering::Relaxed);
                    println!("failed {what}");
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(worker);
        }
    });
    let tally = *total.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} seeds {}..{}: {} operations in {} steps, {} succeeded, {} preemptions, {} flushes, {} emulated writes, {} tables \
         unhooked, {} grants mapped; {:.0} a second",
        format!("{:?}", options.format).to_lowercase(),
        options.seed,
        options.seed.wrapping_add(next.load(Ordering::Relaxed)),
        tally.operations,
        tally.steps,
        tally.succeeded,
        tally.preempted,
        tally.flushes,
        tally.emulated,
        tally.unhooked,
        tally.granted,
        tally.operations as f64 / seconds
    );
    if failed.load(Ordering::Relaxed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
