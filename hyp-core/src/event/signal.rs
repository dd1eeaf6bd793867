//! Pending, masked, selected: the bits by which a guest learns which channel has an event (two-level ABI).
//!
//! A port's *pending* bit stands in the shared-info page, as does its *mask* bit. An event sets the pending bit; if it wasn't set and the port
//! isn't masked, the bit for that word is set in the `evtchn_pending_sel` of the vCPU that is told, and then its upcall becomes
//! pending. All these words belong to the guest as well: it clears what it takes, and may write anything. That harms nobody
//! else, since nothing here goes by what they hold but whether to tell the guest.
//!
//! Every change is one atomic operation with the strongest ordering, because each side writes one bit and then looks at
//! another: an event (pending, then mask) against an unmasking guest (mask, then pending).

use core::sync::atomic::{AtomicU64, Ordering};

use super::channel::Port;
use crate::domain::Domain;
use crate::domain::vcpu::Vcpu;
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;

/// Ports a word.
const WORD_BITS: u16 = 64;
/// Which word of `vcpu_info` is `evtchn_pending_sel`.
const SELECTOR_WORD: usize = 1;

/// One bit of the shared-info page.
struct Bit<'a> {
    word: &'a AtomicU64,
    bit: u64,
}

impl Bit<'_> {
    fn is_set(&self) -> bool {
        self.word.load(Ordering::SeqCst) & self.bit != 0
    }

    /// Sets it; whether it was set before.
    fn set(&self) -> bool {
        self.word.fetch_or(self.bit, Ordering::SeqCst) & self.bit != 0
    }

    /// Clears it; whether it was set before.
    fn clear(&self) -> bool {
        self.word.fetch_and(!self.bit, Ordering::SeqCst) & self.bit != 0
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Makes a port of `domain` pending and tells vCPU `vcpu`. Under an event lock that keeps a channel which leads to the port: the domain's
    /// shared-info page stays until all such channels are closed.
    pub(crate) fn set_pending(&self, domain: &Domain<M>, port: Port, vcpu: u8) {
        let Some(pending) = self.bit(domain, M::SHARED_INFO.pending, port) else { return };
        if pending.set() {
            return;
        }
        let masked = self.bit(domain, M::SHARED_INFO.mask, port).is_none_or(|mask| mask.is_set());
        if let Some(vcpu) = domain.vcpus.get(usize::from(vcpu)).filter(|_| !masked) {
            self.select(vcpu, port);
        }
        self.wake_pollers(domain, port);
    }

    /// Unmasks a port of the domain that asks; a pending one is told again.
    pub(crate) fn unmask(&self, domain: &Domain<M>, port: Port, vcpu: u8) {
        let layout = M::SHARED_INFO;
        let was_masked = self.bit(domain, layout.mask, port).is_some_and(|mask| mask.clear());
        if was_masked
            && self.is_pending(domain, port)
            && let Some(vcpu) = domain.vcpus.get(usize::from(vcpu))
        {
            self.select(vcpu, port);
        }
    }

    /// Whether a port has an event.
    pub(crate) fn is_pending(&self, domain: &Domain<M>, port: Port) -> bool {
        self.bit(domain, M::SHARED_INFO.pending, port).is_some_and(|pending| pending.is_set())
    }

    /// A port that is closed has no event.
    pub(crate) fn clear_pending(&self, domain: &Domain<M>, port: Port) {
        if let Some(pending) = self.bit(domain, M::SHARED_INFO.pending, port) {
            pending.clear();
        }
    }

    /// Sets the selector's bit for the port's word, and makes the upcall pending if it wasn't set.
    fn select(&self, vcpu: &Vcpu<M>, port: Port) {
        let Some(word) = self.info_word(vcpu, SELECTOR_WORD) else { return };
        let bit = 1u64.checked_shl(u32::from(port.number() / WORD_BITS)).unwrap_or(0);
        if !(Bit { word, bit }).set() {
            self.make_upcall_pending(vcpu);
        }
    }

    /// Tells a vCPU that anything may be pending, after its `vcpu_info` has moved: nothing must get lost.
    pub(crate) fn select_all(&self, vcpu: &Vcpu<M>) {
        if let Some(word) = self.info_word(vcpu, SELECTOR_WORD) {
            word.store(u64::MAX, Ordering::SeqCst);
        }
        self.make_upcall_pending(vcpu);
    }

    fn bit<'a>(&'a self, domain: &Domain<M>, array: usize, port: Port) -> Option<Bit<'a>> {
        let index = (array / 8).checked_add(usize::from(port.number() / WORD_BITS))?;
        let word = self.machine.shared_word(domain.shared_info()?, index)?;
        Some(Bit { word, bit: 1u64.checked_shl(u32::from(port.number() % WORD_BITS))? })
    }
}
