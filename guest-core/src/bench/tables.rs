//! Changing entries of a level-1 table: one at a time, in batches, by address.

use super::meter;
use super::window::{BATCH, Say, Window};
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::{self, address_of, address_of_mut};
use core::cell::RefCell;
use penumbra_abi::mmu::{MmuUpdate, UVMF_NONE};
use penumbra_abi::multicall::MulticallEntry;
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// Calls in one multicall.
const CALLS: usize = 32;

/// `mmu_update` of one entry, from absent to writable.
pub fn update_map<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    update(guest, Say::Absent, Say::Writable)
}

/// `mmu_update` of one entry, from writable to absent.
pub fn update_unmap<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    update(guest, Say::Writable, Say::Absent)
}

fn update<A: Architecture>(guest: &Guest<A>, from: Say, to: Say) -> Result<u64, Errno> {
    in_window(guest, |window| {
        let updates = window.updates(to);
        meter::calls::<A>(
            BATCH as u64,
            || window.set(from),
            |issue, index| {
                let request = updates.get(index as usize).map_or(0, address_of);
                issue(number::MMU_UPDATE, [request, 1, 0, DOMID_SELF.into(), 0, 0])
            },
        )
    })
}

/// `mmu_update` of 128 entries, from absent to writable, for each.
pub fn batch_map<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    batch(guest, Say::Absent, Say::Writable)
}

/// The same, from writable to absent.
pub fn batch_unmap<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    batch(guest, Say::Writable, Say::Absent)
}

/// The same, from read-only to writable.
pub fn batch_read_only_to_writable<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    batch(guest, Say::ReadOnly, Say::Writable)
}

/// The same, from writable to read-only.
pub fn batch_writable_to_read_only<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    batch(guest, Say::Writable, Say::ReadOnly)
}

fn batch<A: Architecture>(guest: &Guest<A>, from: Say, to: Say) -> Result<u64, Errno> {
    in_window(guest, |window| {
        let updates: [MmuUpdate; BATCH] = window.updates(to);
        let arguments = [address_of(&updates), BATCH as u64, 0, DOMID_SELF.into(), 0, 0];
        let all = meter::calls::<A>(1, || window.set(from), |issue, _| issue(number::MMU_UPDATE, arguments))?;
        Ok(meter::each(all, BATCH as u64))
    })
}

/// `update_va_mapping`, from absent to writable, without a flush: there is nothing to flush.
pub fn va_map<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    va(guest, Say::Absent, Say::Writable, UVMF_NONE)
}

/// `update_va_mapping`, from writable to absent; the flush is left to the guest, as Linux does it.
pub fn va_unmap<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    va(guest, Say::Writable, Say::Absent, UVMF_NONE)
}

fn va<A: Architecture>(guest: &Guest<A>, from: Say, to: Say, flush: u64) -> Result<u64, Errno> {
    in_window(guest, |window| {
        let updates = window.updates(to);
        meter::calls::<A>(
            BATCH as u64,
            || window.set(from),
            |issue, index| {
                let value = updates.get(index as usize).map_or(0, |update| update.value);
                issue(number::UPDATE_VA_MAPPING, [window.address(index), value, flush, 0, 0, 0])
            },
        )
    })
}

/// `multicall` of 32 times `update_va_mapping`, from absent to writable, for each.
pub fn multicall_map<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    multicall(guest, Say::Absent, Say::Writable)
}

/// The same, from writable to absent.
pub fn multicall_unmap<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    multicall(guest, Say::Writable, Say::Absent)
}

/// In one page, as a kernel's static buffer is: where the compiler puts it on the stack would decide whether it crosses two.
#[repr(align(2048))]
struct List([MulticallEntry; CALLS]);

const _: () = assert!(size_of::<List>() == 2048);

fn multicall<A: Architecture>(guest: &Guest<A>, from: Say, to: Say) -> Result<u64, Errno> {
    in_window(guest, |window| {
        let calls = RefCell::new(List(core::array::from_fn(|index| {
            let arguments = [window.address(index as u64), window.entry(index as u64, to), UVMF_NONE];
            hypercalls::entry(number::UPDATE_VA_MAPPING, &arguments)
        })));
        let arguments = [address_of_mut(&mut calls.borrow_mut().0), CALLS as u64, 0, 0, 0, 0];
        let all = meter::calls::<A>(1, || window.set(from), |issue, _| issue(number::MULTICALL, arguments))?;
        let first_failure = calls.borrow().0.iter().find_map(|call| Errno::from_return(call.result).err());
        first_failure.map_or_else(|| Ok(meter::each(all, CALLS as u64)), Err)
    })
}

/// Opens the window, measures, leaves nothing mapped in it, and closes it.
pub(super) fn in_window<A: Architecture>(
    guest: &Guest<A>,
    measure: impl FnOnce(&Window<'_, A>) -> Result<u64, Errno>,
) -> Result<u64, Errno> {
    let window = Window::open(guest)?;
    let result = measure(&window);
    window.close()?;
    result
}
