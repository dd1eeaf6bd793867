//! Writable page tables: emulated writes, and tables that are taken out of their tree and put back.

use crate::common::{self, POOL, Rig, address, leaf, place, table};
use hyp_core::address::{GuestVirtual, MachineFrame};
use hyp_core::fake::format::{FORCED, PRESENT, READ_ONLY};
use hyp_core::frame::FrameType;
use hyp_core::machine::{GuestMemory, Mmu};
use hyp_core::paging::table_write::{TableWrite, WRITES_BEFORE_UNHOOKING};
use hyp_core::paging::writable::MAX_UNHOOKED;
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;

/// Pool frames that serve as tables begin here, and where they are mapped read-only.
pub const TABLES: u64 = 30;
/// The builder's root slot under which the tests hang their own tables.
pub const SLOT: usize = 5;

/// A level-1 table below slot [`SLOT`], at entry `index` of a level-2 table, mapped read-only where its frame always was.
/// Returns the table, and an address that it translates.
pub fn hang(rig: &Rig, who: usize, index: u64, entries: &[(usize, u64)]) -> (MachineFrame, u64) {
    let root = rig.domains[who].root;
    let two = rig.pool(who, TABLES);
    if rig.entry(root, SLOT) & PRESENT == 0 {
        rig.prepare(who, TABLES, &[]);
        rig.update(who, &[(place(root, SLOT), table(two))]).expect("an empty level-2 table");
    }
    let one = rig.prepare(who, TABLES + 1 + index, entries);
    rig.update(who, &[(place(two, index as usize), table(one))]).expect("a level-1 table");
    rig.remap(who, POOL + TABLES + 1 + index, leaf(one, false)).expect("a mapping to read it");
    rig.check();
    (one, (SLOT as u64) << 19 | index << 16)
}

/// Where the table of [`hang`] is mapped.
pub fn mapped(index: u64) -> u64 {
    address(POOL + TABLES + 1 + index)
}

pub fn unhook(rig: &Rig, who: usize, at: u64) -> Result<u64, Errno> {
    let outcome = rig.call(who, number::PENUMBRA, [number::PENUMBRA_UNHOOK, at, 0, 0, 0, 0]);
    rig.check();
    outcome
}

fn hook(rig: &Rig, who: usize, at: u64) -> Result<u64, Errno> {
    let outcome = rig.call(who, number::PENUMBRA, [number::PENUMBRA_HOOK, at, 0, 0, 0, 0]);
    rig.check();
    outcome
}

/// A write by the guest itself, as the MMU would let it: `false` if it faults.
pub fn write(rig: &Rig, who: usize, at: u64, raw: u64) -> bool {
    rig.hv.machine().set_root(rig.domains[who].root);
    let done = rig.hv.machine().write_guest(GuestVirtual::new(at), &raw.to_le_bytes()).is_ok();
    rig.check();
    done
}

fn reads(rig: &Rig, who: usize, at: u64) -> bool {
    rig.hv.machine().set_root(rig.domains[who].root);
    rig.hv.machine().read_guest(GuestVirtual::new(at), &mut [0; 8]).is_ok()
}

/// A faulting write of the guest's, which the hypervisor gets to see.
fn emulate(rig: &Rig, who: usize, at: u64, raw: u64) -> TableWrite {
    let outcome = rig.hv.write_table(rig.domains[who].vcpu(), GuestVirtual::new(at), |_| Some(raw));
    rig.check();
    outcome
}

pub fn kind(rig: &Rig, frame: MachineFrame) -> (FrameType, u32) {
    let usage = rig.hv.frames().usage(frame).expect("memory");
    (usage.kind, usage.uses)
}

// ---- Unhooking ---------------------------------------------------------------------------------------

#[test]
fn an_unhooked_table_is_written_freely_and_validated_when_it_returns() {
    let rig = Rig::new(1);
    let (old, new) = (rig.pool(1, 0), rig.pool(1, 1));
    let (one, below) = hang(&rig, 1, 0, &[(2, leaf(old, true)), (3, leaf(old, false))]);
    assert!(reads(&rig, 1, below | 2 << 12));
    assert!(!write(&rig, 1, mapped(0), 0), "a table in its tree is read-only");
    assert_eq!(unhook(&rig, 1, mapped(0)), Ok(0));
    assert_eq!(kind(&rig, one), (FrameType::Writable, 1));
    assert!(!reads(&rig, 1, below | 2 << 12), "what it translated is absent");
    let held = rig.uses(old);
    assert!(write(&rig, 1, mapped(0) + 16, leaf(new, true)));
    assert!(write(&rig, 1, mapped(0) + 8 * 7, leaf(new, false)));
    assert_eq!(rig.uses(old), held, "the snapshot holds what the entries held");
    assert_eq!(hook(&rig, 1, below), Ok(0));
    assert_eq!((kind(&rig, one), rig.uses(old)), ((FrameType::Table(1), 1), held - 1));
    assert!(reads(&rig, 1, below | 2 << 12) && reads(&rig, 1, below | 7 << 12));
    assert!(!write(&rig, 1, mapped(0), 0), "and it is read-only again");
    assert_eq!(hook(&rig, 1, below), Err(Errno::ENOENT), "it is in its tree");
}

#[test]
fn what_may_not_stand_in_a_table_keeps_it_out() {
    let rig = Rig::new(2);
    let (own, new, late) = (rig.pool(1, 0), rig.pool(1, 1), rig.pool(1, 2));
    let foreign = rig.pool(2, 0);
    for (round, bad) in [leaf(foreign, false), leaf(foreign, true), leaf(own, true) | 1 << 60, table(own)]
        .into_iter()
        .enumerate()
    {
        let before = rig.hv.frames().hold(own).unwrap().references;
        let (one, below) = hang(&rig, 1, round as u64, &[(1, leaf(own, true)), (9, leaf(own, false))]);
        assert_eq!(unhook(&rig, 1, mapped(round as u64)), Ok(0));
        // Good ones before and after the bad one: these hold something at the time, those don't yet.
        assert!(write(&rig, 1, mapped(round as u64), leaf(new, true)));
        assert!(write(&rig, 1, mapped(round as u64) + 8 * 4, bad));
        assert!(write(&rig, 1, mapped(round as u64) + 8 * 12, leaf(late, true)));
        assert!(hook(&rig, 1, below).is_err(), "{bad:#x}");
        assert!(!reads(&rig, 1, below | 1 << 12));
        assert_eq!(rig.uses(one), 0, "it is no table any more");
        assert_eq!(rig.hv.frames().hold(own).unwrap().references, before, "nothing is held for it");
        assert!(
            !rig.hv.hook_for_fault(rig.domains[1].vcpu(), GuestVirtual::new(below)),
            "the next fault is the guest's"
        );
    }
}

#[test]
fn bits_that_are_forced_are_set_when_a_table_returns() {
    let rig = Rig::new(1);
    let own = rig.pool(1, 0);
    let (one, below) = hang(&rig, 1, 0, &[(2, leaf(own, true))]);
    assert_eq!(unhook(&rig, 1, mapped(0)), Ok(0));
    // One entry that differs in nothing else, and one that is new.
    assert!(write(&rig, 1, mapped(0) + 8 * 2, leaf(own, true) & !FORCED));
    assert!(write(&rig, 1, mapped(0) + 8 * 3, leaf(own, false) & !FORCED));
    assert_eq!(hook(&rig, 1, below), Ok(0));
    assert_eq!((rig.entry(one, 2), rig.entry(one, 3)), (leaf(own, true), leaf(own, false)));
}

/// A guest makes a second way to write to the table while it is unhooked, through a table that is unhooked as well.
#[test]
fn a_second_writable_mapping_keeps_a_table_out() {
    let rig = Rig::new(1);
    let (one, below) = hang(&rig, 1, 0, &[]);
    let (other, other_below) = hang(&rig, 1, 1, &[]);
    assert_eq!((unhook(&rig, 1, mapped(0)), unhook(&rig, 1, mapped(1))), (Ok(0), Ok(0)));
    assert!(write(&rig, 1, mapped(1), leaf(one, true)));
    assert_eq!(hook(&rig, 1, other_below), Ok(0), "the first table is an ordinary page for now");
    assert_eq!(rig.uses(one), 2);
    assert_eq!(hook(&rig, 1, below), Err(Errno::EINVAL), "and can't be a table while it can be written to");
    assert!(!reads(&rig, 1, below));
    assert_eq!(kind(&rig, other), (FrameType::Table(1), 1));
}

#[test]
fn several_tables_are_out_at_once_and_come_back_with_any_hypercall() {
    let rig = Rig::new(1);
    let pool = rig.pool(1, 0);
    let tables: Vec<_> = (0..5).map(|index| hang(&rig, 1, index, &[(0, leaf(pool, true))])).collect();
    for index in 0..MAX_UNHOOKED as u64 {
        assert_eq!(unhook(&rig, 1, mapped(index)), Ok(0));
        assert_eq!(unhook(&rig, 1, mapped(index)), Ok(0), "twice is no harm");
    }
    assert_eq!(unhook(&rig, 1, mapped(4)), Err(Errno::EBUSY), "one more than there is room for");
    assert!(tables.iter().take(4).all(|(one, _)| kind(&rig, *one) == (FrameType::Writable, 1)));
    assert_eq!(rig.pin(1, tables[0].0, 1), Ok(0), "every other hypercall finds them hooked in");
    assert!(
        tables.iter().all(|(one, below)| kind(&rig, *one).0 == FrameType::Table(1) && reads(&rig, 1, *below))
    );
    assert_eq!(unhook(&rig, 1, mapped(0)), Ok(0), "pinned");
    assert_eq!(unhook(&rig, 1, mapped(1)), Ok(0));
    assert_eq!(hook(&rig, 1, number::PENUMBRA_HOOK_ALL), Ok(0));
    assert_eq!(kind(&rig, tables[0].0), (FrameType::Table(1), 2), "the pin is back, too");
    assert_eq!(rig.unpin(1, tables[0].0), Ok(0));
    rig.check();
}

#[test]
fn what_is_no_table_or_hangs_twice_is_not_unhooked() {
    let rig = Rig::new(1);
    let (one, _) = hang(&rig, 1, 0, &[]);
    assert_eq!(unhook(&rig, 1, address(POOL)), Err(Errno::EINVAL), "an ordinary page, writable");
    rig.remap(1, POOL, leaf(rig.pool(1, 0), false)).unwrap();
    assert_eq!(unhook(&rig, 1, address(POOL)), Err(Errno::EINVAL), "an ordinary page");
    assert_eq!(unhook(&rig, 1, 0), Err(Errno::EINVAL), "nothing mapped");
    assert_eq!(unhook(&rig, 1, !0), Err(Errno::EINVAL), "no address");
    let two = rig.pool(1, TABLES);
    rig.remap(1, POOL + TABLES, leaf(two, false)).unwrap();
    assert_eq!(unhook(&rig, 1, address(POOL + TABLES)), Err(Errno::EINVAL), "a table of level 2");
    rig.update(1, &[(place(two, 6), table(one))]).unwrap();
    assert_eq!(unhook(&rig, 1, mapped(0)), Err(Errno::EINVAL), "two entries lead to it");
    rig.update(1, &[(place(two, 0), 0)]).unwrap();
    assert_eq!(unhook(&rig, 1, mapped(0)), Ok(0), "the hint follows the entry that is left");
    assert_eq!(hook(&rig, 1, number::PENUMBRA_HOOK_ALL), Ok(0));
}

/// A table's record remembers the entry that was last made to lead to it. If that one leads elsewhere by now, or stands in what is no
/// table any more, hiding it would leave the table in its tree while the guest writes to it.
#[test]
fn an_entry_that_no_longer_leads_to_a_table_is_not_hidden_for_it() {
    let rig = Rig::new(1);
    let (one, below) = hang(&rig, 1, 0, &[]);
    let (other, _) = hang(&rig, 1, 1, &[]);
    let two = rig.pool(1, TABLES);
    let loose = rig.prepare(1, TABLES + 5, &[(7, table(one))]);
    let stays = |what| {
        assert_eq!(unhook(&rig, 1, mapped(0)), Err(Errno::EINVAL), "{what}");
        assert_eq!((kind(&rig, one), rig.entry(two, 0)), ((FrameType::Table(1), 1), table(one)), "{what}");
        assert!(reads(&rig, 1, below) == (rig.entry(one, 0) != 0));
    };
    rig.update(1, &[(place(two, 6), table(one)), (place(two, 6), 0)]).unwrap();
    stays("the entry is empty");
    rig.update(1, &[(place(two, 6), table(one)), (place(two, 6), table(other))]).unwrap();
    stays("the entry leads to another table");
    assert_eq!((rig.pin(1, loose, 2), rig.unpin(1, loose)), (Ok(0), Ok(0)));
    assert_eq!(rig.entry(loose, 7), table(one));
    stays("the entry is no table's");
}

/// A table that is mapped by itself, or by a table that is unhooked in turn.
#[test]
fn tables_that_map_each_other() {
    let rig = Rig::new(1);
    let (one, below) = hang(&rig, 1, 0, &[]);
    let (other, other_below) = hang(&rig, 1, 1, &[]);
    rig.update(1, &[(place(one, 0), leaf(one, false)), (place(one, 1), leaf(other, false))]).unwrap();
    rig.update(1, &[(place(other, 0), leaf(one, false))]).unwrap();
    assert_eq!(unhook(&rig, 1, below), Err(Errno::EINVAL), "through its own entry");
    assert_eq!(unhook(&rig, 1, below | 1 << 12), Ok(0), "the other, through the first one's entry");
    assert_eq!(unhook(&rig, 1, mapped(0)), Ok(0), "the first: the other has to go back");
    assert_eq!((kind(&rig, one).0, kind(&rig, other).0), (FrameType::Writable, FrameType::Table(1)));
    assert!(!reads(&rig, 1, below), "the first is out");
    assert!(write(&rig, 1, mapped(0), 0));
    assert!(write(&rig, 1, mapped(0) + 8, leaf(other, false)));
    assert_eq!(hook(&rig, 1, below), Ok(0));
    assert!(reads(&rig, 1, other_below));
}

#[test]
fn a_domain_dies_with_tables_unhooked() {
    for bad in [false, true] {
        let rig = Rig::new(2);
        let (_, _) = hang(&rig, 1, 0, &[(3, leaf(rig.pool(1, 0), true))]);
        assert_eq!(unhook(&rig, 1, mapped(0)), Ok(0));
        let raw = if bad { leaf(rig.pool(2, 0), true) } else { leaf(rig.pool(1, 1), true) };
        assert!(write(&rig, 1, mapped(0), raw));
        rig.bury(1);
        assert!(rig.hv.domain(rig.domains[1].id()).is_none(), "all of its frames are back");
        rig.check();
    }
}

/// Giving up the frame of an unhooked table, or what it maps, must not free what is still reachable.
#[test]
fn frames_given_up_meanwhile_stay_held() {
    let rig = Rig::new(1);
    let data = rig.pool(1, 0);
    rig.remap(1, POOL, 0).unwrap();
    let (one, below) = hang(&rig, 1, 0, &[(3, leaf(data, true))]);
    let decrease = penumbra_abi::memory::XENMEM_DECREASE_RESERVATION;
    assert_eq!(rig.memory(1, decrease, common::SELF, &[data.number()]), Ok(1));
    assert_eq!(unhook(&rig, 1, mapped(0)), Ok(0));
    assert!(rig.hv.frames().hold(data).unwrap().references == 1, "held by the snapshot alone");
    assert!(write(&rig, 1, mapped(0) + 24, 0));
    assert_eq!(rig.memory(1, decrease, common::SELF, &[one.number()]), Ok(1));
    assert_eq!(rig.hv.frames().hold(data).unwrap().owner, None, "hooked in without it");
    assert!(!reads(&rig, 1, below | 3 << 12));
    rig.check();
}

// ---- Faults ------------------------------------------------------------------------------------------

#[test]
fn one_write_is_emulated_and_judged() {
    let rig = Rig::new(2);
    let own = rig.pool(1, 0);
    let (one, _) = hang(&rig, 1, 0, &[]);
    assert_eq!(emulate(&rig, 1, mapped(0) + 8, leaf(own, true)), TableWrite::Done);
    assert_eq!(rig.entry(one, 1), leaf(own, true));
    assert_eq!(emulate(&rig, 1, mapped(0) + 8, leaf(rig.pool(2, 0), false)), TableWrite::Refused);
    assert_eq!(
        emulate(&rig, 1, mapped(0) + 8, leaf(one, true)),
        TableWrite::Refused,
        "its own table, writable"
    );
    assert_eq!(rig.entry(one, 1), leaf(own, true));
    assert_eq!(emulate(&rig, 1, address(POOL), 0), TableWrite::NotATable);
    assert_eq!(emulate(&rig, 1, 1 << 40, 0), TableWrite::NotATable);
    let nothing = rig.hv.write_table(rig.domains[1].vcpu(), GuestVirtual::new(mapped(0)), |_| None);
    assert_eq!(nothing, TableWrite::Done, "a comparison that failed");
    // Upper tables, and roots.
    let two = rig.pool(1, TABLES);
    rig.remap(1, POOL + TABLES, leaf(two, false)).unwrap();
    assert_eq!(emulate(&rig, 1, address(POOL + TABLES), 0), TableWrite::Done);
    assert_eq!(rig.uses(one), 0, "the level-1 table is let go");
}

#[test]
fn writes_in_a_row_unhook_the_table_and_a_fault_below_hooks_it_in() {
    let rig = Rig::new(1);
    let own = rig.pool(1, 0);
    let (one, below) = hang(&rig, 1, 0, &[]);
    let (other, _) = hang(&rig, 1, 1, &[]);
    let vcpu = rig.domains[1].vcpu();
    for step in 0..u64::from(WRITES_BEFORE_UNHOOKING) {
        assert_eq!(
            emulate(&rig, 1, mapped(0) + 8 * (step % 16), leaf(own, true)),
            TableWrite::Done,
            "{step}"
        );
    }
    assert_eq!(emulate(&rig, 1, mapped(0) + 8 * 9, leaf(own, true)), TableWrite::Again);
    assert_eq!(kind(&rig, one).0, FrameType::Writable);
    assert!(write(&rig, 1, mapped(0) + 8 * 9, leaf(own, false)), "at full speed now");
    // Another table meanwhile: emulated at first, then unhooked as well.
    for step in 0..u64::from(WRITES_BEFORE_UNHOOKING) {
        assert_eq!(
            emulate(&rig, 1, mapped(1) + 8 * (step % 16), leaf(own, true)),
            TableWrite::Done,
            "{step}"
        );
    }
    assert_eq!(emulate(&rig, 1, mapped(1), leaf(own, true)), TableWrite::Again);
    assert_eq!((kind(&rig, one).0, kind(&rig, other).0), (FrameType::Writable, FrameType::Writable));
    assert!(!rig.hv.hook_for_fault(vcpu, GuestVirtual::new(address(POOL))), "not because of a table");
    assert!(rig.hv.hook_for_fault(vcpu, GuestVirtual::new(below | 9 << 12)));
    assert_eq!((kind(&rig, one).0, kind(&rig, other).0), (FrameType::Table(1), FrameType::Writable));
    assert!(reads(&rig, 1, below | 9 << 12));
    rig.check();
}

/// Rows of writes that updates by hypercall cut short unhook nothing, however many writes there are in all: the updates would have the
/// table hooked in again each time.
#[test]
fn an_update_ends_a_row_of_writes() {
    let rig = Rig::new(1);
    let own = leaf(rig.pool(1, 0), true);
    let (one, _) = hang(&rig, 1, 0, &[]);
    let (other, _) = hang(&rig, 1, 1, &[]);
    let write = |step: u32| emulate(&rig, 1, mapped(0) + 8 * u64::from(step % 16), own);
    // One update, several, and of another table.
    let updates = [vec![(place(one, 3), own)], vec![(place(one, 3), 0); 2], vec![(place(other, 3), own)]];
    for update in updates {
        for step in 0..WRITES_BEFORE_UNHOOKING {
            assert_eq!(write(step), TableWrite::Done, "{step}");
        }
        assert_eq!(rig.update(1, &update), Ok(0));
    }
    assert!((0..WRITES_BEFORE_UNHOOKING).all(|step| write(step) == TableWrite::Done));
    assert_eq!(kind(&rig, one).0, FrameType::Table(1));
    assert_eq!(write(0), TableWrite::Again, "a whole row");
    assert_eq!(kind(&rig, one).0, FrameType::Writable);
    rig.check();
}

/// A guest that writes to an unhooked table by another of its mappings faults there, and has the table back in its tree.
#[test]
fn a_write_by_another_mapping_brings_the_table_back() {
    let rig = Rig::new(1);
    let own = rig.pool(1, 0);
    let (one, below) = hang(&rig, 1, 0, &[(0, leaf(own, true))]);
    let (other, _) = hang(&rig, 1, 1, &[]);
    rig.remap(1, POOL + 9, leaf(one, false)).unwrap();
    assert_eq!((unhook(&rig, 1, mapped(0)), unhook(&rig, 1, mapped(1))), (Ok(0), Ok(0)));
    assert_eq!(emulate(&rig, 1, address(POOL + 9) + 8, leaf(own, false)), TableWrite::Again);
    assert_eq!((kind(&rig, one).0, kind(&rig, other).0), (FrameType::Table(1), FrameType::Writable));
    assert_eq!(rig.entry(one, 1), 0, "nothing is written yet");
    assert_eq!(emulate(&rig, 1, address(POOL + 9) + 8, leaf(own, false)), TableWrite::Done);
    assert_eq!(rig.entry(one, 1), leaf(own, false));
    assert!(reads(&rig, 1, below));
}

/// A superpage maps tables, to be read: a write through it belongs to the table that lies there.
#[test]
fn a_write_through_a_superpage_is_emulated_in_the_right_frame() {
    let rig = Rig::new(1);
    let own = rig.pool(1, 50);
    let number = |index| rig.pool(1, index).number();
    let fits = |first: &u64| {
        number(*first).is_multiple_of(16) && (0..16).all(|step| number(first + step) == number(*first) + step)
    };
    let first = (0..24).find(fits).expect("16 frames in a row");
    let two = rig.prepare(1, 45, &[]);
    rig.update(1, &[(place(rig.domains[1].root, SLOT), table(two))]).unwrap();
    let inside = [rig.prepare(1, first + 3, &[]), rig.prepare(1, first + 7, &[])];
    inside.iter().for_each(|one| assert_eq!(rig.pin(1, *one, 1), Ok(0)));
    rig.update(1, &[(place(two, 2), leaf(rig.pool(1, first), false))]).unwrap();
    let at = |page: u64, index: u64| (SLOT as u64) << 19 | 2 << 16 | page << 12 | index << 3;
    assert_eq!(emulate(&rig, 1, at(7, 5), leaf(own, true)), TableWrite::Done);
    assert_eq!(emulate(&rig, 1, at(3, 6), leaf(own, false)), TableWrite::Done);
    assert_eq!((rig.entry(inside[1], 5), rig.entry(inside[0], 6)), (leaf(own, true), leaf(own, false)));
    assert_eq!(emulate(&rig, 1, at(8, 5), leaf(own, true)), TableWrite::NotATable);
}

/// While a table is out, the tables that its return relies on are changed by emulated writes.
#[test]
fn a_write_to_what_an_unhooked_table_relies_on_brings_it_back_first() {
    let rig = Rig::new(1);
    let own = rig.pool(1, 0);
    let (one, below) = hang(&rig, 1, 0, &[(0, leaf(own, true))]);
    let two = rig.pool(1, TABLES);
    rig.remap(1, POOL + TABLES, leaf(two, false)).unwrap();
    // The entry above it.
    assert_eq!(unhook(&rig, 1, mapped(0)), Ok(0));
    assert_eq!(emulate(&rig, 1, address(POOL + TABLES) + 8 * 7, 0), TableWrite::Done);
    assert_eq!(kind(&rig, one).0, FrameType::Table(1));
    // The entry by which it is written. The table with that entry is the builder's, mapped read-only by itself.
    let (builder, index) = rig.builder_entry(1, POOL + TABLES + 1);
    let pfn = rig.domains[1].p2m.iter().position(|mfn| *mfn == builder).expect("the builder's table") as u64;
    assert_eq!(unhook(&rig, 1, mapped(0)), Ok(0));
    assert_eq!(emulate(&rig, 1, address(pfn) + 8 * index as u64, 0), TableWrite::Done);
    assert_eq!((kind(&rig, one).0, rig.entry(builder, index)), (FrameType::Table(1), 0));
    assert!(reads(&rig, 1, below));
    rig.check();
}

/// The hardware sets its bits while an entry is being exchanged.
#[test]
fn a_write_that_loses_against_the_hardware_is_tried_again() {
    let rig = Rig::new(1);
    let own = rig.pool(1, 0);
    let (one, _) = hang(&rig, 1, 0, &[(1, leaf(own, true))]);
    let mut seen = Vec::new();
    let outcome = rig.hv.write_table(rig.domains[1].vcpu(), GuestVirtual::new(mapped(0) + 8), |old| {
        seen.push(old);
        if seen.len() == 1 {
            rig.hv.machine().write_entry(one, 1, old | 3);
        }
        Some(old | READ_ONLY)
    });
    assert_eq!(outcome, TableWrite::Done);
    assert_eq!(seen, [leaf(own, true), leaf(own, true) | 3]);
    assert_eq!(rig.entry(one, 1), leaf(own, false) | 3, "no bit is lost");
    rig.check();
}

/// Through a root's entry that leads to the root itself, a guest sees its level-1 tables as pages, and writes to them as to any other
/// read-only mapping: the table that stands in for one of level 1 on the way is one of level 2.
#[test]
fn a_write_through_a_linear_entry_is_carried_out() {
    const LINEAR: usize = 6;
    let rig = Rig::new(2);
    let (one, below) = hang(&rig, 1, 0, &[]);
    let root = rig.domains[1].root;
    rig.update(1, &[(place(root, LINEAR), table(root) | READ_ONLY)]).expect("a read-only linear entry");
    let seen = (LINEAR as u64) << 19 | (SLOT as u64) << 16 | (3 * 8);
    assert_eq!(emulate(&rig, 1, seen, leaf(rig.pool(1, 0), true)), TableWrite::Done);
    assert_eq!(rig.entry(one, 3), leaf(rig.pool(1, 0), true));
    assert!(reads(&rig, 1, below | 3 << 12));
    assert_eq!(emulate(&rig, 1, seen, leaf(rig.pool(2, 0), true)), TableWrite::Refused);
    // The root as a page: nothing that a guest may change by a write to level 1.
    let itself = (LINEAR as u64) << 19 | (LINEAR as u64) << 16 | (LINEAR as u64 % 16) << 12;
    assert_ne!(emulate(&rig, 1, itself, leaf(rig.pool(1, 0), true)), TableWrite::Done);
    rig.check();
}
