//! The auditor itself: one thing is broken on purpose, and exactly those checks that should see it do.
//!
//! Together they switch every kind of finding on at least once where no other hides it.

use crate::common::{POOL, Rig, frame, leaf, table};
use hyp_core::address::{DomainId, MachineFrame};
use hyp_core::fake::format::FORCED;
use hyp_core::machine::Mmu;
use hyp_core::paging::audit::Kinds;

fn seen(break_it: impl FnOnce(&Rig)) -> Kinds {
    let rig = Rig::new(2);
    assert_eq!(rig.hv.audit().kinds, Kinds::empty());
    break_it(&rig);
    rig.hv.audit().kinds
}

const ONE: DomainId = DomainId::new(1);

#[test]
fn a_reference_too_many() {
    assert_eq!(seen(|rig| rig.hv.frames().get(rig.pool(1, 0), ONE).unwrap()), Kinds::REFERENCES);
}

#[test]
fn a_use_too_many() {
    let kinds = seen(|rig| {
        rig.hv.frames().get_writable(rig.pool(1, 0), ONE, rig.hv.machine()).unwrap();
        rig.hv.frames().put(rig.pool(1, 0), rig.hv.machine());
    });
    assert_eq!(kinds, Kinds::USES);
}

#[test]
fn a_writable_mapping_of_a_table() {
    let kinds = seen(|rig| {
        // The books agree to the digit; only the type tells.
        let (one, index) = rig.builder_entry(1, POOL);
        let (old, own) = (rig.pool(1, 0), rig.pool(1, 1));
        let (own_table, own_index) = rig.builder_entry(1, POOL + 1);
        rig.hv.machine().write_entry(own_table, own_index, 0);
        rig.hv.frames().put_use(own, rig.hv.machine());
        rig.hv.frames().put_use(old, rig.hv.machine());
        rig.hv.frames().lock_table(one, 1, ONE, rig.hv.machine()).unwrap();
        rig.hv.machine().write_entry(one, index, leaf(one, true));
    });
    assert_eq!(kinds, Kinds::TYPE);
}

/// Takes a frame of the first guest's out of its only mapping, as the entry's bits go, and leaves the mapping's hold behind for the
/// test to find another reason for.
fn unmap_and_keep(rig: &Rig, index: u64) -> MachineFrame {
    let (one, at) = rig.builder_entry(1, POOL + index);
    rig.hv.machine().write_entry(one, at, 0);
    rig.pool(1, index)
}

/// A page of descriptors, held by the first guest's vCPU.
fn descriptors(rig: &Rig) -> MachineFrame {
    let page = rig.free_up(1, 0);
    rig.hv.frames().lock_descriptors(page, ONE, rig.hv.machine()).unwrap();
    rig.hv.frames().complete(page);
    rig.domains[1].vcpu().context().hold_descriptors(page);
    page
}

#[test]
fn descriptors_are_held_by_a_vcpu_until_its_domain_dies() {
    let rig = Rig::new(1);
    let page = descriptors(&rig);
    assert_eq!(rig.hv.audit().kinds, Kinds::empty());
    assert_eq!(rig.remap(1, POOL, leaf(page, true)), Err(penumbra_abi::errno::Errno::EBUSY));
    assert_eq!(rig.remap(1, POOL, leaf(page, false)), Ok(0));
    rig.bury(1);
    assert!(rig.hv.domain(ONE).is_none(), "all of its frames are back");
}

#[test]
fn descriptors_that_no_vcpu_holds() {
    let kinds = seen(|rig| {
        descriptors(rig);
        hyp_core::machine::Context::forget_descriptor_pages(rig.domains[1].vcpu().context());
    });
    assert_eq!(kinds, Kinds::REFERENCES | Kinds::USES);
}

#[test]
fn a_writable_mapping_of_descriptors() {
    let kinds = seen(|rig| {
        let (one, index) = rig.builder_entry(1, POOL);
        let page = rig.free_up(1, 0);
        rig.hv.frames().lock_descriptors(page, ONE, rig.hv.machine()).unwrap();
        rig.hv.machine().write_entry(one, index, leaf(page, true));
    });
    assert_eq!(kinds, Kinds::TYPE);
}

#[test]
fn descriptors_in_the_place_of_a_table() {
    let kinds = seen(|rig| {
        let page = rig.free_up(1, 0);
        let two = rig.prepare(1, 1, &[]);
        rig.pin(1, two, 2).unwrap();
        rig.hv.frames().lock_descriptors(page, ONE, rig.hv.machine()).unwrap();
        rig.hv.machine().write_entry(two, 3, table(page));
    });
    assert_eq!(kinds, Kinds::TYPE | Kinds::INCOMPLETE);
}

#[test]
fn descriptors_that_a_guest_can_write_to() {
    let kinds = seen(|rig| rig.domains[1].vcpu().context().hold_descriptors(unmap_and_keep(rig, 0)));
    assert_eq!(kinds, Kinds::TYPE);
}

#[test]
fn descriptors_in_a_table() {
    let kinds = seen(|rig| {
        let (one, _) = rig.builder_entry(1, POOL);
        rig.hv.frames().lock_table(one, 1, ONE, rig.hv.machine()).unwrap();
        rig.domains[1].vcpu().context().hold_descriptors(one);
    });
    assert_eq!(kinds, Kinds::TYPE);
}

#[test]
fn a_table_at_two_levels() {
    let kinds = seen(|rig| {
        let (one, _) = rig.builder_entry(1, POOL);
        rig.hv.frames().lock_table(one, 1, ONE, rig.hv.machine()).unwrap();
        rig.hv.machine().write_entry(rig.domains[1].root, 5, table(one));
    });
    assert_eq!(kinds, Kinds::TYPE | Kinds::INCOMPLETE);
}

/// A frame that is nobody's data any more, but in use as a table by what the tables say.
#[test]
fn a_page_in_the_place_of_a_table() {
    let kinds = seen(|rig| {
        let page = unmap_and_keep(rig, 0);
        let two = rig.prepare(1, 1, &[]);
        rig.pin(1, two, 2).unwrap();
        rig.hv.machine().write_entry(two, 3, table(page));
    });
    assert_eq!(kinds, Kinds::TYPE | Kinds::INCOMPLETE);
}

/// A frame that was never used as anything, and that an entry lets be written.
#[test]
fn a_writable_mapping_of_what_has_no_type() {
    let kinds = seen(|rig| {
        let fresh = rig.hv.frames().allocate(ONE, u64::MAX, rig.hv.machine()).expect("free memory");
        rig.hv.frames().get(fresh, ONE).unwrap();
        rig.free_up(1, 0);
        let (one, index) = rig.builder_entry(1, POOL);
        rig.hv.machine().write_entry(one, index, leaf(fresh, true));
    });
    assert_eq!(kinds, Kinds::TYPE | Kinds::USES);
}

#[test]
fn an_entry_without_a_bit_that_is_forced() {
    let kinds = seen(|rig| {
        let (one, index) = rig.builder_entry(1, POOL);
        rig.hv.machine().write_entry(one, index, leaf(rig.pool(1, 0), true) & !FORCED);
    });
    assert_eq!(kinds, Kinds::FORBIDDEN);
}

/// Of an incomplete table only the last entry in force may lead to an incomplete one.
#[test]
fn an_incomplete_table_in_the_middle_of_an_incomplete_one() {
    let rig = Rig::new(1);
    let two = frame(rig.entry(rig.domains[1].root, 17) >> 20 & 0x3fff_ffff);
    let below = |index| frame(rig.entry(two, index) >> 20 & 0x3fff_ffff);
    let entries = rig.entry(below(0), 0) >> 63 & 1;
    assert_eq!(entries, 1, "tables with something in them");
    rig.hv.frames().set_progress(two, 8);
    let before = rig.hv.audit().findings;
    rig.hv.frames().set_progress(below(7), 16);
    assert_eq!(rig.hv.audit().findings, before, "the last one");
    rig.hv.frames().set_progress(below(3), 16);
    assert_eq!(rig.hv.audit().findings, before + 1, "one before it");
}

#[test]
fn a_loaded_root_that_is_in_use_as_nothing() {
    let kinds = seen(|rig| {
        let root = rig.domains[1].root;
        (0..rig.uses(root)).for_each(|_| rig.hv.frames().drop_use(root));
        rig.hv.frames().complete(root);
    });
    assert!(kinds.contains(Kinds::ROOT), "{kinds:?}");
}

#[test]
fn a_frame_of_a_domain_that_there_is_not() {
    let kinds = seen(|rig| {
        let orphan = rig.hv.frames().allocate(DomainId::new(9), u64::MAX, rig.hv.machine());
        assert!(orphan.is_some());
    });
    assert_eq!(kinds, Kinds::ORPHANS);
}

/// A frame that was taken from its owner, and got lost on the way.
#[test]
fn a_frame_of_nobodys_that_is_still_counted_as_somebodys() {
    let kinds = seen(|rig| {
        let lost = rig.free_up(1, 0);
        assert!(rig.hv.frames().steal(lost, ONE));
    });
    assert_eq!(kinds, Kinds::OWNED | Kinds::TOTAL);
}

#[test]
fn what_the_auditor_says_is_read_by_people() {
    let rig = Rig::new(1);
    let clean = rig.hv.audit();
    let said = format!("{clean}");
    assert!(said.starts_with("audit: ") && said.ends_with(" entries: clean"), "{said}");
    let held = rig.hv.audit().frames;
    assert_eq!((0..2).map(|owner| rig.hv.frames().owned(DomainId::new(owner))).sum::<u64>(), held);
    rig.hv.frames().get(rig.pool(1, 0), ONE).unwrap();
    let said = format!("{}", rig.hv.audit());
    assert!(said.contains(": 1 findings, the first: References"), "{said}");
}

#[test]
fn a_frame_that_is_free_and_held() {
    let kinds = seen(|rig| {
        let (first, _) = rig.hv.frames().extent();
        let index = rig.pool(1, 0).number() - first;
        assert!(rig.hv.frames().free_map().unwrap().give(index as usize));
    });
    assert_eq!(kinds, Kinds::FREE_AND_HELD | Kinds::TOTAL);
}

#[test]
fn a_frame_that_is_neither() {
    assert_eq!(seen(|rig| assert!(rig.hv.frames().free_map().unwrap().take().is_some())), Kinds::TOTAL);
}

#[test]
fn an_entry_that_leads_nowhere() {
    let kinds = seen(|rig| {
        let (one, index) = rig.builder_entry(1, POOL);
        rig.hv.frames().put_use(rig.pool(1, 0), rig.hv.machine());
        rig.hv.machine().write_entry(one, index, leaf(frame(3), false));
    });
    assert_eq!(kinds, Kinds::NOT_MEMORY);
}

#[test]
fn a_mapping_of_a_foreign_frame() {
    let kinds = seen(|rig| {
        let (one, index) = rig.builder_entry(1, POOL);
        rig.hv.frames().put_use(rig.pool(1, 0), rig.hv.machine());
        rig.hv.frames().get(rig.pool(2, 0), DomainId::new(2)).unwrap();
        rig.hv.machine().write_entry(one, index, leaf(rig.pool(2, 0), false));
    });
    assert_eq!(kinds, Kinds::FOREIGN);
}

#[test]
fn a_mapping_by_grant_without_a_pin() {
    let kinds = seen(|rig| {
        let lent = hyp_core::grant::Lent {
            lender: DomainId::new(2),
            reference: 8,
            frame: rig.pool(2, 0),
            writable: false,
            host: true,
            device: false,
            by_entry: false,
        };
        rig.hv.frames().get(lent.frame, lent.lender).unwrap();
        rig.domains[1].domain.grants.maps.lock().add(lent).unwrap();
    });
    assert_eq!(kinds, Kinds::GRANTS);
}

#[test]
fn a_pin_without_a_mapping_by_grant() {
    let kinds = seen(|rig| {
        let table = &rig.domains[2].domain.grants.table;
        let shared = rig.pool(2, 1);
        rig.hv.frames().get_writable(shared, DomainId::new(2), rig.hv.machine()).unwrap();
        table.lock().add_frame(shared);
        let entry = penumbra_abi::grant_table::GrantEntry::access(1, rig.pool(2, 0).number() as u32, true);
        rig.hv.machine().write_entry(shared, 8, entry.to_word());
        let place = hyp_core::grant::table::Place {
            machine: rig.hv.machine(),
            frames: rig.hv.frames(),
            lender: DomainId::new(2),
        };
        table.lock().pin(&place, 8, ONE, true).unwrap();
    });
    assert_eq!(kinds, Kinds::GRANTS | Kinds::REFERENCES | Kinds::USES);
}

#[test]
fn an_entry_with_a_forbidden_bit() {
    let kinds = seen(|rig| {
        let (one, index) = rig.builder_entry(1, POOL);
        rig.hv.machine().write_entry(one, index, leaf(rig.pool(1, 0), true) | 1 << 60);
    });
    assert_eq!(kinds, Kinds::FORBIDDEN);
}

#[test]
fn a_superpage_off_its_place() {
    let kinds = seen(|rig| {
        let (two, index) = (rig.entry(rig.domains[1].root, 16) >> 20 & 0x3fff_ffff, 7);
        let two = frame(two);
        let below = frame(rig.entry(two, index) >> 20 & 0x3fff_ffff);
        rig.hv.frames().put(below, rig.hv.machine());
        let off = frame(below.number() | 1);
        rig.hv.machine().write_entry(two, index, leaf(off, false));
        (0..16).for_each(|step| rig.hv.frames().get(frame(off.number() + step), ONE).unwrap());
    });
    // The table's use is left over as well.
    assert_eq!(kinds, Kinds::FORBIDDEN | Kinds::USES);
}

#[test]
fn a_root_that_leads_to_itself_and_lets_its_tables_be_written() {
    let kinds = seen(|rig| {
        let root = rig.domains[1].root;
        rig.hv.machine().write_entry(root, 31, table(root));
    });
    assert_eq!(kinds, Kinds::FORBIDDEN);
}

#[test]
fn something_in_a_reserved_slot() {
    let kinds = seen(|rig| rig.hv.machine().write_entry(rig.domains[1].root, 10, table(rig.domains[1].root)));
    assert_eq!(kinds, Kinds::RESERVED);
}

#[test]
fn an_incomplete_table_below_a_complete_one() {
    let kinds = seen(|rig| rig.hv.frames().set_progress(rig.builder_entry(1, POOL).0, 16));
    assert_eq!(kinds, Kinds::INCOMPLETE);
}

#[test]
fn a_loaded_root_that_is_not_complete() {
    let kinds = seen(|rig| {
        let root = rig.domains[1].root;
        rig.hv.frames().set_progress(root, 32);
    });
    // It is pinned, too.
    assert_eq!(kinds, Kinds::ROOT | Kinds::INCOMPLETE);
}
