//! The frame table: every record, free memory, and references that last.
//!
//! A *reference* keeps a frame from being freed; a *use* keeps its type ([`super::uses`]). Who drops the last reference frees
//! the frame, at once and in one place: translations are flushed, the content is scrubbed, the record vacated, and only then
//! the frame is free. (Where hundreds of frames go in one stretch, they are scrubbed when they are given out: the record says so.)

use core::ops::Range;

use crate::sync::atomic::{AtomicU64, Ordering};

use spin::Once;

use super::allocator::{FreeMap, MAX_ORDER};
use super::m2p::MachineToPhysical;
use super::record::FrameRecord;
use super::words::{Hold, Use};
use super::{BootMemory, FrameError};
use crate::address::{DomainId, MachineFrame, PAGE_BYTES};
use crate::machine::{FlushScope, Level, Machine};

/// The arrays that a backend sets up for the core, all zero, before anything else. Index 0 is frame `first` in each.
pub struct Memory {
    /// The lowest frame of RAM, rounded down to a multiple of 512 frames.
    pub first: MachineFrame,
    /// One record for each frame up to the highest of RAM, holes included.
    pub records: &'static [FrameRecord],
    /// [`super::allocator::words`] for as many frames as there are records.
    pub free_map: &'static [AtomicU64],
    /// The machine-to-physical table: one entry for each record.
    pub m2p: &'static [AtomicU64],
}

pub(super) struct Tables {
    pub(super) first: u64,
    pub(super) records: &'static [FrameRecord],
    pub(super) free: FreeMap,
    pub(super) m2p: MachineToPhysical,
    /// The ranges of RAM, in bytes, as the boot loader named them; the unused ones are empty.
    ram: [(u64, u64); RAM_RANGES],
}

/// Ranges of RAM that are remembered for the machine's memory map.
const RAM_RANGES: usize = 64;

/// Frames whose last references have been dropped, and which still have to be flushed before they are free: a debt.
#[must_use = "these frames belong to nobody until they are freed"]
pub struct Unreferenced<const COUNT: usize> {
    frames: [Option<(MachineFrame, DomainId)>; COUNT],
    count: usize,
}

impl<const COUNT: usize> Default for Unreferenced<COUNT> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const COUNT: usize> Unreferenced<COUNT> {
    /// No frames.
    pub const fn new() -> Self {
        Self { frames: [None; COUNT], count: 0 }
    }

    /// Whether no further frame has room: then they have to be freed before anything else is dropped.
    pub const fn is_full(&self) -> bool {
        self.count >= COUNT
    }
}

/// When a frame that becomes free is scrubbed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scrub {
    Now,
    WhenGivenOut,
}

/// Owners whose frames are counted: every domain there can be.
pub const OWNERS: usize = 32;

// The counters below are relaxed throughout: each is a number by itself, compared with a limit or shown, and what it counts is
// ordered by the records.

/// All frames of the machine.
pub struct FrameTable {
    pub(super) tables: Once<Tables>,
    /// Frames of each owner, from the moment they are given to the moment they are free again: a frame that its owner
    /// has given up, but still has mapped, counts. Otherwise a guest could hoard memory beyond its share.
    owned: [AtomicU64; OWNERS],
    /// Frames that were ever made free for the first time: those that are somebody's or free, now and always.
    managed: AtomicU64,
    /// Flushes that changes of type have caused.
    pub(super) type_flushes: AtomicU64,
    /// Time spent on scrubbing, in [`crate::machine::Board::ticks`].
    scrub_ticks: AtomicU64,
}

impl Default for FrameTable {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameTable {
    /// A table without frames, until [`Self::initialise`].
    pub const fn new() -> Self {
        Self {
            tables: Once::new(),
            owned: [const { AtomicU64::new(0) }; OWNERS],
            managed: AtomicU64::new(0),
            type_flushes: AtomicU64::new(0),
            scrub_ticks: AtomicU64::new(0),
        }
    }

    /// Takes over the backend's arrays; what `boot` has not given away becomes free memory.
    pub fn initialise(&self, memory: Memory, boot: &BootMemory, invalid_m2p: u64) {
        let first = memory.first.number();
        let mut ram = [(0, 0); RAM_RANGES];
        ram.iter_mut().zip(boot.ram()).for_each(|(slot, range)| *slot = range);
        let tables = self.tables.call_once(|| Tables {
            first,
            records: memory.records,
            free: FreeMap::new(memory.free_map, memory.records.len()),
            m2p: MachineToPhysical::new(memory.first, memory.m2p, invalid_m2p),
            ram,
        });
        // Relaxed: nobody else is there yet.
        memory.m2p.iter().for_each(|entry| entry.store(invalid_m2p, Ordering::Relaxed));
        // No record is in use yet, so whole ranges are free.
        boot.for_each_free_range(|start, end| {
            let index = |number: u64| number.saturating_sub(first) as usize;
            let given = tables.free.give_range(index(start), index(end).min(memory.records.len()));
            self.managed.fetch_add(given as u64, Ordering::Relaxed);
        });
    }

    /// Makes memory free that was in use during boot: whole frames within the bytes `start..end`, of those that nobody owns.
    pub fn release_boot_memory(&self, start: u64, end: u64) {
        if let (Some(tables), Some(up)) = (self.tables.get(), start.checked_next_multiple_of(PAGE_BYTES)) {
            self.managed.fetch_add(tables.free_range(up / PAGE_BYTES, end / PAGE_BYTES), Ordering::Relaxed);
        }
    }

    /// Takes memory for use during boot: at least `bytes` bytes in one piece, which are nobody's and not free until they are given to
    /// [`Self::release_boot_memory`]. Their machine addresses, as a range; they hold whatever was there before.
    pub fn take_boot_memory(&self, bytes: u64) -> Option<Range<u64>> {
        const CHUNK_BYTES: u64 = PAGE_BYTES << MAX_ORDER;
        let tables = self.tables.get()?;
        let chunks = bytes.div_ceil(CHUNK_BYTES).max(1);
        let index = tables.free.take_chunks(usize::try_from(chunks).ok()?)?;
        let frames = chunks.checked_mul(1 << MAX_ORDER)?;
        tables.records.iter().skip(index).take(frames as usize).for_each(|record| record.vacate(false));
        self.managed.fetch_sub(frames, Ordering::Relaxed);
        let start = tables.first.checked_add(index as u64)?.checked_mul(PAGE_BYTES)?;
        Some(start..start.checked_add(chunks.checked_mul(CHUNK_BYTES)?)?)
    }

    #[inline(always)]
    pub(super) fn record(&self, frame: MachineFrame) -> Result<&'static FrameRecord, FrameError> {
        let lookup = || {
            let tables = self.tables.get()?;
            // Below the first, this wraps around, to an index that no array has.
            tables.records.get(frame.number().wrapping_sub(tables.first) as usize)
        };
        lookup().ok_or(FrameError::NotMemory(frame))
    }

    /// The level at which a frame is a complete table of `owner`'s, in use; `None` if it is none.
    #[inline]
    pub fn table_level(&self, frame: MachineFrame, owner: DomainId) -> Option<Level> {
        self.record(frame).ok().map(|record| record.table_level(owner)).filter(|level| *level != 0)
    }

    /// The references and owner of a frame, or `None` if it isn't memory.
    pub fn hold(&self, frame: MachineFrame) -> Option<Hold> {
        self.record(frame).ok().map(FrameRecord::hold)
    }

    /// The type and uses of a frame, or `None` if it isn't memory.
    pub fn usage(&self, frame: MachineFrame) -> Option<Use> {
        self.record(frame).ok().map(FrameRecord::usage)
    }

    /// The machine-to-physical table, once there is one.
    pub fn m2p(&self) -> Option<&MachineToPhysical> {
        self.tables.get().map(|tables| &tables.m2p)
    }

    /// The map of free frames, once there is one.
    pub fn free_map(&self) -> Option<&FreeMap> {
        self.tables.get().map(|tables| &tables.free)
    }

    /// Frames that nobody owns and that could be given out.
    pub fn free_frames(&self) -> usize {
        self.free_map().map_or(0, FreeMap::free_frames)
    }

    /// The frame numbers that the table covers, holes included: first, and one past the last.
    pub fn extent(&self) -> (u64, u64) {
        let end = |tables: &Tables| tables.first.saturating_add(tables.records.len() as u64);
        self.tables.get().map_or((0, 0), |tables| (tables.first, end(tables)))
    }

    /// The machine's RAM, hypervisor and all: ranges in bytes.
    pub fn ram(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.tables.get().into_iter().flat_map(|tables| tables.ram).filter(|(start, end)| start < end)
    }

    /// How many flushes changes of type have caused so far.
    pub fn type_flushes(&self) -> u64 {
        self.type_flushes.load(Ordering::Relaxed)
    }

    /// Time spent on scrubbing so far, in [`crate::machine::Board::ticks`].
    pub fn scrub_ticks(&self) -> u64 {
        self.scrub_ticks.load(Ordering::Relaxed)
    }

    /// Frames that are somebody's or free, as they were counted when they came into the table's hands.
    pub fn managed(&self) -> u64 {
        self.managed.load(Ordering::Relaxed)
    }

    /// Frames that are `owner`'s.
    pub fn owned(&self, owner: DomainId) -> u64 {
        self.owned.get(usize::from(owner.number())).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Takes a free frame for `owner`, scrubbed, with one reference: the owner's claim. `None`: no memory, or the
    /// owner has `limit` frames already.
    pub fn allocate<M: Machine>(&self, owner: DomainId, limit: u64, machine: &M) -> Option<MachineFrame> {
        if !self.count_in(owner, 1, limit) {
            return None;
        }
        let frame = self.take_free(owner, machine);
        if frame.is_none() {
            self.count_out(owner, 1);
        }
        frame
    }

    /// Counts so many more frames as `owner`'s, if it then has no more than `limit`.
    pub(super) fn count_in(&self, owner: DomainId, frames: u64, limit: u64) -> bool {
        let Some(owned) = self.owned.get(usize::from(owner.number())) else { return false };
        // Relaxed: a number that is only compared with a limit.
        let update = owned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            count.checked_add(frames).filter(|count| *count <= limit)
        });
        update.is_ok()
    }

    pub(super) fn count_out(&self, owner: DomainId, frames: u64) {
        if let Some(owned) = self.owned.get(usize::from(owner.number())) {
            owned.fetch_sub(frames, Ordering::Relaxed);
        }
    }

    fn take_free<M: Machine>(&self, owner: DomainId, machine: &M) -> Option<MachineFrame> {
        let tables = self.tables.get()?;
        let index = tables.free.take()?;
        let frame = MachineFrame::new(tables.first.checked_add(index as u64)?)?;
        let record = tables.records.get(index)?;
        // Before it is anybody's: another vCPU of the owner may have guessed its number.
        if !record.is_scrubbed() {
            self.scrub(frame, machine);
        }
        record.assign(owner);
        Some(frame)
    }

    pub(super) fn scrub<M: Machine>(&self, frame: MachineFrame, machine: &M) {
        let start = machine.ticks();
        machine.scrub_frame(frame);
        self.scrub_ticks.fetch_add(machine.ticks().wrapping_sub(start), Ordering::Relaxed);
    }

    /// Counts one more reference to a frame of `owner`'s.
    ///
    /// # Errors
    /// Not memory, not the owner's, or too many references.
    #[inline(always)]
    pub fn get(&self, frame: MachineFrame, owner: DomainId) -> Result<(), FrameError> {
        Self::get_record(frame, self.record(frame)?, owner)
    }

    #[inline(always)]
    pub(super) fn get_record(
        frame: MachineFrame,
        record: &FrameRecord,
        owner: DomainId,
    ) -> Result<(), FrameError> {
        match record.get(owner) {
            Some(true) => Ok(()),
            Some(false) => Err(FrameError::TooManyReferences(frame)),
            None => Err(FrameError::NotOwned(frame)),
        }
    }

    /// Drops a reference; frees the frame if it was the last, and says so.
    #[inline(always)]
    pub fn put<M: Machine>(&self, frame: MachineFrame, machine: &M) -> bool {
        self.record(frame).is_ok_and(|record| self.put_record(frame, record, machine))
    }

    #[inline(always)]
    pub(super) fn put_record<M: Machine>(
        &self,
        frame: MachineFrame,
        record: &FrameRecord,
        machine: &M,
    ) -> bool {
        let Some(owner) = record.put() else { return false };
        self.free_flushed(frame, record, owner, machine);
        true
    }

    #[cold]
    fn free_flushed<M: Machine>(
        &self,
        frame: MachineFrame,
        record: &FrameRecord,
        owner: DomainId,
        machine: &M,
    ) {
        // Someone may have cached a translation of this frame, if only to read it.
        machine.flush(FlushScope::Everything);
        self.free(frame, record, owner, machine, Scrub::Now);
    }

    /// Drops a reference; frees the frame if it was the last, and says so. It is scrubbed when it is given out again: for who can't
    /// stop before hundreds of them are dropped.
    pub fn put_unscrubbed<M: Machine>(&self, frame: MachineFrame, machine: &M) -> bool {
        let Ok(record) = self.record(frame) else { return false };
        let Some(owner) = record.put() else { return false };
        machine.flush(FlushScope::Everything);
        self.free(frame, record, owner, machine, Scrub::WhenGivenOut);
        true
    }

    /// Drops a reference; if it was the last, the frame goes into `dropped`, to be freed with others by [`Self::free_all`].
    pub fn put_into<const COUNT: usize>(&self, frame: MachineFrame, dropped: &mut Unreferenced<COUNT>) {
        let Ok(record) = self.record(frame) else { return };
        if let (Some(owner), Some(slot)) = (record.put(), dropped.frames.get_mut(dropped.count)) {
            *slot = Some((frame, owner));
            dropped.count = dropped.count.saturating_add(1);
        }
    }

    /// Frees frames whose last references are gone, with one flush for all of them.
    pub fn free_all<const COUNT: usize, M: Machine>(&self, dropped: Unreferenced<COUNT>, machine: &M) {
        if dropped.count > 0 {
            machine.flush(FlushScope::Everything);
        }
        for (frame, owner) in dropped.frames.into_iter().flatten() {
            if let Ok(record) = self.record(frame) {
                self.free(frame, record, owner, machine, Scrub::Now);
            }
        }
    }

    /// Makes a frame free that nobody holds any more, and of which no translation is cached.
    #[inline(always)]
    fn free<M: Machine>(
        &self,
        frame: MachineFrame,
        record: &FrameRecord,
        owner: DomainId,
        machine: &M,
        scrub: Scrub,
    ) {
        let Some(tables) = self.tables.get() else { return };
        if scrub == Scrub::Now {
            self.scrub(frame, machine);
        }
        tables.m2p.set(frame, None);
        record.vacate(scrub == Scrub::Now);
        self.count_out(owner, 1);
        if let Some(index) = frame.number().checked_sub(tables.first) {
            tables.free.give(index as usize);
        }
    }

    /// Takes away the owner's claim; `true` if the caller now has that reference to drop.
    pub fn unclaim(&self, frame: MachineFrame) -> bool {
        self.record(frame).is_ok_and(FrameRecord::unclaim)
    }
}

impl Tables {
    /// Makes the frames numbered `start..end` free, if nobody holds them; returns how many weren't free before.
    fn free_range(&self, start: u64, end: u64) -> u64 {
        let limit = self.first.saturating_add(self.records.len() as u64);
        let indices =
            (start.max(self.first)..end.min(limit)).map(|number| number.saturating_sub(self.first) as usize);
        let unowned =
            |index: &usize| self.records.get(*index).is_some_and(|record| record.hold().owner.is_none());
        indices.filter(unowned).filter(|index| self.free.give(*index)).count() as u64
    }
}
