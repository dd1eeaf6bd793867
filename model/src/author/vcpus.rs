//! vCPUs: started with roots of their own, and stopped.

use penumbra_abi::mmu;

use super::Author;
use crate::format::Hardware;
use crate::hardware::content::number;
use crate::operation::Operation;
use crate::spec::operations::Extended;
use crate::spec::vcpus::{OnVcpu, VCPUS};

impl Author<'_> {
    /// What a domain does with its vCPUs.
    pub(super) fn vcpus<F: Hardware>(&mut self) -> Operation {
        let domain = &self.known.domains[self.domain];
        let missing = (0..VCPUS).find(|at| !domain.vcpus[*at].initialised);
        let down = (0..VCPUS).find(|at| domain.vcpus[*at].initialised && !domain.vcpus[*at].up);
        let wanted = match self.one_in(4) {
            true => None,
            false => missing.or(down),
        };
        let at = wanted.unwrap_or_else(|| self.chance.usize(..VCPUS));
        let vcpu = self.known.domains[self.domain].vcpus[at];
        let operation = match self.chance.u32(..12) {
            0 => OnVcpu::IsUp,
            1 => self.register(),
            2 if self.may_stop(at) => OnVcpu::Down,
            3 => return self.second_root::<F>().unwrap_or_else(|| self.updates::<F>()),
            _ if at >= 2 && vcpu.info.is_none() => self.register(),
            5 => self.initialise::<F>(),
            _ if !vcpu.initialised => self.initialise::<F>(),
            4 if vcpu.up && self.may_stop(at) => OnVcpu::Down,
            _ => OnVcpu::Up,
        };
        let number = if self.one_in(40) { VCPUS as u64 } else { at as u64 };
        Operation::OnVcpu(number, operation)
    }

    /// Without its last vCPU a domain ends; without its control domain, so does the machine.
    fn may_stop(&mut self, at: usize) -> bool {
        let others = self.known.domains[self.domain].up().any(|up| up != at);
        others || self.domain != 0 && self.one_in(4)
    }

    fn register(&mut self) -> OnVcpu {
        let offset = [0, 64, 128, 4032, 4040, 4][self.chance.usize(..6)];
        OnVcpu::RegisterInfo { frame: self.frame(), offset }
    }

    fn initialise<F: Hardware>(&mut self) -> OnVcpu {
        let root = |author: &mut Self| match author.one_in(6) {
            true => author.frame(),
            false => author.table_of(F::LEVELS).map_or(1, number),
        };
        let kernel = root(self);
        let user = if self.one_in(2) { 0 } else { root(self) };
        OnVcpu::Initialise { entry: u64::from(!self.one_in(20)), kernel, user }
    }

    /// A root that leads where the present one leads, at first.
    fn second_root<F: Hardware>(&mut self) -> Option<Operation> {
        let (new, old) = (self.candidate()?, self.known.domains[self.domain].vcpu().kernel?);
        let copy = Extended { command: mmu::MMUEXT_COPY_PAGE, argument: number(new), second: number(old) };
        let command = if self.one_in(3) {
            mmu::MMUEXT_NEW_BASEPTR
        } else {
            mmu::MMUEXT_PIN_L1_TABLE + u32::from(F::LEVELS) - 1
        };
        let take = Extended { command, argument: number(new), second: 0 };
        Some(Operation::Extended(0x7ff0, vec![copy, take]))
    }
}
