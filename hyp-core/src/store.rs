//! A store in which there is nothing (`io/xs_wire.h`), for guests that wait for one when they start.
//!
//! Under Xen a daemon of the control domain keeps a tree of texts that all domains can ask for: the *store*. Penumbra has none. Linux does
//! without, but GRUB asks for its disks before anything else, and waits for the answer. So a domain whose kernel needs it has the
//! hypervisor at the other end of its store page, and whatever it asks for, there is no such entry.
//!
//! A request is 16 bytes of header and a text, which may come in pieces; the answer is a header with the same identity and the name of an
//! error. What a domain writes there are claims: lengths are bounded, the rings are read as the console's ([`Page`]). What is kept between
//! two looks is how much of a request is still to come.

use core::sync::atomic::{AtomicBool, Ordering};

use spin::Mutex;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::address::MachineFrame;
use crate::console::page::{Page, Place};
use crate::domain::Domain;
use crate::domain::vcpu::FrameSlot;
use crate::event::channel::{Channel, Kind, Port};
use crate::frame::{FrameError, FrameTable};
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;
use crate::paging::Budget;

/// Requests and answers (`struct xenstore_domain_interface`).
const REQUESTS: Place = Place { bytes: 0, size: 1024, indices: 2048 / 8 };
const ANSWERS: Place = Place { bytes: 1024, size: 1024, indices: 2056 / 8 };
/// The kind of an answer that names an error (`XS_ERROR`), and the error.
const ERROR: u32 = 16;
const NO_ENTRY: &[u8; 7] = b"ENOENT\0";
/// The longest text of a request (`XENSTORE_PAYLOAD_MAX`). Who writes of a longer one isn't answered any more.
const LONGEST: u32 = 4096;
/// Requests that are looked at for one event: more than the ring can hold.
const REQUESTS_AT_ONCE: usize = 80;
/// What a request costs of the budget.
const COST: u32 = 64;

/// `struct xsd_sockmsg`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    kind: u32,
    request: u32,
    transaction: u32,
    length: u32,
}

/// A request of which the header has come.
#[derive(Clone, Copy, Debug)]
struct Request {
    header: Header,
    /// Bytes of its text that haven't been taken yet.
    left: u32,
}

/// A domain's store.
pub(crate) struct Store {
    /// The store page, held as *writable*.
    page: FrameSlot,
    /// Whether the domain has written what can't be a request.
    broken: AtomicBool,
    /// The request that is on its way. The lock is held while the rings are moved; no other is taken under it.
    request: Mutex<Option<Request>>,
}

impl Store {
    pub const fn new() -> Self {
        Self { page: FrameSlot::new(), broken: AtomicBool::new(false), request: Mutex::new(None) }
    }

    /// A new life begins.
    pub fn begin(&self) {
        // Relaxed: the domain's life publishes it; and it is read and set under the lock.
        self.broken.store(false, Ordering::Relaxed);
        *self.request.lock() = None;
    }

    /// The store page, if the hypervisor is at its other end.
    pub fn page(&self) -> Option<MachineFrame> {
        self.page.get()
    }

    /// Gives the page back, once nobody looks at it any more.
    pub fn release<M: Machine>(&self, machine: &M, frames: &FrameTable) {
        let _request = self.request.lock();
        if let Some(page) = self.page.replace(None) {
            frames.put_use(page, machine);
        }
    }

    /// Takes requests and gives answers, as long as there is room for both; whether anything was moved.
    fn serve<M: Machine>(&self, machine: &M, budget: &Budget) -> bool {
        let mut request = self.request.lock();
        let Some(frame) = self.page().filter(|_| !self.broken.load(Ordering::Relaxed)) else { return false };
        let page = Page { memory: machine, frame };
        let mut moved = false;
        for _ in 0..REQUESTS_AT_ONCE {
            budget.charge(COST);
            let Some(now) = request.or_else(|| self.take_header(&page)) else { break };
            let left = now.left.saturating_sub(swallow(&page, now.left));
            moved = true;
            *request = Some(Request { left, ..now });
            if left != 0 || !answer(&page, now.header) {
                break;
            }
            *request = None;
        }
        moved
    }

    fn take_header<M: Machine>(&self, page: &Page<'_, M>) -> Option<Request> {
        let mut bytes = [0; size_of::<Header>()];
        if page.waiting(&REQUESTS) < bytes.len() || page.take(&REQUESTS, &mut bytes) < bytes.len() {
            return None;
        }
        let header = Header::read_from_bytes(&bytes).ok()?;
        if header.length > LONGEST {
            self.broken.store(true, Ordering::Relaxed);
            return None;
        }
        Some(Request { header, left: header.length })
    }
}

/// Takes up to so many bytes of a text; returns how many there were.
fn swallow<M: Machine>(page: &Page<'_, M>, left: u32) -> u32 {
    let mut bytes = [0; REQUESTS.size as usize];
    let room = bytes.get_mut(..(left as usize).min(REQUESTS.size as usize)).unwrap_or(&mut []);
    page.take(&REQUESTS, room) as u32
}

/// Says that there is no such entry, if there is room to say so.
fn answer<M: Machine>(page: &Page<'_, M>, request: Header) -> bool {
    let header = Header { kind: ERROR, length: NO_ENTRY.len() as u32, ..request };
    let mut bytes = [0; size_of::<Header>() + NO_ENTRY.len()];
    let parts = header.as_bytes().iter().chain(NO_ENTRY);
    bytes.iter_mut().zip(parts).for_each(|(slot, byte)| *slot = *byte);
    page.room(&ANSWERS) >= bytes.len() && page.give(&ANSWERS, &bytes) == bytes.len()
}

impl<M: Machine> Hypervisor<M> {
    /// Makes `page`, a frame of a domain under construction, its store page, with the hypervisor at the other end.
    ///
    /// # Errors
    /// The frame can't be held: it isn't the domain's, or is something else already.
    pub(crate) fn connect_store(&self, domain: &Domain<M>, page: MachineFrame) -> Result<(), FrameError> {
        self.frames.get_writable(page, domain.id(), &self.machine)?;
        domain.store.page.replace(Some(page));
        let _guard = domain.events.lock.lock();
        domain.events.channels.set(Port::STORE, Some(Channel { kind: Kind::Console, vcpu: 0 }));
        Ok(())
    }

    /// The domain has sent an event: what it asks its store for, if it has one, is answered.
    pub(crate) fn serve_store(&self, domain: &Domain<M>, budget: &Budget) {
        if domain.store.serve(&self.machine, budget) {
            let _guard = domain.events.lock.lock();
            if let Some(Channel { kind: Kind::Console, vcpu }) = domain.events.channels.get(Port::STORE) {
                self.set_pending(domain, Port::STORE, vcpu);
            }
        }
    }
}
