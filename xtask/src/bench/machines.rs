//! Running the benchmark, on Penumbra and on what it is compared with.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use machine_tests::verdict;

use crate::boot::{Machine, Module};
use crate::cli::Arch;
use crate::image::Artefacts;
use crate::progress::Step;
use crate::qemu::{self, Keyboard, Outcome, Session};
use crate::workspace;
use crate::xen;

/// The machine's memory, in MiB.
pub const MEMORY: u64 = 1024;
/// In seconds. Counting instructions is slower than running them, and Xen's boot is long.
const TIME_LIMIT: u64 = 600;
/// What the guest is told.
const WORDS: &str = "bench then=reboot";
/// The guest's last line.
const END: &str = "BENCH end";

/// One row's outcome.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reading {
    /// Instructions.
    Count(u64),
    /// The hypervisor doesn't do it; its error.
    Absent(String),
}

/// Outcomes by the rows' names.
pub type Readings = HashMap<String, Reading>;

/// What was measured on one architecture.
#[derive(Default)]
pub struct Measured {
    /// On Penumbra.
    pub penumbra: Readings,
    /// On Debian's Xen, where it has direct mode and can be had.
    pub xen: Option<Readings>,
    /// By the same kernel with nothing below it (aarch64).
    pub bare: Option<Readings>,
}

/// Runs every machine of one architecture.
pub fn measure(arch: Arch, artefacts: &Artefacts) -> Result<Measured> {
    let ours = machine(arch, artefacts.hypervisor.clone(), artefacts, WORDS, "");
    let penumbra = Step::around(format!("counting {arch}'s operations"), |_| run(&ours, "penumbra"))?;
    let xen = if arch == Arch::X86_64 && xen::obstacle(arch).is_none() {
        let reference = machine(arch, xen::hypervisor(arch)?, artefacts, WORDS, " spec-ctrl=no");
        Some(Step::around("counting the same on Debian's Xen 4.17", |_| run(&reference, "xen"))?)
    } else {
        None
    };
    let bare = (arch == Arch::Aarch64).then(|| {
        let alone = Machine { bare: true, words: WORDS.into(), modules: Vec::new(), ..ours };
        let image = workspace::artefacts()?.join("guest-el1.img");
        let alone = Machine { hypervisor: image, ..alone };
        Step::around("counting the kernel's own operations with nothing below it", |_| run(&alone, "bare"))
    });
    Ok(Measured { penumbra, xen, bare: bare.transpose()? })
}

/// A machine whose guest does what it is told and ends; by a reset, since Xen only halts when it is asked to switch off.
pub fn machine(arch: Arch, hypervisor: PathBuf, artefacts: &Artefacts, guest: &str, words: &str) -> Machine {
    Machine {
        arch,
        memory: MEMORY,
        gic: 3,
        cpu: None,
        cpus: 1,
        bare: false,
        icount: true,
        hypervisor,
        words: format!("{}dom0_mem=256M{words}", arch.console_words()),
        modules: vec![Module::kernel(&artefacts.guest, guest)],
    }
}

fn run(machine: &Machine, name: &str) -> Result<Readings> {
    let outcome = run_until(machine, name, vec![END.into()])?;
    ensure!(
        outcome.text.lines().any(|line| line.trim_end().ends_with(END)),
        "the benchmark did not come to its end; the machine's last lines:\n{}",
        outcome.last_lines(8)
    );
    Ok(readings(&outcome.text))
}

/// Runs a machine until it says one of `words`, or stops.
pub fn run_until(machine: &Machine, name: &str, words: Vec<String>) -> Result<Outcome> {
    let session = Session {
        limit: Some(Duration::from_secs(TIME_LIMIT)),
        log: qemu::log_file(&workspace::logs()?, &format!("bench-{name}-{}", machine.arch)),
        echo: false,
        keyboard: Keyboard::Closed,
        until: words,
    };
    qemu::run(&mut machine.command()?, session)
}

/// All that a guest's output tells.
pub fn readings(text: &str) -> Readings {
    text.lines().filter_map(read).collect()
}

/// Reads `BENCH name count` or `BENCH name absent ERRNO`, with or without the speaker in front: Xen names none.
fn read(line: &str) -> Option<(String, Reading)> {
    let line = line.strip_prefix(verdict::CONTROL).unwrap_or(line);
    let words: Vec<&str> = line.strip_prefix("BENCH ")?.split_ascii_whitespace().collect();
    let reading = match words.as_slice() {
        [_, "absent", error] => Reading::Absent((*error).to_owned()),
        [_, count] => Reading::Count(count.parse().ok()?),
        _ => return None,
    };
    Some((words[0].to_owned(), reading))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_lines_are_read() {
        let count = |name: &str, count| Some((name.to_owned(), Reading::Count(count)));
        assert_eq!(read("(d0) BENCH yield 12"), count("yield", 12));
        assert_eq!(read("BENCH pin-l1 104637\r"), count("pin-l1", 104_637));
        let absent = Some(("event".to_owned(), Reading::Absent("ENOSYS".to_owned())));
        assert_eq!(read("(d0) BENCH event absent ENOSYS"), absent);
        for line in ["(d1) BENCH yield 12", "(d0) BENCH end", "BENCH yield fast", "BENCH a absent"] {
            assert_eq!(read(line), None, "{line}");
        }
    }
}
