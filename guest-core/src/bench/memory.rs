//! Giving a page back and getting another.

use super::meter;
use super::window::spare;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::{address_of, address_of_mut, mmu_update};
use penumbra_abi::memory::{MemoryReservation, XENMEM_DECREASE_RESERVATION, XENMEM_INCREASE_RESERVATION};
use penumbra_abi::mmu::{MMU_MACHPHYS_UPDATE, MmuUpdate};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// Decreases the reservation by one page and increases it by one.
pub fn decrease_increase<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    let mut frame = spare(guest, 0);
    let request = MemoryReservation {
        extent_start: address_of_mut(&mut frame),
        nr_extents: 1,
        domid: DOMID_SELF,
        ..Default::default()
    };
    let result = meter::simple_calls::<A>(|issue, _| {
        let given = issue(number::MEMORY_OP, [XENMEM_DECREASE_RESERVATION, address_of(&request), 0, 0, 0, 0]);
        let got = issue(number::MEMORY_OP, [XENMEM_INCREASE_RESERVATION, address_of(&request), 0, 0, 0, 0]);
        // Both answer how many pages they did; a hypercall that isn't issued answers 0, which is no error either.
        if Errno::from_return(given).is_err() { given } else { got }
    });
    // The last frame that came stays, under the number of the one that went.
    let frame = core::hint::black_box(frame);
    let pfn = guest.info.nr_pages - 1;
    guest.set_p2m(pfn, frame);
    let update = MmuUpdate { pointer: frame << 12 | MMU_MACHPHYS_UPDATE, value: pfn };
    mmu_update::<A>(&[update], DOMID_SELF.into())?;
    result
}
