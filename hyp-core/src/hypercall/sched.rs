//! `sched_op`: give the CPU away, wait, end (`sched.h`).

use penumbra_abi::errno::Errno;
use penumbra_abi::sched::{self, SchedPoll, SchedShutdown};

use super::{Arguments, Call, Outcome, values};
use crate::event::channel::{PORTS, Port};
use crate::machine::Machine;

/// Ports that a vCPU can wait for at once.
const MOST_POLLED: u32 = 128;
/// What each of them costs of the budget: its number is read from the guest by itself.
const POLLED_COST: u32 = 2;

impl<M: Machine> Call<'_, M> {
    /// Arguments: the operation; guest address of its structure.
    #[inline(never)]
    pub(super) fn sched_op(&self, arguments: &Arguments) -> Outcome {
        let [operation, place, ..] = values(arguments);
        match operation {
            sched::SCHEDOP_YIELD => self.hypervisor.scheduler.want(),
            sched::SCHEDOP_BLOCK => self.hypervisor.block(self.domain, self.vcpu),
            sched::SCHEDOP_POLL => self.poll(place)?,
            sched::SCHEDOP_SHUTDOWN => {
                let shutdown: SchedShutdown = self.read(place)?;
                self.shutdown(shutdown.reason)?;
            }
            _ => return Err(Errno::ENOSYS.into()),
        }
        Ok(0)
    }

    /// Waits until one of some ports has an event, or a time has come. Masked ports count, too.
    fn poll(&self, place: u64) -> Result<(), Errno> {
        let poll: SchedPoll = self.read(place)?;
        if poll.nr_ports > MOST_POLLED {
            return Err(Errno::EINVAL);
        }
        let mut only = None;
        let mut pending = false;
        // Said before the ports are looked at: an event that comes after that ends the wait.
        self.vcpu.poll_any();
        for index in 0..u64::from(poll.nr_ports) {
            self.budget.charge(POLLED_COST);
            let number: u32 = self.read(poll.ports.wrapping_add(index.saturating_mul(4)))?;
            if number as usize >= PORTS {
                return Err(Errno::EINVAL);
            }
            only = Port::new(number);
            pending |= only.is_some_and(|port| self.hypervisor.is_pending(self.domain, port));
        }
        if !pending {
            let only = only.filter(|_| poll.nr_ports == 1);
            self.hypervisor.wait_for_ports(self.domain, self.vcpu, only, poll.timeout);
        }
        Ok(())
    }

    pub(super) fn shutdown(&self, reason: u32) -> Result<(), Errno> {
        let word = match reason {
            sched::SHUTDOWN_POWEROFF => "power-off",
            sched::SHUTDOWN_REBOOT => "reboot",
            sched::SHUTDOWN_CRASH => "crash",
            sched::SHUTDOWN_WATCHDOG => "watchdog",
            _ => return Err(Errno::EINVAL),
        };
        log::info!("{:?} has shut down: {word}", self.domain.id());
        if self.domain.is_first() {
            self.hypervisor.flush_output(self.domain);
            // Without its first domain the machine has no purpose: it goes where that domain wanted to go.
            match reason {
                sched::SHUTDOWN_REBOOT => self.hypervisor.machine.reboot(),
                _ => self.hypervisor.machine.power_off(),
            }
        }
        self.hypervisor.end_domain(self.domain);
        Ok(())
    }
}
