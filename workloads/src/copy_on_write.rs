//! Chains of copies: each process forks the next and changes one page that its child has not, and its child another.
//!
//! The last of a chain sees what all of its ancestors changed before it came to be; on the way back, each finds its memory as it left
//! it, although all of its descendants wrote to theirs.

use anyhow::Result;

use crate::memory::{Mapping, Sharing};
use crate::processes::{child, expect};
use crate::{Fate, Spoil};

/// Generations of a chain, and one page for each.
const GENERATIONS: usize = 40;
const CHAINS: u64 = 5;
/// Seed of pages that nobody has changed yet.
const UNTOUCHED: u64 = 1 << 41;

pub fn run(spoil: Spoil) -> Result<Fate> {
    for chain in 1..=CHAINS {
        let memory = Mapping::new(GENERATIONS + 1, Sharing::Private)?;
        (0..memory.pages()).for_each(|page| memory.fill(page, UNTOUCHED, spoil.only(false)));
        generation(&memory, 0, chain, spoil.only(chain == CHAINS))?;
    }
    Ok(Fate::Passed(format!("{CHAINS} chains of {GENERATIONS} generations")))
}

/// One process's life: change a page, have a child that goes on, and look at what is there afterwards.
fn generation(memory: &Mapping, own: usize, chain: u64, spoil: Spoil) -> Result<i32> {
    memory.fill(own, chain, spoil.only(own == GENERATIONS / 2));
    look(memory, own, chain)?;
    if own < GENERATIONS {
        // The page after the child's is written by the parent while the child lives, or before, or after: nobody else sees it.
        let next = child(|| generation(memory, own + 1, chain, spoil))?;
        memory.fill(own, chain << 8, spoil.only(false));
        expect(next, 0)?;
        memory.check(own, own, chain << 8)?;
        memory.fill(own, chain, spoil.only(false));
        look(memory, own, chain)?;
    }
    Ok(0)
}

/// Pages up to one's own are changed, the others are not.
fn look(memory: &Mapping, own: usize, chain: u64) -> Result<()> {
    for page in 0..memory.pages() {
        memory.check(page, page, if page <= own { chain } else { UNTOUCHED })?;
    }
    Ok(())
}
