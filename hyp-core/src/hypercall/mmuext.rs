//! `mmuext_op`: pins, roots and flushes (`xen.h`).

use penumbra_abi::errno::Errno;
use penumbra_abi::mmu::{self, MmuextOp};

use super::{Arguments, Call, Failure, Outcome};
use crate::address::{GuestVirtual, MachineFrame};
use crate::domain::Domain;
use crate::machine::{FlushScope, Level, Machine, PageTableFormat};
use crate::paging::{Budget, Refusal, Stop};

/// Why one operation of a batch did not succeed.
enum Refused {
    Errno(Errno),
    Preempted,
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<Stop> for Refused {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Refused(refusal) => Self::Errno(refusal.errno()),
            Stop::Preempted => Self::Preempted,
        }
    }
}

impl<'a, M: Machine> Call<'a, M> {
    /// Arguments: guest address of an array of [`MmuextOp`]; their number; where to write how many were done, or 0; whose
    /// tables are meant.
    pub(super) fn mmuext_op(&self, arguments: Arguments) -> Outcome {
        let [start, count, done_place, foreign, ..] = arguments;
        let owner = self.named_domain(foreign as u16)?;
        let mut done = 0u32;
        if count & mmu::MMU_UPDATE_PREEMPTED != 0 && done_place != 0 {
            done = self.read(done_place)?;
        }
        let mut next = start;
        let mut left = count & !mmu::MMU_UPDATE_PREEMPTED & 0xffff_ffff;
        let outcome = loop {
            if left == 0 {
                break Ok(0);
            }
            let again = Failure::Again([next, left | mmu::MMU_UPDATE_PREEMPTED, done_place, foreign, 0, 0]);
            if self.budget.is_spent() {
                break Err(again);
            }
            let operation: MmuextOp = match self.read(next) {
                Ok(operation) => operation,
                Err(errno) => break Err(errno.into()),
            };
            match self.one_operation(owner, operation) {
                Ok(()) => {}
                Err(Refused::Errno(errno)) => break Err(errno.into()),
                Err(Refused::Preempted) => break Err(again),
            }
            done = done.saturating_add(1);
            left = left.saturating_sub(1);
            next = next.wrapping_add(size_of::<MmuextOp>() as u64);
        };
        if done_place != 0 {
            self.write(done_place, &done)?;
        }
        outcome
    }

    fn one_operation(&self, owner: &'a Domain<M>, operation: MmuextOp) -> Result<(), Refused> {
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

    fn flush(&self, scope: FlushScope) -> Result<(), Refused> {
        self.hypervisor.machine.flush(scope);
        Ok(())
    }

    /// The new root is held before it is loaded, and the old one let go only when it no longer is.
    fn new_kernel_root(&self, root: MachineFrame) -> Result<(), Refused> {
        let mut space = self.tables(self.domain, self.domain.id());
        space.hold(root, M::Format::LEVELS)?;
        let old = self.vcpu.replace_kernel_root(Some(root));
        self.hypervisor.machine.load_roots(root, self.vcpu.user_root());
        if let Some(old) = old {
            space.let_go(old, M::Format::LEVELS);
        }
        Ok(())
    }

    fn new_user_root(&self, root: Option<MachineFrame>) -> Result<(), Refused> {
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
fn frame(number: u64) -> Result<MachineFrame, Refused> {
    MachineFrame::new(number).ok_or(Refused::Errno(Refusal::NoSuchLevel.errno()))
}
