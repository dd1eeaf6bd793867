//! Domain 1's part: an address, its entry as the MMU reads it, and the two names of its frame.

use super::published::{MAGIC, Stage, Word};
use super::{attempts, control_calls};
use crate::architecture::Architecture;
use crate::guest::{Guest, Step};
use crate::pages::Page;
use crate::{hypercalls, say};

/// How often domain 1 yields while it waits for the control domain, before it goes on alone.
const PATIENCE: u32 = 200_000;

/// What the experiment's page holds, so that a reader on the other side can recognise it.
const CONTENT: u64 = u64::from_le_bytes(*b"shadowed");

/// What domain 1 found out about one address.
#[derive(Clone, Copy)]
pub struct Specimen {
    /// The virtual address.
    pub address: u64,
    /// Its entry in memory.
    pub entry: u64,
    /// The frame number in the entry.
    pub mfn: u64,
    /// That frame's number in this domain, by the M2P.
    pub pfn: u64,
}

/// Runs domain 1's part of the tour.
pub fn domain<A: Architecture>(guest: &Guest<A>) {
    let Some(page) = guest.zeroed_page() else { return say!(A, "tour: no page to show") };
    guest.write(&page, 0, CONTENT);
    // The control domain introduces itself first; from here on each waits for the other.
    (0..2).for_each(|_| hypercalls::yield_cpu::<A>());
    let Some(specimen) = show(guest, &page) else { return say!(A, "tour: the page is not mapped") };
    publish(guest, specimen);
    wait_for_control(guest);
    let tally = control_calls::run(guest, attempts::run(guest, &page));
    store(guest, Word::Attempts, tally.attempts);
    store(guest, Word::Failures, tally.failures);
    store(guest, Word::Stage, Stage::Tried as u64);
}

/// Walks the tables to `page` and prints every number on the way; `None` when it isn't mapped.
pub fn show<A: Architecture>(guest: &Guest<A>, page: &Page) -> Option<Specimen> {
    let address = guest.address(page);
    say!(A);
    say!(A, "==== An address, its page-table entry, and the two names of its frame ====");
    line::<A>("virtual address", address, "");
    for Step { level, index, table_frame, entry } in guest.walk(address) {
        say!(A, "    level {level} table, mfn {table_frame:#x}, [{index}] = {entry:#x}");
    }
    line::<A>("first word there", guest.read(page, 0), "put there by this kernel");
    let step = guest.leaf(address)?;
    let mfn = A::decode(1, step.entry)?.frame;
    let pfn = guest.m2p(mfn);
    line::<A>("entry in memory", step.entry, "what the MMU walks: read from the level-1 table");
    line::<A>("entry >> 12", mfn, "the machine frame (MFN), attribute bits masked");
    line::<A>("machine_to_phys[MFN]", pfn, "the pseudo-physical frame (PFN), from the read-only M2P");
    line::<A>("pte_val", A::with_frame(step.entry, pfn), "the entry as this kernel shows it");
    line::<A>("phys_to_machine[PFN]", guest.p2m(pfn)?, "from the domain's own P2M");
    Some(Specimen { address, entry: step.entry, mfn, pfn })
}

/// A line of a list: what it is, its number, what that means.
pub(super) fn line<A: Architecture>(name: &str, value: u64, meaning: &str) {
    say!(A, "  {name:<24} {value:#18x}{}{meaning}", if meaning.is_empty() { "" } else { "   " });
}

fn publish<A: Architecture>(guest: &Guest<A>, specimen: Specimen) {
    store(guest, Word::Acknowledged, 0);
    store(guest, Word::Address, specimen.address);
    store(guest, Word::Entry, specimen.entry);
    store(guest, Word::MachineFrame, specimen.mfn);
    store(guest, Word::PseudoFrame, specimen.pfn);
    store(guest, Word::Content, CONTENT);
    store(guest, Word::Stage, Stage::Shown as u64);
    store(guest, Word::Magic, MAGIC);
}

/// Counts for ever in the published page, and never gives the CPU away: for the test `preemption`.
pub fn spin<A: Architecture>(guest: &Guest<A>) -> ! {
    publish(guest, Specimen { address: 0, entry: 0, mfn: 0, pfn: 0 });
    let mut count = 0u64;
    loop {
        count = count.wrapping_add(1);
        A::write_word(word_address(guest, Word::Content), count);
    }
}

/// Gives the control domain its turn. Without an answer the domain goes on by itself: the attempts don't need one.
fn wait_for_control<A: Architecture>(guest: &Guest<A>) {
    let answered = (0..PATIENCE).any(|_| {
        hypercalls::yield_cpu::<A>();
        A::read_word(word_address(guest, Word::Acknowledged)) >= Stage::Shown as u64
    });
    if !answered {
        say!(A, "tour: no word from the control domain; going on");
    }
}

fn word_address<A: Architecture>(guest: &Guest<A>, word: Word) -> u64 {
    guest.linear_of_frame(guest.info.store_mfn) + word as u64 * 8
}

fn store<A: Architecture>(guest: &Guest<A>, word: Word, value: u64) {
    A::write_word(word_address(guest, word), value);
}
