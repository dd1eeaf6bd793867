//! A page mapped where nothing was: what a guest does at nearly each of its page faults.
//!
//! The checks are those of [`super::leaf`], in the same order, under the same lock. Left out is what is for other cases: the old entry holds
//! nothing, so nothing is given back. Whatever isn't so, or isn't allowed, is left to the general way.

use crate::address::{MachineAddress, MachineFrame};
use crate::domain::Domain;
use crate::frame::{FrameRecord, FrameTable};
use crate::machine::{Entry, Leaf, Machine, PageTableFormat};

/// Makes the entry at `place`, which is aligned, of a level-1 table of the domain's map one of its pages, if nothing stands there. `raw` was
/// admitted as `leaf`. Otherwise nothing has changed (`false`).
#[inline(always)]
pub fn map_where_nothing_is<M: Machine>(
    machine: &M,
    frames: &FrameTable,
    domain: &Domain<M>,
    place: MachineAddress,
    (raw, leaf): (u64, Leaf),
) -> bool {
    let Some(records) = frames.records() else { return false };
    let (owner, table) = (domain.id(), MachineFrame::containing(place));
    let mut state = domain.lock_tables();
    state.run.end();
    // Another vCPU may have unhooked one until now.
    if state.unfinished.is_some() || domain.has_unhooked() {
        return false;
    }
    // The owner comes last: on whatever CPU a frame changes hands between the two looks, what is written to is the domain's own. The other
    // way round, it could be another's table by the second.
    let is_own_table = |record: &&FrameRecord| record.is_complete_leaf_table() && record.is_owned_by(owner);
    let is_table = records.of(table).as_ref().is_some_and(is_own_table);
    let words = if is_table { machine.table(table) } else { None };
    let (Some(words), Some(record)) = (words, records.of(leaf.frame)) else { return false };
    let index = place.offset_in_frame() / 8;
    if index >= M::Format::entries(1) || M::Format::decode(1, machine.read_in(words, index)) != Entry::Absent
    {
        return false;
    }
    if !record.get_once(owner) {
        return false;
    }
    if leaf.writable && !record.take_writable() {
        frames.put(leaf.frame, machine);
        return false;
    }
    machine.write_in(words, index, raw);
    true
}
