//! The machines of a test run: two at a time, until all have been booted.

use std::sync::Mutex;
use std::thread;

use anyhow::Result;
use machine_tests::case::{Case, Hypervisor};

use crate::cli::{Arch, Profile, TestOptions};
use crate::image;
use crate::report::{self, Fate, Report};
use crate::setup;
use crate::soak;
use crate::test::{self, Parts};

/// Machines that run at the same time.
const AT_ONCE: usize = 2;

/// What one of the threads that run machines does next.
pub enum Job {
    /// Boots one.
    Machine(Box<Case>),
    /// Boots one after another.
    Soak(Arch),
}

impl Job {
    fn name(&self) -> String {
        match self {
            Job::Machine(case) => case.name.clone(),
            Job::Soak(arch) => soak::name(*arch),
        }
    }

    fn arch(&self) -> Arch {
        match self {
            Job::Machine(case) => test::arch(case.board),
            Job::Soak(arch) => *arch,
        }
    }

    fn wants_oracle(&self) -> bool {
        matches!(self, Job::Machine(case) if case.hypervisor == Hypervisor::PenumbraWithOracle)
    }
}

/// Does all of this, and enters what comes of it.
pub fn run(jobs: Vec<Job>, options: &TestOptions, report: &Report) -> Result<()> {
    let profile = options.profile;
    let arches: Vec<Arch> =
        Arch::ALL.into_iter().filter(|one| jobs.iter().any(|job| job.arch() == *one)).collect();
    setup::emulators(&arches)?;
    let wants_oracle = jobs.iter().any(Job::wants_oracle);
    let parts = arches.iter().map(|arch| {
        let artefacts = image::artefacts(*arch, profile)?;
        let oracle = (wants_oracle && *arch == Arch::Aarch64).then(|| image::oracle(profile)).transpose()?;
        Ok(Parts { arch: *arch, artefacts, oracle })
    });
    let parts: Vec<Parts> = parts.collect::<Result<_>>()?;
    let factor = patience(profile);
    let bar = report::bar(jobs.len() as u64, "machines");
    let queue = Mutex::new(jobs.into_iter());
    let next = || queue.lock().ok().and_then(|mut jobs| jobs.next());
    let boot = |case: &Case| test::run(case, &parts, factor);
    let tell = |line: &str| report::note(line, bar.as_ref());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(job) = next() {
                    let fate = match &job {
                        Job::Machine(case) => boot(case),
                        Job::Soak(arch) => soak::further(*arch, options.soak_seconds, tell, boot),
                    };
                    let fate = fate.unwrap_or_else(|error| Fate::Failed(format!("{error:#}")));
                    report.enter(&job.name(), &fate, bar.as_ref());
                    bar.iter().for_each(|bar| bar.inc(1));
                }
            });
        }
    });
    bar.iter().for_each(|bar| bar.finish_and_clear());
    Ok(())
}

/// By what a case's time limit is multiplied: with all checks on and no optimisation across crates, machines with much
/// memory take their time.
fn patience(profile: Profile) -> u32 {
    match profile {
        Profile::Release => 1,
        Profile::Dev => 3,
    }
}
