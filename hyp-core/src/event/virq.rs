//! Virtual interrupts: events that come from the hypervisor itself.
//!
//! Some belong to a vCPU (its timer), the others to the whole domain; these are bound to vCPU 0 at first and can be moved. What
//! happens to the whole machine is told to the control domain alone.

use penumbra_abi::event_channel::{NR_VIRQS, VIRQ_DEBUG, VIRQ_TIMER, VIRQ_XENOPROF, VIRQ_XENPMU};

use super::channel::Port;
use crate::address::DomainId;
use crate::domain::{Domain, MAX_VCPUS};
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;

const VIRQS: usize = NR_VIRQS as usize;

/// Which port each virtual interrupt of each vCPU is bound to; 0 is none. Those of the whole domain stand with vCPU 0.
#[derive(Debug)]
pub(crate) struct VirqPorts([[u16; VIRQS]; MAX_VCPUS]);

impl VirqPorts {
    pub const fn new() -> Self {
        Self([[0; VIRQS]; MAX_VCPUS])
    }

    pub fn get(&self, vcpu: u8, virq: u8) -> Option<Port> {
        Port::new(u32::from(*self.0.get(usize::from(vcpu))?.get(usize::from(virq))?))
    }

    pub fn set(&mut self, vcpu: u8, virq: u8, port: Option<Port>) {
        let slot = self.0.get_mut(usize::from(vcpu)).and_then(|ports| ports.get_mut(usize::from(virq)));
        if let Some(slot) = slot {
            *slot = port.map_or(0, Port::number);
        }
    }

    /// Forgets a port that is closed, whichever vCPU's it was.
    pub fn forget(&mut self, virq: u8, port: Port) {
        for slot in self.0.iter_mut().filter_map(|ports| ports.get_mut(usize::from(virq))) {
            if *slot == port.number() {
                *slot = 0;
            }
        }
    }
}

/// Whether a virtual interrupt belongs to the whole domain, not to one vCPU.
pub(crate) const fn is_global(virq: u32) -> bool {
    !matches!(virq, VIRQ_TIMER | VIRQ_DEBUG | VIRQ_XENOPROF | VIRQ_XENPMU)
}

impl<M: Machine> Hypervisor<M> {
    /// Raises a vCPU's virtual interrupt, if it is bound.
    pub(crate) fn raise_vcpu_virq(&self, domain: &Domain<M>, vcpu: u8, virq: u32) {
        let ports = domain.events.lock.lock();
        if let Some(port) = ports.get(vcpu, virq as u8) {
            let told = domain.events.channels.get(port).map_or(vcpu, |channel| channel.vcpu);
            self.set_pending(domain, port, told);
        }
    }

    /// Raises a virtual interrupt of the control domain.
    pub(crate) fn raise_control_virq(&self, virq: u32) {
        if let Some(control) = self.domain(DomainId::CONTROL) {
            self.raise_vcpu_virq(control, 0, virq);
        }
    }
}
