//! Linear tables: a root that leads to itself shows all tables below it as pages, which can be read and never written.
//!
//! XSA-240: tables that lead to their own level let a guest make the hypervisor recurse without bound, and mappings of tables
//! could become writable. Here only a root may lead to itself, and only by an entry through which nothing can be written.

use super::check::Check;
use crate::architecture::{Architecture, table_index};
use crate::guest::Guest;
use crate::hypercalls::{mmuext, update_entry};
use penumbra_abi::mmu::MMUEXT_TLB_FLUSH_LOCAL;

/// A slot of the root that nobody uses, in the kernel's half.
pub(super) const SLOT: u64 = 300;

/// The address at which the table of `level` on the way to `target` shows through [`SLOT`]: each step through the slot takes one
/// level off the walk.
pub(super) fn seen(target: u64, level: u32) -> u64 {
    let target = target & 0xffff_ffff_f000;
    let address = (0..level).fold(target, |address, _| address >> 9 | SLOT << 39);
    0xffff_0000_0000_0000 | address & !0xfff
}

/// Runs the test `linear`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    if !guest.catches_faults {
        return;
    }
    let slot = (guest.root_frame() << 12) | (SLOT * 8);
    check.done("the root leads to itself", update_entry::<A>(slot, A::linear_table(guest.root_frame())));
    for step in guest.walk(guest.info.pt_base) {
        let address = seen(guest.info.pt_base, u32::from(step.level));
        let entry = address + table_index(guest.info.pt_base, step.level) as u64 * 8;
        let seen = A::try_read_word(entry).map(|entry| entry & !A::HARDWARE_BITS);
        check.that("each table shows", seen == Some(step.entry & !A::HARDWARE_BITS));
        check.that("and can't be written", !A::try_write_word(entry, 0));
    }
    // The hypervisor's entries lead to tables of its own: those may show at most as what a guest can't use.
    let hypervisor = seen(A::M2P_WINDOW, 1);
    check.that("nor what the hypervisor has there", !A::try_write_word(hypervisor, 0));
    check.done("the root leads there no longer", update_entry::<A>(slot, 0));
    check.done("and is forgotten", mmuext::<A>(MMUEXT_TLB_FLUSH_LOCAL, 0, 0));
    check.that("and nothing shows", A::try_read_word(seen(guest.info.pt_base, 4)).is_none());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_where_the_slot_is_taken_once_for_each_level_that_is_left() {
        let target = 0xffff_ffc0_0015_4000;
        let indices = |address| [4, 3, 2, 1].map(|level| table_index(address, level) as u64);
        let [root, third, second, _] = indices(target);
        assert_eq!(indices(seen(target, 4)), [SLOT; 4]);
        assert_eq!(indices(seen(target, 3)), [SLOT, SLOT, SLOT, root]);
        assert_eq!(indices(seen(target, 2)), [SLOT, SLOT, root, third]);
        assert_eq!(indices(seen(target, 1)), [SLOT, root, third, second]);
    }
}
