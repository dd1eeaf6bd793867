//! Event channels: ports, and what an event at one of them does to the memory that a guest and the hypervisor share.

use std::collections::BTreeMap;

use penumbra_abi::DOMID_INVALID;
use penumbra_abi::errno::Errno;
use penumbra_abi::event_channel::{NR_VIRQS, VIRQ_DEBUG, VIRQ_TIMER, VIRQ_XENOPROF, VIRQ_XENPMU};

use super::vcpus::VCPUS;
use super::{DOMAINS, Knowledge, Life};

/// One past the highest port.
const END: u32 = 1024;
/// The console's port.
const CONSOLE_PORT: u32 = 2;
/// `DOMID_SELF`
const SELF: u16 = 0x7ff0;

/// What a port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Waits for a domain of this number.
    Unbound(u16),
    /// Connected to a port of a domain.
    Interdomain(u16, u32),
    /// A virtual interrupt.
    Virq(u32),
    /// From vCPU to vCPU.
    Ipi,
    /// To the console.
    Console,
}

/// A port that is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Channel {
    /// What it is.
    pub kind: Kind,
    /// The vCPU that is told.
    pub vcpu: u32,
}

/// What a domain does with events.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// Opens a port of `dom` that waits for `remote`.
    AllocUnbound {
        /// Whose.
        dom: u16,
        /// For whom.
        remote: u16,
    },
    /// Connects to a port that waits.
    Bind {
        /// Whose.
        remote: u16,
        /// Which.
        port: u32,
    },
    /// Binds a virtual interrupt of a vCPU.
    Virq {
        /// `VIRQ_*`
        virq: u32,
        /// Which vCPU's.
        vcpu: u32,
    },
    /// Opens a port by which a vCPU is told.
    Ipi {
        /// Which.
        vcpu: u32,
    },
    /// Chooses who is told.
    Tell {
        /// Of events at this port.
        port: u32,
        /// Which vCPU.
        vcpu: u32,
    },
    /// Signals the other end.
    Send(u32),
    /// Closes a port.
    Close(u32),
    /// Unmasks a port.
    Unmask(u32),
    /// Closes all ports of a domain.
    Reset(u16),
    /// The guest writes a word of its shared page itself: masks, takes events, makes some up.
    Write {
        /// Which word of the page.
        index: usize,
        /// What it writes.
        word: u64,
    },
}

/// What happens to shared memory, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// A domain's port has an event, of which a vCPU is told.
    Pending(usize, u32, u32),
    /// A port has no event any more.
    Clear(usize, u32),
    /// What a domain has written into its console page is taken; if that is anything, this port has an event, of which a vCPU is told.
    Console(usize, u32, u32),
    /// A port isn't masked any more; if it has an event, a vCPU is told.
    Unmask(usize, u32, u32),
}

/// What an operation comes to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// The port that was opened.
    pub port: Option<u32>,
    /// What happens to shared memory.
    pub effects: Vec<Effect>,
}

/// All domains' ports.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    all: [BTreeMap<u32, Channel>; DOMAINS],
    /// Ports of others that led to a domain, or waited for it, when it died.
    orphans: Vec<(usize, u32)>,
}

impl Ports {
    /// What a port is.
    pub fn get(&self, domain: usize, port: u32) -> Option<Channel> {
        self.all[domain].get(&port).copied()
    }

    /// A domain's open ports.
    pub fn of(&self, domain: usize) -> impl Iterator<Item = (u32, Channel)> + '_ {
        self.all[domain].iter().map(|(port, channel)| (*port, *channel))
    }

    fn set(&mut self, domain: usize, port: u32, channel: Option<Channel>) {
        self.orphans.retain(|orphan| *orphan != (domain, port));
        match channel {
            Some(channel) => drop(self.all[domain].insert(port, channel)),
            None => drop(self.all[domain].remove(&port)),
        }
    }

    fn open(&mut self, known: &Knowledge, domain: usize, kind: Kind, vcpu: u32) -> Result<u32, Errno> {
        if known.domains[domain].life != Life::Alive {
            return Err(Errno::ESRCH);
        }
        let closed = (1..END).find(|port| self.get(domain, *port).is_none());
        let port = closed.ok_or(Errno::ENOSPC)?;
        self.set(domain, port, Some(Channel { kind, vcpu }));
        Ok(port)
    }

    /// What an operation must come to; what changes is changed.
    ///
    /// # Errors
    /// What it must be refused with; nothing has changed then.
    pub fn carry_out(&mut self, known: &Knowledge, domain: usize, event: Event) -> Result<Outcome, Errno> {
        let mut outcome = Outcome::default();
        match event {
            Event::AllocUnbound { dom, remote } => {
                let owner = owner(known, domain, dom)?;
                let remote = if remote == SELF { domain as u16 } else { remote };
                outcome.port = Some(self.open(known, owner, Kind::Unbound(remote), 0)?);
            }
            Event::Bind { remote, port } => {
                let own = self.bind(known, domain, remote, port)?;
                (outcome.port, outcome.effects) = (Some(own), vec![Effect::Pending(domain, own, 0)]);
            }
            Event::Virq { virq, vcpu } => outcome.port = Some(self.bind_virq(known, domain, virq, vcpu)?),
            Event::Ipi { vcpu } => {
                vcpu_exists(vcpu)?;
                outcome.port = Some(self.open(known, domain, Kind::Ipi, vcpu)?);
            }
            Event::Tell { port, vcpu } => self.tell(domain, port, vcpu)?,
            Event::Send(port) => outcome.effects.extend(self.send(domain, port)?),
            Event::Close(port) => {
                self.close(domain, port)?;
                outcome.effects.push(Effect::Clear(domain, port));
            }
            Event::Unmask(port) => {
                if !(1..END).contains(&port) {
                    return Err(Errno::EINVAL);
                }
                let told = self.get(domain, port).map_or(0, |channel| channel.vcpu);
                outcome.effects.push(Effect::Unmask(domain, port, told));
            }
            Event::Reset(dom) => {
                if owner(known, domain, dom)? != domain {
                    return Err(Errno::EINVAL);
                }
                for port in self.all[domain].keys().copied().collect::<Vec<_>>() {
                    self.close(domain, port)?;
                    outcome.effects.push(Effect::Clear(domain, port));
                }
            }
            Event::Write { .. } => {}
        }
        Ok(outcome)
    }

    /// A domain that has a console page begins with a port for it.
    pub fn begin(&mut self, domain: usize, console: bool) {
        let port = Channel { kind: Kind::Console, vcpu: 0 };
        self.all[domain].extend(console.then_some((CONSOLE_PORT, port)));
    }

    fn bind(&mut self, known: &Knowledge, domain: usize, remote: u16, port: u32) -> Result<u32, Errno> {
        let remote = if remote == SELF { domain } else { usize::from(remote) };
        if !known.is_present(remote) {
            return Err(Errno::ESRCH);
        }
        let waits = self.get(remote, port).filter(|channel| channel.kind == Kind::Unbound(domain as u16));
        let waits = waits.filter(|_| known.domains[remote].life == Life::Alive).ok_or(Errno::EINVAL)?;
        let own = self.open(known, domain, Kind::Interdomain(remote as u16, port), 0)?;
        self.set(remote, port, Some(Channel { kind: Kind::Interdomain(domain as u16, own), ..waits }));
        Ok(own)
    }

    fn bind_virq(&mut self, known: &Knowledge, domain: usize, virq: u32, vcpu: u32) -> Result<u32, Errno> {
        if virq >= NR_VIRQS || !is_of_a_vcpu(virq) && vcpu != 0 {
            return Err(Errno::EINVAL);
        }
        vcpu_exists(vcpu)?;
        let same = |channel: Channel| {
            channel.kind == Kind::Virq(virq) && (!is_of_a_vcpu(virq) || channel.vcpu == vcpu)
        };
        if self.of(domain).any(|(_, channel)| same(channel)) {
            return Err(Errno::EEXIST);
        }
        self.open(known, domain, Kind::Virq(virq), vcpu)
    }

    fn tell(&mut self, domain: usize, port: u32, vcpu: u32) -> Result<(), Errno> {
        vcpu_exists(vcpu)?;
        let channel = self.get(domain, port).ok_or(Errno::EINVAL)?;
        match channel.kind {
            Kind::Ipi => Err(Errno::EINVAL),
            Kind::Virq(virq) if is_of_a_vcpu(virq) => Err(Errno::EINVAL),
            _ => {
                // It leads where it led.
                self.all[domain].insert(port, Channel { vcpu, ..channel });
                Ok(())
            }
        }
    }

    fn send(&self, domain: usize, port: u32) -> Result<Option<Effect>, Errno> {
        let channel = self.get(domain, port).ok_or(Errno::EINVAL)?;
        match channel.kind {
            Kind::Unbound(_) => Ok(None),
            Kind::Virq(_) => Err(Errno::EINVAL),
            Kind::Ipi => Ok(Some(Effect::Pending(domain, port, channel.vcpu))),
            Kind::Console => Ok(Some(Effect::Console(domain, port, channel.vcpu))),
            Kind::Interdomain(remote, port) => {
                let remote = usize::from(remote);
                Ok(self.get(remote, port).map(|end| Effect::Pending(remote, port, end.vcpu)))
            }
        }
    }

    fn close(&mut self, domain: usize, port: u32) -> Result<(), Errno> {
        let channel = self.get(domain, port).ok_or(Errno::EINVAL)?;
        if let Kind::Interdomain(remote, other) = channel.kind
            && let Some(end) = self.get(usize::from(remote), other)
        {
            let kind = Kind::Unbound(domain as u16);
            self.set(usize::from(remote), other, Some(Channel { kind, ..end }));
        }
        self.set(domain, port, None);
        Ok(())
    }

    /// A domain has died: its ports will be closed, and none that there is now will lead to it, or wait for it.
    pub fn bury(&mut self, dead: usize) {
        for domain in (0..DOMAINS).filter(|domain| *domain != dead) {
            let theirs = self.all[domain].iter().filter(|(_, channel)| channel.leads_to() == Some(dead));
            self.orphans.extend(theirs.map(|(port, _)| (domain, *port)));
        }
    }

    /// Holds a port against what the core says of it. One that leads to a domain which is dead or dying, or is its own, may have been
    /// changed since, in one way.
    ///
    /// # Errors
    /// What is wrong.
    pub fn follow(
        &mut self,
        known: &Knowledge,
        domain: usize,
        port: u32,
        found: Option<Channel>,
    ) -> Result<(), String> {
        let here = self.get(domain, port);
        if here == found {
            return Ok(());
        }
        let is_dead =
            |domain: usize| known.domains.get(domain).is_some_and(|domain| domain.life != Life::Alive);
        let leads_to_dead = here.and_then(Channel::leads_to).is_some_and(is_dead);
        let forgotten = here.map(|channel| Channel { kind: Kind::Unbound(DOMID_INVALID), ..channel });
        if found.is_none() && is_dead(domain) || leads_to_dead && found == forgotten {
            self.set(domain, port, found);
            return Ok(());
        }
        Err(format!("port {port} of d{domain} is {found:?}, not {here:?}"))
    }

    /// Whether a dead domain has no ports any more, and none leads to it that did when it died.
    pub fn is_forgotten(&self, dead: usize) -> bool {
        let leads =
            |&(domain, port): &(usize, u32)| self.get(domain, port).and_then(Channel::leads_to) == Some(dead);
        self.all[dead].is_empty() && !self.orphans.iter().any(leads)
    }
}

impl Channel {
    /// The domain that it waits for, or is connected to.
    fn leads_to(self) -> Option<usize> {
        match self.kind {
            Kind::Unbound(to) | Kind::Interdomain(to, _) => Some(usize::from(to)),
            Kind::Virq(_) | Kind::Ipi | Kind::Console => None,
        }
    }
}

/// The domain that is named: oneself always, others only by the control domain.
fn owner(known: &Knowledge, domain: usize, named: u16) -> Result<usize, Errno> {
    match usize::from(named) {
        _ if named == SELF => Ok(domain),
        other if other == domain => Ok(domain),
        other if !known.is_present(other) => Err(Errno::ESRCH),
        _ if domain != 0 => Err(Errno::EPERM),
        other => Ok(other),
    }
}

fn vcpu_exists(vcpu: u32) -> Result<(), Errno> {
    if (vcpu as usize) < VCPUS { Ok(()) } else { Err(Errno::ENOENT) }
}

/// Whether each vCPU has a virtual interrupt of this number.
fn is_of_a_vcpu(virq: u32) -> bool {
    [VIRQ_TIMER, VIRQ_DEBUG, VIRQ_XENOPROF, VIRQ_XENPMU].contains(&virq)
}
