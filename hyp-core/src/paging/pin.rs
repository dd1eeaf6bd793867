//! Two reasons to hold a table: a pin, and being a root that the MMU uses.
//!
//! A pin keeps a table validated while nothing leads to it, so that a guest can prepare tables before it uses them. A
//! vCPU's roots are held for as long as the hardware may have them loaded.

use super::{Refusal, Stop, TableSpace};
use crate::address::MachineFrame;
use crate::frame::FrameType;
use crate::machine::{Level, Machine, PageTableFormat};

impl<M: Machine> TableSpace<'_, M> {
    /// Validates `table` as a table of `level`, and keeps it so until it is unpinned.
    ///
    /// # Errors
    /// There is no such level, the table is pinned already, or it can't be held.
    pub fn pin(&mut self, table: MachineFrame, level: Level) -> Result<(), Stop> {
        if level == 0 || level > M::Format::LEVELS {
            return Err(Refusal::NoSuchLevel.into());
        }
        if self.is_pinned(table) {
            return Err(Refusal::Pin(table).into());
        }
        self.hold(table, level)?;
        self.frames.set_pinned(table, true);
        Ok(())
    }

    /// Takes the pin away; the table is let go.
    ///
    /// # Errors
    /// The frame isn't a pinned table of the domain; or preempted, with the pin in place, by what was unfinished before.
    pub fn unpin(&mut self, table: MachineFrame) -> Result<(), Stop> {
        self.settle(None)?;
        let Some(level) = self.pinned_level(table) else { return Err(Refusal::Pin(table).into()) };
        self.frames.set_pinned(table, false);
        self.let_go(table, level);
        Ok(())
    }

    fn is_pinned(&self, table: MachineFrame) -> bool {
        self.pinned_level(table).is_some()
    }

    /// The level at which a frame of the domain is pinned.
    pub fn pinned_level(&self, table: MachineFrame) -> Option<Level> {
        let ours = self.frames.hold(table)?.owner == Some(self.owner);
        match self.frames.usage(table) {
            Some(usage) if ours && usage.pinned => match usage.kind {
                FrameType::Table(level) => Some(level),
                _ => None,
            },
            _ => None,
        }
    }
}
