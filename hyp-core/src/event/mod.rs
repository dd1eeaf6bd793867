//! Events: how a domain is told that something has happened (`event_channel.h`, two-level ABI).
//!
//! A domain has numbered *ports* ([`channel`]). A port in use is one end of a channel: to a port of another domain, to the hypervisor (a
//! virtual interrupt, [`virq`], or the domain's console), or to the domain itself (one vCPU tells another). An event at a port sets bits that the guest reads
//! ([`signal`]), and makes the guest take its event handler ([`upcall`]).
//!
//! **Locks.** Each domain has one event lock; its ports, and which virtual interrupt is bound to which, change under it. A channel between
//! two domains changes under both locks, taken in the order of the domains' numbers. So whoever holds one domain's lock may
//! rely on what its ports say of the other side. Nothing else is locked while an event lock is held, but a vCPU's own
//! account of time; guest memory isn't touched under it.
//!
//! **The end.** A domain's ports are closed before anything else of it is taken apart, and no port is opened once it is dying (which is looked at
//! under its lock). So an event can't reach a shared-info page that is gone. Ports of others that were connected to it, or
//! waited for it, wait for nobody (`DOMID_INVALID`) from then on: another domain may get the number later.

pub mod channel;
pub(crate) mod signal;
pub mod upcall;
pub(crate) mod virq;

use core::sync::atomic::{AtomicU32, Ordering};

use penumbra_abi::DOMID_INVALID;
use penumbra_abi::errno::Errno;
use penumbra_abi::event_channel::NR_VIRQS;
use spin::{Mutex, MutexGuard};

use crate::address::DomainId;
use crate::domain::{Domain, Life, MAX_DOMAINS};
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;
use channel::{Channel, Channels, Kind, PORTS, Port};
use virq::{VirqPorts, is_global};

/// How often a port is looked at anew whose other side changes just then, before the guest is asked to try again.
const ATTEMPTS: usize = 16;
/// Ports of a dying domain that are closed in one step.
const PORTS_A_STEP: u32 = 128;
/// Whom a port waits for whose other side has died.
const NOBODY: DomainId = DomainId::new(DOMID_INVALID);

/// A domain's ports.
pub(crate) struct Events {
    pub lock: Mutex<VirqPorts>,
    pub channels: Channels,
    /// How far the ports of a dying domain are closed: a number of ports, then [`PORTS`] and a number of other domains.
    progress: AtomicU32,
}

impl Events {
    pub const fn new() -> Self {
        Self { lock: Mutex::new(VirqPorts::new()), channels: Channels::new(), progress: AtomicU32::new(0) }
    }

    /// A new life begins.
    pub fn begin(&self) {
        // Relaxed: the domain's life publishes it.
        self.progress.store(0, Ordering::Relaxed);
    }

    /// Whether every port of a dying domain is closed.
    pub fn are_finished(&self) -> bool {
        // Acquire, with the release of whoever closed the last: who finds that all are closed sees what was done with each.
        self.progress.load(Ordering::Acquire) as usize >= PORTS.saturating_add(MAX_DOMAINS)
    }
}

type Guard<'a> = MutexGuard<'a, VirqPorts>;

/// Locks the ports of two domains, which may be the same: the first one's guard comes first.
fn lock_both<'a, M: Machine>(first: &'a Domain<M>, second: &'a Domain<M>) -> (Guard<'a>, Option<Guard<'a>>) {
    let (first_id, second_id) = (first.id().number(), second.id().number());
    if first_id == second_id {
        (first.events.lock.lock(), None)
    } else if first_id < second_id {
        let guard = first.events.lock.lock();
        (guard, Some(second.events.lock.lock()))
    } else {
        let other = second.events.lock.lock();
        (first.events.lock.lock(), Some(other))
    }
}

/// Opens the lowest closed port. Under the domain's lock.
fn open<M: Machine>(domain: &Domain<M>, kind: Kind, vcpu: u8) -> Result<Port, Errno> {
    // Looked at under the lock: see the module's text.
    if domain.life() != Life::Alive {
        return Err(Errno::ESRCH);
    }
    let port = domain.events.channels.lowest_closed().ok_or(Errno::ENOSPC)?;
    domain.events.channels.set(port, Some(Channel { kind, vcpu }));
    Ok(port)
}

/// The vCPU that a guest names, if it has one of that number.
fn vcpu_number<M: Machine>(domain: &Domain<M>, vcpu: u32) -> Result<u8, Errno> {
    domain.vcpu(u64::from(vcpu)).map(|vcpu| vcpu.index() as u8).ok_or(Errno::ENOENT)
}

impl<M: Machine> Hypervisor<M> {
    /// Opens a port of `domain` that waits for `remote`.
    pub(crate) fn alloc_unbound(&self, domain: &Domain<M>, remote: DomainId) -> Result<Port, Errno> {
        let _guard = domain.events.lock.lock();
        open(domain, Kind::Unbound(remote), 0)
    }

    /// Connects a new port of `domain` to one of `remote` that waits for it. The new port has an event at once: one that was sent
    /// while nobody was connected may have been lost.
    pub(crate) fn bind_interdomain(
        &self,
        domain: &Domain<M>,
        remote: &Domain<M>,
        remote_port: u32,
    ) -> Result<Port, Errno> {
        let _guards = lock_both(domain, remote);
        let remote_port = Port::new(remote_port).ok_or(Errno::EINVAL)?;
        let waiting = remote.events.channels.get(remote_port).ok_or(Errno::EINVAL)?;
        if waiting.kind != Kind::Unbound(domain.id()) || remote.life() != Life::Alive {
            return Err(Errno::EINVAL);
        }
        let port = open(domain, Kind::Interdomain(remote.id(), remote_port), 0)?;
        let connected = Channel { kind: Kind::Interdomain(domain.id(), port), ..waiting };
        remote.events.channels.set(remote_port, Some(connected));
        self.set_pending(domain, port, 0);
        Ok(port)
    }

    /// Binds a virtual interrupt to a new port.
    pub(crate) fn bind_virq(&self, domain: &Domain<M>, virq: u32, vcpu: u32) -> Result<Port, Errno> {
        if virq >= NR_VIRQS || (is_global(virq) && vcpu != 0) {
            return Err(Errno::EINVAL);
        }
        let vcpu = vcpu_number(domain, vcpu)?;
        let virq = virq as u8;
        let mut ports = domain.events.lock.lock();
        if ports.get(vcpu, virq).is_some() {
            return Err(Errno::EEXIST);
        }
        let port = open(domain, Kind::Virq(virq), vcpu)?;
        ports.set(vcpu, virq, Some(port));
        Ok(port)
    }

    /// Opens a port by which vCPUs of the domain tell `vcpu`.
    pub(crate) fn bind_ipi(&self, domain: &Domain<M>, vcpu: u32) -> Result<Port, Errno> {
        let vcpu = vcpu_number(domain, vcpu)?;
        let _guard = domain.events.lock.lock();
        open(domain, Kind::Ipi, vcpu)
    }

    /// Chooses the vCPU that is told of events at a port. Not for those that belong to a vCPU.
    pub(crate) fn bind_vcpu(&self, domain: &Domain<M>, port: Option<Port>, vcpu: u32) -> Result<(), Errno> {
        let vcpu = vcpu_number(domain, vcpu)?;
        let port = port.ok_or(Errno::EINVAL)?;
        let _guard = domain.events.lock.lock();
        let channel = domain.events.channels.get(port).ok_or(Errno::EINVAL)?;
        match channel.kind {
            Kind::Virq(virq) if !is_global(u32::from(virq)) => return Err(Errno::EINVAL),
            Kind::Ipi => return Err(Errno::EINVAL),
            Kind::Virq(_) | Kind::Unbound(_) | Kind::Interdomain(..) | Kind::Console => {}
        }
        domain.events.channels.set(port, Some(Channel { vcpu, ..channel }));
        Ok(())
    }

    /// Signals the other end, unless that is the domain's console: then `true` is returned, and the caller has to see to it. A port that waits
    /// has no other end yet, which is no error.
    pub(crate) fn send(&self, domain: &Domain<M>, port: Port) -> Result<bool, Errno> {
        let _guard = domain.events.lock.lock();
        let channel = domain.events.channels.get(port).ok_or(Errno::EINVAL)?;
        match channel.kind {
            Kind::Interdomain(id, remote_port) => {
                // The lock keeps the channel, and so the other domain's end of it.
                if let Some(remote) = self.domain(id) {
                    let told = remote.events.channels.get(remote_port).map_or(0, |channel| channel.vcpu);
                    self.set_pending(remote, remote_port, told);
                }
            }
            Kind::Ipi => self.set_pending(domain, port, channel.vcpu),
            Kind::Unbound(_) => {}
            Kind::Virq(_) => return Err(Errno::EINVAL),
            Kind::Console => return Ok(true),
        }
        Ok(false)
    }

    /// Closes a port. The other end, if there is one, waits for the domain again.
    pub(crate) fn close(&self, domain: &Domain<M>, port: Port) -> Result<(), Errno> {
        self.close_for(domain, port, domain.id())
    }

    /// Closes a port; the other end waits for `next` afterwards.
    fn close_for(&self, domain: &Domain<M>, port: Port, next: DomainId) -> Result<(), Errno> {
        for _ in 0..ATTEMPTS {
            // Which locks are needed is known only from the port, and the port is sure only under the locks.
            let seen = domain.events.channels.get(port).ok_or(Errno::EINVAL)?;
            let peer = match seen.kind {
                Kind::Interdomain(id, remote_port) => self.domain(id).map(|remote| (remote, remote_port)),
                _ => None,
            };
            let (mut ports, _other) = lock_both(domain, peer.map_or(domain, |(remote, _)| remote));
            if domain.events.channels.get(port).map(|now| now.kind) != Some(seen.kind) {
                continue;
            }
            if let Kind::Virq(virq) = seen.kind {
                ports.forget(virq, port);
            }
            if let Some((remote, remote_port)) = peer
                && let Some(end) = remote.events.channels.get(remote_port)
            {
                remote.events.channels.set(remote_port, Some(Channel { kind: Kind::Unbound(next), ..end }));
            }
            domain.events.channels.set(port, None);
            self.clear_pending(domain, port);
            return Ok(());
        }
        Err(Errno::EAGAIN)
    }

    /// Closes the ports of a dying domain, a bounded piece at a time: first its own, then it sees to it that no port of another
    /// domain waits for its number.
    pub(crate) fn close_some(&self, domain: &Domain<M>) {
        // Relaxed: whoever tears a domain down has it for himself.
        let done = domain.events.progress.load(Ordering::Relaxed);
        let next = match usize::try_from(done).ok().and_then(|done| done.checked_sub(PORTS)) {
            None => self.close_own(domain, done),
            Some(other) => {
                if let Some(other) = self.domains.get(other).filter(|other| other.is_present()) {
                    forget_domain(other, domain.id());
                }
                done.saturating_add(1)
            }
        };
        // Release: see `are_finished`.
        domain.events.progress.store(next, Ordering::Release);
    }

    /// Closes a step's worth of ports, from number `first` on; returns where to go on.
    fn close_own(&self, domain: &Domain<M>, first: u32) -> u32 {
        let end = first.saturating_add(PORTS_A_STEP).min(PORTS as u32);
        for number in first..end {
            let port = Port::new(number).filter(|port| domain.events.channels.get(*port).is_some());
            if port.is_some_and(|port| self.close_for(domain, port, NOBODY).is_err()) {
                // Its other end changes at this very moment; the next step sees to it.
                return number;
            }
        }
        end
    }
}

/// Lets the ports that wait for domain `gone` wait for nobody.
fn forget_domain<M: Machine>(domain: &Domain<M>, gone: DomainId) {
    let _guard = domain.events.lock.lock();
    for port in Port::all() {
        let Some(channel) = domain.events.channels.get(port) else { continue };
        if channel.kind == Kind::Unbound(gone) {
            domain.events.channels.set(port, Some(Channel { kind: Kind::Unbound(NOBODY), ..channel }));
        }
    }
}
