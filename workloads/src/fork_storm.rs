//! Five hundred processes, all alive at the same time.
//!
//! Each gets a copy of its parent's memory, checks it, writes its own words over some of it, and waits at a gate until all are there; then
//! it checks that nobody else's words have come into its memory.

use anyhow::Result;

use crate::memory::{Mapping, Sharing};
use crate::processes::{Gate, child, expect};
use crate::{Fate, Spoil};

const PROCESSES: usize = 500;
const PAGES: usize = 32;
/// Pages that a child makes its own: from the first.
const OWN: usize = 6;
/// The parent's seed; a child's is its number.
const PARENT: u64 = 1 << 40;

pub fn run(spoil: Spoil) -> Result<Fate> {
    let memory = Mapping::new(PAGES, Sharing::Private)?;
    (0..PAGES).for_each(|page| memory.fill(page, PARENT, spoil.only(false)));
    let (ready, go) = (Gate::new()?, Gate::new()?);
    let mut children = Vec::new();
    for number in 0..PROCESSES {
        let spoil = spoil.only(number == PROCESSES / 2);
        children.push(child(|| one(number, &memory, &ready, &go, spoil))?);
    }
    for _ in 0..PROCESSES {
        ready.pass()?;
    }
    go.open(PROCESSES)?;
    for (number, child) in children.into_iter().enumerate() {
        expect(child, status(number))?;
    }
    for page in 0..PAGES {
        memory.check(page, page, PARENT)?;
    }
    Ok(Fate::Passed(format!("{PROCESSES} processes at once")))
}

/// What a child does.
fn one(number: usize, memory: &Mapping, ready: &Gate, go: &Gate, spoil: Spoil) -> Result<i32> {
    for page in 0..PAGES {
        memory.check(page, page, PARENT)?;
    }
    (0..OWN).for_each(|page| memory.fill(page, number as u64, spoil.only(page == 0)));
    ready.open(1)?;
    go.pass()?;
    for page in 0..OWN {
        memory.check(page, page, number as u64)?;
    }
    for page in OWN..PAGES {
        memory.check(page, page, PARENT)?;
    }
    Ok(status(number))
}

/// A child's exit status: tells most of them apart.
fn status(number: usize) -> i32 {
    (number % 97) as i32
}
