//! A frame that is held for as long as a value lives: for copies, which a backend makes of a frame that it has just been told of.
//!
//! The record is found once, where [`FrameTable::get`] and [`FrameTable::put`] would each look for it.

use core::mem::ManuallyDrop;

use super::FrameError;
use super::record::FrameRecord;
use super::table::FrameTable;
use crate::address::{DomainId, MachineFrame};
use crate::machine::Machine;

/// A reference to a frame, and perhaps a use of it as *writable*; both are given back when this is dropped, which may free the frame.
pub struct HeldFrame<'a, M: Machine> {
    frames: &'a FrameTable,
    machine: &'a M,
    record: &'static FrameRecord,
    frame: MachineFrame,
    writable: bool,
}

impl<M: Machine> HeldFrame<'_, M> {
    /// Which frame it is.
    #[inline(always)]
    pub fn frame(&self) -> MachineFrame {
        self.frame
    }

    /// Gives back what is held; says whether that freed the frame, as dropping it can't.
    #[inline(always)]
    pub fn release(self) -> bool {
        // Once: nothing is left to be dropped.
        ManuallyDrop::new(self).give_back()
    }

    #[inline(always)]
    fn give_back(&self) -> bool {
        if self.writable {
            self.record.drop_type();
        }
        self.frames.put_record(self.frame, self.record, self.machine)
    }
}

impl<M: Machine> Drop for HeldFrame<'_, M> {
    #[inline(always)]
    fn drop(&mut self) {
        self.give_back();
    }
}

impl FrameTable {
    /// As [`Self::get`].
    ///
    /// # Errors
    /// As [`Self::get`].
    #[inline(always)]
    pub fn hold_reference<'a, M: Machine>(
        &'a self,
        frame: MachineFrame,
        owner: DomainId,
        machine: &'a M,
    ) -> Result<HeldFrame<'a, M>, FrameError> {
        let record = self.record(frame)?;
        Self::get_record(frame, record, owner)?;
        Ok(HeldFrame { frames: self, machine, record, frame, writable: false })
    }

    /// As [`Self::get_writable`].
    ///
    /// # Errors
    /// As [`Self::get_writable`].
    #[inline(always)]
    pub fn hold_writable<'a, M: Machine>(
        &'a self,
        frame: MachineFrame,
        owner: DomainId,
        machine: &'a M,
    ) -> Result<HeldFrame<'a, M>, FrameError> {
        let record = self.record(frame)?;
        self.get_writable_record(frame, record, owner, machine)?;
        Ok(HeldFrame { frames: self, machine, record, frame, writable: true })
    }
}
