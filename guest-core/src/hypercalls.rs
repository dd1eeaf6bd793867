//! Hypercalls with types.
//!
//! Each wrapper takes values and slices, puts their addresses where the ABI wants them, and turns the returned number
//! into a `Result`. Tests that pass nonsense on purpose use [`call`] itself.

use crate::architecture::Architecture;
use penumbra_abi::domctl::{self, DomainInfo, Domctl, GetMemoryList};
use penumbra_abi::memory::{self, MemoryExchange, MemoryReservation};
use penumbra_abi::mmu::{self, MmuUpdate, MmuextOp};
use penumbra_abi::multicall::MulticallEntry;
use penumbra_abi::sched::{self, SchedShutdown};
use penumbra_abi::sysctl::{self, GetDomainInfoList, ReadConsole, Sysctl};
use penumbra_abi::{DOMID_SELF, Errno, console, hypercall as number, version};
use zerocopy::IntoBytes;

/// Issues hypercall `number` with up to six arguments.
///
/// # Errors
/// What the hypervisor answered, if that is an error.
pub fn call<A: Architecture>(number: u64, arguments: &[u64]) -> Result<u64, Errno> {
    let mut all = [0; 6];
    all.iter_mut().zip(arguments).for_each(|(to, from)| *to = *from);
    Errno::from_return(A::hypercall(number, all))
}

/// The address of a value, as an argument.
pub fn address_of<T: ?Sized>(value: &T) -> u64 {
    core::ptr::from_ref(value).cast::<u8>() as u64
}

/// The address of a value that the hypervisor writes to, as an argument.
pub fn address_of_mut<T: ?Sized>(value: &mut T) -> u64 {
    core::ptr::from_mut(value).cast::<u8>() as u64
}

/// `mmu_update` for frames of `owner`. Returns how many requests were done.
///
/// # Errors
/// The error of the first request that was refused.
pub fn mmu_update<A: Architecture>(updates: &[MmuUpdate], owner: u64) -> Result<u32, Errno> {
    let mut done = 0u32;
    let arguments = [address_of(updates), updates.len() as u64, address_of_mut(&mut done), owner];
    call::<A>(number::MMU_UPDATE, &arguments).map(|_| done)
}

/// Stores one page-table entry, checked: `address` is the entry's *machine* address, with the kind of update in its low
/// bits.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn update_entry<A: Architecture>(address: u64, value: u64) -> Result<(), Errno> {
    let update = MmuUpdate { pointer: address, value };
    mmu_update::<A>(&[update], u64::from(DOMID_SELF)).map(drop)
}

/// One `mmuext_op` on the caller's own frames.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn mmuext<A: Architecture>(command: u32, argument1: u64, argument2: u64) -> Result<(), Errno> {
    let operation = MmuextOp { command, pad: 0, argument1, argument2 };
    call::<A>(number::MMUEXT_OP, &[address_of(&operation), 1, 0, u64::from(DOMID_SELF)]).map(drop)
}

/// Writes the leaf entry of virtual address `address` and flushes it.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn update_va_mapping<A: Architecture>(address: u64, entry: u64) -> Result<(), Errno> {
    call::<A>(number::UPDATE_VA_MAPPING, &[address, entry, mmu::UVMF_INVLPG | mmu::UVMF_LOCAL]).map(drop)
}

/// As [`update_va_mapping`], with a frame that belongs to `owner`.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn update_va_mapping_otherdomain<A: Architecture>(
    address: u64,
    entry: u64,
    owner: u16,
) -> Result<(), Errno> {
    let arguments = [address, entry, mmu::UVMF_INVLPG | mmu::UVMF_LOCAL, u64::from(owner)];
    call::<A>(number::UPDATE_VA_MAPPING_OTHERDOMAIN, &arguments).map(drop)
}

/// Several calls in one; each entry gets its own result.
///
/// # Errors
/// Why the hypervisor refuses the whole.
pub fn multicall<A: Architecture>(calls: &mut [MulticallEntry]) -> Result<(), Errno> {
    call::<A>(number::MULTICALL, &[address_of_mut(calls), calls.len() as u64]).map(drop)
}

/// An entry for [`multicall`].
pub fn entry(operation: u64, arguments: &[u64]) -> MulticallEntry {
    let mut entry = MulticallEntry { operation, ..Default::default() };
    entry.arguments.iter_mut().zip(arguments).for_each(|(to, from)| *to = *from);
    entry
}

/// A reservation operation on the caller's own memory: `frames` holds one frame number an extent of one page.
/// Returns how many extents were done.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn reservation<A: Architecture>(operation: u64, frames: &mut [u64]) -> Result<u64, Errno> {
    reservation_of::<A>(operation, frames, 0, DOMID_SELF)
}

/// As [`reservation`], on `domain`'s memory and with extents of `2^order` pages.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn reservation_of<A: Architecture>(
    operation: u64,
    frames: &mut [u64],
    order: u32,
    domain: u16,
) -> Result<u64, Errno> {
    let request = extents(frames, order, domain);
    call::<A>(number::MEMORY_OP, &[operation, address_of(&request)])
}

fn extents(frames: &mut [u64], order: u32, domain: u16) -> MemoryReservation {
    MemoryReservation {
        extent_start: address_of_mut(frames),
        nr_extents: frames.len() as u64,
        extent_order: order,
        domid: domain,
        ..Default::default()
    }
}

/// A request to exchange the caller's extents `old` for new ones, under the page numbers in `new`.
pub fn exchange(old: &mut [u64], old_order: u32, new: &mut [u64], new_order: u32) -> MemoryExchange {
    MemoryExchange {
        input: extents(old, old_order, DOMID_SELF),
        output: extents(new, new_order, DOMID_SELF),
        nr_exchanged: 0,
    }
}

/// A reservation of as many extents as can be written down, without a list of them.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn huge_reservation<A: Architecture>(operation: u64) -> Result<u64, Errno> {
    let request = MemoryReservation { nr_extents: u64::MAX, domid: DOMID_SELF, ..Default::default() };
    call::<A>(number::MEMORY_OP, &[operation, address_of(&request)])
}

/// Pages that `domain` has.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn current_reservation<A: Architecture>(domain: u16) -> Result<u64, Errno> {
    call::<A>(number::MEMORY_OP, &[memory::XENMEM_CURRENT_RESERVATION, address_of(&domain)])
}

/// The highest frame of RAM in the machine.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn maximum_ram_page<A: Architecture>() -> Result<u64, Errno> {
    call::<A>(number::MEMORY_OP, &[memory::XENMEM_MAXIMUM_RAM_PAGE])
}

/// Gives up the rest of the time slice.
pub fn yield_cpu<A: Architecture>() {
    // Nothing can be done about an error, and nothing depends on it.
    let _ = call::<A>(number::SCHED_OP, &[sched::SCHEDOP_YIELD]);
}

/// Sleeps until an event is pending.
pub fn block<A: Architecture>() {
    let _ = call::<A>(number::SCHED_OP, &[sched::SCHEDOP_BLOCK]);
}

/// Ends this domain.
pub fn shutdown<A: Architecture>(reason: u32) -> ! {
    let argument = SchedShutdown { reason };
    let _ = call::<A>(number::SCHED_OP, &[sched::SCHEDOP_SHUTDOWN, address_of(&argument)]);
    A::halt()
}

/// Writes bytes to the console.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn console_write<A: Architecture>(bytes: &[u8]) -> Result<(), Errno> {
    let arguments = [console::CONSOLEIO_WRITE, bytes.len() as u64, address_of(bytes)];
    call::<A>(number::CONSOLE_IO, &arguments).map(drop)
}

/// Reads what was typed, without waiting; returns how many bytes that was.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn console_read<A: Architecture>(buffer: &mut [u8]) -> Result<usize, Errno> {
    let arguments = [console::CONSOLEIO_READ, buffer.len() as u64, address_of_mut(buffer)];
    call::<A>(number::CONSOLE_IO, &arguments).map(|count| (count as usize).min(buffer.len()))
}

/// Major and minor version of the hypervisor's interface.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn interface_version<A: Architecture>() -> Result<(u64, u64), Errno> {
    call::<A>(number::XEN_VERSION, &[version::XENVER_VERSION, 0]).map(|v| (v >> 16, v & 0xffff))
}

/// Fills `buffer` by a sub-operation of `xen_version` that writes a string.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn version_string<A: Architecture>(operation: u64, buffer: &mut [u8]) -> Result<u64, Errno> {
    call::<A>(number::XEN_VERSION, &[operation, address_of_mut(buffer)])
}

/// Asks the hypervisor to recount everything; returns the number of findings.
///
/// # Errors
/// `ENOSYS` on a hypervisor that isn't Penumbra, `EPERM` outside the control domain.
pub fn audit<A: Architecture>() -> Result<u64, Errno> {
    call::<A>(number::PENUMBRA, &[number::PENUMBRA_AUDIT])
}

/// Lists machine frames of `domain`, from its page number `start` on. Returns how many were written.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn memory_list<A: Architecture>(domain: u16, start: u64, frames: &mut [u64]) -> Result<usize, Errno> {
    let request = GetMemoryList {
        max_pfns: frames.len() as u64,
        start_pfn: start,
        buffer: address_of_mut(frames),
        num_pfns: 0,
    };
    let mut operation = Domctl::new(domctl::GETMEMLIST, domain, request.as_bytes());
    call::<A>(number::DOMCTL, &[address_of_mut(&mut operation)])?;
    let answer = operation.read_body::<GetMemoryList>().unwrap_or_default();
    Ok((answer.num_pfns as usize).min(frames.len()))
}

/// Describes domains from number `first` on; returns how many were written.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn domain_list<A: Architecture>(first: u16, domains: &mut [DomainInfo]) -> Result<usize, Errno> {
    let request = GetDomainInfoList {
        first_domain: first,
        max_domains: domains.len() as u32,
        buffer: address_of_mut(domains),
        ..Default::default()
    };
    let mut operation = Sysctl::new(sysctl::GETDOMAININFOLIST, request.as_bytes());
    call::<A>(number::SYSCTL, &[address_of_mut(&mut operation)])?;
    let answer = operation.read_body::<GetDomainInfoList>().unwrap_or_default();
    Ok((answer.num_domains as usize).min(domains.len()))
}

/// Reads the hypervisor's log from position `index` on. Returns the bytes written and the position after them.
///
/// # Errors
/// Why the hypervisor refuses.
pub fn read_log<A: Architecture>(index: u32, buffer: &mut [u8]) -> Result<(usize, u32), Errno> {
    let request = ReadConsole {
        incremental: 1,
        index,
        buffer: address_of_mut(buffer),
        count: buffer.len() as u32,
        ..Default::default()
    };
    let mut operation = Sysctl::new(sysctl::READCONSOLE, request.as_bytes());
    call::<A>(number::SYSCTL, &[address_of_mut(&mut operation)])?;
    let answer = operation.read_body::<ReadConsole>().unwrap_or_default();
    Ok(((answer.count as usize).min(buffer.len()), answer.index))
}
