//! Memory until there is no more: the kernel's out-of-memory killer takes the process that asked for it, and nobody else.
//!
//! Only where the machine is this program's own (`WORKLOAD_OWNS_MACHINE=1`): elsewhere it would hurt whoever else is there.

use std::fs;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use crate::memory::{Mapping, Sharing};
use crate::processes::{child, expect, wait};
use crate::{Fate, Spoil};

/// Set where nobody else is there.
const PERMISSION: &str = "WORKLOAD_OWNS_MACHINE";
const TIMES: usize = 2;
/// Pages that the driver keeps, and looks at afterwards.
const KEPT: usize = 256;
/// Pages that are asked for at a time.
const BITE: usize = 256;

pub fn run(spoil: Spoil) -> Result<Fate> {
    if std::env::var(PERMISSION).as_deref() != Ok("1") {
        return Ok(Fate::Skipped(format!("{PERMISSION}=1 is not set")));
    }
    let kept = Mapping::new(KEPT, Sharing::Private)?;
    (0..KEPT).for_each(|page| kept.fill(page, 9, spoil.only(page == KEPT - 1)));
    for _ in 0..TIMES {
        match wait(child(greedy)?)? {
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => {}
            found => bail!("the process that took all memory came to {found:?}"),
        }
        (0..KEPT).try_for_each(|page| kept.check(page, page, 9))?;
        // What was taken is there again, for others.
        let modest = child(|| {
            let memory = Mapping::new(16 * BITE, Sharing::Private)?;
            (0..memory.pages()).for_each(|page| memory.fill(page, 3, Spoil(false)));
            (0..memory.pages()).try_for_each(|page| memory.check(page, page, 3))?;
            Ok(0)
        })?;
        expect(modest, 0)?;
    }
    Ok(Fate::Passed(format!("{TIMES} processes killed for their greed, the driver is well")))
}

/// Takes memory and writes to it until the end.
fn greedy() -> Result<i32> {
    // The kernel's first choice, whatever else grows.
    fs::write("/proc/self/oom_score_adj", "1000").context("cannot volunteer for the out-of-memory killer")?;
    let mut taken = Vec::new();
    loop {
        let bite = Mapping::new(BITE, Sharing::Private)?;
        (0..BITE).for_each(|page| bite.write(page, 0, page as u64));
        taken.push(bite);
    }
}
