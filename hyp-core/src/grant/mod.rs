//! Grants: pages that one domain lends to another.
//!
//! A domain's *grant table* is an array of entries in pages that it shares with the hypervisor (entries of version 1,
//! [`penumbra_abi::grant_table`]). An entry names a frame of the domain and the one other domain that may use it. That domain
//! has the frame mapped by hypercall, at an address of its own, and gets a *handle*; by the handle the mapping is undone.
//!
//! Three things are kept here, for each domain:
//! - As one that lends ([`table`]): its table's frames, and for each entry in use its *pins*: how often, by whom, and which frame.
//!   What stands in the shared page is a claim that can change at any time; the pins are what counts. Each pin holds one
//!   reference to the frame, and one use as *writable* if it allows writing. So neither the lender's memory operations nor
//!   the borrower's page-table updates can take the frame away from under a mapping, and it can't become a page
//!   table while anybody may write to it.
//! - As one that borrows ([`maps`]): its mappings by handle, each of which is one pin.
//! - The entries that map granted frames are page-table entries like any other: each holds what any leaf holds, and gives it
//!   back when it is overwritten, by whomever. They can't be made in another way, nor copied, nor given more rights: a domain's own
//!   update may only lead to its own frames.
//!
//! A mapping is undone in this order: the entry disappears, every TLB forgets it, the pin is given up, and only then
//! the lender is told so by the flags in its entry. Undoing checks that the entry named really maps the frame with the
//! rights that were granted (XSA-234): otherwise another mapping would disappear, and this one live on without a pin.
//! So of mappings of one frame with the same rights there are never more than pins.
//!
//! A lender that dies leaves its pinned frames to the borrowers: they return to free memory with the last pin, and the lender's
//! number can't be given to another domain before that. A borrower that dies gives its pins back when its tables are gone.
//!
//! Not offered: version 2 of the entries, and with it transitive grants and parts of pages; giving frames away for good.

pub mod maps;
pub mod table;

use core::sync::atomic::{AtomicU64, Ordering};

use spin::Mutex;

pub use maps::{Lent, MapTrack};
pub use table::{GrantTable, Pins};

use penumbra_abi::grant_table::GrantStatus;

/// Frames that a grant table can have: 4096 grants.
pub const MAX_FRAMES: usize = 8;
/// Entries in a frame.
pub const ENTRIES: usize = crate::address::PAGE_SIZE / 8;
/// Grants that a domain can have mapped at a time.
pub const MAX_MAPS: usize = 1024;

/// Why an operation on grants was not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotDone {
    /// It never will be: what the guest is told.
    Refused(GrantStatus),
    /// Not yet; nothing has changed.
    Preempted,
}

impl From<GrantStatus> for NotDone {
    fn from(status: GrantStatus) -> Self {
        Self::Refused(status)
    }
}

/// What a domain lends, and what it has borrowed.
///
/// The two locks come before the table locks, first the borrower's `maps`, then the lender's `table`.
pub struct Grants {
    /// What it lends.
    pub table: Mutex<GrantTable>,
    /// What it has borrowed.
    pub maps: Mutex<MapTrack>,
    /// Frames of its table. They are the domain's, but no part of its memory: the hypervisor holds them.
    frames: AtomicU64,
}

impl Grants {
    /// Nothing lent, nothing borrowed.
    pub const fn new() -> Self {
        Self {
            table: Mutex::new(GrantTable::new()),
            maps: Mutex::new(MapTrack::new()),
            frames: AtomicU64::new(0),
        }
    }

    /// Frames of the table.
    pub fn frames(&self) -> u64 {
        // Relaxed: a number that is only reported and compared with a limit.
        self.frames.load(Ordering::Relaxed)
    }

    pub(crate) fn set_frames(&self, count: usize) {
        self.frames.store(count as u64, Ordering::Relaxed);
    }
}

impl Default for Grants {
    fn default() -> Self {
        Self::new()
    }
}
