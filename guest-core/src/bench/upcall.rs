//! An event that the kernel sends to itself: the hypercall, the upcall that it causes, and the way back.
//!
//! The handler is the architecture's, and as short as can be: it clears what says that an event is pending, in the first words of
//! each array, since no port has a higher number here; it counts; and it goes back.

use super::meter;
use crate::architecture::{Architecture, PAGE_SHIFT};
use crate::guest::Guest;
use crate::hypercalls::{address_of, address_of_mut, call, update_va_mapping};
use core::sync::atomic::{AtomicU64, Ordering};
use penumbra_abi::event_channel::{BindIpi, EVTCHNOP_BIND_IPI, EVTCHNOP_CLOSE, EVTCHNOP_SEND, Port};
use penumbra_abi::{Errno, hypercall as number};

/// Where the shared-info page is mapped, for the handler.
pub static SHARED_INFO: AtomicU64 = AtomicU64::new(0);
/// How many upcalls came: the handler counts.
pub static UPCALLS: AtomicU64 = AtomicU64::new(0);

/// An architecture's handler.
pub struct Handler {
    /// Makes it the one that is called for events, which are masked; says why it can't.
    pub install: fn() -> Result<(), Errno>,
    /// Keeps upcalls from this vCPU, or lets them through; the first argument says where the shared-info page is mapped.
    pub mask: fn(u64, bool),
    /// Makes the usual one the handler again.
    pub remove: fn(),
}

/// Sends `count` events; each must have come before the next one is sent. Units of the counter for all of them.
///
/// # Errors
/// The first that a hypercall comes to.
pub fn send_to_itself<A: Architecture>(
    guest: &Guest<A>,
    count: u64,
    handler: &Handler,
) -> Result<u64, Errno> {
    let window = guest.pages.allocate().ok_or(Errno::ENOMEM)?;
    let address = guest.address(&window);
    update_va_mapping::<A>(address, A::leaf(guest.info.shared_info >> PAGE_SHIFT, true))?;
    SHARED_INFO.store(address, Ordering::Relaxed);
    let result = with_port::<A>(address, count, handler);
    update_va_mapping::<A>(address, A::leaf(guest.frame(&window), true))?;
    guest.pages.free(window);
    result
}

fn with_port<A: Architecture>(shared_info: u64, count: u64, handler: &Handler) -> Result<u64, Errno> {
    let mut bind = BindIpi::default();
    call::<A>(number::EVENT_CHANNEL_OP, &[EVTCHNOP_BIND_IPI, address_of_mut(&mut bind)])?;
    let port = Port { port: core::hint::black_box(bind).port };
    (handler.install)()?;
    (handler.mask)(shared_info, false);
    let result = send::<A>(&port, count);
    (handler.mask)(shared_info, true);
    (handler.remove)();
    call::<A>(number::EVENT_CHANNEL_OP, &[EVTCHNOP_CLOSE, address_of(&port)])?;
    result
}

fn send<A: Architecture>(port: &Port, count: u64) -> Result<u64, Errno> {
    let arguments = [EVTCHNOP_SEND, address_of(port), 0, 0, 0, 0];
    let mut action = |issue: meter::Issue, _| issue(number::EVENT_CHANNEL_OP, arguments);
    UPCALLS.store(0, Ordering::Relaxed);
    let with = meter::timed::<A>(A::hypercall, count, &mut action)?;
    // Fewer upcalls than events would be another operation.
    if UPCALLS.load(Ordering::Relaxed) != count {
        return Err(Errno::EAGAIN);
    }
    Ok(with.saturating_sub(meter::timed::<A>(A::no_hypercall, count, &mut action)?))
}
