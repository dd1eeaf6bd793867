//! The two roots of a vCPU: its kernel's and its user mode's.
//!
//! A new root is held before it is loaded, and the old one let go only when it no longer is. Kernels that change from one process to
//! another ask for both in one `mmuext_op`, and as a rule nothing has to be validated for it, or dropped: then both are changed at once
//! ([`Call::perhaps_roots`]). Whatever is otherwise goes one by one.

use penumbra_abi::mmu::{self, MmuextOp};
use spin::MutexGuard;
use zerocopy::FromZeros;

use super::batch::NotDone;
use super::mmuext::frame;
use super::{Arguments, Call, Outcome, values};
use crate::address::{DomainId, MachineFrame};
use crate::domain::vcpu::Vcpu;
use crate::hypervisor::Hypervisor;
use crate::machine::{Level, Machine, PageTableFormat};
use crate::paging::{Budget, Stop, TableSpace, TableState};

impl<M: Machine> Call<'_, M> {
    #[inline(never)]
    pub(super) fn new_kernel_root(&self, root: u64) -> Result<(), NotDone> {
        let root = frame(root)?;
        self.with_tables(self.domain, self.domain.id(), |space| {
            if self.vcpu.kernel_root() == Some(root) {
                // Held already; it is loaded all the same, which drops cached translations.
                space.settle(None)?;
                self.hypervisor.machine.load_roots(root, self.vcpu.user_root());
                return Ok(());
            }
            space.hold(root, M::Format::LEVELS)?;
            let old = self.vcpu.replace_kernel_root(Some(root));
            self.hypervisor.machine.load_roots(root, self.vcpu.user_root());
            if let Some(old) = old {
                space.let_go(old, M::Format::LEVELS);
            }
            Ok(())
        })
    }

    /// As [`Self::new_kernel_root`], if the root is validated already. Otherwise nothing has changed (`false`), and next to nothing of a budget
    /// was spent: whoever goes the general way then begins with a whole one.
    #[inline(always)]
    pub(super) fn kernel_root_at_once(&self, root: u64) -> bool {
        let Hypervisor { machine, frames, .. } = self.hypervisor;
        let (Some(root), Some(records)) = (MachineFrame::new(root), frames.records()) else { return false };
        let Some(record) = records.of(root) else { return false };
        let state = self.domain.lock_tables();
        // Another vCPU may have unhooked one until now.
        if state.unfinished.is_some()
            || self.domain.has_unhooked()
            || !frames.get_complete_record(root, record, M::Format::LEVELS, self.domain.id(), machine)
        {
            return false;
        }
        let old = self.vcpu.replace_kernel_root(Some(root));
        machine.load_roots(root, self.vcpu.user_root());
        if let Some(old) = old
            && let Some(record) = records.of(old)
            && !frames.put_one_of_many_record(old, record, machine)
        {
            self.let_go_last_root(state, old);
        }
        true
    }

    #[inline(never)]
    fn let_go_last_root(&self, state: MutexGuard<'_, TableState>, old: MachineFrame) {
        let Hypervisor { machine, frames, .. } = self.hypervisor;
        self.domain.locked_table_space(machine, frames, self.budget, state).let_go(old, M::Format::LEVELS);
    }

    pub(super) fn new_user_root(&self, root: Option<MachineFrame>) -> Result<(), NotDone> {
        self.with_tables(self.domain, self.domain.id(), |space| {
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
        })
    }

    /// A list of two operations on the tables that arguments name: a new root for the kernel and one for the user mode, as a rule. If that can
    /// be done at once, it is; if not, nothing has changed, and the list is gone through as any other.
    #[inline(never)]
    pub(super) fn perhaps_roots(&self, arguments: &Arguments) -> Outcome {
        let [place, _, _, foreign, ..] = values(arguments);
        let own = DomainId::new(foreign as u16) == DomainId::SELF;
        match own.then(|| self.roots_at(place)).flatten() {
            Some((kernel, user)) if self.both_roots(kernel, user) => Ok(0),
            _ => self.operations(arguments),
        }
    }

    /// The two roots that a list of two operations asks for, if it does. Frame 0 stands for none.
    #[inline(always)]
    fn roots_at(&self, place: u64) -> Option<(MachineFrame, MachineFrame)> {
        let mut list = <[MmuextOp; 2]>::new_zeroed();
        self.read_into(place, &mut list).ok()?;
        let [first, second] = list;
        let commands = (first.command, second.command);
        let roots = commands == (mmu::MMUEXT_NEW_BASEPTR, mmu::MMUEXT_NEW_USER_BASEPTR);
        if !roots || second.argument1 == 0 {
            return None;
        }
        Some((MachineFrame::new(first.argument1)?, MachineFrame::new(second.argument1)?))
    }

    #[inline(always)]
    fn both_roots(&self, kernel: MachineFrame, user: MachineFrame) -> bool {
        if self.budget.is_spent() {
            return false;
        }
        let changed = self.with_tables(self.domain, self.domain.id(), |space| {
            Ok::<_, Stop>(self.change_roots(space, kernel, user))
        });
        // What is tried in vain is part of what any hypercall may cost: charged here, it could take all that the list needs to get further.
        if changed == Ok(true) {
            self.budget.charge(2 * Budget::OPERATION);
        }
        changed == Ok(true)
    }

    /// Changes both roots, if neither new one needs validating, and there is one of the old ones at most to be dropped: two operations on
    /// tables can't be left unfinished at once.
    #[inline(always)]
    fn change_roots(&self, space: &mut TableSpace<'_, M>, kernel: MachineFrame, user: MachineFrame) -> bool {
        let level = M::Format::LEVELS;
        if !space.hold_complete(kernel, level) {
            return false;
        }
        if !space.hold_complete(user, level) {
            space.let_go(kernel, level);
            return false;
        }
        // What the kernel's old root has beside this use keeps it until the lock is given back; by then it isn't loaded any more.
        if !self.vcpu.kernel_root().is_some_and(|old| space.let_go_one_of_many(old)) {
            space.let_go(user, level);
            space.let_go(kernel, level);
            return false;
        }
        self.vcpu.replace_kernel_root(Some(kernel));
        let old = self.vcpu.replace_user_root(Some(user));
        self.hypervisor.machine.load_roots(kernel, Some(user));
        if let Some(old) = old {
            space.let_go(old, level);
        }
        true
    }
}

impl<M: Machine> TableSpace<'_, M> {
    /// As [`Self::hold`], of a table that is validated already, while no operation is left unfinished. `false`: nothing has changed.
    #[inline(always)]
    fn hold_complete(&self, table: MachineFrame, level: Level) -> bool {
        self.state.unfinished.is_none()
            && self.frames.get_complete_table(table, level, self.owner, self.machine)
    }

    /// As [`Self::let_go`], of a table that others hold as well. `false`: nobody does, and nothing has changed.
    #[inline(always)]
    fn let_go_one_of_many(&self, table: MachineFrame) -> bool {
        self.frames.put_one_of_many(table, self.machine)
    }
}

/// What became of a guest's write to the register that names its kernel's root, where the backend carries it out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RootWrite {
    /// The root is loaded.
    Done,
    /// The guest is to execute the instruction once more.
    Again,
    /// It can't be a root.
    Refused,
}

impl<M: Machine> Hypervisor<M> {
    /// Loads a root for the kernel of the vCPU that runs, as `MMUEXT_NEW_BASEPTR` does.
    pub fn write_kernel_root(&self, vcpu: &Vcpu<M>, root: u64) -> RootWrite {
        let Some(domain) = self.domain(vcpu.domain_id()) else { return RootWrite::Refused };
        let budget = Budget::new(Budget::HYPERCALL);
        match (Call { hypervisor: self, vcpu, domain, budget: &budget }).new_kernel_root(root) {
            Ok(()) => RootWrite::Done,
            Err(NotDone::Preempted) => RootWrite::Again,
            Err(NotDone::Errno(_)) => RootWrite::Refused,
        }
    }
}
