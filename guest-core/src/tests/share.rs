//! Two domains share a page by a grant, talk by it, and signal each other by an event channel; then the lender takes it back, and dies with another page still lent.
//!
//! Domain 1 is started with the word `lend`; what it does is in [`crate::grants`].

use super::check::Check;
use crate::architecture::{Architecture, PAGE_SIZE};
use crate::events::{self, Events, bind_interdomain, send, unmask};
use crate::grants::{
    ANSWER, ENOUGH, GREETING, HELLO, PORT, QUESTION, TALK, TEXT, answer, map, text, unmap, wait_until,
};
use crate::guest::Guest;
use crate::hypercalls::{audit, domain_list, memory_list, update_entry, update_va_mapping};
use penumbra_abi::Errno;
use penumbra_abi::domctl::{DOMINF_DYING, DomainInfo};
use penumbra_abi::grant_table::{GNTMAP_READONLY, GTF_READING, GTF_WRITING, GrantStatus};

/// The domain that lends.
const LENDER: u16 = 1;
/// Questions asked.
const QUESTIONS: u64 = 20;
/// How often to yield for the lender to be taken apart.
const TEAR_DOWN: u32 = 1000;
/// What a page that isn't one's own is refused with.
const REFUSED: &[Errno] = &[Errno::EPERM, Errno::EBUSY, Errno::EINVAL];

/// Runs the test `share`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let pages = [guest.pages.allocate(), guest.pages.allocate(), guest.pages.allocate()];
    let [Some(talk), Some(read), Some(spare)] = pages else {
        return check.that("there are pages for the test", false);
    };
    let [talk_at, read_at, spare_at] = [&talk, &read, &spare].map(|page| guest.address(page));
    // The lender may not have begun yet.
    let mut shared = None;
    wait_until::<A>(|| {
        shared = shared.or_else(|| map::<A>(LENDER, TALK, talk_at, 0).ok());
        shared.is_some()
    });
    let (Some(shared), Ok(lent)) = (shared, map::<A>(LENDER, TEXT, read_at, GNTMAP_READONLY)) else {
        return check.that("map the lender's pages", false);
    };
    check.that("the lender is there", A::read_word(talk_at + GREETING * 8) == HELLO);
    let Some(events) = Events::open(guest) else {
        return check.that("the shared-info page can be mapped", false);
    };
    let waiting = A::read_word(talk_at + PORT * 8) as u32;
    let port = check.done("connect to its port", bind_interdomain::<A>(LENDER, waiting)).unwrap_or(0);
    check.done("let its events through", unmask::<A>(port));
    talk_by(check, &events, port, talk_at);
    let right = (0..PAGE_SIZE / 8).all(|index| A::read_word(read_at + index * 8) == text(index));
    check.that("every word of the other page", right);
    no_more_than_granted(guest, check, (read_at, lent.dev_bus_addr >> 12), spare_at);
    let other_rights = map::<A>(LENDER, TALK, spare_at, GNTMAP_READONLY);
    check.that("map it again, read-only", other_rights.is_ok());
    // XSA-234, between two domains.
    check.that("the wrong rights", unmap::<A>(shared.handle, spare_at) == GrantStatus::GENERAL_ERROR);
    let handle = other_rights.map_or(u32::MAX, |answer| answer.handle);
    check.that("undo it", unmap::<A>(handle, spare_at) == GrantStatus::OKAY);
    check.that("the audit finds nothing while pages are lent", audit::<A>() == Ok(0));
    last_words(check, &events, port, talk_at);
    check.that("give the page back", unmap::<A>(shared.handle, talk_at) == GrantStatus::OKAY);
    check.that("it is gone", guest.mapping(talk_at).is_none());
    outlives_its_lender(check, lent.handle, read_at);
    check.done("close the port", events::close::<A>(port));
    check.done("give the shared-info page's place back", events.close());
    for page in [talk, read, spare] {
        check.done("map the page's own frame again", guest.release(page));
    }
}

/// The lender hears that this was all, and says what it sees of the grant's use.
fn last_words<A: Architecture>(check: &mut Check<A>, events: &Events<'_, A>, port: u32, talk_at: u64) {
    A::write_word(talk_at + QUESTION * 8, ENOUGH);
    check.done("signal the last question", send::<A>(port));
    let before = answer(QUESTIONS);
    events.wait_until(|| A::read_word(talk_at + ANSWER * 8) != before);
    check.that("each answer was signalled", events.count(port) >= QUESTIONS);
    let flags = A::read_word(talk_at + ANSWER * 8) as u16;
    check.that(
        "it has seen that the page is in use",
        flags & (GTF_READING | GTF_WRITING) == GTF_READING | GTF_WRITING,
    );
}

/// What the lender lent stays until it is given back, and so does what is left of the lender.
fn outlives_its_lender<A: Architecture>(check: &mut Check<A>, handle: u32, read_at: u64) {
    check.that("the lender has ended", wait_until::<A>(is_dying::<A>));
    let mut turns = 0;
    wait_until::<A>(|| {
        turns += 1;
        turns > TEAR_DOWN
    });
    let right = (0..PAGE_SIZE / 8).all(|index| A::read_word(read_at + index * 8) == text(index));
    check.that("what it lent is still there", right);
    check.that("the audit finds nothing after its end", audit::<A>() == Ok(0));
    check.that("the lender waits for it", is_dying::<A>());
    check.that("give that back, too", unmap::<A>(handle, read_at) == GrantStatus::OKAY);
    let gone = wait_until::<A>(|| memory_list::<A>(LENDER, 0, &mut [0]) == Err(Errno::ESRCH));
    check.that("the lender is gone", gone);
}

/// Whether the lender has ended, and isn't gone yet.
fn is_dying<A: Architecture>() -> bool {
    let mut domains = [DomainInfo::default()];
    let listed = domain_list::<A>(LENDER, &mut domains) == Ok(1);
    listed && domains[0].domain == LENDER && domains[0].flags & DOMINF_DYING != 0
}

/// Questions and answers through the page, each of them signalled.
fn talk_by<A: Architecture>(check: &mut Check<A>, events: &Events<'_, A>, port: u32, at: u64) {
    let said = || A::read_word(at + ANSWER * 8);
    for question in 1..=QUESTIONS {
        let (before, seen) = (said(), events.count(port));
        A::write_word(at + QUESTION * 8, question);
        check.done("signal a question", send::<A>(port));
        events.wait_until(|| said() != before && events.count(port) > seen);
        check.that("it is answered", said() == answer(question));
    }
}

/// By a grant to read nothing can be written, whatever entry is made of it.
fn no_more_than_granted<A: Architecture>(
    guest: &Guest<A>,
    check: &mut Check<A>,
    (at, frame): (u64, u64),
    spare: u64,
) {
    check.that("the page isn't ours", !guest.owns(frame));
    if guest.catches_faults {
        check.that("it can't be written to", !A::try_write_word(at, 0));
    }
    let writable = map::<A>(LENDER, TEXT, spare, 0).err();
    check.that("map it writable", writable == Some(GrantStatus::GENERAL_ERROR));
    check.refused("make the entry writable", update_va_mapping::<A>(at, A::leaf(frame, true)), REFUSED);
    check.refused("copy the entry", update_va_mapping::<A>(spare, A::leaf(frame, false)), REFUSED);
    let place = guest.leaf(spare).map_or(0, |step| step.machine_address());
    check.refused("copy it by mmu_update", update_entry::<A>(place, A::leaf(frame, true)), REFUSED);
}
