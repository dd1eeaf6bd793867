//! The auditor itself: one thing is broken on purpose, and exactly those checks that should see it do.
//!
//! Together they switch every kind of finding on at least once where no other hides it.

use crate::common::{POOL, Rig, frame, leaf, table};
use hyp_core::address::DomainId;
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
        rig.hv.frames().put_writable(own, rig.hv.machine());
        rig.hv.frames().put_writable(old, rig.hv.machine());
        rig.hv.frames().lock_table(one, 1, ONE, rig.hv.machine()).unwrap();
        rig.hv.machine().write_entry(one, index, leaf(one, true));
    });
    assert_eq!(kinds, Kinds::TYPE);
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
        rig.hv.frames().put_writable(rig.pool(1, 0), rig.hv.machine());
        rig.hv.machine().write_entry(one, index, leaf(frame(3), false));
    });
    assert_eq!(kinds, Kinds::NOT_MEMORY);
}

#[test]
fn a_mapping_of_a_foreign_frame() {
    let kinds = seen(|rig| {
        let (one, index) = rig.builder_entry(1, POOL);
        rig.hv.frames().put_writable(rig.pool(1, 0), rig.hv.machine());
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
