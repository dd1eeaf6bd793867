//! `update_va_mapping` and its other-domain form: change the entry that maps an address (`xen.h`).

use penumbra_abi::errno::Errno;
use penumbra_abi::mmu;

use super::{Arguments, Call, Failure, Outcome, failure, values};
use crate::address::{DomainId, GuestVirtual, MachineFrame};
use crate::frame::held::HeldFrame;
use crate::machine::{FlushScope, Machine, PageTableFormat};
use crate::paging::leaf::{self, LeafTable};
use crate::paging::update::HardwareBits;
use crate::paging::{Budget, Refusal, Stop, TableSpace};

/// Mappings that one multicall changes in a row: the lock, and the table of the one before, serve the next.
pub(super) struct Row<'a, M: Machine> {
    space: TableSpace<'a, M>,
    leaves: LeafTable<M>,
    /// The part of the address space that the table translates.
    region: u64,
    /// The frame that the last result went to, held as *writable*, so that the next one has neither to take nor to give back anything.
    /// Under the lock, since whoever changes the types of the domain's frames must not find a use that the domain knows nothing of.
    results: Option<(HeldFrame<'a, M>, M::Table)>,
}

impl<'a, M: Machine> Row<'a, M> {
    /// Writes a word to the guest: by the tables as they are by now, whatever is held. `false`: the general way is to write it, or to refuse.
    #[inline(always)]
    pub(super) fn write(&mut self, call: &Call<'a, M>, to: u64, word: u64) -> bool {
        let Some((frame, index)) = call.hypervisor.machine.word_place(GuestVirtual::new(to)) else {
            return false;
        };
        let words = match &self.results {
            Some((held, words)) if held.frame() == frame => Some(*words),
            _ => self.hold(call, frame),
        };
        let Some(words) = words else { return false };
        call.hypervisor.machine.write_data_in(words, index, word);
        true
    }

    /// Holds `frame` instead of what was held before.
    #[inline(never)]
    fn hold(&mut self, call: &Call<'a, M>, frame: MachineFrame) -> Option<M::Table> {
        self.end_results();
        let (machine, frames) = (&call.hypervisor.machine, &call.hypervisor.frames);
        let held = frames.hold_writable(frame, call.domain.id(), machine).ok()?;
        let words = machine.table(frame)?;
        self.results = Some((held, words));
        Some(words)
    }

    /// A frame that the guest has unmapped and given back meanwhile is freed here instead of with its last mapping, and costs as much.
    fn end_results(&mut self) {
        if self.results.take().is_some_and(|(held, _)| held.release()) {
            self.space.budget.charge(Budget::FRAME);
        }
    }
}

impl<M: Machine> Drop for Row<'_, M> {
    fn drop(&mut self) {
        self.end_results();
    }
}

impl<'a, M: Machine> Call<'a, M> {
    /// As [`Self::update_va_mapping`], perhaps one of several in a row. Whoever does anything else has to end the row first: it holds
    /// the domain's table lock.
    #[inline(always)]
    pub(super) fn mapping_in_row(&self, row: &mut Option<Row<'a, M>>, arguments: &Arguments) -> Outcome {
        let [address, entry, flags, ..] = values(arguments);
        let address = GuestVirtual::new(address);
        let scope = self.flush_scope(address, flags)?;
        if row.as_ref().is_none_or(|row| row.region != leaf::region::<M>(address)) {
            self.begin_row(row, address).map_err(|_| Failure::Again(values(arguments)))?;
        }
        let Some(row) = row else { return self.update_va_mapping(arguments) };
        let index = M::Format::index(address, 1);
        let updated = row.space.update_leaf(&row.leaves, index, entry, HardwareBits::Replace);
        updated.map_err(Refusal::errno)?;
        self.changed(scope)
    }

    /// Ends the row, and finds the table of the next one's first mapping; `None` where the general way is needed.
    ///
    /// # Errors
    /// As [`Self::tables`].
    #[inline(never)]
    fn begin_row(&self, row: &mut Option<Row<'a, M>>, address: GuestVirtual) -> Result<(), Stop> {
        *row = None;
        let mut space = self.tables(self.domain, self.domain.id())?;
        let leaves = self.root_at(address).and_then(|root| space.leaf_table_at(root, address));
        let region = leaf::region::<M>(address);
        *row = leaves.map(|leaves| Row { space, leaves, region, results: None });
        Ok(())
    }

    /// Arguments: the address; the new entry; flags that say what to flush.
    #[inline(never)]
    pub(super) fn update_va_mapping(&self, arguments: &Arguments) -> Outcome {
        self.change_mapping(arguments, self.domain.id())
    }

    /// As [`Self::update_va_mapping`]; fourth argument: the domain whose frame is mapped, in the caller's own tables.
    #[inline(never)]
    pub(super) fn update_va_mapping_other_domain(&self, arguments: &Arguments) -> Outcome {
        let [_, _, _, domain, ..] = values(arguments);
        self.change_mapping(arguments, self.named_domain(domain as u16)?.id())
    }

    #[inline(always)]
    fn change_mapping(&self, arguments: &Arguments, target: DomainId) -> Outcome {
        let [address, entry, flags, ..] = values(arguments);
        let address = GuestVirtual::new(address);
        let scope = self.flush_scope(address, flags)?;
        self.map(address, entry, target, arguments)?;
        self.changed(scope)
    }

    /// What the guest hears of a refusal is worked out where it is made: success needs no telling from it afterwards.
    #[inline(always)]
    fn map(
        &self,
        address: GuestVirtual,
        entry: u64,
        target: DomainId,
        arguments: &Arguments,
    ) -> Result<(), Failure> {
        self.budget.charge(Budget::OPERATION);
        let mut space = self.locked_tables(self.domain);
        self.in_tree(self.domain, target, &mut space).map_err(|stop| failure(stop, arguments))?;
        let root = self.root_at(address);
        if let Some(root) = root
            && let Some(leaves) = space.leaf_table_at(root, address)
        {
            let index = M::Format::index(address, 1);
            let updated = space.update_leaf(&leaves, index, entry, HardwareBits::Replace);
            return updated.map_err(|refusal| refusal.errno().into());
        }
        map_otherwise(&mut space, root, address, entry).map_err(|stop| failure(stop, arguments))
    }

    /// Flushes what the guest asked for, once the mapping is changed. The hypercall's outcome is then that there is nothing more to do.
    #[inline(always)]
    fn changed(&self, scope: Option<FlushScope>) -> Outcome {
        if let Some(scope) = scope {
            self.hypervisor.machine.flush(scope);
        }
        Ok(0)
    }

    /// What the flags ask to be flushed. A set of vCPUs is treated as all of them, unless it is empty. As in Xen, both kinds of flush at once
    /// are neither.
    ///
    /// # Errors
    /// EFAULT: the set can't be read.
    #[inline(always)]
    fn flush_scope(&self, address: GuestVirtual, flags: u64) -> Result<Option<FlushScope>, Errno> {
        if flags & mmu::UVMF_FLUSHTYPE_MASK == 0 { Ok(None) } else { self.named_scope(address, flags) }
    }

    #[inline(never)]
    fn named_scope(&self, address: GuestVirtual, flags: u64) -> Result<Option<FlushScope>, Errno> {
        let local = match flags & mmu::UVMF_FLUSHTYPE_MASK {
            mmu::UVMF_TLB_FLUSH => FlushScope::Local,
            mmu::UVMF_INVLPG => FlushScope::Page(address),
            _ => return Ok(None),
        };
        match flags & !mmu::UVMF_FLUSHTYPE_MASK {
            mmu::UVMF_LOCAL => Ok(Some(local)),
            mmu::UVMF_ALL => Ok(Some(FlushScope::Everything)),
            place => Ok(self.names_vcpus(place)?.then_some(FlushScope::Everything)),
        }
    }
}

/// As [`Call::map`], where no level-1 table is found to translate the address.
#[inline(never)]
fn map_otherwise<M: Machine>(
    space: &mut TableSpace<'_, M>,
    root: Option<MachineFrame>,
    address: GuestVirtual,
    entry: u64,
) -> Result<(), Stop> {
    let place = root.and_then(|root| space.find(root, address)).ok_or(Refusal::NotMapped)?;
    space.update(place.table, place.level, place.index, entry, HardwareBits::Replace)
}
