//! To whom typed bytes go: the first domain, another domain, or the hypervisor's own keys.
//!
//! `CTRL-a` three times goes on to the next in the round: the first domain, then each other domain that has shown that it uses its
//! console page, then the hypervisor, and the first domain again. When the one who has the input comes to an end, the next in the
//! round gets it.

use core::sync::atomic::{AtomicU16, Ordering};

use super::{ESCAPE, ESCAPE_COUNT};
use crate::address::DomainId;
use crate::domain::{Domain, Life};
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;
use penumbra_abi::event_channel::VIRQ_CONSOLE;

/// In [`Focus`]: the hypervisor. (No domain has this number.)
const HYPERVISOR: u16 = u16::MAX;

/// Who gets what is typed, in one atomic word: a domain's number, or [`HYPERVISOR`]. All zero at first: the first domain.
pub(super) struct Focus(AtomicU16);

impl Focus {
    pub const fn new() -> Self {
        Self(AtomicU16::new(0))
    }

    /// The domain; `None` is the hypervisor.
    pub fn get(&self) -> Option<DomainId> {
        // Relaxed, here and below: it says nothing of anything else. A byte that is typed while the input changes may go either way.
        let number = self.0.load(Ordering::Relaxed);
        (number != HYPERVISOR).then(|| DomainId::new(number))
    }

    fn set(&self, domain: Option<DomainId>) {
        self.0.store(domain.map_or(HYPERVISOR, DomainId::number), Ordering::Relaxed);
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Which domain gets what is typed; `None`: the hypervisor does.
    pub fn input_goes_to(&self) -> Option<DomainId> {
        self.console.focus.get()
    }

    /// One byte was typed on the serial line.
    pub fn console_input(&self, byte: u8) {
        let console = &self.console;
        if byte == ESCAPE {
            // Relaxed, here and below: keys come in on one CPU, and these words say nothing of anything else.
            let escapes = console.escapes.load(Ordering::Relaxed).saturating_add(1);
            console.escapes.store(escapes % ESCAPE_COUNT, Ordering::Relaxed);
            if escapes == ESCAPE_COUNT {
                self.move_focus(console.focus.get());
            }
            return;
        }
        // Fewer than three were meant for whoever reads the keys.
        let held_back = console.escapes.swap(0, Ordering::Relaxed);
        for _ in 0..held_back {
            self.deliver(ESCAPE);
        }
        self.deliver(byte);
    }

    /// Whether typed bytes go to this domain.
    pub(super) fn has_focus(&self, domain: DomainId) -> bool {
        self.input_goes_to() == Some(domain)
    }

    /// A domain comes to its end: somebody else gets the input, if it was the domain's.
    pub(crate) fn leave_focus(&self, domain: DomainId) {
        if self.has_focus(domain) {
            self.move_focus(Some(domain));
        }
    }

    /// The input goes on to the next in the round after `from` (`None`: the hypervisor).
    fn move_focus(&self, from: Option<DomainId>) {
        let next = self.next_focus(from);
        self.console.focus.set(next.map(Domain::id));
        match next {
            None => log::info!("input goes to the hypervisor (? for help); CTRL-a three times switches"),
            Some(domain) if domain.is_control() => {
                log::info!("input goes to the control domain; CTRL-a three times switches");
            }
            Some(domain) => {
                log::info!("input goes to {:?}; CTRL-a three times switches", domain.id());
                // A prompt that has waited for the end of its line.
                self.flush_output(domain);
            }
        }
    }

    /// The domain after `from` in the round; `None`: the hypervisor.
    fn next_focus(&self, from: Option<DomainId>) -> Option<&Domain<M>> {
        let first = from.map_or(0, |domain| usize::from(domain.number()).saturating_add(1));
        let takes_input = |domain: &&Domain<M>| {
            let has_console = domain.is_first() || domain.console.is_used();
            domain.life() == Life::Alive && has_console
        };
        self.domains.iter().skip(first).find(takes_input)
    }

    #[inline(never)]
    fn deliver(&self, byte: u8) {
        let Some(id) = self.console.focus.get() else { return self.key(byte) };
        let Some(domain) = self.domain(id).filter(|domain| domain.life() == Life::Alive) else { return };
        if !self.feed_console(domain, &[byte]) && domain.is_first() {
            self.raise_control_virq(VIRQ_CONSOLE);
            // A guest that hasn't bound the interrupt may wait for bytes all the same.
            self.wake(id);
        }
    }
}
