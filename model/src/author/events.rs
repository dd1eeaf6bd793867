//! Events: ports opened, connected, signalled and closed; masks and pending bits written by the guest itself.

use super::Author;
use crate::operation::Operation;
use crate::spec::DOMAINS;
use crate::spec::events::{Event, Kind};
use crate::spec::vcpus::VCPUS;

/// Ports that a domain has open before it rather closes one.
const MANY: usize = 12;
/// Words of the shared page in which pending bits stand, mask bits, and the first `vcpu_info`s.
const WORDS: [usize; 6] = [256, 256, 320, 320, 0, 9];

impl Author<'_> {
    /// What a domain does with events.
    pub(super) fn events(&mut self) -> Operation {
        let open = self.ports.of(self.domain).count();
        let port = self.port(self.domain);
        Operation::Event(match self.chance.u32(..24) {
            0 if self.one_in(8) => Event::Reset(self.named()),
            0..3 => Event::Close(port),
            _ if open > MANY => Event::Close(port),
            3..7 => {
                let remote = if self.one_in(10) { 0x7ff0 } else { self.chance.u16(..DOMAINS as u16) };
                Event::AllocUnbound { dom: self.named(), remote }
            }
            7..12 => self.bind(),
            12 => {
                let virq = if self.one_in(2) { self.chance.u32(..4) } else { self.chance.u32(..26) };
                Event::Virq { virq, vcpu: self.vcpu() }
            }
            13 => Event::Ipi { vcpu: self.vcpu() },
            14 => Event::Tell { port, vcpu: self.vcpu() },
            15..20 => Event::Send(port),
            20..22 => Event::Unmask(port),
            _ => {
                let index = WORDS[self.chance.usize(..WORDS.len())];
                let word = [0, 0, 1 << (port % 64), 1, !0][self.chance.usize(..5)];
                Event::Write { index, word }
            }
        })
    }

    /// Mostly an open one.
    fn port(&mut self, domain: usize) -> u32 {
        let open: Vec<_> = self.ports.of(domain).map(|(port, _)| port).collect();
        match open.is_empty() || self.one_in(12) {
            true => [0, 1, 5, 70, 1023, 1024, 0x1_0001][self.chance.usize(..7)],
            false => open[self.chance.usize(..open.len())],
        }
    }

    fn vcpu(&mut self) -> u32 {
        if self.one_in(12) { VCPUS as u32 } else { self.chance.u32(..VCPUS as u32) }
    }

    /// Connects to a port that waits for the domain, if there is one.
    fn bind(&mut self) -> Event {
        let start = self.chance.usize(..DOMAINS);
        for remote in (start..DOMAINS).chain(0..start) {
            if self.one_in(8) {
                continue;
            }
            let waits = Kind::Unbound(self.domain as u16);
            let waiting = self.ports.of(remote).find(|(_, channel)| channel.kind == waits);
            if let Some((port, _)) = waiting {
                return Event::Bind { remote: remote as u16, port };
            }
        }
        let port = self.port(start);
        Event::Bind { remote: start as u16, port }
    }
}
