//! What a domain has borrowed: mappings by handle.
//!
//! A handle is the number of a slot. Free slots form a list, so that taking one costs the same however many are in use. A
//! slot all of zeros is free.

use super::MAX_MAPS;
use crate::address::{DomainId, MachineFrame};

bitflags::bitflags! {
    /// What a slot says.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    struct Flags: u16 {
        /// The slot stands for a pin.
        const LIVE = 1 << 0;
        /// Mapped at an address of the borrower's.
        const HOST = 1 << 1;
        /// Mapped for devices.
        const DEVICE = 1 << 2;
        /// The pin allows writing.
        const WRITABLE = 1 << 3;
        /// The address is that of an entry.
        const BY_ENTRY = 1 << 4;
    }
}

/// One grant that is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lent {
    /// Who lends.
    pub lender: DomainId,
    /// The grant reference.
    pub reference: u32,
    /// The frame.
    pub frame: MachineFrame,
    /// Whether it may be written to.
    pub writable: bool,
    /// Whether there is a mapping at an address of the borrower's.
    pub host: bool,
    /// Whether there is a mapping for devices.
    pub device: bool,
    /// Whether the address was given as that of a page-table entry.
    pub by_entry: bool,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// Entries of version 1 name no frame beyond 32 bits.
    frame: u32,
    reference: u32,
    lender: u16,
    flags: Flags,
    /// Of a free slot: the next free one plus one, 0 for none.
    next: u16,
}

impl Slot {
    const FREE: Self = Self { frame: 0, reference: 0, lender: 0, flags: Flags::empty(), next: 0 };

    fn lent(&self) -> Option<Lent> {
        self.flags.contains(Flags::LIVE).then_some(())?;
        Some(Lent {
            lender: DomainId::new(self.lender),
            reference: self.reference,
            frame: MachineFrame::new(u64::from(self.frame))?,
            writable: self.flags.contains(Flags::WRITABLE),
            host: self.flags.contains(Flags::HOST),
            device: self.flags.contains(Flags::DEVICE),
            by_entry: self.flags.contains(Flags::BY_ENTRY),
        })
    }
}

/// A domain's handles.
#[derive(Debug)]
pub struct MapTrack {
    slots: [Slot; MAX_MAPS],
    /// First of the free slots that were used before, plus one; 0 for none.
    free: u16,
    /// Slots that were ever used.
    used: u16,
}

impl Default for MapTrack {
    fn default() -> Self {
        Self::new()
    }
}

impl MapTrack {
    /// Nothing borrowed.
    pub const fn new() -> Self {
        Self { slots: [Slot::FREE; MAX_MAPS], free: 0, used: 0 }
    }

    /// Whether [`Self::add`] would find a slot.
    pub fn has_room(&self) -> bool {
        self.free != 0 || usize::from(self.used) < MAX_MAPS
    }

    /// Enters a mapping; its handle, unless there is no room.
    pub fn add(&mut self, lent: Lent) -> Option<u32> {
        let index = match self.free.checked_sub(1) {
            Some(index) => {
                self.free = self.slots.get(usize::from(index))?.next;
                index
            }
            None => {
                let index = self.used;
                (usize::from(index) < MAX_MAPS).then_some(())?;
                self.used = self.used.saturating_add(1);
                index
            }
        };
        let mut flags = Flags::LIVE;
        flags.set(Flags::HOST, lent.host);
        flags.set(Flags::DEVICE, lent.device);
        flags.set(Flags::WRITABLE, lent.writable);
        flags.set(Flags::BY_ENTRY, lent.by_entry);
        *self.slots.get_mut(usize::from(index))? = Slot {
            frame: lent.frame.number() as u32,
            reference: lent.reference,
            lender: lent.lender.number(),
            flags,
            next: 0,
        };
        Some(u32::from(index))
    }

    /// The mapping with this handle, if there is one.
    pub fn get(&self, handle: u32) -> Option<Lent> {
        self.slots.get(usize::try_from(handle).ok()?)?.lent()
    }

    /// Says that the mapping at the borrower's address is gone (`host`), or that for devices (`device`). The pin stays.
    pub fn detach(&mut self, handle: u32, host: bool, device: bool) {
        if let Some(slot) = self.slots.get_mut(handle as usize) {
            slot.flags.remove(if host { Flags::HOST } else { Flags::empty() });
            slot.flags.remove(if device { Flags::DEVICE } else { Flags::empty() });
        }
    }

    /// Takes a mapping out, with its pin, which the caller has to give back.
    pub fn remove(&mut self, handle: u32) -> Option<Lent> {
        let index = u16::try_from(handle).ok()?;
        let slot = self.slots.get_mut(usize::from(index))?;
        let lent = slot.lent()?;
        *slot = Slot { next: self.free, ..Slot::FREE };
        self.free = index.saturating_add(1);
        Some(lent)
    }

    /// All mappings.
    pub fn iter(&self) -> impl Iterator<Item = Lent> {
        self.slots.iter().take(usize::from(self.used)).filter_map(Slot::lent)
    }

    /// Whether some mapping at an address of the borrower's leads to this frame, with exactly these rights.
    pub fn has(&self, frame: MachineFrame, writable: bool) -> bool {
        self.iter().any(|lent| lent.host && lent.frame == frame && lent.writable == writable)
    }

    /// Whether some mapping at an address of the borrower's leads to this frame, with these rights or more.
    pub fn lends(&self, frame: MachineFrame, to_write: bool) -> bool {
        self.iter().any(|lent| lent.host && lent.frame == frame && (lent.writable || !to_write))
    }

    /// Takes any mapping out, with its pin. Only for a domain that has died: nothing is to be added until there are none left.
    pub fn take_any(&mut self) -> Option<Lent> {
        self.free = 0;
        while let Some(last) = self.used.checked_sub(1) {
            self.used = last;
            let slot = self.slots.get_mut(usize::from(last))?;
            if let Some(lent) = core::mem::replace(slot, Slot::FREE).lent() {
                return Some(lent);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lent(reference: u32) -> Lent {
        Lent {
            lender: DomainId::new(3),
            reference,
            frame: MachineFrame::new(77).unwrap(),
            writable: true,
            host: true,
            device: false,
            by_entry: false,
        }
    }

    #[test]
    fn a_handle_is_good_until_its_mapping_is_removed() {
        let mut maps = MapTrack::new();
        assert_eq!((maps.get(0), maps.remove(0)), (None, None));
        let (one, two) = (maps.add(lent(1)).unwrap(), maps.add(lent(2)).unwrap());
        assert_eq!((maps.get(one), maps.get(two)), (Some(lent(1)), Some(lent(2))));
        assert_eq!(maps.remove(one), Some(lent(1)));
        assert_eq!((maps.get(one), maps.remove(one)), (None, None));
        assert_eq!(maps.iter().collect::<Vec<_>>(), [lent(2)]);
        assert_eq!(maps.add(lent(3)), Some(one), "a free slot is used again");
        for handle in [2, MAX_MAPS as u32, 0x1_0000, u32::MAX] {
            assert_eq!((maps.get(handle), maps.remove(handle)), (None, None));
        }
    }

    #[test]
    fn there_is_room_for_exactly_so_many() {
        let mut maps = MapTrack::new();
        for number in 0..MAX_MAPS as u32 {
            assert!(maps.has_room());
            assert_eq!(maps.add(lent(number)), Some(number));
        }
        assert_eq!((maps.has_room(), maps.add(lent(0))), (false, None));
        for handle in [9, 4] {
            maps.remove(handle).unwrap();
        }
        assert_eq!((maps.add(lent(0)), maps.add(lent(0)), maps.add(lent(0))), (Some(4), Some(9), None));
    }

    #[test]
    fn a_dead_domain_gives_up_all_and_its_successor_begins_anew() {
        let mut maps = MapTrack::new();
        for number in 0..5 {
            maps.add(lent(number)).unwrap();
        }
        maps.remove(1).unwrap();
        maps.remove(4).unwrap();
        let taken: Vec<_> = core::iter::from_fn(|| maps.take_any()).map(|lent| lent.reference).collect();
        assert_eq!(taken, [3, 2, 0]);
        assert_eq!(maps.iter().count(), 0);
        for number in 0..MAX_MAPS as u32 {
            assert_eq!(maps.add(lent(number)), Some(number));
        }
    }

    #[test]
    fn a_frame_is_lent_as_long_as_it_is_mapped_and_with_the_rights_granted() {
        let mut maps = MapTrack::new();
        let frame = lent(1).frame;
        let lends = |maps: &MapTrack| (maps.lends(frame, false), maps.lends(frame, true));
        assert_eq!(lends(&maps), (false, false));
        maps.add(Lent { writable: false, ..lent(1) }).unwrap();
        assert_eq!(lends(&maps), (true, false), "to read only");
        let writable = maps.add(lent(2)).unwrap();
        assert_eq!(lends(&maps), (true, true));
        maps.detach(writable, true, false);
        assert_eq!(lends(&maps), (true, false), "a pin without a mapping lends nothing");
        assert!(!maps.lends(MachineFrame::new(78).unwrap(), false));
    }

    #[test]
    fn the_parts_of_a_mapping_go_one_by_one() {
        let mut maps = MapTrack::new();
        let handle = maps.add(Lent { device: true, ..lent(1) }).unwrap();
        maps.detach(handle, true, false);
        assert_eq!(maps.get(handle), Some(Lent { host: false, device: true, ..lent(1) }));
        maps.detach(handle, false, true);
        assert_eq!(maps.get(handle), Some(Lent { host: false, ..lent(1) }), "the pin is still there");
    }
}
