//! What nearly all hypercalls about tables are, done on the shortest way: one leaf changed in the guest's own tables, or one translation
//! or all dropped on this CPU, or another root for the kernel.
//!
//! Nothing is left out that [`super::mmu_update`] and [`super::mmuext`] check. Where anything else is to be done (another domain, a list,
//! tables that are unhooked, an upper table) or to be said (a refusal), nothing is done here, and the hypercall is carried out like any
//! other: it is read anew then.

use penumbra_abi::hypercall as number;
use penumbra_abi::mmu::{self, MmuUpdate, MmuextOp};
use zerocopy::{FromBytes, IntoBytes};

use super::{Arguments, Call, values};
use crate::address::{DomainId, GuestVirtual, MachineAddress, MachineFrame};
use crate::domain::Domain;
use crate::domain::vcpu::Vcpu;
use crate::hypervisor::Hypervisor;
use crate::machine::{Context, FlushScope, Machine, PageTableFormat};
use crate::paging::Budget;
use crate::paging::single::map_where_nothing_is;
use crate::paging::update::HardwareBits;

impl<M: Machine> Hypervisor<M> {
    /// Does the hypercall, if it is one of those that are done at once, and makes 0 its result. Otherwise it is yet to be carried out
    /// (`false`), nothing of the budget was spent, and what was tried in vain is no more than a few entries' work.
    #[inline(always)]
    pub fn at_once(
        &self,
        domain: &Domain<M>,
        vcpu: &Vcpu<M>,
        number: u64,
        arguments: &Arguments,
        budget: &Budget,
    ) -> bool {
        let done = match number {
            number::MMU_UPDATE => self.update_at_once(domain, arguments, budget),
            number::MMUEXT_OP => self.extended_at_once(domain, vcpu, arguments, budget),
            _ => false,
        };
        if done {
            vcpu.context().set_result(0);
        }
        done
    }

    /// As [`Self::at_once`], as the first that is done about a hypercall. What isn't done has spent nothing of the budget that it had here, so that
    /// the hypercall is carried out with a whole one.
    #[inline(always)]
    pub fn is_done_at_once(
        &self,
        domain: Option<&Domain<M>>,
        vcpu: &Vcpu<M>,
        number: u64,
        arguments: &Arguments,
    ) -> bool {
        let budget = Budget::new(Budget::HYPERCALL);
        // No closure: that would be a function of its own.
        match domain {
            Some(domain) => self.at_once(domain, vcpu, number, arguments, &budget),
            None => false,
        }
    }

    /// As `mmu_update`, of one leaf of the caller's: whether it is done.
    #[inline(always)]
    fn update_at_once(&self, domain: &Domain<M>, arguments: &Arguments, budget: &Budget) -> bool {
        let Some(update) = self.single_of_own::<MmuUpdate>(arguments, budget) else { return false };
        let place = MachineAddress::new(update.pointer).filter(|place| place.bytes().is_multiple_of(8));
        let Some(place) = place else { return false };
        if let Some(admitted) = M::Format::admit_page(update.value)
            && map_where_nothing_is(&self.machine, &self.frames, domain, place, admitted)
        {
            budget.charge(Budget::OPERATION);
            return true;
        }
        self.update_leaf_at_once(domain, place, update.value, budget)
    }

    #[inline(never)]
    fn update_leaf_at_once(
        &self,
        domain: &Domain<M>,
        place: MachineAddress,
        raw: u64,
        budget: &Budget,
    ) -> bool {
        let mut space = domain.table_space(&self.machine, &self.frames, budget);
        // Another vCPU may have unhooked one until now.
        if domain.has_unhooked() {
            return false;
        }
        space.end_row_of_writes();
        let Some(leaves) = space.leaf_table(MachineFrame::containing(place)) else { return false };
        let index = place.offset_in_frame() / 8;
        let done = space.update_leaf(&leaves, index, raw, HardwareBits::Replace).is_ok();
        if done {
            budget.charge(Budget::OPERATION);
        }
        done
    }

    /// As `mmuext_op`, of a flush on the CPU that the caller runs on, or another root for its kernel: whether it is done.
    #[inline(always)]
    fn extended_at_once(
        &self,
        domain: &Domain<M>,
        vcpu: &Vcpu<M>,
        arguments: &Arguments,
        budget: &Budget,
    ) -> bool {
        if domain.has_unhooked() {
            return false;
        }
        let Some(operation) = self.single_of_own::<MmuextOp>(arguments, budget) else { return false };
        match operation.command {
            mmu::MMUEXT_INVLPG_LOCAL => {
                self.machine.flush(FlushScope::Page(GuestVirtual::new(operation.argument1)));
            }
            mmu::MMUEXT_TLB_FLUSH_LOCAL => self.machine.flush(FlushScope::Local),
            mmu::MMUEXT_NEW_BASEPTR => {
                let call = Call { hypervisor: self, vcpu, domain, budget };
                if !call.kernel_root_at_once(operation.argument1) {
                    return false;
                }
            }
            _ => return false,
        }
        budget.charge(Budget::OPERATION);
        true
    }

    /// The one operation of a list of one, which isn't counted for the guest, on the guest's own tables.
    #[inline(always)]
    fn single_of_own<T: FromBytes + IntoBytes>(&self, arguments: &Arguments, budget: &Budget) -> Option<T> {
        let [place, count, done_place, foreign, ..] = values(arguments);
        let single = count == 1 && done_place == 0 && foreign == u64::from(DomainId::SELF.number());
        if !single || budget.is_spent() {
            return None;
        }
        let mut operation = T::new_zeroed();
        let read = self.machine.read_guest(GuestVirtual::new(place), operation.as_mut_bytes());
        read.is_ok().then_some(operation)
    }
}
