//! What the hardware does with an entry, said a second time.
//!
//! The formats under test (`hyp-x86`, `hyp-el2`, and the fake one) say how entries are judged. [`Hardware`] says, from the
//! manuals and without using their code, what a walker makes of the bits that stand in memory; so a format that admits what the
//! walker reads otherwise is caught. It also makes the entries that tests propose.

pub mod arm;
pub mod fake;
pub mod trimmed;
pub mod x86;

use hyp_core::address::{GuestVirtual, MachineFrame};
use hyp_core::machine::{Level, PageTableFormat};
use hyp_el2::store::Change;

/// What a walker finds in an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Walk {
    /// It takes a fault.
    Fault,
    /// It goes on in another table.
    Table {
        /// Number of the table's frame.
        frame: u64,
        /// Whether nothing below can be written through this entry, whatever it says itself.
        limited: bool,
    },
    /// It has found memory.
    Leaf {
        /// Number of the first frame.
        frame: u64,
        /// Whether writes are allowed, or could be made so by the hardware itself.
        writable: bool,
        /// Whether accesses go past the caches.
        uncached: bool,
    },
}

/// What a test wants an entry to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// All zero.
    Nothing,
    /// Not present, but with a frame's number in it.
    NotPresent,
    /// A page, read-only.
    ReadOnly,
    /// A page that can be written.
    Writable,
    /// A page that says read-only in a way that some hardware overrides.
    Lifted,
    /// Leads to a table.
    Table,
    /// Leads to a table, and nothing below can be written through it.
    LimitedTable,
    /// A superpage at level 2.
    Superpage {
        /// Whether it can be written.
        writable: bool,
    },
    /// One of the forms that must be refused whatever they lead to; the number chooses which.
    Forbidden(u8),
}

/// A page-table format together with what its hardware does.
pub trait Hardware: PageTableFormat + Send + Sync + 'static {
    /// For test names and messages.
    const NAME: &'static str;
    /// Bits that every address of a guest's kernel has, above those that are translated.
    const SIGN: u64;
    /// Root slot in which guests' kernels live.
    const KERNEL_SLOT: u64;
    /// Whether TLB entries carry a tag for the domain, so that a switch of domains leaves them alone.
    const TAGGED: bool;
    /// Whether a present entry may be replaced by another only by way of an absent one, forgotten by all TLBs.
    const BREAKS: bool;

    /// Whether what an entry that leads to a table says of writing holds for all below. If not, nothing limits a leaf but itself.
    const LIMITS: bool;

    /// Which root translates an address.
    fn root_of(
        address: GuestVirtual,
        kernel: Option<MachineFrame>,
        user: Option<MachineFrame>,
    ) -> Option<MachineFrame>;

    /// What the walker does with an entry of a table of `level`.
    fn walk(level: Level, raw: u64) -> Walk;

    /// Whether hardware could mix up the two when one replaces the other at once (break-before-make).
    fn conflict(_level: Level, _old: u64, _new: u64) -> bool {
        false
    }

    /// What the backend takes a store for. It is the backend's own rule, which [`Self::conflict`] is to judge.
    fn backend_change(_old: u64, _new: u64) -> Change {
        Change::InPlace
    }

    /// Whether a root may lead to itself by this entry of its: nothing can be written through it, whether because the entry limits what is
    /// below it, or because table entries make read-only pages where a walk ends in one of them.
    fn is_harmless_to_itself(raw: u64) -> bool {
        match Self::LIMITS {
            true => matches!(Self::walk(Self::LEVELS, raw), Walk::Table { limited: true, .. }),
            false => matches!(
                Self::walk(1, raw),
                Walk::Fault | Walk::Leaf { writable: false, uncached: false, .. }
            ),
        }
    }

    /// The bits that hardware sets when it uses an entry.
    fn used(_written: bool) -> u64 {
        0
    }

    /// Makes an entry.
    fn compose(shape: Shape, frame: u64) -> u64;

    /// An entry with another memory type than the ordinary one: a page of that frame, for experiments with formats that would
    /// admit it.
    fn uncached(frame: u64) -> u64;

    /// The kernel address of page `page` of the kernel's part, which begins in its root slot.
    fn address(page: u64) -> u64 {
        let shift: u32 = (1..Self::LEVELS).map(Self::index_bits).sum();
        Self::SIGN | (Self::KERNEL_SLOT << shift).wrapping_add(page) << 12
    }
}
