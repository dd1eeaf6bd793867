//! `event_channel_op`: ports are opened, bound, signalled and closed (`event_channel.h`).
//!
//! What belongs to the FIFO ABI is ENOSYS, as Xen answers it for guests that have only the two-level ABI; guests then go on
//! with that one.

use penumbra_abi::DOMID_XEN;
use penumbra_abi::errno::Errno;
use penumbra_abi::event_channel::{
    self as abi, AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, Reset, Status,
};

use super::{Arguments, Call, Failure, Outcome, values};
use crate::address::DomainId;
use crate::domain::Domain;
use crate::event::channel::{Kind, PORTS, Port};
use crate::machine::Machine;
use crate::paging::Budget;

/// What it costs to look for a closed port, in entries of a table.
const SEARCH: u32 = 64;
/// What it costs to look at each port of a domain, whether it is closed or not.
const LOOK_AT_ALL: u32 = PORTS as u32 / 4;

impl<M: Machine> Call<'_, M> {
    /// Arguments: the operation; guest address of its structure.
    #[inline(never)]
    pub(super) fn event_channel_op(&self, arguments: &Arguments) -> Outcome {
        let [operation, place, ..] = values(arguments);
        // The most frequent by far, and the smallest: it goes without what the others need of the stack.
        if operation == abi::EVTCHNOP_SEND {
            let port = self.port(place)?;
            if self.hypervisor.send(self.domain, port)? {
                return self.send_to_hypervisor(port, arguments);
            }
            return Ok(0);
        }
        self.other_channel_operation(arguments)
    }

    /// What the guest has written into its console page is shown before it goes on; preempted, the event is sent once more. What it asks
    /// its store for is answered.
    #[cold]
    #[inline(never)]
    fn send_to_hypervisor(&self, port: Port, arguments: &Arguments) -> Outcome {
        if port == Port::STORE {
            self.hypervisor.serve_store(self.domain, self.budget);
            return Ok(0);
        }
        match self.hypervisor.serve_console(self.domain, self.budget) {
            true => Ok(0),
            false => Err(Failure::Again(values(arguments))),
        }
    }

    #[inline(never)]
    fn other_channel_operation(&self, arguments: &Arguments) -> Outcome {
        let [operation, place, ..] = values(arguments);
        match operation {
            abi::EVTCHNOP_UNMASK => self.unmask(place)?,
            abi::EVTCHNOP_ALLOC_UNBOUND => self.alloc_unbound(place)?,
            abi::EVTCHNOP_BIND_INTERDOMAIN => self.bind_interdomain(place)?,
            abi::EVTCHNOP_BIND_VIRQ => self.bind_virq(place)?,
            abi::EVTCHNOP_BIND_IPI => self.bind_ipi(place)?,
            abi::EVTCHNOP_BIND_VCPU => self.bind_vcpu(place)?,
            abi::EVTCHNOP_CLOSE => self.hypervisor.close(self.domain, self.port(place)?)?,
            abi::EVTCHNOP_STATUS => self.channel_status(place)?,
            abi::EVTCHNOP_RESET => return self.reset_channels(arguments),
            // There are no physical interrupts that a guest could have.
            abi::EVTCHNOP_BIND_PIRQ => return Err(Errno::EINVAL.into()),
            _ => return Err(Errno::ENOSYS.into()),
        }
        Ok(0)
    }

    /// The port that is named at `place`, if there can be one of that number.
    fn port(&self, place: u64) -> Result<Port, Errno> {
        let named: abi::Port = self.read(place)?;
        Port::new(named.port).ok_or(Errno::EINVAL)
    }

    /// The domain that the guest names: itself always, others only for the control domain.
    fn channel_owner(&self, id: u16) -> Result<&Domain<M>, Errno> {
        let id = DomainId::new(id);
        if id == DomainId::SELF || id == self.domain.id() {
            return Ok(self.domain);
        }
        let domain = self.hypervisor.domain(id).ok_or(Errno::ESRCH)?;
        self.require_control()?;
        Ok(domain)
    }

    fn unmask(&self, place: u64) -> Result<(), Errno> {
        let port = self.port(place)?;
        // A port that is closed can be unmasked as well, as in Xen.
        let told = self.domain.events.channels.get(port).map_or(0, |channel| channel.vcpu);
        self.hypervisor.unmask(self.domain, port, told);
        Ok(())
    }

    fn alloc_unbound(&self, place: u64) -> Result<(), Errno> {
        let mut request: AllocUnbound = self.read(place)?;
        let owner = self.channel_owner(request.dom)?;
        let remote = match DomainId::new(request.remote_dom) {
            DomainId::SELF => self.domain.id(),
            other => other,
        };
        self.budget.charge(SEARCH);
        request.port = self.hypervisor.alloc_unbound(owner, remote)?.number().into();
        self.write(place, &request)
    }

    fn bind_interdomain(&self, place: u64) -> Result<(), Errno> {
        let mut request: BindInterdomain = self.read(place)?;
        let remote = match DomainId::new(request.remote_dom) {
            DomainId::SELF => self.domain,
            other => self.hypervisor.domain(other).ok_or(Errno::ESRCH)?,
        };
        self.budget.charge(SEARCH);
        let port = self.hypervisor.bind_interdomain(self.domain, remote, request.remote_port)?;
        request.local_port = port.number().into();
        self.write(place, &request)
    }

    fn bind_virq(&self, place: u64) -> Result<(), Errno> {
        let mut request: BindVirq = self.read(place)?;
        self.budget.charge(SEARCH);
        request.port = self.hypervisor.bind_virq(self.domain, request.virq, request.vcpu)?.number().into();
        self.write(place, &request)
    }

    fn bind_ipi(&self, place: u64) -> Result<(), Errno> {
        let mut request: BindIpi = self.read(place)?;
        self.budget.charge(SEARCH);
        request.port = self.hypervisor.bind_ipi(self.domain, request.vcpu)?.number().into();
        self.write(place, &request)
    }

    fn bind_vcpu(&self, place: u64) -> Result<(), Errno> {
        let request: BindVcpu = self.read(place)?;
        // The vCPU is judged first, as in Xen.
        self.hypervisor.bind_vcpu(self.domain, Port::new(request.port), request.vcpu)
    }

    fn channel_status(&self, place: u64) -> Result<(), Errno> {
        let mut request: Status = self.read(place)?;
        let owner = self.channel_owner(request.dom)?;
        let port = Port::new(request.port).ok_or(Errno::EINVAL)?;
        let channel = owner.events.channels.get(port);
        (request.vcpu, request.remote_port) = (channel.map_or(0, |channel| channel.vcpu.into()), 0);
        (request.status, request.detail) = match channel.map(|channel| channel.kind) {
            None => (abi::EVTCHNSTAT_CLOSED, 0),
            Some(Kind::Unbound(remote)) => (abi::EVTCHNSTAT_UNBOUND, remote.number().into()),
            Some(Kind::Interdomain(remote, remote_port)) => {
                request.remote_port = remote_port.number().into();
                (abi::EVTCHNSTAT_INTERDOMAIN, remote.number().into())
            }
            Some(Kind::Virq(virq)) => (abi::EVTCHNSTAT_VIRQ, virq.into()),
            Some(Kind::Ipi) => (abi::EVTCHNSTAT_IPI, 0),
            // To the guest it is like any other whose other end is somewhere else.
            Some(Kind::Console) => {
                request.remote_port = request.port;
                (abi::EVTCHNSTAT_INTERDOMAIN, DOMID_XEN.into())
            }
        };
        self.write(place, &request)
    }

    /// Closes all ports of the domain that asks. (Xen lets the control domain do so for one that it has paused; nobody here is.)
    fn reset_channels(&self, arguments: &Arguments) -> Outcome {
        let [_, place, ..] = values(arguments);
        let request: Reset = self.read(place)?;
        let owner = self.channel_owner(request.dom)?;
        if owner.id() != self.domain.id() {
            return Err(Errno::EINVAL.into());
        }
        // Preempted, it begins anew: ports that are closed by then cost little. Charged beforehand, they could leave none for the others.
        for port in Port::all() {
            if owner.events.channels.get(port).is_none() {
                continue;
            }
            if self.budget.is_spent() {
                return Err(Failure::Again(values(arguments)));
            }
            self.budget.charge(Budget::OPERATION);
            match self.hypervisor.close(owner, port) {
                // Closed by another vCPU meanwhile.
                Ok(()) | Err(Errno::EINVAL) => {}
                Err(_) => return Err(Failure::Again(values(arguments))),
            }
        }
        self.budget.charge(LOOK_AT_ALL);
        Ok(0)
    }
}
