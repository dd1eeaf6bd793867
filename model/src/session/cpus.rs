//! Which CPU a domain's vCPU runs on.

use hyp_core::fake::place_on_cpu;

use super::Session;
use crate::format::Hardware;
use crate::hardware::reach::CPUS;
use crate::machine::Loaded;
use crate::spec::DOMAINS;

impl<F: Hardware> Session<F> {
    /// A CPU takes the domain's vCPU over, unless it has it.
    pub(super) fn run_on_some_cpu(&mut self, domain: usize) {
        let cpu = match self.cpu_of[domain] {
            Some(cpu) if self.chance.u8(..8) != 0 => cpu,
            _ => self.chance.usize(..CPUS),
        };
        self.run_on(cpu, domain);
    }

    pub(super) fn run_on(&mut self, cpu: usize, domain: usize) {
        if let Some(old) = self.cpu_of[domain].filter(|old| *old != cpu) {
            self.machine().switch_to(old, None);
        }
        for other in 0..DOMAINS {
            if other != domain && self.cpu_of[other] == Some(cpu) {
                self.cpu_of[other] = None;
                if let Some(other) = self.domain(other) {
                    place_on_cpu(&other.vcpus[0], false);
                }
            }
        }
        let Some(core) = self.domain(domain) else { return };
        let vcpu = &core.vcpus[0];
        self.cpu_of[domain] = Some(cpu);
        place_on_cpu(vcpu, true);
        let loaded = vcpu.kernel_root().map(|kernel| Loaded { tag: domain, kernel, user: vcpu.user_root() });
        self.machine().switch_to(cpu, loaded);
    }

    /// No CPU has the domain's roots loaded any more.
    pub(super) fn leave(&mut self, domain: usize) {
        if let Some(cpu) = self.cpu_of[domain].take() {
            self.machine().switch_to(cpu, None);
        }
        if let Some(core) = self.domain(domain) {
            place_on_cpu(&core.vcpus[0], false);
        }
    }
}
