//! Pending, masked, selected: the bits by which a guest learns which channel has an event (two-level ABI).
//!
//! A port's *pending* bit stands in the shared-info page, as does its *mask* bit. An event sets the pending bit; if it wasn't set and the port
//! isn't masked, the bit for that word is set in the `evtchn_pending_sel` of the vCPU that is told, and then its upcall becomes
//! pending. All these words belong to the guest as well: it clears what it takes, and may write anything. That harms nobody
//! else, since nothing here goes by what they hold but whether to tell the guest.
//!
//! Every change is one atomic operation with the strongest ordering (`SeqCst`), because each side writes one bit and then looks at
//! another: an event (pending, then mask) against an unmasking guest (mask, then pending).

use core::sync::atomic::{AtomicU64, Ordering};

use super::channel::Port;
use crate::domain::Domain;
use crate::domain::vcpu::Vcpu;
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;

/// Ports a word.
const WORD_BITS: u16 = 64;

/// One bit of the shared-info page.
struct Bit<'a> {
    word: &'a AtomicU64,
    bit: u64,
}

/// Those of one port.
struct Bits<'a> {
    pending: Bit<'a>,
    mask: Bit<'a>,
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
        let Some(Bits { pending, mask }) = self.bits(domain, port) else { return };
        if pending.set() {
            return;
        }
        if let Some(vcpu) = domain.vcpus.get(usize::from(vcpu)).filter(|_| !mask.is_set()) {
            self.select(vcpu, port);
        }
        self.wake_pollers(domain, port);
    }

    /// Unmasks a port of the domain that asks; a pending one is told again.
    pub(crate) fn unmask(&self, domain: &Domain<M>, port: Port, vcpu: u8) {
        let Some(Bits { pending, mask }) = self.bits(domain, port) else { return };
        if mask.clear()
            && pending.is_set()
            && let Some(vcpu) = domain.vcpus.get(usize::from(vcpu))
        {
            self.select(vcpu, port);
        }
    }

    /// Whether a port has an event.
    pub(crate) fn is_pending(&self, domain: &Domain<M>, port: Port) -> bool {
        self.bits(domain, port).is_some_and(|bits| bits.pending.is_set())
    }

    /// A port that is closed has no event.
    pub(crate) fn clear_pending(&self, domain: &Domain<M>, port: Port) {
        if let Some(bits) = self.bits(domain, port) {
            bits.pending.clear();
        }
    }

    /// Sets the selector's bit for the port's word, and makes the upcall pending if it wasn't set.
    fn select(&self, vcpu: &Vcpu<M>, port: Port) {
        let Some((state, word)) = self.info_words(vcpu) else { return };
        // There are fewer words than a word has bits.
        let bit = 1u64.wrapping_shl(u32::from(port.number() / WORD_BITS));
        if !(Bit { word, bit }).set() {
            self.make_upcall_pending(vcpu, state);
        }
    }

    /// Tells a vCPU that anything may be pending, after its `vcpu_info` has moved: nothing must get lost.
    pub(crate) fn select_all(&self, vcpu: &Vcpu<M>) {
        if let Some((state, selector)) = self.info_words(vcpu) {
            selector.store(u64::MAX, Ordering::SeqCst);
            self.make_upcall_pending(vcpu, state);
        }
    }

    #[inline(always)]
    fn bits<'a>(&'a self, domain: &Domain<M>, port: Port) -> Option<Bits<'a>> {
        let word = usize::from(port.number() / WORD_BITS);
        let bit = 1u64.wrapping_shl(u32::from(port.number() % WORD_BITS));
        let indices =
            [M::SHARED_INFO.pending, M::SHARED_INFO.mask].map(|array| (array / 8).saturating_add(word));
        let [pending, mask] = self.machine.shared_words(domain.shared_info()?, indices)?;
        Some(Bits { pending: Bit { word: pending, bit }, mask: Bit { word: mask, bit } })
    }
}
