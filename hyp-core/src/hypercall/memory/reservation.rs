//! More memory (`increase_reservation`, `populate_physmap`) and less (`decrease_reservation`).
//!
//! As in Xen, these calls have no errors: they return how many extents were done, from the start. (Only a domain that names
//! another without the right to hears EPERM.) Preempted, they go on at an extent, and giving back also within one: how far it
//! is stands in the upper bits of the first argument, where a guest that meddles deceives itself alone.

use penumbra_abi::errno::Errno;
use penumbra_abi::memory::{self, MemoryReservation};

use super::super::batch::NotDone;
use super::super::{Arguments, Call, Failure, Outcome, values};
use super::{end_of_addresses, slot};
use crate::address::MachineFrame;
use crate::domain::Domain;
use crate::frame::allocator::MAX_ORDER;
use crate::frame::extent::{NoExtent, run};
use crate::machine::Machine;
use crate::paging::Budget;

/// Extents in one call, at most: so many that their number fits between the operation and [`FRAMES_SHIFT`].
const MAX_EXTENTS: u64 = (u32::MAX >> memory::MEMORY_OP_EXTENT_SHIFT) as u64;
/// Where in the first argument the number of frames begins that are done of an extent.
const FRAMES_SHIFT: u32 = u32::BITS;

impl From<NoExtent> for NotDone {
    fn from(error: NoExtent) -> Self {
        match error {
            NoExtent::None => Self::Errno(Errno::ENOMEM),
            NoExtent::Preempted => Self::Preempted,
        }
    }
}

/// A reservation that has been looked at.
struct Request<'a, M: Machine> {
    command: u64,
    domain: &'a Domain<M>,
    list: u64,
    extents: u64,
    order: u32,
    /// One past the highest frame number allowed.
    end: u64,
}

impl<'a, M: Machine> Call<'a, M> {
    pub(super) fn reservation(&self, arguments: &Arguments) -> Outcome {
        let [operation, place, ..] = values(arguments);
        let start = operation >> memory::MEMORY_OP_EXTENT_SHIFT;
        match self.request(operation, place)? {
            None => Ok(start),
            Some(request) => self.each_extent(&request, operation, place),
        }
    }

    /// Reads a reservation; `None` if nothing of it can be done.
    fn request(&self, operation: u64, place: u64) -> Result<Option<Request<'a, M>>, Errno> {
        let Ok(asked) = self.read::<MemoryReservation>(place) else { return Ok(None) };
        let command = operation & memory::MEMORY_OP_COMMAND_MASK;
        let domain = match self.named_domain(asked.domid) {
            Err(Errno::EPERM) => return Err(Errno::EPERM),
            domain => domain.ok(),
        };
        // Memory that is populated on demand is for guests whose frames are translated.
        let on_demand = command == memory::XENMEM_POPULATE_PHYSMAP
            && asked.mem_flags & memory::XENMEMF_POPULATE_ON_DEMAND != 0;
        let possible = asked.nr_extents <= MAX_EXTENTS && asked.extent_order <= MAX_ORDER && !on_demand;
        let Some((domain, end)) = domain.zip(end_of_addresses(asked.mem_flags)).filter(|_| possible) else {
            return Ok(None);
        };
        let (list, extents, order) = (asked.extent_start, asked.nr_extents, asked.extent_order);
        Ok(Some(Request { command, domain, list, extents, order, end }))
    }

    fn each_extent(&self, request: &Request<'a, M>, operation: u64, place: u64) -> Outcome {
        let first = (operation >> memory::MEMORY_OP_EXTENT_SHIFT) & MAX_EXTENTS;
        let mut frames = operation >> FRAMES_SHIFT;
        if frames >> request.order != 0 || first >= request.extents {
            return Ok(operation >> memory::MEMORY_OP_EXTENT_SHIFT);
        }
        for number in first..request.extents {
            let result = if number > first && self.budget.is_spent() {
                Err(NotDone::Preempted)
            } else {
                self.one_extent(request, number, &mut frames)
            };
            match result {
                Ok(()) => frames = 0,
                Err(NotDone::Errno(_)) => return Ok(number),
                Err(NotDone::Preempted) => {
                    let done = number << memory::MEMORY_OP_EXTENT_SHIFT | frames << FRAMES_SHIFT;
                    return Err(Failure::Again([request.command | done, place, 0, 0, 0, 0]));
                }
            }
        }
        Ok(request.extents)
    }

    fn one_extent(&self, request: &Request<'a, M>, number: u64, frames: &mut u64) -> Result<(), NotDone> {
        self.budget.charge(Budget::OPERATION);
        let slot = slot(request.list, number)?;
        match request.command {
            memory::XENMEM_INCREASE_RESERVATION => self.increase(request, slot),
            memory::XENMEM_POPULATE_PHYSMAP => self.populate(request, slot),
            _ => self.decrease(request, slot, frames),
        }
    }

    /// New frames, the first one's number being written to the guest, unless the guest has given no list.
    fn increase(&self, request: &Request<'_, M>, slot: u64) -> Result<(), NotDone> {
        let slot = Some(slot).filter(|_| request.list != 0);
        slot.map_or(Ok(0), |slot| self.probe(slot))?;
        self.hand_out(request, slot)?;
        Ok(())
    }

    /// New frames for the pseudo-physical number that stands in the slot, which the machine frame's then replaces.
    fn populate(&self, request: &Request<'_, M>, slot: u64) -> Result<(), NotDone> {
        let name = self.probe(slot)?;
        let first = self.hand_out(request, Some(slot))?;
        self.name_frames(first, request.order, name);
        Ok(())
    }

    /// The guest is told which frames it gets before it gets them, since it may turn out that it can't be.
    fn hand_out(&self, request: &Request<'_, M>, slot: Option<u64>) -> Result<MachineFrame, NotDone> {
        let frames = &self.hypervisor.frames;
        let extent = self.reserve(request.domain.wants(request.order, request.end))?;
        if let Some(Err(errno)) = slot.map(|slot| self.write(slot, &extent.first.number())) {
            frames.cancel(extent);
            return Err(errno.into());
        }
        frames.commit(extent);
        Ok(extent.first)
    }

    /// Gives up the frames of an extent, of which `done` have been given up before.
    fn decrease(&self, request: &Request<'a, M>, slot: u64, done: &mut u64) -> Result<(), NotDone> {
        let first = MachineFrame::new(self.read(slot)?).ok_or(Errno::EINVAL)?;
        let size = 1u64 << request.order;
        for frame in run(first, request.order).skip(*done as usize) {
            self.unclaim(request.domain, frame)?;
            self.budget.charge(Budget::FRAME);
            *done = done.saturating_add(1);
            if *done < size && self.budget.is_spent() {
                return Err(NotDone::Preempted);
            }
        }
        // Numbers beyond those of frames are no frames.
        if *done == size { Ok(()) } else { Err(Errno::EINVAL.into()) }
    }

    /// Gives up a domain's claim to a frame.
    fn unclaim(&self, domain: &'a Domain<M>, frame: MachineFrame) -> Result<(), NotDone> {
        let frames = &self.hypervisor.frames;
        // A pinned table would stay one without an owner's claim (XSA-252). The lock keeps it from being pinned meanwhile; and a pin that
        // waits for its table, unhooked by an earlier entry of the same multicall, is put back first.
        self.with_tables(domain, domain.id(), |_| {
            frames.get(frame, domain.id()).map_err(|_| Errno::EINVAL)?;
            let pinned = frames.usage(frame).is_some_and(|usage| usage.pinned);
            let given = !pinned && frames.unclaim(frame);
            if given {
                frames.put(frame, &self.hypervisor.machine);
            }
            frames.put(frame, &self.hypervisor.machine);
            if given { Ok(()) } else { Err(Errno::EBUSY.into()) }
        })
    }
}
