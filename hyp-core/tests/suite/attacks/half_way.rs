//! Trees of tables whose validation or tear-down stops half-way, and what an attacker can do meanwhile.

use hyp_core::address::MachineFrame;
use hyp_core::fake::format::READ_ONLY;
use hyp_core::frame::FrameType;
use hyp_core::paging::{Budget, Stop};
use penumbra_abi::errno::Errno;
use penumbra_abi::mmu::{self, MmuextOp};
use penumbra_abi::{hypercall as number, memory};
use zerocopy::IntoBytes;

use crate::common::{Guest, POOL, Rig, SELF, address, leaf, place, table};

/// Level-1 tables of the attacker's tree; each maps its [`Tree::mapped`] frame sixteen times.
const ONES: u64 = 8;
/// Uses that the tree takes of the frame.
const USES: u32 = 16 * ONES as u32;
/// The first empty slot of a root.
const SLOT: usize = 5;
/// The smallest budgets, and one at which level-1 tables end in the middle.
const BUDGETS: [u32; 3] = [1, 16, 33];

/// A tree that nothing holds.
struct Tree {
    root: MachineFrame,
    twos: [MachineFrame; 2],
    ones: Vec<MachineFrame>,
    /// Mapped, writable, by each entry of each level-1 table.
    mapped: MachineFrame,
}

impl Tree {
    fn new(rig: &Rig) -> Self {
        let mapped = rig.pool(1, 50);
        let full: Vec<_> = (0..16).map(|index| (index, leaf(mapped, true))).collect();
        let ones: Vec<_> = (0..ONES).map(|index| rig.prepare(1, index, &full)).collect();
        let twos = [0, 1].map(|half| {
            let below = ones[4 * half..4 * half + 4].iter().enumerate();
            rig.prepare(1, 20 + half as u64, &below.map(|(at, one)| (at, table(*one))).collect::<Vec<_>>())
        });
        let first = rig.domains[1].root;
        // What the builder's root maps, so that the guest can go on under it; its own tables before and after the reserved slots.
        let mut entries: Vec<_> = (16..24).map(|index| (index, rig.entry(first, index))).collect();
        entries.extend([(SLOT, table(twos[0])), (12, table(twos[1]))]);
        let root = rig.prepare(1, 22, &entries);
        Self { root, twos, ones, mapped }
    }

    /// Every frame of it.
    fn frames(&self) -> Vec<MachineFrame> {
        self.ones.iter().copied().chain(self.twos).chain([self.root, self.mapped]).collect()
    }
}

/// The domain dies, with whatever it has; another takes its place, so that one machine does for all rounds.
fn die(rig: &mut Rig) {
    rig.bury(1);
    rig.domains[1] = Guest::new(rig.hv, false);
}

/// References and uses of frames.
fn counts(rig: &Rig, frames: &[MachineFrame]) -> Vec<(u32, u32)> {
    let count = |frame: &MachineFrame| (rig.hv.frames().hold(*frame).unwrap().references, rig.uses(*frame));
    frames.iter().map(count).collect()
}

/// Issues a hypercall within a budget: its result, or the arguments with which it wants to be issued again.
fn piece(rig: &Rig, number: u64, arguments: [u64; 6], budget: u32) -> Result<u64, [u64; 6]> {
    let guest = &rig.domains[1];
    rig.hv.machine().set_root(guest.vcpu().kernel_root().unwrap_or(guest.root));
    guest.vcpu().context().take();
    rig.hv.hypercall_within(guest.vcpu(), number, arguments, &Budget::new(budget));
    let registers = guest.vcpu().context().take();
    registers.result.ok_or_else(|| registers.again.expect("one of the two"))
}

/// Issues a hypercall, within a budget each time, until it is done. Between two pieces the books are right, and no piece has moved more uses of
/// `mapped` than the budget has entries, one begun superpage or table aside.
#[track_caller]
fn in_pieces(rig: &Rig, tree: &Tree, (number, mut arguments): (u64, [u64; 6]), budget: u32) -> (u64, u32) {
    for pieces in 1..5_000 {
        let before = rig.uses(tree.mapped);
        let outcome = piece(rig, number, arguments, budget);
        let moved = rig.uses(tree.mapped).abs_diff(before);
        assert!(moved <= budget.max(1) + 1, "{moved} entries within a budget of {budget}");
        rig.check();
        match outcome {
            Ok(result) => return (result, pieces),
            Err(again) => arguments = again,
        }
    }
    panic!("hypercall {number} does not end");
}

fn extended(rig: &Rig, command: u32, argument: u64) -> (u64, [u64; 6]) {
    let operation = MmuextOp { command, pad: 0, argument1: argument, argument2: 0 };
    (number::MMUEXT_OP, [rig.give(1, 16, operation.as_bytes()), 1, 0, SELF, 0, 0])
}

/// A hypercall that has to do with tables, but not with these.
fn something_else(rig: &Rig) -> (u64, [u64; 6]) {
    (number::UPDATE_VA_MAPPING, [address(POOL + 60), leaf(rig.pool(1, 60), true), 0, 0, 0, 0])
}

/// XSA-45: loading a root, or pinning one, validated a tree of any size at one go, for seconds. XSA-264: where the work was preemptible,
/// the check came at places that a guest could lead around.
///
/// The attacker has a tree validated by each operation that does so, with the least that there is between two preemption points.
/// Never does a piece do more than it may; never is a root in force before the last one is done.
#[test]
fn xsa_45_and_264_no_way_to_load_a_tree_leads_around_the_preemption() {
    let mut rig = Rig::new(1);
    for budget in BUDGETS {
        for command in [mmu::MMUEXT_NEW_BASEPTR, mmu::MMUEXT_NEW_USER_BASEPTR, mmu::MMUEXT_PIN_L3_TABLE] {
            let tree = Tree::new(&rig);
            let (mut call, vcpu) = (extended(&rig, command, tree.root.number()), rig.domains[1].vcpu());
            let mut pieces = 0;
            while pieces < USES / budget / 2 {
                call.1 = piece(&rig, call.0, call.1, budget).expect_err("done too early");
                pieces += 1;
                let roots = [vcpu.kernel_root(), vcpu.user_root()];
                assert!(!roots.contains(&Some(tree.root)), "loaded before it is validated");
                assert!(!rig.hv.frames().usage(tree.root).unwrap().pinned);
                rig.check();
            }
            assert_eq!(in_pieces(&rig, &tree, call, budget).0, 0);
            assert_eq!(rig.uses(tree.mapped), 1 + USES);
            die(&mut rig);
        }
        // By an entry of a table in force.
        let tree = Tree::new(&rig);
        let update = mmu::MmuUpdate { pointer: place(rig.domains[1].root, SLOT), value: table(tree.twos[0]) };
        let at = rig.give(1, 64, update.as_bytes());
        let (result, pieces) = in_pieces(&rig, &tree, (number::MMU_UPDATE, [at, 1, 0, SELF, 0, 0]), budget);
        assert!(result == 0 && pieces > USES / 2 / budget / 2, "{pieces} pieces");
        die(&mut rig);
    }
}

/// XSA-290: what was validated in pieces was invalidated at one go when a table lost its type by another way than by being unpinned.
///
/// The attacker lets go of a validated tree by each way that there is. What is left of it is dropped by whatever is asked for
/// next, in pieces of the size that is allowed; until then nobody has the frames.
#[test]
fn xsa_290_no_way_to_let_a_tree_go_leads_around_the_preemption() {
    type Let = (&'static str, fn(&Rig, &Tree), fn(&Rig, &Tree) -> (u64, [u64; 6]));
    let ways: [Let; 5] = [
        (
            "unpinned",
            |rig, tree| assert_eq!(rig.pin(1, tree.root, 3).unwrap(), 0),
            |rig, tree| extended(rig, mmu::MMUEXT_UNPIN_TABLE, tree.root.number()),
        ),
        (
            "another root",
            |rig, tree| assert_eq!(rig.new_root(1, tree.root).unwrap(), 0),
            |rig, _| extended(rig, mmu::MMUEXT_NEW_BASEPTR, rig.domains[1].root.number()),
        ),
        (
            "no user root",
            |rig, tree| {
                assert_eq!(rig.extended(1, mmu::MMUEXT_NEW_USER_BASEPTR, tree.root.number()).unwrap(), 0)
            },
            |rig, _| extended(rig, mmu::MMUEXT_NEW_USER_BASEPTR, 0),
        ),
        (
            "another user root",
            |rig, tree| {
                assert_eq!(rig.extended(1, mmu::MMUEXT_NEW_USER_BASEPTR, tree.root.number()).unwrap(), 0)
            },
            |rig, _| extended(rig, mmu::MMUEXT_NEW_USER_BASEPTR, rig.domains[1].root.number()),
        ),
        (
            "an entry emptied",
            |rig, tree| {
                rig.pin(1, tree.root, 3).unwrap();
                // The other half goes at the end of the domain.
                rig.update(1, &[(place(tree.root, 12), 0)]).unwrap();
            },
            |rig, tree| {
                let update = mmu::MmuUpdate { pointer: place(tree.root, SLOT), value: 0 };
                (number::MMU_UPDATE, [rig.give(1, 64, update.as_bytes()), 1, 0, SELF, 0, 0])
            },
        ),
    ];
    let mut rig = Rig::new(1);
    for budget in BUDGETS {
        for (what, take, let_go) in ways {
            let tree = Tree::new(&rig);
            take(&rig, &tree);
            let validated = rig.uses(tree.mapped) - 1;
            let (result, mut pieces) = in_pieces(&rig, &tree, let_go(&rig, &tree), budget);
            assert_eq!(result, 0, "{what}");
            let (result, more) = in_pieces(&rig, &tree, something_else(&rig), budget);
            pieces += more;
            assert_eq!((result, rig.uses(tree.mapped)), (0, 1), "{what}");
            assert!(
                pieces >= validated / (budget + 1),
                "{what}: {validated} entries in {pieces} pieces of {budget}"
            );
            die(&mut rig);
        }
    }
}

/// What an attacker does with a tree that is half validated, from another vCPU or between two attempts.
type Meanwhile = (&'static str, fn(&Rig, &Tree));

const MEANWHILE: [Meanwhile; 12] = [
    ("nothing", |_, _| {}),
    ("pins the part below", |rig, tree| assert_eq!(rig.pin(1, tree.twos[0], 2), Ok(0))),
    ("pins a leaf's table at another level", |rig, tree| {
        assert!(rig.pin(1, tree.ones[0], 2).is_err() || rig.unpin(1, tree.ones[0]).is_ok());
    }),
    ("loads the root that is half done", |rig, tree| {
        rig.new_root(1, tree.root).unwrap();
        rig.new_root(1, rig.domains[1].root).unwrap();
    }),
    ("hangs a part of it elsewhere, and takes it away", |rig, tree| {
        let at = place(rig.domains[1].root, SLOT);
        rig.update(1, &[(at, table(tree.twos[1]))]).unwrap();
        rig.update(1, &[(at, 0)]).unwrap();
    }),
    ("changes an entry behind the validation", |rig, tree| {
        let _ =
            rig.update(1, &[(place(tree.ones[0], 0), 0), (place(tree.ones[0], 0), leaf(tree.mapped, true))]);
    }),
    ("maps a table of it writable", |rig, tree| {
        if rig.remap(1, POOL, leaf(tree.ones[0], true)).is_ok() {
            rig.remap(1, POOL, 0).unwrap();
        }
    }),
    ("maps the root writable", |rig, tree| {
        if rig.remap(1, POOL + 22, leaf(tree.root, true)).is_ok() {
            rig.remap(1, POOL + 22, 0).unwrap();
        }
    }),
    ("unpins what isn't pinned yet", |rig, tree| {
        assert_eq!(rig.unpin(1, tree.root), Err(Errno::EINVAL));
    }),
    ("has another tree validated in between", |rig, tree| {
        let other = rig.prepare(1, 30, &[(7, table(tree.twos[0]))]);
        rig.pin(1, other, 3).unwrap();
        rig.unpin(1, other).unwrap();
    }),
    ("stops another one half-way, too", |rig, tree| {
        let other = rig.prepare(1, 30, &[(7, table(tree.twos[1]))]);
        let _ = rig.space(1, &Budget::new(20)).pin(other, 3);
    }),
    ("asks for it to be done after all", |rig, tree| {
        rig.pin(1, tree.root, 3).unwrap();
        rig.unpin(1, tree.root).unwrap();
    }),
];

/// XSA-299 and XSA-310: validation that was interrupted left a table *partial*, with a reference kept for it; where it was then resumed,
/// given up, or found by somebody else, references were dropped twice, or never, or entries taken for validated that weren't.
///
/// The attacker stops the validation of a tree at every place, does something else with the half-validated tables, and then goes on, or
/// doesn't. Whatever it does, the books are right after each step, and at the end nothing is held that wasn't before.
#[test]
fn xsa_299_and_310_half_validated_tables_hold_what_they_hold_and_no_more() {
    let mut rig = Rig::new(1);
    for (what, meanwhile) in MEANWHILE {
        for stop_after in [1, 5, 9, 14] {
            for goes_on in [false, true] {
                let tree = Tree::new(&rig);
                let before = counts(&rig, &tree.frames());
                for _ in 0..stop_after {
                    let outcome = rig.space(1, &Budget::new(11)).pin(tree.root, 3);
                    assert_eq!(outcome, Err(Stop::Preempted));
                    rig.check();
                }
                meanwhile(&rig, &tree);
                rig.check();
                let _ = rig.unpin(1, tree.twos[0]);
                rig.check();
                if goes_on {
                    while rig.space(1, &Budget::new(11)).pin(tree.root, 3) == Err(Stop::Preempted) {
                        rig.check();
                    }
                    // The guest may have emptied an entry by itself, while the table was data again.
                    assert!(rig.uses(tree.mapped) >= USES, "{what}: pinned, and not all of it held");
                    rig.unpin(1, tree.root).expect("pinned");
                }
                while rig.space(1, &Budget::new(11)).settle(None).is_err() {
                    rig.check();
                }
                assert_eq!(counts(&rig, &tree.frames()), before, "{what}, after {stop_after} pieces");
            }
        }
        die(&mut rig);
    }
}

/// XSA-299, its first case: validation fails behind a part that was interrupted before. The attacker puts a bad entry into the tree at every
/// place, and has it found by pieces of every size. Whatever was taken for the good entries is given back, once.
#[test]
fn xsa_299_what_fails_in_pieces_gives_everything_back_once() {
    let rig = Rig::new(2);
    for budget in BUDGETS {
        for (at, bad) in [(0, 0), (3, 15), (4, 7), (7, 15)] {
            let tree = Tree::new(&rig);
            rig.update(1, &[(place(tree.ones[at], bad), leaf(rig.pool(2, 0), true))]).expect("data as yet");
            let before = counts(&rig, &tree.frames());
            for _ in 0..2 {
                let (result, _) = in_pieces(
                    &rig,
                    &tree,
                    extended(&rig, mmu::MMUEXT_PIN_L3_TABLE, tree.root.number()),
                    budget,
                );
                assert_eq!(Errno::from_return(result), Err(Errno::EBUSY), "table {at}, entry {bad}");
            }
            in_pieces(&rig, &tree, something_else(&rig), budget);
            assert_eq!(counts(&rig, &tree.frames()), before, "table {at}, entry {bad}, budget {budget}");
        }
    }
}

/// XSA-310, the frames themselves: the attacker gives the half-validated tables back, and what they map, so that they are held by the
/// interrupted operation alone, and dies, or goes on. Nobody gets them before they are let go.
#[test]
fn xsa_310_half_validated_tables_that_are_given_back_are_nobody_elses() {
    let mut rig = Rig::new(1);
    for stop_after in [1, 4, 9] {
        for dies in [false, true] {
            let tree = Tree::new(&rig);
            rig.remap(1, POOL + 50, 0).expect("the other mapping");
            let free = rig.hv.frames().free_frames();
            for _ in 0..stop_after {
                assert_eq!(rig.space(1, &Budget::new(11)).pin(tree.root, 3), Err(Stop::Preempted));
            }
            let list: Vec<_> = tree.frames().iter().map(|frame| frame.number()).collect();
            let given = rig.memory(1, memory::XENMEM_DECREASE_RESERVATION, SELF, &list);
            assert_eq!(given, Ok(list.len() as u64));
            rig.check();
            let held: Vec<_> = tree.frames().into_iter().filter(|frame| rig.uses(*frame) > 0).collect();
            assert!(held.len() >= 4, "the root, a table of each level, and what it maps");
            let owner = |frame: &MachineFrame| rig.hv.frames().hold(*frame).unwrap().owner;
            assert!(
                held.iter().all(|frame| owner(frame) == Some(rig.domains[1].id())),
                "free, and yet in use"
            );
            if dies {
                rig.bury(1);
            } else {
                while rig.space(1, &Budget::new(5)).settle(None).is_err() {
                    rig.check();
                }
            }
            assert!(rig.hv.frames().free_frames() >= free + list.len());
            assert!(tree.frames().iter().all(|frame| rig.hv.frames().hold(*frame).unwrap().owner.is_none()));
            rig.check();
            if !dies {
                rig.bury(1);
            }
            rig.domains[1] = Guest::new(rig.hv, false);
        }
    }
}

/// XSA-309: a linear entry was followed into a root that was only half validated, and took references there, which were never given back.
/// XSA-240: through linear entries, of roots to roots, the hypervisor recursed without bound.
///
/// The attacker makes two roots lead to each other, with one of them half validated, and a root to itself that it stops at that very
/// entry.
#[test]
fn xsa_309_and_240_a_linear_entry_leads_to_its_own_root_and_holds_nothing() {
    let rig = Rig::new(1);
    for budget in BUDGETS {
        let tree = Tree::new(&rig);
        let other = rig.prepare(1, 30, &[(3, table(tree.root) | READ_ONLY)]);
        rig.update(1, &[(place(tree.root, 31), table(other) | READ_ONLY)]).expect("data as yet");
        let before = counts(&rig, &[tree.root, other, tree.mapped]);
        // Each other: while one is half done, the other is asked for, and found to be no table that could be led to.
        for root in [tree.root, other] {
            let pin = extended(&rig, mmu::MMUEXT_PIN_L3_TABLE, root.number());
            assert_eq!(Errno::from_return(in_pieces(&rig, &tree, pin, budget).0), Err(Errno::EINVAL));
        }
        assert_eq!(rig.space(1, &Budget::new(budget)).pin(tree.root, 3), Err(Stop::Preempted));
        let pin = extended(&rig, mmu::MMUEXT_PIN_L3_TABLE, other.number());
        assert_eq!(Errno::from_return(in_pieces(&rig, &tree, pin, budget).0), Err(Errno::EINVAL));
        in_pieces(&rig, &tree, something_else(&rig), budget);
        assert_eq!(counts(&rig, &[tree.root, other, tree.mapped]), before);
        // Itself, several times, at either end.
        let itself = table(tree.root) | READ_ONLY;
        let entries = [0, 1, 9, 13, 31].map(|index| (place(tree.root, index), itself));
        rig.update(1, &entries).expect("data as yet");
        let pin = extended(&rig, mmu::MMUEXT_PIN_L3_TABLE, tree.root.number());
        assert_eq!(in_pieces(&rig, &tree, pin, budget).0, 0);
        assert_eq!((rig.uses(tree.root), rig.uses(tree.mapped)), (1, 1 + USES));
        let unpin = extended(&rig, mmu::MMUEXT_UNPIN_TABLE, tree.root.number());
        assert_eq!(in_pieces(&rig, &tree, unpin, budget).0, 0);
        in_pieces(&rig, &tree, something_else(&rig), budget);
        assert_eq!(counts(&rig, &[tree.root, other, tree.mapped]), before);
        assert_eq!(rig.hv.frames().usage(tree.root).unwrap().kind, FrameType::Table(3), "its last type");
    }
}
