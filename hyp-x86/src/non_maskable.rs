//! Non-maskable interrupts of guests: one vCPU sends them to another (`VCPUOP_send_nmi`), be its events masked or not. Linux has all
//! processors tell their stacks so.
//!
//! As in Xen, the callback is the handler of vector 2, and none of them comes while one is being handled: that is until the `iret` hypercall.
//! One that comes meanwhile waits; more than one are one. Without a handler, it is lost.

use core::cell::Cell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, Ordering};

/// Their vector.
pub const VECTOR: u64 = 2;

/// A vCPU's.
#[repr(C)]
pub struct NonMaskable {
    /// One is being handled.
    handled: Cell<bool>,
    /// One is to come. Whoever sends it may be another CPU.
    pending: AtomicBool,
}

impl NonMaskable {
    /// Offset of what says that one is being handled, a byte: for `short.s`.
    pub const HANDLED: usize = offset_of!(Self, handled);

    /// None is to come, and none is being handled.
    pub fn clear(&self) {
        // Relaxed, as in all of these: who sends one asks for a new choice of who runs, which orders what comes before it.
        self.pending.store(false, Ordering::Relaxed);
        self.handled.set(false);
    }

    /// Sends one.
    pub fn send(&self) {
        // Relaxed: as above.
        self.pending.store(true, Ordering::Relaxed);
    }

    /// Whether one can come now.
    pub fn is_due(&self) -> bool {
        // Relaxed: as above.
        self.pending.load(Ordering::Relaxed) && !self.handled.get()
    }

    /// The one that is due goes, to a handler or without one.
    pub fn take(&self, handled: bool) {
        // Relaxed: as above.
        self.pending.store(false, Ordering::Relaxed);
        self.handled.set(handled);
    }

    /// Whether one is being handled.
    #[inline(always)]
    pub fn is_handled(&self) -> bool {
        self.handled.get()
    }

    /// It no longer is; whether another has waited for that.
    pub fn end(&self) -> bool {
        self.handled.set(false);
        self.is_due()
    }
}
