//! `update_va_mapping` and its other-domain form: change the entry that maps an address (`xen.h`).

use penumbra_abi::errno::Errno;
use penumbra_abi::mmu;

use super::{Arguments, Call, Outcome, finish};
use crate::address::{DomainId, GuestVirtual};
use crate::machine::{FlushScope, Machine};
use crate::paging::update::HardwareBits;
use crate::paging::{Budget, Refusal, Stop};

impl<M: Machine> Call<'_, M> {
    /// Arguments: the address; the new entry; flags that say what to flush.
    #[inline(never)]
    pub(super) fn update_va_mapping(&self, arguments: Arguments) -> Outcome {
        self.change_mapping(arguments, self.domain.id())
    }

    /// As [`Self::update_va_mapping`]; fourth argument: the domain whose frame is mapped, in the caller's own tables.
    #[inline(never)]
    pub(super) fn update_va_mapping_other_domain(&self, arguments: Arguments) -> Outcome {
        let [_, _, _, domain, ..] = arguments;
        self.change_mapping(arguments, self.named_domain(domain as u16)?.id())
    }

    fn change_mapping(&self, arguments: Arguments, target: DomainId) -> Outcome {
        let [address, entry, flags, ..] = arguments;
        let address = GuestVirtual::new(address);
        let scope = self.flush_scope(address, flags)?;
        finish(self.map(address, entry, target), arguments)?;
        if let Some(scope) = scope {
            self.hypervisor.machine.flush(scope);
        }
        Ok(0)
    }

    fn map(&self, address: GuestVirtual, entry: u64, target: DomainId) -> Result<(), Stop> {
        self.budget.charge(Budget::OPERATION);
        let mut space = self.tables(self.domain, target);
        let root = M::root_of(address, self.vcpu.kernel_root(), self.vcpu.user_root());
        let root = root.ok_or(Refusal::NotMapped)?;
        let place = space.find(root, address).ok_or(Refusal::NotMapped)?;
        space.update(place.table, place.level, place.index, entry, HardwareBits::Replace)
    }

    /// What the flags ask to be flushed. A set of vCPUs is treated as all of them, unless it is empty. As in Xen, both kinds of flush at once
    /// are neither.
    ///
    /// # Errors
    /// EFAULT: the set can't be read.
    fn flush_scope(&self, address: GuestVirtual, flags: u64) -> Result<Option<FlushScope>, Errno> {
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
