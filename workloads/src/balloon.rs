//! The balloon, down and up again by way of sysfs: memory leaves the domain and comes back, and what a process holds stays as it is.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::memory::{Mapping, Sharing};
use crate::{Fate, Spoil};

/// Where Linux's Xen balloon driver stands (Documentation/ABI/stable/sysfs-devices-system-xen_memory).
const FOLDER: &str = "/sys/devices/system/xen_memory/xen_memory0";
/// How much leaves, in KiB.
const AMOUNT: u64 = 64 << 10;
const TIMES: u64 = 3;
/// Pages that must not change meanwhile: more than leave would leave room for if they were taken instead.
const PAGES: usize = 4096;
/// How often the driver is looked at before it counts as stuck, and how long to wait in between.
const PATIENCE: usize = 6000;
const PAUSE: Duration = Duration::from_millis(10);

pub fn run(spoil: Spoil) -> Result<Fate> {
    if !Path::new(FOLDER).exists() {
        return Ok(Fate::Skipped("there is no balloon here: no Xen domain".into()));
    }
    let memory = Mapping::new(PAGES, Sharing::Private)?;
    (0..PAGES).for_each(|page| memory.fill(page, 11, spoil.only(page == 0)));
    let all = current()?;
    for _ in 0..TIMES {
        set(all - AMOUNT)?;
        (0..PAGES).try_for_each(|page| memory.check(page, page, 11))?;
        set(all)?;
        (0..PAGES).try_for_each(|page| memory.check(page, page, 11))?;
        fresh()?;
    }
    Ok(Fate::Passed(format!("{TIMES} times {} MiB down and up", AMOUNT >> 10)))
}

/// What the domain has, in KiB.
fn current() -> Result<u64> {
    number("info/current_kb")
}

fn number(file: &str) -> Result<u64> {
    let text = fs::read_to_string(Path::new(FOLDER).join(file)).with_context(|| format!("reading {file}"))?;
    text.trim().parse().with_context(|| format!("{file} says {text:?}"))
}

/// Asks for a size, and waits until the driver has got there.
fn set(target: u64) -> Result<()> {
    fs::write(Path::new(FOLDER).join("target_kb"), target.to_string()).context("writing target_kb")?;
    for _ in 0..PATIENCE {
        if current()? == target {
            return Ok(());
        }
        sleep(PAUSE);
    }
    let stuck = current()?;
    ensure!(stuck == target, "{stuck} KiB were reached instead of {target}");
    Ok(())
}

/// What came back can be used.
fn fresh() -> Result<()> {
    let memory = Mapping::new(PAGES, Sharing::Private)?;
    for page in 0..PAGES {
        memory.check_zeros(page)?;
        memory.fill(page, 13, Spoil(false));
    }
    (0..PAGES).try_for_each(|page| memory.check(page, page, 13))
}
