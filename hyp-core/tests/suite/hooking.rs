//! Hooking tables in again takes long if the guest has emptied them: it is cut in pieces, wherever it happens.

use super::writable::{SLOT, hang, kind, mapped, unhook, write};
use crate::common::{self, Rig, address, leaf};
use hyp_core::address::{GuestVirtual, MachineFrame};
use hyp_core::frame::FrameType;
use hyp_core::paging::table_write::{TableWrite, WRITES_BEFORE_UNHOOKING};
use hyp_core::paging::writable::MAX_UNHOOKED;
use hyp_core::paging::{Budget, ROOM_FOR_A_TABLE, Stop};
use penumbra_abi::hypercall as number;
use penumbra_abi::memory::{MemoryReservation, XENMEM_DECREASE_RESERVATION};
use penumbra_abi::multicall::MulticallEntry;
use zerocopy::IntoBytes;

/// Tables that are out at once.
const TABLES_OUT: u64 = MAX_UNHOOKED as u64;
/// Entries of a table.
const ENTRIES: u64 = 16;
/// Where the list of a multicall stands in the scratch memory.
const LIST: u64 = 1024;

/// A table, each entry of which alone holds a page that the domain has given back.
fn full(rig: &Rig, index: u64) -> MachineFrame {
    let pages: Vec<_> = rig.unmap(1, 300 + ENTRIES * index, ENTRIES);
    let entries: Vec<_> =
        pages.iter().enumerate().map(|(at, page)| (at, leaf(common::frame(*page), true))).collect();
    let (one, _) = hang(rig, 1, index, &entries);
    assert_eq!(rig.memory(1, XENMEM_DECREASE_RESERVATION, common::SELF, &pages), Ok(ENTRIES));
    one
}

/// So many of these, unhooked and emptied: hooked in again, each frees its pages.
fn emptied(rig: &Rig, count: u64) -> Vec<MachineFrame> {
    let tables = (0..count).map(|index| full(rig, index)).collect();
    (0..count).for_each(|index| empty(rig, mapped(index)));
    tables
}

/// Unhooks the table that is mapped there, and empties it.
fn empty(rig: &Rig, at: u64) {
    assert_eq!(unhook(rig, 1, at), Ok(0));
    (0..ENTRIES).for_each(|index| assert!(write(rig, 1, at + 8 * index, 0)));
}

fn out(rig: &Rig, tables: &[MachineFrame]) -> usize {
    tables.iter().filter(|table| kind(rig, **table).0 == FrameType::Writable).count()
}

/// Hooking in goes on while there is budget; one table comes back even if there is none, so that whoever asks again gets to the end.
#[test]
fn hooking_in_is_preempted_between_tables_and_always_gets_further() {
    let rig = Rig::new(1);
    let tables: Vec<_> = (0..4).map(|index| hang(&rig, 1, index, &[]).0).collect();
    let back = || tables.iter().filter(|one| kind(&rig, **one).0 == FrameType::Table(1)).count();
    assert!((0..4).all(|index| unhook(&rig, 1, mapped(index)) == Ok(0)));
    for (budget, outcome, now) in
        [(0, Err(Stop::Preempted), 1), (33, Err(Stop::Preempted), 3), (0, Ok(()), 4), (0, Ok(()), 4)]
    {
        assert_eq!(
            (rig.space(1, &Budget::new(budget)).hook_all(), back()),
            (outcome, now),
            "a budget of {budget}"
        );
        rig.check();
    }
}

/// What a table costs that the guest has emptied can't be cut: it waits for another budget if too much of this one is spent, and only then.
#[test]
fn hooking_in_waits_for_a_budget_that_covers_it() {
    for (spent, waits) in [(0, false), (200, false), (201, true)] {
        let rig = Rig::new(1);
        let tables = emptied(&rig, 1);
        let budget = Budget::new(ROOM_FOR_A_TABLE + 200);
        budget.charge(spent);
        let outcome = rig.space(1, &budget).hook_all();
        assert_eq!(
            (outcome == Err(Stop::Preempted), out(&rig, &tables) == 1),
            (waits, waits),
            "{spent} spent"
        );
        rig.check();
    }
}

/// Entries that the guest has changed cost more than those that it has left alone.
#[test]
fn changed_entries_cost_more() {
    let cost = |changed: u64| {
        let rig = Rig::new(1);
        hang(&rig, 1, 0, &[]);
        assert_eq!(unhook(&rig, 1, mapped(0)), Ok(0));
        (0..changed)
            .for_each(|slot| assert!(write(&rig, 1, mapped(0) + 8 * slot, leaf(rig.pool(1, 0), false))));
        let whole = ROOM_FOR_A_TABLE + 1000;
        let budget = Budget::new(whole);
        assert_eq!(rig.space(1, &budget).hook_all(), Ok(()));
        rig.check();
        whole - budget.piece(whole as usize) as u32
    };
    assert_eq!(cost(ENTRIES), cost(0) + ENTRIES as u32 * 4);
}

/// One entry of a multicall takes a table out, the next has it hooked in.
#[test]
fn a_multicall_takes_out_and_hooks_in() {
    let rig = Rig::new(1);
    let (table, _) = hang(&rig, 1, 0, &[]);
    rig.hv.machine().set_root(rig.domains[1].root);
    let entry = |operation, address| MulticallEntry {
        operation: number::PENUMBRA,
        result: 99,
        arguments: [operation, address, 0, 0, 0, 0],
    };
    let list = [entry(number::PENUMBRA_UNHOOK, mapped(0)), entry(number::PENUMBRA_HOOK, (SLOT as u64) << 19)];
    let arguments = [rig.give(1, LIST, list.as_bytes()), 2, 0, 0, 0, 0];
    assert_eq!(rig.call(1, number::MULTICALL, arguments), Ok(0));
    assert_eq!([0, 1].map(|index| rig.word(1, LIST + index * 64 + 8)), [0, 0]);
    assert_eq!(kind(&rig, table).0, FrameType::Table(1));
    rig.check();
}

/// XSA-252's situation, by way of a table that is out: its pin is kept in the meantime, and its record isn't marked. Within one multicall the
/// table is hooked in before anybody looks at the mark, and isn't given back.
#[test]
fn xsa_252_a_pinned_table_that_is_out_is_not_given_back() {
    let rig = Rig::new(1);
    let (table, _) = hang(&rig, 1, 0, &[]);
    rig.pin(1, table, 1).expect("a table");
    rig.hv.machine().set_root(rig.domains[1].root);
    let reservation = MemoryReservation {
        extent_start: rig.give(1, LIST + 512, table.number().as_bytes()),
        nr_extents: 1,
        domid: common::SELF as u16,
        ..MemoryReservation::default()
    };
    let at = rig.give(1, LIST + 576, reservation.as_bytes());
    let entry = |operation, arguments| MulticallEntry { operation, result: 99, arguments };
    let list = [
        entry(number::PENUMBRA, [number::PENUMBRA_UNHOOK, mapped(0), 0, 0, 0, 0]),
        entry(number::MEMORY_OP, [XENMEM_DECREASE_RESERVATION, at, 0, 0, 0, 0]),
    ];
    let arguments = [rig.give(1, LIST, list.as_bytes()), 2, 0, 0, 0, 0];
    assert_eq!(rig.call(1, number::MULTICALL, arguments), Ok(0));
    let results = [0, 1].map(|index| rig.word(1, LIST + index * 64 + 8));
    assert_eq!(results, [0, 0], "unhooked, and no frame given back");
    rig.check();
    let usage = rig.hv.frames().usage(table).expect("memory");
    assert_eq!((usage.kind, usage.uses, usage.pinned), (FrameType::Table(1), 2, true));
    assert!(rig.hv.frames().hold(table).expect("memory").allocated, "pinned, and nobody's");
    assert_eq!(rig.unpin(1, table), Ok(0));
    rig.check();
}

/// Before a backend reads a guest's memory by itself, nothing may be hidden from it. It has its own preemption points in between.
#[test]
fn a_backend_gets_everything_hooked_in_piece_by_piece() {
    let rig = Rig::new(2);
    let tables = emptied(&rig, TABLES_OUT);
    let (others, _) = hang(&rig, 2, 0, &[]);
    assert_eq!(unhook(&rig, 2, mapped(0)), Ok(0));
    for left in (0..TABLES_OUT as usize).rev() {
        rig.hv.hook_some_within(rig.domains[1].vcpu(), &Budget::new(1));
        assert_eq!(out(&rig, &tables), left);
        rig.check();
    }
    rig.hv.hook_some(rig.domains[1].vcpu());
    assert_eq!(kind(&rig, others).0, FrameType::Writable, "another domain's is its own affair");
    rig.hv.hook_some(rig.domains[2].vcpu());
    assert_eq!(kind(&rig, others).0, FrameType::Table(1));
    rig.check();
}

/// Hooking in may free a frame for each entry that the guest has emptied. So between two tables there is a preemption point, wherever
/// tables are hooked in because of a call.
#[test]
fn hooking_in_is_cut_between_tables() {
    type Ask = (&'static str, usize, u64, [u64; 6]);
    let asks: [Ask; 3] = [
        ("any hypercall", 1, number::VM_ASSIST, [0, 99, 0, 0, 0, 0]),
        ("hook all", 1, number::PENUMBRA, [number::PENUMBRA_HOOK, number::PENUMBRA_HOOK_ALL, 0, 0, 0, 0]),
        ("the control domain's", 0, number::MMU_UPDATE, [0, 0, 0, 2 << 16 | 1, 0, 0]),
    ];
    for (what, who, number, arguments) in asks {
        let rig = Rig::new(1);
        let tables = emptied(&rig, TABLES_OUT);
        let free = rig.hv.frames().free_frames();
        let vcpu = rig.domains[who].vcpu();
        let (mut arguments, mut pieces) = (arguments, 0);
        loop {
            let before = rig.hv.frames().free_frames();
            rig.hv.machine().set_root(rig.domains[who].root);
            vcpu.context().take();
            rig.hv.hypercall_within(vcpu, number, arguments, &Budget::new(1));
            assert!(
                rig.hv.frames().free_frames() - before <= 16,
                "{what}: more than a table's frames in one go"
            );
            rig.check();
            pieces += 1;
            match vcpu.context().take().again {
                Some(again) => arguments = again,
                None => break,
            }
        }
        assert!(pieces >= TABLES_OUT, "{what}: {pieces} pieces");
        assert_eq!(out(&rig, &tables), 0, "{what}");
        assert_eq!(rig.hv.frames().free_frames(), free + 16 * TABLES_OUT as usize, "{what}");
    }
}

/// What hooks a table in has spent its turn: what was asked for comes in the next one.
#[test]
fn a_hypercall_waits_until_hooking_in_is_paid_for() {
    let rig = Rig::new(1);
    let tables = emptied(&rig, 1);
    let vcpu = rig.domains[1].vcpu();
    vcpu.context().take();
    // The frames that are freed cost more than that.
    rig.hv.hypercall_within(vcpu, number::VM_ASSIST, [0, 99, 0, 0, 0, 0], &Budget::new(ENTRIES as u32 + 1));
    assert_eq!(out(&rig, &tables), 0);
    assert_eq!(vcpu.context().take().again, Some([0, 99, 0, 0, 0, 0]));
}

/// What an entry of a multicall has unhooked is hooked in for the next one, and no more at once than its budget allows: whatever
/// that is, everything is done in the end, and once.
#[test]
fn what_is_unhooked_in_the_middle_of_a_hypercall_is_hooked_in_piece_by_piece() {
    let mut cut = 0;
    for budget in (1..200).chain(ROOM_FOR_A_TABLE..ROOM_FOR_A_TABLE + 200).step_by(7) {
        let rig = Rig::new(1);
        let tables: Vec<_> = (0..TABLES_OUT).map(|index| hang(&rig, 1, index, &[]).0).collect();
        let (at, entry) = (address(300), leaf(rig.pool(1, 0), false));
        rig.unmap(1, 300, 1);
        let unhooking =
            (0..TABLES_OUT).map(|index| (number::PENUMBRA, number::PENUMBRA_UNHOOK, mapped(index)));
        let list: Vec<_> = unhooking
            .chain([(number::UPDATE_VA_MAPPING, at, entry)])
            .map(|(operation, first, second)| MulticallEntry {
                operation,
                result: 99,
                arguments: [first, second, 0, 0, 0, 0],
            })
            .collect();
        let mut arguments = [rig.give(1, LIST, list.as_bytes()), TABLES_OUT + 1, 0, 0, 0, 0];
        let vcpu = rig.domains[1].vcpu();
        vcpu.context().take();
        loop {
            rig.hv.hypercall_within(vcpu, number::MULTICALL, arguments, &Budget::new(budget));
            rig.check();
            let Some(again) = vcpu.context().take().again else { break };
            // In one go all were unhooked, and some hooked in again for the mapping.
            let some = (1..tables.len()).contains(&out(&rig, &tables));
            cut += usize::from((arguments[1], again[1]) == (TABLES_OUT + 1, 1) && some);
            arguments = again;
        }
        assert_eq!(out(&rig, &tables), 0, "a budget of {budget}");
        let results: Vec<_> = (0..=TABLES_OUT).map(|index| rig.word(1, LIST + index * 64 + 8)).collect();
        assert_eq!(results, [0; 5], "a budget of {budget}");
        let (builder, index) = rig.builder_entry(1, 300);
        assert_eq!(rig.entry(builder, index), entry);
    }
    assert!(cut > 0, "some budget ends while tables are hooked in for the mapping");
}

/// A write to a table by which others are written, that would take it out, has those hooked in first: one turn, one table.
#[test]
fn a_write_hooks_in_one_table_a_turn() {
    let rig = Rig::new(1);
    let tables: Vec<_> = (0..3).map(|index| full(&rig, index)).collect();
    // A table that maps them, in the tree and written by emulation.
    let entries: Vec<_> = tables.iter().enumerate().map(|(at, one)| (at, leaf(*one, false))).collect();
    let (_, below) = hang(&rig, 1, 3, &entries);
    let emulate = |budget: u32| {
        let place = GuestVirtual::new(mapped(3) + 8 * 9);
        let outcome =
            rig.hv.write_table_within(rig.domains[1].vcpu(), place, |_| Some(0), &Budget::new(budget));
        rig.check();
        outcome
    };
    for _ in 0..WRITES_BEFORE_UNHOOKING {
        assert_eq!(emulate(100), TableWrite::Done);
    }
    (0..3).for_each(|index| empty(&rig, below | index << 12));
    for left in [2, 1, 0] {
        assert_eq!((emulate(1), out(&rig, &tables)), (TableWrite::Again, left));
    }
}
