//! `cargo xtask soak`: hostile domains, run after run, until the time is up or something breaks.
//!
//! Each run has a seed, which is printed, and counts instructions: a run that failed can be had again by its seed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use machine_tests::case::Case;
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

/// Name of the test that is [`further`].
pub fn name(arch: Arch) -> String {
    format!("{arch}/soak/further-seeds")
}

/// The soak that belongs to every test run: one seed after another, always the same ones, until the time is up, which decides how many
/// there are and nothing else. `tell` is told each.
pub fn further(
    arch: Arch,
    seconds: u64,
    tell: impl Fn(&str),
    run: impl Fn(&Case) -> Result<Fate>,
) -> Result<Fate> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut fate = Fate::Skipped("there was no time for it".into());
    for (seed, case) in soak::further(test::board(arch)).take_while(|_| Instant::now() < end) {
        tell(&case.name);
        fate = run(&case)?;
        if let Fate::Failed(why) = fate {
            let again = again(arch, seed, soak::OPERATIONS_IN_TESTS);
            return Ok(Fate::Failed(format!("{}: {why}\n    the same again: {again}", case.name)));
        }
    }
    Ok(fate)
}

fn again(arch: Arch, seed: u64, operations: u64) -> String {
    format!("cargo xtask soak --arch {arch} --seed {seed:#x} --operations {operations} --once")
}

fn run(arch: Arch, seed: u64, operations: u64, parts: &[Parts]) -> Result<()> {
    let case = soak::case(test::board(arch), seed, operations);
    let name = &case.name;
    passed(name, test::run(&case, parts, 1)?, &again(arch, seed, operations))?;
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
    use std::cell::Cell;

    use super::*;

    #[test]
    fn further_seeds_go_on_until_one_fails_or_the_time_is_up() {
        let told = Cell::new(0);
        let tell = |_: &str| told.set(told.get() + 1);
        let third_fails =
            |_: &Case| Ok(if told.get() < 3 { Fate::Passed } else { Fate::Failed("lost".into()) });
        let Ok(Fate::Failed(why)) = further(Arch::X86_64, 3600, tell, third_fails) else {
            panic!("no failure was told")
        };
        assert!(
            why.starts_with("x86_64/soak/seed-0xa: lost") && why.contains("--seed 0xa --operations 12000")
        );
        let never = |_: &Case| -> Result<Fate> { bail!("it was run") };
        assert!(matches!(further(Arch::X86_64, 0, tell, never), Ok(Fate::Skipped(_))));
    }

    #[test]
    fn a_run_that_was_skipped_is_no_success() {
        assert!(passed("a", Fate::Passed, "x").is_ok());
        let skipped = passed("a", Fate::Skipped("no memory".into()), "x").unwrap_err();
        assert_eq!(skipped.to_string(), "a: it can't be run: no memory");
        assert!(passed("a", Fate::Failed("LOST".into()), "x").is_err());
    }
}
