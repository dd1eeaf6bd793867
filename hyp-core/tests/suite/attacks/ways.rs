//! The ways in which a guest can have an entry of a table changed. An attack is tried by each of them: a check that one of them
//! lacks is what most of these flaws were.

use hyp_core::address::{GuestVirtual, MachineFrame};
use hyp_core::paging::table_write::TableWrite;
use penumbra_abi::hypercall as number;
use penumbra_abi::mmu::{MMU_PT_UPDATE_NO_TRANSLATE, MMU_PT_UPDATE_PRESERVE_AD, MmuUpdate};
use penumbra_abi::multicall::MulticallEntry;
use zerocopy::IntoBytes;

use crate::common::{Rig, SELF, place};

/// How an entry is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// `mmu_update`.
    Update,
    /// The same, keeping the accessed and dirty bits.
    Preserving,
    /// The same, "untranslated".
    Untranslated,
    /// `mmu_update` within a multicall.
    Multicall,
    /// A store to the table, where it is mapped read-only, which the hypervisor carries out.
    Store(u64),
}

/// Those that need nothing prepared.
pub const WAYS: [Way; 4] = [Way::Update, Way::Preserving, Way::Untranslated, Way::Multicall];

/// Tries to put `raw` into an entry; whether that was done.
pub fn put(rig: &Rig, who: usize, way: Way, (table, index): (MachineFrame, usize), raw: u64) -> bool {
    let kind = match way {
        Way::Update | Way::Multicall => 0,
        Way::Preserving => MMU_PT_UPDATE_PRESERVE_AD,
        Way::Untranslated => MMU_PT_UPDATE_NO_TRANSLATE,
        Way::Store(mapping) => {
            let address = GuestVirtual::new(mapping + 8 * index as u64);
            let outcome = rig.hv.write_table(rig.domains[who].vcpu(), address, |_| Some(raw));
            return outcome == TableWrite::Done;
        }
    };
    let pointer = place(table, index) | kind;
    if way != Way::Multicall {
        return rig.update(who, &[(pointer, raw)]) == Ok(0);
    }
    let update = rig.give(who, 512, MmuUpdate { pointer, value: raw }.as_bytes());
    let entry =
        MulticallEntry { operation: number::MMU_UPDATE, result: 99, arguments: [update, 1, 0, SELF, 0, 0] };
    let at = rig.give(who, 640, entry.as_bytes());
    assert_eq!(rig.call(who, number::MULTICALL, [at, 1, 0, 0, 0, 0]), Ok(0));
    rig.word(who, 648) == 0
}

/// Tries it by every way that needs nothing prepared, and by `more`: none may succeed, nor leave a trace.
#[track_caller]
pub fn all_refuse(rig: &Rig, who: usize, more: &[Way], at: (MachineFrame, usize), raw: u64) {
    let before = rig.entry(at.0, at.1);
    for way in WAYS.iter().chain(more) {
        assert!(!put(rig, who, *way, at, raw), "{way:?}: {raw:#x} in place of {before:#x}");
        assert_eq!(rig.entry(at.0, at.1), before, "{way:?}: refused, but not without a trace");
        rig.check();
    }
}
