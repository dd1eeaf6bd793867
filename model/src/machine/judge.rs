//! All that could be cached, held against the types of frames.

use hyp_core::frame::{FrameTable, FrameType};

use super::{Model, lock};
use crate::bits::Bits;
use crate::format::Hardware;
use crate::hardware::content::{self, FRAMES};
use crate::hardware::reach::{Reach, TAGS};

impl<F: Hardware> Model<F> {
    /// Holds all that could be cached against the frame types. `may` says which frames a domain may reach at all,
    /// `may_write` which ones it may write to.
    ///
    /// # Errors
    /// The first thing that must not be.
    pub fn judge(
        &self,
        frames: &FrameTable,
        may: &[Bits; TAGS],
        may_write: &[Bits; TAGS],
    ) -> Result<(), String> {
        if let Some(violation) = self.violation() {
            return Err(violation);
        }
        let types = Types::of(frames, F::LEVELS);
        let cpus = lock(&self.cpus);
        for (number, cpu) in cpus.all.iter().enumerate() {
            for (tag, reach) in cpu.reach.iter().enumerate() {
                types
                    .judge(reach, &may[tag], &may_write[tag])
                    .map_err(|what| format!("CPU {number}, d{tag}: {what}"))?;
            }
        }
        Ok(())
    }
}

/// Frames by their types.
struct Types {
    writable: Bits,
    tables: [Bits; 6],
}

impl Types {
    fn of(frames: &FrameTable, levels: u8) -> Self {
        let mut types = Self { writable: Bits::EMPTY, tables: [Bits::EMPTY; 6] };
        for at in 0..FRAMES {
            match frames.usage(content::frame(at)).map(|usage| usage.kind) {
                Some(FrameType::Writable) => drop(types.writable.insert(at)),
                // A table can be walked at a lower level too, through a linear entry; see `judge`.
                Some(FrameType::Table(level)) if level <= levels => {
                    types.tables[usize::from(level)].insert(at);
                }
                _ => {}
            }
        }
        types
    }

    fn judge(&self, reach: &Reach, may: &Bits, may_write: &Bits) -> Result<(), String> {
        let at = |slot: usize| content::number(slot);
        if let Some(frame) = reach.readable.first_outside(may) {
            return Err(format!(
                "a cached translation leads to mfn {:#x}, which it may not reach",
                at(frame)
            ));
        }
        if let Some(frame) = reach.writable.first_outside(may_write) {
            return Err(format!(
                "a cached translation lets mfn {:#x} be written, which it may only read",
                at(frame)
            ));
        }
        if let Some(frame) = reach.writable.first_outside(&self.writable) {
            return Err(format!(
                "a cached translation lets mfn {:#x} be written, which isn't of type writable",
                at(frame)
            ));
        }
        let mut above = Bits::EMPTY;
        for level in (1..6).rev() {
            above = above.union(&self.tables[level]);
            // On special ways only: a linear entry makes tables of higher levels appear below the root. What could be written by that was
            // judged above.
            for (set, fine) in [(0, self.tables[level]), (1, above)] {
                if let Some(frame) = reach.tables[level][set].first_outside(&fine) {
                    return Err(format!(
                        "a walk cache leads to mfn {:#x} as a level-{level} table, which it isn't",
                        at(frame)
                    ));
                }
            }
        }
        Ok(())
    }
}
