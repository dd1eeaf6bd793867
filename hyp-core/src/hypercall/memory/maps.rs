//! Where memory is: the domain's own map, the machine's, and the window of the machine-to-physical table.

use penumbra_abi::errno::Errno;
use penumbra_abi::memory::{ForeignMemoryMap, MEMORY_MAP_RAM, MachphysMapping, MemoryMap, MemoryMapEntry};
use zerocopy::IntoBytes;

use super::super::{Call, Outcome};
use crate::address::PAGE_BYTES;
use crate::machine::Machine;

/// Entries that a domain's map can have.
const MAX_ENTRIES: usize = 32;
/// Bytes that are copied of a map of that many: from the guest or to it, and once more within the hypervisor.
const MAP_BYTES: usize = 2 * size_of::<StoredMap>();
/// What it costs of the budget to tell of one region of the machine's memory.
const REGION_COST: u32 = 4;
const NO_ENTRY: MemoryMapEntry = MemoryMapEntry { address: 0, size: 0, kind: 0 };

/// A domain's map, if one has been set. It is what guests say it is: nothing else looks at it.
pub struct StoredMap {
    entries: [MemoryMapEntry; MAX_ENTRIES],
    count: usize,
}

impl Default for StoredMap {
    fn default() -> Self {
        Self::new()
    }
}

impl StoredMap {
    /// No map.
    pub const fn new() -> Self {
        Self { entries: [NO_ENTRY; MAX_ENTRIES], count: 0 }
    }
}

impl<M: Machine> Call<'_, M> {
    /// Argument: guest address of a [`MemoryMap`]. The map that was set for the domain, or else one region of RAM: as much as the
    /// domain may have, from pseudo-physical address 0.
    pub(super) fn memory_map(&self, place: u64) -> Outcome {
        let mut map: MemoryMap = self.read(place)?;
        self.charge_copy(MAP_BYTES);
        let all = MemoryMapEntry {
            address: 0,
            size: self.domain.max_pages().saturating_mul(PAGE_BYTES),
            kind: MEMORY_MAP_RAM,
        };
        let (entries, count) = {
            let stored = self.domain.memory_map.lock();
            (stored.entries, stored.count)
        };
        let entries = if count == 0 { &[all][..] } else { entries.get(..count).unwrap_or(&[]) };
        let room = (map.nr_entries as usize).min(entries.len());
        let entries = entries.get(..room).unwrap_or(&[]);
        self.write_bytes(map.buffer, entries.as_bytes())?;
        map.nr_entries = entries.len() as u32;
        self.write(place, &map)?;
        Ok(0)
    }

    /// Argument: guest address of a [`ForeignMemoryMap`].
    pub(super) fn set_memory_map(&self, place: u64) -> Outcome {
        let request: ForeignMemoryMap = self.read(place)?;
        self.charge_copy(MAP_BYTES);
        let count = request.map.nr_entries as usize;
        if count > MAX_ENTRIES {
            return Err(Errno::EINVAL.into());
        }
        let domain = self.named_domain(request.domid)?;
        let mut entries = [NO_ENTRY; MAX_ENTRIES];
        self.read_bytes(request.map.buffer, entries.get_mut(..count).unwrap_or_default().as_mut_bytes())?;
        *domain.memory_map.lock() = StoredMap { entries, count };
        Ok(0)
    }

    /// Argument: guest address of a [`MemoryMap`], for the control domain. Without a buffer it tells how many entries there are.
    pub(super) fn machine_memory_map(&self, place: u64) -> Outcome {
        self.require_control()?;
        let mut map: MemoryMap = self.read(place)?;
        let count = self.hypervisor.frames.ram().count();
        if map.buffer != 0 {
            // As in Xen, one more than there are.
            if (map.nr_entries as usize) <= count {
                return Err(Errno::EINVAL.into());
            }
            for (number, (start, end)) in (0u64..).zip(self.hypervisor.frames.ram()) {
                self.budget.charge(REGION_COST);
                let entry =
                    MemoryMapEntry { address: start, size: end.saturating_sub(start), kind: MEMORY_MAP_RAM };
                let offset = number.saturating_mul(size_of::<MemoryMapEntry>() as u64);
                self.write(map.buffer.checked_add(offset).ok_or(Errno::EFAULT)?, &entry)?;
            }
        }
        map.nr_entries = count as u32;
        self.write(place, &map)?;
        Ok(0)
    }

    /// Argument: guest address of a [`MachphysMapping`].
    pub(super) fn m2p_window(&self, place: u64) -> Outcome {
        let end = self.hypervisor.frames.extent().1;
        let start = M::M2P_WINDOW.bytes();
        let v_end = end.checked_mul(8).and_then(|bytes| start.checked_add(bytes)).ok_or(Errno::EINVAL)?;
        let mapping = MachphysMapping { v_start: start, v_end, max_mfn: end.saturating_sub(1) };
        self.write(place, &mapping)?;
        Ok(0)
    }
}
