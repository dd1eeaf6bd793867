//! `memory_op`: how much memory a domain has, and which (`memory.h`).
//!
//! * [`reservation`]: more memory, less memory.
//! * [`exchange`]: other memory for the same amount.
//! * [`maps`]: where memory is.
//!
//! The machine frames of the machine-to-physical table itself (`XENMEM_machphys_mfn_list`) aren't told to anybody: they belong to nobody,
//! so nobody could map them (XSA-248), and every guest has the table in its window.

pub(crate) mod exchange;
pub(crate) mod maps;
mod reservation;

use penumbra_abi::errno::Errno;
use penumbra_abi::memory;

use super::{Arguments, Call, Outcome, values};
use crate::address::MachineFrame;
use crate::domain::Domain;
use crate::frame::extent::{NoExtent, Wanted};
use crate::machine::Machine;
use crate::paging::Budget;

impl<'a, M: Machine> Call<'a, M> {
    /// Arguments: the operation, with the number of extents already done in its upper bits; guest address of its structure.
    #[inline(never)]
    pub(super) fn memory_op(&self, arguments: &Arguments) -> Outcome {
        let [operation, place, ..] = values(arguments);
        let command = operation & memory::MEMORY_OP_COMMAND_MASK;
        let continued = operation != command;
        match command {
            memory::XENMEM_INCREASE_RESERVATION
            | memory::XENMEM_DECREASE_RESERVATION
            | memory::XENMEM_POPULATE_PHYSMAP => self.reservation(arguments),
            memory::XENMEM_CURRENT_RESERVATION
            | memory::XENMEM_MAXIMUM_RESERVATION
            | memory::XENMEM_MAXIMUM_GPFN
            | memory::XENMEM_MAXIMUM_RAM_PAGE
            | memory::XENMEM_EXCHANGE
                if continued =>
            {
                Err(Errno::EINVAL.into())
            }
            memory::XENMEM_CURRENT_RESERVATION => Ok(self.domain_at(place)?.pages(&self.hypervisor.frames)),
            memory::XENMEM_MAXIMUM_RESERVATION => Ok(self.domain_at(place)?.max_pages()),
            memory::XENMEM_MAXIMUM_GPFN => Ok(self.highest_page(self.domain_at(place)?)),
            memory::XENMEM_MAXIMUM_RAM_PAGE => Ok(self.hypervisor.frames.extent().1.saturating_sub(1)),
            memory::XENMEM_EXCHANGE => self.exchange(arguments),
            _ if continued => Err(Errno::ENOSYS.into()),
            memory::XENMEM_MACHPHYS_MAPPING => self.m2p_window(place),
            memory::XENMEM_MEMORY_MAP => self.memory_map(place),
            memory::XENMEM_SET_MEMORY_MAP => self.set_memory_map(place),
            memory::XENMEM_MACHINE_MEMORY_MAP => self.machine_memory_map(place),
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    /// The domain whose number stands at a guest address.
    fn domain_at(&self, place: u64) -> Result<&'a Domain<M>, Errno> {
        self.named_domain(self.read::<u16>(place)?)
    }

    /// The highest page that a domain says it uses, or may use.
    fn highest_page(&self, domain: &Domain<M>) -> u64 {
        let shared = M::SHARED_INFO_MAX_PFN.zip(domain.shared_info());
        let pages = shared.map_or(domain.max_pages(), |(offset, frame)| {
            let mut pages = [0; 8];
            self.hypervisor.machine.read_frame(frame, offset, &mut pages);
            u64::from_le_bytes(pages)
        });
        // It is the guest's word; as in Xen, it isn't checked, and none at all counts as one.
        pages.max(1).saturating_sub(1)
    }

    /// Sets memory aside, scrubbed; what that costs is charged.
    ///
    /// # Errors
    /// [`NoExtent`].
    fn reserve(&self, wanted: Wanted) -> Result<crate::frame::extent::Extent, NoExtent> {
        self.budget.charge(Budget::OPERATION);
        self.hypervisor.frames.reserve(wanted, &self.hypervisor.machine, || {
            self.budget.charge(Budget::FRAME);
            !self.budget.is_spent()
        })
    }

    /// Makes sure that a slot of a guest's list can be written, without changing it; what it holds.
    fn probe(&self, slot: u64) -> Result<u64, Errno> {
        let value: u64 = self.read(slot)?;
        self.write(slot, &value)?;
        Ok(value)
    }

    /// Names `2^order` frames in the machine-to-physical table, from pseudo-physical frame `name` on.
    fn name_frames(&self, first: MachineFrame, order: u32, name: u64) {
        let Some(m2p) = self.hypervisor.frames.m2p() else { return };
        for (offset, frame) in (0u64..).zip(crate::frame::extent::run(first, order)) {
            m2p.set(frame, Some(crate::address::PseudoFrame::new(name.wrapping_add(offset))));
        }
        self.budget.charge((1u32 << order) / 8);
    }
}

/// One past the highest frame number that an extent may have, by its flags (`XENMEMF_address_bits`); `None` if no frame could be that low.
fn end_of_addresses(mem_flags: u32) -> Option<u64> {
    match mem_flags & memory::XENMEMF_ADDRESS_BITS_MASK {
        0 => Some(MachineFrame::LIMIT),
        bits => {
            let frame_bits = bits.checked_sub(crate::address::PAGE_SHIFT).filter(|bits| *bits > 0)?;
            Some(1u64.checked_shl(frame_bits).unwrap_or(MachineFrame::LIMIT).min(MachineFrame::LIMIT))
        }
    }
}

/// The address of entry `number` of a list of 8-byte entries.
fn slot(list: u64, number: u64) -> Result<u64, Errno> {
    number.checked_mul(8).and_then(|offset| list.checked_add(offset)).ok_or(Errno::EFAULT)
}
