//! `cargo xtask bench`: sizes, and instructions by count. Figures are reported, never judged: a test that depends on a
//! figure would fail for reasons that nobody broke.
//!
//! Instructions are counted by the emulator (`-icount shift=0,sleep=off`: one instruction is one nanosecond of guest
//! time), so the figures repeat to the digit, whatever else this computer does.

use std::time::Duration;

use anyhow::{Result, bail};
use hyp_core::frame::FrameRecord;
use machine_tests::verdict;

use crate::boot::{Machine, Module};
use crate::cli::{Arch, BenchOptions, Profile};
use crate::image::{self, Artefacts};
use crate::progress::Step;
use crate::qemu::{self, Keyboard, Session};
use crate::setup;
use crate::workspace;

/// The machine's memory, in MiB.
const MEMORY: u64 = 1024;
/// In seconds. Counting instructions is slower than running them.
const TIME_LIMIT: u64 = 300;

/// `cargo xtask bench`.
pub fn bench(options: &BenchOptions) -> Result<()> {
    let arches = Arch::chosen(options.arch);
    setup::emulators(&arches)?;
    let mut rows = vec![row("frame table, bytes a frame", size_of::<FrameRecord>() as u64, "at most 16")];
    for arch in arches {
        let artefacts = image::artefacts(arch, Profile::Release)?;
        rows.push(row(
            &format!("{arch}: hypervisor image, bytes"),
            image::size(&artefacts.hypervisor)?,
            "under 524288",
        ));
        let boot = Step::around(format!("counting {arch}'s boot instructions"), |_| boot(arch, &artefacts))?;
        let name = format!("{arch}: instructions from entry to the control domain's first, {MEMORY} MiB");
        rows.push(row(&name, boot.instructions, "at most 20000000"));
        rows.push(row(&format!("{arch}: of scrubbing, not counted above"), boot.scrubbing, ""));
    }
    println!("\n{}", rows.join("\n"));
    Ok(())
}

fn row(name: &str, value: u64, aim: &str) -> String {
    let aim = if aim.is_empty() { String::new() } else { format!("   ({aim})") };
    format!("{name:<72} {value:>12}{aim}")
}

/// What the hypervisor says of its boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Boot {
    instructions: u64,
    scrubbing: u64,
}

/// Boots the control domain and nothing more, instructions counted.
fn boot(arch: Arch, artefacts: &Artefacts) -> Result<Boot> {
    let machine = Machine {
        arch,
        memory: MEMORY,
        gic: 3,
        cpu: None,
        bare: false,
        icount: true,
        hypervisor: artefacts.hypervisor.clone(),
        words: "dom0_mem=256M".into(),
        modules: vec![Module::kernel(&artefacts.guest, "then=poweroff")],
    };
    let session = Session {
        limit: Some(Duration::from_secs(TIME_LIMIT)),
        log: qemu::log_file(&workspace::logs()?, &format!("bench-boot-{arch}")),
        echo: false,
        keyboard: Keyboard::Closed,
        until: verdict::STOPPED.map(str::to_owned).to_vec(),
    };
    let outcome = qemu::run(&mut machine.command()?, session)?;
    match verdict::lines_of(&outcome.text, verdict::HYPERVISOR).find_map(read) {
        Some(boot) => Ok(boot),
        None => bail!("the hypervisor said nothing of its boot; its last lines:\n{}", outcome.last_lines(8)),
    }
}

/// Reads `boot: N UNIT from entry to the control domain (scrubbing apart: M)`. The hypervisor names its clock's unit;
/// with instructions counted, one unit is one instruction on either machine.
fn read(line: &str) -> Option<Boot> {
    let (count, rest) = line.strip_prefix("boot: ")?.split_once(" from entry to the control domain")?;
    let scrubbing = rest.trim().strip_prefix("(scrubbing apart: ")?.strip_suffix(')')?;
    Some(Boot { instructions: count.split(' ').next()?.parse().ok()?, scrubbing: scrubbing.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_line_is_read() {
        let line = "boot: 1234567 instructions from entry to the control domain (scrubbing apart: 89)";
        assert_eq!(read(line), Some(Boot { instructions: 1_234_567, scrubbing: 89 }));
        assert_eq!(
            read("boot: many instructions from entry to the control domain (scrubbing apart: 89)"),
            None
        );
        assert_eq!(read("boot: 5 instructions from entry to the control domain"), None);
    }
}
