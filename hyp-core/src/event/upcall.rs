//! The upcall: how a vCPU learns that events are pending.
//!
//! Each vCPU has a `vcpu_info` (`xen.h`), memory that it shares with the hypervisor. A pending event sets `evtchn_upcall_pending`
//! there; the backend, on its way to the guest, sees it and makes the guest take its event handler, unless the guest has
//! masked events (x86: `evtchn_upcall_mask` beside it; AArch64: PSTATE.I).
//!
//! To look at `vcpu_info` on each way out costs more than the way out itself, so every vCPU has a *hint*: true if the
//! hypervisor has made an event pending that may not have been taken. The hint errs on the side of true. It doesn't hear of what a
//! guest writes into its `vcpu_info` by itself: a guest that sets `evtchn_upcall_pending` (as Linux does when it unmasks a channel that is
//! pending) then asks for its upcall by a hypercall or by returning from a handler, and there a backend looks at `vcpu_info` itself
//! ([`Hypervisor::upcall_due`]).

use core::sync::atomic::{AtomicU64, Ordering};

use crate::address::{MachineAddress, MachineFrame};
use crate::domain::vcpu::Vcpu;
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;

/// In the first word of `vcpu_info`: `evtchn_upcall_pending`, a byte.
pub const PENDING: u64 = 0xff;
/// What the hypervisor sets in [`PENDING`].
const PENDING_ONE: u64 = 1;
/// Which word of `vcpu_info` is `evtchn_pending_sel`.
const SELECTOR_WORD: usize = 1;
/// In the first word of `vcpu_info`: `evtchn_upcall_mask`, a byte, where the architecture has it.
pub const MASK: u64 = 0xff00;
/// What the hypervisor sets in [`MASK`].
pub const MASK_ONE: u64 = 0x100;

/// Where a `vcpu_info` lies, in one atomic word. Zero is nowhere.
pub(crate) struct InfoSlot(AtomicU64);

impl InfoSlot {
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The frame, and the offset in it (bytes).
    pub fn get(&self) -> Option<(MachineFrame, usize)> {
        // Acquire and release: who reads the slot sees what was written to `vcpu_info` before it came to be used.
        let address = MachineAddress::new(self.0.load(Ordering::Acquire).checked_sub(1)?)?;
        Some((MachineFrame::containing(address), address.offset_in_frame()))
    }

    pub fn set(&self, place: Option<(MachineFrame, usize)>) {
        let word = place.map_or(0, |(frame, offset)| {
            frame.start().bytes().saturating_add(offset as u64).saturating_add(1)
        });
        self.0.store(word, Ordering::Release);
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Whether the vCPU is to take its event handler now: an event is pending and, where the mask stands in `vcpu_info`, not
    /// masked. Forgets the hint of [`Vcpu::upcall_wanted`] if nothing is pending.
    pub fn upcall_due(&self, vcpu: &Vcpu<M>) -> bool {
        let Some(word) = self.info_word(vcpu, 0) else { return false };
        // SeqCst here and in `make_upcall_pending`: either this sees the event that has just become pending, or the
        // other side sets the hint after it was forgotten here.
        let mut state = word.load(Ordering::SeqCst);
        if state & PENDING == 0 {
            vcpu.set_upcall_wanted(false);
            state = word.load(Ordering::SeqCst);
            if state & PENDING != 0 {
                vcpu.set_upcall_wanted(true);
            }
        }
        state & PENDING != 0 && (state & MASK == 0 || !M::SHARED_INFO.has_upcall_mask)
    }

    /// Sets `evtchn_upcall_pending` in `state`, the vCPU's word of it, and wakes the vCPU if it waits for events.
    pub(super) fn make_upcall_pending(&self, vcpu: &Vcpu<M>, state: &AtomicU64) {
        state.fetch_or(PENDING_ONE, Ordering::SeqCst);
        vcpu.set_upcall_wanted(true);
        self.wake_vcpu(vcpu);
    }

    /// The first two words of the vCPU's `vcpu_info`: that with [`PENDING`] and [`MASK`], and `evtchn_pending_sel`.
    #[inline(always)]
    pub(super) fn info_words(&self, vcpu: &Vcpu<M>) -> Option<(&AtomicU64, &AtomicU64)> {
        let (frame, offset) = vcpu.info_place()?;
        let state = offset / 8;
        self.machine.shared_words(frame, [state, state.saturating_add(SELECTOR_WORD)]).map(Into::into)
    }

    /// Word number `index` of the vCPU's `vcpu_info`.
    pub(crate) fn info_word(&self, vcpu: &Vcpu<M>, index: usize) -> Option<&AtomicU64> {
        let (frame, offset) = vcpu.info_place()?;
        self.machine.shared_word(frame, (offset / 8).saturating_add(index))
    }
}
