//! The console of a domain that has a console page ([`super::page`]), with the hypervisor as its other end.
//!
//! The builder gives the domain the page and a port, the other end of which is the hypervisor ([`Kind::Console`]). When the domain sends an
//! event there, all that waits in its output ring is shown before the hypercall returns: a guest whose ring is full does nothing but wait for
//! room. What is typed waits in the hypervisor ([`GuestConsole::input`]) and goes into the input ring as far as there is room. Whenever
//! bytes were moved either way, the port has an event.
//!
//! Until the domain has sent its first event it is taken for one that doesn't use the page: nothing is put there, and what is
//! typed stays where `console_io` finds it.
//!
//! **Locks.** `moving` is held while bytes are moved, so that two CPUs don't move the same ones, and while the page is given back. A
//! domain's output, the serial line and the waiting input are locked under it; the event lock isn't, and is taken afterwards.

use core::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use spin::Mutex;

use super::page::Page;
use super::ring::Ring;
use crate::address::MachineFrame;
use crate::domain::Domain;
use crate::domain::vcpu::FrameSlot;
use crate::event::channel::{Channel, Kind, Port};
use crate::frame::{FrameError, FrameTable};
use crate::hypervisor::Hypervisor;
use crate::machine::Machine;
use crate::paging::Budget;

/// What a byte of output costs of the budget: the serial line is slow.
pub(crate) const BYTE_COST: u32 = 16;
/// Bytes that are moved at a time.
const PIECE: usize = 128;
/// Typed bytes that wait for a domain; the oldest are forgotten when there are more.
const INPUT_SIZE: usize = 1024;

/// A domain's console.
pub(crate) struct GuestConsole {
    /// The console page, held as *writable*.
    page: FrameSlot,
    /// The port whose other end the hypervisor is, as the builder has opened it.
    port: AtomicU16,
    /// Whether the domain has sent an event there.
    used: AtomicBool,
    moving: Mutex<()>,
    /// What was typed and isn't yet where the domain can read it.
    input: Mutex<Ring<INPUT_SIZE>>,
    /// Whether something was typed, or is left by who has just read, that has ended no wait yet.
    news: AtomicBool,
}

impl GuestConsole {
    pub const fn new() -> Self {
        Self {
            page: FrameSlot::new(),
            port: AtomicU16::new(0),
            used: AtomicBool::new(false),
            moving: Mutex::new(()),
            input: Mutex::new(Ring::new()),
            news: AtomicBool::new(false),
        }
    }

    /// A new life begins.
    pub fn begin(&self) {
        self.used.store(false, Ordering::Relaxed);
        self.port.store(0, Ordering::Relaxed);
        self.input.lock().clear();
        self.news.store(false, Ordering::Relaxed);
    }

    /// The console page, if the domain has one.
    pub fn page(&self) -> Option<MachineFrame> {
        self.page.get()
    }

    /// Whether the domain has shown that it uses its console page.
    pub fn is_used(&self) -> bool {
        // Relaxed: written under the lock by which whoever moves bytes is ordered; for others it is a hint.
        self.used.load(Ordering::Relaxed)
    }

    /// Whether typed bytes that nobody has been told of wait for somebody to read them by `console_io`. They are told of now: a domain that
    /// doesn't read them may sleep the next time.
    pub fn take_news(&self) -> bool {
        // SeqCst, as below: whoever is about to sleep has said so before asking, and whoever types wakes the sleepers afterwards.
        !self.is_used() && self.news.swap(false, Ordering::SeqCst)
    }

    /// Takes typed bytes for `console_io`, as many as there are and `bytes` has room for; returns how many.
    pub fn read_typed(&self, bytes: &mut [u8]) -> usize {
        let mut input = self.input.lock();
        let read = input.pop(bytes);
        self.news.store(!input.is_empty(), Ordering::SeqCst);
        read
    }

    /// Takes the frame to be the domain's console page: held as *writable*, so that it never becomes a table.
    fn hold<M: Machine>(
        &self,
        domain: &Domain<M>,
        frame: MachineFrame,
        machine: &M,
        frames: &FrameTable,
    ) -> Result<(), FrameError> {
        frames.get_writable(frame, domain.id(), machine)?;
        self.page.replace(Some(frame));
        Ok(())
    }

    /// Gives the page back, once nobody moves bytes there any more.
    pub fn release<M: Machine>(&self, machine: &M, frames: &FrameTable) {
        let _moving = self.moving.lock();
        if let Some(page) = self.page.replace(None) {
            frames.put_use(page, machine);
        }
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Makes `page`, a frame of a domain under construction, its console page, and opens the port that goes with it.
    ///
    /// # Errors
    /// The frame can't be held: it isn't the domain's, or is something else already.
    pub(crate) fn connect_console(
        &self,
        domain: &Domain<M>,
        page: MachineFrame,
        port: Port,
    ) -> Result<(), FrameError> {
        domain.console.hold(domain, page, &self.machine, &self.frames)?;
        let _guard = domain.events.lock.lock();
        domain.events.channels.set(port, Some(Channel { kind: Kind::Console, vcpu: 0 }));
        // Relaxed: the domain's life publishes it.
        domain.console.port.store(port.number(), Ordering::Relaxed);
        Ok(())
    }

    /// The domain has sent an event to its console: what it has written is shown, and it gets what was typed. `false`: the budget is
    /// spent, and more waits.
    pub(crate) fn serve_console(&self, domain: &Domain<M>, budget: &Budget) -> bool {
        let console = &domain.console;
        let (shown, finished, given);
        {
            let _moving = console.moving.lock();
            let Some(frame) = console.page() else { return true };
            let page = Page { memory: &self.machine, frame };
            console.used.store(true, Ordering::Relaxed);
            given = move_input(console, &page);
            (shown, finished) = self.show_output(domain, &page, budget);
        }
        if shown || given {
            self.raise_console(domain);
        }
        finished
    }

    /// Shows what waits in the output ring, as far as the budget goes. Whether that was anything, and whether that was all.
    fn show_output(&self, domain: &Domain<M>, page: &Page<'_, M>, budget: &Budget) -> (bool, bool) {
        let mut bytes = [0; PIECE];
        let mut shown = false;
        while !budget.is_spent() {
            let count = page.take_output(&mut bytes);
            if count == 0 {
                return (shown, true);
            }
            budget.charge(BYTE_COST.saturating_mul(count as u32));
            self.domain_output(domain, bytes.get(..count).unwrap_or(&[]));
            shown = true;
        }
        (shown, !page.has_output())
    }

    /// Something was typed for the domain. Whether it uses its console page; if not, what was typed waits to be read in another way.
    pub(crate) fn feed_console(&self, domain: &Domain<M>, bytes: &[u8]) -> bool {
        let console = &domain.console;
        {
            let mut input = console.input.lock();
            input.push(bytes);
            console.news.store(true, Ordering::SeqCst);
        }
        let given = {
            // The domain's first event is seen here, or else what has just been pushed is seen there.
            let _moving = console.moving.lock();
            let Some(frame) = console.page().filter(|_| console.is_used()) else { return false };
            move_input(console, &Page { memory: &self.machine, frame })
        };
        if given {
            self.raise_console(domain);
        }
        true
    }

    /// Tells the domain that bytes were moved, unless it has closed the port.
    #[inline(never)]
    fn raise_console(&self, domain: &Domain<M>) {
        let _guard = domain.events.lock.lock();
        let port = Port::new(domain.console.port.load(Ordering::Relaxed).into());
        let Some(port) = port else { return };
        if let Some(Channel { kind: Kind::Console, vcpu }) = domain.events.channels.get(port) {
            self.set_pending(domain, port, vcpu);
        }
    }
}

/// Moves what was typed into the domain's input ring, as far as there is room; whether that was anything. Under the lock.
fn move_input<M: Machine>(console: &GuestConsole, page: &Page<'_, M>) -> bool {
    let mut input = console.input.lock();
    let mut moved = false;
    let mut bytes = [0; PIECE];
    // As many pieces as the whole of what waits could be.
    for _ in 0..INPUT_SIZE / PIECE {
        let room = page.input_room().min(PIECE);
        let count = input.peek(bytes.get_mut(..room).unwrap_or(&mut []));
        let given = page.give_input(bytes.get(..count).unwrap_or(&[]));
        input.forget(given);
        if given == 0 {
            break;
        }
        moved = true;
    }
    moved
}
