//! Segment descriptors, as Intel's manual has them (volume 3, 3.4.5 and 3.5), and the pages that hold them.

use penumbra_abi::errno::Errno;
use penumbra_abi::x86_64::FIRST_RESERVED_GDT_ENTRY;

use super::Knowledge;
use super::errors::Errors;
use super::operations::Foreseen;
use super::world::World;
use crate::format::Hardware;
use crate::hardware::content::{WORDS, slot};

/// Most descriptors of a local table.
const MOST_LOCAL: u32 = 8192;

/// A page that a vCPU has in one of its two tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DescriptorPage {
    /// Whose.
    pub domain: usize,
    /// Which vCPU's.
    pub vcpu: usize,
    /// In the local table, or the global one.
    pub local: bool,
    /// The page.
    pub frame: usize,
}

/// What shall stand in the place of a descriptor that is asked for: absent ones can say anything; code and data become ring 3's, and count as
/// accessed; all others are gates and the system's.
pub fn judged(descriptor: u64) -> Option<u64> {
    let bit = |number: u32| descriptor >> number & 1 != 0;
    match (bit(47), bit(44)) {
        (false, _) => Some(descriptor),
        (true, false) => None,
        (true, true) => Some(descriptor | 3 << 45 | 1 << 40),
    }
}

impl World {
    /// Whether a frame is a domain's, and used neither as a table nor by anybody who may write to it.
    fn may_be_descriptors(&self, known: &Knowledge, domain: usize, at: usize) -> bool {
        self.owner(known, at) == Some(domain) && self.table[at] == 0 && self.writable[at] == 0
    }
}

impl Foreseen<'_> {
    /// `set_gdt`: the numbers of the frames, and how many descriptors there are.
    ///
    /// # Errors
    /// What it may be refused with.
    pub fn set_global<F: Hardware>(
        &mut self,
        domain: usize,
        list: &[u64],
        entries: u64,
    ) -> Result<(), Errors> {
        if entries > u64::from(FIRST_RESERVED_GDT_ENTRY) {
            return Err(Errors::only(Errno::EINVAL));
        }
        let pages: Vec<_> =
            list.iter().take(entries.div_ceil(512) as usize).map(|frame| slot(*frame)).collect();
        self.set_pages::<F>(domain, false, &pages)
    }

    /// `MMUEXT_SET_LDT`: where it lies, and how many descriptors there are.
    ///
    /// # Errors
    /// What it may be refused with.
    pub fn set_local<F: Hardware>(&mut self, domain: usize, base: u64, entries: u32) -> Result<(), Errors> {
        if entries > MOST_LOCAL || !base.is_multiple_of(4096) {
            return Err(Errors::only(Errno::EINVAL));
        }
        let page = |index: u64| {
            let address = base.wrapping_add(index << 12);
            let to = self.translation::<F>(domain, address)?;
            // Where a walk through a linear entry ends in a table of a higher level, its frame can't be of descriptors anyway.
            to.target.filter(|_| to.level == 1)
        };
        let pages: Vec<_> = (0..u64::from(entries.div_ceil(512))).map(page).collect();
        self.set_pages::<F>(domain, true, &pages)
    }

    /// The vCPU that has its turn takes these pages in the place of those it has.
    fn set_pages<F: Hardware>(
        &mut self,
        domain: usize,
        local: bool,
        pages: &[Option<usize>],
    ) -> Result<(), Errors> {
        let refused = Errors::only(Errno::EINVAL);
        let vcpu = self.known.domains[domain].turn;
        for frame in pages {
            let world = self.world::<F>();
            let frame =
                frame.filter(|at| world.may_be_descriptors(&self.known, domain, *at)).ok_or(refused)?;
            if world.descriptors[frame] == 0 {
                self.judge_page(frame).ok_or(refused)?;
            }
        }
        let mine = |page: &DescriptorPage| (page.domain, page.vcpu, page.local) == (domain, vcpu, local);
        let known = &mut self.change().known.descriptors;
        known.retain(|page| !mine(page));
        known.extend(pages.iter().flatten().map(|frame| DescriptorPage {
            domain,
            vcpu,
            local,
            frame: *frame,
        }));
        Ok(())
    }

    /// Each word of a page becomes what is admitted.
    fn judge_page(&mut self, frame: usize) -> Option<()> {
        for index in 0..WORDS {
            let found = self.view().read(frame, index);
            let stands = judged(found)?;
            if stands != found {
                self.change().writes.push(frame, index, stands);
            }
        }
        Some(())
    }

    /// `update_descriptor`: at a machine address, the descriptor.
    ///
    /// # Errors
    /// What it may be refused with.
    pub fn update_descriptor<F: Hardware>(
        &mut self,
        domain: usize,
        place: u64,
        raw: u64,
    ) -> Result<(), Errors> {
        let refused = Errors::only(Errno::EINVAL);
        let world = self.world::<F>();
        let mine = |at: &usize| world.owner(&self.known, *at) == Some(domain) && world.table[*at] == 0;
        let at = slot(place >> 12).filter(mine).filter(|_| place.is_multiple_of(8)).ok_or(refused)?;
        let stands = judged(raw).ok_or(refused)?;
        self.change().writes.push(at, (place % 4096 / 8) as usize, stands);
        Ok(())
    }
}
