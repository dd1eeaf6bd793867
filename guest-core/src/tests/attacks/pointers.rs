//! Pointers that lead where a guest has nothing, in every hypercall that takes one; and multicalls that pull away what they stand on.

use super::scene::{SLOT, Tree};
use crate::architecture::{Architecture, PAGE_SIZE, PointerCall};
use crate::guest::Guest;
use crate::hypercalls::{address_of, address_of_mut, call, entry, exchange, mmuext};
use crate::say;
use crate::tests::Check;
use penumbra_abi::domctl::{self, Domctl, GetMemoryList};
use penumbra_abi::grant_table::{GNTTABOP_SETUP_TABLE, SetupTable};
use penumbra_abi::memory::{self, MemoryMap, MemoryReservation};
use penumbra_abi::mmu::{self, MmuUpdate, MmuextOp};
use penumbra_abi::multicall::MulticallEntry;
use penumbra_abi::sysctl::{self, GetDomainInfoList, ReadConsole, Sysctl};
use penumbra_abi::{DOMID_SELF, Errno, console, event_channel, hypercall as number, sched, vcpu, version};
use zerocopy::IntoBytes;

/// XSA-29 and 212: ranges of guest pointers were not checked, so that the hypervisor read or wrote its own memory on a guest's
/// behalf.
pub fn everywhere<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let (Some(tree), Some(page)) = (Tree::build(guest, check), guest.zeroed_page()) else {
        return check.that("pages for the test", false);
    };
    check.done("a page before nothing", tree.put(1, 30, A::leaf(guest.frame(&page), true)));
    let end = Tree::<A>::address(0, 31);
    // The last byte of memory, with nothing behind it: structures begin well, and end badly.
    let crossing = [end - 1, end];
    let reserved = A::RESERVED_SLOTS.map(|slot| 0xffff_0000_0000_0000 | (slot as u64) << 39 | 0x20_0000);
    let window = A::RESERVED_SLOTS.start;
    let hypervisor = reserved.filter(|address| (address >> 39 & 511) as usize != window);
    let numbers = [0x10, 0x1000, 0x4000_0000, 0x10_0000, 1 << 47, 1 << 63, 0x0001_0000_0000_0000];
    let wrapping = [!0, !7, !0xfff, !0xfff | 0xff8];
    let mut calls = 0u64;
    for pointer in hypervisor.chain(numbers).chain(wrapping).chain(crossing) {
        for (name, attempt) in inputs::<A>()
            .into_iter()
            .chain(more_inputs::<A>())
            .chain(outputs::<A>())
            .chain(more_outputs::<A>())
            .chain(A::POINTER_CALLS.iter().copied())
        {
            calls += 1;
            let result = attempt(pointer);
            // "None were done" is how reservations say it, and what was to be read of an empty buffer.
            if !matches!(result, Ok(0) | Err(_)) {
                say!(A, "  {name} at {pointer:#x}: {result:?}");
                check.that(name, false);
            }
        }
    }
    say!(A, "  {calls} calls");
    read_only(guest, check);
    tree.remove(check);
    guest.pages.free(page);
}

/// What can be read, and written by nobody: every call that writes must leave it as it is.
fn read_only<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    for pointer in [guest.info.pt_base, A::M2P_WINDOW + guest.root_frame() * 8] {
        let content = |index: u64| A::read_word(pointer + index * 8);
        let before = core::array::from_fn::<u64, 16, _>(|index| content(index as u64));
        for (name, attempt) in outputs::<A>().into_iter().chain(more_outputs::<A>()) {
            let result = attempt(pointer);
            check.that(name, matches!(result, Ok(0) | Err(_)));
        }
        // A page-table entry that is in use may get its accessed bit from the processor meanwhile.
        let same = (0u64..).zip(before).all(|(index, word)| (content(index) ^ word) & !A::HARDWARE_BITS == 0);
        check.that("what is read-only stays as it was", same);
    }
}

fn own() -> u64 {
    u64::from(DOMID_SELF)
}

fn reservation_at(extent_start: u64) -> MemoryReservation {
    MemoryReservation { extent_start, nr_extents: 1, domid: DOMID_SELF, ..MemoryReservation::default() }
}

/// Calls that read from the pointer, or from a list that lies there.
fn inputs<A: Architecture>() -> [PointerCall; 11] {
    [
        ("mmu_update", |p| call::<A>(number::MMU_UPDATE, &[p, 1, 0, own()])),
        ("mmu_update, many", |p| call::<A>(number::MMU_UPDATE, &[p, 0x7fff_ffff, 0, own()])),
        ("mmuext_op", |p| call::<A>(number::MMUEXT_OP, &[p, 1, 0, own()])),
        ("mmuext_op, many", |p| call::<A>(number::MMUEXT_OP, &[p, 0x7fff_ffff, 0, own()])),
        ("mmuext_op, a set of vCPUs", |p| mmuext::<A>(mmu::MMUEXT_TLB_FLUSH_MULTI, 0, p).map(|()| 0)),
        ("multicall", |p| call::<A>(number::MULTICALL, &[p, 1])),
        ("multicall, many", |p| call::<A>(number::MULTICALL, &[p, 0xffff_ffff])),
        ("console_io write", |p| call::<A>(number::CONSOLE_IO, &[console::CONSOLEIO_WRITE, 64, p])),
        ("console_io write, without end", |p| {
            call::<A>(number::CONSOLE_IO, &[console::CONSOLEIO_WRITE, 0x7fff_ffff, p])
        }),
        ("shutdown", |p| call::<A>(number::SCHED_OP, &[sched::SCHEDOP_SHUTDOWN, p])),
        ("poll", |p| call::<A>(number::SCHED_OP, &[sched::SCHEDOP_POLL, p])),
    ]
}

/// The rest of them: memory, events, vCPUs, control.
fn more_inputs<A: Architecture>() -> [PointerCall; 13] {
    [
        ("current_reservation", |p| call::<A>(number::MEMORY_OP, &[memory::XENMEM_CURRENT_RESERVATION, p])),
        ("maximum_reservation", |p| call::<A>(number::MEMORY_OP, &[memory::XENMEM_MAXIMUM_RESERVATION, p])),
        ("decrease_reservation", |p| call::<A>(number::MEMORY_OP, &[memory::XENMEM_DECREASE_RESERVATION, p])),
        ("decrease_reservation's list", |p| {
            call::<A>(
                number::MEMORY_OP,
                &[memory::XENMEM_DECREASE_RESERVATION, address_of(&reservation_at(p))],
            )
        }),
        ("exchange's list of old", |p| {
            let mut new = [0];
            let mut request = exchange(&mut [0], 0, &mut new, 0);
            request.input.extent_start = p;
            call::<A>(number::MEMORY_OP, &[memory::XENMEM_EXCHANGE, address_of_mut(&mut request)])
        }),
        ("event_channel_op", |p| call::<A>(number::EVENT_CHANNEL_OP, &[event_channel::EVTCHNOP_SEND, p])),
        ("event_channel_op close", |p| {
            call::<A>(number::EVENT_CHANNEL_OP, &[event_channel::EVTCHNOP_CLOSE, p])
        }),
        ("vcpu_op initialise", |p| call::<A>(number::VCPU_OP, &[vcpu::VCPUOP_INITIALISE, 0, p])),
        ("vcpu_op register_vcpu_info", |p| {
            call::<A>(number::VCPU_OP, &[vcpu::VCPUOP_REGISTER_VCPU_INFO, 0, p])
        }),
        ("vcpu_op timer", |p| call::<A>(number::VCPU_OP, &[vcpu::VCPUOP_SET_PERIODIC_TIMER, 0, p])),
        ("vcpu_op single-shot timer", |p| {
            call::<A>(number::VCPU_OP, &[vcpu::VCPUOP_SET_SINGLESHOT_TIMER, 0, p])
        }),
        ("domctl", |p| call::<A>(number::DOMCTL, &[p])),
        ("sysctl", |p| call::<A>(number::SYSCTL, &[p])),
    ]
}

/// Calls that write to the pointer, or to a list that lies there.
fn outputs<A: Architecture>() -> [PointerCall; 10] {
    [
        ("mmu_update's count", |p| {
            let requests: [MmuUpdate; 0] = [];
            call::<A>(number::MMU_UPDATE, &[address_of(&requests), 0, p, own()])
        }),
        ("mmuext_op's count", |p| {
            let nothing =
                MmuextOp { command: mmu::MMUEXT_TLB_FLUSH_LOCAL, pad: 0, argument1: 0, argument2: 0 };
            call::<A>(number::MMUEXT_OP, &[address_of(&nothing), 1, p, own()])
        }),
        ("extraversion", |p| call::<A>(number::XEN_VERSION, &[version::XENVER_EXTRAVERSION, p])),
        ("compile_info", |p| call::<A>(number::XEN_VERSION, &[version::XENVER_COMPILE_INFO, p])),
        ("capabilities", |p| call::<A>(number::XEN_VERSION, &[version::XENVER_CAPABILITIES, p])),
        ("changeset", |p| call::<A>(number::XEN_VERSION, &[version::XENVER_CHANGESET, p])),
        ("platform_parameters", |p| {
            call::<A>(number::XEN_VERSION, &[version::XENVER_PLATFORM_PARAMETERS, p])
        }),
        ("get_features", |p| call::<A>(number::XEN_VERSION, &[version::XENVER_GET_FEATURES, p])),
        ("guest_handle", |p| call::<A>(number::XEN_VERSION, &[version::XENVER_GUEST_HANDLE, p])),
        ("commandline", |p| call::<A>(number::XEN_VERSION, &[version::XENVER_COMMANDLINE, p])),
    ]
}

/// The rest of them, most of them lists.
fn more_outputs<A: Architecture>() -> [PointerCall; 13] {
    [
        ("console_io read", |p| call::<A>(number::CONSOLE_IO, &[console::CONSOLEIO_READ, 64, p])),
        ("machphys_mapping", |p| call::<A>(number::MEMORY_OP, &[memory::XENMEM_MACHPHYS_MAPPING, p])),
        ("machphys_mfn_list", |p| call::<A>(number::MEMORY_OP, &[memory::XENMEM_MACHPHYS_MFN_LIST, p])),
        ("memory_map", |p| call::<A>(number::MEMORY_OP, &[memory::XENMEM_MEMORY_MAP, p])),
        ("memory_map's list", |p| {
            let mut map = MemoryMap { nr_entries: 100, buffer: p, pad: 0 };
            call::<A>(number::MEMORY_OP, &[memory::XENMEM_MEMORY_MAP, address_of_mut(&mut map)])
        }),
        ("machine_memory_map's list", |p| {
            let mut map = MemoryMap { nr_entries: 100, buffer: p, pad: 0 };
            call::<A>(number::MEMORY_OP, &[memory::XENMEM_MACHINE_MEMORY_MAP, address_of_mut(&mut map)])
        }),
        ("grant_table_op setup_table's list", |p| {
            let setup = SetupTable { dom: DOMID_SELF, nr_frames: 1, frame_list: p, ..SetupTable::default() };
            let arguments = [u64::from(GNTTABOP_SETUP_TABLE), address_of(&setup), 1];
            call::<A>(number::GRANT_TABLE_OP, &arguments)
        }),
        ("event_channel_op status", |p| {
            call::<A>(number::EVENT_CHANNEL_OP, &[event_channel::EVTCHNOP_STATUS, p])
        }),
        ("vcpu_op runstate", |p| call::<A>(number::VCPU_OP, &[vcpu::VCPUOP_GET_RUNSTATE_INFO, 0, p])),
        ("getmemlist's list", |p| {
            let list = GetMemoryList { max_pfns: 64, start_pfn: 0, buffer: p, num_pfns: 0 };
            let mut operation = Domctl::new(domctl::GETMEMLIST, 0, list.as_bytes());
            call::<A>(number::DOMCTL, &[address_of_mut(&mut operation)])
        }),
        ("getdomaininfolist's list", |p| {
            let list = GetDomainInfoList { max_domains: 4, buffer: p, ..GetDomainInfoList::default() };
            let mut operation = Sysctl::new(sysctl::GETDOMAININFOLIST, list.as_bytes());
            call::<A>(number::SYSCTL, &[address_of_mut(&mut operation)])
        }),
        ("readconsole's buffer", |p| {
            let read = ReadConsole { buffer: p, count: 64, ..ReadConsole::default() };
            let mut operation = Sysctl::new(sysctl::READCONSOLE, read.as_bytes());
            call::<A>(number::SYSCTL, &[address_of_mut(&mut operation)])
        }),
        ("grant_table_op", |p| {
            let all = (0..12u64).map(|command| call::<A>(number::GRANT_TABLE_OP, &[command, p, 1]));
            let mut all = all;
            all.find(|result| result.is_ok_and(|value| value != 0)).unwrap_or(Ok(0))
        }),
    ]
}

/// What stands in a result that nobody has written.
const UNTOUCHED: u64 = 0x5a5a_5a5a_5a5a_5a5a;

/// XSA-213: a multicall went on after one of its calls had changed the privilege under which the rest was to be read. Here calls pull
/// the multicall's own list away: by another root, by its entry, by its right to write. What comes after isn't done, and nothing
/// is written through what was.
pub fn multicalls_that_change_what_they_stand_on<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let (Some(tree), Some(page), Some(second)) =
        (Tree::build(guest, check), guest.zeroed_page(), guest.copy_of_root())
    else {
        return check.that("pages for the test", false);
    };
    guest.write(&second, SLOT as usize, 0);
    check.done("a second root", guest.set_writable(&second, false));
    let address = Tree::<A>::address(0, 40);
    let leaf = |writable| A::leaf(guest.frame(&page), writable);
    let load = |root| MmuextOp { command: mmu::MMUEXT_NEW_BASEPTR, pad: 0, argument1: root, argument2: 0 };
    let (away, back) = (load(guest.frame(&second)), load(guest.root_frame()));
    let empty = entry(number::UPDATE_VA_MAPPING, &[address, 0, mmu::UVMF_INVLPG]);
    let read_only = entry(number::UPDATE_VA_MAPPING, &[address, leaf(false), mmu::UVMF_INVLPG]);
    let root = entry(number::MMUEXT_OP, &[address_of(&away), 1, 0, own()]);
    for (name, first) in [("its root", root), ("its entry", empty), ("its right to write", read_only)] {
        check.done("the list is mapped", tree.put(1, 40, leaf(true)));
        let harmless = entry(number::XEN_VERSION, &[version::XENVER_VERSION, 0]);
        let last = entry(number::UPDATE_VA_MAPPING, &[guest.address(&page), leaf(true), 0]);
        for (index, call) in [harmless, first, last].into_iter().enumerate() {
            lay(guest, &page, index, MulticallEntry { result: UNTOUCHED, ..call });
        }
        let result = call::<A>(number::MULTICALL, &[address, 3]);
        check.refused(name, result, &[Errno::EFAULT]);
        check.done("back on the first root", call::<A>(number::MMUEXT_OP, &[address_of(&back), 1, 0, own()]));
        let results = [0, 1, 2].map(|index| guest.read(&page, index * WORDS + RESULT));
        check.that("the first has its result", results[0] != UNTOUCHED);
        check.that("the others have none", results[1..] == [UNTOUCHED; 2]);
    }
    // A return from an exception is no call among others: what would come after it?
    let version = entry(number::XEN_VERSION, &[version::XENVER_VERSION, 0]);
    let mut calls = [entry(number::IRET, &[]), version];
    check.done("a multicall", crate::hypercalls::multicall::<A>(&mut calls));
    check.that("iret within it is refused", Errno::from_return(calls[0].result).is_err());
    check.that("and the next is done", Errno::from_return(calls[1].result).is_ok());
    check.done("the second root", guest.release(second));
    tree.remove(check);
    guest.pages.free(page);
}

/// 8-byte words of an entry, and which of them is the result.
const WORDS: usize = size_of::<MulticallEntry>() / 8;
const RESULT: usize = core::mem::offset_of!(MulticallEntry, result) / 8;

/// Writes an entry of a list to a page.
fn lay<A: Architecture>(guest: &Guest<A>, page: &crate::pages::Page, index: usize, call: MulticallEntry) {
    let words =
        call.as_bytes().chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()));
    words.enumerate().for_each(|(word, value)| guest.write(page, index * WORDS + word, value));
}

const _: () = assert!(WORDS as u64 * 8 * 3 < PAGE_SIZE);
