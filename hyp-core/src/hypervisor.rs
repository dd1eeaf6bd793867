//! The hypervisor itself: everything the core keeps, and how a machine is set going.
//!
//! There is one [`Hypervisor`], a `static` of the backend, all zeros at first. The backend gives it memory
//! ([`Hypervisor::initialise`]) and the boot modules ([`crate::boot`]); after that it is driven by traps.

use core::fmt;
use core::ops::Range;

use penumbra_abi::event_channel::VIRQ_DOM_EXC;
use penumbra_abi::version::XEN_COMMANDLINE_LEN;
use spin::{Mutex, MutexGuard};

use crate::address::{DomainId, MachineFrame};
use crate::console::Console;
use crate::domain::builder::P2mDirectory;
use crate::domain::vcpu::{RunState, Vcpu};
use crate::domain::{Domain, Life, MAX_DOMAINS};
use crate::frame::{BootMemory, FrameTable, Memory};
use crate::grant::table::Place;
use crate::grant::{GrantTable, Lent, MapTrack, Pins};
use crate::hypercall::Chunk;
use crate::machine::{Context, FlushScope, Machine};
use crate::paging::TableState;
use crate::paging::audit::{Holders, Ledger, Report, audit};
use crate::sched::Scheduler;
use crate::stretch::Stretches;
use crate::time::Earliest;

/// Mappings by grant that are undone for a dead domain in one step.
const PINS_A_STEP: usize = 128;
/// Everything the core keeps.
pub struct Hypervisor<M: Machine> {
    pub(crate) machine: M,
    pub(crate) frames: FrameTable,
    pub(crate) domains: [Domain<M>; MAX_DOMAINS],
    pub(crate) console: Console,
    /// As the boot loader gave it, cut off where it is too long; zeros behind it, one at least.
    pub(crate) command_line: Mutex<[u8; XEN_COMMANDLINE_LEN]>,
    pub(crate) scheduler: Scheduler,
    pub(crate) earliest: Earliest,
    pub(crate) p2m_directory: Mutex<P2mDirectory>,
    /// The chunk of memory that is being exchanged.
    pub(crate) exchange: Mutex<Chunk>,
    pub(crate) stretches: Stretches,
    ledger: Mutex<Ledger>,
}

impl<M: Machine> Hypervisor<M> {
    /// A hypervisor without memory and without domains: all zeros, apart from `machine`.
    pub const fn new(machine: M) -> Self {
        Self {
            machine,
            frames: FrameTable::new(),
            domains: [const { Domain::new() }; MAX_DOMAINS],
            console: Console::new(),
            command_line: Mutex::new([0; XEN_COMMANDLINE_LEN]),
            scheduler: Scheduler::new(),
            earliest: Earliest::new(),
            p2m_directory: Mutex::new(P2mDirectory::new()),
            exchange: Mutex::new(Chunk::new()),
            stretches: Stretches::new(),
            ledger: Mutex::new(Ledger::new()),
        }
    }

    /// Takes over the backend's arrays. What `boot` has not given away becomes free memory. Once, before anything else.
    pub fn initialise(&self, memory: Memory, boot: &BootMemory) {
        self.frames.initialise(memory, boot, M::INVALID_M2P_ENTRY);
    }

    /// Makes memory free that was in use during boot: whole frames within the bytes `start..end` (machine addresses).
    pub fn release_boot_memory(&self, start: u64, end: u64) {
        self.frames.release_boot_memory(start, end);
    }

    /// The machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// All frames.
    pub fn frames(&self) -> &FrameTable {
        &self.frames
    }

    /// Takes memory for use during boot, as [`FrameTable::take_boot_memory`].
    pub fn take_boot_memory(&self, bytes: u64) -> Option<Range<u64>> {
        self.frames.take_boot_memory(bytes)
    }

    /// Time spent on scrubbing so far, in [`crate::machine::Board::ticks`].
    pub fn scrub_ticks(&self) -> u64 {
        self.frames.scrub_ticks()
    }

    /// The domain with this number, if there is one.
    pub fn domain(&self, id: DomainId) -> Option<&Domain<M>> {
        self.domains.get(usize::from(id.number())).filter(|domain| domain.is_present())
    }

    /// Keeps the hypervisor's own command line for the control domain to read.
    pub(crate) fn keep_command_line(&self, line: &str) {
        let mut kept = self.command_line.lock();
        for (slot, byte) in kept.iter_mut().take(XEN_COMMANDLINE_LEN.saturating_sub(1)).zip(line.bytes()) {
            *slot = byte;
        }
    }

    /// The domain of a vCPU dies, through its own fault: `reason` says in a few words which.
    pub fn kill(&self, vcpu: &Vcpu<M>, reason: fmt::Arguments<'_>) {
        let Some(domain) = self.domain(vcpu.domain_id()) else { return };
        log::error!("{:?} vcpu {} crashed: {reason}", domain.id(), vcpu.index());
        log::info!("{}", Registers::<M>(vcpu.context()));
        self.end_domain(domain);
        if domain.is_first() {
            let role = if domain.is_control() { "control" } else { "first" };
            log::error!("the {role} domain has crashed: the machine stops");
            self.machine.power_off();
        }
    }

    /// Stops a domain for good; its memory comes back bit by bit.
    pub(crate) fn end_domain(&self, domain: &Domain<M>) {
        if domain.change_life(Life::Alive, Life::Dying) {
            for vcpu in &domain.vcpus {
                vcpu.set_state(RunState::Offline);
                vcpu.timers.stop();
            }
            if !domain.is_control() {
                self.raise_control_virq(VIRQ_DOM_EXC);
            }
            self.flush_output(domain);
            self.leave_focus(domain.id());
            self.scheduler.want();
        }
    }

    /// Whether a domain has a frame mapped by a grant, with exactly these rights, at an address of its own.
    pub fn has_borrowed(&self, borrower: DomainId, frame: MachineFrame, writable: bool) -> bool {
        let Some(domain) = self.domain(borrower) else { return false };
        domain.grants.maps.lock().has(frame, writable)
    }

    /// Gives back the pin that a mapping by grant stands for; says whether that freed the frame. The lender may be dying, but its
    /// number can't have been given to another domain, since the frame is still its own.
    pub(crate) fn unpin(&self, lent: &Lent) -> bool {
        let Some(lender) = self.domain(lent.lender) else { return false };
        let place = Place { machine: &self.machine, frames: &self.frames, lender: lent.lender };
        lender.grants.table.lock().unpin(&place, lent.reference, lent.writable)
    }

    /// Gives back the pins of a domain that has died, some of them; `true` when there are no more.
    pub(crate) fn release_borrowed(&self, borrower: &Domain<M>) -> bool {
        let mut maps = borrower.grants.maps.lock();
        // It doesn't run any more, but what its last CPU has cached might still be there.
        self.machine.flush(FlushScope::Everything);
        for _ in 0..PINS_A_STEP {
            let Some(lent) = maps.take_any() else { return true };
            self.unpin(&lent);
        }
        false
    }

    /// Locks something of each domain, in the order of their numbers.
    fn lock_all<'a, T>(&'a self, lock: impl Fn(&'a Domain<M>) -> MutexGuard<'a, T>) -> All<'a, T> {
        // The array has exactly this length, so there is always one.
        core::array::from_fn(|index| self.domains.get(index).map(&lock))
    }

    /// Recounts every reference from the tables themselves (see [`crate::paging::audit`]).
    pub fn audit(&self) -> Report {
        let holders = AllHolders {
            hypervisor: self,
            maps: self.lock_all(|domain| domain.grants.maps.lock()),
            lent: self.lock_all(|domain| domain.grants.table.lock()),
            states: self.lock_all(|domain| domain.tables.lock()),
        };
        audit(&self.machine, &self.frames, &holders, &mut self.ledger.lock())
    }
}

/// One lock of each domain.
type All<'a, T> = [Option<MutexGuard<'a, T>>; MAX_DOMAINS];

/// Shows a context in the log.
struct Registers<'a, M: Machine>(&'a M::Context);

impl<M: Machine> fmt::Display for Registers<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe(f)
    }
}

/// Who holds frames besides tables, read under all locks.
struct AllHolders<'a, M: Machine> {
    hypervisor: &'a Hypervisor<M>,
    maps: All<'a, MapTrack>,
    lent: All<'a, GrantTable>,
    states: All<'a, TableState>,
}

impl<M: Machine> AllHolders<'_, M> {
    /// What all domains have borrowed, with the borrower.
    fn borrowed(&self) -> impl Iterator<Item = (DomainId, Lent)> {
        let numbered = (0u16..).map(DomainId::new).zip(&self.maps);
        numbered
            .flat_map(|(id, maps)| maps.iter().flat_map(move |maps| maps.iter().map(move |lent| (id, lent))))
    }

    /// Whether the pins of a lender's entries are those of the mappings that there are.
    fn pins_agree(&self, lender: DomainId, table: &GrantTable) -> bool {
        let count = |pin: &Pins, writable: bool| {
            let maps = self.maps.get(usize::from(pin.borrower.number())).and_then(Option::as_ref);
            let wanted = (lender, pin.reference, pin.frame, writable);
            let all = maps.into_iter().flat_map(|maps| maps.iter());
            all.filter(|lent| (lent.lender, lent.reference, lent.frame, lent.writable) == wanted).count()
        };
        let agrees = |pin: Pins| {
            count(&pin, false) == pin.readers as usize && count(&pin, true) == pin.writers as usize
        };
        let pinned: u64 =
            table.pins().map(|pin| u64::from(pin.readers).saturating_add(u64::from(pin.writers))).sum();
        let mapped = self.borrowed().filter(|(_, lent)| lent.lender == lender).count();
        mapped as u64 == pinned && table.pins().all(agrees)
    }
}

impl<M: Machine> Holders for AllHolders<'_, M> {
    fn for_each_root(&self, visit: &mut dyn FnMut(MachineFrame)) {
        for vcpu in self.hypervisor.domains.iter().flat_map(|domain| &domain.vcpus) {
            for root in [vcpu.kernel_root(), vcpu.user_root()].into_iter().flatten() {
                visit(root);
            }
        }
    }

    fn for_each_unfinished(&self, visit: &mut dyn FnMut(&TableState)) {
        for state in self.states.iter().flatten() {
            visit(state);
        }
    }

    fn for_each_shared(&self, visit: &mut dyn FnMut(MachineFrame)) {
        let pages = |domain: &Domain<M>| [domain.shared_info(), domain.console_page(), domain.store_page()];
        for frame in self.hypervisor.domains.iter().flat_map(pages).flatten() {
            visit(frame);
        }
        for vcpu in self.hypervisor.domains.iter().flat_map(|domain| &domain.vcpus) {
            vcpu.registered_info().into_iter().for_each(&mut *visit);
        }
        for frame in self.lent.iter().flatten().flat_map(|table| table.shared()) {
            visit(frame);
        }
    }

    fn for_each_pin(&self, visit: &mut dyn FnMut(MachineFrame, bool)) {
        for (_, lent) in self.borrowed() {
            visit(lent.frame, lent.writable);
        }
    }

    fn for_each_odd_lender(&self, visit: &mut dyn FnMut(DomainId)) {
        for (id, table) in (0u16..).map(DomainId::new).zip(&self.lent) {
            if table.as_ref().is_some_and(|table| !self.pins_agree(id, table)) {
                visit(id);
            }
        }
    }

    fn has_borrowed(&self, domain: DomainId, frame: MachineFrame, writable: bool) -> bool {
        let maps = self.maps.get(usize::from(domain.number())).and_then(Option::as_ref);
        maps.is_some_and(|maps| maps.has(frame, writable))
    }

    fn for_each_descriptor_page(&self, visit: &mut dyn FnMut(MachineFrame)) {
        for vcpu in self.hypervisor.domains.iter().flat_map(|domain| &domain.vcpus) {
            vcpu.context().for_each_descriptor_page(visit);
        }
    }

    fn exists(&self, domain: DomainId) -> bool {
        self.hypervisor.domain(domain).is_some()
    }

    fn may_map(&self, domain: DomainId, owner: DomainId) -> bool {
        domain == owner || self.hypervisor.domain(domain).is_some_and(Domain::is_control)
    }
}
