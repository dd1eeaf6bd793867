//! `mmuext_op`: pins, roots and flushes (`xen.h`).

use penumbra_abi::errno::Errno;
use penumbra_abi::mmu::{self, MmuextOp};

use super::batch::NotDone;
use super::{Arguments, Call, Outcome};
use crate::address::{GuestVirtual, MachineFrame};
use crate::domain::Domain;
use crate::machine::{FlushScope, Level, Machine, PageTableFormat};
use crate::paging::Budget;

impl<'a, M: Machine> Call<'a, M> {
    /// Arguments: guest address of an array of [`MmuextOp`]; their number; where to write how many were done, or 0; whose
    /// tables are meant.
    pub(super) fn mmuext_op(&self, arguments: Arguments) -> Outcome {
        let [_, _, _, foreign, ..] = arguments;
        let owner = self.named_domain(foreign as u16)?;
        self.batch(arguments, |operation| self.one_operation(owner, operation))
    }

    fn one_operation(&self, owner: &'a Domain<M>, operation: MmuextOp) -> Result<(), NotDone> {
        self.budget.charge(Budget::OPERATION);
        let argument = operation.argument1;
        match operation.command {
            command @ mmu::MMUEXT_PIN_L1_TABLE..=mmu::MMUEXT_PIN_L4_TABLE => {
                let level = command.saturating_sub(mmu::MMUEXT_PIN_L1_TABLE).saturating_add(1) as Level;
                Ok(self.tables(owner, owner.id()).pin(frame(argument)?, level)?)
            }
            mmu::MMUEXT_UNPIN_TABLE => Ok(self.tables(owner, owner.id()).unpin(frame(argument)?)?),
            mmu::MMUEXT_NEW_BASEPTR => self.new_kernel_root(frame(argument)?),
            mmu::MMUEXT_NEW_USER_BASEPTR if argument == 0 => self.new_user_root(None),
            mmu::MMUEXT_NEW_USER_BASEPTR => self.new_user_root(Some(frame(argument)?)),
            mmu::MMUEXT_TLB_FLUSH_LOCAL => self.flush(FlushScope::Local),
            mmu::MMUEXT_INVLPG_LOCAL => self.flush(FlushScope::Page(GuestVirtual::new(argument))),
            // The vCPUs named may run on any CPU.
            mmu::MMUEXT_TLB_FLUSH_MULTI
            | mmu::MMUEXT_TLB_FLUSH_ALL
            | mmu::MMUEXT_INVLPG_MULTI
            | mmu::MMUEXT_INVLPG_ALL => self.flush(FlushScope::Everything),
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    fn flush(&self, scope: FlushScope) -> Result<(), NotDone> {
        self.hypervisor.machine.flush(scope);
        Ok(())
    }

    /// The new root is held before it is loaded, and the old one let go only when it no longer is.
    fn new_kernel_root(&self, root: MachineFrame) -> Result<(), NotDone> {
        let mut space = self.tables(self.domain, self.domain.id());
        space.hold(root, M::Format::LEVELS)?;
        let old = self.vcpu.replace_kernel_root(Some(root));
        self.hypervisor.machine.load_roots(root, self.vcpu.user_root());
        if let Some(old) = old {
            space.let_go(old, M::Format::LEVELS);
        }
        Ok(())
    }

    fn new_user_root(&self, root: Option<MachineFrame>) -> Result<(), NotDone> {
        let mut space = self.tables(self.domain, self.domain.id());
        match root {
            Some(root) => space.hold(root, M::Format::LEVELS)?,
            None => drop(space.settle(None)?),
        }
        let old = self.vcpu.replace_user_root(root);
        if let Some(kernel) = self.vcpu.kernel_root() {
            self.hypervisor.machine.load_roots(kernel, root);
        }
        if let Some(old) = old {
            space.let_go(old, M::Format::LEVELS);
        }
        Ok(())
    }
}

/// The frame that a guest names.
fn frame(number: u64) -> Result<MachineFrame, NotDone> {
    MachineFrame::new(number).ok_or(NotDone::Errno(Errno::EINVAL))
}
