//! Superpages: 2 MiB by one entry of level 2, which Xen's paravirtual mode never had; split and joined by the guest itself.
//!
//! A superpage counts as 512 mappings: none of its frames can be a table while it can be written to, whichever came first.

use super::attacks::{Extent, Tree};
use super::check::Check;
use crate::architecture::{Architecture, PAGE_SHIFT, PAGE_SIZE};
use crate::guest::Guest;
use crate::hypercalls::{address_of_mut, call, mmuext, update_entry};
use penumbra_abi::mmu::{MMU_PT_UPDATE_PRESERVE_AD, MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE};
use penumbra_abi::version::{
    FeatureInfo, PENUMBRA_FEATURE_SUBMAP, PENUMBRA_FEATURE_SUPERPAGES, XENVER_GET_FEATURES,
};
use penumbra_abi::{Errno, hypercall as number};

/// What a superpage, or a table below one, is refused with.
const REFUSED: &[Errno] = &[Errno::EINVAL, Errno::EBUSY, Errno::EPERM];
/// The entry of level 2 that the test uses.
const PLACE: u64 = 3;
const PAGES: u64 = 512;
const WORDS: u64 = PAGE_SIZE / 8;

/// Whether the hypervisor says that it has superpages: bit 0 of a submap that Xen doesn't have.
fn are_offered<A: Architecture>() -> bool {
    let mut info = FeatureInfo { submap_idx: PENUMBRA_FEATURE_SUBMAP, submap: 0 };
    let answer = call::<A>(number::XEN_VERSION, &[XENVER_GET_FEATURES, address_of_mut(&mut info)]);
    answer.is_ok() && info.submap >> PENUMBRA_FEATURE_SUPERPAGES & 1 == 1
}

/// Runs the test `superpages`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    check.that("they are offered by Penumbra, and by nobody else", are_offered::<A>() == guest.on_penumbra);
    if !are_offered::<A>() {
        return;
    }
    let (Some(extent), Some(tree)) = (Extent::take(guest, check), Tree::build(guest, check)) else {
        return check.that("there is memory for the test", false);
    };
    touched(check, &tree, &extent);
    of_code(check, &tree, &extent);
    split_and_joined(guest, check, &tree, &extent);
    beside_tables(check, &tree, &extent);
    tree.remove(check);
    extent.give_back(guest, check);
}

/// What stands in a word of the extent.
const fn word(page: u64, index: u64) -> u64 {
    (page << 32 | index) ^ 0x2a2a_5b5b_0000_0000
}

/// Every word of the 2 MiB, as the superpage or whatever is in its place shows it.
fn shows<A: Architecture>() -> bool {
    let all = (0..PAGES).flat_map(|page| (0..WORDS).map(move |index| (page, index)));
    let mut all = all.map(|(page, index)| (Tree::<A>::address(PLACE, page) + index * 8, word(page, index)));
    all.all(|(address, value)| A::read_word(address) == value)
}

/// All of it is written and read, and is the same as through single pages.
fn touched<A: Architecture>(check: &mut Check<A>, tree: &Tree<'_, A>, extent: &Extent) {
    check.done("map 2 MiB", tree.put(2, PLACE, A::superpage(extent.first, true)));
    let first = Tree::<A>::address(PLACE, 0);
    check.that("it can be written to", A::try_write_word(first, 0));
    for page in 0..PAGES {
        (0..WORDS)
            .for_each(|index| A::write_word(Tree::<A>::address(PLACE, page) + index * 8, word(page, index)));
    }
    check.that("every word is as it was written", shows::<A>());
    let single = (0..PAGES).all(|page| {
        let mapped = tree.put(1, page, A::leaf(extent.first + page, false)).is_ok();
        mapped && A::try_read_word(Tree::<A>::address(0, page) + 8) == Some(word(page, 1))
    });
    check.that("and as single pages show it", single);
    let unmapped = (1..PAGES).all(|page| tree.put(1, page, 0).is_ok());
    check.that("which go again", unmapped && tree.put(1, 0, 0).is_ok());
}

/// Code, where the processor can be trusted to run it: neither by an update, nor without a trace.
fn of_code<A: Architecture>(check: &mut Check<A>, tree: &Tree<'_, A>, extent: &Extent) {
    let (entry, allowed) = A::superpage_of_code(extent.first);
    let expected = if allowed { Ok(()) } else { Err(Errno::EINVAL) };
    let before = tree.entry(2, PLACE);
    check.that("2 MiB of code", tree.put(2, PLACE, entry) == expected);
    check.that("and what stood there stands, if that is refused", allowed || tree.entry(2, PLACE) == before);
}

/// The guest puts a table of 512 pages in the superpage's place, and the superpage in the table's.
fn split_and_joined<A: Architecture>(
    guest: &Guest<A>,
    check: &mut Check<A>,
    tree: &Tree<'_, A>,
    extent: &Extent,
) {
    let Some(pages) = guest.zeroed_page() else { return check.that("a page for a table", false) };
    (0..PAGES).for_each(|page| guest.write(&pages, page as usize, A::leaf(extent.first + page, true)));
    check.done("a table of pages", guest.set_writable(&pages, false));
    let (whole, split) = (A::superpage(extent.first, true), A::table(guest.frame(&pages)));
    for kind in [0, MMU_PT_UPDATE_PRESERVE_AD] {
        let place = tree.place(2, PLACE) | kind;
        check.done("split", update_entry::<A>(place, split));
        check.that("every word is there", shows::<A>());
        let last = Tree::<A>::address(PLACE, PAGES - 1);
        check.that("and can be written to", A::try_write_word(last, word(PAGES - 1, 0)));
        check.refused("the table is one", guest.set_writable(&pages, true), REFUSED);
        check.done("joined", update_entry::<A>(place, whole));
        check.that("every word is there still", shows::<A>());
        check.that("and can be written to, too", A::try_write_word(last, word(PAGES - 1, 0)));
        check.done("the table is a page", guest.set_writable(&pages, true));
        check.done("and can be one again", guest.set_writable(&pages, false));
    }
    check.done("split, for one page to be a table", tree.put(2, PLACE, split));
    let place = (guest.frame(&pages) << PAGE_SHIFT) | (9 * 8);
    check.done("that page is read-only", update_entry::<A>(place, A::leaf(extent.first + 9, false)));
    (0..WORDS).for_each(|index| A::write_word(Tree::<A>::address(PLACE, 10) + index * 8, word(10, index)));
    // Its content is no table's: as an entry, each of its words is absent or nonsense. So it is cleared by another mapping first.
    let clear = mmuext::<A>(penumbra_abi::mmu::MMUEXT_CLEAR_PAGE, extent.first + 9, 0);
    check.done("and blank", clear);
    check.done("a table", mmuext::<A>(MMUEXT_PIN_L1_TABLE, extent.first + 9, 0));
    check.refused("joined over a table", tree.put(2, PLACE, whole), REFUSED);
    check.that("it is still split", tree.entry(2, PLACE) == split & !A::HARDWARE_BITS);
    check.that("the table can't be written to", !A::try_write_word(Tree::<A>::address(PLACE, 9), 1));
    check.done("joined, read-only", tree.put(2, PLACE, A::superpage(extent.first, false)));
    let by_superpage = !A::try_write_word(Tree::<A>::address(PLACE, 9), 1);
    check.that("nor by the read-only superpage", by_superpage);
    check.done("no table", mmuext::<A>(MMUEXT_UNPIN_TABLE, extent.first + 9, 0));
    check.done("the superpage goes", tree.put(2, PLACE, 0));
    check.done("the table of pages", guest.release(pages));
}

/// Whichever of the 512 frames is a table: no writable superpage. And the other way round.
fn beside_tables<A: Architecture>(check: &mut Check<A>, tree: &Tree<'_, A>, extent: &Extent) {
    let whole = A::superpage(extent.first, true);
    for page in [0, 1, 255, PAGES - 1] {
        let frame = extent.first + page;
        check.done("blank", mmuext::<A>(penumbra_abi::mmu::MMUEXT_CLEAR_PAGE, frame, 0));
        check.done("one of the frames is a table", mmuext::<A>(MMUEXT_PIN_L1_TABLE, frame, 0));
        check.refused("a superpage over it", tree.put(2, PLACE, whole), REFUSED);
        check.that("nothing is mapped", A::try_read_word(Tree::<A>::address(PLACE, page)).is_none());
        check.done("no table any more", mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0));
        check.done("then it can be mapped", tree.put(2, PLACE, whole));
        check.refused("and the frame is no table", mmuext::<A>(MMUEXT_PIN_L1_TABLE, frame, 0), REFUSED);
        check.done("until the superpage is gone", tree.put(2, PLACE, 0));
        check.that("and forgotten", !A::try_write_word(Tree::<A>::address(PLACE, page), 1));
    }
    let table = |entry| tree.put(2, PLACE, A::table(entry));
    check.done("blank", mmuext::<A>(penumbra_abi::mmu::MMUEXT_CLEAR_PAGE, extent.first, 0));
    check.done("mapped", tree.put(2, PLACE + 1, whole));
    check.refused("a frame of it as a table in its neighbour", table(extent.first), REFUSED);
    check.refused("a frame of it as its own table", tree.put(2, PLACE + 1, A::table(extent.first)), REFUSED);
    check.done("gone", tree.put(2, PLACE + 1, 0));
}
