//! Hypercalls in rows: what one finds, the next may use, as long as it still holds.
//!
//! A level-1 table that was found for an address is remembered, and a multicall keeps the table lock from one mapping to the next. Each
//! test changes what leads to the table in between, in one of the ways there are.

use super::superpages::run;
use super::writable::{SLOT, TABLES, hang, mapped, write};
use crate::common::{Rig, SCRATCH, SELF, address, leaf, place, table};
use hyp_core::address::MachineFrame;
use hyp_core::fake::format::PRESENT;
use hyp_core::paging::Budget;
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::memory::XENMEM_DECREASE_RESERVATION;
use penumbra_abi::mmu::{self, MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE, MmuUpdate, MmuextOp};
use penumbra_abi::multicall::MulticallEntry;
use zerocopy::IntoBytes;

/// Where lists of entries and operations stand in the scratch memory.
const LIST: u64 = 1024;
const OPERATION: u64 = 512;
/// The page of the table below which the tests change mappings.
pub const PAGE: u64 = 6;

/// Two level-1 tables, both in their trees and pinned, of which the first translates the returned address.
pub fn two_tables(rig: &Rig) -> ([MachineFrame; 2], u64) {
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

pub fn remap_entry(at: u64, raw: u64) -> MulticallEntry {
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

/// An entry that changes the one above the tables by `mmu_update`; each needs a place of its own for its operation.
fn above_entry(rig: &Rig, place: u64, value: u64) -> MulticallEntry {
    let update_at = rig.give(1, OPERATION + 64 * place, MmuUpdate { pointer: upper(rig), value }.as_bytes());
    MulticallEntry { operation: number::MMU_UPDATE, result: 99, arguments: [update_at, 1, 0, SELF, 0, 0] }
}

pub fn unhook_entry() -> MulticallEntry {
    let arguments = [number::PENUMBRA_UNHOOK, mapped(0), 0, 0, 0, 0];
    MulticallEntry { operation: number::PENUMBRA, result: 99, arguments }
}

pub fn stands(rig: &Rig, one: MachineFrame) -> bool {
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
    let change = above_entry(&rig, 0, table(second));
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
    let gone = above_entry(&rig, 0, 0);
    let unpin = MmuextOp { command: MMUEXT_UNPIN_TABLE, pad: 0, argument1: first.number(), argument2: 0 };
    let unpin_at = rig.give(1, OPERATION + 64, unpin.as_bytes());
    let unpin =
        MulticallEntry { operation: number::MMUEXT_OP, arguments: [unpin_at, 1, 0, SELF, 0, 0], ..gone };
    let (outcome, results) =
        multicall(&rig, &[remap_entry(at, page), gone, unpin, remap_entry(at + 4096, page)]);
    assert_eq!(outcome, Ok(0));
    assert_eq!(results, [Ok(0), Ok(0), Ok(0), Err(Errno::EINVAL)]);
    assert_eq!(rig.uses(first), 0);
    assert_eq!(rig.entry(first, PAGE as usize + 1), 0);
}

/// Where a superpage stands, there is no entry of a page to change; where the table comes back, there is.
#[test]
fn a_superpage_that_takes_the_tables_place_within_a_row_is_in_the_way() {
    let rig = Rig::new(1);
    let ([first, _], at) = two_tables(&rig);
    let (page, (_, large)) = (leaf(rig.pool(1, 0), false), run(&rig, 1));
    let (superpage, back) = (above_entry(&rig, 0, leaf(large, false)), above_entry(&rig, 1, table(first)));
    let (map, unmap) = (remap_entry(at, page), remap_entry(at, 0));
    let beside = remap_entry(at + 4096, page);
    let (outcome, results) = multicall(&rig, &[map, superpage, unmap, beside, back, beside]);
    assert_eq!(outcome, Ok(0));
    let (ok, no) = (Ok(0), Err(Errno::EINVAL));
    assert_eq!(results, [ok, ok, no, no, ok, ok]);
    assert!(stands(&rig, first) && rig.entry(first, PAGE as usize + 1) & PRESENT != 0);
}

/// Neither does a superpage beside the table disturb it, nor is the table written to for an address of the superpage's.
#[test]
fn a_row_goes_on_behind_an_address_that_a_superpage_maps() {
    let rig = Rig::new(1);
    let ([first, _], at) = two_tables(&rig);
    let (page, (_, large)) = (leaf(rig.pool(1, 0), false), run(&rig, 1));
    let beyond = (SLOT as u64) << 19 | 2 << 16 | (PAGE + 1) << 12;
    rig.update(1, &[(place(rig.pool(1, TABLES), 2), leaf(large, false))]).expect("a superpage");
    let (map, inside, beside) =
        (remap_entry(at, page), remap_entry(beyond, page), remap_entry(at + 8192, page));
    let (outcome, results) = multicall(&rig, &[map, inside, beside, inside]);
    let (ok, no) = (Ok(0), Err(Errno::EINVAL));
    assert_eq!((outcome, results), (Ok(0), vec![ok, no, ok, no]));
    assert!(stands(&rig, first) && rig.entry(first, PAGE as usize + 1) & PRESENT == 0);
    assert!(rig.entry(first, PAGE as usize + 2) & PRESENT != 0);
    assert_eq!(rig.entry(rig.pool(1, TABLES), 2), leaf(large, false));
}

/// What each entry of a row asks to be flushed is flushed, once; an entry whose set of vCPUs can't be read changes nothing, and the row
/// goes on behind it.
#[test]
fn each_entry_of_a_row_flushes_what_it_asks_for() {
    let rig = Rig::new(1);
    let ([first, _], at) = two_tables(&rig);
    let page = leaf(rig.pool(1, 0), false);
    let [somebody, nobody] = [1, 0].map(|set: u64| rig.give(1, OPERATION + 8 * set, set.as_bytes()));
    let (all, nowhere, unmapped) = (mmu::UVMF_ALL, 1 << 40, (SLOT as u64) << 19 | 7 << 16);
    for kind in [mmu::UVMF_TLB_FLUSH, mmu::UVMF_INVLPG] {
        let asks = [
            (at, kind | all, Ok(0), 1),
            (at + 4096, kind | mmu::UVMF_LOCAL, Ok(0), 0),
            (at + 2 * 4096, kind | somebody, Ok(0), 1),
            (at + 3 * 4096, kind | nobody, Ok(0), 0),
            (at + 4 * 4096, kind | nowhere, Err(Errno::EFAULT), 0),
            (at + 5 * 4096, kind | all, Ok(0), 1),
            (at + 6 * 4096, mmu::UVMF_FLUSHTYPE_MASK | all, Ok(0), 0),
            (at + 7 * 4096, mmu::UVMF_NONE | nowhere, Ok(0), 0),
            (unmapped, kind | all, Err(Errno::EINVAL), 0),
            (at + 8 * 4096, kind | all, Ok(0), 1),
        ];
        for raw in [page, 0] {
            let row = asks.map(|(at, flags, ..)| MulticallEntry {
                arguments: [at, raw, flags, 0, 0, 0],
                ..remap_entry(at, raw)
            });
            let before = rig.hv.machine().flushes();
            let (outcome, results) = multicall(&rig, &row);
            assert_eq!((outcome, results), (Ok(0), asks.map(|(.., result, _)| result).to_vec()));
            assert_eq!(rig.hv.machine().flushes() - before, asks.iter().map(|ask| ask.3).sum::<u64>());
            for (index, present) in [1, 1, 1, 1, 0, 1, 1, 1, 1].into_iter().enumerate() {
                let stands = rig.entry(first, PAGE as usize + index) & PRESENT != 0;
                assert_eq!(stands, raw != 0 && present == 1, "entry {index}");
            }
        }
    }
}

/// Carries out the entries, with so much of a budget for each piece; `after` sees how many were done by the end of each. Returns the
/// number of pieces.
fn in_pieces(rig: &Rig, entries: &[MulticallEntry], budget: u32, mut after: impl FnMut(usize)) -> usize {
    let at = rig.give(1, LIST, entries.as_bytes());
    let mut arguments = [at, entries.len() as u64, 0, 0, 0, 0];
    let vcpu = rig.domains[1].vcpu();
    for pieces in 1..=entries.len() {
        rig.hv.machine().set_root(rig.domains[1].root);
        vcpu.context().take();
        rig.hv.hypercall_within(vcpu, number::MULTICALL, arguments, &Budget::new(budget));
        let registers = vcpu.context().take();
        rig.check();
        let done = |index: &u64| rig.word(1, LIST + 64 * index + 8) != 99;
        let count = (0..entries.len() as u64).filter(done).count();
        assert_eq!((0..entries.len() as u64).take_while(done).count(), count, "one after the other");
        after(count);
        match registers.again {
            Some(again) => arguments = again,
            None => {
                assert_eq!((registers.result, count), (Some(0), entries.len()));
                return pieces;
            }
        }
        let left = (entries.len() - count) as u64;
        assert_eq!(arguments, [at + 64 * count as u64, left, 0, 0, 0, 0], "the rest, and nothing else");
    }
    panic!("pieces in which nothing is done");
}

/// Wherever the budget runs out, within what was read ahead or behind it: what was done is done, and the rest comes later.
#[test]
fn a_row_can_be_cut_behind_each_of_its_entries() {
    let rig = Rig::new(1);
    let ([first, _], at) = two_tables(&rig);
    let page = leaf(rig.pool(1, 0), false);
    for budget in [1, 8, 9, 17, 40, 63, 64, 65, 100, 8 * 15, 8 * 16] {
        // Every page of the table, mapped and unmapped: by the count of those that are mapped, no entry is left out.
        for raw in [page, 0] {
            let row: Vec<_> = (0..16).map(|index| remap_entry((at & !0xffff) | index << 12, raw)).collect();
            let present = || (0..16).filter(|index| rig.entry(first, *index) & PRESENT != 0).count();
            let start = present();
            let pieces = in_pieces(&rig, &row, budget, |count| {
                assert_eq!(present().abs_diff(start), count, "as many as results, within {budget}");
            });
            let each = budget.div_ceil(Budget::OPERATION);
            assert_eq!(pieces, 16usize.div_ceil(each as usize), "within {budget}");
        }
    }
}

/// A page that its entry alone has held is freed with the entry: that costs more than the entry itself.
#[test]
fn a_row_that_frees_frames_is_cut_sooner() {
    const PAGES: u64 = 12;
    let rig = Rig::new(1);
    let ([first, _], at) = two_tables(&rig);
    let pages = rig.unmap(1, 300, PAGES);
    let at = |index: u64| (at & !0xffff) + (index << 12);
    for (index, page) in (0..).zip(&pages) {
        assert_eq!(remap(&rig, at(index), leaf(crate::common::frame(*page), true)), Ok(0));
    }
    assert_eq!(rig.memory(1, XENMEM_DECREASE_RESERVATION, SELF, &pages), Ok(PAGES));
    let row: Vec<_> = (0..PAGES).map(|index| remap_entry(at(index), 0)).collect();
    let free = rig.hv.frames().free_frames();
    let pieces = in_pieces(&rig, &row, Budget::FRAME + Budget::OPERATION + 1, |count| {
        assert_eq!(rig.hv.frames().free_frames() - free, count, "a frame for each entry");
    });
    assert_eq!(pieces, PAGES as usize / 2, "one is paid for, and one is begun");
    assert!((0..PAGES as usize).all(|index| rig.entry(first, index) & PRESENT == 0));
}

/// A table that is taken out of its tree within a row is back before the next mapping: of one of its own pages, or of the page by which
/// the guest writes to it.
#[test]
fn a_table_unhooked_within_a_row_is_back_for_the_next_mapping() {
    let rig = Rig::new(1);
    let ([first, _], at) = two_tables(&rig);
    let page = leaf(rig.pool(1, 0), false);
    let unmap = MulticallEntry { arguments: [mapped(0), 0, 0, 0, 0, 0], ..remap_entry(0, 0) };
    let is_out = || rig.domains[1].domain.has_unhooked();
    let row = [remap_entry(at, page), unhook_entry(), remap_entry(at + 4096, page), unhook_entry()];
    assert_eq!(multicall(&rig, &row), (Ok(0), vec![Ok(0); 4]));
    assert!(is_out() && !stands_below(&rig), "the second time it stays out");
    assert_eq!(multicall(&rig, &[unhook_entry(), unmap, remap_entry(at, 0)]), (Ok(0), vec![Ok(0); 3]));
    assert!(!is_out() && stands_below(&rig));
    assert!(!stands(&rig, first) && rig.entry(first, PAGE as usize + 1) & PRESENT != 0);
    assert!(!write(&rig, 1, mapped(0), 0), "the page is mapped no more");
}

/// Whether the entry above the tables leads to one of them.
pub fn stands_below(rig: &Rig) -> bool {
    rig.entry(rig.pool(1, TABLES), 0) & PRESENT != 0
}

/// What the guest has written to an unhooked table is judged before a row goes on there: refused, there is no table any more.
#[test]
fn a_row_meets_no_unhooked_table() {
    let rig = Rig::new(2);
    let ([first, _], at) = two_tables(&rig);
    let (page, index) = (leaf(rig.pool(1, 0), false), 8 * (PAGE + 3));
    let row = [remap_entry(at, page), remap_entry(at + 4096, page)];
    for (written, result) in [(page, Ok(0)), (leaf(rig.pool(2, 0), true), Err(Errno::EINVAL))] {
        assert_eq!(multicall(&rig, &[unhook_entry()]), (Ok(0), vec![Ok(0)]));
        assert!(write(&rig, 1, mapped(0) + index, written), "a table that is out");
        assert_eq!(multicall(&rig, &row), (Ok(0), vec![result; 2]));
        assert!(!rig.domains[1].domain.has_unhooked());
        assert_eq!(stands_below(&rig), result.is_ok());
    }
    assert_eq!(rig.uses(first), 0, "its own again");
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
