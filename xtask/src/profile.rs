//! `cargo xtask profile ROW`: where one row of the benchmark spends its instructions.
//!
//! The guest gets ready for the row and waits for a key; then the emulator is told to log every instruction's address, and the
//! row is measured once. The stretches between two reads of the guest's counter are what the row measures; the one with the
//! fewest of the hypervisor's instructions (no timer came in) is told apart by function, inlined ones included, with the debug
//! information that the hypervisor's ELF file carries.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use addr2line::Loader;
use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSymbol};

use crate::bench;
use crate::boot::Machine;
use crate::build::{self, Program};
use crate::cli::{Arch, BenchGuest, Profile, ProfileOptions};
use crate::image::{self, Artefacts};
use crate::progress::Step;
use crate::qemu::{self, Keyboard, Session};
use crate::script;
use crate::setup;
use crate::toolchain::Toolchain;
use crate::workloads;
use crate::workspace;

/// In seconds. Logging every instruction is slow.
const TIME_LIMIT: u64 = 600;
/// Switches the terminal between the machine's serial line and the emulator's own prompt.
const SWITCH: &str = "\u{1}c";

/// Instructions by address.
type Counts = HashMap<u64, u64>;

/// `cargo xtask profile`.
pub fn profile(options: &ProfileOptions) -> Result<()> {
    check(options)?;
    setup::emulators(&[options.arch])?;
    let artefacts = image::artefacts(options.arch, Profile::Release)?;
    let elf =
        build::build(&Toolchain::ready(options.arch)?, Program::Hypervisor, options.arch, Profile::Release)?;
    let subject = Subject::new(options, &artefacts)?;
    let log = Trace::new(workspace::logs()?.join(format!("profile-{}.trace", options.arch)))?;
    let said = Step::around(format!("logging {} on {}", options.row, options.arch), |_| {
        trace(&subject.machine.command()?, &log.path)
    })?;
    let stretch =
        read(&log.path, &counters(&subject.program, subject.counter)?, hypervisor_addresses(options.arch))?;
    drop(log);
    let operations = operations(options, &said, &stretch);
    let symbols = Loader::new(&elf).map_err(|error| anyhow::anyhow!("no symbols: {error}"))?;
    print(options, &stretch, operations, &symbols);
    Ok(())
}

/// What can be told before anything is built.
fn check(options: &ProfileOptions) -> Result<()> {
    let debian = options.guest == BenchGuest::Debian;
    ensure!(!debian || options.arch == Arch::X86_64, "--guest debian is there for x86_64 only");
    let rows = if debian { bench::linux_rows() } else { bench::rows(options.arch) };
    ensure!(
        rows.contains(&options.row.as_str()),
        "there is no row {:?}; there are {}",
        options.row,
        rows.join(", ")
    );
    Ok(())
}

/// The emulator's log: hundreds of megabytes, which are there for as long as this value lives, however it ends.
struct Trace {
    path: PathBuf,
    /// Two calls don't write the same.
    _lock: File,
}

impl Trace {
    fn new(path: PathBuf) -> Result<Trace> {
        let lock = workspace::lock(&path.with_extension("lock"), || {
            eprintln!("waiting for another call that writes {} ...", workspace::shown(&path));
        })?;
        Ok(Trace { path, _lock: lock })
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // There may be none yet.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What is profiled.
struct Subject {
    machine: Machine,
    /// The program that measures, with its symbols.
    program: PathBuf,
    /// A part of the name of its function that reads the counter.
    counter: &'static str,
}

impl Subject {
    fn new(options: &ProfileOptions, artefacts: &Artefacts) -> Result<Subject> {
        if options.guest == BenchGuest::Debian {
            let machine =
                bench::linux_machine(options.arch, artefacts, &format!("test=profile row={}", options.row))?;
            return Ok(Subject {
                machine,
                program: workloads::needed(options.arch)?.workload,
                counter: bench::COUNTER,
            });
        }
        let words = format!("profile={} then=reboot", options.row);
        let machine = bench::machine(options.arch, artefacts.hypervisor.clone(), artefacts, &words, "");
        Ok(Subject { machine, program: artefacts.guest.clone(), counter: "7counter" })
    }
}

/// How many operations a stretch holds: as the program says, or else by the row and how often the hypervisor was entered.
fn operations(options: &ProfileOptions, said: &str, stretch: &Stretch) -> u64 {
    let told = said.lines().find_map(|line| line.split_once("PROFILE operations ")?.1.trim().parse().ok());
    told.unwrap_or_else(|| bench::operations_of(options.arch, &options.row).max(1) * stretch.entries.max(1))
}

/// Runs the machine, and returns what it said; the emulator's log goes to `log`.
fn trace(machine: &Command, log: &Path) -> Result<String> {
    let mut command = Command::new(machine.get_program());
    // The serial line shares the terminal with the emulator's prompt.
    command.args(machine.get_args().map(|word| if word == "stdio" { "mon:stdio".as_ref() } else { word }));
    command.arg("-D").arg(log);
    if let Some(folder) = machine.get_current_dir() {
        command.current_dir(folder);
    }
    let begin = format!("{SWITCH}singlestep on\nlog exec,nochain\n{SWITCH}g\r");
    let session = Session {
        limit: Some(Duration::from_secs(TIME_LIMIT)),
        log: qemu::log_file(&workspace::logs()?, "profile"),
        echo: false,
        keyboard: Keyboard::Script([script::Step::after("PROFILE ready\r\n", begin)].into_iter().collect()),
        until: vec!["PROFILE end".into()],
    };
    let outcome = qemu::run(&mut command, session)?;
    ensure!(
        outcome.text.contains("PROFILE end"),
        "the row was not measured; the machine's last lines:\n{}",
        outcome.last_lines(8)
    );
    ensure!(outcome.text.contains("BENCH "), "there is no such row");
    if let Some(line) = outcome.text.lines().find(|line| line.contains("BENCH ")) {
        println!("{line}");
    }
    Ok(outcome.text)
}

/// Addresses of the guest's functions that read the counter: a stretch begins and ends there.
fn counters(guest: &Path, counter: &str) -> Result<Vec<u64>> {
    let content = std::fs::read(guest).with_context(|| format!("cannot read {}", guest.display()))?;
    let file = object::File::parse(&*content)?;
    let named = file.symbols().filter(|symbol| symbol.name().is_ok_and(|name| name.contains(counter)));
    let addresses: Vec<u64> = named.map(|symbol| symbol.address()).collect();
    ensure!(!addresses.is_empty(), "{} has no function that reads the counter", guest.display());
    Ok(addresses)
}

/// Where the hypervisor's own code is linked and runs.
fn hypervisor_addresses(arch: Arch) -> std::ops::Range<u64> {
    match arch {
        Arch::Aarch64 => 0x4000_0000_0000..0x4000_4000_0000,
        Arch::X86_64 => 0xffff_82d0_0000_0000..0xffff_82e0_0000_0000,
    }
}

/// What was executed in one stretch.
#[derive(Default)]
struct Stretch {
    hypervisor: Counts,
    guest: u64,
    /// How often the hypervisor was entered.
    entries: u64,
    inside: bool,
}

impl Stretch {
    fn total(&self) -> u64 {
        self.hypervisor.values().sum()
    }

    fn count(&mut self, address: u64, own: bool) {
        if own {
            *self.hypervisor.entry(address).or_default() += 1;
            self.entries += u64::from(!self.inside);
        } else {
            self.guest += 1;
        }
        self.inside = own;
    }
}

/// Reads the emulator's log: the stretch in which the hypervisor did something, and the least of it.
fn read(log: &Path, counters: &[u64], own: std::ops::Range<u64>) -> Result<Stretch> {
    let file = File::open(log).with_context(|| format!("cannot read {}", log.display()))?;
    let (mut best, mut current): (Option<Stretch>, Option<Stretch>) = (None, None);
    for line in BufReader::new(file).lines() {
        let Some(address) = executed(&line?) else { continue };
        if counters.contains(&address) {
            let finished = current.take();
            match finished {
                None => current = Some(Stretch::default()),
                Some(stretch) if stretch.total() > 0 => {
                    if best.as_ref().is_none_or(|best| stretch.total() < best.total()) {
                        best = Some(stretch);
                    }
                }
                Some(_) => {}
            }
        } else if let Some(stretch) = &mut current {
            stretch.count(address, own.contains(&address));
        }
    }
    best.context("the hypervisor executed nothing in the measured stretch")
}

/// The address in a line `Trace 0: 0x7f.. [BASE/ADDRESS/FLAGS/FLAGS] NAME`.
fn executed(line: &str) -> Option<u64> {
    let rest = line.strip_prefix("Trace ")?.split_once('[')?.1;
    u64::from_str_radix(rest.split('/').nth(1)?, 16).ok()
}

/// Prints the program's symbols, its functions by their own instructions, and by those of all that was inlined into them.
fn print(options: &ProfileOptions, stretch: &Stretch, operations: u64, symbols: &Loader) {
    let [mut own, mut whole, mut lines, mut symbol]: [HashMap<String, u64>; 4] = Default::default();
    for (&address, &count) in &stretch.hypervisor {
        let frames = frames(symbols, address);
        let first = frames.first().cloned().unwrap_or_else(|| (format!("{address:#x}"), String::new()));
        let last = frames.last().unwrap_or(&first);
        *symbol.entry(last.0.clone()).or_insert(0) += count;
        *own.entry(first.0.clone()).or_insert(0) += count;
        *lines.entry(format!("{}  {}", first.1, first.0)).or_insert(0) += count;
        let mut names: Vec<String> = frames.into_iter().map(|frame| frame.0).collect();
        names.sort();
        names.dedup();
        names.into_iter().for_each(|name| *whole.entry(name).or_insert(0) += count);
    }
    println!(
        "{}: {} hypervisor instructions, {} of the guest, {} entries, {} operations: {:.1} an operation",
        options.row,
        stretch.total(),
        stretch.guest,
        stretch.entries,
        operations,
        stretch.total() as f64 / operations as f64
    );
    let tables = [
        ("by symbol, each with what is inlined there", symbol),
        ("of the function itself", own),
        ("with what is inlined into it", whole),
        ("by line", lines),
    ];
    for (title, counts) in tables {
        println!("\ninstructions an operation, {title}:");
        let mut sorted: Vec<(String, u64)> = counts.into_iter().collect();
        sorted.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        for (name, count) in sorted.into_iter().take(options.top) {
            println!("{:>10.1}  {name}", count as f64 / operations as f64);
        }
    }
}

/// The functions at `address`, innermost first, with the line in the innermost.
fn frames(symbols: &Loader, address: u64) -> Vec<(String, String)> {
    let mut found = Vec::new();
    if let Ok(mut frames) = symbols.find_frames(address) {
        while let Ok(Some(frame)) = frames.next() {
            let name = frame
                .function
                .as_ref()
                .and_then(|function| function.demangle().ok().map(|name| short(&name)));
            let line = frame.location.map(|place| {
                format!("{}:{}", tail(place.file.unwrap_or_default()), place.line.unwrap_or_default())
            });
            found.push((name.unwrap_or_else(|| "?".into()), line.unwrap_or_default()));
        }
    }
    if found.is_empty()
        && let Some(symbol) = symbols.find_symbol(address)
    {
        found.push((symbol.to_owned(), String::new()));
    }
    found
}

/// A path's last two parts.
fn tail(path: &str) -> String {
    let parts: PathBuf = Path::new(path).iter().rev().take(2).collect::<Vec<_>>().into_iter().rev().collect();
    parts.display().to_string()
}

/// A function's name without the hash at its end.
fn short(name: &str) -> String {
    match name.rsplit_once("::h") {
        Some((head, hash)) if hash.len() == 16 => head.to_owned(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn a_trace_goes_when_profiling_fails() {
        let path = workspace::tests::scratch("trace").join("a.trace");
        let failed: Result<()> = Trace::new(path.clone()).and_then(|trace| {
            std::fs::write(&trace.path, "Trace 0")?;
            anyhow::bail!("no such row")
        });
        assert!(failed.is_err() && !path.exists());
        drop(Trace::new(path).unwrap());
    }

    #[test]
    fn a_row_that_is_not_there_is_named_before_anything_is_built() {
        let options = |line: &str| {
            let words = ["xtask", "profile"].into_iter().chain(line.split(' '));
            match Cli::parse_from(words).command {
                Command::Profile(options) => options,
                _ => panic!("another command"),
            }
        };
        for row in ["batch-map", "page-fault-iretq", "batch-map --arch aarch64", "fork-exit --guest debian"] {
            assert!(check(&options(row)).is_ok(), "{row}");
        }
        for row in [
            "nosuch",
            "page-fault-iretq --arch aarch64",
            "fork-exit",
            "fork-exit --guest debian --arch aarch64",
            // Which no program counts.
            "start --guest debian",
        ] {
            assert!(check(&options(row)).is_err(), "{row}");
        }
    }

    #[test]
    fn addresses_are_read_from_the_emulators_log() {
        let line = "Trace 0: 0x7f2a5c0 [0000000000000000/ffff82d040201abc/0040c0b7/ff000201] name";
        assert_eq!(executed(line), Some(0xffff_82d0_4020_1abc));
        assert_eq!(executed("PROFILE ready"), None);
    }

    #[test]
    fn a_stretch_counts_entries_and_both_sides() {
        let mut stretch = Stretch::default();
        for (address, own) in [(1, false), (2, true), (3, true), (1, false), (2, true)] {
            stretch.count(address, own);
        }
        assert_eq!((stretch.total(), stretch.guest, stretch.entries), (3, 2, 2));
    }
}
