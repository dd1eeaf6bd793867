//! References and uses that are counted wrongly: each must be there when it is needed, and gone when it isn't.

use super::scene::{SUPERPAGE, Tree};
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::mmuext;
use crate::pages::Page;
use crate::tests::{Check, REFUSED_TABLE};
use penumbra_abi::mmu::{MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_UNPIN_TABLE};

fn pin<A: Architecture>(guest: &Guest<A>, page: &Page) -> Result<(), penumbra_abi::Errno> {
    mmuext::<A>(MMUEXT_PIN_L1_TABLE, guest.frame(page), 0)
}

fn unpin<A: Architecture>(guest: &Guest<A>, page: &Page) -> Result<(), penumbra_abi::Errno> {
    mmuext::<A>(MMUEXT_UNPIN_TABLE, guest.frame(page), 0)
}

/// Whether nothing writes to a page (whose linear mapping is read-only): then, and only then, it can become a table.
pub fn can_be_a_table<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, page: &Page) {
    check.done("nobody writes to it: it can be a table", pin(guest, page));
    check.done("and a page again", unpin(guest, page));
}

/// XSA-242: the last use of a table went without its entries being let go, when another way than the usual one was the last. What the
/// table had mapped was never free again; or, counted down twice, free too early.
pub fn last_use_of_a_table<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let (Some(table), Some(data)) = (guest.zeroed_page(), guest.zeroed_page()) else {
        return check.that("pages for the test", false);
    };
    guest.write(&table, 17, A::leaf(guest.frame(&data), true));
    check.done("the data's own mapping is read-only", guest.set_writable(&data, false));
    check.done("and the table's", guest.set_writable(&table, false));
    // The ways by which a table may lose its last use: by an entry, by the tree above, by its pin.
    for way in 0..3 {
        let Some(tree) = Tree::build(guest, check) else { return check.that("pages for tables", false) };
        check.done("pin it", pin(guest, &table));
        check.done("and have an entry lead to it", tree.put(2, 9, A::table(guest.frame(&table))));
        check.refused("the data is written to", pin(guest, &data), REFUSED_TABLE);
        if way < 2 {
            check.done("the pin goes first", unpin(guest, &table));
        }
        check.refused("the data still is", pin(guest, &data), REFUSED_TABLE);
        if way != 1 {
            check.done("the entry goes", tree.put(2, 9, 0));
        }
        if way == 2 {
            check.refused("until the pin goes", pin(guest, &data), REFUSED_TABLE);
            check.done("the pin goes last", unpin(guest, &table));
        }
        tree.remove(check);
        can_be_a_table(guest, check, &data);
        can_be_a_table(guest, check, &table);
    }
    check.done("the table", guest.release(table));
    check.done("the data", guest.release(data));
}

/// Tables that are full of one page.
const TABLES: usize = 8;

/// XSA-280: a counter ran over into the flag bits beside it. Some thousand references and uses, as many as a guest of this size can
/// have of one page and of one table, and the flags are asked for while they are there. (How far the counters go, and that they
/// refuse to go further, is the host's to test.)
pub fn thousands_of_references<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let tables = core::array::from_fn::<_, TABLES, _>(|_| guest.pages.allocate());
    let (Some(data), Some(upper)) = (guest.zeroed_page(), guest.pages.allocate()) else {
        return check.that("pages for the test", false);
    };
    check.that("pages for tables", tables.iter().all(Option::is_some));
    for table in tables.iter().flatten() {
        fill(guest, table, A::leaf(guest.frame(&data), true));
        check.done("a full table is read-only", guest.set_writable(table, false));
        check.done("pinned", pin(guest, table));
    }
    check.done("the data's own mapping is read-only", guest.set_writable(&data, false));
    let Some(Some(first)) = tables.first() else { return };
    fill(guest, &upper, A::table(guest.frame(first)));
    check.done("a table above is read-only", guest.set_writable(&upper, false));
    check.done("pinned", mmuext::<A>(MMUEXT_PIN_L2_TABLE, guest.frame(&upper), 0));
    check.done("the one below isn't pinned any more", unpin(guest, first));
    check.refused("nor is it a second time", unpin(guest, first), REFUSED_TABLE);
    check.refused("it is a table all the same", guest.set_writable(first, true), REFUSED_TABLE);
    check.done("pinned again", pin(guest, first));
    check.refused("a second time", pin(guest, first), REFUSED_TABLE);
    check.done("the one above goes", unpin(guest, &upper));
    check.done("it is a page again", guest.release(upper));
    for table in tables.iter().flatten() {
        check.refused("the data is written to", pin(guest, &data), REFUSED_TABLE);
        check.done("a full table goes", unpin(guest, table));
    }
    can_be_a_table(guest, check, &data);
    for page in tables.into_iter().flatten().chain([data]) {
        check.done("a page again", guest.release(page));
    }
}

/// Writes the same entry to each slot of a page that isn't a table yet.
pub fn fill<A: Architecture>(guest: &Guest<A>, page: &Page, entry: u64) {
    (0..SUPERPAGE).for_each(|index| guest.write(page, index as usize, entry));
}
