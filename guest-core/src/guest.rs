//! The domain as its kernel knows it: start info, tables, and the two ways between frame numbers.
//!
//! `P2M[PFN]` is the domain's own list, `M2P[MFN]` is the hypervisor's, shared read-only by all domains. The tables
//! hold MFNs; to look *into* a table, its MFN goes through the M2P to a PFN, and that to the linear mapping.

use crate::architecture::{
    Architecture, Level, Mapping, PAGE_SHIFT, PAGE_SIZE, ROOT_LEVEL, TABLE_ENTRIES, table_index,
};
use crate::hypercalls;
use crate::pages::{Page, PageAllocator, linear_address, linear_pfn};
use crate::words::Words;
use core::marker::PhantomData;
use penumbra_abi::Errno;
use penumbra_abi::start_info::{SIF_INITDOMAIN, StartInfo};

/// One step of a walk: an entry, and where it stands.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Level of the table that holds it.
    pub level: Level,
    /// Its index there.
    pub index: usize,
    /// Machine frame of the table.
    pub table_frame: u64,
    /// The entry as it is in memory.
    pub entry: u64,
}

impl Step {
    /// Machine address (bytes) of the entry.
    pub const fn machine_address(&self) -> u64 {
        (self.table_frame << PAGE_SHIFT) | (self.index as u64 * 8)
    }
}

/// The running domain.
pub struct Guest<A: Architecture> {
    /// What the builder wrote.
    pub info: &'static StartInfo,
    /// Pages to work with.
    pub pages: PageAllocator,
    /// Whether faults can be caught.
    pub catches_faults: bool,
    /// Whether this is Penumbra, and not Xen.
    pub on_penumbra: bool,
    architecture: PhantomData<A>,
}

impl<A: Architecture> Guest<A> {
    /// Takes stock of a domain that has just started.
    pub fn new(info: &'static StartInfo) -> Self {
        let mut guest = Self {
            info,
            pages: PageAllocator::new(0, 0),
            catches_faults: A::install_traps(),
            on_penumbra: hypercalls::audit::<A>() != Err(Errno::ENOSYS),
            architecture: PhantomData,
        };
        // The boot stack is the page after the tables; what follows is free.
        let first = linear_pfn(A::VIRT_BASE, info.pt_base) + info.nr_pt_frames + 1;
        let end = (first..info.nr_pages).find(|&pfn| !guest.is_linear(pfn)).unwrap_or(info.nr_pages);
        guest.pages = PageAllocator::new(first, end);
        guest
    }

    /// Whether this domain controls the others.
    pub const fn is_control(&self) -> bool {
        self.info.flags & SIF_INITDOMAIN != 0
    }

    /// Its number, as its command line has it; the control domain's is 0.
    pub fn number(&self) -> u16 {
        self.words().value("number").and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// The command line.
    pub fn words(&self) -> Words<'static> {
        Words::new(self.info.command_line())
    }

    /// `machine_to_phys_mapping`: the PFN of machine frame `mfn`, as the hypervisor's table has it.
    pub fn m2p(&self, mfn: u64) -> u64 {
        A::read_word(A::M2P_WINDOW.wrapping_add(mfn * 8))
    }

    /// As [`Self::m2p`], for frames whose entry may not be there.
    pub fn try_m2p(&self, mfn: u64) -> Option<u64> {
        if self.catches_faults {
            A::try_read_word(A::M2P_WINDOW.wrapping_add(mfn * 8))
        } else {
            Some(self.m2p(mfn))
        }
    }

    /// `phys_to_machine_mapping`: the MFN of page `pfn`, as the domain's own list has it.
    pub fn p2m(&self, pfn: u64) -> Option<u64> {
        (pfn < self.info.nr_pages).then(|| A::read_word(self.info.mfn_list.wrapping_add(pfn * 8)))
    }

    /// Writes into the domain's own list that page `pfn` is machine frame `mfn` from now on.
    pub fn set_p2m(&self, pfn: u64, mfn: u64) {
        if pfn < self.info.nr_pages {
            A::write_word(self.info.mfn_list.wrapping_add(pfn * 8), mfn);
        }
    }

    /// Whether machine frame `mfn` is one of the domain's own, by its own list.
    pub fn owns(&self, mfn: u64) -> bool {
        self.try_m2p(mfn).and_then(|pfn| self.p2m(pfn)) == Some(mfn)
    }

    /// The linear address of a table or page by its *machine* frame.
    pub fn linear_of_frame(&self, mfn: u64) -> u64 {
        linear_address(A::VIRT_BASE, self.m2p(mfn))
    }

    /// Walks the tables for `address` as the MMU would, by reading them from memory; the last step is the level-1
    /// entry, or the first entry that isn't present.
    pub fn walk(&self, address: u64) -> impl Iterator<Item = Step> + '_ {
        let mut next = Some((ROOT_LEVEL, self.root_frame()));
        core::iter::from_fn(move || {
            let (level, table_frame) = next?;
            let index = table_index(address, level);
            let entry = A::read_word(self.linear_of_frame(table_frame) + index as u64 * 8);
            next = A::decode(level, entry).filter(|_| level > 1).map(|down| (level - 1, down.frame));
            Some(Step { level, index, table_frame, entry })
        })
    }

    /// The level-1 step for `address`, if its tables lead that far.
    pub fn leaf(&self, address: u64) -> Option<Step> {
        self.walk(address).find(|step| step.level == 1)
    }

    /// What `address` maps to.
    pub fn mapping(&self, address: u64) -> Option<Mapping> {
        self.leaf(address).and_then(|step| A::decode(1, step.entry))
    }

    /// Machine frame of the root table that the domain started with.
    pub fn root_frame(&self) -> u64 {
        self.p2m(linear_pfn(A::VIRT_BASE, self.info.pt_base)).unwrap_or(0)
    }

    /// Linear address of `page`.
    pub const fn address(&self, page: &Page) -> u64 {
        linear_address(A::VIRT_BASE, page.pfn())
    }

    /// A page that holds what the loaded root holds, the hypervisor's slots left empty.
    pub fn copy_of_root(&self) -> Option<Page> {
        let copy = self.zeroed_page()?;
        for slot in Self::own_slots() {
            self.write(&copy, slot, A::read_word(self.info.pt_base + slot as u64 * 8));
        }
        Some(copy)
    }

    /// The slots of a root that are the guest's.
    pub fn own_slots() -> impl Iterator<Item = usize> {
        (0..TABLE_ENTRIES).filter(|slot| !A::RESERVED_SLOTS.contains(slot))
    }

    /// Machine frame of `page`.
    pub fn frame(&self, page: &Page) -> u64 {
        self.p2m(page.pfn()).unwrap_or(0)
    }

    /// A page full of zeros.
    pub fn zeroed_page(&self) -> Option<Page> {
        let page = self.pages.allocate()?;
        (0..PAGE_SIZE / 8).for_each(|index| self.write(&page, index as usize, 0));
        Some(page)
    }

    /// Writes word `index` of `page` through its linear mapping, which must be writable.
    pub fn write(&self, page: &Page, index: usize, value: u64) {
        A::write_word(self.address(page) + (index as u64 % (PAGE_SIZE / 8)) * 8, value);
    }

    /// Reads word `index` of `page` through its linear mapping.
    pub fn read(&self, page: &Page, index: usize) -> u64 {
        A::read_word(self.address(page) + (index as u64 % (PAGE_SIZE / 8)) * 8)
    }

    /// Makes the linear mapping of `page` read-only (before it becomes a table) or writable again.
    ///
    /// # Errors
    /// Why the hypervisor refuses.
    pub fn set_writable(&self, page: &Page, writable: bool) -> Result<(), Errno> {
        hypercalls::update_va_mapping::<A>(self.address(page), A::leaf(self.frame(page), writable))
    }

    /// Makes `page` writable again and frees it. A page that can't be made writable is lost, not reused.
    ///
    /// # Errors
    /// Why the hypervisor refuses.
    pub fn release(&self, page: Page) -> Result<(), Errno> {
        self.set_writable(&page, true)?;
        self.pages.free(page);
        Ok(())
    }

    fn is_linear(&self, pfn: u64) -> bool {
        let mapping = self.mapping(linear_address(A::VIRT_BASE, pfn));
        mapping.is_some_and(|m| m.writable && Some(m.frame) == self.p2m(pfn))
    }
}
