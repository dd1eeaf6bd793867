//! A stock kernel's own operations: natively, on Debian's Xen and on Penumbra, side by side.
//!
//! The same two files on the same emulated computer; the program that counts is the ramdisk's `workload bench`. What the hypervisor costs is
//! what a row takes above the native figure. Of a paravirtual kernel (x86-64) that is compared with what Xen adds, and may be half of it. A kernel in
//! stage-2 mode (AArch64) has the processor mostly for itself: a row may take a fiftieth more than natively, and less than on Xen.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::machines::{MEMORY, Reading, Readings, readings, run_until};
use super::report::grouped;
use super::start;
use crate::boot::{Kind, Machine, Module};
use crate::cli::Arch;
use crate::debian::{self, Debian};
use crate::image::Artefacts;
use crate::progress::Step;
use crate::workloads;
use crate::xen;

/// From the machine's reset to the ramdisk's programs, firmware included, which is the same for both: what is executed ([`super::start`]). It may
/// take what it takes on Xen on x86-64, where the kernel natively has a boot loader of its own, which unpacks it, so that there is nothing to compare; on
/// AArch64 a twentieth more than natively.
const START: Row = ("start", "from reset to the ramdisk's programs", None);

/// A row's name in the guest's output, what it is, and how many instructions it may take whatever Xen does.
type Row = (&'static str, &'static str, Option<u64>);
const ROWS: [Row; 8] = [
    ("system-call", "system call", Some(672)),
    ("fork-exit", "fork + exit", Some(384_000)),
    ("fork-exec", "fork + exec", Some(1_213_000)),
    ("first-touch", "mmap + first touch, per page", Some(6_750)),
    ("mprotect", "mprotect, per page", Some(730)),
    ("write-after-mprotect", "mprotect back + write, per page", Some(1_465)),
    ("copy-on-write-fault", "write fault with a copy, per page", None),
    ("pipe-switch", "pipe round trip, per switch", Some(8_050)),
];

/// The names of the rows that a program counts.
pub fn rows() -> Vec<&'static str> {
    ROWS.iter().map(|(name, ..)| *name).collect()
}

/// The parts of the native figure by which a row in stage-2 mode may exceed it, one of so many: usually, and of the start.
const STAGE_2: (u64, u64) = (50, 20);

/// Memory of the kernel, in MiB.
const GUEST: u64 = 512;
/// What the guest is told, besides its console and its task. Kernels are measured at their own addresses.
const WORDS: &str = "nokaslr then=reboot";
/// The task.
const BENCH: &str = "test=bench";
/// The guest's last line.
const END: &str = "BENCH end";

/// One row.
#[derive(Clone)]
pub struct Line {
    arch: Arch,
    name: &'static str,
    what: &'static str,
    limit: Option<u64>,
    native: Option<u64>,
    xen: Option<u64>,
    penumbra: Option<u64>,
}

impl Line {
    /// A row before anything is measured.
    fn new(arch: Arch, (name, what, limit): Row) -> Line {
        // The limits are a paravirtual kernel's.
        let limit = limit.filter(|_| arch == Arch::X86_64);
        Line { arch, name, what, limit, native: None, xen: None, penumbra: None }
    }

    fn is_start(&self) -> bool {
        self.name == START.0
    }

    /// Whether it is the start of a kernel that is natively started in another way.
    fn starts_otherwise(&self) -> bool {
        self.is_start() && self.arch == Arch::X86_64
    }

    /// At most so many instructions: what is half of what Xen adds to the native figure, or the limit where that is less or nothing was measured. In stage-2 mode
    /// what is a little more than natively, and less than on Xen.
    fn target(&self) -> Option<u64> {
        if self.arch == Arch::Aarch64 {
            let part = if self.is_start() { STAGE_2.1 } else { STAGE_2.0 };
            let native = self.native.map(|native| native + native / part);
            // What Xen adds nothing to can't take less than that.
            let below_xen = |(native, xen): (u64, u64)| xen.saturating_sub(1).max(native);
            let xen = self.native.zip(self.xen).filter(|_| !self.is_start()).map(below_xen);
            return [native, xen].into_iter().flatten().min();
        }
        if self.is_start() {
            return self.xen;
        }
        let half = self.native.zip(self.xen).map(|(native, xen)| native + xen.saturating_sub(native) / 2);
        [half, self.limit].into_iter().flatten().min()
    }

    /// What is added, as a part of what Xen adds; of the start, all of it.
    fn ratio(&self) -> Option<f64> {
        let native = if self.starts_otherwise() { 0 } else { self.native? };
        let (xen, ours) = (self.xen?, self.penumbra?);
        (xen > native).then(|| (ours as f64 - native as f64) / (xen - native) as f64)
    }

    /// More than it may take, or it isn't known: what wasn't measured proves nothing.
    fn misses(&self) -> bool {
        let compared = self.xen.is_some() && (self.starts_otherwise() || self.native.is_some());
        !compared || self.penumbra.zip(self.target()).is_none_or(|(ours, target)| ours > target)
    }

    fn cells(&self) -> [String; 7] {
        let number = |value: Option<u64>| value.map(grouped).unwrap_or_else(|| "not measured".into());
        [
            self.what.to_owned(),
            if self.starts_otherwise() { String::new() } else { number(self.native) },
            number(self.xen),
            number(self.penumbra),
            self.target().map(grouped).unwrap_or_default(),
            self.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            if self.misses() { "missed".into() } else { String::new() },
        ]
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "what": self.what, "native": self.native, "xen": self.xen,
            "penumbra": self.penumbra, "target": self.target(), "added": self.ratio(), "missed": self.misses(),
        })
    }
}

/// Runs the three, and puts their rows beside each other.
pub fn measure(arch: Arch, artefacts: &Artefacts) -> Result<Vec<Line>> {
    let guest = debian::ready(arch)?;
    let (native, theirs) = (natively(arch, &guest), on_xen(arch, &guest)?);
    let ours = ours(arch, artefacts, BENCH)?;
    let program = workloads::needed(arch)?.workload;
    let started = |what: &str, machine, name: &str| {
        let name = format!("{name}-{arch}");
        Step::around(format!("counting {what}'s start"), |_| start::executed(machine, &program, &name))
    };
    let mut start = Line::new(arch, START);
    if !start.starts_otherwise() {
        start.native = Some(started("the kernel", &native, "native")?);
    }
    start.xen = Some(started("Xen", &theirs, "xen")?);
    start.penumbra = there(started("Penumbra", &ours, "penumbra"), arch)?;
    let native = Step::around("counting natively", |_| run(&native, "debian-native"))?;
    let xen = Step::around("counting on Debian's Xen 4.17", |_| run(&theirs, "debian-xen"))?;
    let penumbra = Step::around("counting on Penumbra", |_| run(&ours, "debian-penumbra"));
    let penumbra = there(penumbra, arch)?.unwrap_or_default();
    Ok([vec![start], lines(arch, &native, &xen, &penumbra)].concat())
}

/// What was found, or that there is nothing to be found: while AArch64's stage-2 mode is being built, the other two can be counted without it.
fn there<T>(found: Result<T>, arch: Arch) -> Result<Option<T>> {
    match found {
        Err(error) if arch == Arch::Aarch64 => {
            eprintln!("nothing can be counted on Penumbra: {error:#}");
            Ok(None)
        }
        found => found.map(Some),
    }
}

/// The kernel with nothing below it.
fn natively(arch: Arch, guest: &Debian) -> Machine {
    let console = match arch {
        Arch::Aarch64 => debian::UART,
        Arch::X86_64 => "console=ttyS0",
    };
    let mut native = machine(arch, guest, console, BENCH);
    native.hypervisor = guest.kernel.clone();
    native.words = native.modules.remove(0).words;
    Machine { bare: true, memory: GUEST, ..native }
}

/// The kernel on Debian's Xen.
fn on_xen(arch: Arch, guest: &Debian) -> Result<Machine> {
    let mitigations = if arch == Arch::X86_64 { " spec-ctrl=no" } else { "" };
    let words = format!("{}dom0_mem={GUEST}M{mitigations}", xen::console_words(arch));
    Ok(Machine { hypervisor: xen::hypervisor(arch)?, words, ..machine(arch, guest, debian::CONSOLE, BENCH) })
}

/// Penumbra with this guest, which is told its task.
pub fn ours(arch: Arch, artefacts: &Artefacts, task: &str) -> Result<Machine> {
    let console = match arch {
        Arch::Aarch64 => debian::UART,
        Arch::X86_64 => debian::CONSOLE,
    };
    let machine = machine(arch, &debian::ready(arch)?, console, task);
    Ok(Machine { hypervisor: artefacts.hypervisor.clone(), ..machine })
}

fn lines(arch: Arch, native: &Readings, xen: &Readings, penumbra: &Readings) -> Vec<Line> {
    let get = |readings: &Readings, name| match readings.get(name) {
        Some(Reading::Count(count)) => Some(*count),
        _ => None,
    };
    let line = |row: Row| Line {
        native: get(native, row.0),
        xen: get(xen, row.0),
        penumbra: get(penumbra, row.0),
        ..Line::new(arch, row)
    };
    ROWS.into_iter().map(line).collect()
}

/// A machine on which a hypervisor, still to be named, boots the guest.
fn machine(arch: Arch, guest: &Debian, console: &str, task: &str) -> Machine {
    let ramdisk = Module { file: guest.ramdisk.clone(), words: String::new(), kind: Kind::Ramdisk };
    Machine {
        arch,
        memory: MEMORY,
        gic: 3,
        cpu: None,
        cpus: 1,
        bare: false,
        icount: true,
        hypervisor: Default::default(),
        words: format!("{}dom0_mem={GUEST}M", arch.console_words()),
        modules: vec![Module::kernel(&guest.kernel, format!("{console} {WORDS} {task}")), ramdisk],
    }
}

/// A machine that doesn't come to the end is an error where `measure` can't do without it.
fn run(machine: &Machine, name: &str) -> Result<Readings> {
    let outcome = run_until(machine, name, vec![END.into()])?;
    let ended = outcome.text.lines().any(|line| line.trim_end().ends_with(END));
    ensure!(
        ended,
        "the benchmark did not come to its end; the machine's last lines:\n{}",
        outcome.last_lines(8)
    );
    Ok(readings(&outcome.text))
}

const HEADINGS: [&str; 7] = ["instructions", "native", "Xen 4.17", "Penumbra", "target", "of Xen's", ""];

/// Prints the table.
pub fn print(lines: &[Line]) {
    println!("\na Debian kernel's own operations");
    println!("{}", text_line(&HEADINGS.map(str::to_owned)));
    lines.iter().for_each(|line| println!("{}", text_line(&line.cells())));
    println!("{} of {} rows miss their target", missed(lines).len(), lines.len());
}

fn text_line([what, native, xen, ours, target, ratio, missed]: &[String; 7]) -> String {
    format!("{what:<36} {native:>12} {xen:>12} {ours:>12} {target:>12} {ratio:>9} {missed}")
        .trim_end()
        .to_owned()
}

/// The table in docs/measurements.md.
pub fn markdown(lines: &[Line]) -> String {
    let mut text = format!("| {} |\n|---|--:|--:|--:|--:|--:|---|\n", HEADINGS.join(" | "));
    for line in lines {
        let _ = writeln!(text, "| {} |", line.cells().join(" | "));
    }
    text
}

/// The table for programs.
pub fn json(lines: &[Line]) -> Value {
    lines.iter().map(Line::json).collect()
}

/// Names of the rows that miss their target.
pub fn missed(lines: &[Line]) -> Vec<&'static str> {
    lines.iter().filter(|line| line.misses()).map(|line| line.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(native: u64, xen: u64, ours: Option<u64>) -> Line {
        Line {
            native: Some(native),
            xen: Some(xen),
            penumbra: ours,
            ..Line::new(Arch::X86_64, ("x", "x", None))
        }
    }

    #[test]
    fn half_of_what_xen_adds_is_allowed() {
        assert_eq!(line(339, 1005, None).target(), Some(672));
        assert!(!line(339, 1005, Some(672)).misses());
        assert!(line(339, 1005, Some(673)).misses());
        assert!(line(339, 1005, None).misses(), "what was not measured misses");
        assert_eq!(line(300, 500, Some(350)).ratio(), Some(0.25));
        assert_eq!(line(500, 500, Some(350)).ratio(), None);
    }

    #[test]
    fn a_limit_holds_where_it_is_less() {
        let limited = |limit| Line { limit: Some(limit), ..line(339, 1005, Some(600)) };
        assert_eq!((limited(599).target(), limited(599).misses()), (Some(599), true));
        assert_eq!((limited(700).target(), limited(700).misses()), (Some(672), false));
    }

    #[test]
    fn what_was_not_measured_misses() {
        let limited = Line { limit: Some(700), ..line(339, 1005, Some(600)) };
        assert!(!limited.misses());
        let alone = Line { native: None, ..limited.clone() };
        assert_eq!(
            (alone.target(), alone.misses()),
            (Some(700), true),
            "the limit stands, but nothing is compared"
        );
        assert!(Line { xen: None, ..limited.clone() }.misses());
        assert!(Line { penumbra: None, ..limited }.misses());
        assert!(Line::new(Arch::X86_64, ("x", "x", None)).misses());
    }

    #[test]
    fn the_start_is_compared_with_xens_alone() {
        let start = |xen, ours| Line { xen, penumbra: ours, ..Line::new(Arch::X86_64, START) };
        assert!(!start(Some(100), Some(100)).misses() && start(Some(100), Some(101)).misses());
        assert!(start(None, Some(1)).misses() && start(Some(1), None).misses());
        assert_eq!(start(Some(100), Some(75)).ratio(), Some(0.75));
        assert!(!rows().contains(&START.0), "no program counts it");
    }

    #[test]
    fn in_stage_2_mode_little_more_than_natively_is_allowed_and_less_than_on_xen() {
        let stage_2 =
            |row, native, xen| Line { native: Some(native), xen: Some(xen), ..Line::new(Arch::Aarch64, row) };
        let row = ("x", "x", Some(1));
        assert_eq!(stage_2(row, 1000, 2000).target(), Some(1020), "the limit is another kernel's");
        assert_eq!(stage_2(row, 1000, 1010).target(), Some(1009));
        assert_eq!(stage_2(row, 76, 76).target(), Some(76), "there is nothing below the native figure");
        assert_eq!(stage_2(START, 1000, 1010).target(), Some(1050));
        let ours = |count| Line { penumbra: Some(count), ..stage_2(row, 1000, 2000) };
        assert!(!ours(1020).misses() && ours(1021).misses());
        assert!(Line { native: None, ..ours(1) }.misses() && Line { xen: None, ..ours(1) }.misses());
    }

    #[test]
    fn rows_are_found_by_name() {
        let said = |count| readings(&format!("(d0) BENCH system-call {count}\nBENCH mprotect failed: x\n"));
        let lines = lines(Arch::X86_64, &said(1), &said(3), &said(2));
        assert_eq!((lines[0].native, lines[0].xen, lines[0].penumbra), (Some(1), Some(3), Some(2)));
        assert_eq!(lines[4].native, None);
        assert_eq!(missed(&lines).len(), rows().len() - 1, "all that wasn't said");
    }
}
