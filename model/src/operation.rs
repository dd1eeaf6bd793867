//! Operations of guests.

use crate::format::{Hardware, Walk};
use crate::hardware::content::slot;
use crate::spec::events::Event;
use crate::spec::operations::{Extended, Update};
use crate::spec::vcpus::{OnVcpu, VCPUS};

/// Where the masks of vCPUs stand, a word each: the one that names none, the one that names the first, and so on.
pub const MASKS: u64 = crate::machine::WINDOW + 8192;
/// How many masks there are.
pub const MASK_COUNT: u64 = 1 << VCPUS;

/// Which vCPUs a mask names, if it is one of those that stand at [`MASKS`].
pub fn named_by(mask: u64) -> Option<u64> {
    Some(mask.checked_sub(MASKS)? / 8).filter(|named| *named < MASK_COUNT)
}

/// What is done in a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// `mmu_update`: the domain argument (whose tables, whose frames), and the list.
    Updates(u64, Vec<Update>),
    /// `mmuext_op`: whose tables, and the list.
    Extended(u16, Vec<Extended>),
    /// `update_va_mapping`: address, entry, flags; or its other form, with whose frames.
    Remap(u64, u64, u64, Option<u16>),
    /// Several of the above in one.
    Multicall(Vec<Operation>),
    /// `increase_reservation` by so many frames.
    Increase(usize),
    /// `populate_physmap` for these pseudo-physical frames.
    Populate(Vec<u64>),
    /// `decrease_reservation`: these frames.
    Decrease(Vec<u64>),
    /// The guest uses an address: reads, or writes a word.
    Access(u64, Option<u64>),
    /// The guest's kernel writes words to a page, from this address on: what faults and is a page table is emulated, and unhooks the
    /// table if there is enough of it. Each with its index in the page.
    TableWrites(u64, Vec<(usize, u64)>),
    /// `PENUMBRA_UNHOOK`: the table that is mapped read-only at this address.
    Unhook(u64),
    /// `PENUMBRA_HOOK`: the table that translates this address, or all of them.
    Hook(u64),
    /// `grant_table_op`, and what goes before it.
    Grant(Grant),
    /// `vcpu_op`: which vCPU, and what.
    OnVcpu(u64, OnVcpu),
    /// `set_gdt`: frames, and how many descriptors.
    SetGlobal(Vec<u64>, u64),
    /// `update_descriptor`: a machine address, and what shall stand there.
    UpdateDescriptor(u64, u64),
    /// `event_channel_op`, and what a guest does to its shared page.
    Event(Event),
    /// `memory_op` with extents of more than one frame, and exchanges.
    Extents(Extents),
    /// The domain crashes.
    Crash,
    /// `domctl`: destroy a domain.
    Destroy(u16),
    /// The hypervisor takes dead domains apart, so many steps.
    Background(u8),
    /// A new domain is built.
    Build,
    /// Lines of a frame leave the caches.
    Evict(usize),
}

impl Operation {
    /// Whether it is a list of elements that are done one after another.
    pub fn is_batch(&self) -> bool {
        matches!(self, Self::Updates(..) | Self::Extended(..))
    }

    /// Frames that it would make tables of.
    pub fn tables<F: Hardware>(&self) -> Vec<usize> {
        let below = |value| match F::walk(2, value) {
            Walk::Table { frame, .. } => slot(frame),
            _ => None,
        };
        match self {
            Self::Updates(_, list) => list.iter().filter_map(|one| below(one.value)).collect(),
            Self::Extended(_, list) => list.iter().filter_map(|one| slot(one.argument)).collect(),
            Self::Multicall(list) => list.iter().flat_map(Self::tables::<F>).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether the specification says beforehand what it must come to.
    pub fn is_foreseen(&self) -> bool {
        let is_listed = |one: &Self| matches!(one, Self::Updates(..) | Self::Extended(..) | Self::Remap(..));
        self.is_batch()
            || matches!(self, Self::Multicall(list) if list.iter().all(is_listed))
            || matches!(
                self,
                Self::Remap(..)
                    | Self::Decrease(_)
                    | Self::OnVcpu(..)
                    | Self::SetGlobal(..)
                    | Self::UpdateDescriptor(..)
            )
    }
}

/// An operation on extents.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Extents {
    /// `XENMEM_*`.
    pub command: u64,
    /// log2 of the frames of an extent.
    pub order: u32,
    /// First frames, or pseudo-physical numbers; one an extent.
    pub list: Vec<u64>,
    /// For an exchange: what is wanted.
    pub output_order: u32,
    /// Its pseudo-physical numbers.
    pub output: Vec<u64>,
}

/// An operation on grants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Grant {
    /// The table gets its first frame.
    Setup,
    /// The guest writes an entry of its table.
    Offer {
        /// Which one.
        reference: usize,
        /// What it writes.
        word: u64,
    },
    /// Maps a grant.
    Map {
        /// Of whom.
        lender: u16,
        /// Which one.
        reference: u32,
        /// `GNTMAP_*`.
        flags: u32,
        /// Where to: an address of the borrower's, or an entry's machine address.
        address: u64,
    },
    /// Undoes a mapping.
    Unmap {
        /// Its number.
        handle: u32,
        /// Where it is.
        address: u64,
    },
    /// Undoes a mapping, and moves another there.
    Replace {
        /// Its number.
        handle: u32,
        /// Where it is.
        address: u64,
        /// Where the other is.
        new: u64,
    },
    /// Copies part of a page.
    Copy {
        /// Whose grant it is.
        lender: u16,
        /// Which one.
        reference: u32,
        /// The caller's own frame.
        frame: u64,
        /// Whether the copy goes to the grant.
        back: bool,
    },
}
