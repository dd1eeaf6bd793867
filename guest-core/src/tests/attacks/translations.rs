//! Translations that live on in a TLB or a walk cache: XSA-241, 286, 292 and 294.
//!
//! A flush was skipped: by a stale time stamp (241), because a root's switch was thought to do it (292), because the address-space tag
//! changed (294), or because it was the hypervisor's own linear map of the tables that was stale (286). The guest maps a page to be
//! written to and touches it, so that the TLB knows. Then it takes the mapping away in some way, *without* a flush of its own,
//! and has the page made a table; or it lets the page go. If the old translation still writes, the guest writes to its page tables,
//! or to what is somebody else's by now.

use super::scene::{Extent, SLOT, Tree, root_slot};
use crate::architecture::{Architecture, PAGE_SHIFT};
use crate::guest::Guest;
use crate::hypercalls::{address_of_mut, call, exchange, mmuext, update_entry, update_va_mapping};
use crate::pages::Page;
use crate::tests::{Check, linear};
use penumbra_abi::hypercall as number;
use penumbra_abi::memory::XENMEM_EXCHANGE;
use penumbra_abi::mmu::{MMUEXT_NEW_BASEPTR, MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE};

/// Where the page is mapped.
const SECOND: u64 = 0;
const FIRST: u64 = 12;

/// Runs the attack in each of its ways.
pub fn stale<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    check.that("faults can be caught", guest.catches_faults);
    let (Some(data), Some(tree)) = (guest.zeroed_page(), Tree::build(guest, check)) else {
        return check.that("pages for the test", false);
    };
    check.done("the page's own mapping is read-only", guest.set_writable(&data, false));
    by_entries(guest, check, &tree, &data);
    by_roots(guest, check, &tree, &data);
    by_a_superpage(guest, check, &tree);
    tree.remove(check);
    by_a_linear_table(guest, check);
    check.done("the page", guest.release(data));
}

/// Maps the page to be written to, and has the TLB know it.
fn touch<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, tree: &Tree<'_, A>, data: &Page) {
    check.done("map it", tree.put(1, FIRST, A::leaf(guest.frame(data), true)));
    check.that("touch it", A::try_write_word(Tree::<A>::address(SECOND, FIRST), 0));
}

/// Makes the page a table, and tries to write to it where it was mapped.
fn try_stale<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, data: &Page, way: &'static str) {
    let frame = guest.frame(data);
    check.done("it is a table", mmuext::<A>(MMUEXT_PIN_L1_TABLE, frame, 0));
    check.that(way, !A::try_write_word(Tree::<A>::address(SECOND, FIRST), A::leaf(guest.root_frame(), true)));
    check.that("nothing was written", guest.read(data, 0) == 0);
    check.done("and a page again", mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0));
}

/// The mapping goes by an entry of each level.
fn by_entries<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, tree: &Tree<'_, A>, data: &Page) {
    touch(guest, check, tree, data);
    check.done("the entry is empty", tree.put(1, FIRST, 0));
    try_stale(guest, check, data, "where an entry was");

    touch(guest, check, tree, data);
    check.done("the entry is read-only", tree.put(1, FIRST, A::leaf(guest.frame(data), false)));
    try_stale(guest, check, data, "where an entry is read-only");

    touch(guest, check, tree, data);
    check.done("the entry maps another", tree.put(1, FIRST, A::leaf(tree.frame(1), false)));
    try_stale(guest, check, data, "where another page is now");
    check.done("the entry is empty", tree.put(1, FIRST, 0));

    // Whole tables go out of use with what they map: the TLB still knows the way through them.
    for level in [2, 3] {
        touch(guest, check, tree, data);
        check.done("the table is out of use", tree.put(level, 0, 0));
        try_stale(guest, check, data, "where a table was");
        let again = A::table(tree.frame(level - 1));
        // Nothing held the tables below; with the page's mapping in them they can be tables again, for the page is none.
        check.done("the table is in use", tree.put(level, 0, again));
        check.that("it translates again", A::try_write_word(Tree::<A>::address(SECOND, FIRST), 0));
        check.done("the entry is empty", tree.put(1, FIRST, 0));
    }
    touch(guest, check, tree, data);
    check.done("all of it is out of use", update_entry::<A>(root_slot(guest), 0));
    try_stale(guest, check, data, "where a tree was");
    check.done("all of it is in use", update_entry::<A>(root_slot(guest), A::table(tree.frame(3))));
    check.done("the entry is empty", tree.put(1, FIRST, 0));
}

/// The mapping goes with its root, and while another root is in use.
fn by_roots<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, tree: &Tree<'_, A>, data: &Page) {
    let Some(second) = guest.copy_of_root() else { return check.that("a page for a root", false) };
    guest.write(&second, SLOT as usize, 0);
    check.done("the second root is read-only", guest.set_writable(&second, false));
    let (first, other) = (guest.root_frame(), guest.frame(&second));
    let load = |check: &mut Check<A>, root: u64| check.done("load", mmuext::<A>(MMUEXT_NEW_BASEPTR, root, 0));
    let address = Tree::<A>::address(SECOND, FIRST);
    touch(guest, check, tree, data);
    load(check, other);
    check.that("where the other root maps nothing", !A::try_write_word(address, 1));
    load(check, first);
    check.that("the first maps it", A::try_write_word(address, 0));
    load(check, other);
    check.done("the entry goes meanwhile", tree.put(1, FIRST, 0));
    load(check, first);
    try_stale(guest, check, data, "where an entry was before the switches");
    check.done("the second root goes", guest.release(second));
}

/// A superpage is replaced by pages, of which one is to be a table.
fn by_a_superpage<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, tree: &Tree<'_, A>) {
    let (Some(extent), Some(pages)) = (Extent::take(guest, check), guest.zeroed_page()) else {
        return check.that("2 MiB for the test", false);
    };
    const TABLE: u64 = 77;
    (0..512)
        .for_each(|index| guest.write(&pages, index as usize, A::leaf(extent.first + index, index != TABLE)));
    check.done("a table of pages", guest.set_writable(&pages, false));
    check.done("a superpage", tree.put(2, 1, A::superpage(extent.first, true)));
    let address = Tree::<A>::address(1, TABLE);
    let all = (0..512).all(|index| A::try_write_word(Tree::<A>::address(1, index), 0));
    check.that("touch all of it", all);
    check.done("pages in its place", tree.put(2, 1, A::table(guest.frame(&pages))));
    check.done("one is a table", mmuext::<A>(MMUEXT_PIN_L1_TABLE, extent.first + TABLE, 0));
    check.that("where a superpage was", !A::try_write_word(address, A::leaf(guest.root_frame(), true)));
    check.that("nothing was written", A::try_read_word(address) == Some(0));
    check.done("it is a page", mmuext::<A>(MMUEXT_UNPIN_TABLE, extent.first + TABLE, 0));
    check.done("all of it goes", tree.put(2, 1, 0));
    check.done("the table of pages", guest.release(pages));
    extent.give_back(guest, check);
}

/// XSA-286: what shows of the tables through a linear entry is as old as the TLB is. A table goes out of use, and its frame to others:
/// the guest must not see what they write to it.
fn by_a_linear_table<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let Some(tree) = Tree::build(guest, check) else { return check.that("pages for tables", false) };
    let slot = (guest.root_frame() << PAGE_SHIFT) | (linear::SLOT * 8);
    let own = A::linear_table(guest.root_frame());
    check.done("the root leads to itself", update_entry::<A>(slot, own));
    let shown = linear::seen(Tree::<A>::address(0, 0), 1);
    check.done("something to be seen", tree.put(1, 0, A::leaf(tree.frame(2), false)));
    let seen = A::try_read_word(shown).map(|entry| entry & !A::HARDWARE_BITS);
    check.that("a table shows", seen == Some(tree.entry(1, 0)));
    check.done("it goes out of use", tree.put(2, 0, 0));
    let (page, frame) = (tree.table(1), tree.frame(1));
    check.done("without another mapping", update_va_mapping::<A>(guest.address(page), 0));
    let (mut old, mut new) = ([frame], [page.pfn()]);
    let mut request = exchange(&mut old, 0, &mut new, 0);
    check
        .done("it goes away", call::<A>(number::MEMORY_OP, &[XENMEM_EXCHANGE, address_of_mut(&mut request)]));
    check.that("nothing shows", A::try_read_word(shown).is_none());
    guest.set_p2m(page.pfn(), new[0]);
    check.done("the root leads there no longer", update_entry::<A>(slot, 0));
    tree.remove(check);
}
