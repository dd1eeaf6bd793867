//! Single operations that aren't counted for the guest, as kernels issue most: the shortest way does what the others do, and no more.

use super::writable::{hang, kind, mapped, unhook};
use crate::common::{Rig, SELF, leaf, place, table};
use hyp_core::address::MachineAddress;
use hyp_core::fake::Fake;
use hyp_core::fake::format::FORCED;
use hyp_core::frame::FrameType;
use hyp_core::machine::{GuestMemory, Machine, PageTableFormat};
use hyp_core::paging::single::map_where_nothing_is;
use hyp_core::paging::{Budget, Stop};
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::mmu::{MMUEXT_INVLPG_LOCAL, MMUEXT_TLB_FLUSH_LOCAL, MmuUpdate, MmuextOp};
use zerocopy::IntoBytes;

/// One update, not counted.
fn update(rig: &Rig, pointer: u64, value: u64) -> Result<u64, Errno> {
    let at = rig.give(1, 16, MmuUpdate { pointer, value }.as_bytes());
    let outcome = rig.call(1, number::MMU_UPDATE, [at, 1, 0, SELF, 0, 0]);
    rig.check();
    outcome
}

#[test]
fn one_page_is_mapped_changed_and_unmapped() {
    let rig = Rig::new(1);
    let one = rig.prepare(1, 0, &[]);
    rig.pin(1, one, 1).expect("a table");
    let (page, other) = (rig.pool(1, 30), rig.pool(1, 31));
    let uses = rig.uses(page);
    for (raw, more) in [
        (leaf(page, true), 1),
        (leaf(page, false), 0),
        (leaf(page, true), 1),
        (leaf(other, true), 0),
        (0, 0),
        (leaf(page, false), 0),
        (leaf(page, true) & !FORCED, 1),
        (0, 0),
    ] {
        assert_eq!(update(&rig, place(one, 5), raw), Ok(0), "{raw:#x}");
        let stands = if raw == 0 { 0 } else { raw | FORCED };
        assert_eq!((rig.entry(one, 5), rig.uses(page)), (stands, uses + more), "{raw:#x}");
    }
}

#[test]
fn what_may_not_be_mapped_is_refused_and_nothing_is_held() {
    let rig = Rig::new(2);
    let one = rig.prepare(1, 0, &[(1, leaf(rig.pool(1, 30), false))]);
    rig.pin(1, one, 1).expect("a table");
    let page = leaf(rig.pool(1, 31), true);
    let stands = rig.entry(one, 1);
    for index in [1, 5] {
        for (raw, errno) in [
            (leaf(one, true), Errno::EBUSY),
            (leaf(rig.domains[1].root, true), Errno::EBUSY),
            (leaf(rig.pool(2, 3), true), Errno::EBUSY),
            (leaf(rig.pool(2, 3), false), Errno::EBUSY),
            (table(one), Errno::EINVAL),
            (page | 1 << 12, Errno::EINVAL),
        ] {
            assert_eq!(update(&rig, place(one, index), raw), Err(errno), "{raw:#x}");
            assert_eq!(rig.entry(one, index), if index == 1 { stands } else { 0 });
        }
    }
    // Places that are none: between two entries, in another's table, in no memory.
    let theirs = rig.prepare(2, 0, &[]);
    rig.pin(2, theirs, 1).expect("a table");
    assert_eq!(update(&rig, place(one, 5) | 4, page), Err(Errno::EINVAL));
    assert_eq!(update(&rig, place(theirs, 5), page), Err(Errno::EINVAL));
    assert_eq!(update(&rig, 1 << 45, page), Err(Errno::EINVAL));
    assert_eq!((rig.entry(one, 5), rig.entry(theirs, 5)), (0, 0));
    // A page of one's own is written to as such, where nothing is judged.
    let own = rig.pool(1, 32);
    assert_eq!(update(&rig, place(own, 3), leaf(one, true)), Ok(0));
    assert_eq!(rig.entry(own, 3), leaf(one, true));
}

/// By itself: whether it maps a page, which it does where nothing is in complete tables of one's own.
#[test]
fn the_shortest_way_leads_to_ones_own_complete_tables_alone() {
    let rig = Rig::new(2);
    let (one, two) = (rig.prepare(1, 0, &[]), rig.prepare(1, 1, &[]));
    rig.pin(1, one, 1).expect("a table");
    rig.pin(1, two, 2).expect("a table");
    let theirs = rig.prepare(2, 0, &[]);
    rig.pin(2, theirs, 1).expect("a table");
    let (page, own) = (rig.pool(1, 30), rig.pool(1, 31));
    let before = rig.uses(page);
    let map = |pointer: u64, raw: u64| {
        let admitted = <Fake as Machine>::Format::admit_page(raw).expect("a page's");
        let place = MachineAddress::new(pointer).expect("an address");
        let domain = rig.domains[1].domain;
        map_where_nothing_is(rig.hv.machine(), rig.hv.frames(), domain, place, admitted)
    };
    let raw = leaf(page, true);
    let nowhere = [
        ("a page", place(own, 3)),
        ("an upper table", place(two, 3)),
        ("another domain's", place(theirs, 3)),
        ("behind the last entry", place(one, <Fake as Machine>::Format::entries(1))),
        ("no memory", 1 << 45),
    ];
    for (name, place) in nowhere {
        assert!(!map(place, raw), "{name}");
        assert_eq!(rig.uses(page), before, "{name}");
        rig.check();
    }
    assert!([own, two, theirs].iter().all(|table| rig.entry(*table, 3) == 0));
    for bad in [leaf(one, true), leaf(theirs, false), leaf(rig.pool(2, 3), true)] {
        assert!(!map(place(one, 3), bad), "{bad:#x}");
        rig.check();
    }
    rig.hv.frames().set_progress(one, 3);
    assert!(!map(place(one, 3), raw), "incomplete");
    rig.hv.frames().complete(one);
    assert!(map(place(one, 3), raw) && map(place(one, 4), leaf(page, false)));
    assert_eq!((rig.entry(one, 3), rig.uses(page)), (raw | FORCED, before + 1));
    assert!(!map(place(one, 3), leaf(own, true)), "something is there");
    assert_eq!((rig.entry(one, 3), rig.entry(one, 5)), (raw | FORCED, 0));
    rig.check();
    let unfinished = Budget::new(1);
    let large = rig.prepare(1, 2, &[(1, table(rig.prepare(1, 3, &[])))]);
    assert_eq!(rig.space(1, &unfinished).hold(large, 2), Err(Stop::Preempted));
    assert!(!map(place(one, 5), raw), "while something is unfinished");
}

#[test]
fn the_shortest_way_is_not_gone_while_tables_are_unhooked() {
    let rig = Rig::new(1);
    let one = rig.prepare(1, 20, &[]);
    rig.pin(1, one, 1).expect("a table");
    hang(&rig, 1, 0, &[]);
    let admitted = <Fake as Machine>::Format::admit_page(leaf(rig.pool(1, 12), true)).expect("a page's");
    let map = |index| {
        let place = MachineAddress::new(place(one, index)).expect("an address");
        map_where_nothing_is(rig.hv.machine(), rig.hv.frames(), rig.domains[1].domain, place, admitted)
    };
    assert!(map(1));
    assert_eq!(unhook(&rig, 1, mapped(0)), Ok(0));
    assert!(!map(2));
    assert_eq!(rig.entry(one, 2), 0);
}

#[test]
fn upper_tables_and_incomplete_ones_go_the_full_way() {
    let rig = Rig::new(1);
    let one = rig.prepare(1, 0, &[]);
    let two = rig.prepare(1, 1, &[]);
    rig.pin(1, two, 2).expect("a table");
    assert_eq!(update(&rig, place(two, 3), table(one)), Ok(0));
    assert_eq!(kind(&rig, one).0, FrameType::Table(1));
    assert_eq!(update(&rig, place(one, 3), leaf(rig.pool(1, 30), true)), Ok(0));
    assert_eq!(update(&rig, place(two, 3), 0), Ok(0));
    assert_eq!(rig.uses(one), 0);
}

#[test]
fn tables_that_are_unhooked_come_back_first() {
    let rig = Rig::new(1);
    let (one, _) = hang(&rig, 1, 0, &[]);
    let page = leaf(rig.pool(1, 0), true);
    assert_eq!(unhook(&rig, 1, mapped(0)), Ok(0));
    assert_eq!(kind(&rig, one).0, FrameType::Writable);
    assert_eq!(update(&rig, place(one, 2), page), Ok(0));
    assert_eq!((kind(&rig, one).0, rig.entry(one, 2)), (FrameType::Table(1), page));
    for command in [MMUEXT_INVLPG_LOCAL, MMUEXT_TLB_FLUSH_LOCAL] {
        assert_eq!(unhook(&rig, 1, mapped(0)), Ok(0));
        let operation = MmuextOp { command, pad: 0, argument1: 0, argument2: 0 };
        let at = rig.give(1, 16, operation.as_bytes());
        assert_eq!(rig.call(1, number::MMUEXT_OP, [at, 1, 0, SELF, 0, 0]), Ok(0));
        assert_eq!(kind(&rig, one).0, FrameType::Table(1));
        rig.check();
    }
}

#[test]
fn a_spent_budget_comes_first_and_each_operation_is_charged() {
    let rig = Rig::new(1);
    let one = rig.prepare(1, 0, &[]);
    rig.pin(1, one, 1).expect("a table");
    let vcpu = rig.domains[1].vcpu();
    let page = leaf(rig.pool(1, 30), true);
    let flush = MmuextOp { command: MMUEXT_TLB_FLUSH_LOCAL, pad: 0, argument1: 0, argument2: 0 };
    // A page where nothing is, another right, nothing; and a flush.
    let calls = [
        (number::MMU_UPDATE, MmuUpdate { pointer: place(one, 5), value: page }.as_bytes().to_vec()),
        (
            number::MMU_UPDATE,
            MmuUpdate { pointer: place(one, 5), value: leaf(rig.pool(1, 30), false) }.as_bytes().to_vec(),
        ),
        (number::MMU_UPDATE, MmuUpdate { pointer: place(one, 5), value: 0 }.as_bytes().to_vec()),
        (number::MMUEXT_OP, flush.as_bytes().to_vec()),
    ];
    for (number, bytes) in calls {
        let at = rig.give(1, 16, &bytes);
        let budget = Budget::new(Budget::OPERATION);
        for spent in [true, false, true] {
            let budget = if spent { &Budget::new(0) } else { &budget };
            rig.hv.machine().set_root(rig.domains[1].root);
            vcpu.context().take();
            rig.hv.hypercall_within(vcpu, number, [at, 1, 0, SELF, 0, 0], budget);
            let registers = vcpu.context().take();
            assert_eq!((registers.again.is_some(), registers.result.is_some()), (spent, !spent));
            assert!(budget.is_spent());
            rig.check();
        }
    }
    let nowhere = rig.call(1, number::MMU_UPDATE, [1 << 40, 1, 0, SELF, 0, 0]);
    assert_eq!(nowhere, Err(Errno::EFAULT));
    let mut byte = [0; 1];
    assert!(rig.hv.machine().read_guest(hyp_core::address::GuestVirtual::new(1 << 40), &mut byte).is_err());
}
