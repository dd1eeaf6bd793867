//! Another root table: building one, running on it, and going back.

use super::check::Check;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::{mmuext, update_entry};
use crate::pages::Page;
use penumbra_abi::Errno;
use penumbra_abi::mmu::{
    MMUEXT_NEW_BASEPTR, MMUEXT_NEW_USER_BASEPTR, MMUEXT_PIN_L4_TABLE, MMUEXT_TLB_FLUSH_ALL,
    MMUEXT_TLB_FLUSH_LOCAL, MMUEXT_UNPIN_TABLE,
};

/// What a root that can't be loaded, or a page that can't be written, is refused with.
const REFUSED: &[Errno] = &[Errno::EINVAL, Errno::EBUSY, Errno::EPERM];

/// Runs the test `root`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let (Some(second), Some(data)) = (guest.copy_of_root(), guest.zeroed_page()) else {
        return check.that("there are pages for the test", false);
    };
    check.done("make the copy read-only", guest.set_writable(&second, false));
    unpinned(guest, check, &second, &data);
    pinned(guest, check, &second);
    user(guest, check, &second);
    check.done("flush locally", mmuext::<A>(MMUEXT_TLB_FLUSH_LOCAL, 0, 0));
    check.done("flush everywhere", mmuext::<A>(MMUEXT_TLB_FLUSH_ALL, 0, 0));
    check.refused("load a page of data", mmuext::<A>(MMUEXT_NEW_BASEPTR, guest.frame(&data), 0), REFUSED);
    check.refused("load frame 0", mmuext::<A>(MMUEXT_NEW_BASEPTR, 0, 0), REFUSED);
    check.done("free the copy", guest.release(second));
    guest.pages.free(data);
}

fn load<A: Architecture>(frame: u64) -> Result<(), Errno> {
    mmuext::<A>(MMUEXT_NEW_BASEPTR, frame, 0)
}

/// The loaded root is a table for as long as it is loaded, pinned or not.
fn unpinned<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, second: &Page, data: &Page) {
    let (first, frame) = (guest.root_frame(), guest.frame(second));
    check.done("load the copy", load::<A>(frame));
    check.that("the M2P is there as before", guest.m2p(frame) == second.pfn());
    guest.write(data, 0, 0x1234);
    check.that("memory is there as before", guest.read(data, 0) == 0x1234);
    check.refused("write to the loaded root", guest.set_writable(second, true), REFUSED);
    check.refused("the old root is pinned", mmuext::<A>(MMUEXT_PIN_L4_TABLE, first, 0), REFUSED);
    let slot = A::RESERVED_SLOTS.start as u64;
    let reserved = update_entry::<A>((frame << 12) | (slot * 8), 0);
    check.refused("clear a slot of the hypervisor's", reserved, REFUSED);
    check.done("load the same root again", load::<A>(frame));
    check.done("load the first root", load::<A>(first));
    check.done("the copy is a page again", guest.set_writable(second, true));
    check.done("and read-only again", guest.set_writable(second, false));
}

/// Pinning and loading are two reasons to be a table; either may go first.
fn pinned<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, second: &Page) {
    let (first, frame) = (guest.root_frame(), guest.frame(second));
    check.done("pin the copy", mmuext::<A>(MMUEXT_PIN_L4_TABLE, frame, 0));
    check.done("load the pinned copy", load::<A>(frame));
    check.done("unpin it while it is loaded", mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0));
    check.refused("it is still a table", guest.set_writable(second, true), REFUSED);
    check.done("pin it while it is loaded", mmuext::<A>(MMUEXT_PIN_L4_TABLE, frame, 0));
    check.done("load the first root again", load::<A>(first));
    check.refused("the pin holds", guest.set_writable(second, true), REFUSED);
    check.done("unpin it at last", mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0));
}

/// The user root is held like the kernel's.
fn user<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>, second: &Page) {
    let frame = guest.frame(second);
    check.done("take it as user root", mmuext::<A>(MMUEXT_NEW_USER_BASEPTR, frame, 0));
    check.refused("a user root is a table", guest.set_writable(second, true), REFUSED);
    check.done("have no user root", mmuext::<A>(MMUEXT_NEW_USER_BASEPTR, 0, 0));
    check.done("it is a page again", guest.set_writable(second, true));
}
