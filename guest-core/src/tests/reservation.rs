//! Giving memory back and getting it again.
//!
//! The pages are the highest of the domain, which the bootstrap region doesn't map.

use super::check::Check;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::{self, current_reservation, mmu_update, reservation, update_va_mapping};
use penumbra_abi::memory::{
    XENMEM_DECREASE_RESERVATION, XENMEM_INCREASE_RESERVATION, XENMEM_POPULATE_PHYSMAP,
};
use penumbra_abi::mmu::{MMU_MACHPHYS_UPDATE, MmuUpdate};
use penumbra_abi::{DOMID_SELF, Errno};

/// Pages given back at a time.
const COUNT: usize = 8;

/// Runs the test `reservation`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let pfns = core::array::from_fn::<u64, COUNT, _>(|i| guest.info.nr_pages - 1 - i as u64);
    let before = check.done("count pages", current_reservation::<A>(DOMID_SELF)).unwrap_or(0);
    decrease(guest, check, &pfns, before);
    populate(guest, check, &pfns, before);
    decrease(guest, check, &pfns, before);
    increase(guest, check, &pfns, before);
    use_frame(guest, check, pfns[0]);
    refusals(guest, check, before);
}

fn decrease<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, pfns: &[u64; COUNT], before: u64) {
    let mut frames = pfns.map(|pfn| guest.p2m(pfn).unwrap_or(0));
    let done = check.done("give pages back", reservation::<A>(XENMEM_DECREASE_RESERVATION, &mut frames));
    check.that("all were taken", done == Some(COUNT as u64));
    let now = current_reservation::<A>(DOMID_SELF);
    check.that("the count went down", now == Ok(before - COUNT as u64));
    let mapped = guest.pages.allocate().map(|page| {
        let result = update_va_mapping::<A>(guest.address(&page), A::leaf(frames[0], false));
        guest.pages.free(page);
        result
    });
    check.refused(
        "map a page given back",
        mapped.unwrap_or(Ok(())),
        &[Errno::EPERM, Errno::EINVAL, Errno::EBUSY],
    );
}

/// Asks for frames under given PFNs: the hypervisor enters them in the M2P itself.
fn populate<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, pfns: &[u64; COUNT], before: u64) {
    let mut frames = *pfns;
    let done = check.done("populate", reservation::<A>(XENMEM_POPULATE_PHYSMAP, &mut frames));
    check.that("all were given", done == Some(COUNT as u64));
    for (&pfn, &frame) in pfns.iter().zip(&frames) {
        guest.set_p2m(pfn, frame);
        check.that("the M2P has the PFN", guest.m2p(frame) == pfn);
    }
    check.that("the count went up", current_reservation::<A>(DOMID_SELF) == Ok(before));
}

/// Asks for any frames, and names them afterwards by M2P updates.
fn increase<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, pfns: &[u64; COUNT], before: u64) {
    let mut frames = [0; COUNT];
    let done = check.done("increase", reservation::<A>(XENMEM_INCREASE_RESERVATION, &mut frames));
    check.that("all were given, again", done == Some(COUNT as u64));
    let updates = core::array::from_fn::<MmuUpdate, COUNT, _>(|i| MmuUpdate {
        pointer: frames[i] << 12 | MMU_MACHPHYS_UPDATE,
        value: pfns[i],
    });
    let named = check.done("name them in the M2P", mmu_update::<A>(&updates, u64::from(DOMID_SELF)));
    check.that("the batch says how many were done", named == Some(COUNT as u32));
    for (&pfn, &frame) in pfns.iter().zip(&frames) {
        guest.set_p2m(pfn, frame);
        check.that("the M2P has the name", guest.m2p(frame) == pfn);
    }
    check.that("the count is as before", current_reservation::<A>(DOMID_SELF) == Ok(before));
}

/// A frame that came back is memory like any other, and holds nothing of what others wrote.
fn use_frame<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, pfn: u64) {
    let (Some(page), Some(frame)) = (guest.pages.allocate(), guest.p2m(pfn)) else {
        return check.that("there is a page for the test", false);
    };
    let address = guest.address(&page);
    check.done("map a new frame", update_va_mapping::<A>(address, A::leaf(frame, true)));
    let scrubbed = (0..512).all(|index| A::read_word(address + index * 8) == 0);
    check.that("a new frame is scrubbed", scrubbed || !guest.on_penumbra);
    A::write_word(address + 8, 0x5a5a);
    check.that("a new frame holds what is written", A::read_word(address + 8) == 0x5a5a);
    A::write_word(address + 8, 0);
    check.done("map the old frame again", guest.release(page));
}

fn refusals<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, before: u64) {
    let not_mine = A::decode(4, A::read_word(guest.info.pt_base + A::RESERVED_SLOTS.start as u64 * 8));
    let mut frames = [not_mine.map_or(0, |mapping| mapping.frame)];
    let taken = reservation::<A>(XENMEM_DECREASE_RESERVATION, &mut frames);
    check.that("a frame of the hypervisor's is not taken", matches!(taken, Ok(0) | Err(_)));
    let update = MmuUpdate { pointer: frames[0] << 12 | MMU_MACHPHYS_UPDATE, value: 1 };
    // Xen says EINVAL.
    let renamed = mmu_update::<A>(&[update], u64::from(DOMID_SELF));
    check.refused(
        "rename a frame of the hypervisor's",
        renamed,
        &[Errno::EINVAL, Errno::EPERM, Errno::EBUSY],
    );
    let huge = hypercalls::huge_reservation::<A>(XENMEM_POPULATE_PHYSMAP);
    check.that("a reservation without end gives nothing", matches!(huge, Ok(0) | Err(_)));
    check.that("the count is still as before", current_reservation::<A>(DOMID_SELF) == Ok(before));
    check.refused("a domain that isn't there", current_reservation::<A>(0x7abc), &[Errno::ESRCH]);
}
