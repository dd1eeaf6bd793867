//! `cargo xtask soak`: hostile domains, run after run, until the time is up or something breaks.
//!
//! Each run has a seed, which is printed, and counts instructions: a run that failed can be had again by its seed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use machine_tests::soak;

use crate::cli::{Arch, Profile, SoakOptions};
use crate::image;
use crate::report::Fate;
use crate::setup;
use crate::test::{self, Parts};

/// `cargo xtask soak`.
pub fn soak(options: &SoakOptions) -> Result<()> {
    let arches = Arch::chosen(options.arch);
    setup::emulators(&arches)?;
    let parts = arches.iter().map(|arch| {
        Ok(Parts { arch: *arch, artefacts: image::artefacts(*arch, Profile::Release)?, oracle: None })
    });
    let parts: Vec<Parts> = parts.collect::<Result<_>>()?;
    let end = Instant::now() + Duration::from_secs(60 * options.minutes);
    let first = options.seed.map_or_else(clock, Ok)?;
    for (seed, runs) in (first..=u64::MAX).zip(1u64..) {
        arches.iter().try_for_each(|arch| run(*arch, seed, options.operations, &parts))?;
        if options.once || Instant::now() >= end {
            println!("{runs} seeds, nothing lost");
            break;
        }
    }
    Ok(())
}

/// A seed that nobody has chosen. It decides what is tried, never what is found.
fn clock() -> Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    Ok(since.as_secs() << 8)
}

fn run(arch: Arch, seed: u64, operations: u64, parts: &[Parts]) -> Result<()> {
    let case = soak::case(test::board(arch), seed, operations);
    let name = &case.name;
    let again = format!("cargo xtask soak --arch {arch} --seed {seed:#x} --operations {operations} --once");
    passed(name, test::run(&case, parts, 1)?, &again)?;
    println!("{name}: well");
    Ok(())
}

/// An error for all but a run that passed: one that didn't take place shows nothing.
fn passed(name: &str, fate: Fate, again: &str) -> Result<()> {
    match fate {
        Fate::Passed => Ok(()),
        Fate::Skipped(why) => bail!("{name}: it can't be run: {why}"),
        Fate::Failed(why) => bail!("{name}: {why}\nthe same again: {again}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_was_skipped_is_no_success() {
        assert!(passed("a", Fate::Passed, "x").is_ok());
        let skipped = passed("a", Fate::Skipped("no memory".into()), "x").unwrap_err();
        assert_eq!(skipped.to_string(), "a: it can't be run: no memory");
        assert!(passed("a", Fate::Failed("LOST".into()), "x").is_err());
    }
}
