//! What the hypervisor weighs, and what it takes to start.

use anyhow::{Result, bail};
use hyp_core::frame::FrameRecord;
use machine_tests::{stretch, verdict};

use super::machines::{MEMORY, machine, run_until};
use crate::boot::{Machine, Module};
use crate::cli::Arch;
use crate::image::{self, Artefacts};
use crate::progress::Step;

/// A figure that nothing is compared with, except perhaps an aim.
pub struct Fact {
    /// Of one architecture, or of both.
    pub arch: Option<Arch>,
    /// What it is.
    pub what: String,
    /// Its value.
    pub value: u64,
    /// What is wanted, in words; empty where nothing is.
    pub aim: String,
}

/// The frame table's cost.
pub fn bytes_per_frame() -> Fact {
    let value = size_of::<FrameRecord>() as u64;
    Fact { arch: None, what: "frame table, bytes a frame".into(), value, aim: "at most 16".into() }
}

/// The image's size, and the boot's length.
pub fn facts(arch: Arch, artefacts: &Artefacts) -> Result<Vec<Fact>> {
    let fact = |what: String, value, aim: &str| Fact {
        arch: Some(arch),
        what: format!("{arch}: {what}"),
        value,
        aim: aim.into(),
    };
    let size = image::size(&artefacts.hypervisor)?;
    let boot = Step::around(format!("counting {arch}'s boot instructions"), |_| boot(arch, artefacts))?;
    let start = format!("instructions from entry to the first domain's, {MEMORY} MiB");
    let stretches =
        Step::around(format!("measuring {arch}'s longest stretches"), |_| stretches(arch, artefacts))?;
    let bound = format!("at most {}", stretch::LONGEST);
    let stretches = stretches.into_iter().map(|(name, longest)| {
        fact(format!("longest stretch without a preemption point, {name}"), longest, &bound)
    });
    let mut facts = vec![
        fact("hypervisor image, bytes".into(), size, "under 524288"),
        fact(start, boot.instructions, "at most 20000000"),
        fact("of scrubbing, not counted above".into(), boot.scrubbing, ""),
    ];
    facts.extend(stretches);
    Ok(facts)
}

/// The longest operations, among them the end of a domain of 4 GiB: instructions between two preemption points, by name.
fn stretches(arch: Arch, artefacts: &Artefacts) -> Result<Vec<(String, u64)>> {
    let words = "stretches then=reboot";
    let mut machine = machine(arch, artefacts.hypervisor.clone(), artefacts, words, "");
    machine.memory = 6 * MEMORY;
    machine.modules.push(Module::kernel(&artefacts.guest, "domain=victim memory=4096M"));
    let outcome = run_until(&machine, "stretches", vec!["STRETCH end".into()])?;
    let stretches = stretch::stretches(&outcome.text).map(|(name, longest)| (name.to_owned(), longest));
    Ok(stretches.collect())
}

/// What the hypervisor says of its boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Boot {
    instructions: u64,
    scrubbing: u64,
}

/// Boots the control domain and nothing more, instructions counted.
fn boot(arch: Arch, artefacts: &Artefacts) -> Result<Boot> {
    let machine = machine(arch, artefacts.hypervisor.clone(), artefacts, "then=poweroff", "");
    let machine = Machine { words: "dom0_mem=256M".into(), ..machine };
    let outcome = run_until(&machine, "boot", Vec::new())?;
    match verdict::lines_of(&outcome.text, verdict::HYPERVISOR).find_map(read) {
        Some(boot) => Ok(boot),
        None => bail!("the hypervisor said nothing of its boot; its last lines:\n{}", outcome.last_lines(8)),
    }
}

/// Reads `boot: N UNIT from entry to the first domain (scrubbing apart: M)`. The hypervisor names its clock's unit;
/// with instructions counted, one unit is one instruction on either machine.
fn read(line: &str) -> Option<Boot> {
    let (count, rest) = line.strip_prefix("boot: ")?.split_once(" from entry to the first domain")?;
    let scrubbing = rest.trim().strip_prefix("(scrubbing apart: ")?.strip_suffix(')')?;
    Some(Boot { instructions: count.split(' ').next()?.parse().ok()?, scrubbing: scrubbing.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_line_is_read() {
        let line = "boot: 1234567 instructions from entry to the first domain (scrubbing apart: 89)";
        assert_eq!(read(line), Some(Boot { instructions: 1_234_567, scrubbing: 89 }));
        assert_eq!(
            read("boot: many instructions from entry to the first domain (scrubbing apart: 89)"),
            None
        );
        assert_eq!(read("boot: 5 instructions from entry to the first domain"), None);
    }
}
