//! The machine-to-physical table: for each machine frame, what its owner calls it.
//!
//! One array for the whole machine, mapped read-only into every guest, who look up there what an entry in memory means to them. The
//! hypervisor writes it when it builds a domain, and when a domain asks for it with `MMU_MACHPHYS_UPDATE`. It
//! never relies on it: what stands there is a guest's claim.

use crate::sync::atomic::{AtomicU64, Ordering};

use crate::address::{MachineFrame, PseudoFrame};

/// The table. `entries[0]` belongs to machine frame `first`.
#[derive(Debug)]
pub struct MachineToPhysical {
    first: u64,
    entries: &'static [AtomicU64],
    invalid: u64,
}

impl MachineToPhysical {
    /// The table over `entries`; `invalid` is what stands for "no number".
    pub fn new(first: MachineFrame, entries: &'static [AtomicU64], invalid: u64) -> Self {
        Self { first: first.number(), entries, invalid }
    }

    fn entry(&self, frame: MachineFrame) -> Option<&AtomicU64> {
        self.entries.get(usize::try_from(frame.number().checked_sub(self.first)?).ok()?)
    }

    /// Writes the name of a frame; `None` for "no number". Frames that aren't memory are passed over.
    pub fn set(&self, frame: MachineFrame, name: Option<PseudoFrame>) {
        if let Some(entry) = self.entry(frame) {
            // Relaxed: each entry stands for itself, and nothing is inferred from it.
            entry.store(name.map_or(self.invalid, PseudoFrame::number), Ordering::Relaxed);
        }
    }

    /// What the owner calls the frame, if it has said so.
    pub fn get(&self, frame: MachineFrame) -> Option<PseudoFrame> {
        // Relaxed: as in `set`.
        let value = self.entry(frame)?.load(Ordering::Relaxed);
        (value != self.invalid).then(|| PseudoFrame::new(value))
    }
}
