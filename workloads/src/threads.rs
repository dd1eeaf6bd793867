//! Threads that hand memory to each other: what one wrote another checks and gives back, and nobody sees a page's past.
//!
//! Between two steps all meet at a barrier, so that a translation which one vCPU kept by mistake is used by the next step.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use crate::memory::{Mapping, Rights, Sharing};
use crate::{Fate, Spoil};

const THREADS: usize = 8;
/// Each thread's share of the memory.
const PAGES: usize = 64;
const ROUNDS: usize = 25;

pub fn run(spoil: Spoil) -> Result<Fate> {
    let memory = Mapping::new(THREADS * PAGES, Sharing::Private)?;
    let (barrier, writes) = (Barrier::new(THREADS), AtomicU64::new(0));
    let life = |me| {
        let mut outcome = Ok(());
        for round in 0..ROUNDS {
            // One that has found something goes on meeting the others, who would wait for it forever.
            let spoil = spoil.only(me == 0 && round == ROUNDS / 2);
            let step = one_round(&memory, &barrier, &writes, me, round, spoil);
            outcome = outcome.and(step);
        }
        outcome
    };
    let life = &life;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|me| scope.spawn(move || life(me))).collect();
        let ends =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
        ends.collect::<Result<Vec<()>>>()
    })?;
    let (done, expected) = (writes.into_inner(), (THREADS * PAGES * ROUNDS) as u64);
    ensure!(done == expected, "{done} writes were counted instead of {expected}");
    Ok(Fate::Passed(format!("{THREADS} threads, {ROUNDS} rounds")))
}

fn one_round(
    memory: &Mapping,
    barrier: &Barrier,
    writes: &AtomicU64,
    me: usize,
    round: usize,
    spoil: Spoil,
) -> Result<()> {
    let pages = |of: usize| of * PAGES..(of + 1) * PAGES;
    // Of the thread before this one in the first step of a round, of the one after it in the second.
    let (before, after) = ((me + THREADS - 1) % THREADS, (me + 1) % THREADS);
    let seed = |writer: usize| (round * THREADS + writer) as u64;
    for page in pages(me) {
        memory.fill(page, seed(me), spoil.only(page == me * PAGES));
        writes.fetch_add(1, Ordering::Relaxed);
    }
    barrier.wait();
    let seen = pages(before).try_for_each(|page| memory.check(page, page, seed(before)));
    let locked = memory.protect(pages(before), Rights::Read);
    barrier.wait();
    let still = pages(after).try_for_each(|page| memory.check(page, page, seed(after)));
    barrier.wait();
    // The one after this one let go of the right to write to this thread's pages; another gives them back altogether.
    let forgotten = memory.protect(pages(after), Rights::Write).and_then(|()| memory.forget(pages(after)));
    barrier.wait();
    let blank = pages(me).try_for_each(|page| memory.check_zeros(page));
    barrier.wait();
    seen.context("as the next thread sees it")?;
    locked.and(forgotten)?;
    still.context("as the thread before sees it")?;
    blank.context("after it was given back")
}
