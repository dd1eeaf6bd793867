//! `sched_op`: give the CPU away, wait, end (`sched.h`).

use penumbra_abi::errno::Errno;
use penumbra_abi::sched::{self, SchedShutdown};

use super::{Arguments, Call, Outcome};
use crate::address::DomainId;
use crate::domain::vcpu::RunState;
use crate::machine::Machine;

impl<M: Machine> Call<'_, M> {
    /// Arguments: the operation; guest address of its structure.
    pub(super) fn sched_op(&self, arguments: Arguments) -> Outcome {
        let [operation, place, ..] = arguments;
        match operation {
            sched::SCHEDOP_YIELD => self.hypervisor.scheduler.want(),
            sched::SCHEDOP_BLOCK => self.block(),
            sched::SCHEDOP_SHUTDOWN => {
                let shutdown: SchedShutdown = self.read(place)?;
                self.shutdown(shutdown.reason)?;
            }
            _ => return Err(Errno::ENOSYS.into()),
        }
        Ok(0)
    }

    /// Waits for an event. What has already come ends the wait at once.
    fn block(&self) {
        if self.vcpu.change_state(RunState::Running, RunState::Blocked) {
            self.hypervisor.scheduler.want();
            if self.domain.id() == DomainId::CONTROL && self.hypervisor.console.has_input() {
                self.hypervisor.wake(DomainId::CONTROL);
            }
        }
    }

    fn shutdown(&self, reason: u32) -> Result<(), Errno> {
        let word = match reason {
            sched::SHUTDOWN_POWEROFF => "power-off",
            sched::SHUTDOWN_REBOOT => "reboot",
            sched::SHUTDOWN_CRASH => "crash",
            sched::SHUTDOWN_WATCHDOG => "watchdog",
            _ => return Err(Errno::EINVAL),
        };
        log::info!("{:?} has shut down: {word}", self.domain.id());
        if self.domain.is_control() {
            // Without its control domain the machine has no purpose: it goes where that domain wanted to go.
            match reason {
                sched::SHUTDOWN_REBOOT => self.hypervisor.machine.reboot(),
                _ => self.hypervisor.machine.power_off(),
            }
        }
        self.hypervisor.end_domain(self.domain);
        Ok(())
    }
}
