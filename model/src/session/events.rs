//! Events, held against the specification: what is answered, what every port is, and what stands in the pages that guests share with the
//! hypervisor, bit by bit.

use std::collections::BTreeMap;

use hyp_core::event::channel::{Kind as CoreKind, Port as CorePort};
use penumbra_abi::event_channel::{
    self as abi, AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, Port, Reset,
};
use penumbra_abi::hypercall as call;
use zerocopy::IntoBytes;

use super::{Check, LIST, Session};
use crate::format::Hardware;
use crate::hardware::content::{WORDS, frame, slot};
use crate::operation::Operation;
use crate::spec::events::{Channel, Effect, Event, Kind};
use crate::spec::{DOMAINS, Life};

/// Where the arrays of pending and mask bits begin in the shared page, in words.
const PENDING: usize = 2048 / 8;
const MASK: usize = 2560 / 8;
/// Where the console page's `out_cons` and `out_prod` stand, as a word.
const OUTPUT_INDICES: usize = 3080 / 8;
/// Ports that are looked at after every step: more than a domain has open.
const LOOKED_AT: u32 = 48;

/// Words that are about to change: frame, index.
type Memory = BTreeMap<(usize, usize), u64>;

impl<F: Hardware> Session<F> {
    pub(super) fn event(&mut self, domain: usize, operation: &Operation, event: Event) -> Check {
        if let Event::Write { index, word } = event {
            // As by a mapping of its shared page that a guest has.
            if let Some(shared) = self.known.domains[domain].shared {
                self.machine().write_word(shared, index, word);
            }
            return Ok(());
        }
        let hooked = self.known.has_unhooked(domain);
        let mut ports = self.ports.clone();
        let foreseen = ports.carry_out(&self.known, domain, event);
        let mut memory = self.shared_memory();
        for effect in foreseen.iter().flat_map(|outcome| &outcome.effects) {
            match *effect {
                Effect::Console(domain, port, vcpu) => {
                    if self.foresee_console(&mut memory, domain) {
                        self.foresee_effect(&mut memory, Effect::Pending(domain, port, vcpu));
                    }
                }
                effect => self.foresee_effect(&mut memory, effect),
            }
        }
        let answer = self.insist(domain, operation)?;
        if hooked {
            self.learn();
        }
        let told = self.told_port(event);
        match (&foreseen, answer) {
            (Ok(outcome), Ok(0)) if outcome.port.is_none_or(|port| port == told) => self.ports = ports,
            (Err(errno), Err(found)) if *errno == found => {}
            _ => return Err(format!("{event:x?}: {answer:?}, port {told}; foreseen: {foreseen:?}")),
        }
        self.compare_memory(&memory)
    }

    /// Every word of the pages in which bits of events stand.
    fn shared_memory(&self) -> Memory {
        let domains = (0..DOMAINS).filter_map(|number| self.domain(number));
        let places = domains.flat_map(|domain| {
            let infos = domain.vcpus.iter().filter_map(|vcpu| Some(vcpu.info_place()?.0));
            domain.shared_info().into_iter().chain(infos)
        });
        let alive = self.known.domains.iter().filter(|domain| domain.life == Life::Alive);
        let consoles = alive.filter_map(|domain| Some(frame(domain.console?)));
        let pages = places.chain(consoles).filter_map(|frame| slot(frame.number()));
        let mut pages: Vec<_> = pages.collect();
        pages.sort_unstable();
        pages.dedup();
        let words = pages.into_iter().flat_map(|at| (0..WORDS).map(move |index| (at, index)));
        words.map(|(at, index)| ((at, index), self.machine().content.read(at, index))).collect()
    }

    fn compare_memory(&self, foreseen: &Memory) -> Check {
        for (&(at, index), &word) in foreseen {
            let stands = self.machine().content.read(at, index);
            if stands != word {
                let mfn = frame(at).number();
                return Err(format!(
                    "word {index} of mfn {mfn:#x}, which is shared, is {stands:#x}, not {word:#x}"
                ));
            }
        }
        Ok(())
    }

    /// All output of a domain is taken, if its console page's indices can be right; whether there was any.
    fn foresee_console(&self, memory: &mut Memory, domain: usize) -> bool {
        let console = self.known.domains[domain].console;
        let Some(indices) = console.and_then(|console| memory.get_mut(&(console, OUTPUT_INDICES))) else {
            return false;
        };
        let (consumed, produced) = (*indices as u32, (*indices >> 32) as u32);
        let waits = (1..=2048).contains(&produced.wrapping_sub(consumed));
        if waits {
            *indices = u64::from(produced) << 32 | u64::from(produced);
        }
        waits
    }

    /// What an event does: its pending bit, if that was clear and the port isn't masked the selector's bit of its word, and if that was clear
    /// the upcall.
    fn foresee_effect(&self, memory: &mut Memory, effect: Effect) {
        let (Effect::Pending(domain, port, _)
        | Effect::Clear(domain, port)
        | Effect::Console(domain, port, _)
        | Effect::Unmask(domain, port, _)) = effect;
        let Some(shared) = self.known.domains[domain].shared else { return };
        let (word, bit) = (port as usize / 64, 1u64 << (port % 64));
        let is_set = |memory: &Memory, array: usize| {
            memory.get(&(shared, array + word)).is_some_and(|word| word & bit != 0)
        };
        let (pending, masked) = (is_set(memory, PENDING), is_set(memory, MASK));
        let mut change = |array: usize, set: bool| {
            let word = memory.entry((shared, array + word)).or_default();
            *word = if set { *word | bit } else { *word & !bit };
        };
        match effect {
            // Another function's.
            Effect::Console(..) => {}
            Effect::Clear(..) => change(PENDING, false),
            Effect::Pending(_, _, vcpu) => {
                change(PENDING, true);
                if !pending && !masked {
                    self.foresee_told(memory, domain, vcpu, word);
                }
            }
            Effect::Unmask(_, _, vcpu) => {
                change(MASK, false);
                if masked && pending {
                    self.foresee_told(memory, domain, vcpu, word);
                }
            }
        }
    }

    fn foresee_told(&self, memory: &mut Memory, domain: usize, vcpu: u32, word: usize) {
        let place = self.domain(domain).and_then(|core| core.vcpus[vcpu as usize].info_place());
        let Some((at, offset)) = place else { return };
        let Some(at) = slot(at.number()) else { return };
        let selector = memory.entry((at, offset / 8 + 1)).or_default();
        let before = *selector;
        *selector |= 1 << word;
        if before >> word & 1 == 0 {
            *memory.entry((at, offset / 8)).or_default() |= 1;
        }
    }

    /// The port that the hypervisor has written into the structure.
    fn told_port(&self, event: Event) -> u32 {
        let at = match event {
            Event::AllocUnbound { .. } | Event::Ipi { .. } => 4,
            _ => 8,
        };
        let bytes = self.machine().bytes(LIST + at, 4);
        bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
    }

    /// Every port is what the specification says.
    pub(super) fn check_ports(&mut self) -> Check {
        for domain in 0..DOMAINS {
            let core = self.domain(domain);
            for port in 1..LOOKED_AT {
                let found = core.and_then(|core| core.channel(CorePort::new(port)?));
                let found = found.map(|channel| Channel {
                    kind: match channel.kind {
                        CoreKind::Unbound(to) => Kind::Unbound(to.number()),
                        CoreKind::Interdomain(to, port) => {
                            Kind::Interdomain(to.number(), u32::from(port.number()))
                        }
                        CoreKind::Virq(virq) => Kind::Virq(u32::from(virq)),
                        CoreKind::Ipi => Kind::Ipi,
                        CoreKind::Console => Kind::Console,
                    },
                    vcpu: u32::from(channel.vcpu),
                });
                self.ports.follow(&self.known, domain, port, found)?;
            }
        }
        let vacant = |domain: &usize| self.known.domains[*domain].life == Life::Vacant;
        match (0..DOMAINS).filter(vacant).find(|domain| !self.ports.is_forgotten(*domain)) {
            None => Ok(()),
            Some(domain) => Err(format!("d{domain} is gone, and a port still leads to it: {:?}", self.ports)),
        }
    }

    /// An operation on events as a hypercall.
    pub(super) fn encode_event(&self, event: Event) -> (u64, [u64; 6]) {
        let put = |bytes: &[u8]| self.machine().put(LIST, bytes);
        let on_port = |port| put(Port { port }.as_bytes());
        let (operation, at) = match event {
            Event::AllocUnbound { dom, remote } => {
                let request = AllocUnbound { dom, remote_dom: remote, port: 0 };
                (abi::EVTCHNOP_ALLOC_UNBOUND, put(request.as_bytes()))
            }
            Event::Bind { remote, port } => {
                let request =
                    BindInterdomain { remote_dom: remote, remote_port: port, ..BindInterdomain::default() };
                (abi::EVTCHNOP_BIND_INTERDOMAIN, put(request.as_bytes()))
            }
            Event::Virq { virq, vcpu } => {
                (abi::EVTCHNOP_BIND_VIRQ, put(BindVirq { virq, vcpu, port: 0 }.as_bytes()))
            }
            Event::Ipi { vcpu } => (abi::EVTCHNOP_BIND_IPI, put(BindIpi { vcpu, port: 0 }.as_bytes())),
            Event::Tell { port, vcpu } => (abi::EVTCHNOP_BIND_VCPU, put(BindVcpu { port, vcpu }.as_bytes())),
            Event::Send(port) => (abi::EVTCHNOP_SEND, on_port(port)),
            Event::Close(port) => (abi::EVTCHNOP_CLOSE, on_port(port)),
            Event::Unmask(port) => (abi::EVTCHNOP_UNMASK, on_port(port)),
            Event::Reset(dom) => (abi::EVTCHNOP_RESET, put(Reset { dom }.as_bytes())),
            Event::Write { .. } => unreachable!("no hypercall"),
        };
        (call::EVENT_CHANNEL_OP, [operation, at, 0, 0, 0, 0])
    }
}
