//! Rows of `mmu_update` that change rights and keep what hardware has set: done in one go where they are nothing else, and as one by one
//! where they are more, or not allowed.

use crate::common::{Rig, SELF, leaf, place, table};
use hyp_core::address::MachineFrame;
use hyp_core::fake::format::HARDWARE as DIRTY_AND_ACCESSED;
use hyp_core::paging::Budget;
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::mmu::{MMU_PT_UPDATE_PRESERVE_AD, MmuUpdate};
use zerocopy::IntoBytes;

/// Entries of a table that the tests use.
const ENTRIES: usize = 12;

/// A pinned level-1 table that maps pages of the guest's from `from` on, all writable or none.
fn mapping(rig: &Rig, index: u64, from: u64, writable: bool) -> MachineFrame {
    let entries: Vec<_> =
        (0..ENTRIES).map(|entry| (entry, leaf(rig.pool(1, from + entry as u64), writable))).collect();
    let one = rig.prepare(1, index, &entries);
    rig.pin(1, one, 1).expect("a table");
    one
}

fn preserving(one: MachineFrame, index: usize, raw: u64) -> (u64, u64) {
    (place(one, index) | MMU_PT_UPDATE_PRESERVE_AD, raw)
}

#[test]
fn a_row_of_rights_goes_to_each_table_that_it_names() {
    let rig = Rig::new(1);
    let tables = [mapping(&rig, 0, 30, true), mapping(&rig, 1, 50, true)];
    let page = |which: usize, index: usize| rig.pool(1, [30, 50][which] + index as u64);
    // Runs in the one, runs in the other, and one by one in turns.
    let order: Vec<_> = [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (0, 4), (1, 5), (0, 6)].into();
    let raw = |which, index, writable| leaf(page(which, index), writable);
    for writable in [false, true, false] {
        let row: Vec<_> = order
            .iter()
            .map(|&(which, index)| preserving(tables[which], index, raw(which, index, writable)))
            .collect();
        assert_eq!(rig.update(1, &row), Ok(0));
        assert_eq!(rig.word(1, 0), row.len() as u64);
        rig.check();
        for (which, one) in tables.into_iter().enumerate() {
            for index in 0..ENTRIES {
                let right = writable || !order.contains(&(which, index));
                assert_eq!(rig.entry(one, index), raw(which, index, right) | 1 << 7);
                // The guest's own mapping of its memory is another use.
                let own = rig.uses(rig.pool(1, 29));
                assert_eq!(rig.uses(page(which, index)), own + u32::from(right), "{which} {index}");
            }
        }
    }
}

#[test]
fn a_row_of_rights_keeps_what_hardware_has_set_and_nothing_else() {
    let rig = Rig::new(1);
    let one = mapping(&rig, 0, 30, true);
    let page = |index: usize, writable| leaf(rig.pool(1, 30 + index as u64), writable) | 1 << 7;
    let set = |index: usize| index as u64 & DIRTY_AND_ACCESSED;
    let row: Vec<_> = (0..4).map(|index| (place(one, index), page(index, true) | set(index))).collect();
    assert_eq!(rig.update(1, &row), Ok(0));
    // Whether the guest names the bits as well makes no difference.
    for (writable, named) in [(true, 0), (false, !0), (false, 0), (true, !0)] {
        let raw = |index| page(index, writable) | set(index) & named;
        let row: Vec<_> = (0..4).map(|index| preserving(one, index, raw(index))).collect();
        assert_eq!(rig.update(1, &row), Ok(0));
        assert!((0..4).all(|index| rig.entry(one, index) == page(index, writable) | set(index)));
        rig.check();
    }
}

/// What is not allowed is refused where it stands, with what stands before it done and nothing behind it.
#[test]
fn a_row_of_rights_stops_at_what_is_not_the_guests_to_have() {
    let rig = Rig::new(2);
    let one = mapping(&rig, 0, 30, false);
    let theirs = rig.pool(2, 3);
    let root = rig.domains[1].root;
    rig.update(1, &[(place(one, 2), leaf(root, false))]).expect("a table, to be read");
    let page = |index: usize, writable| leaf(rig.pool(1, 30 + index as u64), writable);
    let bad_bits = page(2, true) | 1 << 12;
    let cases = [
        (leaf(root, true), Errno::EBUSY),
        (leaf(theirs, true), Errno::EBUSY),
        (leaf(theirs, false), Errno::EBUSY),
        (table(root), Errno::EINVAL),
        (bad_bits, Errno::EINVAL),
    ];
    for (bad, errno) in cases {
        let row = [
            preserving(one, 0, page(0, true)),
            preserving(one, 1, page(1, true)),
            preserving(one, 2, bad),
            preserving(one, 3, page(3, true)),
        ];
        assert_eq!((rig.update(1, &row), rig.word(1, 0)), (Err(errno), 2), "{bad:#x}");
        assert_eq!(rig.entry(one, 2), leaf(root, false) | 1 << 7);
        assert_eq!(rig.entry(one, 3), page(3, false) | 1 << 7);
        assert_eq!(rig.entry(one, 1), page(1, true) | 1 << 7);
        rig.check();
        let back = [preserving(one, 0, page(0, false)), preserving(one, 1, page(1, false))];
        assert_eq!(rig.update(1, &back), Ok(0));
    }
    let unaligned = preserving(one, 3, page(3, true));
    let row = [preserving(one, 0, page(0, true)), (unaligned.0 | 4, unaligned.1)];
    assert_eq!((rig.update(1, &row), rig.word(1, 0)), (Err(Errno::EINVAL), 1));
    assert_eq!(rig.entry(one, 3), page(3, false) | 1 << 7);
    rig.check();
}

/// A frame of another domain's, mapped by the control domain, gets no other rights by the control domain's own name.
#[test]
fn a_row_of_rights_is_about_frames_of_the_domain_that_is_named() {
    let rig = Rig::new(1);
    let one = rig.prepare(0, 0, &[]);
    rig.pin(0, one, 1).expect("a table");
    let theirs = [rig.pool(1, 30), rig.pool(1, 31)];
    let row = |writable| [0, 1].map(|index| preserving(one, index, leaf(theirs[index], writable)));
    let map = [0, 1].map(|index| (place(one, index), leaf(theirs[index], true)));
    assert_eq!(rig.update_for(0, &map, 1), Ok(0));
    assert_eq!((rig.update(0, &row(false)), rig.word(0, 0)), (Err(Errno::EBUSY), 0));
    assert_eq!(rig.update_for(0, &row(false), 1), Ok(0));
    assert_eq!((rig.update(0, &row(true)), rig.word(0, 0)), (Err(Errno::EBUSY), 0));
    rig.check();
    assert_eq!(rig.update_for(0, &row(true), 1), Ok(0));
    rig.check();
    // Nor does one of its own by the other's name.
    let own = |writable| [preserving(one, 2, leaf(rig.pool(0, 40), writable))];
    let two = |writable| [own(writable)[0], own(writable)[0]];
    assert_eq!(rig.update(0, &[(place(one, 2), leaf(rig.pool(0, 40), true))]), Ok(0));
    for writable in [false, true] {
        assert_eq!((rig.update_for(0, &two(writable), 1), rig.word(0, 0)), (Err(Errno::EBUSY), 0));
        assert_eq!(rig.update(0, &two(writable)), Ok(0));
        rig.check();
    }
}

/// Entries that change more than rights, in the middle of a row, and updates of another kind.
#[test]
fn a_row_of_rights_may_hold_anything_else() {
    let rig = Rig::new(1);
    let one = mapping(&rig, 0, 30, true);
    let page = |index: usize, writable| leaf(rig.pool(1, 30 + index as u64), writable);
    let row = [
        preserving(one, 0, page(0, false)),
        preserving(one, 1, 0),
        preserving(one, 2, page(2, false)),
        (place(one, 3), 0),
        preserving(one, 3, page(9, false)),
        preserving(one, 4, page(8, true)),
        preserving(one, 0, page(0, true)),
        preserving(one, 1, page(1, false)),
    ];
    assert_eq!((rig.update(1, &row), rig.word(1, 0)), (Ok(0), 8));
    let expected =
        [page(0, true), page(1, false), page(2, false), page(9, false), page(8, true), page(5, true)];
    for (index, raw) in expected.into_iter().enumerate() {
        assert_eq!(rig.entry(one, index), raw | 1 << 7, "{index}");
    }
    rig.check();
}

/// However small the budget, as much is done as it covers, in order; and each update costs what one by itself does.
#[test]
fn a_row_of_rights_can_be_cut_behind_each_of_its_updates() {
    let rig = Rig::new(1);
    let one = mapping(&rig, 0, 30, true);
    let raw = |index: usize, writable| leaf(rig.pool(1, 30 + index as u64), writable) | 1 << 7;
    let vcpu = rig.domains[1].vcpu();
    for (round, budget) in [1, 8, 9, 16, 17, 40, 8 * ENTRIES as u32].into_iter().enumerate() {
        let writable = round % 2 == 1;
        let row: Vec<_> = (0..ENTRIES)
            .map(|index| preserving(one, index, raw(index, writable)))
            .map(|(pointer, value)| MmuUpdate { pointer, value })
            .collect();
        rig.give(1, 0, &0u64.to_le_bytes());
        let at = rig.give(1, 16, row.as_bytes());
        let mut arguments = [at, ENTRIES as u64, at - 16, SELF, 0, 0];
        let each = budget.div_ceil(Budget::OPERATION) as usize;
        let mut done = 0;
        loop {
            rig.hv.machine().set_root(rig.domains[1].root);
            vcpu.context().take();
            rig.hv.hypercall_within(vcpu, number::MMU_UPDATE, arguments, &Budget::new(budget));
            let registers = vcpu.context().take();
            rig.check();
            done = ENTRIES.min(done + each);
            let changed = (0..ENTRIES).take_while(|&index| rig.entry(one, index) == raw(index, writable));
            assert_eq!(changed.count(), done, "within {budget}");
            assert_eq!(rig.word(1, 0), done as u64);
            match registers.again {
                Some(again) => arguments = again,
                None => {
                    assert_eq!((registers.result, done), (Some(0), ENTRIES));
                    break;
                }
            }
        }
    }
}

/// What the short way does by itself, and what it leaves to the general one.
#[test]
fn a_row_of_rights_is_as_long_as_the_short_way_goes() {
    let rig = Rig::new(1);
    let (one, other) = (mapping(&rig, 0, 30, true), mapping(&rig, 1, 50, true));
    let page = |index: usize, writable| leaf(rig.pool(1, 30 + index as u64), writable);
    let update = |(pointer, value)| MmuUpdate { pointer, value };
    let in_row = |row: &[(u64, u64)]| {
        let row: Vec<_> = row.iter().copied().map(update).collect();
        let budget = Budget::unbounded();
        let space = rig.space(1, &budget);
        let table = space.leaf_table(one).expect("a table");
        space.change_rights_in_row(&table, &row)
    };
    let good = [(1, false), (2, false), (1, true), (3, true)];
    let good = good.map(|(index, writable)| preserving(one, index, page(index, writable)));
    let ends = [
        preserving(one, 4, page(5, false)),
        preserving(one, 4, 0),
        preserving(other, 4, leaf(rig.pool(1, 54), false)),
        (place(one, 4), page(4, false)),
        (preserving(one, 4, 0).0 | 4, page(4, false)),
    ];
    for end in ends {
        assert_eq!(in_row(&[good.as_slice(), &[end], &good].concat()), good.len(), "{end:x?}");
    }
    assert_eq!((in_row(&good), in_row(&[])), (good.len(), 0));
    rig.check();
    for (index, writable) in [(1, true), (2, false), (3, true), (4, true)] {
        assert_eq!(rig.entry(one, index), page(index, writable) | 1 << 7);
    }
}
