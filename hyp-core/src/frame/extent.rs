//! Many frames at once: aligned runs that are given out, and frames that are taken from their owner.
//!
//! An extent is given out in two steps. It is *reserved*: taken from free memory, counted as its future owner's, and scrubbed, for
//! which the reservation can stop and be tried again (what is scrubbed stays so). Nobody can reach its frames yet. Then it is
//! *committed*, which can't fail, or *cancelled*, which leaves no trace. Whoever has to tell a guest where its memory is does
//! that in between.
//!
//! A frame is *stolen* only if its owner's claim is the last reference there is: then no entry anywhere leads to it, and nothing is known
//! about it that could be wrong later (XSA-287). Stolen frames are nobody's until they are put back, or freed as any frame is:
//! flushed first, their type forgotten (XSA-214). They are scrubbed when they are given out again.

use super::table::FrameTable;
use crate::address::{DomainId, MachineFrame};
use crate::machine::{FlushScope, Machine};

/// A run of frames set aside for a domain.
#[derive(Clone, Copy, Debug)]
#[must_use = "a reserved extent is nobody's until it is committed or cancelled"]
pub struct Extent {
    /// The first frame; its number is a multiple of the extent's size.
    pub first: MachineFrame,
    /// log2 of the number of frames.
    pub order: u32,
    owner: DomainId,
}

impl Extent {
    /// The frames, in order.
    pub fn frames(&self) -> impl Iterator<Item = MachineFrame> + use<> {
        run(self.first, self.order)
    }
}

/// What is asked of a reservation.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Whose the frames shall be.
    pub owner: DomainId,
    /// How many frames the owner may have, these included.
    pub limit: u64,
    /// log2 of the number of frames.
    pub order: u32,
    /// One past the highest frame number allowed.
    pub end: u64,
}

/// Why there is no extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoExtent {
    /// The owner may not have so many frames, or there is no such run of free memory.
    None,
    /// Not all of it could be scrubbed yet.
    Preempted,
}

/// `2^order` frames from `first` on, as far as such frames can be.
pub fn run(first: MachineFrame, order: u32) -> impl Iterator<Item = MachineFrame> {
    (0..1u64.checked_shl(order).unwrap_or(0)).filter_map(move |offset| first.checked_add(offset))
}

/// Frames that follow each other are given to the allocator together: it looks for runs each time that it is given something.
#[derive(Default)]
struct Runs {
    first: u64,
    count: usize,
}

impl Runs {
    /// Adds frames; the run before them, if they don't go on with it: first frame's number, and how many.
    fn add(&mut self, first: MachineFrame, count: usize) -> Option<(u64, usize)> {
        if first.number() == self.first.saturating_add(self.count as u64) {
            self.count = self.count.saturating_add(count);
            return None;
        }
        let before = self.last();
        (self.first, self.count) = (first.number(), count);
        Some(before)
    }

    /// The run that was added last; it may be empty.
    fn last(&self) -> (u64, usize) {
        (self.first, self.count)
    }
}

impl FrameTable {
    /// Sets an extent aside. `go_on` is asked after each frame that had to be scrubbed.
    ///
    /// # Errors
    /// [`NoExtent`]; nothing has changed then, but that some free frames may be scrubbed.
    pub fn reserve<M: Machine>(
        &self,
        wanted: Wanted,
        machine: &M,
        go_on: impl FnMut() -> bool,
    ) -> Result<Extent, NoExtent> {
        let size = 1u64.checked_shl(wanted.order).ok_or(NoExtent::None)?;
        if !self.count_in(wanted.owner, size, wanted.limit) {
            return Err(NoExtent::None);
        }
        let first = self.take_scrubbed(wanted, machine, go_on);
        let first = first.inspect_err(|_| self.count_out(wanted.owner, size))?;
        Ok(Extent { first, order: wanted.order, owner: wanted.owner })
    }

    fn take_scrubbed<M: Machine>(
        &self,
        wanted: Wanted,
        machine: &M,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<MachineFrame, NoExtent> {
        let tables = self.tables.get().ok_or(NoExtent::None)?;
        let end = usize::try_from(wanted.end.saturating_sub(tables.first)).unwrap_or(usize::MAX);
        let index = tables.free.take_run(wanted.order, end).ok_or(NoExtent::None)?;
        let number = tables.first.saturating_add(index as u64);
        let first = MachineFrame::new(number).ok_or(NoExtent::None)?;
        for frame in run(first, wanted.order) {
            let Ok(record) = self.record(frame) else { continue };
            if !record.is_scrubbed() {
                self.scrub(frame, machine);
                record.vacate(true);
                if !go_on() {
                    tables.free.give_range(index, index.saturating_add(1usize << wanted.order));
                    return Err(NoExtent::Preempted);
                }
            }
        }
        Ok(first)
    }

    /// Gives a reserved extent to its owner, who has the claim to each frame from now on.
    pub fn commit(&self, extent: Extent) {
        for record in extent.frames().filter_map(|frame| self.record(frame).ok()) {
            record.assign(extent.owner);
        }
    }

    /// Makes a reserved extent free memory again.
    pub fn cancel(&self, extent: Extent) {
        self.cancel_all(core::iter::once(extent));
    }

    /// Makes reserved extents free memory again.
    pub fn cancel_all(&self, extents: impl Iterator<Item = Extent>) {
        let mut runs = Runs::default();
        for extent in extents {
            self.give(runs.add(extent.first, 1usize << extent.order));
            self.count_out(extent.owner, 1u64 << extent.order);
        }
        self.give(Some(runs.last()));
    }

    /// Says to the allocator that a run of frames is free: first frame's number, and how many.
    fn give(&self, run: Option<(u64, usize)>) {
        if let (Some(tables), Some((first, count))) = (self.tables.get(), run) {
            let start = first.saturating_sub(tables.first) as usize;
            tables.free.give_range(start, start.saturating_add(count));
        }
    }

    /// Takes a frame away from its owner, if the owner's claim is all that holds it and it is used as nothing. It is nobody's then.
    pub fn steal(&self, frame: MachineFrame, owner: DomainId) -> bool {
        self.record(frame).is_ok_and(|record| record.steal(owner))
    }

    /// Undoes [`Self::steal`].
    pub fn restore(&self, frame: MachineFrame, owner: DomainId) {
        if let Ok(record) = self.record(frame) {
            record.assign(owner);
        }
    }

    /// Frees frames that were stolen from `owner`, with one flush for all of them.
    pub fn free_stolen<M: Machine>(
        &self,
        frames: impl Iterator<Item = MachineFrame>,
        owner: DomainId,
        machine: &M,
    ) {
        let Some(tables) = self.tables.get() else { return };
        // No entry leads there, but translations of entries that did may still be cached.
        machine.flush(FlushScope::Everything);
        let (mut runs, mut count) = (Runs::default(), 0u64);
        for frame in frames {
            let Ok(record) = self.record(frame) else { continue };
            tables.m2p.set(frame, None);
            record.vacate(false);
            count = count.saturating_add(1);
            self.give(runs.add(frame, 1));
        }
        self.give(Some(runs.last()));
        self.count_out(owner, count);
    }
}
