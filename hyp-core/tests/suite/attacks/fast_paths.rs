//! Fast paths around the validation, and entries that the hypervisor reads otherwise than the walker.

use hyp_core::address::{GuestVirtual, MachineFrame};
use hyp_core::fake::format::{LIFT, PRESENT, READ_ONLY};
use hyp_core::frame::FrameType;
use hyp_core::machine::GuestMemory;
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;

use super::ways::{WAYS, Way, all_refuse, put};
use crate::common::{POOL, Rig, address, frame, leaf, lifted, place, table};

/// Frames of a superpage.
const SPAN: u64 = 16;
/// An empty slot of the builder's root.
const SLOT: usize = 5;

/// The first of sixteen pool frames that a superpage can map.
fn run(rig: &Rig) -> (u64, MachineFrame) {
    let number = |index| rig.pool(1, index).number();
    let fits = |first: &u64| (0..SPAN).all(|step| number(first + step) == number(*first) + step);
    let first = (0..24).find(|first| number(*first).is_multiple_of(SPAN) && fits(first));
    let first = first.expect("sixteen frames in a row");
    (first, rig.pool(1, first))
}

/// XSA-148: where an entry of level 2 went on leading to the same frame, Xen took the change for one of harmless flags, and looked
/// neither at the superpage bit nor at the writable bit. An entry that led to a table became a superpage over that table and its
/// neighbours, and the guest wrote to its own page tables.
///
/// The attacker has a level-1 table at the first frame of a run, and another further on; it turns the entry that leads to the first into a
/// superpage of the same frame number, read-only and then writable, by every way there is, and stores to the tables through it.
#[test]
fn xsa_148_a_tables_entry_becomes_a_superpage_over_it() {
    let rig = Rig::new(1);
    let (index, first) = run(&rig);
    let one = rig.prepare(1, index, &[(3, leaf(rig.pool(1, 50), true))]);
    assert_eq!(one, first);
    let other = rig.prepare(1, index + 9, &[]);
    let two = rig.prepare(1, 40, &[(2, table(one)), (6, table(other))]);
    rig.update(1, &[(place(rig.domains[1].root, SLOT), table(two))]).expect("a tree");
    rig.remap(1, POOL + 40, leaf(two, false)).expect("a mapping to read it");
    let store = Way::Store(address(POOL + 40));
    let below = (SLOT as u64) << 19 | 2 << 16;
    for raw in [leaf(first, true), lifted(first)] {
        all_refuse(&rig, 1, &[store], (two, 2), raw);
    }
    for way in WAYS.into_iter().chain([store]) {
        assert!(put(&rig, 1, way, (two, 2), leaf(first, false)), "to read one's tables is allowed");
        assert!(!put(&rig, 1, way, (two, 2), leaf(first, true)), "{way:?}: the table further on");
        assert!(!put(&rig, 1, way, (two, 2), leaf(first, false) | LIFT), "{way:?}");
        rig.check();
        for page in [0, 9] {
            let at = GuestVirtual::new(below | page << 12);
            assert!(rig.hv.machine().write_guest(at, &[0xff; 8]).is_err(), "written through {way:?}");
        }
        assert!(put(&rig, 1, way, (two, 2), table(one)), "a table again");
        rig.check();
    }
    assert_eq!(rig.hv.frames().usage(other).unwrap().kind, FrameType::Table(1));
}

/// XSA-182: the fast path that was left compared too few bits: of an entry that led to the same frame, the right to write could be
/// changed without a validation, which made a read-only linear table writable, and cacheability likewise.
///
/// The attacker widens a linear entry of its root, a mapping of a table, and a superpage over one; and tries the bits that a fast path
/// might hand through.
#[test]
fn xsa_182_no_right_is_added_by_changing_flags_alone() {
    let rig = Rig::new(1);
    let root = rig.domains[1].root;
    rig.update(1, &[(place(root, 31), table(root) | READ_ONLY)]).expect("a linear table");
    for raw in [table(root), table(root) | READ_ONLY | LIFT, table(root) | LIFT] {
        all_refuse(&rig, 1, &[], (root, 31), raw);
    }
    // A table, mapped read-only where its frame always was.
    let one = rig.prepare(1, 0, &[(1, leaf(rig.pool(1, 50), false))]);
    rig.pin(1, one, 1).expect("a table");
    rig.remap(1, POOL, leaf(one, false)).expect("a mapping to read it");
    let at = rig.builder_entry(1, POOL);
    for raw in [leaf(one, true), lifted(one), leaf(one, true) | 3] {
        all_refuse(&rig, 1, &[], at, raw);
        assert_eq!(rig.remap(1, POOL, raw), Err(Errno::EBUSY), "update_va_mapping");
    }
    // What would be another memory type, or a bit that only some walkers read.
    for bit in [6, 12, 51, 62] {
        for raw in [leaf(one, false) | 1 << bit, leaf(rig.pool(1, 0), true) | 1 << bit] {
            all_refuse(&rig, 1, &[], at, raw);
        }
    }
    assert!(rig.hv.machine().write_guest(GuestVirtual::new(address(POOL)), &[0; 8]).is_err());
    rig.check();
}

/// XSA-182 once more, by the way that Xen doesn't have: a table that is written to while it is out of its tree. Where an entry leads to
/// the same frame as before, the snapshot tells that nothing but a flag has changed; the right to write is one.
#[test]
fn xsa_182_a_right_that_is_added_in_an_unhooked_table_is_judged() {
    for widened in [leaf, |frame, _| lifted(frame)] {
        let rig = Rig::new(1);
        let victim = rig.prepare(1, 0, &[]);
        rig.pin(1, victim, 1).expect("a table");
        let one = rig.prepare(1, 1, &[(4, leaf(victim, false))]);
        let two = rig.prepare(1, 2, &[(0, table(one))]);
        rig.update(1, &[(place(rig.domains[1].root, SLOT), table(two))]).expect("a tree");
        rig.remap(1, POOL + 1, leaf(one, false)).expect("a mapping to read it");
        let unhook = [number::PENUMBRA_UNHOOK, address(POOL + 1), 0, 0, 0, 0];
        assert_eq!(rig.call(1, number::PENUMBRA, unhook), Ok(0));
        let raw = widened(victim, true).to_le_bytes();
        let entry = GuestVirtual::new(address(POOL + 1) + 8 * 4);
        rig.hv.machine().write_guest(entry, &raw).expect("it is the guest's to write for now");
        rig.check();
        let hook = [number::PENUMBRA_HOOK, (SLOT as u64) << 19, 0, 0, 0, 0];
        assert_eq!(rig.call(1, number::PENUMBRA, hook), Err(Errno::EBUSY));
        rig.check();
        assert_eq!(rig.entry(two, 0), 0, "what can't stand doesn't");
        assert_eq!(rig.hv.frames().usage(victim).unwrap().kind, FrameType::Table(1));
        assert_eq!(rig.hv.frames().hold(victim).unwrap().references, 2, "the claim and the pin");
    }
}

/// XSA-167: of a superpage's entry, the frame number was not checked: where it isn't a multiple of the superpage's size, the walker maps
/// frames before it, or faults, while the hypervisor counts those that follow.
///
/// The attacker names each frame of a run in turn, of which the first and the last belong to somebody else.
#[test]
fn xsa_167_a_superpage_whose_number_is_no_multiple() {
    let rig = Rig::new(2);
    let two = rig.prepare(1, 40, &[]);
    rig.update(1, &[(place(rig.domains[1].root, SLOT), table(two))]).expect("a level-2 table");
    let (_, first) = run(&rig);
    for step in 1..SPAN {
        for writable in [false, true] {
            let raw = leaf(frame(first.number() + step), writable);
            all_refuse(&rig, 1, &[], (two, 3), raw);
        }
    }
    // The same in a table that is validated as a whole.
    let whole = rig.prepare(1, 41, &[(7, leaf(frame(first.number() + 1), false))]);
    assert_eq!(rig.pin(1, whole, 2), Err(Errno::EINVAL));
    rig.check();
    // At a level that has none.
    all_refuse(&rig, 1, &[], (rig.domains[1].root, SLOT + 1), leaf(first, false));
    // At the end of memory, where the rest of it is nobody's.
    let (_, end) = rig.hv.frames().extent();
    for beyond in [end - SPAN, end, end + SPAN] {
        all_refuse(&rig, 1, &[], (two, 3), leaf(frame(beyond / SPAN * SPAN), false));
    }
}

/// XSA-176: the hypervisor's own walker ignored reserved bits of superpages' entries, and so translated addresses otherwise than the
/// processor.
///
/// Wherever the fake format has a bit that means nothing, an entry with it is refused, at each level and for each kind of entry: there is
/// nothing that two walkers could read differently. (The real formats' own tests say the same of their bits.)
#[test]
fn xsa_176_no_bit_is_ignored_at_any_level() {
    let rig = Rig::new(1);
    let known = PRESENT | ((1 << 30) - 1) << 20 | 1 << 9 | 1 << 7 | READ_ONLY | LIFT | 3;
    let (_, first) = run(&rig);
    let one = rig.prepare(1, 40, &[]);
    let two = rig.prepare(1, 41, &[]);
    rig.update(1, &[(place(rig.domains[1].root, SLOT), table(two))]).expect("a level-2 table");
    rig.pin(1, one, 1).expect("a level-1 table");
    let places = [
        ((one, 3), leaf(rig.pool(1, 50), false)),
        ((two, 3), leaf(first, false)),
        ((two, 4), table(one)),
        ((rig.domains[1].root, SLOT + 1), table(two)),
    ];
    for (at, fine) in places {
        for bit in (0..64).filter(|bit| known >> bit & 1 == 0) {
            assert!(!put(&rig, 1, Way::Update, at, fine | 1 << bit), "bit {bit} of {fine:#x}");
        }
        rig.check();
        assert!(put(&rig, 1, Way::Update, at, fine), "without it, it is a good entry");
    }
    rig.check();
}
