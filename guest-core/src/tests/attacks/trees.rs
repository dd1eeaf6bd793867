//! Trees that are large, deep, crooked or wrong at their end.

use super::counts::{can_be_a_table, fill};
use super::scene::{SLOT, Tree};
use crate::architecture::{Architecture, PAGE_SHIFT, TABLE_ENTRIES};
use crate::guest::Guest;
use crate::hypercalls::{mmuext, update_entry};
use crate::pages::Page;
use crate::tests::Check;
use penumbra_abi::Errno;
use penumbra_abi::mmu::{
    MMUEXT_NEW_BASEPTR, MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE,
    MMUEXT_UNPIN_TABLE,
};

/// What a tree that may not be is refused with.
const REFUSED: &[Errno] = &[Errno::EINVAL, Errno::EBUSY, Errno::EPERM];
/// Full tables of level 1 in a large tree: with 512 entries each more than one piece of a preemptible operation.
const MANY: usize = 96;

/// A root like the present one, below which there are [`MANY`] full tables of one page.
struct Large {
    root: Page,
    upper: [Page; 2],
    tables: [Option<Page>; MANY],
    data: Page,
}

impl Large {
    fn build<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) -> Option<Self> {
        let root = guest.copy_of_root()?;
        let upper = [guest.zeroed_page()?, guest.zeroed_page()?];
        let (tables, data) = (core::array::from_fn(|_| guest.pages.allocate()), guest.zeroed_page()?);
        guest.write(&root, SLOT as usize, A::table(guest.frame(&upper[1])));
        guest.write(&upper[1], 0, A::table(guest.frame(&upper[0])));
        check.that("there are pages for tables", tables.iter().all(Option::is_some));
        for (index, table) in tables.iter().flatten().enumerate() {
            fill(guest, table, A::leaf(guest.frame(&data), true));
            guest.write(&upper[0], index, A::table(guest.frame(table)));
        }
        let large = Self { root, upper, tables, data };
        let read_only = large.all().all(|page| guest.set_writable(page, false).is_ok());
        check.that("all of them are read-only", read_only);
        Some(large)
    }

    fn all(&self) -> impl Iterator<Item = &Page> {
        self.tables.iter().flatten().chain(&self.upper).chain([&self.root, &self.data])
    }

    /// Nothing of the tree is a table or mapped any more: every page can be written to, and be a table.
    fn remove<A: Architecture>(self, guest: &Guest<A>, check: &mut Check<A>) {
        can_be_a_table(guest, check, &self.data);
        let pages = self.tables.into_iter().flatten().chain(self.upper).chain([self.root, self.data]);
        let free = pages.map(|page| guest.release(page)).filter(Result::is_err).count();
        check.that("every page is a page again", free == 0);
    }
}

/// XSA-45, 264 and 290: loading a root, unpinning and tear-down took as long as the tree is large, or their preemption could be
/// bypassed. Here all of them go on where they stopped, however often, and come to a good end; that others have their turn in
/// between is `preemption`'s to see, and how long a stretch may be is measured (`stretch`).
pub fn large_trees<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let Some(large) = Large::build(guest, check) else { return check.that("pages for the test", false) };
    let (first, root) = (guest.root_frame(), guest.frame(&large.root));
    for _ in 0..2 {
        check.done("load a root that nothing else holds", mmuext::<A>(MMUEXT_NEW_BASEPTR, root, 0));
        check.refused("it is a table", guest.set_writable(&large.root, true), REFUSED);
        check.done(
            "load the first one: that was the large one's end",
            mmuext::<A>(MMUEXT_NEW_BASEPTR, first, 0),
        );
        check.done("pin it", mmuext::<A>(MMUEXT_PIN_L4_TABLE, root, 0));
        check.refused("its tables are tables", guest.set_writable(&large.upper[0], true), REFUSED);
        check.done("unpin it", mmuext::<A>(MMUEXT_UNPIN_TABLE, root, 0));
        let slot = (guest.root_frame() << PAGE_SHIFT) | (SLOT * 8);
        let top = A::table(guest.frame(&large.upper[1]));
        check.done("by an entry", update_entry::<A>(slot, top));
        check.done("and away with it", update_entry::<A>(slot, 0));
    }
    large.remove(guest, check);
}

/// XSA-240: tables that lead to tables of their own level made the hypervisor recurse without bound. No table below the root can
/// lead to its own level, itself or another; a root may lead to itself (see `linear`), but not to another root.
pub fn tables_below_themselves<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let (Some(tree), Some(one), Some(two)) =
        (Tree::build(guest, check), guest.zeroed_page(), guest.zeroed_page())
    else {
        return check.that("pages for the test", false);
    };
    let (one_frame, two_frame) = (guest.frame(&one), guest.frame(&two));
    for (level, command) in [(2, MMUEXT_PIN_L2_TABLE), (3, MMUEXT_PIN_L3_TABLE)] {
        // In use already.
        for link in [A::table, A::linear_table] {
            check.refused("itself", tree.put(level, 20, link(tree.frame(level))), REFUSED);
            check.refused("the level above", tree.put(level, 20, link(guest.root_frame())), REFUSED);
        }
        // A chain of two, fresh, and one that becomes a ring.
        for link in [A::table, A::linear_table] {
            guest.write(&one, 7, link(two_frame));
            guest.write(&two, 7, link(one_frame));
            check.done("one is read-only", guest.set_writable(&one, false));
            check.done("and the other", guest.set_writable(&two, false));
            for frame in [one_frame, two_frame] {
                let ring = mmuext::<A>(command, frame, 0);
                // Two levels above the pages a ring is none: its second entry is one of level 1, which may map a table to be read.
                if level == 2 && ring.is_ok() {
                    check.done("no ring", mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0));
                } else {
                    check.refused("a ring of two", ring, REFUSED);
                }
            }
            check.done("one is a page", guest.set_writable(&one, true));
            guest.write(&one, 7, 0);
            check.done("one leads nowhere", guest.set_writable(&one, false));
            check.done("one is a table of this level", mmuext::<A>(command, one_frame, 0));
            check.refused("a chain of two", mmuext::<A>(command, two_frame, 0), REFUSED);
            let place = (one_frame << PAGE_SHIFT) | (7 * 8);
            check.refused("a chain, afterwards", update_entry::<A>(place, link(tree.frame(level))), REFUSED);
            check.refused("itself, afterwards", update_entry::<A>(place, link(one_frame)), REFUSED);
            check.done("one is no table", mmuext::<A>(MMUEXT_UNPIN_TABLE, one_frame, 0));
            check.done("a page", guest.set_writable(&one, true));
            check.done("and the other", guest.set_writable(&two, true));
        }
        guest.write(&two, 7, 0);
    }
    guest.pages.free(one);
    guest.pages.free(two);
    tree.remove(check);
    roots(guest, check);
}

/// Roots that lead to other roots, and to themselves by an entry through which something could be written.
fn roots<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let Some(second) = guest.copy_of_root() else { return check.that("a page for a root", false) };
    let (first, frame) = (guest.root_frame(), guest.frame(&second));
    let slot = |root: u64| (root << PAGE_SHIFT) | (SLOT * 8);
    guest.write(&second, SLOT as usize, A::linear_table(first));
    check.done("a second root is read-only", guest.set_writable(&second, false));
    for command in [MMUEXT_PIN_L4_TABLE, MMUEXT_NEW_BASEPTR] {
        check.refused("a root below another", mmuext::<A>(command, frame, 0), REFUSED);
    }
    check.done("a page", guest.set_writable(&second, true));
    guest.write(&second, SLOT as usize, A::linear_table(frame));
    check.done("read-only", guest.set_writable(&second, false));
    check.done("a root below itself", mmuext::<A>(MMUEXT_PIN_L4_TABLE, frame, 0));
    check.refused("one below the other", update_entry::<A>(slot(first), A::linear_table(frame)), REFUSED);
    check.refused("the other below the one", update_entry::<A>(slot(frame), A::linear_table(first)), REFUSED);
    check.done("run on it", mmuext::<A>(MMUEXT_NEW_BASEPTR, frame, 0));
    check.refused(
        "one below the loaded one",
        update_entry::<A>(slot(frame), A::linear_table(first)),
        REFUSED,
    );
    check.done("run on the first", mmuext::<A>(MMUEXT_NEW_BASEPTR, first, 0));
    check.done("unpin", mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0));
    check.done("nothing holds it, itself least of all", guest.release(second));
}

/// XSA-299, 309 and 310: references were lost, or taken twice, when validation stopped half-way: at a bad entry, at an interrupt, or
/// when it was taken up again. Here the very last entry is bad, at each level and in the largest tree; afterwards nothing of the tree
/// is held by anything.
pub fn validation_fails_half_way<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    one_table(guest, check);
    let Some(large) = Large::build(guest, check) else { return check.that("pages for the test", false) };
    // Each bad entry stands where everything before it has been validated.
    let bad = A::leaf(guest.root_frame(), true);
    let last = large.tables.iter().flatten().last();
    let places = [
        (last, TABLE_ENTRIES - 1, bad),
        (Some(&large.upper[0]), TABLE_ENTRIES - 1, A::table(guest.root_frame())),
    ];
    for (page, index, bad) in places {
        let Some(page) = page else { return };
        let good = guest.read(page, index);
        change(guest, check, page, index, bad);
        for (command, table) in [
            (MMUEXT_PIN_L2_TABLE, &large.upper[0]),
            (MMUEXT_PIN_L3_TABLE, &large.upper[1]),
            (MMUEXT_PIN_L4_TABLE, &large.root),
            (MMUEXT_NEW_BASEPTR, &large.root),
        ] {
            check.refused("a bad entry at the end", mmuext::<A>(command, guest.frame(table), 0), REFUSED);
            let held = large.all().filter(|page| guest.set_writable(page, true).is_err()).count();
            check.that("nothing is held", held == 0);
            let given_back = large.all().filter(|page| guest.set_writable(page, false).is_err()).count();
            check.that("and all is read-only again", given_back == 0);
            can_be_a_table(guest, check, &large.data);
        }
        change(guest, check, page, index, good);
    }
    check.done(
        "with good entries it is a tree",
        mmuext::<A>(MMUEXT_PIN_L4_TABLE, guest.frame(&large.root), 0),
    );
    check.done("and goes again", mmuext::<A>(MMUEXT_UNPIN_TABLE, guest.frame(&large.root), 0));
    large.remove(guest, check);
}

/// Writes an entry of a read-only page that isn't a table.
fn change<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, page: &Page, index: usize, entry: u64) {
    check.done("a page to be written", guest.set_writable(page, true));
    guest.write(page, index, entry);
    check.done("and read-only", guest.set_writable(page, false));
}

/// A bad entry at each end of one table, and in its middle.
fn one_table<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let (Some(table), Some(data)) = (guest.zeroed_page(), guest.zeroed_page()) else {
        return check.that("pages for the test", false);
    };
    fill(guest, &table, A::leaf(guest.frame(&data), true));
    check.done("the data's own mapping is read-only", guest.set_writable(&data, false));
    for index in [0, 1, TABLE_ENTRIES / 2, TABLE_ENTRIES - 1] {
        for bad in [A::leaf(guest.root_frame(), true), A::leaf(A::DEVICE_FRAME, false)] {
            change(guest, check, &table, index, bad);
            let pinned = mmuext::<A>(MMUEXT_PIN_L1_TABLE, guest.frame(&table), 0);
            check.refused("a bad entry", pinned, REFUSED);
            can_be_a_table(guest, check, &data);
        }
        change(guest, check, &table, index, A::leaf(guest.frame(&data), true));
    }
    check.done("the table", guest.release(table));
    check.done("the data", guest.release(data));
}
