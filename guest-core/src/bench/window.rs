//! A table of level 1 that is hooked into the running tree, and pages to map by it.
//!
//! There can be several. The first window lies 256 MiB above the kernel's first address, where nothing else is. The pages are the highest of the domain,
//! which nothing maps, so that each mapping changes a frame's type, as the first mapping of a page does.

use crate::architecture::{Architecture, PAGE_SHIFT, PAGE_SIZE};
use crate::guest::Guest;
use crate::hypercalls::{mmu_update, update_entry};
use crate::pages::Page;
use penumbra_abi::mmu::MmuUpdate;
use penumbra_abi::{DOMID_SELF, Errno};

/// Where the first window lies, counted from the kernel's first address, and how far the next one is from each (bytes).
const OFFSET: u64 = 256 << 20;
const SPAN: u64 = 2 << 20;
/// Entries that one batch changes.
pub const BATCH: usize = 128;

/// What an entry of the window shall say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Say {
    /// Nothing.
    Absent,
    /// A page of the domain's, to be read.
    ReadOnly,
    /// A page of the domain's, to be written.
    Writable,
}

/// The window, while it is hooked in.
pub struct Window<'a, A: Architecture> {
    guest: &'a Guest<A>,
    table: Page,
    /// Virtual address of its first page.
    base: u64,
    /// Machine address of the entry that leads to the table.
    hook: u64,
}

impl<'a, A: Architecture> Window<'a, A> {
    /// Hooks an empty table in.
    ///
    /// # Errors
    /// Why the hypervisor refuses.
    pub fn open(guest: &'a Guest<A>) -> Result<Self, Errno> {
        Self::open_number(guest, 0)
    }

    /// The same for the window behind `number` others.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_number(guest: &'a Guest<A>, number: u64) -> Result<Self, Errno> {
        let base = A::VIRT_BASE + OFFSET + number * SPAN;
        let last = guest.walk(base).last().filter(|step| step.level == 2);
        let hook = last.filter(|step| A::decode(2, step.entry).is_none()).ok_or(Errno::EEXIST)?;
        let table = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
        guest.set_writable(&table, false)?;
        update_entry::<A>(hook.machine_address(), A::table(guest.frame(&table)))?;
        Ok(Self { guest, table, base, hook: hook.machine_address() })
    }

    /// Takes the table out and frees it.
    ///
    /// # Errors
    /// Why the hypervisor refuses.
    pub fn close(self) -> Result<(), Errno> {
        update_entry::<A>(self.hook, 0)?;
        self.guest.release(self.table)
    }

    /// Virtual address of page `index`.
    pub const fn address(&self, index: u64) -> u64 {
        self.base + index * PAGE_SIZE
    }

    /// Machine address of entry `index`.
    pub fn slot(&self, index: u64) -> u64 {
        (self.guest.frame(&self.table) << PAGE_SHIFT) | (index * 8)
    }

    /// Virtual address at which entry `index` can be read.
    pub const fn entry_address(&self, index: u64) -> u64 {
        self.guest.address(&self.table) + index * 8
    }

    /// The entry that says `say` of page `index`.
    pub fn entry(&self, index: u64, say: Say) -> u64 {
        entry(self.guest, index, say)
    }

    /// A batch that makes the first [`BATCH`] entries say `say`.
    pub fn updates(&self, say: Say) -> [MmuUpdate; BATCH] {
        core::array::from_fn(|index| MmuUpdate {
            pointer: self.slot(index as u64),
            value: self.entry(index as u64, say),
        })
    }

    /// Makes them say so.
    ///
    /// # Errors
    /// Why the hypervisor refuses.
    pub fn set(&self, say: Say) -> Result<(), Errno> {
        mmu_update::<A>(&self.updates(say), DOMID_SELF.into()).map(drop)
    }
}

/// An entry that says `say` of the domain's page `index`, counted from its last one down.
pub fn entry<A: Architecture>(guest: &Guest<A>, index: u64, say: Say) -> u64 {
    match say {
        Say::Absent => 0,
        Say::ReadOnly => A::leaf(spare(guest, index), false),
        Say::Writable => A::leaf(spare(guest, index), true),
    }
}

/// Machine frame of the domain's page `index`, counted from its last one down.
pub fn spare<A: Architecture>(guest: &Guest<A>, index: u64) -> u64 {
    guest.p2m(guest.info.nr_pages - 1 - index).unwrap_or(0)
}
