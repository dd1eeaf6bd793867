//! Judging every entry of every table in force anew.

use super::{Finding, Holders, Report, Table, each_table};
use crate::address::{DomainId, MachineFrame};
use crate::frame::{FrameTable, FrameType};
use crate::machine::{Entry, Leaf, Machine, PageTableFormat};

/// Looks at all of them.
pub(super) fn judge<M: Machine>(
    machine: &M,
    frames: &FrameTable,
    holders: &dyn Holders,
    report: &mut Report,
) {
    let mut judge = Judge { machine, frames, holders, report };
    each_table(frames, &mut |table| judge.table(table));
}

struct Judge<'a, M: Machine> {
    machine: &'a M,
    frames: &'a FrameTable,
    holders: &'a dyn Holders,
    report: &'a mut Report,
}

impl<M: Machine> Judge<'_, M> {
    fn table(&mut self, table: Table) {
        self.report.tables = self.report.tables.saturating_add(1);
        if table.usage.pinned && !table.usage.complete {
            self.report.add(Finding::Incomplete(table.frame));
        }
        for index in 0..table.in_force(M::Format::entries(table.level)) {
            let raw = self.machine.read_entry(table.frame, index);
            let is_root = table.level == M::Format::LEVELS;
            if is_root && M::Format::reserved_root_slots().contains(&index) {
                self.reserved(table, index, raw);
            } else {
                self.entry(table, index, raw);
            }
        }
    }

    /// A slot of the hypervisor's. Until the root is complete nothing stands there that matters.
    fn reserved(&mut self, table: Table, slot: usize, raw: u64) {
        let differs = (raw ^ self.machine.reserved_entry(slot)) & !M::Format::hardware_bits(table.level);
        if table.usage.complete && differs != 0 {
            self.report.add(Finding::Reserved { root: table.frame, slot });
        }
    }

    fn entry(&mut self, table: Table, index: usize, raw: u64) {
        let place = (table.frame, index);
        // What the walker passes over can hold anything, the entry above an unhooked table for one.
        if M::Format::decode(table.level, raw) == Entry::Absent {
            return;
        }
        match M::Format::admit(table.level, raw) {
            // Hardware may have set its own bits since.
            Ok((admitted, entry)) if (admitted ^ raw) & !M::Format::hardware_bits(table.level) == 0 => {
                match entry {
                    Entry::Absent => return,
                    Entry::Table(below) if below == table.frame => self.linear(table, index, raw),
                    Entry::Table(below) => self.leads_to_table(table, index, below),
                    Entry::Leaf(leaf) => self.maps(table.owner, place, leaf),
                }
            }
            _ => self.report.add(Finding::Forbidden { table: table.frame, index }),
        }
        self.report.entries = self.report.entries.saturating_add(1);
    }

    /// A table leads to itself: only a root may, and only if nobody can write through it.
    fn linear(&mut self, table: Table, index: usize, raw: u64) {
        if table.level != M::Format::LEVELS || !M::Format::is_read_only_table(raw) {
            self.report.add(Finding::Forbidden { table: table.frame, index });
        }
    }

    /// Every frame that a leaf maps is one that the domain may map.
    fn maps(&mut self, owner: DomainId, place: (MachineFrame, usize), leaf: Leaf) {
        let span = M::Format::span(leaf.level);
        if leaf.level > 2 || !leaf.frame.number().is_multiple_of(span) {
            let (table, index) = place;
            return self.report.add(Finding::Forbidden { table, index });
        }
        for frame in (0..span).filter_map(|index| leaf.frame.checked_add(index)) {
            self.belongs(place, frame, |holders, of| {
                let borrowed = || leaf.level == 1 && holders.has_borrowed(owner, frame, leaf.writable);
                holders.may_map(owner, of) || borrowed()
            });
        }
    }

    fn leads_to_table(&mut self, table: Table, index: usize, below: MachineFrame) {
        let owner = table.owner;
        self.belongs((table.frame, index), below, |_, of| of == owner);
        // Of an incomplete table, the last entry in force may lead to one that is incomplete itself.
        let last = !table.usage.complete && index.saturating_add(1) == table.usage.progress();
        let usage = self.frames.usage(below);
        let is_table = usage.is_some_and(|usage| {
            usage.kind == FrameType::Table(table.level.saturating_sub(1)) && (usage.complete || last)
        });
        if !is_table {
            self.report.add(Finding::Incomplete(below));
        }
    }

    /// The frame that an entry leads to is somebody's, of whom `allowed` is true.
    fn belongs(
        &mut self,
        (table, index): (MachineFrame, usize),
        frame: MachineFrame,
        allowed: impl FnOnce(&dyn Holders, DomainId) -> bool,
    ) {
        match self.frames.hold(frame).and_then(|hold| hold.owner) {
            None => self.report.add(Finding::NotMemory { table, index }),
            Some(owner) if !allowed(self.holders, owner) => {
                self.report.add(Finding::Foreign { table, index })
            }
            Some(_) => {}
        }
    }
}
