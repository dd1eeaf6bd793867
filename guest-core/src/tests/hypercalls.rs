//! Nonsense: numbers, pointers, frames, domains and counts that no honest guest would pass.
//!
//! Each must be answered with an error that says what was wrong, and change nothing.

use super::check::Check;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::{
    address_of, address_of_mut, call, mmu_update, mmuext, update_entry, update_va_mapping,
};
use penumbra_abi::domctl::{self, Domctl, GetMemoryList};
use penumbra_abi::memory::{self, MemoryReservation};
use penumbra_abi::mmu::{MMUEXT_INVLPG_LOCAL, MMUEXT_UNPIN_TABLE, MmuUpdate};
use penumbra_abi::sysctl::{self, Sysctl};
use penumbra_abi::{DOMID_SELF, Errno, console, hypercall as number, sched, version};
use zerocopy::IntoBytes;

/// "There is no such thing": an unknown number, in any of the ways that Xen says it.
const UNKNOWN: &[Errno] = &[Errno::ENOSYS, Errno::EOPNOTSUPP, Errno::EINVAL];
/// "This frame or entry can't be used so."
const NOT_SO: &[Errno] = &[Errno::EINVAL, Errno::EPERM, Errno::EBUSY];
/// "That address can't be read or written."
const FAULT: &[Errno] = &[Errno::EFAULT];

/// Runs the test `hypercalls`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    numbers(check);
    for pointer in unreadable::<A>() {
        bad_input(check, pointer);
        bad_output(check, pointer);
    }
    // Readable, but not to be written by anybody: a table of ours, and the M2P.
    for pointer in [guest.info.pt_base, A::M2P_WINDOW + guest.root_frame() * 8] {
        let before = A::read_word(pointer);
        bad_output(check, pointer);
        check.that("what is read-only stays as it was", A::read_word(pointer) == before);
    }
    updates(guest, check);
    addresses(check);
    control(check);
    let mut version = 0u64;
    let _ = call::<A>(number::XEN_VERSION, &[version::XENVER_VERSION, address_of_mut(&mut version)]);
    check
        .that("after all this the hypervisor still answers", call::<A>(number::XEN_VERSION, &[0, 0]).is_ok());
}

/// Addresses at which a guest can't read: below all memory, an unmapped part of the kernel's half, between the two
/// halves, the hypervisor's own, and the very end.
fn unreadable<A: Architecture>() -> [u64; 6] {
    [0, 0x1000, A::VIRT_BASE + (512 << 20), 0x0001_0000_0000_0000, A::M2P_WINDOW + (4 << 40), u64::MAX - 7]
}

fn numbers<A: Architecture>(check: &mut Check<A>) {
    for unknown in [11, 47, 63, 64, 1000, 1 << 32, u64::MAX] {
        check.refused("a number that is no hypercall", call::<A>(unknown, &[]), &[Errno::ENOSYS]);
    }
    check.refused("sched_op: unknown", call::<A>(number::SCHED_OP, &[99, 0]), UNKNOWN);
    check.refused("memory_op: unknown", call::<A>(number::MEMORY_OP, &[62, 0]), UNKNOWN);
    check.refused("console_io: unknown", call::<A>(number::CONSOLE_IO, &[7, 0, 0]), UNKNOWN);
    check.refused("xen_version: unknown", call::<A>(number::XEN_VERSION, &[99, 0]), UNKNOWN);
    check.refused("mmuext_op: unknown", mmuext::<A>(99, 0, 0), UNKNOWN);
}

/// Calls that read from `pointer`.
fn bad_input<A: Architecture>(check: &mut Check<A>, pointer: u64) {
    let own = u64::from(DOMID_SELF);
    check.refused("mmu_update", call::<A>(number::MMU_UPDATE, &[pointer, 1, 0, own]), FAULT);
    check.refused("mmuext_op", call::<A>(number::MMUEXT_OP, &[pointer, 1, 0, own]), FAULT);
    check.refused("multicall", call::<A>(number::MULTICALL, &[pointer, 1]), FAULT);
    let write = [console::CONSOLEIO_WRITE, 8, pointer];
    check.refused("console_io write", call::<A>(number::CONSOLE_IO, &write), FAULT);
    check.refused("shutdown", call::<A>(number::SCHED_OP, &[sched::SCHEDOP_SHUTDOWN, pointer]), FAULT);
    let count = [memory::XENMEM_CURRENT_RESERVATION, pointer];
    check.refused("memory_op current_reservation", call::<A>(number::MEMORY_OP, &count), FAULT);
    // Xen says "none were done" instead of a fault.
    let decrease = call::<A>(number::MEMORY_OP, &[memory::XENMEM_DECREASE_RESERVATION, pointer]);
    check.that("memory_op decrease_reservation", matches!(decrease, Ok(0) | Err(Errno::EFAULT)));
    check.refused("domctl", call::<A>(number::DOMCTL, &[pointer]), FAULT);
    check.refused("sysctl", call::<A>(number::SYSCTL, &[pointer]), FAULT);
}

/// Calls that write to `pointer`.
fn bad_output<A: Architecture>(check: &mut Check<A>, pointer: u64) {
    for operation in [version::XENVER_EXTRAVERSION, version::XENVER_GET_FEATURES] {
        check.refused("xen_version", call::<A>(number::XEN_VERSION, &[operation, pointer]), FAULT);
    }
    let mapping = [memory::XENMEM_MACHPHYS_MAPPING, pointer];
    check.refused("memory_op machphys_mapping", call::<A>(number::MEMORY_OP, &mapping), FAULT);
}

/// `mmu_update` with entries that aren't entries.
fn updates<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let own = u64::from(DOMID_SELF);
    let table = guest.leaf(guest.info.pt_base).map_or(0, |step| step.table_frame);
    let before = guest.leaf(guest.info.pt_base).map(|step| step.entry);
    // To Xen the third bit of the address is part of the request's kind.
    let result = update_entry::<A>(table << 12 | 4, 0);
    check.refused("an entry's address that isn't aligned", result, &[Errno::EINVAL, Errno::ENOSYS]);
    for frame in [1 << 39, u64::MAX >> 12] {
        let result = update_entry::<A>(frame << 12, 0);
        check.refused("an entry outside of the machine", result, &[Errno::EINVAL]);
    }
    let good = MmuUpdate { pointer: table << 12, value: A::read_word(guest.linear_of_frame(table)) };
    let bad = MmuUpdate { pointer: u64::MAX << 12, value: 0 };
    for owner in [0x7abc, 0x7ff4, 0xffff, 0x7abd_0000 | own] {
        let result = mmu_update::<A>(&[good], owner);
        check.refused("a domain that isn't there", result, &[Errno::ESRCH, Errno::EPERM, Errno::EINVAL]);
    }
    let mut done = 0u32;
    let requests = [good, bad, good];
    let arguments = [address_of(&requests), 3, address_of_mut(&mut done), own];
    check.refused("the second of three", call::<A>(number::MMU_UPDATE, &arguments), NOT_SO);
    check.that("the count says that one was done", done == 1);
    let arguments = [address_of(&[bad]), 0x7fff_ffff, 0, own];
    check.refused("a huge count stops at the first", call::<A>(number::MMU_UPDATE, &arguments), NOT_SO);
    check.done("no requests at all", mmu_update::<A>(&[], own));
    check.that("the entry is as before", guest.leaf(guest.info.pt_base).map(|step| step.entry) == before);
}

/// Addresses that have no leaf entry of the guest's.
fn addresses<A: Architecture>(check: &mut Check<A>) {
    let hypervisor = [A::M2P_WINDOW, A::M2P_WINDOW + (4 << 40), 0x0001_0000_0000_0000];
    for address in hypervisor.into_iter().chain([0x1000, A::VIRT_BASE + (512 << 20)]) {
        check.refused(
            "update_va_mapping where there is no table",
            update_va_mapping::<A>(address, 0),
            NOT_SO,
        );
        // Flushing what isn't mapped is harmless, wherever it is.
        let _ = mmuext::<A>(MMUEXT_INVLPG_LOCAL, address, 0);
    }
    check.refused("unpin frame 0", mmuext::<A>(MMUEXT_UNPIN_TABLE, 0, 0), NOT_SO);
    let request =
        MemoryReservation { nr_extents: 1, extent_order: 60, domid: DOMID_SELF, ..Default::default() };
    let result = call::<A>(number::MEMORY_OP, &[memory::XENMEM_INCREASE_RESERVATION, address_of(&request)]);
    check.that("an extent larger than any machine", matches!(result, Ok(0) | Err(_)));
}

/// The control domain's own calls.
fn control<A: Architecture>(check: &mut Check<A>) {
    let mut operation = Domctl::new(domctl::GETMEMLIST, 0, &[]);
    operation.interface_version = 1;
    check.refused(
        "domctl: version",
        call::<A>(number::DOMCTL, &[address_of_mut(&mut operation)]),
        &[Errno::EACCES],
    );
    let mut operation = Domctl::new(9999, 0, &[]);
    check.refused("domctl: unknown", call::<A>(number::DOMCTL, &[address_of_mut(&mut operation)]), UNKNOWN);
    let mut operation = Sysctl::new(sysctl::READCONSOLE, &[]);
    operation.interface_version = 1;
    check.refused(
        "sysctl: version",
        call::<A>(number::SYSCTL, &[address_of_mut(&mut operation)]),
        &[Errno::EACCES],
    );
    let mut operation = Sysctl::new(9999, &[]);
    check.refused("sysctl: unknown", call::<A>(number::SYSCTL, &[address_of_mut(&mut operation)]), UNKNOWN);
    for domain in [0x7abc, 0xffff] {
        let mut operation = Domctl::new(domctl::GETMEMLIST, domain, &[]);
        let result = call::<A>(number::DOMCTL, &[address_of_mut(&mut operation)]);
        check.refused("getmemlist of a domain that isn't there", result, &[Errno::ESRCH, Errno::ENOSYS]);
    }
    for pointer in unreadable::<A>() {
        let list = GetMemoryList { max_pfns: 4, start_pfn: 0, buffer: pointer, num_pfns: 0 };
        let mut operation = Domctl::new(domctl::GETMEMLIST, 0, list.as_bytes());
        let result = call::<A>(number::DOMCTL, &[address_of_mut(&mut operation)]);
        check.refused("getmemlist to nowhere", result, &[Errno::EFAULT, Errno::ENOSYS]);
    }
}
