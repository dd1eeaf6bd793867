//! A balloon: the control domain gives half of its memory back, domain 1 has some of it for a while, and then the control domain
//! takes as much again. Nobody ever sees what another has written.

use super::check::Check;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::{
    current_reservation, memory_list, reservation, reservation_of, update_va_mapping,
    update_va_mapping_otherdomain,
};
use crate::pages::Page;
use penumbra_abi::DOMID_SELF;
use penumbra_abi::memory::{XENMEM_DECREASE_RESERVATION as DECREASE, XENMEM_POPULATE_PHYSMAP as POPULATE};

/// The domain that is given memory in between.
const NEIGHBOUR: u16 = 1;
/// Pages given and taken at a time, and pages that the neighbour gets: an extent of order 9.
const MANY: usize = 512;
/// What the control domain writes into a page, besides the page's number.
const MINE: u64 = 0xba11_0000_0000_0000;
/// What is in the neighbour's pages.
const THEIRS: u64 = 0x0e19_0000_0000_0000;

/// A page through which others are looked at.
struct Window<'a, A: Architecture> {
    guest: &'a Guest<A>,
    page: Page,
}

impl<A: Architecture> Window<'_, A> {
    /// Maps a frame of a domain's, if it can be.
    fn open(&self, frame: u64, owner: u16) -> bool {
        let (address, entry) = (self.guest.address(&self.page), A::leaf(frame, true));
        match owner {
            DOMID_SELF => update_va_mapping::<A>(address, entry).is_ok(),
            owner => update_va_mapping_otherdomain::<A>(address, entry, owner).is_ok(),
        }
    }

    fn is_empty(&self) -> bool {
        (0..512).all(|index| self.guest.read(&self.page, index) == 0)
    }

    fn mark(&self, value: u64) {
        [0, 200, 511].into_iter().for_each(|index| self.guest.write(&self.page, index, value));
    }

    fn is_marked(&self, value: u64) -> bool {
        [0, 200, 511].into_iter().all(|index| self.guest.read(&self.page, index) == value)
    }

    fn close(&self) -> bool {
        update_va_mapping::<A>(self.guest.address(&self.page), 0).is_ok()
    }
}

/// Runs the test `balloon`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let Some(page) = guest.pages.allocate() else {
        return check.that("there is a page for the test", false);
    };
    let window = Window { guest, page };
    // The upper half: nothing of it is mapped by the domain's first tables.
    let half = guest.info.nr_pages / 2..guest.info.nr_pages;
    let all = current_reservation::<A>(DOMID_SELF).unwrap_or(0);
    let marked = half.clone().all(|pfn| {
        let opened = window.open(guest.p2m(pfn).unwrap_or(0), DOMID_SELF);
        window.mark(MINE | pfn);
        opened
    });
    check.that("each page of the half is written to", marked && window.close());
    check.that("half is given back", give(guest, half.clone()));
    let count = half.end - half.start;
    check.that("half is gone", current_reservation::<A>(DOMID_SELF) == Ok(all - count));
    let lent = lend(guest, check, &window, half.clone());
    check.that("as much is taken again", take(guest, half.clone()));
    check.that("all is there", current_reservation::<A>(DOMID_SELF) == Ok(all));
    let clean = half.clone().all(|pfn| {
        let frame = guest.p2m(pfn).unwrap_or(0);
        let empty = window.open(frame, DOMID_SELF) && guest.m2p(frame) == pfn && window.is_empty();
        window.mark(MINE | pfn);
        empty
    });
    check.that("every page comes empty, by its own name", clean);
    let kept = half
        .clone()
        .all(|pfn| window.open(guest.p2m(pfn).unwrap_or(0), DOMID_SELF) && window.is_marked(MINE | pfn));
    check.that("every page keeps what is written", kept);
    check.that("the neighbour has its pages again", lent.is_some_and(restore::<A>));
    check.done(
        "the window is a page again",
        update_va_mapping::<A>(guest.address(&window.page), A::leaf(guest.frame(&window.page), true)),
    );
    guest.pages.free(window.page);
}

/// Gives pages back, many at a time. The P2M still has their frames afterwards.
fn give<A: Architecture>(guest: &Guest<A>, pfns: core::ops::Range<u64>) -> bool {
    let mut list = [0; MANY];
    pfns.clone().step_by(MANY).all(|start| {
        let count = (pfns.end - start).min(MANY as u64) as usize;
        list.iter_mut().zip(start..).take(count).for_each(|(slot, pfn)| *slot = guest.p2m(pfn).unwrap_or(0));
        reservation::<A>(DECREASE, &mut list[..count]) == Ok(count as u64)
    })
}

/// Takes memory for pages, many at a time, and enters it in the P2M.
fn take<A: Architecture>(guest: &Guest<A>, pfns: core::ops::Range<u64>) -> bool {
    let mut list = [0; MANY];
    pfns.clone().step_by(MANY).all(|start| {
        let count = (pfns.end - start).min(MANY as u64) as usize;
        list.iter_mut().zip(start..).take(count).for_each(|(slot, pfn)| *slot = pfn);
        let taken = reservation::<A>(POPULATE, &mut list[..count]) == Ok(count as u64);
        list.iter().zip(start..).take(count).for_each(|(frame, pfn)| guest.set_p2m(pfn, *frame));
        taken
    })
}

/// The neighbour gives its last pages for 2 MiB in one piece, which is memory that was the control domain's. Something is written to
/// it, and it is given back. Returns the names of the neighbour's pages that are missing.
fn lend<A: Architecture>(
    guest: &Guest<A>,
    check: &mut Check<A>,
    window: &Window<'_, A>,
    half: core::ops::Range<u64>,
) -> Option<u64> {
    let pages = current_reservation::<A>(NEIGHBOUR).ok();
    check.that(
        "there is a neighbour with memory to spare",
        pages.is_some_and(|pages| pages > 4 * MANY as u64),
    );
    let first = pages?.checked_sub(MANY as u64)?;
    check.that("the neighbour's last pages are taken", shrink_neighbour(guest, first) == MANY as u64);
    let mut extent = [first];
    let given = reservation_of::<A>(POPULATE, &mut extent, 9, NEIGHBOUR);
    check.that(
        "the neighbour gets 2 MiB in one piece",
        given == Ok(1) && extent[0].is_multiple_of(MANY as u64),
    );
    let frames = extent[0]..extent[0] + MANY as u64;
    let mine =
        half.clone().filter(|pfn| guest.p2m(*pfn).is_some_and(|frame| frames.contains(&frame))).count();
    check.that("which were the control domain's", mine > 0);
    let clean = frames.clone().all(|frame| {
        let empty = window.open(frame, NEIGHBOUR) && window.is_empty();
        window.mark(THEIRS);
        empty
    });
    check.that("and are empty", clean && window.close());
    let mut list = [extent[0]];
    let back = reservation_of::<A>(DECREASE, &mut list, 9, NEIGHBOUR);
    check.that("they are taken from the neighbour again", back == Ok(1));
    Some(first)
}

/// Takes the neighbour's pages from name `first` on; returns how many that were.
fn shrink_neighbour<A: Architecture>(guest: &Guest<A>, first: u64) -> u64 {
    let (mut at, mut taken) = (0, 0);
    loop {
        let mut frames = [0; 128];
        let count = memory_list::<A>(NEIGHBOUR, at, &mut frames).unwrap_or(0);
        let before = taken;
        for frame in frames.iter().take(count).filter(|frame| guest.m2p(**frame) >= first) {
            taken += reservation_of::<A>(DECREASE, &mut [*frame], 0, NEIGHBOUR).unwrap_or(0);
        }
        // What was taken is no longer on the list.
        at += count as u64 - (taken - before);
        if count == 0 {
            return taken;
        }
    }
}

/// Gives the neighbour single pages, from name `first` on.
fn restore<A: Architecture>(first: u64) -> bool {
    let mut list = core::array::from_fn::<u64, MANY, _>(|index| first + index as u64);
    reservation_of::<A>(POPULATE, &mut list, 0, NEIGHBOUR) == Ok(MANY as u64)
}
