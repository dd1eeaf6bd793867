//! Hypercalls in rows: what one finds, the next may use, as long as it still holds.
//!
//! A level-1 table that was found for an address is remembered, and a multicall keeps the table lock from one mapping to the next. Each
//! test changes what leads to the table in between, in one of the ways there are.

use super::writable::{SLOT, TABLES, hang};
use crate::common::{Rig, SCRATCH, SELF, address, leaf, place, table};
use hyp_core::address::MachineFrame;
use hyp_core::fake::format::PRESENT;
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::mmu::{MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE, MmuUpdate, MmuextOp};
use penumbra_abi::multicall::MulticallEntry;
use zerocopy::IntoBytes;

/// Where lists of entries and operations stand in the scratch memory.
const LIST: u64 = 1024;
const OPERATION: u64 = 512;
/// The page of the table below which the tests change mappings.
const PAGE: u64 = 6;

/// Two level-1 tables, both in their trees and pinned, of which the first translates the returned address.
fn two_tables(rig: &Rig) -> ([MachineFrame; 2], u64) {
    let (first, below) = hang(rig, 1, 0, &[]);
    let (second, _) = hang(rig, 1, 1, &[]);
    for one in [first, second] {
        rig.pin(1, one, 1).expect("a table of the tree");
    }
    ([first, second], below | PAGE << 12)
}

/// The entry that leads to the table for the address.
fn upper(rig: &Rig) -> u64 {
    place(rig.pool(1, TABLES), 0)
}

fn remap(rig: &Rig, at: u64, raw: u64) -> Result<u64, Errno> {
    rig.call(1, number::UPDATE_VA_MAPPING, [at, raw, 0, 0, 0, 0])
}

fn remap_entry(at: u64, raw: u64) -> MulticallEntry {
    MulticallEntry { operation: number::UPDATE_VA_MAPPING, result: 99, arguments: [at, raw, 0, 0, 0, 0] }
}

/// Carries out the entries, and returns what the multicall and each of them returned.
fn multicall(rig: &Rig, entries: &[MulticallEntry]) -> (Result<u64, Errno>, Vec<Result<u64, Errno>>) {
    let at = rig.give(1, LIST, entries.as_bytes());
    let outcome = rig.call(1, number::MULTICALL, [at, entries.len() as u64, 0, 0, 0, 0]);
    rig.check();
    let result = |index| Errno::from_return(rig.word(1, LIST + index * 64 + 8));
    (outcome, (0..entries.len() as u64).map(result).collect())
}

fn stands(rig: &Rig, one: MachineFrame) -> bool {
    rig.entry(one, PAGE as usize) & PRESENT != 0
}

#[test]
fn the_next_mapping_goes_to_the_table_that_translates_its_address_by_then() {
    let rig = Rig::new(1);
    let ([first, second], at) = two_tables(&rig);
    let page = leaf(rig.pool(1, 0), false);
    assert_eq!(remap(&rig, at, page), Ok(0));
    assert!(stands(&rig, first));
    rig.update(1, &[(upper(&rig), table(second))]).expect("another table in its place");
    assert_eq!(remap(&rig, at, page), Ok(0));
    assert!(stands(&rig, second), "the table that was found before is found no more");
    rig.update(1, &[(upper(&rig), 0)]).expect("nothing in its place");
    assert_eq!(remap(&rig, at, 0), Err(Errno::EINVAL));
    assert!(stands(&rig, first) && stands(&rig, second));
    rig.check();
}

#[test]
fn a_row_of_mappings_ends_where_the_way_to_their_table_changes() {
    let rig = Rig::new(1);
    let ([first, second], at) = two_tables(&rig);
    let page = leaf(rig.pool(1, 0), false);
    let update = MmuUpdate { pointer: upper(&rig), value: table(second) };
    let update_at = rig.give(1, OPERATION, update.as_bytes());
    let change = MulticallEntry {
        operation: number::MMU_UPDATE,
        result: 99,
        arguments: [update_at, 1, 0, SELF, 0, 0],
    };
    let beside = remap_entry(at + 4096, page);
    let (outcome, results) =
        multicall(&rig, &[remap_entry(at, page), beside, change, remap_entry(at, page), remap_entry(at, 0)]);
    assert_eq!((outcome, results), (Ok(0), vec![Ok(0); 5]));
    assert!(
        stands(&rig, first) && !stands(&rig, second),
        "mapped in the first, then mapped and unmapped in the second"
    );
}

#[test]
fn a_table_that_left_its_tree_within_a_row_is_not_written_to() {
    let rig = Rig::new(1);
    let ([first, _], at) = two_tables(&rig);
    let page = leaf(rig.pool(1, 0), false);
    let gone = MmuUpdate { pointer: upper(&rig), value: 0 };
    let gone_at = rig.give(1, OPERATION, gone.as_bytes());
    let unpin = MmuextOp { command: MMUEXT_UNPIN_TABLE, pad: 0, argument1: first.number(), argument2: 0 };
    let unpin_at = rig.give(1, OPERATION + 64, unpin.as_bytes());
    let entry = |operation, at| MulticallEntry { operation, result: 99, arguments: [at, 1, 0, SELF, 0, 0] };
    let (outcome, results) = multicall(
        &rig,
        &[
            remap_entry(at, page),
            entry(number::MMU_UPDATE, gone_at),
            entry(number::MMUEXT_OP, unpin_at),
            remap_entry(at + 4096, page),
        ],
    );
    assert_eq!(outcome, Ok(0));
    assert_eq!(results, [Ok(0), Ok(0), Ok(0), Err(Errno::EINVAL)]);
    assert_eq!(rig.uses(first), 0);
    assert_eq!(rig.entry(first, PAGE as usize + 1), 0);
}

/// A root with the guest's own entries of the loaded one, but for the slot of the tests, which leads to `two`.
fn root_over(rig: &Rig, two: MachineFrame) -> MachineFrame {
    let old = rig.domains[1].root;
    let slots = (0..15).filter(|slot| *slot != SLOT).map(|slot| (slot, rig.entry(old, slot)));
    let entries: Vec<_> = slots.filter(|(_, raw)| raw & PRESENT != 0).chain([(SLOT, table(two))]).collect();
    rig.prepare(1, TABLES + 6, &entries)
}

/// The same address under another root is translated by another table, although neither table has changed.
#[test]
fn another_root_means_another_table() {
    let rig = Rig::new(1);
    let ([first, second], at) = two_tables(&rig);
    let page = leaf(rig.pool(1, 0), false);
    assert_eq!(remap(&rig, at, page), Ok(0));
    let root = root_over(&rig, rig.prepare(1, TABLES + 5, &[(0, table(second))]));
    let old = rig.domains[1].root;
    rig.new_root(1, root).expect("a root as good as the old one");
    assert_eq!(remap(&rig, at, page), Ok(0));
    assert!(stands(&rig, second));
    rig.new_root(1, old).expect("the old root");
    assert_eq!(remap(&rig, at, 0), Ok(0));
    assert!(!stands(&rig, first) && stands(&rig, second));
    rig.check();
}

/// As above, where neither root has to be looked at when it is loaded or left: both are pinned.
#[test]
fn another_pinned_root_means_another_table() {
    let rig = Rig::new(1);
    let ([first, second], at) = two_tables(&rig);
    let page = leaf(rig.pool(1, 0), false);
    let root = root_over(&rig, rig.prepare(1, TABLES + 5, &[(0, table(second))]));
    rig.pin(1, root, 3).expect("a root as good as the old one");
    assert_eq!(remap(&rig, at, page), Ok(0));
    rig.new_root(1, root).expect("a pinned root");
    assert_eq!(remap(&rig, at, page), Ok(0));
    assert!(stands(&rig, second));
    rig.new_root(1, rig.domains[1].root).expect("the old root, pinned as well");
    assert_eq!(remap(&rig, at, 0), Ok(0));
    assert!(!stands(&rig, first) && stands(&rig, second));
    rig.check();
}

/// A tree that nobody holds any more is the guest's to write to; loaded anew, it leads elsewhere, under the same root.
#[test]
fn a_root_that_comes_back_is_walked_anew() {
    let rig = Rig::new(1);
    let ([first, second], at) = two_tables(&rig);
    let page = leaf(rig.pool(1, 0), false);
    let two = rig.prepare(1, TABLES + 5, &[(0, table(first))]);
    let (root, old) = (root_over(&rig, two), rig.domains[1].root);
    rig.new_root(1, root).expect("a root as good as the old one");
    assert_eq!(remap(&rig, at, page), Ok(0));
    rig.new_root(1, old).expect("the old root");
    rig.update(1, &[(place(two, 0), table(second))]).expect("a write to one's own frame");
    rig.new_root(1, root).expect("the changed root");
    assert_eq!(remap(&rig, at, page), Ok(0));
    assert!(stands(&rig, first) && stands(&rig, second));
    rig.check();
}

#[test]
fn a_long_multicall_gives_each_entry_its_own_result() {
    let rig = Rig::new(2);
    let ([first, _], at) = two_tables(&rig);
    let (own, foreign) = (rig.pool(1, 0), rig.pool(2, 0));
    // Of three: one that succeeds, one that maps what isn't the guest's, one that isn't mapped by any table.
    let entries: Vec<_> = (0..21u64)
        .map(|index| match index % 3 {
            0 => remap_entry(at, leaf(own, index % 2 == 0)),
            1 => remap_entry(at + 4096, leaf(foreign, false)),
            _ => remap_entry((SLOT as u64) << 19 | 7 << 16, leaf(own, false)),
        })
        .collect();
    let (outcome, results) = multicall(&rig, &entries);
    assert_eq!(outcome, Ok(0));
    for (index, result) in results.into_iter().enumerate() {
        let expected = [Ok(0), Err(Errno::EBUSY), Err(Errno::EINVAL)];
        assert_eq!(result, expected[index % 3], "entry {index}");
    }
    assert!(stands(&rig, first));
}

/// Entries are read ahead; those before the end of the guest's memory are done all the same, one by one.
#[test]
fn a_multicall_that_runs_out_of_memory_does_what_it_could_read() {
    let rig = Rig::new(1);
    let ([first, _], at) = two_tables(&rig);
    let page = leaf(rig.pool(1, 0), false);
    // The last entries before a page that isn't mapped.
    rig.remap(1, SCRATCH + 1, 0).expect("unmapping one's own page");
    let offset = 4096 - 3 * 64;
    let entries = [remap_entry(at, page), remap_entry(at + 4096, page), remap_entry(at, 0)];
    let start = rig.give(1, offset, entries.as_bytes());
    assert_eq!(rig.call(1, number::MULTICALL, [start, 20, 0, 0, 0, 0]), Err(Errno::EFAULT));
    assert!(
        !stands(&rig, first) && rig.entry(first, PAGE as usize + 1) & PRESENT != 0,
        "all three were done"
    );
    assert_eq!(rig.word(1, offset + 2 * 64 + 8), 0);
    rig.check();
}

/// One operation, not counted for the guest, takes a shorter way: the same answers.
#[test]
fn a_single_operation_is_judged_like_one_of_many() {
    let rig = Rig::new(2);
    let ([first, _], _) = two_tables(&rig);
    let (own, foreign) = (rig.pool(1, 0), rig.pool(2, 0));
    let single = |pointer, value| {
        let at = rig.give(1, OPERATION, MmuUpdate { pointer, value }.as_bytes());
        rig.call(1, number::MMU_UPDATE, [at, 1, 0, SELF, 0, 0])
    };
    for (raw, expected) in [
        (leaf(own, true), Ok(0)),
        (leaf(foreign, true), Err(Errno::EBUSY)),
        (leaf(first, true), Err(Errno::EBUSY)),
        (leaf(own, true) | 1 << 60, Err(Errno::EINVAL)),
    ] {
        assert_eq!(single(place(first, PAGE as usize), raw), expected, "{raw:#x}");
        assert_eq!(rig.update(1, &[(place(first, PAGE as usize + 1), raw)]), expected, "{raw:#x}");
        rig.check();
    }
    assert_eq!(single(place(first, 0) | 4, 0), Err(Errno::EINVAL), "not aligned");
    let nowhere = rig.call(1, number::MMU_UPDATE, [address(u64::from(u32::MAX)), 1, 0, SELF, 0, 0]);
    assert_eq!(nowhere, Err(Errno::EFAULT));
    assert_eq!(rig.extended(1, MMUEXT_PIN_L1_TABLE, first.number()), Err(Errno::EINVAL), "pinned already");
}
