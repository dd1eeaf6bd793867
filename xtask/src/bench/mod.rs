//! `cargo xtask bench`: sizes, and instructions by count.
//!
//! Instructions are counted by the emulator (`-icount shift=0,sleep=off`: one instruction is one nanosecond of guest
//! time), so the figures repeat to the digit, whatever else this computer does. The benchmark itself is the guest kernel's
//! word `bench`; on x86-64 the very same kernel also boots on Debian's Xen, in the same run of this command.
//!
//! - [`boot`]: the images' sizes, and what it takes to start.
//! - [`rows`]: the operations, what each may cost at most, and what Xen's were measured to cost by others.
//! - [`machines`]: running the benchmark, and reading what it says.
//! - [`linux`]: a stock kernel's operations (`--guest debian`), natively, on Xen and on Penumbra.
//! - [`start`]: what such a kernel's start takes, on both.
//! - [`report`]: the table as text, Markdown and JSON.
//!
//! A row that costs more than it may is marked; only `--strict` makes that a failure, since a figure that moves is news, not
//! a defect.

mod boot;
mod linux;
mod machines;
mod report;
mod rows;
mod start;

use std::slice;

use anyhow::{Result, ensure};

use crate::cli::{Arch, BenchGuest, BenchOptions, Profile};
use crate::image;
use crate::setup;
pub use linux::{ours as linux_machine, rows as linux_rows};
pub use machines::machine;
use report::Table;
pub use rows::{names as rows, operations_of};
pub use start::COUNTER;

/// `cargo xtask bench`.
pub fn bench(options: &BenchOptions) -> Result<()> {
    if options.guest == BenchGuest::Debian {
        return stock(options);
    }
    let arches = Arch::chosen(options.arch);
    setup::emulators(&arches)?;
    let (mut facts, mut tables) = (vec![boot::bytes_per_frame()], Vec::new());
    for arch in arches {
        let artefacts = image::artefacts(arch, Profile::Release)?;
        facts.extend(boot::facts(arch, &artefacts)?);
        tables.push(Table::new(arch, &machines::measure(arch, &artefacts)?));
    }
    report::print(&facts, &tables);
    if let Some(file) = &options.json {
        report::write_json(file, &facts, &tables)?;
    }
    if options.docs {
        report::write_docs(&facts, &tables)?;
    }
    let missed: Vec<String> = tables.iter().flat_map(Table::missed).collect();
    ensure!(
        !options.strict || missed.is_empty(),
        "{} rows miss their target: {}",
        missed.len(),
        missed.join(", ")
    );
    Ok(())
}

/// `cargo xtask bench --guest debian`.
fn stock(options: &BenchOptions) -> Result<()> {
    let arch = options.arch.unwrap_or(Arch::X86_64);
    setup::emulators(&[arch])?;
    let lines = linux::measure(arch, &image::artefacts(arch, Profile::Release)?)?;
    linux::print(&lines);
    if let Some(file) = &options.json {
        report::write_file(file, &serde_json::json!({"debian": linux::json(&lines)}))?;
    }
    if options.docs {
        let table = (format!("debian {arch}"), linux::markdown(&lines));
        let files: &[&str] = match arch {
            Arch::Aarch64 => &[report::DOCS],
            Arch::X86_64 => &[report::DOCS, report::README],
        };
        files.iter().try_for_each(|file| report::replace_in(file, slice::from_ref(&table)))?;
    }
    let missed = linux::missed(&lines);
    ensure!(
        !options.strict || missed.is_empty(),
        "{} rows miss their target: {}",
        missed.len(),
        missed.join(", ")
    );
    Ok(())
}
