//! Pinning: a page becomes a table of a level and stays one, until it is unpinned.

use super::check::Check;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::{mmuext, update_entry, update_va_mapping};
use crate::pages::Page;
use penumbra_abi::Errno;
use penumbra_abi::mmu::{
    MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE,
};

/// What a pin that can't be done is refused with.
const REFUSED: &[Errno] = &[Errno::EINVAL, Errno::EBUSY, Errno::EPERM];

/// Runs the test `pin`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    if single(guest, check).is_none() || tree(guest, check).is_none() || mixed(guest, check).is_none() {
        check.that("there are pages for the test", false);
    }
    for frame in [u64::MAX >> 12, 1 << 40, u64::MAX] {
        check.refused("a frame beyond any machine", mmuext::<A>(MMUEXT_PIN_L1_TABLE, frame, 0), REFUSED);
        check.refused("unpin beyond any machine", mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0), REFUSED);
    }
    let not_mine = A::decode(4, A::read_word(guest.info.pt_base + A::RESERVED_SLOTS.start as u64 * 8));
    if let Some(table) = not_mine {
        check.refused("the hypervisor's table", mmuext::<A>(MMUEXT_PIN_L3_TABLE, table.frame, 0), REFUSED);
    }
}

/// One table of level 1 with one mapping.
fn single<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) -> Option<()> {
    let (table, target) = (guest.zeroed_page()?, guest.zeroed_page()?);
    let frame = guest.frame(&table);
    guest.write(&table, 3, A::leaf(guest.frame(&target), true));
    check.refused("a page that is mapped writable", mmuext::<A>(MMUEXT_PIN_L1_TABLE, frame, 0), REFUSED);
    check.done("make it read-only", guest.set_writable(&table, false));
    check.done("pin it", mmuext::<A>(MMUEXT_PIN_L1_TABLE, frame, 0));
    check.refused("pin it twice", mmuext::<A>(MMUEXT_PIN_L1_TABLE, frame, 0), REFUSED);
    check.refused("pin it as another level", mmuext::<A>(MMUEXT_PIN_L2_TABLE, frame, 0), REFUSED);
    check.refused("map it writable", guest.set_writable(&table, true), REFUSED);
    let as_table = become_table(guest, &target, check);
    check.refused("make a table of what another maps writable", as_table, REFUSED);
    update_pinned(guest, check, &table, &target);
    check.done("unpin it", mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0));
    check.refused("unpin it twice", mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0), REFUSED);
    check.done("map it writable again", guest.release(table));
    check.done("the target is still ours", guest.release(target));
    Some(())
}

/// Tries to pin a page that a table maps writable: refused even though its linear mapping is read-only.
fn become_table<A: Architecture>(guest: &Guest<A>, page: &Page, check: &mut Check<A>) -> Result<(), Errno> {
    check.done("its linear mapping becomes read-only", guest.set_writable(page, false));
    mmuext::<A>(MMUEXT_PIN_L1_TABLE, guest.frame(page), 0)
}

/// Changes entries of a table that is pinned but not in use.
fn update_pinned<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, table: &Page, target: &Page) {
    let slot = |index: u64| (guest.frame(table) << 12) | (index * 8);
    let leaf = A::leaf(guest.frame(target), false);
    check.done("write an entry of a pinned table", update_entry::<A>(slot(9), leaf));
    let written = A::decode(1, guest.read(table, 9)).map(|m| (m.frame, m.writable));
    check.that("the entry is there", written == Some((guest.frame(target), false)));
    let itself = A::leaf(guest.frame(table), true);
    check.refused("let it map itself writable", update_entry::<A>(slot(10), itself), REFUSED);
    check
        .done("let it map itself read-only", update_entry::<A>(slot(10), A::leaf(guest.frame(table), false)));
    check.done("clear an entry", update_entry::<A>(slot(3), 0));
    check.done("clear the entry for itself", update_entry::<A>(slot(10), 0));
    check.that("cleared entries are absent", A::decode(1, guest.read(table, 3)).is_none());
}

/// A whole tree, pinned at its root: every level becomes a table by that alone.
fn tree<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) -> Option<()> {
    let levels = [guest.zeroed_page()?, guest.zeroed_page()?, guest.zeroed_page()?, guest.zeroed_page()?];
    let target = guest.zeroed_page()?;
    let frames = [0, 1, 2, 3].map(|level: usize| guest.frame(&levels[level]));
    guest.write(&levels[0], 0, A::leaf(guest.frame(&target), false));
    for upper in 1..4 {
        guest.write(&levels[upper], 5, A::table(frames[upper - 1]));
    }
    for level in &levels {
        check.done("make a level read-only", guest.set_writable(level, false));
    }
    let commands = [MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE];
    check.done("pin the root", mmuext::<A>(commands[3], frames[3], 0));
    for level in &levels {
        check.refused("map a level writable", guest.set_writable(level, true), REFUSED);
    }
    check.refused("pin level 2 as level 3", mmuext::<A>(commands[2], frames[1], 0), REFUSED);
    for lower in 0..3 {
        check.done("pin a level that is in use", mmuext::<A>(commands[lower], frames[lower], 0));
    }
    check.done("unpin the root", mmuext::<A>(MMUEXT_UNPIN_TABLE, frames[3], 0));
    check.refused("level 1 is still a table", guest.set_writable(&levels[0], true), REFUSED);
    check.done("the root is a page again", guest.set_writable(&levels[3], true));
    for lower in (0..3).rev() {
        check.done("unpin a level", mmuext::<A>(MMUEXT_UNPIN_TABLE, frames[lower], 0));
    }
    for page in levels {
        check.done("free a level", guest.release(page));
    }
    let address = guest.address(&target);
    check.done("the target", update_va_mapping::<A>(address, A::leaf(guest.frame(&target), true)));
    guest.pages.free(target);
    Some(())
}

/// Tables where tables of another level belong, or that lead to themselves.
fn mixed<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) -> Option<()> {
    let (low, high) = (guest.zeroed_page()?, guest.zeroed_page()?);
    let (low_frame, high_frame) = (guest.frame(&low), guest.frame(&high));
    guest.write(&high, 1, A::table(low_frame));
    check.done("a page for level 1", guest.set_writable(&low, false));
    check.done("a page for level 3", guest.set_writable(&high, false));
    check.done("pin level 1", mmuext::<A>(MMUEXT_PIN_L1_TABLE, low_frame, 0));
    for command in [MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE] {
        check.refused("level 1 below level 3 or 4", mmuext::<A>(command, high_frame, 0), REFUSED);
    }
    check.done("level 1 below level 2", mmuext::<A>(MMUEXT_PIN_L2_TABLE, high_frame, 0));
    let itself = update_entry::<A>((high_frame << 12) | 16, A::table(high_frame));
    check.refused("a table below itself", itself, REFUSED);
    let no_table = update_entry::<A>((high_frame << 12) | 16, A::table(guest.root_frame()));
    check.refused("the root below level 2", no_table, REFUSED);
    check.done("unpin level 2", mmuext::<A>(MMUEXT_UNPIN_TABLE, high_frame, 0));
    check.done("unpin level 1", mmuext::<A>(MMUEXT_UNPIN_TABLE, low_frame, 0));
    check.done("make level 2 writable", guest.set_writable(&high, true));
    guest.write(&high, 1, A::table(high_frame));
    check.done("and read-only", guest.set_writable(&high, false));
    // (A root may: see `linear`.)
    for command in [MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE] {
        check.refused("a fresh table that leads to itself", mmuext::<A>(command, high_frame, 0), REFUSED);
    }
    check.done("free one", guest.release(low));
    check.done("free the other", guest.release(high));
    Some(())
}
