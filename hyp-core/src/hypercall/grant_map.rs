//! Mapping granted pages, and undoing it.
//!
//! Mappings are undone in pieces: first the entries of a piece disappear, then every TLB forgets them at once, and only then
//! the pins are given back, and the lenders told.

use penumbra_abi::grant_table::{self as abi, GrantStatus, MapGrantRef, UnmapAndReplace, UnmapGrantRef};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Arguments, Call, Failure, Outcome, values};
use crate::address::{DomainId, GuestVirtual, MachineAddress, MachineFrame};
use crate::domain::Life;
use crate::grant::{Lent, NotDone};
use crate::machine::{Entry, FlushScope, Leaf, Machine, PageTableFormat};
use crate::paging::update::HardwareBits;
use crate::paging::{Budget, Stop, TableSpace, walk};

/// Mappings undone with one flush.
const PIECE: usize = 16;

/// What is to be undone.
#[derive(Clone, Copy)]
pub(super) struct Unmapping {
    handle: u32,
    /// Where it is mapped; 0: that mapping stays.
    host_address: u64,
    /// Where devices have it; 0: that mapping stays.
    device_address: u64,
    /// Whose entry takes the mapping's place; 0: none does.
    new_address: u64,
}

/// The two structures that ask for a mapping to be undone.
pub(super) trait UnmapRequest: FromBytes + IntoBytes + Immutable {
    /// What is asked for.
    fn unmapping(&self) -> Unmapping;
    /// Where the answer goes.
    fn status(&mut self) -> &mut GrantStatus;
}

impl UnmapRequest for UnmapGrantRef {
    fn unmapping(&self) -> Unmapping {
        Unmapping {
            handle: self.handle,
            host_address: self.host_addr,
            device_address: self.dev_bus_addr,
            new_address: 0,
        }
    }

    fn status(&mut self) -> &mut GrantStatus {
        &mut self.status
    }
}

impl UnmapRequest for UnmapAndReplace {
    fn unmapping(&self) -> Unmapping {
        Unmapping {
            handle: self.handle,
            host_address: self.host_addr,
            device_address: 0,
            new_address: self.new_addr,
        }
    }

    fn status(&mut self) -> &mut GrantStatus {
        &mut self.status
    }
}

/// What a piece has undone, and still has to finish.
#[derive(Default)]
struct Owed {
    /// Some entry has disappeared.
    flush: bool,
    /// Handles whose pins are to be given back.
    handles: [u32; PIECE],
    count: usize,
}

impl Owed {
    fn add(&mut self, handle: u32) {
        // A piece has no more than these.
        if let Some(slot) = self.handles.get_mut(self.count) {
            *slot = handle;
            self.count = self.count.saturating_add(1);
        }
    }
}

impl<'a, M: Machine> Call<'a, M> {
    /// Maps one grant. Whatever is refused leaves nothing behind.
    pub(super) fn map_grant(&self, map: &mut MapGrantRef) -> Result<(), NotDone> {
        let has = |flag| map.flags & flag != 0;
        let (host, device) = (has(abi::GNTMAP_HOST_MAP), has(abi::GNTMAP_DEVICE_MAP));
        let writable = !has(abi::GNTMAP_READONLY);
        if !host && !device {
            return Err(GrantStatus::BAD_GNTREF.into());
        }
        let lender = self.lender(map.dom)?;
        let mut maps = self.domain.grants.maps.lock();
        if !maps.has_room() {
            return Err(GrantStatus::NO_SPACE.into());
        }
        let mut table = lender.grants.table.lock();
        // Tear-down takes the same lock to close the table, after the domain's life has ended.
        if lender.life() != Life::Alive {
            return Err(GrantStatus::BAD_DOMAIN.into());
        }
        let place = self.grant_place(lender.id());
        let frame = table.pin(&place, map.reference, self.domain.id(), writable)?;
        let leaf = Leaf { frame, level: 1, writable };
        let mapped = if host { self.map_leaf(lender.id(), map, leaf) } else { Ok(()) };
        let by_entry = has(abi::GNTMAP_CONTAINS_PTE);
        let lent =
            Lent { lender: lender.id(), reference: map.reference, frame, writable, host, device, by_entry };
        let handle = mapped.and_then(|()| maps.add(lent).ok_or(GrantStatus::NO_SPACE.into()));
        map.handle = handle.inspect_err(|_| {
            // No translation was made.
            table.unpin(&place, map.reference, writable);
        })?;
        map.dev_bus_addr = frame.start().bytes();
        Ok(())
    }

    /// Writes the entry that a mapping asks for.
    fn map_leaf(&self, lender: DomainId, map: &MapGrantRef, leaf: Leaf) -> Result<(), NotDone> {
        let mut space = self.tables(self.domain, lender).map_err(not_done)?;
        let by_entry = map.flags & abi::GNTMAP_CONTAINS_PTE != 0;
        let place = self.entry_place(&mut space, map.host_addr, by_entry)?;
        let application = map.flags & abi::GNTMAP_APPLICATION_MAP != 0;
        let available = map.flags >> abi::GNTMAP_GUEST_AVAILABLE_SHIFT;
        write(&mut space, place, M::Format::granted(leaf, application, available))
    }

    /// The entry of a level-1 table of the caller's that an operation names, once nothing is unfinished any more.
    fn entry_place(
        &self,
        space: &mut TableSpace<'_, M>,
        address: u64,
        by_entry: bool,
    ) -> Result<walk::Place, NotDone> {
        space.settle(None).map_err(not_done)?;
        let place = if by_entry { entry_at(space, address) } else { self.entry_for(space, address) };
        place.filter(|place| place.level == 1).ok_or(GrantStatus::GENERAL_ERROR.into())
    }

    /// The entry that translates a virtual address.
    fn entry_for(&self, space: &TableSpace<'_, M>, address: u64) -> Option<walk::Place> {
        let address = GuestVirtual::new(address);
        space.find(self.root_at(address)?, address)
    }

    /// Arguments of the hypercall: see [`Self::grant_table_op`].
    pub(super) fn unmap_grants<T: UnmapRequest>(&self, arguments: &Arguments) -> Outcome {
        let [operation, mut next, count, ..] = values(arguments);
        let mut left = count & 0xffff_ffff;
        while left > 0 {
            if self.budget.is_spent() {
                return Err(Failure::Again([operation, next, left, 0, 0, 0]));
            }
            let mut owed = Owed::default();
            let outcome = self.unmap_piece::<T>(operation, &mut next, &mut left, &mut owed);
            self.finish_unmapping(&owed);
            outcome?;
        }
        Ok(0)
    }

    /// Has the entries of some mappings disappear, and writes the answers.
    fn unmap_piece<T: UnmapRequest>(
        &self,
        operation: u64,
        next: &mut u64,
        left: &mut u64,
        owed: &mut Owed,
    ) -> Result<(), Failure> {
        for _ in 0..(*left).min(PIECE as u64) {
            self.budget.charge(Budget::GRANT);
            let mut request: T = self.read(*next)?;
            *request.status() = match self.detach(request.unmapping(), owed) {
                Ok(()) => GrantStatus::OKAY,
                Err(NotDone::Refused(status)) => status,
                Err(NotDone::Preempted) => return Err(Failure::Again([operation, *next, *left, 0, 0, 0])),
            };
            self.write(*next, &request)?;
            // An address that wraps around is refused when it is read.
            *next = next.wrapping_add(size_of::<T>() as u64);
            *left = left.saturating_sub(1);
        }
        Ok(())
    }

    /// Undoes those parts of a mapping that are asked for. If none is left, its pin is owed.
    fn detach(&self, request: Unmapping, owed: &mut Owed) -> Result<(), NotDone> {
        let mut maps = self.domain.grants.maps.lock();
        let lent = maps.get(request.handle).filter(|lent| lent.host || lent.device);
        let lent = lent.ok_or(GrantStatus::BAD_HANDLE)?;
        let host = request.host_address != 0 && lent.host;
        let device = request.device_address != 0 && lent.device;
        if device && request.device_address != lent.frame.start().bytes() {
            return Err(GrantStatus::BAD_DEV_ADDR.into());
        }
        if host {
            self.unmap_leaf(&lent, request)?;
            owed.flush = true;
        }
        maps.detach(request.handle, host, device);
        if lent.host == host && lent.device == device {
            owed.add(request.handle);
        }
        Ok(())
    }

    /// Has the entry disappear, if it maps that frame with those rights.
    fn unmap_leaf(&self, lent: &Lent, request: Unmapping) -> Result<(), NotDone> {
        let mut space = self.tables(self.domain, self.domain.id()).map_err(not_done)?;
        let place = self.entry_place(&mut space, request.host_address, lent.by_entry)?;
        // The rights count as much as the frame: were they others, this would be another mapping's entry (XSA-234).
        let granted = Entry::Leaf(Leaf { frame: lent.frame, level: 1, writable: lent.writable });
        let present = self.hypervisor.machine.read_entry(place.table, place.index);
        if M::Format::decode(place.level, present) != granted {
            return Err(GrantStatus::GENERAL_ERROR.into());
        }
        if request.new_address == 0 {
            return write(&mut space, place, 0);
        }
        let other = self.entry_for(&space, request.new_address).filter(|other| other.level == 1);
        let other =
            other.filter(|other| *other != place && !lent.by_entry).ok_or(GrantStatus::GENERAL_ERROR)?;
        let moved = self.hypervisor.machine.read_entry(other.table, other.index);
        write(&mut space, place, moved)?;
        // The same domain's table, seen under the same lock: an absent entry is never refused.
        write(&mut space, other, 0)
    }

    /// After one flush for all, gives the pins back.
    fn finish_unmapping(&self, owed: &Owed) {
        if owed.flush {
            self.hypervisor.machine.flush(FlushScope::Everything);
        }
        let mut maps = self.domain.grants.maps.lock();
        for handle in owed.handles.iter().take(owed.count) {
            let Some(lent) = maps.remove(*handle) else { continue };
            if self.hypervisor.unpin(&lent) {
                self.budget.charge(Budget::FRAME);
            }
        }
    }
}

/// The entry at a machine address, if it is one of a level-1 table of the domain.
fn entry_at<M: Machine>(space: &TableSpace<'_, M>, address: u64) -> Option<walk::Place> {
    let address = MachineAddress::new(address).filter(|address| address.bytes().is_multiple_of(8))?;
    let table = MachineFrame::containing(address);
    let level = space.table_level(table)?;
    let index = address.offset_in_frame() / 8;
    (index < M::Format::entries(level)).then_some(walk::Place { table, level, index })
}

fn write<M: Machine>(space: &mut TableSpace<'_, M>, place: walk::Place, raw: u64) -> Result<(), NotDone> {
    space.update(place.table, place.level, place.index, raw, HardwareBits::Replace).map_err(not_done)
}

/// Whatever is wrong with an entry has one name only, as in Xen.
fn not_done(stop: Stop) -> NotDone {
    match stop {
        Stop::Refused(_) => GrantStatus::GENERAL_ERROR.into(),
        Stop::Preempted => NotDone::Preempted,
    }
}
