//! What isn't an MMU hypercall: accesses, and domains' beginnings and ends.

use hyp_core::address::GuestVirtual;
use hyp_core::frame::FrameType;
use hyp_core::paging::Budget;
use penumbra_abi::domctl::{self, Domctl};
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as call;
use zerocopy::{FromZeros, IntoBytes};

use super::{Check, LIST, Session};
use crate::format::Hardware;
use crate::guest::{self, PAGES};
use crate::hardware::content::{frame, number, slot};
use crate::spec::vcpus::Vcpu;
use crate::spec::{Domain as Known, Life, NOBODY, Pin};

impl<F: Hardware> Session<F> {
    pub(super) fn access(&mut self, domain: usize, address: u64, write: Option<u64>) -> Check {
        self.tally.operations += 1;
        if let Some(value) = write {
            if let Some((target, _)) = self.machine().translate(address, true) {
                let at = slot(target)
                    .ok_or_else(|| format!("d{domain} writes to mfn {target:#x}, which isn't RAM"))?;
                let kind = self.hypervisor.frames().usage(frame(at)).map(|usage| usage.kind);
                if kind != Some(FrameType::Writable) {
                    return Err(format!("d{domain} writes to mfn {target:#x}, which is {kind:?}"));
                }
                self.tally.succeeded += 1;
            }
            self.machine().access(address, Some(value));
        } else if self.machine().access(address, None).is_some() {
            self.tally.succeeded += 1;
        } else if let Some(vcpu) = self.vcpu(domain).filter(|_| self.known.has_unhooked(domain)) {
            self.hypervisor.hook_for_fault(vcpu, GuestVirtual::new(address));
            self.learn();
        }
        Ok(())
    }

    pub(super) fn crash(&mut self, domain: usize) -> Check {
        let Some(vcpu) = self.vcpu(domain) else { return Ok(()) };
        self.hypervisor.kill(vcpu, format_args!("a test"));
        self.bury(domain);
        Ok(())
    }

    pub(super) fn bury(&mut self, domain: usize) {
        self.known.domains[domain].life = Life::Dying;
        self.ports.bury(domain);
        self.leave(domain);
    }

    pub(super) fn destroy(&mut self, domain: usize, other: u16) -> Check {
        let mut request = Domctl::new_zeroed();
        request.command = domctl::DESTROYDOMAIN;
        request.interface_version = domctl::INTERFACE_VERSION;
        request.domain = other;
        let at = self.machine().put(LIST, request.as_bytes());
        let answer = self.issue(domain, call::DOMCTL, [at, 0, 0, 0, 0, 0], &Budget::new(Budget::HYPERCALL));
        // Whoever asks has its unhooked tables hooked in first, and their pins put back.
        if self.known.has_unhooked(domain) {
            self.learn();
        }
        let answer = answer.map_err(|_| "domctl was preempted")?;
        let named = usize::from(other);
        let expected = match () {
            _ if domain != 0 => Err(Errno::EPERM),
            _ if !self.known.is_present(named) => Err(Errno::ESRCH),
            _ if named == 0 => Err(Errno::EINVAL),
            _ => Ok(0),
        };
        if answer != expected {
            return Err(format!("destroying d{other}: {answer:?}, not {expected:?}"));
        }
        if answer.is_ok() && self.known.domains[named].life == Life::Alive {
            self.bury(named);
        }
        Ok(())
    }

    pub(super) fn build(&mut self) -> Check {
        let free = self.known.owner.iter().filter(|owner| **owner == NOBODY).count();
        let vacant = self.known.domains.iter().position(|domain| domain.life == Life::Vacant);
        // A frame that somebody else has mapped still counts as the dead owner's.
        let Some(expected) = vacant.filter(|_| free > PAGES as usize) else { return Ok(()) };
        let Some(built) = guest::build(self.hypervisor, expected == 0) else {
            return Err(format!("no domain could be built, with {free} frames free"));
        };
        if built.number != expected {
            return Err(format!("d{} was built, not d{expected}", built.number));
        }
        for (name, at) in built.p2m.iter().enumerate() {
            self.claim(built.number, *at)?;
            self.known.name[*at] = name as u64;
        }
        self.known.owner[built.shared] = built.number as u8;
        self.known.pins.push(Pin { domain: built.number, table: built.root, level: F::LEVELS });
        let first = Vcpu { kernel: Some(built.root), initialised: true, up: true, ..Vcpu::default() };
        self.known.domains[built.number] = Known {
            life: Life::Alive,
            vcpus: [first, Vcpu::default(), Vcpu::default()],
            turn: 0,
            shared: Some(built.shared),
            console: built.console,
            limit: PAGES as usize,
        };
        self.ports.begin(built.number, built.console.is_some());
        Ok(())
    }

    /// A frame becomes a domain's.
    pub(super) fn claim(&mut self, domain: usize, at: usize) -> Check {
        if self.known.owner[at] != NOBODY {
            let owner = self.known.owner[at];
            return Err(format!("mfn {:#x} of d{owner} was given to d{domain}", number(at)));
        }
        self.known.owner[at] = domain as u8;
        self.known.claimed.insert(at);
        Ok(())
    }
}
