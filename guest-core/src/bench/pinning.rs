//! Pinning tables, and taking the pins away: validating and giving up all that they lead to.

use super::meter;
use super::window::{self, Say};
use crate::architecture::{Architecture, TABLE_ENTRIES};
use crate::guest::Guest;
use crate::hypercalls::{address_of, mmuext};
use crate::pages::Page;
use penumbra_abi::mmu::{MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE, MmuextOp};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// Pins a table of level 1 that maps 512 pages writable.
pub fn pin_table<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    table(guest, MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE)
}

/// Unpins it.
pub fn unpin_table<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    table(guest, MMUEXT_UNPIN_TABLE, MMUEXT_PIN_L1_TABLE)
}

/// Pins a tree of four tables, the lowest of which maps 512 pages writable.
pub fn pin_tree<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    tree(guest, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE)
}

/// Unpins it.
pub fn unpin_tree<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    tree(guest, MMUEXT_UNPIN_TABLE, MMUEXT_PIN_L4_TABLE)
}

fn table<A: Architecture>(guest: &Guest<A>, measured: u32, opposite: u32) -> Result<u64, Errno> {
    let page = full_table(guest)?;
    let result = pin_and_unpin::<A>(guest.frame(&page), measured, opposite);
    guest.release(page)?;
    result
}

fn tree<A: Architecture>(guest: &Guest<A>, measured: u32, opposite: u32) -> Result<u64, Errno> {
    let mut pages = [Some(full_table(guest)?), None, None, None];
    let mut below = pages.first().and_then(Option::as_ref).map_or(0, |page| guest.frame(page));
    for page in pages.iter_mut().skip(1) {
        let upper = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
        guest.write(&upper, 0, A::table(below));
        guest.set_writable(&upper, false)?;
        below = guest.frame(&upper);
        *page = Some(upper);
    }
    let result = pin_and_unpin::<A>(below, measured, opposite);
    for page in pages.into_iter().flatten() {
        guest.release(page)?;
    }
    result
}

/// A page that holds 512 writable mappings, ready to become a table.
fn full_table<A: Architecture>(guest: &Guest<A>) -> Result<Page, Errno> {
    let page = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    for index in 0..TABLE_ENTRIES {
        guest.write(&page, index, window::entry(guest, index as u64, Say::Writable));
    }
    guest.set_writable(&page, false)?;
    Ok(page)
}

/// Measures `measured` on `frame`, with `opposite` in between, and leaves the frame unpinned.
fn pin_and_unpin<A: Architecture>(frame: u64, measured: u32, opposite: u32) -> Result<u64, Errno> {
    let operation = MmuextOp { command: measured, pad: 0, argument1: frame, argument2: 0 };
    let arguments = [address_of(&operation), 1, 0, DOMID_SELF.into(), 0, 0];
    // A pin is needed before the first unpin, and a pin that is there already before the first pin isn't.
    let mut fresh = measured != MMUEXT_UNPIN_TABLE;
    let prepare = || {
        if core::mem::take(&mut fresh) { Ok(()) } else { mmuext::<A>(opposite, frame, 0) }
    };
    let result = meter::calls::<A>(1, prepare, |issue, _| issue(number::MMUEXT_OP, arguments));
    // The last measured pin is still there.
    if measured != MMUEXT_UNPIN_TABLE && result.is_ok() {
        mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0)?;
    }
    result
}
