//! A guest's direct write to a page table, which faults because the table is mapped read-only: carried out on its behalf, or made
//! possible.
//!
//! One write is *emulated*: the entry that it makes is judged like any other update's. A guest that goes on writing to the same
//! level-1 table gets it *unhooked* ([`super::writable`]), so that it can write at full speed. The rule is that of a skier who
//! doesn't know for how many days he will ski: rent until the rent paid is the price of the skis. Emulated writes in a row to one
//! table are counted; at [`WRITES_BEFORE_UNHOOKING`] they have cost as much as taking the table out and hooking it in again. So the
//! guest never pays more than twice what the better choice would have cost, whatever it does. Measured: see `docs/measurements.md`.
//!
//! An `mmu_update` ends the row: it would have hooked the table in, with next to nothing written at full speed. (Linux's write fault with a
//! copy is a write, a flush and an update by turns, each time.)

use super::update::HardwareBits;
use super::{Budget, Refusal, Stop, TableSpace};
use crate::address::{GuestVirtual, MachineFrame};
use crate::domain::vcpu::Vcpu;
use crate::hypervisor::Hypervisor;
use crate::machine::{Entry, Machine, PageTableFormat};

/// Emulated writes in a row to one table, after which the next one unhooks it.
pub const WRITES_BEFORE_UNHOOKING: u32 = 26;

/// Attempts at an entry that changes while it is being written.
const ATTEMPTS: u32 = 16;

/// What became of a guest's write to a page table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableWrite {
    /// It is done: the guest goes on after the instruction.
    Done,
    /// The page is no table of the domain: the fault is the guest's own.
    NotATable,
    /// The entry may not stand there: the fault is the guest's own.
    Refused,
    /// The guest has to execute the instruction again: the write is possible now, or the hypervisor needs another turn.
    Again,
}

/// Which table was written last, and how often in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Run {
    /// The table's frame number plus one; 0 for none.
    table: u64,
    writes: u32,
}

impl Run {
    /// No writes yet.
    pub const fn new() -> Self {
        Self { table: 0, writes: 0 }
    }

    /// The next write begins another row.
    #[inline(always)]
    pub(super) fn end(&mut self) {
        self.table = 0;
    }

    /// Counts one more write; returns how many came before it in the same row.
    fn count(&mut self, table: MachineFrame) -> u32 {
        let name = table.number().saturating_add(1);
        self.writes = if self.table == name { self.writes.saturating_add(1) } else { 0 };
        self.table = name;
        self.writes
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Carries out a write of the guest's kernel at `address`, which faulted because the page is mapped read-only. `change`
    /// gets the 8-byte entry in which the write falls, and gives the entry as it shall be; `None` if nothing is to be written. It may
    /// be called again, with another entry, if hardware changes it meanwhile.
    pub fn write_table(
        &self,
        vcpu: &Vcpu<M>,
        address: GuestVirtual,
        change: impl FnMut(u64) -> Option<u64>,
    ) -> TableWrite {
        self.write_table_within(vcpu, address, change, &Budget::new(Budget::HYPERCALL))
    }

    /// As [`Self::write_table`], with another budget: tests want preemption points in every place.
    #[inline(always)]
    pub fn write_table_within(
        &self,
        vcpu: &Vcpu<M>,
        address: GuestVirtual,
        change: impl FnMut(u64) -> Option<u64>,
        budget: &Budget,
    ) -> TableWrite {
        let root = M::root_of(address, vcpu.kernel_root(), vcpu.user_root());
        let (Some(domain), Some(root)) = (self.domain(vcpu.domain_id()), root) else {
            return TableWrite::NotATable;
        };
        let mut space = domain.table_space(&self.machine, &self.frames, budget);
        space.write_mapped(root, address, change)
    }

    /// A fault at `address`: if it came because the table that translates it is unhooked, the table is hooked in again, and the guest
    /// has to execute the instruction again: `true`.
    pub fn hook_for_fault(&self, vcpu: &Vcpu<M>, address: GuestVirtual) -> bool {
        let Some(domain) = self.domain(vcpu.domain_id()).filter(|domain| domain.has_unhooked()) else {
            return false;
        };
        let budget = Budget::new(Budget::HYPERCALL);
        let mut space = domain.table_space(&self.machine, &self.frames, &budget);
        let roots = [vcpu.kernel_root(), vcpu.user_root()];
        // Refused, the table is out for good, and the next fault there is the guest's.
        roots.into_iter().flatten().any(|root| space.hook_at(root, address).is_some())
    }

    /// Hooks in some of what the vCPU's domain has unhooked, one table at least: for a backend that can't use the guest's addresses
    /// by itself before nothing is out any more, and asks again after its next preemption point.
    pub fn hook_some(&self, vcpu: &Vcpu<M>) {
        self.hook_some_within(vcpu, &Budget::new(Budget::HYPERCALL));
    }

    /// As [`Self::hook_some`], with another budget: tests want preemption points in every place.
    pub fn hook_some_within(&self, vcpu: &Vcpu<M>, budget: &Budget) {
        if let Some(domain) = self.domain(vcpu.domain_id()).filter(|domain| domain.has_unhooked()) {
            // What is preempted is asked for again. A table that can't be hooked in stays out for good, and its addresses fault.
            let _ = domain.table_space(&self.machine, &self.frames, budget).hook_all();
        }
    }
}

impl<M: Machine> TableSpace<'_, M> {
    /// What the guest writes directly from now on is another row of writes.
    #[inline(always)]
    pub fn end_row_of_writes(&mut self) {
        self.state.run.end();
    }

    fn write_mapped(
        &mut self,
        root: MachineFrame,
        address: GuestVirtual,
        change: impl FnMut(u64) -> Option<u64>,
    ) -> TableWrite {
        if self.settle(None).is_err() {
            return TableWrite::Again;
        }
        let Some(table) = self.mapped_frame(root, address) else { return TableWrite::NotATable };
        let mut leaves = self.leaf_table(table);
        let level = if leaves.is_some() { Some(1) } else { self.table_level(table) };
        let Some(level) = level else {
            if !self.is_unhooked(table) {
                return TableWrite::NotATable;
            }
            // Through another mapping than the one that is writable now.
            let _ = self.hook_those(|unhooked| unhooked.table == table);
            return TableWrite::Again;
        };
        if self.state.run.count(table) >= WRITES_BEFORE_UNHOOKING {
            match self.try_unhook(root, address, table) {
                Ok(()) => {
                    // When it is back, the guest pays its rent anew: otherwise a write and a use of the table by turns would unhook it
                    // each time.
                    self.state.run = Run::new();
                    return TableWrite::Again;
                }
                // A table has been hooked in for it: another one in this turn would be one too many.
                Err(Stop::Preempted) => return TableWrite::Again,
                Err(Stop::Refused(_)) => {}
            }
            // One that could be taken out, but not let be written, is a table no more.
            leaves = self.leaf_table(table);
        }
        // What is unhooked relies on these entries.
        if self.hook_those(|unhooked| level > 1 || unhooked.mapping.table == table) == Err(Stop::Preempted) {
            return TableWrite::Again;
        }
        let index = (address.bytes() % crate::address::PAGE_BYTES / 8) as usize;
        match leaves {
            Some(leaves) => {
                let read = |machine: &M| machine.read_in(leaves.words, index);
                self.emulate(read, change, |space, new, bits| {
                    Ok(space.update_leaf(&leaves, index, new, bits)?)
                })
            }
            None => {
                let read = |machine: &M| machine.read_entry(table, index);
                self.emulate(read, change, |space, new, bits| space.update(table, level, index, new, bits))
            }
        }
    }

    fn try_unhook(
        &mut self,
        root: MachineFrame,
        address: GuestVirtual,
        table: MachineFrame,
    ) -> Result<(), Stop> {
        let mapping = self.find(root, address).ok_or(Refusal::NotMapped)?;
        self.unhook_mapped(table, mapping, address)
    }

    /// `read` reads the entry.
    #[inline(always)]
    fn emulate(
        &mut self,
        read: impl Fn(&M) -> u64,
        mut change: impl FnMut(u64) -> Option<u64>,
        mut update: impl FnMut(&mut Self, u64, HardwareBits) -> Result<(), Stop>,
    ) -> TableWrite {
        for _ in 0..ATTEMPTS {
            let old = read(self.machine);
            let Some(new) = change(old) else { return TableWrite::Done };
            match update(self, new, HardwareBits::Exactly(old)) {
                Ok(()) => return TableWrite::Done,
                Err(Stop::Refused(Refusal::Changed)) => {}
                Err(Stop::Refused(_)) => return TableWrite::Refused,
                Err(Stop::Preempted) => return TableWrite::Again,
            }
        }
        TableWrite::Again
    }

    /// The frame that `address` maps under `root`.
    fn mapped_frame(&mut self, root: MachineFrame, address: GuestVirtual) -> Option<MachineFrame> {
        let Some(table) = self.leaf_table_at(root, address) else {
            return self.mapped_otherwise(root, address);
        };
        match self.leaf(&table, M::Format::index(address, 1)) {
            Entry::Leaf(leaf) => Some(leaf.frame),
            _ => None,
        }
    }

    /// The same, by a superpage, or through a linear entry, where a table of another level stands in for one of level 1.
    #[inline(never)]
    fn mapped_otherwise(&self, root: MachineFrame, address: GuestVirtual) -> Option<MachineFrame> {
        // A superpage's leaf stands where another entry would lead on to a table of pages.
        let place = self.find(root, address).or_else(|| self.find_at(root, address, 2))?;
        let raw = self.machine.read_entry(place.table, place.index);
        let Entry::Leaf(leaf) = M::Format::decode(place.level, raw) else { return None };
        let page = address.bytes() >> crate::address::PAGE_SHIFT;
        leaf.frame.checked_add(page & M::Format::span(place.level).wrapping_sub(1))
    }
}
