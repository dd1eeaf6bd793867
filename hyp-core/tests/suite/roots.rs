//! Both roots of a vCPU in one list of operations, as kernels ask for them from process to process.

use std::cell::Cell;

use hyp_core::address::MachineFrame;
use hyp_core::paging::Budget;
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::mmu::{self, MmuextOp};
use zerocopy::IntoBytes;

use crate::common::{LIST, POOL, Rig, SELF, address, leaf, table};

/// A root that nothing holds, over two level-1 tables and what the builder's root maps. It takes six frames of the pool, from `first` on.
fn tree(rig: &Rig, first: u64) -> MachineFrame {
    let full: Vec<_> = (0..16).map(|index| (index, leaf(rig.pool(1, 50), false))).collect();
    let ones = [0, 1].map(|at| rig.prepare(1, first + at, &full));
    let two = rig.prepare(1, first + 2, &[(0, table(ones[0])), (1, table(ones[1]))]);
    let built = rig.domains[1].root;
    let mut entries: Vec<_> = (16..24).map(|index| (index, rig.entry(built, index))).collect();
    entries.push((5, table(two)));
    rig.prepare(1, first + 3, &entries)
}

/// The hypercall for a kernel's and a user mode's root.
fn list(rig: &Rig, kernel: u64, user: u64) -> [u64; 6] {
    let operation = |command, argument1| MmuextOp { command, pad: 0, argument1, argument2: 0 };
    let both = [operation(mmu::MMUEXT_NEW_BASEPTR, kernel), operation(mmu::MMUEXT_NEW_USER_BASEPTR, user)];
    [rig.give(1, LIST, both.as_bytes()), 2, 0, SELF, 0, 0]
}

fn change(rig: &Rig, kernel: MachineFrame, user: MachineFrame) -> Result<u64, Errno> {
    rig.call(1, number::MMUEXT_OP, list(rig, kernel.number(), user.number()))
}

fn roots(rig: &Rig) -> [Option<MachineFrame>; 2] {
    let vcpu = rig.domains[1].vcpu();
    [vcpu.kernel_root(), vcpu.user_root()]
}

/// Issues the hypercall with so small a budget each time until it is done. In between the books are right.
fn in_pieces(rig: &Rig, (number, mut arguments): (u64, [u64; 6]), budget: u32) -> u64 {
    let guest = &rig.domains[1];
    for _ in 0..1000 {
        rig.hv.machine().set_root(guest.vcpu().kernel_root().unwrap());
        guest.vcpu().context().take();
        rig.hv.hypercall_within(guest.vcpu(), number, arguments, &Budget::new(budget));
        let registers = guest.vcpu().context().take();
        rig.check();
        match registers.again {
            None => return registers.result.unwrap(),
            Some(again) => arguments = again,
        }
    }
    panic!("it does not end");
}

#[test]
fn both_roots_change_in_one_call() {
    let rig = Rig::new(1);
    let trees = [0, 6, 12, 18].map(|first| tree(&rig, first));
    trees.iter().for_each(|root| assert_eq!(rig.pin(1, *root, 3), Ok(0)));
    let [one, two, three, four] = trees;
    let flushes = rig.hv.machine().flushes();
    for (kernel, user) in
        [(one, two), (three, four), (three, four), (one, four), (four, three), (two, two), (one, two)]
    {
        assert_eq!(change(&rig, kernel, user), Ok(0));
        assert_eq!(roots(&rig), [Some(kernel), Some(user)]);
        for root in trees {
            let held = roots(&rig).into_iter().filter(|loaded| *loaded == Some(root)).count();
            assert_eq!(rig.uses(root), 1 + held as u32, "its pin, and where it is a root");
        }
        rig.check();
    }
    assert_eq!(rig.hv.machine().flushes(), flushes);
}

/// Whatever is wrong with the second root, the first is loaded by then, as by a list of any two operations.
#[test]
fn of_a_refused_root_the_others_before_it_are_loaded() {
    let rig = Rig::new(1);
    let [one, two, three] = [0, 6, 12].map(|first| tree(&rig, first));
    [one, two, three].iter().for_each(|root| assert_eq!(rig.pin(1, *root, 3), Ok(0)));
    change(&rig, one, two).unwrap();
    let bad =
        [rig.pool(1, 40).number(), rig.pool(0, 1).number(), rig.hv.frames().extent().1, 1 << 40, u64::MAX];
    for root in bad {
        assert_eq!(change(&rig, one, two), Ok(0));
        let arguments = list(&rig, root, three.number());
        assert_eq!(rig.call(1, number::MMUEXT_OP, arguments), Err(Errno::EINVAL), "{root:#x}");
        assert_eq!(roots(&rig), [Some(one), Some(two)]);
        rig.check();
        let arguments = list(&rig, three.number(), root);
        assert_eq!(rig.call(1, number::MMUEXT_OP, arguments), Err(Errno::EINVAL), "{root:#x}");
        assert_eq!(roots(&rig), [Some(three), Some(two)]);
        assert_eq!([one, two, three].map(|root| rig.uses(root)), [1, 2, 2]);
        rig.check();
    }
    // No user mode any more.
    let arguments = list(&rig, one.number(), 0);
    assert_eq!(rig.call(1, number::MMUEXT_OP, arguments), Ok(0));
    assert_eq!((roots(&rig), rig.uses(two)), ([Some(one), None], 1));
    // A list that can't be read.
    assert_eq!(rig.call(1, number::MMUEXT_OP, [1 << 60, 2, 0, SELF, 0, 0]), Err(Errno::EFAULT));
    // Another domain's vCPUs aren't meant.
    let mut arguments = list(&rig, three.number(), two.number());
    arguments[3] = 0;
    assert_eq!(rig.call(1, number::MMUEXT_OP, arguments), Err(Errno::EPERM));
    assert_eq!(roots(&rig), [Some(one), None]);
    rig.check();
}

/// Two operations of other kinds, whose arguments would do as roots, are what they are.
#[test]
fn other_pairs_of_operations_are_no_roots() {
    let rig = Rig::new(1);
    let [one, two, three] = [0, 6, 12].map(|first| tree(&rig, first));
    [one, two, three].iter().for_each(|root| assert_eq!(rig.pin(1, *root, 3), Ok(0)));
    change(&rig, one, two).unwrap();
    let pair = |first, second, argument1: MachineFrame, other: MachineFrame| {
        let operation = |command, frame: MachineFrame| MmuextOp {
            command,
            pad: 0,
            argument1: frame.number(),
            argument2: 0,
        };
        let at = rig.give(1, LIST, [operation(first, argument1), operation(second, other)].as_bytes());
        rig.call(1, number::MMUEXT_OP, [at, 2, 0, SELF, 0, 0])
    };
    let (kernel, user) = (mmu::MMUEXT_NEW_BASEPTR, mmu::MMUEXT_NEW_USER_BASEPTR);
    assert_eq!(pair(mmu::MMUEXT_UNPIN_TABLE, user, three, one), Ok(0));
    assert_eq!((roots(&rig), rig.uses(three)), ([Some(one), Some(one)], 0));
    assert_eq!(pair(kernel, mmu::MMUEXT_UNPIN_TABLE, two, one), Ok(0));
    assert_eq!((roots(&rig), rig.uses(one)), ([Some(two), Some(one)], 1));
    // The other way round.
    assert_eq!(pair(user, kernel, two, one), Ok(0));
    assert_eq!(roots(&rig), [Some(one), Some(two)]);
    rig.check();
}

/// Old roots that nobody else holds are dropped, both of them, in pieces if need be; new ones that nobody holds yet are validated.
#[test]
fn roots_are_validated_and_dropped_within_the_budget() {
    let something_else = |rig: &Rig| {
        (number::UPDATE_VA_MAPPING, [address(POOL + 60), leaf(rig.pool(1, 60), true), 0, 0, 0, 0])
    };
    for budget in [1, 5, 16, 4096] {
        for pinned in [[true, true], [true, false], [false, true], [false, false]] {
            let rig = Rig::new(1);
            let [one, two, three, four] = [0, 6, 12, 18].map(|first| tree(&rig, first));
            change(&rig, one, two).unwrap();
            for (root, pinned) in [three, four].into_iter().zip(pinned) {
                assert!(!pinned || rig.pin(1, root, 3) == Ok(0));
            }
            let arguments = list(&rig, three.number(), four.number());
            assert_eq!(in_pieces(&rig, (number::MMUEXT_OP, arguments), budget), 0);
            assert_eq!(roots(&rig), [Some(three), Some(four)]);
            assert_eq!(in_pieces(&rig, something_else(&rig), budget), 0);
            let held = pinned.map(|pinned| 1 + u32::from(pinned));
            assert_eq!([one, two, three, four].map(|root| rig.uses(root)), [0, 0, held[0], held[1]]);
        }
    }
}

/// With nothing left of the budget, nothing is done.
#[test]
fn roots_wait_for_a_budget() {
    let rig = Rig::new(1);
    let trees = [0, 6, 12, 18].map(|first| tree(&rig, first));
    trees.iter().for_each(|root| assert_eq!(rig.pin(1, *root, 3), Ok(0)));
    change(&rig, trees[0], trees[1]).unwrap();
    let (guest, arguments) = (&rig.domains[1], list(&rig, trees[2].number(), trees[3].number()));
    let budget = Budget::new(100);
    budget.charge(100);
    guest.vcpu().context().take();
    rig.hv.hypercall_within(guest.vcpu(), number::MMUEXT_OP, arguments, &budget);
    assert!(guest.vcpu().context().take().again.is_some());
    assert_eq!(roots(&rig), [Some(trees[0]), Some(trees[1])]);
    // And what is done is charged.
    let budget = Budget::new(100);
    rig.hv.hypercall_within(guest.vcpu(), number::MMUEXT_OP, arguments, &budget);
    assert_eq!(roots(&rig), [Some(trees[2]), Some(trees[3])]);
    assert!(budget.covers(100 - 2 * Budget::OPERATION - 1) && !budget.covers(1));
}

/// What isn't validated is left to the general way, which begins with a whole budget: nothing of it is spent here, and nothing begun.
#[test]
fn at_once_takes_a_validated_root_and_spends_nothing_on_another() {
    let rig = Rig::new(1);
    let (root, guest) = (tree(&rig, 0), &rig.domains[1]);
    let operation =
        MmuextOp { command: mmu::MMUEXT_NEW_BASEPTR, pad: 0, argument1: root.number(), argument2: 0 };
    let arguments = [rig.give(1, LIST, operation.as_bytes()), 1, 0, SELF, 0, 0].map(Cell::new);
    let at_once = |budget: &Budget| {
        rig.hv.machine().set_root(guest.vcpu().kernel_root().unwrap());
        let done = rig.hv.at_once(guest.domain, guest.vcpu(), number::MMUEXT_OP, &arguments, budget);
        rig.check();
        done
    };
    let whole = Budget::new(Budget::HYPERCALL);
    let before = roots(&rig);
    assert!(!at_once(&whole));
    let left = whole.operations(usize::MAX);
    assert_eq!(left, Budget::new(Budget::HYPERCALL).operations(usize::MAX), "some of the budget is gone");
    assert_eq!((roots(&rig), rig.uses(root)), (before, 0));
    assert_eq!(rig.pin(1, root, 3), Ok(0));
    assert!(at_once(&whole));
    assert_eq!(roots(&rig)[0], Some(root));
    assert_eq!(whole.operations(usize::MAX), left - 1);
}
