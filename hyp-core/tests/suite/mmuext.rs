//! `mmuext_op` beyond pins and roots, flushes on request, guests' pointers, and who may touch whose tables.

use crate::common::{LIST, POOL, Rig, SCRATCH, SELF, address, frame, leaf, place};
use hyp_core::domain::MAX_VCPUS;
use hyp_core::machine::Mmu;
use hyp_core::paging::Budget;
use penumbra_abi::console::{CONSOLEIO_READ, CONSOLEIO_WRITE};
use penumbra_abi::domctl::{self, Domctl, GetMemoryList};
use penumbra_abi::errno::Errno;
use penumbra_abi::memory::{self, ForeignMemoryMap, MemoryExchange, MemoryMap, MemoryReservation};
use penumbra_abi::mmu::{self, MmuUpdate, MmuextOp};
use penumbra_abi::multicall::MulticallEntry;
use penumbra_abi::sched::SCHEDOP_SHUTDOWN;
use penumbra_abi::sysctl::{self, GetDomainInfoList, Sysctl};
use penumbra_abi::version::{
    FeatureInfo, PENUMBRA_FEATURE_SUBMAP, XENFEAT_DOM0, XENFEAT_HIGHMEM_ASSIST, XENVER_GET_FEATURES,
};
use penumbra_abi::{hypercall as number, version};
use zerocopy::IntoBytes;

/// One operation with both arguments.
fn extended(rig: &Rig, who: usize, command: u32, first: u64, second: u64, owner: u64) -> Result<u64, Errno> {
    let operation = MmuextOp { command, pad: 0, argument1: first, argument2: second };
    let at = rig.give(who, 16, operation.as_bytes());
    rig.call(who, number::MMUEXT_OP, [at, 1, 0, owner, 0, 0])
}

fn fill(rig: &Rig, mfn: u64, value: u64) {
    (0..512).for_each(|at| rig.hv.machine().write_entry(frame(mfn), at, value));
}

fn holds(rig: &Rig, mfn: u64, value: u64) -> bool {
    (0..512).all(|at| rig.entry(frame(mfn), at) == value)
}

fn flushes<T>(rig: &Rig, step: impl FnOnce() -> T) -> u64 {
    let before = rig.hv.machine().flushes();
    step();
    rig.hv.machine().flushes() - before
}

// ---- Whole pages -------------------------------------------------------------------------------------------

#[test]
fn pages_are_cleared_and_copied() {
    let rig = Rig::new(1);
    let [one, two] = [0, 1].map(|index| rig.pool(1, index).number());
    fill(&rig, one, 7);
    fill(&rig, two, 8);
    assert_eq!(extended(&rig, 1, mmu::MMUEXT_COPY_PAGE, two, one, SELF), Ok(0));
    assert!(holds(&rig, one, 7) && holds(&rig, two, 7));
    assert_eq!(extended(&rig, 1, mmu::MMUEXT_COPY_PAGE, two, two, SELF), Ok(0), "onto itself");
    assert_eq!(extended(&rig, 1, mmu::MMUEXT_CLEAR_PAGE, two, 0, SELF), Ok(0));
    assert!(holds(&rig, one, 7) && holds(&rig, two, 0));
    rig.check();
    // Mapped nowhere is as good.
    let three = rig.free_up(1, 2).number();
    assert_eq!(extended(&rig, 1, mmu::MMUEXT_COPY_PAGE, three, one, SELF), Ok(0));
    assert!(holds(&rig, three, 7));
    rig.check();
}

/// Clearing or filling a page is a write like any other: not to a table, not to others' memory. Reading a table is harmless.
#[test]
fn only_pages_that_can_be_written_are_cleared_or_copied_to() {
    let rig = Rig::new(2);
    let good = rig.pool(1, 1).number();
    let table = rig.prepare(1, 0, &[(3, leaf(rig.pool(1, 5), false))]);
    rig.pin(1, table, 1).unwrap();
    let bad = [
        ("a pinned table", table.number()),
        ("the root", rig.domains[1].root.number()),
        ("another domain's", rig.pool(2, 0).number()),
        ("the control domain's", rig.pool(0, 0).number()),
        ("free", rig.hv.frames().extent().1 - 1),
        ("no memory", 0),
        ("beyond memory", rig.hv.frames().extent().1),
        ("no frame", u64::MAX),
    ];
    for (what, mfn) in bad {
        let before: Option<Vec<u64>> = rig
            .hv
            .frames()
            .hold(frame(mfn & 0xffff))
            .map(|_| (0..512).map(|at| rig.entry(frame(mfn & 0xffff), at)).collect());
        assert_eq!(extended(&rig, 1, mmu::MMUEXT_CLEAR_PAGE, mfn, 0, SELF), Err(Errno::EINVAL), "{what}");
        assert_eq!(extended(&rig, 1, mmu::MMUEXT_COPY_PAGE, mfn, good, SELF), Err(Errno::EINVAL), "{what}");
        let after: Option<Vec<u64>> = rig
            .hv
            .frames()
            .hold(frame(mfn & 0xffff))
            .map(|_| (0..512).map(|at| rig.entry(frame(mfn & 0xffff), at)).collect());
        assert_eq!(before, after, "{what}");
        rig.check();
    }
    for (what, mfn) in &bad[2..] {
        fill(&rig, good, 1);
        assert_eq!(extended(&rig, 1, mmu::MMUEXT_COPY_PAGE, good, *mfn, SELF), Err(Errno::EINVAL), "{what}");
        assert!(holds(&rig, good, 1));
    }
    assert_eq!(extended(&rig, 1, mmu::MMUEXT_COPY_PAGE, good, table.number(), SELF), Ok(0));
    assert_eq!(rig.entry(frame(good), 3), rig.entry(table, 3));
    rig.check();
}

/// A page that was a table once may still be cached as one: it is flushed before it is written.
#[test]
fn clearing_a_page_that_was_a_table_flushes_and_is_charged() {
    let rig = Rig::new(1);
    let table = rig.prepare(1, 0, &[]);
    rig.pin(1, table, 1).unwrap();
    rig.unpin(1, table).unwrap();
    assert!(
        flushes(&rig, || extended(&rig, 1, mmu::MMUEXT_CLEAR_PAGE, table.number(), 0, SELF).unwrap()) > 0
    );
    rig.check();
    let clear = MmuextOp { command: mmu::MMUEXT_CLEAR_PAGE, pad: 0, argument1: table.number(), argument2: 0 };
    let at = rig.give(1, LIST, vec![clear; 300].as_bytes());
    let done = rig.give(1, 0, &0u64.to_le_bytes());
    let mut arguments = [at, 300, done, SELF, 0, 0];
    let mut rounds = 1;
    while let Err(again) = rig.call_once(1, number::MMUEXT_OP, arguments) {
        arguments = again;
        rounds += 1;
    }
    assert!((4..10).contains(&rounds), "300 pages in {rounds} rounds");
    assert_eq!(rig.word(1, 0), 300);
}

/// A guest that lets a frame change its type again and again pays for the flushes, too.
#[test]
fn flushes_that_changes_of_type_cause_are_charged() {
    let rig = Rig::new(1);
    let table = rig.prepare(1, 0, &[]).number();
    let commands = [mmu::MMUEXT_PIN_L1_TABLE, mmu::MMUEXT_UNPIN_TABLE, mmu::MMUEXT_CLEAR_PAGE];
    let cycle = commands.map(|command| MmuextOp { command, pad: 0, argument1: table, argument2: 0 });
    // A cycle costs 120 without its two flushes: 30 of them would be done in one go.
    let at = rig.give(1, LIST, [cycle; 30].as_bytes());
    let before = rig.hv.machine().flushes();
    let again = rig.call_once(1, number::MMUEXT_OP, [at, 90, 0, SELF, 0, 0]).expect_err("preempted");
    assert_eq!(rig.call(1, number::MMUEXT_OP, again), Ok(0));
    assert!(rig.hv.machine().flushes() - before >= 59);
    rig.check();
}

#[test]
fn the_control_domain_clears_and_copies_for_another() {
    let rig = Rig::new(2);
    let [one, two] = [0, 1].map(|index| rig.pool(1, index).number());
    fill(&rig, one, 3);
    assert_eq!(extended(&rig, 0, mmu::MMUEXT_COPY_PAGE, two, one, 1), Ok(0));
    assert_eq!(extended(&rig, 0, mmu::MMUEXT_CLEAR_PAGE, one, 0, 1), Ok(0));
    assert!(holds(&rig, one, 0) && holds(&rig, two, 3));
    assert_eq!(
        extended(&rig, 0, mmu::MMUEXT_CLEAR_PAGE, one, 0, SELF),
        Err(Errno::EINVAL),
        "it isn't its own"
    );
    assert_eq!(extended(&rig, 0, mmu::MMUEXT_CLEAR_PAGE, rig.pool(0, 0).number(), 0, 1), Err(Errno::EINVAL));
    for command in [mmu::MMUEXT_CLEAR_PAGE, mmu::MMUEXT_COPY_PAGE, mmu::MMUEXT_UNPIN_TABLE] {
        assert_eq!(extended(&rig, 2, command, one, two, 1), Err(Errno::EPERM));
    }
    rig.check();
}

#[test]
fn the_control_domain_pins_and_unpins_for_another() {
    let rig = Rig::new(1);
    let table = rig.prepare(1, 0, &[(0, leaf(rig.pool(1, 1), true))]);
    assert_eq!(extended(&rig, 0, mmu::MMUEXT_PIN_L1_TABLE, table.number(), 0, 1), Ok(0));
    assert_eq!(extended(&rig, 0, mmu::MMUEXT_UNPIN_TABLE, table.number(), 0, SELF), Err(Errno::EINVAL));
    rig.check();
    assert_eq!(extended(&rig, 0, mmu::MMUEXT_UNPIN_TABLE, table.number(), 0, 1), Ok(0));
    assert_eq!(rig.uses(table), 0);
    rig.check();
}

// ---- Operations about the vCPU that asks -------------------------------------------------------------------

/// Roots, flushes, caches and descriptors are one's own: naming another domain is refused even to the control domain, as in Xen.
#[test]
fn a_vcpus_own_operations_are_for_its_own_domain() {
    let rig = Rig::new(1);
    for command in mmu::MMUEXT_NEW_BASEPTR..=mmu::MMUEXT_FLUSH_CACHE_GLOBAL {
        if [14, mmu::MMUEXT_CLEAR_PAGE, mmu::MMUEXT_COPY_PAGE].contains(&command) {
            continue;
        }
        let mfn = rig.domains[1].root.number();
        assert_eq!(
            extended(&rig, 0, command, mfn, address(SCRATCH), 1),
            Err(Errno::EPERM),
            "command {command}"
        );
    }
    rig.check();
}

#[test]
fn caches_are_flushed_for_the_control_domain_alone() {
    let rig = Rig::new(1);
    let flush = |who, command| extended(&rig, who, command, 0, 0, SELF);
    assert_eq!(flush(0, mmu::MMUEXT_FLUSH_CACHE), Ok(0));
    assert_eq!(flush(0, mmu::MMUEXT_FLUSH_CACHE_GLOBAL), Ok(0));
    assert_eq!(flush(1, mmu::MMUEXT_FLUSH_CACHE), Err(Errno::EACCES));
    assert_eq!(flush(1, mmu::MMUEXT_FLUSH_CACHE_GLOBAL), Err(Errno::EINVAL));
}

/// All of a local table's descriptors may have to be judged in one piece, which waits for a budget that covers them, and for no more.
#[test]
fn a_local_table_waits_for_a_budget_that_covers_it() {
    let rig = Rig::new(1);
    let waits = |entries, spent| {
        let operation = MmuextOp { command: mmu::MMUEXT_SET_LDT, pad: 0, argument1: 0, argument2: entries };
        let at = rig.give(1, 0, operation.as_bytes());
        let vcpu = rig.domains[1].vcpu();
        vcpu.context().take();
        let budget = Budget::new(1000);
        budget.charge(spent);
        rig.hv.hypercall_within(vcpu, number::MMUEXT_OP, [at, 1, 0, SELF, 0, 0], &budget);
        vcpu.context().take().again.is_some()
    };
    assert!(!waits(1000, 300));
    assert!(waits(1000, 600));
    assert!(!waits(8192, 0), "no budget is larger than a whole one");
}

#[test]
fn what_isnt_there_is_said_so() {
    let rig = Rig::new(0);
    let mfn = rig.pool(0, 0).number();
    for command in [mmu::MMUEXT_MARK_SUPER, mmu::MMUEXT_UNMARK_SUPER] {
        assert_eq!(extended(&rig, 0, command, mfn, 0, SELF), Err(Errno::EOPNOTSUPP));
    }
    for command in [14, 21, 22, u32::MAX] {
        assert_eq!(extended(&rig, 0, command, mfn, 0, SELF), Err(Errno::ENOSYS), "command {command}");
    }
    assert_eq!(extended(&rig, 0, mmu::MMUEXT_SET_LDT, 0, 0, SELF), Err(Errno::ENOSYS), "not on this machine");
}

#[test]
fn a_set_of_vcpus_is_read_from_the_guest() {
    let rig = Rig::new(1);
    for command in [mmu::MMUEXT_TLB_FLUSH_MULTI, mmu::MMUEXT_INVLPG_MULTI] {
        let ask = |set: u64| {
            let at = rig.give(1, LIST, set.as_bytes());
            flushes(&rig, || assert_eq!(extended(&rig, 1, command, address(POOL), at, SELF), Ok(0)))
        };
        assert_eq!((ask(1), ask(1 << (MAX_VCPUS - 1)), ask(u64::MAX)), (1, 1, 1));
        assert_eq!((ask(0), ask(u64::MAX << MAX_VCPUS)), (0, 0), "nobody is meant");
        for place in [0, address(SCRATCH) + 4 * 4096 + (1 << 23), u64::MAX - 3] {
            assert_eq!(extended(&rig, 1, command, 0, place, SELF), Err(Errno::EINVAL), "{place:#x}");
        }
    }
    let raw = leaf(rig.pool(1, 0), true);
    for kind in [mmu::UVMF_TLB_FLUSH, mmu::UVMF_INVLPG] {
        let map = |flags: u64| rig.call(1, number::UPDATE_VA_MAPPING, [address(POOL), raw, flags, 0, 0, 0]);
        let ask = |set: u64| {
            let at = rig.give(1, LIST, set.as_bytes());
            flushes(&rig, || assert_eq!(map(kind | at), Ok(0)))
        };
        assert_eq!((ask(1), ask(0)), (1, 0));
        assert_eq!(map(kind | 1 << 40), Err(Errno::EFAULT));
        assert_eq!(flushes(&rig, || map(kind | mmu::UVMF_ALL).unwrap()), 1);
        assert_eq!(flushes(&rig, || map(kind | mmu::UVMF_LOCAL).unwrap()), 0, "this CPU only");
    }
    // As Xen: no kind of flush, whatever else is said; and both kinds at once are none.
    for flags in
        [mmu::UVMF_NONE | 1 << 40, mmu::UVMF_FLUSHTYPE_MASK, mmu::UVMF_FLUSHTYPE_MASK | mmu::UVMF_ALL]
    {
        let arguments = [address(POOL), raw, flags, 0, 0, 0];
        assert_eq!(flushes(&rig, || rig.call(1, number::UPDATE_VA_MAPPING, arguments).unwrap()), 0);
    }
    rig.check();
}

/// An unreadable set is found before anything is changed.
#[test]
fn a_mapping_with_an_unreadable_set_of_vcpus_stays() {
    let rig = Rig::new(1);
    let (table, index) = rig.builder_entry(1, POOL);
    let before = rig.entry(table, index);
    let arguments = [address(POOL), 0, mmu::UVMF_TLB_FLUSH | 1 << 40, 0, 0, 0];
    assert_eq!(rig.call(1, number::UPDATE_VA_MAPPING, arguments), Err(Errno::EFAULT));
    assert_eq!(rig.entry(table, index), before);
}

#[test]
fn features_of_our_own_stand_beside_xens() {
    let rig = Rig::new(1);
    let features = |who, submap_idx| {
        let at = rig.give(who, 16, FeatureInfo { submap_idx, submap: 0 }.as_bytes());
        rig.call(who, number::XEN_VERSION, [XENVER_GET_FEATURES, at, 0, 0, 0, 0])
            .map(|_| (rig.word(who, 16) >> 32) as u32)
    };
    let (control, guest) = (features(0, 0).unwrap(), features(1, 0).unwrap());
    assert_eq!(control, guest | 1 << XENFEAT_DOM0);
    assert!(guest >> XENFEAT_HIGHMEM_ASSIST & 1 == 1 && guest >> XENFEAT_DOM0 & 1 == 0);
    assert_eq!(features(1, PENUMBRA_FEATURE_SUBMAP), Ok(1 << version::PENUMBRA_FEATURE_SUPERPAGES));
    assert_eq!(features(1, 2), Err(Errno::EINVAL));
}

// ---- Attacks -----------------------------------------------------------------------------------------------

/// XSA-29 and XSA-212: ranges of guest pointers were not checked (on 64-bit guests of 2005; then in `XENMEM_exchange`), so that a
/// guest could have the hypervisor read and write its own memory. Here every pointer of every hypercall is tried with addresses in the
/// hypervisor's part, at its edges, beyond the address space and around its end.
#[test]
fn xsa_29_and_212_no_pointer_leads_into_the_hypervisor() {
    let rig = Rig::new(1);
    let reserved = (10u64 << 19, 12u64 << 19);
    let bad = [
        reserved.0,
        reserved.0 + 4096,
        reserved.1 - 8,
        reserved.0 - 4,
        1 << 24,
        (1 << 24) - 4,
        1 << 62,
        1 << 63,
        u64::MAX - 7,
        u64::MAX,
    ];
    let good = address(SCRATCH) + 4 * LIST - 256;
    for who in [0, 1] {
        for pointer in bad {
            for (what, number, arguments) in calls(&rig, who, pointer, good) {
                let harmed = rig.hv.machine().harmed_roots();
                let result = rig.call(who, number, arguments);
                let refused = matches!(result, Err(Errno::EFAULT | Errno::EPERM | Errno::EINVAL))
                    || (result == Ok(0) && what.starts_with("0:"));
                assert!(refused, "domain {who}, {what}, {pointer:#x}: {result:?}");
                assert_eq!(rig.hv.machine().harmed_roots(), harmed);
            }
        }
        rig.check();
    }
}

/// Each hypercall that takes a pointer, with `bad` for each of its pointers in turn and `good` for the others. What begins with `0:` answers
/// with the number of things done.
///
/// Long because it is a list, a line for each.
fn calls(rig: &Rig, who: usize, bad: u64, good: u64) -> Vec<(&'static str, u64, [u64; 6])> {
    let own = MemoryReservation {
        nr_extents: 1,
        domid: SELF as u16,
        extent_start: good,
        ..MemoryReservation::default()
    };
    let broken = MemoryReservation { extent_start: bad, ..own };
    let mine = rig.pool(who, 40).number();
    rig.give(who, 4 * LIST - 256, mine.as_bytes());
    let mut at = 16;
    let mut give = |bytes: &[u8]| {
        let place = rig.give(who, at, bytes);
        at += bytes.len().next_multiple_of(16) as u64;
        place
    };
    let reservation = give(broken.as_bytes());
    let old = give(MemoryExchange { input: broken, output: own, nr_exchanged: 0 }.as_bytes());
    let map = give(MemoryMap { nr_entries: 9, pad: 0, buffer: bad }.as_bytes());
    let foreign = MemoryMap { nr_entries: 9, pad: 0, buffer: bad };
    let foreign = give(ForeignMemoryMap { domid: SELF as u16, pad: [0; 3], map: foreign }.as_bytes());
    let list = GetMemoryList { max_pfns: 9, buffer: bad, ..GetMemoryList::default() };
    let list = give(Domctl::new(domctl::GETMEMLIST, who as u16, list.as_bytes()).as_bytes());
    let domains = GetDomainInfoList { max_domains: 9, buffer: bad, ..GetDomainInfoList::default() };
    let domains = give(Sysctl::new(sysctl::GETDOMAININFOLIST, domains.as_bytes()).as_bytes());
    let multi = MmuextOp { command: mmu::MMUEXT_TLB_FLUSH_MULTI, pad: 0, argument1: 0, argument2: bad };
    let multi = give(multi.as_bytes());
    let local = give(MmuextOp { command: mmu::MMUEXT_TLB_FLUSH_LOCAL, ..MmuextOp::default() }.as_bytes());
    let name = mine << 12 | mmu::MMU_MACHPHYS_UPDATE;
    let update = give(MmuUpdate { pointer: name, value: POOL + 40 }.as_bytes());
    let inner =
        MulticallEntry { operation: number::MMU_UPDATE, result: 0, arguments: [bad, 1, 0, SELF, 0, 0] };
    let _ = give(inner.as_bytes());
    let memory = |operation, place| (number::MEMORY_OP, [operation, place, 0, 0, 0, 0]);
    let call = |what, (number, arguments)| (what, number, arguments);
    let mut calls = vec![
        ("mmu_update", number::MMU_UPDATE, [bad, 1, 0, SELF, 0, 0]),
        ("mmu_update, done", number::MMU_UPDATE, [update, 1, bad, SELF, 0, 0]),
        ("mmuext_op", number::MMUEXT_OP, [bad, 1, 0, SELF, 0, 0]),
        ("mmuext_op, done", number::MMUEXT_OP, [local, 1, bad, SELF, 0, 0]),
        ("mmuext_op, a set of vCPUs", number::MMUEXT_OP, [multi, 1, 0, SELF, 0, 0]),
        ("multicall", number::MULTICALL, [bad, 1, 0, 0, 0, 0]),
        ("console, write", number::CONSOLE_IO, [CONSOLEIO_WRITE, 8, bad, 0, 0, 0]),
        ("shutdown", number::SCHED_OP, [SCHEDOP_SHUTDOWN, bad, 0, 0, 0, 0]),
        ("version", number::XEN_VERSION, [version::XENVER_EXTRAVERSION, bad, 0, 0, 0, 0]),
        ("features", number::XEN_VERSION, [XENVER_GET_FEATURES, bad, 0, 0, 0, 0]),
        ("domctl", number::DOMCTL, [bad, 0, 0, 0, 0, 0]),
        ("domctl, list", number::DOMCTL, [list, 0, 0, 0, 0, 0]),
        ("sysctl", number::SYSCTL, [bad, 0, 0, 0, 0, 0]),
        ("sysctl, domains", number::SYSCTL, [domains, 0, 0, 0, 0, 0]),
        call("memory, 3", memory(memory::XENMEM_CURRENT_RESERVATION, bad)),
        call("memory, 12", memory(memory::XENMEM_MACHPHYS_MAPPING, bad)),
        call("memory, 9", memory(memory::XENMEM_MEMORY_MAP, bad)),
        call("memory, 9, list", memory(memory::XENMEM_MEMORY_MAP, map)),
        call("memory, 10", memory(memory::XENMEM_MACHINE_MEMORY_MAP, bad)),
        call("memory, 10, list", memory(memory::XENMEM_MACHINE_MEMORY_MAP, map)),
        call("memory, 13", memory(memory::XENMEM_SET_MEMORY_MAP, bad)),
        call("memory, 13, list", memory(memory::XENMEM_SET_MEMORY_MAP, foreign)),
        call("memory, 11", memory(memory::XENMEM_EXCHANGE, bad)),
        call("memory, 11, old list", memory(memory::XENMEM_EXCHANGE, old)),
    ];
    for operation in [0, 1, 6] {
        calls.push(call("0: reservation", memory(operation, bad)));
        calls.push(call("0: reservation's list", memory(operation, reservation)));
    }
    if who == 0 {
        rig.hv.console_input(b'x');
        calls.push(("console, read", number::CONSOLE_IO, [CONSOLEIO_READ, 8, bad, 0, 0, 0]));
    }
    calls
}

/// XSA-212 itself: the list of new extents lay in the hypervisor, which then wrote frame numbers there. Here it is refused before the old
/// frames are gone.
#[test]
fn xsa_212_the_list_of_an_exchange_is_checked_before_anything_is_given_up() {
    let rig = Rig::new(1);
    let old = rig.unmap(1, 300, 1);
    rig.give(1, LIST, old.as_bytes());
    let extents = |extent_start| MemoryReservation {
        extent_start,
        nr_extents: 1,
        domid: SELF as u16,
        ..MemoryReservation::default()
    };
    for place in [10u64 << 19, (12 << 19) - 8, 1 << 24, u64::MAX - 7] {
        let exchange = MemoryExchange {
            input: extents(address(SCRATCH) + LIST),
            output: extents(place),
            nr_exchanged: 0,
        };
        let at = rig.give(1, 16, exchange.as_bytes());
        let arguments = [memory::XENMEM_EXCHANGE, at, 0, 0, 0, 0];
        assert_eq!(rig.call(1, number::MEMORY_OP, arguments), Err(Errno::EFAULT), "{place:#x}");
        assert_eq!(rig.hv.frames().hold(frame(old[0])).unwrap().owner, Some(rig.domains[1].id()));
        rig.check();
    }
}

/// XSA-109: `mmu_update` was carried out on tables that are not paravirtual tables of the domain that was named. Here the owner of the
/// table has to be the one that was named, and only the control domain can name another.
#[test]
fn xsa_109_tables_are_those_of_the_domain_that_is_named() {
    let rig = Rig::new(2);
    let entries: Vec<_> = (0..3).map(|who| rig.builder_entry(who, POOL)).collect();
    let foreign = |tables: u64| (tables + 1) << 16;
    for asker in 0..3usize {
        for owner in 0..3u64 {
            for named in 0..3u64 {
                let (table, index) = entries[owner as usize];
                let before = rig.entry(table, index);
                let result = rig.update_for(asker, &[(place(table, index), 0)], foreign(named) | named);
                let may = asker == 0 || named == asker as u64;
                let right = match (may, owner == named) {
                    (false, _) => Err(Errno::EPERM),
                    (true, false) => Err(Errno::EINVAL),
                    (true, true) => Ok(0),
                };
                assert_eq!(result, right, "d{asker} on d{owner}'s table, which it calls d{named}'s");
                let after = rig.entry(table, index);
                assert_eq!(after == before, result.is_err() || before == 0);
                let _ = rig.update_for(0, &[(place(table, index), before)], foreign(owner) | owner);
                rig.check();
            }
        }
    }
}

/// XSA-227: an entry's address that isn't aligned to an entry, so that a write spanned two of them.
#[test]
fn xsa_227_entries_are_written_whole() {
    let rig = Rig::new(1);
    let (table, index) = rig.builder_entry(1, POOL);
    let before = [rig.entry(table, index), rig.entry(table, index + 1)];
    // The two lowest bits say what kind of update it is: ordinary, preserving bits, untranslated.
    for offset in [4, 6, 7] {
        let result = rig.update(1, &[(place(table, index) + offset, u64::MAX)]);
        assert_eq!(result, Err(Errno::EINVAL), "offset {offset}");
        assert_eq!([rig.entry(table, index), rig.entry(table, index + 1)], before);
    }
    // In the last entry it would reach into the next frame.
    assert_eq!(rig.update(1, &[(place(table, 511) + 4, 0)]), Err(Errno::EINVAL));
    rig.check();
}

// ---- Other domains' frames -----------------------------------------------------------------------------------

/// The control domain maps another's frame in its own tables, by both calls; nobody else can, and the frame is counted.
#[test]
fn only_the_control_domain_maps_others_frames() {
    let rig = Rig::new(2);
    let theirs = rig.pool(2, 0);
    let references = || rig.hv.frames().hold(theirs).unwrap().references;
    let before = references();
    for asker in 0..2usize {
        let right = if asker == 0 { Ok(0) } else { Err(Errno::EPERM) };
        let (table, index) = rig.builder_entry(asker, POOL);
        let old = rig.entry(table, index);
        assert_eq!(rig.update_for(asker, &[(place(table, index), leaf(theirs, true))], 2), right);
        assert_eq!(references(), before + u32::from(asker == 0));
        rig.check();
        rig.update(asker, &[(place(table, index), old)]).unwrap();
        let raw = leaf(theirs, false);
        let call = |domain| {
            let arguments = [address(POOL), raw, mmu::UVMF_INVLPG, domain, 0, 0];
            rig.call(asker, number::UPDATE_VA_MAPPING_OTHERDOMAIN, arguments)
        };
        assert_eq!(call(2), right);
        rig.check();
        assert_eq!(call(99), if asker == 0 { Err(Errno::ESRCH) } else { Err(Errno::EPERM) });
        rig.update(asker, &[(place(table, index), old)]).unwrap();
        // In one's own name it is never right.
        assert_eq!(rig.update(asker, &[(place(table, index), raw)]), Err(Errno::EBUSY));
        assert_eq!(references(), before);
    }
    // The domain that is named is the frame's owner, or nothing is mapped.
    let (table, index) = rig.builder_entry(0, POOL);
    assert_eq!(rig.update_for(0, &[(place(table, index), leaf(theirs, true))], 1), Err(Errno::EBUSY));
    // A table of another's can be looked at, not written.
    let root = rig.domains[2].root;
    assert_eq!(rig.update_for(0, &[(place(table, index), leaf(root, true))], 2), Err(Errno::EBUSY));
    assert_eq!(rig.update_for(0, &[(place(table, index), leaf(root, false))], 2), Ok(0));
    rig.check();
    // Its owner dies; what is mapped stays until it is unmapped.
    rig.update_for(0, &[(place(table, index), leaf(theirs, true))], 2).unwrap();
    rig.bury(2);
    assert_eq!(references(), 1);
    rig.update(0, &[(place(table, index), 0)]).unwrap();
    assert_eq!(rig.hv.frames().hold(theirs).unwrap().owner, None);
    while rig.hv.background() {}
    rig.check();
}
