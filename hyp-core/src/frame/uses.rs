//! The types of frames: taken, flushed for, completed, given back.
//!
//! A *use* keeps a frame's type; [`FrameTable::get_writable`] takes one together with the reference that keeps the frame
//! itself. Types change in one place, `FrameTable::lock_type`, and with them the flush that a change owes is in one place.

use crate::sync::atomic::Ordering;

use super::FrameError;
use super::record::{FrameRecord, Taken, TypeError};
use super::table::FrameTable;
use super::words::{EntryPlace, FrameType};
use crate::address::{DomainId, MachineFrame};
use crate::machine::{FlushScope, Level, Machine};

/// How [`FrameTable::lock_table`] found a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Locked {
    /// Every entry is validated.
    Complete,
    /// Some aren't: the caller has to see to it.
    Incomplete,
}

/// A use of a frame, found by [`FrameTable::use_of`]. Dropped, it stays the caller's.
#[must_use]
pub struct FoundUse(&'static FrameRecord);

impl FoundUse {
    /// Gives the use back, of whatever type, and keeps the reference.
    #[inline(always)]
    pub fn end(self) {
        self.0.drop_type();
    }
}

/// The records of all frames, found once for many of them.
#[derive(Clone, Copy)]
pub struct Records {
    first: u64,
    records: &'static [FrameRecord],
}

impl Records {
    /// The record of a frame; `None` if it isn't memory.
    #[inline(always)]
    pub(crate) fn of(self, frame: MachineFrame) -> Option<&'static FrameRecord> {
        // Below the first, this wraps around, to an index that no array has.
        self.records.get(frame.number().wrapping_sub(self.first) as usize)
    }

    /// The record of a frame, if it is `owner`'s.
    #[inline(always)]
    pub(crate) fn owned(self, frame: MachineFrame, owner: DomainId) -> Option<&'static FrameRecord> {
        self.of(frame).filter(|record| record.is_owned_by(owner))
    }
}

impl FrameTable {
    /// The records; `None` before there are any.
    #[inline(always)]
    pub fn records(&self) -> Option<Records> {
        self.tables.get().map(|tables| Records { first: tables.first, records: tables.records })
    }

    /// Counts a reference and a use as *writable*.
    ///
    /// # Errors
    /// As [`Self::get`]; or the frame is in use as a table.
    #[inline(always)]
    pub fn get_writable<M: Machine>(
        &self,
        frame: MachineFrame,
        owner: DomainId,
        machine: &M,
    ) -> Result<(), FrameError> {
        self.get_writable_record(frame, self.record(frame)?, owner, machine)
    }

    /// As [`Self::get_writable`], of a record that is found already.
    #[inline(always)]
    pub(super) fn get_writable_record<M: Machine>(
        &self,
        frame: MachineFrame,
        record: &FrameRecord,
        owner: DomainId,
        machine: &M,
    ) -> Result<(), FrameError> {
        Self::get_record(frame, record, owner)?;
        if record.take_writable() {
            return Ok(());
        }
        self.lock_writable(frame, machine).inspect_err(|_| {
            self.put_record(frame, record, machine);
        })
    }

    /// Counts a use as *writable* of a frame that the caller holds by a reference which stays its own; the frame is `owner`'s.
    ///
    /// # Errors
    /// As [`Self::get_writable`].
    #[inline(always)]
    pub fn use_writable<M: Machine>(
        &self,
        frame: MachineFrame,
        owner: DomainId,
        machine: &M,
    ) -> Result<(), FrameError> {
        let record = self.record(frame)?;
        if !record.is_owned_by(owner) {
            return Err(FrameError::NotOwned(frame));
        }
        if record.take_writable() { Ok(()) } else { self.lock_writable(frame, machine) }
    }

    #[cold]
    fn lock_writable<M: Machine>(&self, frame: MachineFrame, machine: &M) -> Result<(), FrameError> {
        self.lock_type(frame, FrameType::Writable, machine).map(drop)
    }

    /// A use that the caller has, of a frame of `owner`'s, found once: to be judged now and ended later.
    ///
    /// # Errors
    /// Not memory, or not the owner's.
    #[inline(always)]
    pub fn use_of(&self, frame: MachineFrame, owner: DomainId) -> Result<FoundUse, FrameError> {
        let record = self.record(frame)?;
        if record.is_owned_by(owner) { Ok(FoundUse(record)) } else { Err(FrameError::NotOwned(frame)) }
    }

    /// Gives back a use of any type, and keeps the reference.
    #[inline]
    pub fn drop_use(&self, frame: MachineFrame) {
        if let Ok(record) = self.record(frame) {
            record.drop_type();
        }
    }

    /// Gives back a use of any type, and its reference; says whether that freed the frame.
    #[inline(always)]
    pub fn put_use<M: Machine>(&self, frame: MachineFrame, machine: &M) -> bool {
        let Ok(record) = self.record(frame) else { return false };
        record.drop_type();
        self.put_record(frame, record, machine)
    }

    /// Counts a reference and a use as a table of `level`. An incomplete table is the caller's to validate.
    ///
    /// # Errors
    /// As [`Self::get`]; or the frame is writable somewhere, or a table of another level.
    pub fn lock_table<M: Machine>(
        &self,
        frame: MachineFrame,
        level: Level,
        owner: DomainId,
        machine: &M,
    ) -> Result<Locked, FrameError> {
        self.lock_judged(frame, FrameType::Table(level), owner, machine)
    }

    /// Counts a reference and a use as a page of segment descriptors. The content of an incomplete one is the caller's to judge, and
    /// then to call [`Self::complete`], or [`Self::put_use`].
    ///
    /// # Errors
    /// As [`Self::lock_table`].
    pub fn lock_descriptors<M: Machine>(
        &self,
        frame: MachineFrame,
        owner: DomainId,
        machine: &M,
    ) -> Result<Locked, FrameError> {
        self.lock_judged(frame, FrameType::Descriptors, owner, machine)
    }

    fn lock_judged<M: Machine>(
        &self,
        frame: MachineFrame,
        kind: FrameType,
        owner: DomainId,
        machine: &M,
    ) -> Result<Locked, FrameError> {
        let record = self.record(frame)?;
        Self::get_record(frame, record, owner)?;
        if record.take_complete(kind) {
            return Ok(Locked::Complete);
        }
        match self.lock_type(frame, kind, machine) {
            Ok(Taken::Ready) => Ok(Locked::Complete),
            Ok(_) => Ok(Locked::Incomplete),
            Err(error) => {
                self.put(frame, machine);
                Err(error)
            }
        }
    }

    /// Counts a reference and a use of a table that is complete; otherwise nothing has changed (`false`), and [`Self::lock_table`]
    /// says why.
    #[inline(always)]
    pub fn get_complete_table<M: Machine>(
        &self,
        frame: MachineFrame,
        level: Level,
        owner: DomainId,
        machine: &M,
    ) -> bool {
        self.record(frame).is_ok_and(|record| self.get_complete_record(frame, record, level, owner, machine))
    }

    /// As [`Self::get_complete_table`], of a record that is found already.
    #[inline(always)]
    pub(crate) fn get_complete_record<M: Machine>(
        &self,
        frame: MachineFrame,
        record: &FrameRecord,
        level: Level,
        owner: DomainId,
        machine: &M,
    ) -> bool {
        if record.get(owner) != Some(true) {
            return false;
        }
        let taken = record.take_complete(FrameType::Table(level));
        if !taken {
            self.put_record(frame, record, machine);
        }
        taken
    }

    /// Gives back one use as a table, and its reference, unless it is the last use, whose entries come first; `false` then, and nothing
    /// has changed.
    #[inline(always)]
    pub fn put_one_of_many<M: Machine>(&self, frame: MachineFrame, machine: &M) -> bool {
        self.record(frame).is_ok_and(|record| self.put_one_of_many_record(frame, record, machine))
    }

    /// As [`Self::put_one_of_many`], of a record that is found already.
    #[inline(always)]
    pub(crate) fn put_one_of_many_record<M: Machine>(
        &self,
        frame: MachineFrame,
        record: &FrameRecord,
        machine: &M,
    ) -> bool {
        let one_of_many = record.drop_one_of_many();
        if one_of_many {
            self.put_record(frame, record, machine);
        }
        one_of_many
    }

    /// Gives back one use as a table, and its reference. The last use's entries hold nothing any more.
    pub fn unlock_table<M: Machine>(&self, frame: MachineFrame, machine: &M) {
        self.put_use(frame, machine);
    }

    /// The one place where a frame changes its type, and with it the one place that flushes for it: after the new
    /// type is locked, before it is used.
    fn lock_type<M: Machine>(
        &self,
        frame: MachineFrame,
        kind: FrameType,
        machine: &M,
    ) -> Result<Taken, FrameError> {
        let record = self.record(frame)?;
        let taken = record.take_type(kind).map_err(|error| match error {
            TypeError::Conflict(kind) => FrameError::InUse(frame, kind),
            TypeError::Overflow => FrameError::TooManyReferences(frame),
        })?;
        if let Taken::First { flush } = taken {
            if flush {
                // Relaxed: a number for those who charge for it.
                self.type_flushes.fetch_add(1, Ordering::Relaxed);
                machine.flush(FlushScope::Everything);
            }
            if kind == FrameType::Writable {
                record.complete();
            }
        }
        Ok(taken)
    }

    /// Says that every entry of a table is validated.
    pub fn complete(&self, frame: MachineFrame) {
        if let Ok(record) = self.record(frame) {
            record.complete();
        }
    }

    /// Says that a table is incomplete, and that its first `progress` entries hold references.
    pub fn set_progress(&self, frame: MachineFrame, progress: usize) {
        if let Ok(record) = self.record(frame) {
            record.set_progress(progress);
        }
    }

    /// Remembers that the entry `index` of the table `parent` leads to the complete table `frame`: a hint, which
    /// [`Self::parent_hint`] gives back.
    pub fn set_hint(&self, frame: MachineFrame, parent: MachineFrame, index: usize) {
        let place = self.tables.get().and_then(|tables| {
            let record = u32::try_from(parent.number().checked_sub(tables.first)?).ok()?;
            Some(EntryPlace { record, index: u16::try_from(index).ok()? })
        });
        if let (Ok(record), Some(place)) = (self.record(frame), place) {
            record.set_hint(place);
        }
    }

    /// Where an entry was last made to lead to a complete table: the table that held it, and its index. It may have changed since.
    pub fn parent_hint(&self, frame: MachineFrame) -> Option<(MachineFrame, usize)> {
        let hint = self.usage(frame)?.hint()?;
        let parent = MachineFrame::new(self.extent().0.checked_add(u64::from(hint.record))?)?;
        Some((parent, usize::from(hint.index)))
    }

    /// Marks one use as a pin, or takes the mark away.
    pub fn set_pinned(&self, frame: MachineFrame, pinned: bool) {
        if let Ok(record) = self.record(frame) {
            record.set_pinned(pinned);
        }
    }
}
