//! Single operations that aren't counted for the guest, as kernels issue most: the shortest way does what the others do, and no more.

use super::writable::{hang, kind, mapped, unhook};
use crate::common::{Rig, SELF, leaf, place, table};
use hyp_core::fake::format::FORCED;
use hyp_core::frame::FrameType;
use hyp_core::machine::GuestMemory;
use hyp_core::paging::Budget;
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
