//! Penumbra's own hypercall: what Xen has no number for.

use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;

use super::{Arguments, Call, Outcome, finish, values};
use crate::address::GuestVirtual;
use crate::machine::Machine;
use crate::paging::{Stop, TableSpace};

impl<M: Machine> Call<'_, M> {
    /// Argument: the operation. Audit (control domain only): recounts every reference of the machine, logs the report, returns how
    /// many things are wrong.
    #[inline(never)]
    pub(super) fn penumbra_op(&self, arguments: &Arguments) -> Outcome {
        let [operation, ..] = values(arguments);
        match operation {
            number::PENUMBRA_AUDIT => {
                self.require_control()?;
                let report = self.hypervisor.audit();
                self.hypervisor.stretches.forget();
                log::info!("{report}");
                Ok(report.findings)
            }
            number::PENUMBRA_UNHOOK => self.unhook(arguments),
            number::PENUMBRA_HOOK => self.hook(arguments),
            number::PENUMBRA_LONGEST_STRETCH => self.longest_stretch(arguments),
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    /// Argument: 1 to forget it and to measure from now on. Control domain only: it tells of what other domains do.
    fn longest_stretch(&self, arguments: &Arguments) -> Outcome {
        self.require_control()?;
        let [_, reset, ..] = values(arguments);
        let longest = self.hypervisor.stretches.longest();
        if reset == 1 {
            self.hypervisor.stretches.reset();
            self.hypervisor.scheduler.want();
        }
        Ok(longest)
    }

    /// Argument: the address at which a level-1 table is mapped read-only.
    fn unhook(&self, arguments: &Arguments) -> Outcome {
        let [_, address, ..] = values(arguments);
        let address = GuestVirtual::new(address);
        let mut space = self.own_tables();
        let root = self.root_at(address).ok_or(Errno::EINVAL)?;
        finish(space.unhook(root, address), arguments)
    }

    /// Argument: an address that an unhooked table translates, or all of them.
    fn hook(&self, arguments: &Arguments) -> Outcome {
        let [_, address, ..] = values(arguments);
        let mut space = self.own_tables();
        let outcome = if address == number::PENUMBRA_HOOK_ALL {
            space.hook_all()
        } else {
            let address = GuestVirtual::new(address);
            let root = self.root_at(address).ok_or(Errno::EINVAL)?;
            space.hook_at(root, address).ok_or(Errno::ENOENT)?.map_err(Stop::Refused)
        };
        finish(outcome, arguments)
    }

    /// The domain's tables as they are, the unhooked ones out of their trees.
    fn own_tables(&self) -> TableSpace<'_, M> {
        self.domain.table_space(&self.hypervisor.machine, &self.hypervisor.frames, self.budget)
    }
}
