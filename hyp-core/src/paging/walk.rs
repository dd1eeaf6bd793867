//! From a guest-virtual address to the entry that maps it, by reading the tables.

use super::TableSpace;
use crate::address::{GuestVirtual, MachineFrame};
use crate::machine::{Entry, Level, Machine, PageTableFormat};

/// Where an address is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The table that holds the entry.
    pub table: MachineFrame,
    /// The table's level.
    pub level: Level,
    /// The entry's index in it.
    pub index: usize,
}

/// The entry of a level-1 table that translates `address` under `root`, present or not; `None` if a table on the way is missing,
/// or the address is in the hypervisor's part.
pub fn level_one_place<M: Machine>(machine: &M, root: MachineFrame, address: GuestVirtual) -> Option<Place> {
    place_at_level(machine, root, address, 1)
}

/// As [`level_one_place`], of a table of `wanted` level.
pub fn place_at_level<M: Machine>(
    machine: &M,
    root: MachineFrame,
    address: GuestVirtual,
    wanted: Level,
) -> Option<Place> {
    let mut table = root;
    let mut level = M::Format::LEVELS;
    loop {
        let index = M::Format::index(address, level);
        if level == M::Format::LEVELS && M::Format::reserved_root_slots().contains(&index) {
            return None;
        }
        if level <= wanted {
            return Some(Place { table, level, index });
        }
        match M::Format::decode(level, machine.read_entry(table, index)) {
            Entry::Table(next) => table = next,
            Entry::Absent | Entry::Leaf(_) => return None,
        }
        level = level.checked_sub(1)?;
    }
}

impl<M: Machine> TableSpace<'_, M> {
    /// As [`level_one_place`], in tables that the lock keeps from changing.
    pub fn find(&self, root: MachineFrame, address: GuestVirtual) -> Option<Place> {
        level_one_place(self.machine, root, address)
    }

    /// As [`Self::find`], of a table of `level`.
    pub fn find_at(&self, root: MachineFrame, address: GuestVirtual, level: Level) -> Option<Place> {
        place_at_level(self.machine, root, address, level)
    }
}
