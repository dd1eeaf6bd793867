//! `mmuext_op`: pins, roots, flushes, and whole pages cleared or copied (`xen.h`).

use penumbra_abi::errno::Errno;
use penumbra_abi::mmu::{self, MmuextOp};

use super::ahead::AHEAD;
use super::batch::NotDone;
use super::{Arguments, Call, Outcome, values};
use crate::address::{GuestVirtual, MachineFrame};
use crate::domain::{Domain, MAX_VCPUS};
use crate::machine::{FlushScope, Level, Machine};
use crate::paging::Budget;

/// Segment descriptors that are judged for one unit of the budget.
const DESCRIPTORS_TO_THE_UNIT: u32 = 2;

impl<'a, M: Machine> Call<'a, M> {
    /// Arguments: guest address of an array of [`MmuextOp`]; their number; where to write how many were done, or 0; whose
    /// tables are meant.
    #[inline(never)]
    pub(super) fn mmuext_op(&self, arguments: &Arguments) -> Outcome {
        if self.is_pair(arguments) { self.perhaps_roots(arguments) } else { self.operations(arguments) }
    }

    #[inline(never)]
    pub(super) fn operations(&self, arguments: &Arguments) -> Outcome {
        let [_, _, _, foreign, ..] = values(arguments);
        let owner = self.named_domain(foreign as u16)?;
        if owner.has_unhooked() {
            self.hook_in(owner, arguments)?;
        }
        if self.is_single(arguments) {
            return self.single(arguments, |operation| self.one_operation(owner, operation));
        }
        self.batch::<_, AHEAD>(arguments, |operations: &[MmuextOp]| {
            let operation = operations.first().ok_or(Errno::EFAULT)?;
            self.one_operation(owner, operation).map(|()| 1)
        })
    }

    /// What is the most frequent by far goes first.
    #[inline(always)]
    fn one_operation(&self, owner: &'a Domain<M>, operation: &MmuextOp) -> Result<(), NotDone> {
        self.budget.charge(Budget::OPERATION);
        let own = core::ptr::eq(owner, self.domain);
        match operation.command {
            mmu::MMUEXT_TLB_FLUSH_LOCAL if own => self.flush(FlushScope::Local),
            mmu::MMUEXT_INVLPG_LOCAL if own => {
                self.flush(FlushScope::Page(GuestVirtual::new(operation.argument1)))
            }
            mmu::MMUEXT_NEW_BASEPTR if own => self.new_kernel_root(operation.argument1),
            _ => self.slower_operation(owner, operation),
        }
    }

    #[inline(never)]
    fn slower_operation(&self, owner: &'a Domain<M>, operation: &MmuextOp) -> Result<(), NotDone> {
        let argument = operation.argument1;
        match operation.command {
            command @ mmu::MMUEXT_PIN_L1_TABLE..=mmu::MMUEXT_PIN_L4_TABLE => {
                let level = command.saturating_sub(mmu::MMUEXT_PIN_L1_TABLE).saturating_add(1) as Level;
                let table = frame(argument)?;
                self.with_tables(owner, owner.id(), |space| Ok(space.pin(table, level)?))
            }
            mmu::MMUEXT_UNPIN_TABLE => {
                let table = frame(argument)?;
                self.with_tables(owner, owner.id(), |space| Ok(space.unpin(table)?))
            }
            mmu::MMUEXT_CLEAR_PAGE => self.clear_page(owner, frame(argument)?),
            mmu::MMUEXT_COPY_PAGE => self.copy_page(owner, frame(operation.argument2)?, frame(argument)?),
            // What Xen once had for superpages, and refuses since.
            mmu::MMUEXT_MARK_SUPER | mmu::MMUEXT_UNMARK_SUPER => Err(Errno::EOPNOTSUPP.into()),
            mmu::MMUEXT_NEW_BASEPTR..=mmu::MMUEXT_FLUSH_CACHE_GLOBAL => {
                // The rest is about the vCPU that asks, or its domain's other ones.
                if owner.id() != self.domain.id() {
                    return Err(Errno::EPERM.into());
                }
                self.own_operation(operation)
            }
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    fn own_operation(&self, operation: &MmuextOp) -> Result<(), NotDone> {
        let argument = operation.argument1;
        match operation.command {
            mmu::MMUEXT_NEW_USER_BASEPTR if argument == 0 => self.new_user_root(None),
            mmu::MMUEXT_NEW_USER_BASEPTR => self.new_user_root(Some(frame(argument)?)),
            mmu::MMUEXT_TLB_FLUSH_MULTI | mmu::MMUEXT_INVLPG_MULTI => {
                // As Xen says it of a mask that can't be read.
                match self.names_vcpus(operation.argument2).map_err(|_| Errno::EINVAL)? {
                    true => self.flush(FlushScope::Everything),
                    false => Ok(()),
                }
            }
            mmu::MMUEXT_TLB_FLUSH_ALL | mmu::MMUEXT_INVLPG_ALL => self.flush(FlushScope::Everything),
            mmu::MMUEXT_FLUSH_CACHE => self.flush_caches(Errno::EACCES),
            mmu::MMUEXT_FLUSH_CACHE_GLOBAL => self.flush_caches(Errno::EINVAL),
            mmu::MMUEXT_SET_LDT => {
                // The number of entries is an unsigned int in Xen's interface.
                let entries = operation.argument2 as u32;
                // All of its descriptors may have to be judged, in one piece.
                if self.budget.lacks(entries / DESCRIPTORS_TO_THE_UNIT) {
                    return Err(NotDone::Preempted);
                }
                Ok(M::set_local_descriptors(self, GuestVirtual::new(argument), entries)?)
            }
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    fn flush(&self, scope: FlushScope) -> Result<(), NotDone> {
        self.hypervisor.machine.flush(scope);
        Ok(())
    }

    /// Whether the bitmap of vCPUs at a guest address names any that there can be. They may run on any CPU, so which ones doesn't matter.
    ///
    /// # Errors
    /// EFAULT: it can't be read.
    pub(super) fn names_vcpus(&self, place: u64) -> Result<bool, Errno> {
        const _: () = assert!(MAX_VCPUS < u64::BITS as usize, "one word of the bitmap is enough");
        Ok(self.read::<u64>(place)? & ((1 << MAX_VCPUS) - 1) != 0)
    }

    /// Only who can make memory uncacheable has a use for it: on x86-64 the control domain, as far as Xen is concerned.
    fn flush_caches(&self, refusal: Errno) -> Result<(), NotDone> {
        if !self.domain.is_control() || !self.hypervisor.machine.write_back_caches() {
            return Err(refusal.into());
        }
        Ok(())
    }

    /// Fills a frame of `owner`'s with zeros, which has to be one that the owner may write to.
    fn clear_page(&self, owner: &Domain<M>, page: MachineFrame) -> Result<(), NotDone> {
        let (frames, machine) = (&self.hypervisor.frames, &self.hypervisor.machine);
        self.budget.charge(Budget::FRAME);
        frames.get_writable(page, owner.id(), machine).map_err(|_| Errno::EINVAL)?;
        machine.scrub_frame(page);
        frames.put_use(page, machine);
        Ok(())
    }

    /// Copies a frame of `owner`'s to another that the owner may write to. What the first one is used as doesn't matter: the owner
    /// may read it.
    fn copy_page(&self, owner: &Domain<M>, from: MachineFrame, to: MachineFrame) -> Result<(), NotDone> {
        let (frames, machine) = (&self.hypervisor.frames, &self.hypervisor.machine);
        self.budget.charge(Budget::FRAME);
        frames.get(from, owner.id()).map_err(|_| Errno::EINVAL)?;
        let writable = frames.get_writable(to, owner.id(), machine);
        if writable.is_ok() {
            machine.copy_frame(from, to);
            frames.put_use(to, machine);
        }
        frames.put(from, machine);
        Ok(writable.map_err(|_| Errno::EINVAL)?)
    }
}

/// The frame that a guest names.
pub(super) fn frame(number: u64) -> Result<MachineFrame, NotDone> {
    MachineFrame::new(number).ok_or(NotDone::Errno(Errno::EINVAL))
}
