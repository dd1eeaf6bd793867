//! References and types: kept too long, dropped too early, or by the wrong one.

use hyp_core::address::{GuestVirtual, MachineFrame};
use hyp_core::fake;
use hyp_core::frame::FrameType;
use hyp_core::frame::uses::Locked;
use hyp_core::machine::GuestMemory;
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::mmu::MmuextOp;
use penumbra_abi::{memory, mmu};
use zerocopy::IntoBytes;

use crate::common::{Guest, POOL, Rig, SELF, address, leaf, place, table};

/// Empty slots of the builder's root.
const SLOT: usize = 5;
/// The most uses that a record counts.
const MOST_USES: u32 = (1 << 20) - 1;

/// Takes the last use of the level-1 table away, by some way.
type Last = (&'static str, fn(&Rig, Tree));

/// A level-1 table below a level-2 table below a root, none of them pinned or loaded.
#[derive(Clone, Copy)]
struct Tree {
    root: MachineFrame,
    two: MachineFrame,
    one: MachineFrame,
}

/// A tree whose level-1 table maps pool frame 50 writable; read-only mappings of the three tables where their frames always were.
fn tree(rig: &Rig) -> Tree {
    let one = rig.prepare(1, 0, &[(3, leaf(rig.pool(1, 50), true))]);
    let two = rig.prepare(1, 1, &[(0, table(one))]);
    let root = rig.prepare(1, 2, &[(SLOT, table(two))]);
    // What the builder's root maps, so that the guest can go on under it.
    let first = rig.domains[1].root;
    for index in 16..24 {
        rig.update(1, &[(place(root, index), rig.entry(first, index))]).expect("data as yet");
    }
    for (index, frame) in [one, two, root].into_iter().enumerate() {
        rig.remap(1, POOL + index as u64, leaf(frame, false)).expect("a mapping to read it");
    }
    Tree { root, two, one }
}

fn unhook(rig: &Rig, page: u64) {
    let arguments = [number::PENUMBRA_UNHOOK, address(POOL + page), 0, 0, 0, 0];
    assert_eq!(rig.call(1, number::PENUMBRA, arguments), Ok(0));
}

const LAST_USES: [Last; 9] = [
    ("a pin goes", |rig, tree| {
        rig.pin(1, tree.one, 1).unwrap();
        rig.unpin(1, tree.one).unwrap();
    }),
    ("a pin of the tree goes", |rig, tree| {
        rig.pin(1, tree.root, 3).unwrap();
        rig.unpin(1, tree.root).unwrap();
    }),
    ("the entry is emptied", |rig, tree| {
        rig.pin(1, tree.two, 2).unwrap();
        rig.update(1, &[(place(tree.two, 0), 0)]).unwrap();
    }),
    ("the entry leads to another table", |rig, tree| {
        let other = rig.prepare(1, 5, &[]);
        rig.pin(1, tree.two, 2).unwrap();
        rig.update(1, &[(place(tree.two, 0), table(other))]).unwrap();
    }),
    ("the entry above is emptied", |rig, tree| {
        rig.pin(1, tree.root, 3).unwrap();
        rig.update(1, &[(place(tree.root, SLOT), 0)]).unwrap();
    }),
    ("another root is loaded", |rig, tree| {
        rig.new_root(1, tree.root).unwrap();
        rig.new_root(1, rig.domains[1].root).unwrap();
    }),
    ("the user's root is taken away", |rig, tree| {
        rig.extended(1, mmu::MMUEXT_NEW_USER_BASEPTR, tree.root.number()).unwrap();
        rig.extended(1, mmu::MMUEXT_NEW_USER_BASEPTR, 0).unwrap();
    }),
    ("it was written to, unhooked, and can't come back", |rig, tree| {
        rig.pin(1, tree.two, 2).unwrap();
        unhook(rig, 0);
        let bad = leaf(rig.pool(0, 0), true).to_le_bytes();
        rig.hv.machine().write_guest(GuestVirtual::new(address(POOL)), &bad).unwrap();
        let arguments = [number::PENUMBRA_HOOK, number::PENUMBRA_HOOK_ALL, 0, 0, 0, 0];
        assert_eq!(rig.call(1, number::PENUMBRA, arguments), Err(Errno::EBUSY));
        // What was written is the guest's, to be emptied before the frame is used anew.
        rig.update(1, &[(place(tree.one, 0), 0)]).unwrap();
    }),
    ("it is unhooked and pinned, and both go", |rig, tree| {
        rig.pin(1, tree.two, 2).unwrap();
        rig.pin(1, tree.one, 1).unwrap();
        unhook(rig, 0);
        rig.unpin(1, tree.one).unwrap();
        rig.update(1, &[(place(tree.two, 0), 0)]).unwrap();
    }),
];

/// XSA-242: a table that was being updated was held by one more use meanwhile; if the real ones went at that time, this was the last to
/// go, and it went without the clean-up that the last one owes. What the table's entries held was held for ever, and what it
/// mapped stayed mapped while it was somebody else's.
///
/// The attacker lets go of a table by each way there is, and then looks for what is left: a use of the table, a use or a reference of what
/// it mapped. Then it uses the frame for data, maps a table of its own in there, and waits for a walker.
#[test]
fn xsa_242_the_last_use_cleans_up_by_whichever_way_it_goes() {
    let mut rig = Rig::new(1);
    for (what, last) in LAST_USES {
        let tree = tree(&rig);
        let mapped = rig.pool(1, 50);
        let held = || (rig.hv.frames().hold(mapped).unwrap().references, rig.uses(mapped));
        let before = held();
        last(&rig, tree);
        rig.check();
        assert_eq!((rig.uses(tree.one), held()), (0, before), "{what}");
        assert!(!rig.hv.frames().usage(tree.one).unwrap().pinned, "{what}");
        // Only its mapping to read it, and the claim.
        assert_eq!(rig.hv.frames().hold(tree.one).unwrap().references, 2, "{what}");
        rig.remap(1, POOL, leaf(tree.one, true)).expect("data now");
        let evil = leaf(rig.domains[1].root, true);
        rig.update(1, &[(place(tree.one, 5), evil)]).expect("a word of data");
        rig.check();
        rig.bury(1);
        assert_eq!(rig.hv.frames().hold(mapped).and_then(|hold| hold.owner), None, "{what}: lost for ever");
        rig.domains[1] = Guest::new(rig.hv, false);
    }
}

fn copy_page(rig: &Rig, who: usize, to: u64, from: u64) -> Result<u64, Errno> {
    let operation = MmuextOp { command: mmu::MMUEXT_COPY_PAGE, pad: 0, argument1: to, argument2: from };
    let at = rig.give(who, 16, operation.as_bytes());
    rig.call(who, number::MMUEXT_OP, [at, 1, 0, SELF, 0, 0])
}

/// XSA-248: pages of the hypervisor's own were counted as the guest's, so that a guest could map them like its own memory, and write to
/// the tables that Xen walks.
///
/// The attacker tries every frame number of the machine and beyond, to read, to write, as a table, as a root, as a page to be cleared or
/// copied. It gets its own frames and no others; of the frame that it shares with the hypervisor, no table.
#[test]
fn xsa_248_no_frame_is_the_guests_but_its_own() {
    let rig = Rig::new(1);
    let (first, end) = rig.hv.frames().extent();
    assert_eq!(first, fake::FIRST_FRAME);
    let at = rig.builder_entry(1, POOL);
    let target = rig.pool(1, 1).number();
    let odd =
        [0, 1, first / 2, end, end + 1, 1 << 30, (1 << 30) - 1, (1 << 36) - 1, u64::MAX >> 12, u64::MAX];
    let mut reached = 0;
    for number in (first - 8..end + 8).chain(odd) {
        let frame = MachineFrame::new(number).filter(|frame| frame.number() < 1 << 30);
        let owner = frame.and_then(|frame| rig.hv.frames().hold(frame)?.owner);
        let own = owner == Some(rig.domains[1].id());
        let copied = copy_page(&rig, 1, target, number);
        assert_eq!(copied.is_ok(), own, "{number:#x} is copied for d1, and is {owner:?}'s");
        if let Some(frame) = frame {
            let mapped = rig.update(1, &[(place(at.0, at.1), leaf(frame, false))]);
            assert_eq!(mapped.is_ok(), own, "{frame:?} is mapped by d1, and is {owner:?}'s");
        }
        reached += u64::from(own);
        if own {
            continue;
        }
        if let Some(frame) = frame {
            assert!(rig.update(1, &[(place(at.0, at.1), leaf(frame, true))]).is_err(), "{frame:?}");
            assert!(rig.update(1, &[(place(frame, 0), 0)]).is_err(), "{frame:?}");
        }
        for command in [0, 1, 2, mmu::MMUEXT_NEW_BASEPTR, mmu::MMUEXT_CLEAR_PAGE, mmu::MMUEXT_UNPIN_TABLE] {
            assert!(rig.extended(1, command, number).is_err(), "{number:#x} by command {command}");
        }
        let user = rig.extended(1, mmu::MMUEXT_NEW_USER_BASEPTR, number);
        assert!(user.is_err() || number == 0, "{number:#x}");
        let given = rig.memory(1, memory::XENMEM_DECREASE_RESERVATION, SELF, &[number]);
        assert_eq!(given, Ok(0), "{number:#x} is given back by d1, and is {owner:?}'s");
    }
    let shared = rig.domains[1].domain.shared_info().unwrap();
    assert_eq!(reached, rig.domains[1].domain.pages(rig.hv.frames()) + 1, "and the shared page");
    for level in 1..4 {
        assert_eq!(rig.pin(1, shared, level), Err(Errno::EINVAL));
    }
    rig.check();
}

/// XSA-280: a counter that the mend of XSA-240 had added lay where another part of Xen kept flags; counting one up changed the other.
///
/// The attacker drives a count to its end. One more is refused, and nothing beside the count has changed: not the type, not the
/// pin, not the owner. Then all goes back to where it was.
#[test]
fn xsa_280_a_count_at_its_end_touches_nothing_beside_it() {
    let rig = Rig::new(1);
    let (frames, machine, id) = (rig.hv.frames(), rig.hv.machine(), rig.domains[1].id());
    let data = rig.pool(1, 0);
    let others = MOST_USES - rig.uses(data);
    (0..others).for_each(|_| frames.get_writable(data, id, machine).expect("one more"));
    assert_eq!(rig.remap(1, POOL + 1, leaf(data, true)), Err(Errno::EBUSY), "a million, and one");
    let usage = frames.usage(data).unwrap();
    assert_eq!(
        (usage.kind, usage.uses, usage.complete, usage.pinned),
        (FrameType::Writable, MOST_USES, true, false)
    );
    assert_eq!(frames.hold(data).unwrap().owner, Some(id));
    assert_eq!(rig.pin(1, data, 1), Err(Errno::EINVAL), "still no table");
    (0..others).for_each(|_| assert!(!frames.put_use(data, machine)));
    rig.check();
    // A table, pinned.
    let one = rig.prepare(1, 2, &[]);
    let two = rig.prepare(1, 3, &[]);
    rig.pin(1, one, 1).unwrap();
    rig.pin(1, two, 2).unwrap();
    let others = MOST_USES - rig.uses(one);
    (0..others).for_each(|_| assert_eq!(frames.lock_table(one, 1, id, machine), Ok(Locked::Complete)));
    assert_eq!(rig.update(1, &[(place(two, 0), table(one))]), Err(Errno::EINVAL));
    let usage = frames.usage(one).unwrap();
    assert_eq!(
        (usage.kind, usage.uses, usage.complete, usage.pinned),
        (FrameType::Table(1), MOST_USES, true, true)
    );
    assert_eq!(rig.remap(1, POOL + 2, leaf(one, true)), Err(Errno::EBUSY), "still no data");
    (0..others).for_each(|_| frames.unlock_table(one, machine));
    rig.check();
    assert_eq!((rig.unpin(1, one), rig.uses(one)), (Ok(0), 0));
    rig.check();
}

/// XSA-214 by a way that Xen doesn't have: what an unhooked table held is held by its snapshot. The attacker gives back the table, and what
/// it maps, while it is out, and has the frames given to another domain.
#[test]
fn xsa_214_what_an_unhooked_table_maps_does_not_change_hands() {
    let rig = Rig::new(2);
    let tree = tree(&rig);
    let mapped = rig.pool(1, 50);
    rig.remap(1, POOL + 50, 0).unwrap();
    rig.pin(1, tree.two, 2).unwrap();
    unhook(&rig, 0);
    rig.memory(1, memory::XENMEM_DECREASE_RESERVATION, SELF, &[mapped.number(), tree.one.number()]).unwrap();
    rig.check();
    // The other domain takes all that is free.
    rig.unmap(2, 300, 64).into_iter().for_each(|mfn| {
        rig.memory(2, memory::XENMEM_DECREASE_RESERVATION, SELF, &[mfn]).unwrap();
    });
    let names: Vec<u64> = (300..364).collect();
    while rig.memory(2, memory::XENMEM_POPULATE_PHYSMAP, SELF, &names) == Ok(64) {}
    for held in [mapped, tree.one] {
        let owner = rig.hv.frames().hold(held).and_then(|hold| hold.owner);
        assert_eq!(owner, Some(rig.domains[1].id()), "{held:?} is mapped by d1");
    }
    rig.check();
    rig.update(1, &[(place(tree.two, 0), 0)]).unwrap();
    assert_eq!(rig.hv.frames().hold(mapped).and_then(|hold| hold.owner), None, "now it is nobody's");
    rig.check();
}
