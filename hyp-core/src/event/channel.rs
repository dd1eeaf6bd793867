//! What a port is, in one atomic word.
//!
//! A domain's ports are an array of these words. They change only under the domain's event lock; they are read without it, too. A word of
//! zero is a closed port, so that an array that was never used is all zeros.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::address::DomainId;

/// Ports of a domain, of which number 0 is never given out (its number means "none" in places).
pub const PORTS: usize = 1024;

/// A port's number, below [`PORTS`], not 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Port(u16);

impl Port {
    /// The port that a guest names, if there can be one.
    pub fn new(number: u32) -> Option<Self> {
        u16::try_from(number).ok().filter(|number| *number > 0 && usize::from(*number) < PORTS).map(Self)
    }

    /// The console's, of a domain that has a console page: the number that it mostly has under Xen, whose tools open the store's port first.
    pub const CONSOLE: Self = Self(2);
    /// The store's, of a domain that has one ([`crate::store`]).
    pub const STORE: Self = Self(1);

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// All that there are.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..PORTS as u16).map(Self)
    }
}

/// What a port is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Waits for this domain to connect.
    Unbound(DomainId),
    /// Connected to a port of this domain.
    Interdomain(DomainId, Port),
    /// A virtual interrupt.
    Virq(u8),
    /// From one vCPU of the domain to another.
    Ipi,
    /// Connected to the hypervisor, which shows what the domain writes into its console page ([`crate::console::guest`]), and answers
    /// what it asks its store for ([`crate::store`]).
    Console,
}

/// A port in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Channel {
    /// What for.
    pub kind: Kind,
    /// The vCPU that is told.
    pub vcpu: u8,
}

const UNBOUND: u64 = 1;
const INTERDOMAIN: u64 = 2;
const VIRQ: u64 = 3;
const IPI: u64 = 4;
const CONSOLE: u64 = 5;

impl Channel {
    /// Bits 0 to 7: kind; 8 to 15: vCPU; 16 to 31: domain; 32 to 47: port, or the virtual interrupt.
    fn encode(self) -> u64 {
        let (kind, domain, detail) = match self.kind {
            Kind::Unbound(domain) => (UNBOUND, domain.number(), 0),
            Kind::Interdomain(domain, port) => (INTERDOMAIN, domain.number(), port.number()),
            Kind::Virq(virq) => (VIRQ, 0, u16::from(virq)),
            Kind::Ipi => (IPI, 0, 0),
            Kind::Console => (CONSOLE, 0, 0),
        };
        kind | u64::from(self.vcpu) << 8 | u64::from(domain) << 16 | u64::from(detail) << 32
    }

    #[inline(always)]
    fn decode(word: u64) -> Option<Self> {
        let domain = DomainId::new((word >> 16) as u16);
        let detail = (word >> 32) as u16;
        let kind = match word & 0xff {
            UNBOUND => Kind::Unbound(domain),
            INTERDOMAIN => Kind::Interdomain(domain, Port::new(u32::from(detail))?),
            VIRQ => Kind::Virq(detail as u8),
            IPI => Kind::Ipi,
            CONSOLE => Kind::Console,
            _ => return None,
        };
        Some(Self { kind, vcpu: (word >> 8) as u8 })
    }
}

/// A domain's ports.
pub(crate) struct Channels([AtomicU64; PORTS]);

impl Channels {
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; PORTS])
    }

    #[inline(always)]
    pub fn get(&self, port: Port) -> Option<Channel> {
        // Relaxed: one word says it all, and whoever acts upon it holds the lock under which it was written.
        Channel::decode(self.0.get(usize::from(port.number()))?.load(Ordering::Relaxed))
    }

    /// Under the domain's event lock.
    pub fn set(&self, port: Port, channel: Option<Channel>) {
        if let Some(word) = self.0.get(usize::from(port.number())) {
            word.store(channel.map_or(0, Channel::encode), Ordering::Relaxed);
        }
    }

    /// The lowest port that is closed. Under the domain's event lock.
    pub fn lowest_closed(&self) -> Option<Port> {
        let index = self.0.iter().skip(1).position(|word| word.load(Ordering::Relaxed) == 0)?;
        Port::new(index.checked_add(1)? as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_channel_is_read_back_as_it_was_written() {
        let port = Port::new(PORTS as u32 - 1).unwrap();
        let domain = DomainId::new(0x7ff4);
        let kinds = [
            Kind::Unbound(domain),
            Kind::Interdomain(domain, port),
            Kind::Virq(23),
            Kind::Ipi,
            Kind::Console,
        ];
        for kind in kinds {
            let channel = Channel { kind, vcpu: 7 };
            assert_eq!(Channel::decode(channel.encode()), Some(channel));
        }
        assert_eq!(Channel::decode(0), None);
    }

    #[test]
    fn ports_begin_at_one_and_end_somewhere() {
        assert_eq!(Port::new(0), None);
        assert_eq!(Port::new(PORTS as u32), None);
        assert_eq!(Port::new(0x1_0001), None, "not cut to 16 bits");
        assert_eq!(Port::all().count(), PORTS - 1);
    }

    proptest! {
        #[test]
        fn no_word_is_more_than_a_channel(word: u64) {
            if let Some(channel) = Channel::decode(word) {
                prop_assert_eq!(Channel::decode(channel.encode()), Some(channel));
            }
        }
    }
}
