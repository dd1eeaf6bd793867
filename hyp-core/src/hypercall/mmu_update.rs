//! `mmu_update`: a batch of changes to page-table entries and to the machine-to-physical table (`xen.h`).

use penumbra_abi::errno::Errno;
use penumbra_abi::mmu::{self, MmuUpdate};

use super::batch::NotDone;
use super::{Arguments, Call, Failure, Outcome, values};
use crate::address::{DomainId, MachineAddress, MachineFrame, PseudoFrame};
use crate::domain::Domain;
use crate::machine::Machine;
use crate::paging::leaf::LeafTable;
use crate::paging::update::HardwareBits;
use crate::paging::{Budget, Refusal, TableSpace};

/// Updates that are read from the guest at once.
const UPDATES_AHEAD: usize = 32;
/// Updates that are done between two looks at what they have caused.
const UPDATES_IN_A_PIECE: usize = 4;

impl<'a, M: Machine> Call<'a, M> {
    /// Arguments: guest address of an array of [`MmuUpdate`]; their number; where to write how many were done, or 0; whose tables
    /// and whose frames ([`mmu::decode_foreign_domain`]). Stops at the first that is refused, with its error.
    #[inline(never)]
    pub(super) fn mmu_update(&self, arguments: &Arguments) -> Outcome {
        let [_, _, _, foreign, ..] = values(arguments);
        let (owner, target) = self.foreign_domains(foreign)?;
        if owner.has_unhooked() {
            self.hook_in(owner, arguments)?;
        }
        if self.is_single(arguments) {
            return self.single(arguments, |update| {
                self.with_tables(owner, target, |space| {
                    space.end_row_of_writes();
                    self.one_update(space, &mut None, update)
                })
            });
        }
        let mut space = self.tables(owner, target).map_err(|_| Failure::Again(values(arguments)))?;
        space.end_row_of_writes();
        let mut leaves = None;
        self.batch::<_, UPDATES_AHEAD>(arguments, |updates: &[MmuUpdate]| {
            let update = updates.first().ok_or(Errno::EFAULT)?;
            if update.pointer & mmu::MMU_UPDATE_KIND_MASK == mmu::MMU_PT_UPDATE_PRESERVE_AD {
                let done = self.rights_in_row(&space, &mut leaves, updates);
                if done != 0 {
                    return Ok(done);
                }
            }
            self.some_updates(&mut space, &mut leaves, updates)
        })
    }

    /// Does a few of the updates, one at least: what a batch does about each piece is shared among them. What is refused behind the first is
    /// asked for again, and is refused then.
    #[inline(always)]
    fn some_updates(
        &self,
        space: &mut TableSpace<'_, M>,
        leaves: &mut Option<LeafTable<M>>,
        updates: &[MmuUpdate],
    ) -> Result<usize, NotDone> {
        let mut done = 0usize;
        for update in updates.iter().take(UPDATES_IN_A_PIECE) {
            match self.one_update(space, leaves, update) {
                Ok(()) => done = done.saturating_add(1),
                Err(reason) if done == 0 => return Err(reason),
                Err(_) => break,
            }
            if self.budget.is_spent() {
                break;
            }
        }
        Ok(done)
    }

    /// Does those of the updates, from the first on, that change nothing but rights in one table, as far as the budget goes; returns how
    /// many. What is left for one by one is done or refused there.
    #[inline(never)]
    fn rights_in_row(
        &self,
        space: &TableSpace<'_, M>,
        leaves: &mut Option<LeafTable<M>>,
        updates: &[MmuUpdate],
    ) -> usize {
        let first = updates.first().and_then(|update| MachineAddress::new(update.pointer));
        let Some(frame) = first.map(MachineFrame::containing) else { return 0 };
        if !leaves.as_ref().is_some_and(|leaves| leaves.is(frame)) {
            *leaves = space.leaf_table(frame);
        }
        let Some(leaves) = leaves else { return 0 };
        let most = self.budget.operations(updates.len());
        let done = space.change_rights_in_row(leaves, updates.get(..most).unwrap_or(updates));
        self.budget.charge(Budget::OPERATION.saturating_mul(done as u32));
        done
    }

    /// Whose tables, and whose frames they may map.
    fn foreign_domains(&self, argument: u64) -> Result<(&'a Domain<M>, DomainId), Errno> {
        let (table_owner, frame_owner) = mmu::decode_foreign_domain(argument);
        let owner = self.named_domain(table_owner.unwrap_or(DomainId::SELF.number()))?;
        Ok((owner, self.named_domain(frame_owner)?.id()))
    }

    /// Nearly all updates are of a leaf, and most are of the same table as the one before: `leaves`. Always inlined, so that a batch is one
    /// loop, and refusals are made outside of it.
    #[inline(always)]
    fn one_update(
        &self,
        space: &mut TableSpace<'_, M>,
        leaves: &mut Option<LeafTable<M>>,
        update: &MmuUpdate,
    ) -> Result<(), NotDone> {
        // Charged before anything is judged: a guest can have refusals by the thousand, too.
        self.budget.charge(Budget::OPERATION);
        if update.pointer % 8 == mmu::MMU_NORMAL_PT_UPDATE
            && let Some(place) = MachineAddress::new(update.pointer)
        {
            let frame = MachineFrame::containing(place);
            if !leaves.as_ref().is_some_and(|leaves| leaves.is(frame)) {
                *leaves = space.leaf_table(frame);
            }
            if let Some(leaves) = leaves {
                let index = place.offset_in_frame() / 8;
                return Ok(space.update_leaf(leaves, index, update.value, HardwareBits::Replace)?);
            }
        }
        // Whatever happens now may be the end of the table that was found.
        *leaves = None;
        self.other_update(space, update)
    }

    #[inline(never)]
    fn other_update(&self, space: &mut TableSpace<'_, M>, update: &MmuUpdate) -> Result<(), NotDone> {
        let place = MachineAddress::new(update.pointer & !mmu::MMU_UPDATE_KIND_MASK).ok_or(Errno::EINVAL)?;
        match update.pointer & mmu::MMU_UPDATE_KIND_MASK {
            mmu::MMU_NORMAL_PT_UPDATE | mmu::MMU_PT_UPDATE_NO_TRANSLATE => {
                Ok(space.update_at(place, update.value, HardwareBits::Replace)?)
            }
            mmu::MMU_PT_UPDATE_PRESERVE_AD => {
                Ok(space.update_at(place, update.value, HardwareBits::Preserve)?)
            }
            mmu::MMU_MACHPHYS_UPDATE => Ok(name_frame(space, MachineFrame::containing(place), update.value)?),
            _ => Err(Errno::EINVAL.into()),
        }
    }
}

/// The domain says what it calls one of its frames.
#[inline(never)]
fn name_frame<M: Machine>(space: &TableSpace<'_, M>, frame: MachineFrame, name: u64) -> Result<(), Refusal> {
    space.frames.get(frame, space.target).map_err(Refusal::Table)?;
    if let Some(m2p) = space.frames.m2p() {
        m2p.set(frame, Some(PseudoFrame::new(name)));
    }
    space.frames.put(frame, space.machine);
    Ok(())
}
