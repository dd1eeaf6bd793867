//! Long lists of grants: 500 pages that the domain lends itself are copied, mapped, and given back, each in one hypercall.

use super::window;
use crate::architecture::{Architecture, PAGE_SIZE};
use crate::grants::Table;
use crate::guest::Guest;
use crate::hypercalls::{call, mmuext};
use crate::pages::Page;
use penumbra_abi::grant_table::{
    CopyEnd, GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GNTMAP_CONTAINS_PTE, GNTMAP_HOST_MAP, GNTTABOP_COPY,
    GNTTABOP_MAP_GRANT_REF, GNTTABOP_UNMAP_GRANT_REF, GrantCopy, GrantEntry, GrantStatus, MapGrantRef,
    UnmapGrantRef,
};
use penumbra_abi::mmu::{MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE};
use penumbra_abi::{Errno, hypercall as number};

/// Pages lent: what one frame of the grant table has room for, and less than a table maps.
const LENT: usize = 500;
/// The first grant reference of theirs.
const FIRST: u32 = 8;

/// What is measured.
pub fn run<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    let grants = Table::open(guest).ok_or(Errno::ENOMEM)?;
    for index in 0..LENT as u32 {
        let frame = window::spare(guest, index.into()) as u32;
        grants.set(FIRST + index, GrantEntry::access(guest.number(), frame, true));
    }
    let table = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    guest.set_writable(&table, false)?;
    mmuext::<A>(MMUEXT_PIN_L1_TABLE, guest.frame(&table), 0)?;
    let result = copy(guest).and_then(|()| map_and_unmap(guest, &table));
    mmuext::<A>(MMUEXT_UNPIN_TABLE, guest.frame(&table), 0)?;
    guest.release(table)?;
    (0..LENT as u32).for_each(|index| grants.set(FIRST + index, GrantEntry::default()));
    grants.close(guest)?;
    result
}

/// A list of operations, each of which must have come to what was asked for.
fn list<A: Architecture, T>(
    command: u32,
    requests: &mut [T; LENT],
    status: impl Fn(&T) -> GrantStatus,
) -> Result<(), Errno> {
    let place = core::ptr::from_mut(requests) as u64;
    call::<A>(number::GRANT_TABLE_OP, &[command.into(), place, LENT as u64])?;
    if requests.iter().all(|request| status(request) == GrantStatus::OKAY) {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

/// Each page is copied to the next.
fn copy<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    let end = |index: usize| CopyEnd {
        reference_or_frame: u64::from(FIRST) + (index % LENT) as u64,
        domid: guest.number(),
        ..CopyEnd::default()
    };
    let mut requests = core::array::from_fn(|index| GrantCopy {
        source: end(index),
        dest: end(index + 1),
        len: PAGE_SIZE as u16,
        flags: GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF,
        ..GrantCopy::default()
    });
    list::<A, GrantCopy>(GNTTABOP_COPY, &mut requests, |request| request.status)
}

/// Each page is mapped by an entry of the table, and then no longer.
fn map_and_unmap<A: Architecture>(guest: &Guest<A>, table: &Page) -> Result<(), Errno> {
    let place = |index: usize| (guest.frame(table) << 12) + index as u64 * 8;
    let mut maps = core::array::from_fn(|index| MapGrantRef {
        host_addr: place(index),
        flags: GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE,
        reference: FIRST + index as u32,
        dom: guest.number(),
        ..MapGrantRef::default()
    });
    let mapped = list::<A, MapGrantRef>(GNTTABOP_MAP_GRANT_REF, &mut maps, |request| request.status);
    let mut unmaps = core::array::from_fn(|index| UnmapGrantRef {
        host_addr: place(index),
        handle: maps.get(index).map_or(u32::MAX, |map| map.handle),
        ..UnmapGrantRef::default()
    });
    let unmapped = list::<A, UnmapGrantRef>(GNTTABOP_UNMAP_GRANT_REF, &mut unmaps, |request| request.status);
    mapped.and(unmapped)
}
