//! `memory_op`: how much memory a domain has, and which (`memory.h`).

use penumbra_abi::errno::Errno;
use penumbra_abi::memory::{self, MachphysMapping, MemoryReservation};

use super::{Arguments, Call, Failure, Outcome};
use crate::address::{MachineFrame, PseudoFrame};
use crate::domain::Domain;
use crate::machine::Machine;
use crate::paging::Budget;

impl<'a, M: Machine> Call<'a, M> {
    /// Arguments: the operation, with the number of extents already done in its upper bits; guest address of its structure.
    pub(super) fn memory_op(&self, arguments: Arguments) -> Outcome {
        let [operation, place, ..] = arguments;
        let start = operation >> memory::MEMORY_OP_EXTENT_SHIFT;
        match operation & memory::MEMORY_OP_COMMAND_MASK {
            memory::XENMEM_INCREASE_RESERVATION => self.each_extent(arguments, start, Self::increase),
            memory::XENMEM_DECREASE_RESERVATION => self.each_extent(arguments, start, Self::decrease),
            memory::XENMEM_POPULATE_PHYSMAP => self.each_extent(arguments, start, Self::populate),
            memory::XENMEM_CURRENT_RESERVATION => Ok(self.domain_at(place)?.pages(&self.hypervisor.frames)),
            memory::XENMEM_MAXIMUM_RESERVATION => Ok(self.domain_at(place)?.max_pages()),
            memory::XENMEM_MAXIMUM_RAM_PAGE => Ok(self.hypervisor.frames.extent().1.saturating_sub(1)),
            memory::XENMEM_MACHPHYS_MAPPING => self.m2p_window(place),
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    /// The domain whose number stands at a guest address.
    fn domain_at(&self, place: u64) -> Result<&'a Domain<M>, Errno> {
        self.named_domain(self.read::<u16>(place)?)
    }

    fn m2p_window(&self, place: u64) -> Outcome {
        let end = self.hypervisor.frames.extent().1;
        let start = M::M2P_WINDOW.bytes();
        let v_end = end.checked_mul(8).and_then(|bytes| start.checked_add(bytes)).ok_or(Errno::EINVAL)?;
        let mapping = MachphysMapping { v_start: start, v_end, max_mfn: end.saturating_sub(1) };
        self.write(place, &mapping)?;
        Ok(0)
    }

    /// Does `one` for each extent (a single frame each) of a reservation, from number `start` on. Returns how many were done: an
    /// extent that fails ends it.
    fn each_extent(
        &self,
        arguments: Arguments,
        start: u64,
        one: fn(&Self, &Domain<M>, u64) -> Result<(), Errno>,
    ) -> Outcome {
        let [operation, place, ..] = arguments;
        let reservation: MemoryReservation = self.read(place)?;
        let domain = self.named_domain(reservation.domid)?;
        if reservation.extent_order != 0 || start > reservation.nr_extents {
            return Err(Errno::EINVAL.into());
        }
        for number in start..reservation.nr_extents {
            if number > start && self.budget.is_spent() {
                let command = operation & memory::MEMORY_OP_COMMAND_MASK;
                let rest = command | (number << memory::MEMORY_OP_EXTENT_SHIFT);
                return Err(Failure::Again([rest, place, 0, 0, 0, 0]));
            }
            self.budget.charge(Budget::FRAME);
            let slot = match reservation.extent_start {
                0 => Some(0),
                start => number.checked_mul(8).and_then(|offset| start.checked_add(offset)),
            };
            let done = slot.ok_or(Errno::EFAULT).and_then(|slot| one(self, domain, slot));
            if done.is_err() {
                // As Xen: the number of extents done, not an error.
                return Ok(number);
            }
        }
        Ok(reservation.nr_extents)
    }

    /// Takes a free frame for `domain`.
    fn claim(&self, domain: &Domain<M>) -> Result<MachineFrame, Errno> {
        domain.claim(&self.hypervisor.machine, &self.hypervisor.frames).ok_or(Errno::ENOMEM)
    }

    /// Gives up a domain's claim to a frame.
    fn unclaim(&self, domain: &Domain<M>, frame: MachineFrame) -> Result<(), Errno> {
        let frames = &self.hypervisor.frames;
        frames.get(frame, domain.id()).map_err(|_| Errno::EINVAL)?;
        // A pinned table would stay one without an owner's claim (XSA-252). The lock keeps it from being pinned meanwhile.
        let _tables = domain.tables.lock();
        let pinned = frames.usage(frame).is_some_and(|usage| usage.pinned);
        let given = !pinned && frames.unclaim(frame);
        if given {
            frames.put(frame, &self.hypervisor.machine);
        }
        frames.put(frame, &self.hypervisor.machine);
        if given { Ok(()) } else { Err(Errno::EBUSY) }
    }

    /// A new frame, whose machine number is written to the guest, unless the guest has given no list (`slot` 0).
    fn increase(&self, domain: &Domain<M>, slot: u64) -> Result<(), Errno> {
        let frame = self.claim(domain)?;
        if slot == 0 { Ok(()) } else { self.tell(domain, slot, frame) }
    }

    /// A new frame for the pseudo-physical number that stands in the slot, which its machine number then replaces.
    fn populate(&self, domain: &Domain<M>, slot: u64) -> Result<(), Errno> {
        let pseudo = PseudoFrame::new(self.read(slot)?);
        let frame = self.claim(domain)?;
        self.tell(domain, slot, frame)?;
        if let Some(m2p) = self.hypervisor.frames.m2p() {
            m2p.set(frame, Some(pseudo));
        }
        Ok(())
    }

    /// Writes the frame's number to the guest; a frame that the guest can't hear of is taken back.
    fn tell(&self, domain: &Domain<M>, slot: u64, frame: MachineFrame) -> Result<(), Errno> {
        self.write(slot, &frame.number()).inspect_err(|_| {
            // It was only just given, so nothing can be in the way.
            let _ = self.unclaim(domain, frame);
        })
    }

    fn decrease(&self, domain: &Domain<M>, slot: u64) -> Result<(), Errno> {
        let frame = MachineFrame::new(self.read(slot)?).ok_or(Errno::EINVAL)?;
        self.unclaim(domain, frame)
    }
}
