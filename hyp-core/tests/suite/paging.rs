//! Validation as a guest meets it: through hypercalls, and directly through a `TableSpace` where budgets matter.
//!
//! Each test is one thing that a hostile or careless guest does; the name says what has to come of it. The books are
//! audited, and an independent observer walks all loaded tables, after every step that matters.

use crate::common::{self, POOL, Rig, SELF, frame, leaf, lifted, place, table};
use hyp_core::address::{DomainId, GuestVirtual, MachineFrame};
use hyp_core::domain::Life;
use hyp_core::fake::FIRST_FRAME;
use hyp_core::fake::format::{HARDWARE as DIRTY_AND_ACCESSED, PRESENT};
use hyp_core::frame::FrameType;
use hyp_core::machine::{Level, Mmu};
use hyp_core::paging::update::HardwareBits;
use hyp_core::paging::walk;
use hyp_core::paging::{Budget, Refusal, Stop, Unfinished};
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::memory;
use penumbra_abi::mmu;
use penumbra_abi::multicall::MulticallEntry;
use zerocopy::{FromZeros, IntoBytes};

/// Tries one entry at one place by `mmu_update`; returns what the guest hears, and checks that a refusal changes nothing.
#[track_caller]
fn try_entry(rig: &Rig, who: usize, at: (MachineFrame, usize), raw: u64) -> Result<u64, Errno> {
    let before = rig.entry(at.0, at.1);
    let outcome = rig.update(who, &[(place(at.0, at.1), raw)]);
    if outcome.is_err() {
        assert_eq!(rig.entry(at.0, at.1), before, "a refused entry stands in memory");
        assert_eq!(rig.word(who, 0), 0, "a refused update was counted as done");
    }
    rig.check();
    outcome
}

/// A level-1 entry of the builder's tables.
fn some_entry(rig: &Rig, who: usize) -> (MachineFrame, usize) {
    rig.builder_entry(who, POOL + 20)
}

// ---- What a leaf may lead to -------------------------------------------------------------------------

#[test]
fn a_frame_of_another_domain_is_refused() {
    let rig = Rig::new(2);
    for foreign in [rig.pool(0, 0), rig.pool(2, 0)] {
        for raw in [leaf(foreign, true), leaf(foreign, false)] {
            assert_eq!(try_entry(&rig, 1, some_entry(&rig, 1), raw), Err(Errno::EBUSY));
            assert_eq!(rig.remap(1, POOL + 20, raw), Err(Errno::EBUSY));
        }
    }
    // The control domain has no more rights than others while it doesn't name the owner.
    assert_eq!(try_entry(&rig, 0, some_entry(&rig, 0), leaf(rig.pool(1, 0), false)), Err(Errno::EBUSY));
    rig.check();
}

#[test]
fn a_frame_of_nobody_is_refused() {
    let rig = Rig::new(1);
    let (_, end) = rig.hv.frames().extent();
    let free = frame(end - 1);
    assert_eq!(rig.hv.frames().hold(free).and_then(|hold| hold.owner), None);
    let hole = frame(end);
    let below = frame(FIRST_FRAME - 1);
    let far = frame((1 << 30) - 1);
    for (nobody, error) in
        [(free, Errno::EBUSY), (hole, Errno::EPERM), (below, Errno::EPERM), (far, Errno::EPERM)]
    {
        for raw in [leaf(nobody, true), leaf(nobody, false)] {
            assert_eq!(try_entry(&rig, 1, some_entry(&rig, 1), raw), Err(error), "{nobody:?}");
        }
    }
}

#[test]
fn a_writable_mapping_of_an_own_table_is_refused_at_each_level() {
    let rig = Rig::new(1);
    let (level_one, _) = some_entry(&rig, 1);
    let root = rig.domains[1].root;
    let level_two = frame((rig.entry(root, 16) >> 20) & 0x3fff_ffff);
    for own in [level_one, level_two, root] {
        assert_eq!(try_entry(&rig, 1, some_entry(&rig, 1), leaf(own, true)), Err(Errno::EBUSY));
        assert_eq!(try_entry(&rig, 1, some_entry(&rig, 1), lifted(own)), Err(Errno::EBUSY));
        assert_eq!(rig.remap(1, POOL + 20, leaf(own, true)), Err(Errno::EBUSY));
        // To read it is everyone's right.
        assert_eq!(try_entry(&rig, 1, some_entry(&rig, 1), leaf(own, false)), Ok(0));
        // From there, the fast path for "only the rights change" must not exist (XSA-148, XSA-182).
        assert_eq!(try_entry(&rig, 1, some_entry(&rig, 1), leaf(own, true)), Err(Errno::EBUSY));
        assert_eq!(try_entry(&rig, 1, some_entry(&rig, 1), lifted(own)), Err(Errno::EBUSY));
    }
}

#[test]
fn an_entry_that_hardware_may_make_writable_counts_as_writable() {
    let rig = Rig::new(1);
    let mfn = rig.free_up(1, 0);
    assert_eq!(try_entry(&rig, 1, some_entry(&rig, 1), lifted(mfn)), Ok(0));
    assert_eq!(rig.pin(1, mfn, 1), Err(Errno::EINVAL));
    assert_eq!(try_entry(&rig, 1, some_entry(&rig, 1), leaf(mfn, false)), Ok(0));
    assert_eq!(rig.pin(1, mfn, 1), Ok(0));
    rig.check();
}

#[test]
fn the_shared_page_is_no_part_of_another_domain() {
    let rig = Rig::new(2);
    let shared = rig.domains[2].domain.shared_info().unwrap();
    assert_eq!(try_entry(&rig, 1, some_entry(&rig, 1), leaf(shared, false)), Err(Errno::EBUSY));
    let own = rig.domains[1].domain.shared_info().unwrap();
    assert_eq!(try_entry(&rig, 1, some_entry(&rig, 1), leaf(own, true)), Ok(0));
    assert_eq!(rig.memory(1, memory::XENMEM_DECREASE_RESERVATION, SELF, &[own.number()]), Ok(0));
    rig.check();
}

// ---- What an entry may be ----------------------------------------------------------------------------

#[test]
fn forbidden_bits_and_kinds_are_refused() {
    let rig = Rig::new(1);
    let own = rig.pool(1, 20);
    let one = some_entry(&rig, 1);
    for bit in [2, 3, 6, 8, 10, 19, 50, 62] {
        assert_eq!(try_entry(&rig, 1, one, leaf(own, false) | 1 << bit), Err(Errno::EINVAL), "bit {bit}");
    }
    let root = rig.domains[1].root;
    let two = frame((rig.entry(root, 16) >> 20) & 0x3fff_ffff);
    assert_eq!(try_entry(&rig, 1, one, table(own)), Err(Errno::EINVAL), "a table below level 1");
    let off = frame(own.number() | 1);
    assert_eq!(
        try_entry(&rig, 1, (two, 0), leaf(off, false)),
        Err(Errno::EINVAL),
        "a superpage off its place"
    );
    assert_eq!(
        try_entry(&rig, 1, (two, 0), leaf(off, true)),
        Err(Errno::EINVAL),
        "a superpage off its place"
    );
    assert_eq!(try_entry(&rig, 1, (root, 0), leaf(own, false)), Err(Errno::EINVAL), "a leaf at the root");
}

#[test]
fn a_table_can_stand_only_one_level_above_its_own() {
    let rig = Rig::new(1);
    let root = rig.domains[1].root;
    let two = frame((rig.entry(root, 16) >> 20) & 0x3fff_ffff);
    let (one, _) = some_entry(&rig, 1);
    assert_eq!(try_entry(&rig, 1, (root, 0), table(one)), Err(Errno::EINVAL));
    assert_eq!(try_entry(&rig, 1, (two, 0), table(two)), Err(Errno::EINVAL), "a table in itself (XSA-240)");
    assert_eq!(try_entry(&rig, 1, (two, 0), table(root)), Err(Errno::EINVAL));
    assert_eq!(try_entry(&rig, 1, (root, 0), table(root)), Err(Errno::EINVAL));
    assert_eq!(try_entry(&rig, 1, (root, 0), table(two)), Ok(0), "twice at its own level");
    assert_eq!(try_entry(&rig, 1, (root, 0), 0), Ok(0));
}

#[test]
fn places_that_are_no_entries_are_refused() {
    let rig = Rig::new(1);
    let root = rig.domains[1].root;
    let (one, index) = some_entry(&rig, 1);
    for reserved in [10, 11] {
        assert_eq!(try_entry(&rig, 1, (root, reserved), 0), Err(Errno::EINVAL));
        let raw = table(frame((rig.entry(root, 16) >> 20) & 0x3fff_ffff));
        assert_eq!(try_entry(&rig, 1, (root, reserved), raw), Err(Errno::EINVAL));
    }
    assert_eq!(try_entry(&rig, 1, (root, 32), 0), Err(Errno::EINVAL), "past the root's end");
    assert_eq!(try_entry(&rig, 1, (one, 16), 0), Err(Errno::EINVAL), "past the table's end");
    assert_eq!(try_entry(&rig, 1, (one, 511), 0), Err(Errno::EINVAL));
    assert_eq!(rig.update(1, &[(place(one, index) + 4, 0)]), Err(Errno::EINVAL), "unaligned (XSA-227)");
    assert_eq!(rig.update(1, &[(1 << 52, 0)]), Err(Errno::EINVAL), "no machine address");
    assert_eq!(rig.update(1, &[(!7, 0)]), Err(Errno::EINVAL));
    for va in [0x50_0000u64, 0x5f_ffff] {
        assert_eq!(
            rig.call(1, number::UPDATE_VA_MAPPING, [va, 0, 0, 0, 0, 0]),
            Err(Errno::EINVAL),
            "reserved slots, and addresses without tables"
        );
    }
    for va in [0u64, 1 << 24, u64::MAX] {
        assert_eq!(rig.call(1, number::UPDATE_VA_MAPPING, [va, 0, 0, 0, 0, 0]), Err(Errno::EINVAL));
    }
    rig.check();
}

#[test]
fn tables_of_others_are_no_tables_of_mine() {
    let rig = Rig::new(2);
    let (other, index) = some_entry(&rig, 2);
    assert_eq!(try_entry(&rig, 1, (other, index), 0), Err(Errno::EINVAL), "XSA-109");
    assert_eq!(try_entry(&rig, 1, (rig.pool(2, 0), 0), 7), Err(Errno::EINVAL), "nor is their data mine");
    let naming = [2, 3 << 16 | SELF, 3 << 16 | 2, 1 << 16 | SELF, 0];
    for foreign in naming {
        assert_eq!(
            rig.update_for(1, &[(place(other, index), 0)], foreign),
            Err(Errno::EPERM),
            "{foreign:#x}"
        );
    }
    for owner in [0, 2, 5, 0x7ff2, 0x7fff] {
        let command = mmu::MMUEXT_UNPIN_TABLE;
        let root = rig.domains[2].root.number();
        assert_eq!(rig.extended_for(1, command, root, owner), Err(Errno::EPERM), "{owner:#x}");
    }
    assert_eq!(rig.update_for(0, &[], 9), Err(Errno::ESRCH), "no such domain");
    assert_eq!(rig.pin(1, rig.pool(2, 0), 1), Err(Errno::EINVAL));
    assert_eq!(rig.unpin(1, rig.domains[2].root), Err(Errno::EINVAL));
    assert_eq!(rig.new_root(1, rig.domains[2].root), Err(Errno::EINVAL));
    let own = rig.pool(2, 20);
    let arguments = [common::address(POOL), leaf(own, false), 0, 2, 0, 0];
    assert_eq!(rig.call(1, number::UPDATE_VA_MAPPING_OTHERDOMAIN, arguments), Err(Errno::EPERM));
    rig.check();
}

// ---- The control domain's rights ---------------------------------------------------------------------

#[test]
fn the_control_domain_maps_a_named_domains_frames_and_no_others() {
    let rig = Rig::new(2);
    let at = some_entry(&rig, 0);
    let (one, two) = (rig.pool(1, 0), rig.pool(2, 0));
    assert_eq!(rig.update_for(0, &[(place(at.0, at.1), leaf(one, true))], 1), Ok(0));
    rig.check();
    assert_eq!(rig.update_for(0, &[(place(at.0, at.1), leaf(two, true))], 1), Err(Errno::EBUSY));
    assert_eq!(rig.update_for(0, &[(place(at.0, at.1), leaf(rig.pool(0, 0), true))], 1), Err(Errno::EBUSY));
    assert_eq!(
        rig.update_for(0, &[(place(at.0, at.1), leaf(rig.domains[1].root, true))], 1),
        Err(Errno::EBUSY)
    );
    // While the control domain can write to it, it is no table in its own domain either.
    rig.remap(1, POOL, 0).unwrap();
    assert_eq!(rig.pin(1, one, 1), Err(Errno::EINVAL));
    let arguments = [common::address(POOL + 20), leaf(one, false), 0, 1, 0, 0];
    assert_eq!(rig.call(0, number::UPDATE_VA_MAPPING_OTHERDOMAIN, arguments), Ok(0));
    assert_eq!(rig.pin(1, one, 1), Ok(0));
    rig.check();
    assert_eq!(rig.update_for(0, &[(place(at.0, at.1), leaf(one, true))], 1), Err(Errno::EBUSY));
    rig.check();
}

#[test]
fn a_table_with_foreign_mappings_is_not_validated_again_without_the_right() {
    let rig = Rig::new(1);
    let one = rig.prepare(0, 0, &[]);
    rig.pin(0, one, 1).unwrap();
    rig.update_for(0, &[(place(one, 3), leaf(rig.pool(1, 0), false))], 1).unwrap();
    rig.check();
    rig.unpin(0, one).unwrap();
    assert_eq!(rig.pin(0, one, 1), Err(Errno::EBUSY));
    rig.check();
}

#[test]
fn the_control_domain_pins_for_another_but_names_its_frames() {
    let rig = Rig::new(1);
    let one = rig.prepare(1, 0, &[(0, leaf(rig.pool(1, 1), true))]);
    let own = rig.prepare(0, 0, &[]);
    assert_eq!(rig.extended_for(0, mmu::MMUEXT_PIN_L1_TABLE, own.number(), 1), Err(Errno::EINVAL));
    assert_eq!(rig.extended_for(0, mmu::MMUEXT_PIN_L1_TABLE, one.number(), 1), Ok(0));
    rig.check();
    assert_eq!(rig.extended_for(0, mmu::MMUEXT_UNPIN_TABLE, one.number(), SELF), Err(Errno::EINVAL));
    assert_eq!(rig.extended_for(0, mmu::MMUEXT_UNPIN_TABLE, one.number(), 1), Ok(0));
    rig.check();
}

// ---- Pins ---------------------------------------------------------------------------------------------

#[test]
fn a_table_is_pinned_once_and_unpinned_once() {
    let rig = Rig::new(1);
    let one = rig.prepare(1, 0, &[(0, leaf(rig.pool(1, 1), true)), (5, leaf(rig.pool(1, 2), false))]);
    assert_eq!(rig.unpin(1, one), Err(Errno::EINVAL));
    assert_eq!(rig.pin(1, one, 1), Ok(0));
    assert_eq!(rig.uses(rig.pool(1, 1)), 2, "its first mapping, and the table's");
    assert_eq!(rig.pin(1, one, 1), Err(Errno::EINVAL));
    assert_eq!(rig.pin(1, one, 2), Err(Errno::EINVAL));
    rig.check();
    assert_eq!(rig.unpin(1, one), Ok(0));
    assert_eq!(rig.uses(rig.pool(1, 1)), 1);
    assert_eq!(rig.unpin(1, one), Err(Errno::EINVAL));
    rig.check();
    let (empty, budget) = (rig.prepare(1, 3, &[]), Budget::unbounded());
    for level in [0, 4, 5, Level::MAX] {
        let refusal = Err(Stop::Refused(Refusal::NoSuchLevel));
        assert_eq!(rig.space(1, &budget).pin(empty, level), refusal, "the fake machine has three levels");
        assert_eq!(rig.uses(empty), 0);
    }
    assert_eq!(rig.extended(1, mmu::MMUEXT_PIN_L1_TABLE, u64::MAX), Err(Errno::EINVAL));
    assert_eq!(rig.extended(1, mmu::MMUEXT_PIN_L1_TABLE, FIRST_FRAME - 1), Err(Errno::EINVAL));
    assert_eq!(rig.extended(1, 99, 0), Err(Errno::ENOSYS));
    rig.check();
}

#[test]
fn a_frame_that_is_writable_somewhere_is_not_pinned() {
    let rig = Rig::new(1);
    let mfn = rig.pool(1, 0);
    assert_eq!(rig.pin(1, mfn, 1), Err(Errno::EINVAL));
    rig.check();
    rig.remap(1, POOL, leaf(mfn, false)).unwrap();
    for index in 0..32 {
        rig.update(1, &[(place(mfn, index), 0)]).unwrap();
    }
    assert_eq!(rig.pin(1, mfn, 1), Ok(0));
    assert_eq!(rig.remap(1, POOL, leaf(mfn, true)), Err(Errno::EBUSY));
    rig.check();
}

#[test]
fn a_table_that_maps_itself_writable_is_refused() {
    let rig = Rig::new(1);
    let mfn = rig.pool(1, 0);
    rig.prepare(1, 0, &[(7, leaf(mfn, true))]);
    assert_eq!(rig.pin(1, mfn, 1), Err(Errno::EBUSY));
    rig.check();
    rig.update(1, &[(place(mfn, 7), leaf(mfn, false))]).unwrap();
    assert_eq!(rig.pin(1, mfn, 1), Ok(0));
    rig.check();
}

#[test]
fn a_table_is_typed_until_its_last_use_goes() {
    let rig = Rig::new(1);
    let one = rig.prepare(1, 0, &[(0, leaf(rig.pool(1, 9), true))]);
    let two = rig.prepare(1, 1, &[(0, table(one)), (1, table(one))]);
    rig.pin(1, one, 1).unwrap();
    rig.pin(1, two, 2).unwrap();
    assert_eq!(rig.uses(one), 3);
    rig.unpin(1, one).unwrap();
    assert_eq!(rig.remap(1, POOL, leaf(one, true)), Err(Errno::EBUSY));
    rig.update(1, &[(place(two, 0), 0)]).unwrap();
    assert_eq!(rig.remap(1, POOL, leaf(one, true)), Err(Errno::EBUSY));
    assert_eq!(rig.uses(rig.pool(1, 9)), 2);
    rig.check();
    rig.update(1, &[(place(two, 1), 0)]).unwrap();
    assert_eq!(rig.uses(rig.pool(1, 9)), 1, "what the table held is given back");
    assert_eq!(rig.remap(1, POOL, leaf(one, true)), Ok(0));
    rig.check();
}

#[test]
fn an_entry_is_judged_with_the_old_one_still_in_force() {
    let rig = Rig::new(1);
    let inner = rig.prepare(1, 0, &[]);
    let outer = rig.prepare(1, 1, &[(0, leaf(inner, true))]);
    let two = rig.prepare(1, 2, &[(0, table(outer))]);
    rig.pin(1, two, 2).unwrap();
    // The new table is still writable through the old one.
    assert_eq!(rig.update(1, &[(place(two, 0), table(inner))]), Err(Errno::EINVAL));
    rig.check();
    assert_eq!(rig.update(1, &[(place(two, 0), 0), (place(two, 0), table(inner))]), Ok(0));
    rig.check();
}

// ---- Roots --------------------------------------------------------------------------------------------

#[test]
fn a_root_is_loaded_and_held_until_another_one_is() {
    let rig = Rig::new(1);
    let first = rig.domains[1].root;
    let entries: Vec<_> = (16..24).map(|index| (index, rig.entry(first, index))).collect();
    // What the guest has written into the hypervisor's slots is of no consequence.
    let root =
        rig.prepare(1, 0, &[&entries[..], &[(10, PRESENT | 0x1234), (11, table(rig.pool(0, 0)))]].concat());
    let uses = rig.uses(first);
    assert_eq!(rig.new_root(1, root), Ok(0));
    assert_eq!(rig.domains[1].vcpu().kernel_root(), Some(root));
    assert_eq!((rig.uses(root), rig.uses(first)), (1, uses - 1));
    rig.check();
    assert_eq!(rig.remap(1, POOL, leaf(root, true)), Err(Errno::EBUSY), "it is loaded");
    assert_eq!(rig.new_root(1, root), Ok(0), "again");
    assert_eq!(rig.uses(root), 1);
    assert_eq!(rig.new_root(1, first), Ok(0));
    assert_eq!(rig.uses(root), 0);
    assert_eq!((rig.entry(root, 10), rig.entry(root, 11)), (0, 0), "the hypervisor's entries stay its own");
    rig.check();
    assert_eq!(rig.remap(1, POOL, leaf(root, true)), Ok(0));
    rig.check();
}

#[test]
fn only_a_root_table_is_loaded() {
    let rig = Rig::new(1);
    let (one, _) = some_entry(&rig, 1);
    assert_eq!(rig.new_root(1, one), Err(Errno::EINVAL));
    assert_eq!(rig.new_root(1, rig.pool(1, 3)), Err(Errno::EINVAL), "writable");
    assert_eq!(rig.new_root(1, rig.pool(0, 3)), Err(Errno::EINVAL));
    let bad = rig.prepare(1, 0, &[(16, leaf(rig.pool(1, 3), false))]);
    assert_eq!(rig.new_root(1, bad), Err(Errno::EINVAL));
    assert_eq!(rig.domains[1].vcpu().kernel_root(), Some(rig.domains[1].root));
    rig.check();
}

#[test]
fn a_user_root_is_held_and_can_be_taken_away() {
    let rig = Rig::new(1);
    let user = rig.prepare(1, 0, &[]);
    let command = mmu::MMUEXT_NEW_USER_BASEPTR;
    assert_eq!(rig.extended(1, command, user.number()), Ok(0));
    rig.check();
    assert_eq!((rig.domains[1].vcpu().user_root(), rig.uses(user)), (Some(user), 1));
    assert_eq!(rig.remap(1, POOL, leaf(user, true)), Err(Errno::EBUSY));
    assert_eq!(rig.extended(1, command, rig.pool(0, 1).number()), Err(Errno::EINVAL));
    assert_eq!(rig.extended(1, command, 0), Ok(0));
    assert_eq!((rig.domains[1].vcpu().user_root(), rig.uses(user)), (None, 0));
    rig.check();
}

// ---- Memory given back --------------------------------------------------------------------------------

#[test]
fn a_pinned_table_cannot_be_given_back() {
    let rig = Rig::new(1);
    let one = rig.prepare(1, 0, &[]);
    rig.pin(1, one, 1).unwrap();
    let give_back =
        |mfn: MachineFrame| rig.memory(1, memory::XENMEM_DECREASE_RESERVATION, SELF, &[mfn.number()]);
    assert_eq!(give_back(one), Ok(0), "none was done (XSA-252)");
    assert!(rig.hv.frames().usage(one).unwrap().pinned);
    rig.check();
    rig.unpin(1, one).unwrap();
    assert_eq!(give_back(one), Ok(1));
    assert_eq!(rig.hv.frames().hold(one).and_then(|hold| hold.owner), None);
    assert_eq!(give_back(one), Ok(0), "twice");
    rig.check();
}

#[test]
fn a_mapped_frame_that_is_given_back_is_freed_with_its_last_mapping() {
    let rig = Rig::new(1);
    let mfn = rig.pool(1, 0);
    let domain = rig.domains[1].domain;
    let (pages, free) = (domain.pages(rig.hv.frames()), rig.hv.frames().free_frames());
    let list = [mfn.number()];
    assert_eq!(rig.memory(1, memory::XENMEM_DECREASE_RESERVATION, SELF, &list), Ok(1));
    rig.check();
    let hold = rig.hv.frames().hold(mfn).unwrap();
    assert_eq!((hold.owner, hold.allocated), (Some(DomainId::new(1)), false));
    assert_eq!(domain.pages(rig.hv.frames()), pages, "it still counts, or memory could be hoarded");
    assert_eq!(rig.memory(1, memory::XENMEM_DECREASE_RESERVATION, SELF, &list), Ok(0), "no second claim");
    let flushes = rig.hv.machine().flushes();
    rig.remap(1, POOL, 0).unwrap();
    assert!(rig.hv.machine().flushes() > flushes, "freed without a flush");
    assert_eq!(rig.hv.frames().free_frames(), free + 1);
    assert_eq!(domain.pages(rig.hv.frames()), pages - 1);
    assert!((0..512).all(|index| rig.entry(mfn, index) == 0), "not scrubbed");
    assert_eq!(rig.hv.frames().m2p().unwrap().get(mfn), None);
    rig.check();
}

#[test]
fn foreign_and_impossible_frames_are_not_given_back() {
    let rig = Rig::new(2);
    let decrease = memory::XENMEM_DECREASE_RESERVATION;
    for mfn in [rig.pool(2, 0).number(), rig.pool(0, 0).number(), 0, u64::MAX, FIRST_FRAME - 1] {
        assert_eq!(rig.memory(1, decrease, SELF, &[mfn]), Ok(0), "{mfn:#x}");
        rig.check();
    }
    assert_eq!(rig.memory(1, decrease, 2, &[rig.pool(2, 0).number()]), Err(Errno::EPERM));
    assert_eq!(rig.memory(0, decrease, 2, &[rig.pool(1, 0).number()]), Ok(0), "it is domain 1's");
    // The list lies in the caller's memory, the frames are the other's.
    assert_eq!(rig.memory(0, decrease, 2, &[rig.pool(2, 0).number()]), Ok(1));
    rig.check();
}

#[test]
fn memory_is_taken_up_to_the_limit_and_named() {
    let rig = Rig::new(1);
    let gone: Vec<u64> = (0..3).map(|index| rig.free_up(1, index).number()).collect();
    let [increase, decrease, populate] = [
        memory::XENMEM_INCREASE_RESERVATION,
        memory::XENMEM_DECREASE_RESERVATION,
        memory::XENMEM_POPULATE_PHYSMAP,
    ];
    assert_eq!(rig.memory(1, increase, SELF, &[0]), Ok(0), "it has all it may have");
    assert_eq!(rig.memory(1, decrease, SELF, &gone), Ok(3));
    assert_eq!(rig.memory(1, populate, SELF, &[POOL, POOL + 1, POOL + 2, POOL + 3]), Ok(3));
    rig.check();
    for index in 0..3 {
        let mfn = frame(rig.word(1, 64 + 8 * index));
        assert_eq!(rig.hv.frames().m2p().unwrap().get(mfn).map(|pfn| pfn.number()), Some(POOL + index));
        assert!((0..512).all(|at| rig.entry(mfn, at) == 0), "a new frame isn't empty");
        assert_eq!(rig.remap(1, POOL + index, leaf(mfn, true)), Ok(0));
    }
    assert_eq!(rig.memory(0, increase, 1, &[0]), Ok(0), "nor for the control domain");
    rig.check();
}

#[test]
fn a_frame_that_the_guest_cannot_hear_of_is_taken_back() {
    let rig = Rig::new(1);
    let gone = rig.free_up(1, 0);
    rig.memory(1, memory::XENMEM_DECREASE_RESERVATION, SELF, &[gone.number()]).unwrap();
    let free = rig.hv.frames().free_frames();
    // A list in memory that is mapped read-only.
    let list = common::address(POOL + 1);
    rig.remap(1, POOL + 1, leaf(rig.pool(1, 1), false)).unwrap();
    for operation in [memory::XENMEM_INCREASE_RESERVATION, memory::XENMEM_POPULATE_PHYSMAP] {
        let reservation = memory::MemoryReservation {
            extent_start: list,
            nr_extents: 1,
            domid: SELF as u16,
            ..memory::MemoryReservation::default()
        };
        let at = rig.give(1, 16, reservation.as_bytes());
        assert_eq!(rig.call(1, number::MEMORY_OP, [operation, at, 0, 0, 0, 0]), Ok(0));
        assert_eq!(rig.hv.frames().free_frames(), free);
        rig.check();
    }
}

#[test]
fn names_in_the_m2p_are_given_by_the_owner_alone() {
    let rig = Rig::new(2);
    let name = |who, mfn: MachineFrame, foreign| {
        rig.update_for(who, &[(mfn.start().bytes() | mmu::MMU_MACHPHYS_UPDATE, 77)], foreign)
    };
    let (own, other) = (rig.pool(1, 0), rig.pool(2, 0));
    let m2p = |mfn| rig.hv.frames().m2p().unwrap().get(mfn).map(|pfn| pfn.number());
    assert_eq!(name(1, own, SELF), Ok(0));
    assert_eq!(m2p(own), Some(77));
    assert_eq!(name(1, other, SELF), Err(Errno::EINVAL));
    assert_eq!(name(1, other, 2), Err(Errno::EPERM));
    assert_eq!(m2p(other), Some(POOL));
    assert_eq!(name(0, other, 1), Err(Errno::EINVAL), "it is domain 2's");
    assert_eq!(name(0, other, 2), Ok(0));
    let (_, end) = rig.hv.frames().extent();
    for (nobody, error) in [(end - 1, Errno::EINVAL), (end, Errno::EINVAL), (0, Errno::EINVAL)] {
        let nobody = frame(nobody);
        assert_eq!(name(1, nobody, SELF), Err(error));
        assert_eq!(m2p(nobody), None);
    }
    rig.check();
}

// ---- Flushes ------------------------------------------------------------------------------------------

/// Runs `step`; returns how often everything was flushed meanwhile.
fn flushes<T>(rig: &Rig, step: impl FnOnce() -> T) -> u64 {
    let before = rig.hv.machine().flushes();
    step();
    rig.hv.machine().flushes() - before
}

#[test]
fn every_change_of_type_is_flushed() {
    let rig = Rig::new(1);
    let one = rig.free_up(1, 0);
    assert!(flushes(&rig, || rig.pin(1, one, 1).unwrap()) > 0, "writable to table");
    assert_eq!(flushes(&rig, || rig.unpin(1, one).unwrap()), 0, "a type outlives its last use");
    assert_eq!(flushes(&rig, || rig.pin(1, one, 1).unwrap()), 0, "the same type again");
    rig.unpin(1, one).unwrap();
    assert!(flushes(&rig, || rig.pin(1, one, 2).unwrap()) > 0, "to another level");
    rig.unpin(1, one).unwrap();
    assert!(flushes(&rig, || rig.remap(1, POOL, leaf(one, true)).unwrap()) > 0, "table to writable");
    assert_eq!(flushes(&rig, || rig.remap(1, POOL, leaf(one, false)).unwrap()), 0);
    assert_eq!(flushes(&rig, || rig.remap(1, POOL, leaf(one, true)).unwrap()), 0);
    rig.remap(1, POOL, 0).unwrap();
    let two = rig.prepare(1, 1, &[(0, table(one))]);
    rig.pin(1, two, 2).unwrap();
    assert_eq!(rig.hv.frames().usage(one).unwrap().kind, FrameType::Table(1));
    rig.update(1, &[(place(two, 0), 0)]).unwrap();
    let root = rig.prepare(1, 2, &[(0, table(two))]);
    assert!(flushes(&rig, || rig.pin(1, root, 3).unwrap()) > 0);
    rig.check();
}

#[test]
fn what_a_guest_asks_to_be_flushed_is_flushed() {
    let rig = Rig::new(1);
    let raw = rig.entry(some_entry(&rig, 1).0, some_entry(&rig, 1).1);
    let va = common::address(POOL + 20);
    let map = |flags| rig.call(1, number::UPDATE_VA_MAPPING, [va, raw, flags, 0, 0, 0]).unwrap();
    assert_eq!(flushes(&rig, || map(mmu::UVMF_NONE)), 0);
    assert_eq!(flushes(&rig, || map(mmu::UVMF_INVLPG | mmu::UVMF_LOCAL)), 0, "a page on this CPU");
    assert_eq!(flushes(&rig, || map(mmu::UVMF_TLB_FLUSH | mmu::UVMF_ALL)), 1);
    assert_eq!(flushes(&rig, || map(mmu::UVMF_INVLPG | mmu::UVMF_ALL)), 1);
    for command in [mmu::MMUEXT_TLB_FLUSH_ALL, mmu::MMUEXT_INVLPG_ALL] {
        assert_eq!(flushes(&rig, || rig.extended(1, command, va).unwrap()), 1);
    }
    assert_eq!(rig.extended(1, mmu::MMUEXT_TLB_FLUSH_LOCAL, 0), Ok(0));
    assert_eq!(rig.extended(1, mmu::MMUEXT_INVLPG_LOCAL, va), Ok(0));
}

// ---- Bits that hardware sets --------------------------------------------------------------------------

#[test]
fn accessed_and_dirty_bits_are_kept_when_asked_for() {
    let rig = Rig::new(1);
    let (one, index) = some_entry(&rig, 1);
    let mfn = rig.pool(1, 20);
    let preserve = |raw| rig.update(1, &[(place(one, index) | mmu::MMU_PT_UPDATE_PRESERVE_AD, raw)]);
    rig.update(1, &[(place(one, index), leaf(mfn, true) | DIRTY_AND_ACCESSED)]).unwrap();
    assert_eq!(preserve(leaf(mfn, false)), Ok(0));
    assert_eq!(rig.entry(one, index), leaf(mfn, false) | DIRTY_AND_ACCESSED);
    rig.check();
    rig.update(1, &[(place(one, index), leaf(mfn, false))]).unwrap();
    assert_eq!(rig.entry(one, index), leaf(mfn, false), "replaced");
    // Those bits and no others: not the old frame's number, nor what hardware has not set.
    let other = rig.pool(1, 21);
    rig.update(1, &[(place(one, index), leaf(mfn, false) | 1)]).unwrap();
    assert_eq!(preserve(leaf(other, true) | 2), Ok(0));
    assert_eq!(rig.entry(one, index), leaf(other, true) | DIRTY_AND_ACCESSED);
    rig.update(1, &[(place(one, index), leaf(mfn, false) | 1)]).unwrap();
    assert_eq!(preserve(leaf(other, true)), Ok(0));
    assert_eq!(rig.entry(one, index), leaf(other, true) | 1);
    assert_eq!(preserve(leaf(mfn, true) | DIRTY_AND_ACCESSED), Ok(0));
    assert_eq!(rig.entry(one, index), leaf(mfn, true) | DIRTY_AND_ACCESSED, "set in both");
    assert_eq!(preserve(leaf(rig.domains[1].root, true)), Err(Errno::EBUSY));
    rig.check();
}

#[test]
fn bits_that_are_forced_are_set_by_updates_and_validation() {
    let rig = Rig::new(1);
    let bare = leaf(rig.pool(1, 1), false) & !(1 << 7);
    let one = rig.prepare(1, 0, &[(2, bare)]);
    assert_eq!(rig.entry(one, 2), bare, "no table yet");
    rig.pin(1, one, 1).unwrap();
    assert_eq!(rig.entry(one, 2), bare | 1 << 7);
    rig.update(1, &[(place(one, 3), bare)]).unwrap();
    assert_eq!(rig.entry(one, 3), bare | 1 << 7);
    let two = rig.prepare(1, 1, &[(4, table(one) & !(1 << 7))]);
    let root = rig.prepare(1, 2, &[(5, table(two) & !(1 << 7))]);
    rig.pin(1, root, 3).unwrap();
    assert_eq!((rig.entry(two, 4), rig.entry(root, 5)), (table(one), table(two)), "and in upper tables");
    rig.check();
}

// ---- Batches ------------------------------------------------------------------------------------------

#[test]
fn a_batch_stops_at_the_first_refusal_and_says_how_far_it_came() {
    let rig = Rig::new(1);
    let (one, index) = some_entry(&rig, 1);
    let at = place(one, index);
    let good = leaf(rig.pool(1, 20), false);
    let bad = leaf(rig.pool(0, 0), false);
    assert_eq!(rig.update(1, &[(at, good), (at, 0), (at, bad), (at, good)]), Err(Errno::EBUSY));
    assert_eq!((rig.word(1, 0), rig.entry(one, index)), (2, 0));
    rig.check();
}

/// The table of the update before is remembered: it must be the one that is named, not merely one that was.
#[test]
fn a_batch_goes_to_each_table_that_it_names() {
    let rig = Rig::new(1);
    let tables = [rig.prepare(1, 0, &[]), rig.prepare(1, 1, &[])];
    tables.iter().for_each(|one| assert_eq!(rig.pin(1, *one, 1), Ok(0)));
    let [first, second] = tables;
    let page = |index: u64| leaf(rig.pool(1, 30 + index), index.is_multiple_of(2));
    let batch = [
        (place(first, 1), page(0)),
        (place(second, 2), page(1)),
        (place(second, 3), page(2)),
        (place(first, 4), page(3)),
        (place(first, 1), 0),
    ];
    assert_eq!(rig.update(1, &batch), Ok(0));
    rig.check();
    assert_eq!((rig.entry(first, 1), rig.entry(first, 4)), (0, page(3)));
    assert_eq!((rig.entry(second, 2), rig.entry(second, 3)), (page(1), page(2)));
    assert!([(first, 2), (first, 3), (second, 1), (second, 4)].iter().all(|at| rig.entry(at.0, at.1) == 0));
}

#[test]
fn only_complete_tables_of_ones_own_are_leaf_tables() {
    let rig = Rig::new(2);
    let budget = Budget::unbounded();
    let is_leaf_table = |who, frame| rig.space(who, &budget).leaf_table(frame).is_some();
    let (one, _) = some_entry(&rig, 1);
    let root = rig.domains[1].root;
    let two = frame((rig.entry(root, 16) >> 20) & 0x3fff_ffff);
    assert!(is_leaf_table(1, one));
    assert!(!is_leaf_table(2, one), "another domain's");
    assert!(!is_leaf_table(1, two) && !is_leaf_table(1, root), "of higher levels");
    assert!(!is_leaf_table(1, rig.pool(1, 0)), "a page");
    rig.hv.frames().set_progress(one, 3);
    assert!(!is_leaf_table(1, one), "incomplete");
    rig.hv.frames().complete(one);
    let spent = Budget::new(1);
    let large = rig.prepare(1, 0, &[(1, table(rig.prepare(1, 1, &[])))]);
    assert_eq!(rig.space(1, &spent).hold(large, 2), Err(Stop::Preempted));
    assert!(!is_leaf_table(1, one), "while something is unfinished");
}

#[test]
fn a_budget_lasts_until_it_is_spent_and_not_longer() {
    let budget = Budget::new(10);
    assert!(budget.take(8) && !budget.is_spent() && budget.take(8), "what is begun may be finished");
    assert!(budget.is_spent() && !budget.take(0) && !budget.take(8));
    let budget = Budget::new(3);
    budget.charge(2);
    assert!(!budget.is_spent());
    budget.charge(2);
    assert!(budget.is_spent() && !budget.take(1));
}

/// Whatever an operation is about, what an earlier one left comes first: even if there is nothing to validate.
#[test]
fn what_is_unfinished_comes_before_a_table_that_is_complete() {
    let rig = Rig::new(1);
    let one = rig.prepare(1, 0, &[]);
    rig.pin(1, one, 1).unwrap();
    let large = rig.prepare(1, 1, &[(1, table(rig.prepare(1, 2, &[])))]);
    assert_eq!(rig.space(1, &Budget::new(1)).hold(large, 2), Err(Stop::Preempted));
    let budget = Budget::unbounded();
    assert!(rig.space(1, &budget).state.unfinished.is_some());
    assert_eq!(rig.space(1, &budget).hold(one, 1), Ok(()));
    assert_eq!((rig.space(1, &budget).state.unfinished, rig.uses(large), rig.uses(one)), (None, 0, 2));
    rig.space(1, &budget).let_go(one, 1);
    rig.check();
}

#[test]
fn a_long_batch_is_preempted_and_goes_on() {
    let rig = Rig::new(1);
    let (one, index) = some_entry(&rig, 1);
    let good = leaf(rig.pool(1, 20), false);
    let update = mmu::MmuUpdate { pointer: place(one, index), value: good };
    let done = rig.give(1, 0, &0u64.to_le_bytes());
    let at = rig.give(1, 16, update.as_bytes());
    // The same page of updates over and over: as long as a guest wants it.
    let page = rig.domains[1].p2m[common::SCRATCH as usize];
    for pfn in POOL + 24..POOL + 60 {
        rig.remap(1, pfn, leaf(page, true)).unwrap();
    }
    let updates = vec![update; 256];
    let other = rig.give(1, 4096, updates.as_bytes()) - 4096;
    let source = rig.domains[1].p2m[common::SCRATCH as usize + 1];
    for pfn in POOL + 24..POOL + 60 {
        rig.remap(1, pfn, leaf(source, false)).unwrap();
    }
    assert_eq!(at, other + 16);
    let start = common::address(POOL + 24);
    let count = 36 * 256;
    let mut arguments = [start, count, done, SELF, 0, 0];
    let mut rounds = 0;
    loop {
        match rig.call_once(1, number::MMU_UPDATE, arguments) {
            Ok(result) => break assert_eq!(result, 0),
            Err(again) => arguments = again,
        }
        assert!(arguments[1] & mmu::MMU_UPDATE_PREEMPTED != 0);
        let left = arguments[1] & !mmu::MMU_UPDATE_PREEMPTED;
        assert_eq!((rig.word(1, 0) & 0xffff_ffff) + left, count, "the count of what was done lies");
        rig.check();
        rounds += 1;
    }
    assert!(rounds >= 2, "{count} updates in {} pieces", rounds + 1);
    assert_eq!(rig.word(1, 0) & 0xffff_ffff, count);
    rig.check();
}

#[test]
fn a_multicall_does_each_entry_and_does_not_nest() {
    let rig = Rig::new(1);
    let version = MulticallEntry { operation: number::XEN_VERSION, ..MulticallEntry::new_zeroed() };
    let nested = MulticallEntry { operation: number::MULTICALL, ..MulticallEntry::new_zeroed() };
    let unknown = MulticallEntry { operation: 1234, ..MulticallEntry::new_zeroed() };
    let remap = MulticallEntry {
        operation: number::UPDATE_VA_MAPPING,
        result: 99,
        arguments: [common::address(POOL), leaf(rig.pool(0, 0), true), 0, 0, 0, 0],
    };
    let at = rig.give(1, 64, [version, nested, unknown, remap, version].as_bytes());
    assert_eq!(rig.call(1, number::MULTICALL, [at, 5, 0, 0, 0, 0]), Ok(0));
    let result = |index: u64| Errno::from_return(rig.word(1, 64 + index * 64 + 8));
    assert_eq!(result(0), Ok(4 << 16 | 17));
    assert_eq!(result(1), Err(Errno::EINVAL));
    assert_eq!(result(2), Err(Errno::ENOSYS));
    assert_eq!(result(3), Err(Errno::EBUSY));
    assert_eq!(result(4), Ok(4 << 16 | 17));
    rig.check();
    assert_eq!(rig.call(1, number::MULTICALL, [u64::MAX - 31, 1, 0, 0, 0, 0]), Err(Errno::EFAULT));
    assert_eq!(rig.call(1, number::MULTICALL, [0, 1, 0, 0, 0, 0]), Err(Errno::EFAULT));
}

#[test]
fn a_preempted_entry_of_a_multicall_goes_on_where_it_stopped() {
    let rig = Rig::new(1);
    let gone: Vec<u64> = (0..60).map(|index| rig.free_up(1, index).number()).collect();
    let list = rig.give(1, 6096, gone.as_bytes());
    let reservation = memory::MemoryReservation {
        extent_start: list,
        nr_extents: 60,
        domid: SELF as u16,
        ..memory::MemoryReservation::default()
    };
    let at = rig.give(1, 16, reservation.as_bytes());
    let call = |operation| MulticallEntry {
        operation: number::MEMORY_OP,
        result: 0,
        arguments: [operation, at, 0, 0, 0, 0],
    };
    let calls = [call(memory::XENMEM_DECREASE_RESERVATION), call(memory::XENMEM_INCREASE_RESERVATION)];
    let start = rig.give(1, 512, calls.as_bytes());
    let mut arguments = [start, 2, 0, 0, 0, 0];
    let mut rounds = 0;
    while let Err(again) = rig.call_once(1, number::MULTICALL, arguments) {
        arguments = again;
        rounds += 1;
        rig.check();
    }
    assert!(rounds > 0, "120 frames in one go");
    assert_eq!((rig.word(1, 512 + 8), rig.word(1, 512 + 64 + 8)), (60, 60));
    assert_eq!(rig.domains[1].domain.pages(rig.hv.frames()), 1024);
    rig.check();
}

#[test]
fn a_reservations_start_comes_from_the_guest_and_is_checked() {
    let rig = Rig::new(1);
    let reservation = memory::MemoryReservation {
        extent_start: u64::MAX - 7,
        nr_extents: 5,
        domid: SELF as u16,
        ..memory::MemoryReservation::default()
    };
    let at = rig.give(1, 16, reservation.as_bytes());
    let decrease = |start: u64| {
        let operation = memory::XENMEM_DECREASE_RESERVATION | start << memory::MEMORY_OP_EXTENT_SHIFT;
        rig.call(1, number::MEMORY_OP, [operation, at, 0, 0, 0, 0])
    };
    assert_eq!(decrease(0), Ok(0), "the list wraps around");
    assert_eq!(decrease(4), Ok(4));
    assert_eq!(decrease(5), Ok(5));
    assert_eq!(decrease(6), Ok(6), "as Xen: nothing more is done");
    assert_eq!(decrease(u64::MAX >> 6), Ok(u64::MAX >> 6));
    rig.check();
}

// ---- Preemption -----------------------------------------------------------------------------------------

/// A tree of `width` level-2 tables with 4 level-1 tables each, all of them mapping frames. Returns the root, unpinned, and one
/// writable frame that each level-1 table maps.
fn plant(rig: &Rig, who: usize, width: u64) -> (MachineFrame, MachineFrame) {
    let target = rig.pool(who, 50);
    let mut used = 1..;
    let mut twos = Vec::new();
    for index in 0..width {
        let ones: Vec<_> = (0..4)
            .map(|at| {
                let entries = [(0, leaf(target, true)), (15, leaf(rig.pool(who, 51), false))];
                (2 * at, table(rig.prepare(who, used.next().unwrap(), &entries)))
            })
            .collect();
        // At the edges of the reserved slots, too.
        let slot = [0, 9, 12, 31][index as usize % 4];
        twos.push((slot, table(rig.prepare(who, used.next().unwrap(), &ones))));
    }
    (rig.prepare(who, 0, &twos), target)
}

/// Finishes what was interrupted, within a budget.
fn settle(rig: &Rig, budget: u32) -> Result<(), Stop> {
    let resumed = rig.space(1, &Budget::new(budget)).settle(None)?;
    assert!(!resumed, "nothing is resumed when nothing is wanted");
    Ok(())
}

/// Repeats `step` with fresh budgets until it isn't preempted any more; the books are checked each time.
#[track_caller]
fn until_done(rig: &Rig, mut step: impl FnMut() -> Result<(), Stop>) -> (Result<(), Stop>, u32) {
    for round in 1..10_000 {
        let outcome = step();
        rig.check();
        if outcome != Err(Stop::Preempted) {
            return (outcome, round);
        }
    }
    panic!("no end");
}

#[test]
fn a_large_tree_is_held_and_dropped_in_pieces_of_any_size() {
    for budget in [0, 1, 16, 17, 24, 40, 100] {
        let rig = Rig::new(1);
        let (root, target) = plant(&rig, 1, 4);
        let pin = || rig.space(1, &Budget::new(budget)).pin(root, 3);
        let (outcome, rounds) = until_done(&rig, pin);
        assert_eq!(outcome, Ok(()));
        assert!(rounds > 2, "budget {budget}: {rounds} rounds");
        assert_eq!(rig.uses(target), 1 + 16);
        assert_eq!(rig.new_root(1, root), Ok(0));
        rig.check();
        assert_eq!(rig.new_root(1, rig.domains[1].root), Ok(0));
        let unpin = || rig.space(1, &Budget::new(budget)).unpin(root);
        assert_eq!(unpin(), Ok(()), "what is left is left for later");
        rig.check();
        let (outcome, rounds) = until_done(&rig, || settle(&rig, budget));
        assert_eq!(outcome, Ok(()));
        assert!(rounds > 1, "budget {budget}: dropped in {rounds} rounds");
        assert_eq!((rig.uses(target), rig.uses(root)), (1, 0));
        rig.check();
    }
}

#[test]
fn an_interrupted_operation_can_be_abandoned_for_any_other() {
    let small = 20;
    for stop_after in 1..9 {
        let rig = Rig::new(1);
        let (root, target) = plant(&rig, 1, 4);
        for _ in 0..stop_after {
            assert_eq!(rig.space(1, &Budget::new(small)).pin(root, 3), Err(Stop::Preempted));
            rig.check();
        }
        assert!(rig.domains[1].domain.tables.lock().unfinished.is_some());
        // An interrupted tree is in force as far as it got: its frames are no one else's meanwhile.
        match stop_after % 4 {
            0 => assert_eq!(rig.unpin(1, root), Err(Errno::EINVAL)),
            1 => assert_eq!(rig.remap(1, POOL, leaf(root, true)), Ok(0)),
            2 => assert_eq!(rig.update(1, &[(place(root, 0), 0)]), Ok(0), "dropped, so it is data again"),
            _ => assert_eq!(rig.pin(1, root, 2), Err(Errno::EINVAL), "at another level"),
        }
        rig.check();
        let (outcome, _) = until_done(&rig, || settle(&rig, small));
        assert_eq!(outcome, Ok(()));
        assert_eq!((rig.uses(target), rig.domains[1].domain.tables.lock().unfinished), (1, None));
        rig.check();
    }
}

#[test]
fn an_interrupted_drop_is_finished_before_the_table_is_held_again() {
    for stop_after in 0..10 {
        let rig = Rig::new(1);
        let (root, target) = plant(&rig, 1, 4);
        rig.pin(1, root, 3).unwrap();
        rig.space(1, &Budget::new(20)).unpin(root).unwrap();
        for _ in 0..stop_after {
            let _ = rig.space(1, &Budget::new(20)).settle(None);
            rig.check();
        }
        let (outcome, _) = until_done(&rig, || rig.space(1, &Budget::new(20)).pin(root, 3));
        assert_eq!((outcome, rig.uses(target)), (Ok(()), 17));
        rig.check();
    }
}

#[test]
fn an_update_that_is_preempted_leaves_the_old_entry_and_goes_on() {
    let rig = Rig::new(1);
    let (root, target) = plant(&rig, 1, 1);
    let two = frame((rig.entry(root, 0) >> 20) & 0x3fff_ffff);
    let empty = rig.prepare(1, 40, &[]);
    rig.pin(1, empty, 3).unwrap();
    let update = |raw| {
        let budget = Budget::new(16);
        rig.space(1, &budget).update(empty, 3, 5, raw, HardwareBits::Replace)
    };
    let mut rounds = 0;
    while update(table(two)) == Err(Stop::Preempted) {
        assert_eq!(rig.entry(empty, 5), 0, "an entry stands before its table is validated");
        rig.check();
        rounds += 1;
    }
    assert!(rounds > 1);
    assert_eq!((rig.entry(empty, 5), rig.uses(target)), (table(two), 5));
    rig.check();
    // The same entry again: nothing moves.
    assert_eq!(update(table(two)), Ok(()));
    assert_eq!((rig.uses(two), rig.uses(target)), (1, 5));
    rig.check();
    assert_eq!(update(0), Ok(()), "the old tree is dropped later");
    rig.check();
    let (outcome, _) = until_done(&rig, || settle(&rig, 16));
    assert_eq!((outcome, rig.uses(target)), (Ok(()), 1));
    rig.check();
}

#[test]
fn what_waits_for_one_entry_is_taken_over_by_another_that_leads_there() {
    let rig = Rig::new(1);
    let (root, target) = plant(&rig, 1, 1);
    let two = frame((rig.entry(root, 0) >> 20) & 0x3fff_ffff);
    let a = rig.prepare(1, 40, &[]);
    rig.pin(1, a, 3).unwrap();
    let budget = Budget::new(16);
    let first = rig.space(1, &budget).update(a, 3, 5, table(two), HardwareBits::Replace);
    assert_eq!(first, Err(Stop::Preempted));
    assert_eq!(rig.space(1, &budget).state.unfinished, Some(Unfinished::Validating(two, 2)));
    assert_ne!(rig.space(1, &budget).state.unfinished, Some(Unfinished::Validating(two, 1)));
    assert_eq!(rig.update(1, &[(place(a, 7), table(two)), (place(a, 5), table(two))]), Ok(0));
    assert_eq!((rig.uses(two), rig.uses(target)), (2, 5));
    assert_eq!(rig.domains[1].domain.tables.lock().unfinished, None);
    rig.check();
    assert_eq!(rig.pin(1, two, 2), Ok(0));
    rig.check();
}

#[test]
fn an_error_deep_in_a_half_validated_tree_gives_everything_back() {
    for (budget, place_of_error) in [(0, 3), (16, 2), (40, 0), (4096, 3), (4096, 0)] {
        let rig = Rig::new(1);
        let (root, target) = plant(&rig, 1, 4);
        let slot = [0, 9, 12, 31][place_of_error];
        let two = frame((rig.entry(root, slot) >> 20) & 0x3fff_ffff);
        let one = frame((rig.entry(two, 4) >> 20) & 0x3fff_ffff);
        rig.update(1, &[(place(one, 9), leaf(rig.pool(0, 0), false))]).unwrap();
        let (outcome, _) = until_done(&rig, || rig.space(1, &Budget::new(budget)).pin(root, 3));
        assert!(matches!(outcome, Err(Stop::Refused(Refusal::Frame(_)))), "{outcome:?}");
        assert!(!rig.hv.frames().usage(root).unwrap().pinned);
        // The entry's owner can't be had by asking again either.
        let (outcome, _) = until_done(&rig, || rig.space(1, &Budget::new(budget)).pin(root, 3));
        assert!(matches!(outcome, Err(Stop::Refused(_))), "{outcome:?}");
        let (outcome, _) = until_done(&rig, || settle(&rig, budget));
        assert_eq!((outcome, rig.uses(target), rig.uses(root)), (Ok(()), 1, 0));
        rig.update(1, &[(place(one, 9), 0)]).unwrap();
        assert_eq!(rig.pin(1, root, 3), Ok(0));
        rig.check();
    }
}

#[test]
fn an_error_just_behind_the_reserved_slots_is_survived() {
    let rig = Rig::new(1);
    // The guest's rubbish in the reserved slots is never taken for a table that holds references.
    let rubbish = table(rig.domains[1].root);
    let root = rig.prepare(1, 0, &[(10, rubbish), (11, rubbish), (12, table(rig.pool(0, 0)))]);
    for _ in 0..3 {
        assert_eq!(rig.pin(1, root, 3), Err(Errno::EINVAL));
        rig.check();
    }
    assert_eq!(rig.update(1, &[(place(root, 12), 0)]), Ok(0));
    assert_eq!(rig.pin(1, root, 3), Ok(0));
    rig.check();
}

#[test]
fn an_unfinished_root_does_not_get_loaded() {
    let rig = Rig::new(1);
    let (root, _) = plant(&rig, 1, 4);
    let _ = rig.space(1, &Budget::new(16)).hold(root, 3);
    assert!(!rig.hv.frames().usage(root).unwrap().complete);
    assert_eq!(rig.space(1, &Budget::new(16)).table_level(root), None);
    assert_eq!(rig.domains[1].domain.tables.lock().unfinished, Some(Unfinished::Validating(root, 3)));
    // A hypercall goes on with it, and only then is it loaded.
    assert_eq!(rig.new_root(1, root), Ok(0));
    assert!(rig.hv.frames().usage(root).unwrap().complete);
    rig.check();
}

// ---- The end of a domain --------------------------------------------------------------------------------

#[test]
fn a_domain_that_dies_in_the_middle_of_anything_gives_everything_back() {
    for state in 0..4 {
        let rig = Rig::new(2);
        let (root, _) = plant(&rig, 1, 4);
        match state {
            0 => assert_eq!(rig.space(1, &Budget::new(40)).pin(root, 3), Err(Stop::Preempted)),
            1 => {
                rig.pin(1, root, 3).unwrap();
                rig.extended(1, mmu::MMUEXT_NEW_USER_BASEPTR, root.number()).unwrap();
            }
            2 => {
                rig.pin(1, root, 3).unwrap();
                rig.space(1, &Budget::new(40)).unpin(root).unwrap();
            }
            _ => {
                // Given back, and still mapped; and pinned without a claim.
                let one = rig.prepare(1, 40, &[]);
                rig.remap(1, POOL + 40, leaf(one, false)).unwrap();
                let decrease = memory::XENMEM_DECREASE_RESERVATION;
                let list = [one.number(), rig.pool(1, 41).number()];
                assert_eq!(rig.memory(1, decrease, SELF, &list), Ok(2));
                assert_eq!(rig.pin(1, one, 1), Ok(0));
            }
        }
        rig.check();
        let owned = rig.hv.frames().owned(DomainId::new(1)) as usize;
        let free = rig.hv.frames().free_frames();
        rig.bury(1);
        assert_eq!(rig.domains[1].domain.life(), Life::Vacant);
        assert_eq!(rig.hv.frames().free_frames(), free + owned);
        for mfn in &rig.domains[1].p2m {
            assert!((0..512).all(|index| rig.entry(*mfn, index) == 0), "not scrubbed");
        }
        rig.check();
    }
}

#[test]
fn what_the_control_domain_still_maps_of_a_dead_domain_stays_the_dead_domains() {
    let rig = Rig::new(1);
    let at = some_entry(&rig, 0);
    let mfn = rig.pool(1, 0);
    rig.update_for(0, &[(place(at.0, at.1), leaf(mfn, true))], 1).unwrap();
    rig.bury(1);
    assert_eq!(rig.domains[1].domain.life(), Life::Dying);
    assert_eq!(rig.hv.frames().hold(mfn).and_then(|hold| hold.owner), Some(DomainId::new(1)));
    assert_eq!(rig.update_for(0, &[(place(at.0, at.1 ^ 1), leaf(mfn, true))], 1), Err(Errno::ESRCH));
    rig.check();
    assert!(flushes(&rig, || rig.update(0, &[(place(at.0, at.1), 0)]).unwrap()) > 0);
    assert_eq!(rig.hv.frames().hold(mfn).and_then(|hold| hold.owner), None);
    while rig.hv.background() {}
    assert_eq!(rig.domains[1].domain.life(), Life::Vacant);
    rig.check();
}

#[test]
fn a_new_domain_in_a_dead_ones_place_starts_from_nothing() {
    let mut rig = Rig::new(1);
    rig.bury(1);
    let again = common::Guest::new(rig.hv, false);
    assert_eq!(again.id(), DomainId::new(1));
    rig.domains[1] = again;
    assert_eq!(rig.domains[1].domain.pages(rig.hv.frames()), 1024);
    assert_eq!(rig.pin(1, rig.prepare(1, 0, &[]), 1), Ok(0));
    rig.check();
}

// ---- The auditor itself -----------------------------------------------------------------------------------

#[test]
fn the_auditor_sees_what_is_broken_on_purpose() {
    type Break = (&'static str, fn(&Rig));
    let broken: [Break; 8] = [
        ("a reference too many", |rig| rig.hv.frames().get(rig.pool(1, 0), DomainId::new(1)).unwrap()),
        ("a reference too few", |rig| {
            rig.hv.frames().put(rig.pool(1, 0), rig.hv.machine());
        }),
        ("a use too many", |rig| {
            rig.hv.frames().get_writable(rig.pool(1, 0), DomainId::new(1), rig.hv.machine()).unwrap();
        }),
        ("a use too few", |rig| {
            rig.hv.frames().put_use(rig.pool(1, 0), rig.hv.machine());
        }),
        ("a writable entry that nobody validated", |rig| {
            let (one, index) = rig.builder_entry(1, POOL);
            rig.hv.machine().write_entry(one, index, leaf(rig.domains[1].root, true));
        }),
        ("an entry that leads nowhere", |rig| {
            let (one, index) = rig.builder_entry(1, POOL);
            rig.hv.machine().write_entry(one, index, leaf(frame(3), false));
        }),
        ("a lost claim", |rig| assert!(rig.hv.frames().unclaim(rig.pool(1, 0)))),
        ("a pin out of nowhere", |rig| {
            rig.hv.frames().set_pinned(rig.builder_entry(1, POOL).0, true);
        }),
    ];
    for (name, break_it) in broken {
        let rig = Rig::new(1);
        rig.check();
        break_it(&rig);
        assert!(rig.hv.audit().findings > 0, "the auditor doesn't see {name}");
    }
}

// ---- What mutations of the core have shown to be worth a test of its own ------------------------------------

#[test]
fn a_new_root_is_the_one_that_the_machine_walks() {
    let rig = Rig::new(1);
    let first = rig.domains[1].root;
    let all: Vec<_> = (16..24).map(|index| (index, rig.entry(first, index))).collect();
    let root = rig.prepare(1, 0, &all[1..]);
    let low = GuestVirtual::new(common::address(0));
    assert!(rig.hv.machine().translate(low, false).is_some());
    rig.new_root(1, root).unwrap();
    assert_eq!(rig.hv.machine().translate(low, false), None, "the old root is still loaded");
    rig.check();
}

#[test]
fn no_walk_enters_the_hypervisors_slots() {
    let rig = Rig::new(1);
    let root = rig.domains[1].root;
    let place = |va| walk::level_one_place(rig.hv.machine(), root, GuestVirtual::new(va));
    // Suppose that the window were made of tables, as on real machines.
    for slot in [10, 11] {
        rig.hv.machine().write_entry(root, slot, rig.entry(root, 16));
    }
    assert!(place(16 << 19).is_some());
    assert_eq!((place(10 << 19), place(11 << 19)), (None, None));
}

#[test]
fn a_dead_domains_frames_are_flushed_before_the_first_is_free() {
    let rig = Rig::new(1);
    let (before, free) = (rig.hv.machine().flushes(), rig.hv.frames().free_frames());
    rig.hv.kill(rig.domains[1].vcpu(), format_args!("a test"));
    // The shared-info page is freed, and flushed, by itself.
    while rig.hv.frames().free_frames() <= free + 1 {
        assert!(rig.hv.background());
    }
    assert!(rig.hv.machine().flushes() >= before + 2);
    rig.check();
}

#[test]
fn a_table_that_goes_with_an_abandoned_tree_is_not_updated() {
    let rig = Rig::new(1);
    let (root, _) = plant(&rig, 1, 4);
    let two = frame((rig.entry(root, 0) >> 20) & 0x3fff_ffff);
    let one = frame((rig.entry(two, 0) >> 20) & 0x3fff_ffff);
    while rig.space(1, &Budget::new(16)).table_level(one).is_none() {
        assert_eq!(rig.space(1, &Budget::new(16)).pin(root, 3), Err(Stop::Preempted));
    }
    let raw = leaf(rig.pool(1, 52), true);
    assert_eq!(rig.update(1, &[(place(one, 3), raw)]), Err(Errno::EINVAL));
    assert_eq!((rig.entry(one, 3), rig.uses(one)), (0, 0));
    rig.check();
    assert_eq!(rig.update(1, &[(place(one, 3), raw)]), Ok(0), "it is data now");
    rig.check();
}
