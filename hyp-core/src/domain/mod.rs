//! Domains: what they have, and how they come and go.
//!
//! Domains live in a fixed table; a domain's number is its place there. Its life goes one way: *vacant*, *building*
//! ([`builder`]), *alive*, *dying* ([`teardown`]), and vacant again once its last frame is back. Nothing that belongs to a domain is
//! found except through this table and the frame table.
//!
//! Lock order, from the first to be taken to the last: the chunk of an exchange; the builder's P2M directory; a domain's tear-down;
//! a borrower's mappings by grant; a lender's grant table; a domain's tables (only the auditor holds several of a kind, in the
//! order of the domains' numbers); the auditor's ledger; domains' event
//! locks (two at most, in the order of the domains' numbers); a vCPU's account of time; a domain's memory map; the moving of a domain's console bytes; a domain's output; what was typed for it; the console's
//! serial line and log, and the map of free frames, none of which is held while another lock is taken. Guest memory may be read and written under the table lock, so
//! no backend takes that lock to do so.

pub mod builder;
pub mod image;
pub mod layout;
pub mod notes;
pub mod plan;
mod sections;
pub mod teardown;
pub mod unpacker;
pub mod vcpu;

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use spin::{Mutex, MutexGuard};

use crate::address::{DomainId, MachineFrame};
use crate::console::guest::GuestConsole;
use crate::console::line::LineBuffer;
use crate::event::Events;
use crate::event::channel::{Channel, Port};
use crate::frame::FrameTable;
use crate::frame::extent::Wanted;
use crate::grant::Grants;
use crate::hypercall::StoredMap;
use crate::machine::Machine;
use crate::paging::{Budget, TableSpace, TableState};
use crate::store::Store;
use vcpu::{FrameSlot, RunState, Vcpu};

/// Domains there can be.
pub const MAX_DOMAINS: usize = crate::frame::table::OWNERS;
/// vCPUs a domain can have.
pub const MAX_VCPUS: usize = 8;

/// Where a domain is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Life {
    /// There is no such domain.
    Vacant = 0,
    /// Its memory is being filled.
    Building = 1,
    /// It runs, or could.
    Alive = 2,
    /// It is being torn down.
    Dying = 3,
}

impl Life {
    const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Building,
            2 => Self::Alive,
            3 => Self::Dying,
            _ => Self::Vacant,
        }
    }
}

/// One domain.
pub struct Domain<M: Machine> {
    number: AtomicU16,
    life: AtomicU8,
    control: AtomicBool,
    /// Frames it may have.
    max_pages: AtomicU64,
    /// Nanoseconds for which its vCPUs have had a CPU.
    cpu_time: AtomicU64,
    /// Kinds of assistance that it has switched on, one bit each.
    assists: AtomicU64,
    /// Its pseudo-physical memory map, if one was set.
    pub(crate) memory_map: Mutex<StoredMap>,
    shared_info: FrameSlot,
    /// How many of its vCPUs it may use: the first ones.
    vcpu_count: AtomicU8,
    pub(crate) events: Events,
    /// What it lends to other domains, and what it has borrowed.
    pub grants: Grants,
    /// The table lock: whoever changes the domain's tables holds it.
    pub tables: Mutex<TableState>,
    /// How many of its tables are unhooked.
    unhooked: AtomicU32,
    /// Its virtual CPUs.
    pub vcpus: [Vcpu<M>; MAX_VCPUS],
    /// What it has written of a line that isn't whole yet.
    pub(crate) output: Mutex<LineBuffer>,
    pub(crate) console: GuestConsole,
    pub(crate) store: Store,
    pub(crate) teardown: Mutex<teardown::Teardown>,
}

impl<M: Machine> Domain<M> {
    pub(crate) const fn new() -> Self {
        Self {
            number: AtomicU16::new(0),
            life: AtomicU8::new(0),
            control: AtomicBool::new(false),
            max_pages: AtomicU64::new(0),
            cpu_time: AtomicU64::new(0),
            assists: AtomicU64::new(0),
            memory_map: Mutex::new(StoredMap::new()),
            shared_info: FrameSlot::new(),
            vcpu_count: AtomicU8::new(0),
            events: Events::new(),
            grants: Grants::new(),
            tables: Mutex::new(TableState::new()),
            unhooked: AtomicU32::new(0),
            vcpus: [const { Vcpu::new() }; MAX_VCPUS],
            output: Mutex::new(LineBuffer::new()),
            console: GuestConsole::new(),
            store: Store::new(),
            teardown: Mutex::new(teardown::Teardown::new()),
        }
    }

    /// Which domain this is.
    pub fn id(&self) -> DomainId {
        DomainId::new(self.number.load(Ordering::Relaxed))
    }

    /// Whether it may control other domains.
    pub fn is_control(&self) -> bool {
        self.control.load(Ordering::Relaxed)
    }

    /// Whether it is the domain that was started first: the machine runs for its sake, and goes off with it.
    pub fn is_first(&self) -> bool {
        self.id() == DomainId::CONTROL
    }

    /// Where it is in its life.
    pub fn life(&self) -> Life {
        Life::from_number(self.life.load(Ordering::Acquire))
    }

    /// Whether there is such a domain at all.
    pub fn is_present(&self) -> bool {
        self.life() != Life::Vacant
    }

    pub(crate) fn change_life(&self, from: Life, to: Life) -> bool {
        // AcqRel, with the acquire of `life`: who sees the domain alive sees it whole, and who ends it has it for himself.
        self.life.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Starts a new life in a vacant place.
    pub(crate) fn begin(&self, id: DomainId, control: bool, max_pages: u64) -> bool {
        if !self.change_life(Life::Vacant, Life::Building) {
            return false;
        }
        // Relaxed, with their loads: `life` publishes them; later changes are numbers that stand for themselves.
        self.number.store(id.number(), Ordering::Relaxed);
        self.control.store(control, Ordering::Relaxed);
        self.max_pages.store(max_pages, Ordering::Relaxed);
        self.cpu_time.store(0, Ordering::Relaxed);
        self.assists.store(0, Ordering::Relaxed);
        self.set_vcpu_count(1);
        self.events.begin();
        self.console.begin();
        self.store.begin();
        *self.memory_map.lock() = StoredMap::new();
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            vcpu.begin(id, index as u16);
        }
        true
    }

    /// Locks its tables, to map its own frames there.
    #[inline(always)]
    pub fn table_space<'a>(
        &'a self,
        machine: &'a M,
        frames: &'a FrameTable,
        budget: &'a Budget,
    ) -> TableSpace<'a, M> {
        self.locked_table_space(machine, frames, budget, self.lock_tables())
    }

    /// As [`Self::table_space`], for who has locked them already by [`Self::lock_tables`].
    #[inline(always)]
    pub(crate) fn locked_table_space<'a>(
        &'a self,
        machine: &'a M,
        frames: &'a FrameTable,
        budget: &'a Budget,
        state: MutexGuard<'a, TableState>,
    ) -> TableSpace<'a, M> {
        let owner = self.id();
        TableSpace { machine, frames, owner, target: owner, budget, unhooked: &self.unhooked, state }
    }

    /// Locks its tables, for who needs no more than what the lock protects.
    #[inline(always)]
    pub(crate) fn lock_tables(&self) -> MutexGuard<'_, TableState> {
        self.tables.lock()
    }

    /// How many of its tables are unhooked.
    pub fn unhooked(&self) -> &AtomicU32 {
        &self.unhooked
    }

    /// Whether any of its tables is unhooked.
    pub fn has_unhooked(&self) -> bool {
        // Relaxed: a vCPU sees what it has unhooked itself; who needs more takes the lock.
        self.unhooked.load(Ordering::Relaxed) != 0
    }

    /// Whether some grant that it has mapped leads to this frame of another domain's, and allows writing if that is asked. Looks through all of
    /// its mappings: for tests of isolation.
    pub fn has_borrowed(&self, frame: MachineFrame, to_write: bool) -> bool {
        self.grants.maps.lock().lends(frame, to_write)
    }

    /// The page that it shares with the hypervisor.
    pub fn shared_info(&self) -> Option<MachineFrame> {
        self.shared_info.get()
    }

    /// The page of its store's rings, if the hypervisor is at its other end.
    pub fn store_page(&self) -> Option<MachineFrame> {
        self.store.page()
    }

    /// The page of its console's rings, if it has one.
    pub fn console_page(&self) -> Option<MachineFrame> {
        self.console.page()
    }

    /// What a port is, if it is open.
    pub fn channel(&self, port: Port) -> Option<Channel> {
        self.events.channels.get(port)
    }

    /// Frames it may have (`maximum_reservation`).
    pub fn max_pages(&self) -> u64 {
        self.max_pages.load(Ordering::Relaxed)
    }

    /// Whether it has switched this kind of assistance on (`VMASST_TYPE_*`).
    pub fn assists(&self, kind: u32) -> bool {
        // Relaxed: the guest's own switch orders nothing.
        self.assists.load(Ordering::Relaxed) & 1u64.checked_shl(kind).unwrap_or(0) != 0
    }

    pub(crate) fn set_assist(&self, kind: u32, on: bool) {
        let bit = 1u64.checked_shl(kind).unwrap_or(0);
        if on {
            self.assists.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.assists.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Nanoseconds for which its vCPUs have had a CPU.
    pub fn cpu_time(&self) -> u64 {
        self.cpu_time.load(Ordering::Relaxed)
    }

    pub(crate) fn add_cpu_time(&self, nanoseconds: u64) {
        self.cpu_time.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Frames it has (`current_reservation`). The shared-info page isn't one of them, nor are those of its grant table.
    pub fn pages(&self, frames: &FrameTable) -> u64 {
        frames.owned(self.id()).saturating_sub(self.held_frames())
    }

    /// Frames that are the domain's, but that the hypervisor holds: no part of its memory.
    fn held_frames(&self) -> u64 {
        u64::from(self.shared_info().is_some()).saturating_add(self.grants.frames())
    }

    /// Takes a new frame for the domain to share with the hypervisor. It isn't part of the domain's memory: the domain has no claim
    /// to it. The hypervisor writes there on its own, so it holds a use as *writable* for good, which it gives back by
    /// `put_use` when the domain dies: the page can never become a table.
    pub(crate) fn hold_new_frame(&self, machine: &M, frames: &FrameTable) -> Option<MachineFrame> {
        let frame = frames.allocate(self.id(), u64::MAX, machine)?;
        let held = frames.get_writable(frame, self.id(), machine);
        frames.unclaim(frame);
        frames.put(frame, machine);
        held.ok().map(|()| frame)
    }

    /// Takes one more frame for the domain, if it may have one more. The domain has the claim to it.
    pub(crate) fn claim(&self, machine: &M, frames: &FrameTable) -> Option<MachineFrame> {
        let limit = self.max_pages().saturating_add(self.held_frames());
        frames.allocate(self.id(), limit, machine)
    }

    /// What a reservation of so many frames for this domain asks for. `end`: one past the highest frame number allowed.
    pub(crate) fn wants(&self, order: u32, end: u64) -> Wanted {
        let limit = self.max_pages().saturating_add(self.held_frames());
        Wanted { owner: self.id(), limit, order, end }
    }

    /// Lets the domain use its first `count` vCPUs: at least one, at most [`MAX_VCPUS`]. Before it runs.
    pub fn set_vcpu_count(&self, count: u8) {
        self.vcpu_count.store(count.clamp(1, MAX_VCPUS as u8), Ordering::Relaxed);
    }

    /// The vCPUs that it may use.
    pub fn usable_vcpus(&self) -> impl Iterator<Item = &Vcpu<M>> {
        self.vcpus.iter().take(usize::from(self.vcpu_count.load(Ordering::Relaxed)))
    }

    /// The vCPU that a guest names, if the domain has one of that number.
    pub fn vcpu(&self, number: u64) -> Option<&Vcpu<M>> {
        self.usable_vcpus().nth(usize::try_from(number).ok()?)
    }

    /// The vCPUs that run, or wait.
    pub fn online_vcpus(&self) -> impl Iterator<Item = &Vcpu<M>> {
        self.vcpus.iter().filter(|vcpu| vcpu.state() != RunState::Offline)
    }
}

impl<M: Machine> fmt::Display for Domain<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = if self.is_control() { "control" } else { "guest" };
        write!(f, "{:?}: {role}, {:?}, at most {} frames", self.id(), self.life(), self.max_pages())?;
        for vcpu in self.online_vcpus() {
            write!(f, ", vcpu {} {:?}", vcpu.index(), vcpu.state())?;
        }
        Ok(())
    }
}
