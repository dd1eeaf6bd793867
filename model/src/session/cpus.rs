//! Which vCPU of a domain has its turn, and on which CPU.
//!
//! vCPUs that don't have their turn keep their roots loaded where they ran last, until that CPU takes another one.

use hyp_core::Vcpu;
use hyp_core::fake::place_on_cpu;

use super::Session;
use crate::format::Hardware;
use crate::hardware::reach::CPUS;
use crate::machine::{Loaded, Model};
use crate::spec::DOMAINS;
use crate::spec::vcpus::VCPUS;

/// On which CPU each vCPU has its roots loaded.
pub(super) type Places = [[Option<usize>; VCPUS]; DOMAINS];

impl<F: Hardware> Session<F> {
    /// The vCPU of a domain that has its turn.
    pub(super) fn vcpu(&self, domain: usize) -> Option<&'static Vcpu<Model<F>>> {
        self.domain(domain)?.vcpus.get(self.known.domains[domain].turn)
    }

    /// Says which vCPU does what a domain does next: now and then another than before.
    pub(super) fn take_turn(&mut self, domain: usize) {
        let known = &self.known.domains[domain];
        if known.vcpu().up && self.chance.u8(..4) != 0 {
            return;
        }
        let up: Vec<_> = known.up().collect();
        if let Some(count) = std::num::NonZeroUsize::new(up.len()) {
            self.known.domains[domain].turn = up[self.chance.usize(..count.get())];
        }
    }

    /// A CPU takes the domain's vCPU over, unless it has it.
    pub(super) fn run_on_some_cpu(&mut self, domain: usize) {
        let cpu = match self.cpu_of[domain][self.known.domains[domain].turn] {
            Some(cpu) if self.chance.u8(..8) != 0 => cpu,
            _ => self.chance.usize(..CPUS),
        };
        self.run_on(cpu, domain);
    }

    pub(super) fn run_on(&mut self, cpu: usize, domain: usize) {
        let turn = self.known.domains[domain].turn;
        if let Some(old) = self.cpu_of[domain][turn].filter(|old| *old != cpu) {
            self.machine().switch_to(old, None);
        }
        for (other, index) in (0..DOMAINS).flat_map(|other| (0..VCPUS).map(move |index| (other, index))) {
            if (other, index) != (domain, turn) && self.cpu_of[other][index] == Some(cpu) {
                self.cpu_of[other][index] = None;
                if let Some(other) = self.domain(other) {
                    place_on_cpu(&other.vcpus[index], false);
                }
            }
        }
        let Some(vcpu) = self.vcpu(domain) else { return };
        self.cpu_of[domain][turn] = Some(cpu);
        place_on_cpu(vcpu, true);
        self.machine().switch_to(cpu, Loaded::of(vcpu));
    }

    /// No CPU has the domain's roots loaded any more.
    pub(super) fn leave(&mut self, domain: usize) {
        for cpu in self.cpu_of[domain].iter_mut().filter_map(Option::take) {
            self.hypervisor.machine().switch_to(cpu, None);
        }
        if let Some(core) = self.domain(domain) {
            core.vcpus.iter().for_each(|vcpu| place_on_cpu(vcpu, false));
        }
    }
}
