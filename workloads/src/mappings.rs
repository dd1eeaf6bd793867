//! mmap, mprotect, mremap and munmap over thousands of pages, with their contents checked after each.

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use crate::memory::{Mapping, Rights, Sharing};
use crate::processes::{child, expect, wait};
use crate::{Fate, Spoil};

const PAGES: usize = 4096;
const ROUNDS: u64 = 2;

pub fn run(spoil: Spoil) -> Result<Fate> {
    for round in 1..=ROUNDS {
        let spoil = spoil.only(round == ROUNDS);
        let mut memory = Mapping::new(PAGES, Sharing::Private)?;
        for page in 0..PAGES {
            memory.check_zeros(page)?;
            memory.fill(page, round, spoil.only(page == PAGES / 2 + 1));
        }
        protect(&memory, round)?;
        move_around(&mut memory, round)?;
        holes(&memory, round)?;
    }
    shared()?;
    Ok(Fate::Passed(format!("{ROUNDS} rounds of {PAGES} pages")))
}

fn check(memory: &Mapping, pages: impl Iterator<Item = usize>, round: u64) -> Result<()> {
    pages.into_iter().try_for_each(|page| memory.check(page, page, round))
}

/// Rights in stripes, and taken back in one piece.
fn protect(memory: &Mapping, round: u64) -> Result<()> {
    for stripe in (0..PAGES).step_by(48) {
        memory.protect(stripe..(stripe + 16).min(PAGES), Rights::Read)?;
    }
    check(memory, 0..PAGES, round)?;
    refused(memory, 0)?;
    memory.protect(PAGES / 4..PAGES / 2, Rights::None)?;
    refused(memory, PAGES / 4)?;
    check(memory, 0..PAGES / 4, round)?;
    memory.protect(0..PAGES, Rights::Read)?;
    check(memory, 0..PAGES, round)?;
    memory.protect(0..PAGES, Rights::Write)?;
    for page in 0..PAGES {
        memory.write(page, 1, round);
    }
    check(memory, 0..PAGES, round)
}

/// A child that writes there ends by a signal.
fn refused(memory: &Mapping, page: usize) -> Result<()> {
    let writer = child(|| {
        memory.write(page, 0, 0);
        Ok(0)
    })?;
    match wait(writer)? {
        WaitStatus::Signaled(_, Signal::SIGSEGV, _) => Ok(()),
        found => bail!("a write to page {page}, which may not be written, came to {found:?}"),
    }
}

/// Grown past its neighbour, so that it has to move, and cut again.
fn move_around(memory: &mut Mapping, round: u64) -> Result<()> {
    let neighbour = Mapping::new(1, Sharing::Private)?;
    memory.resize(2 * PAGES)?;
    check(memory, 0..PAGES, round)?;
    (PAGES..2 * PAGES).try_for_each(|page| memory.check_zeros(page))?;
    (PAGES..PAGES + PAGES / 2).for_each(|page| memory.fill(page, round, Spoil(false)));
    memory.resize(PAGES + PAGES / 2)?;
    check(memory, 0..PAGES + PAGES / 2, round)?;
    neighbour.check_zeros(0)?;
    memory.resize(PAGES)?;
    check(memory, 0..PAGES, round)
}

/// Every second stretch of eight pages taken out, the others unharmed; fresh memory in the holes, and pages forgotten.
fn holes(memory: &Mapping, round: u64) -> Result<()> {
    let out = |page: &usize| page / 8 % 2 == 1;
    let holes: Vec<_> = (8..PAGES).step_by(16).map(|start| start..start + 8).collect();
    holes.iter().try_for_each(|hole| memory.unmap(hole.clone()))?;
    check(memory, (0..PAGES).filter(|page| !out(page)), round)?;
    refused(memory, 8)?;
    holes.iter().try_for_each(|hole| memory.map_again(hole.clone()))?;
    (0..PAGES).filter(out).try_for_each(|page| memory.check_zeros(page))?;
    check(memory, (0..PAGES).filter(|page| !out(page)), round)?;
    memory.forget(0..PAGES)?;
    (0..PAGES).try_for_each(|page| memory.check_zeros(page))
}

/// What a child writes to shared memory, its parent reads.
fn shared() -> Result<()> {
    let memory = Mapping::new(PAGES / 4, Sharing::Shared)?;
    let writer = child(|| {
        (0..memory.pages()).for_each(|page| memory.fill(page, 77, Spoil(false)));
        Ok(0)
    })?;
    expect(writer, 0)?;
    check(&memory, 0..memory.pages(), 77)
}
