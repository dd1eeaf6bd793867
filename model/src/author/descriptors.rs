//! Segment descriptors: written, and made tables of.

use penumbra_abi::mmu;

use super::Author;
use crate::format::{Hardware, Shape};
use crate::guest::PAGES;
use crate::hardware::content::number;
use crate::operation::Operation;
use crate::spec::operations::Extended;
use crate::spec::view::View;

/// Access bytes: data and code of ring 0 and 3; a call gate, a local table, a task; one that is absent.
const ACCESS: [u64; 8] = [0x92, 0xf3, 0x9a, 0xfa, 0xec, 0x82, 0x89, 0x6c];

impl Author<'_> {
    /// What a domain does with segment descriptors.
    pub(super) fn descriptors<F: Hardware>(&mut self) -> Operation {
        match self.chance.u32(..9) {
            0..3 => {
                let access = ACCESS[self.chance.usize(..ACCESS.len())];
                let page = self.descriptor_page().filter(|_| !self.one_in(3));
                let page = page.unwrap_or_else(|| self.frame());
                let off = if self.one_in(30) { 4 } else { 0 };
                let place = (page << 12 | self.chance.u64(..512) << 3) + off;
                Operation::UpdateDescriptor(place, 0x00af_0000_0000_ffff | access << 40)
            }
            3..5 => {
                let most = [0, 512, 1024, 7680][self.chance.usize(..4)];
                let entries = u64::saturating_sub(most, self.chance.u64(..600));
                let one = self.page_to_be();
                let mut list = vec![one; entries.div_ceil(512) as usize];
                list.iter_mut().take(2).for_each(|frame| *frame = self.page_to_be());
                Operation::SetGlobal(list, entries)
            }
            5..7 => {
                let (world, known, domain) = (self.world, self.known, self.domain);
                let free = |at: usize| {
                    world.table[at] == 0 && world.writable[at] == 0 && usize::from(known.owner[at]) == domain
                };
                let at = self.mapped::<F>(|to| to.target.is_some_and(free));
                let base =
                    at.unwrap_or_else(|| self.address::<F>()) & !0xfff | if self.one_in(30) { 8 } else { 0 };
                let entries = [0, 1, 512, 513, 8193][self.chance.usize(..5)];
                let set = Extended { command: mmu::MMUEXT_SET_LDT, argument: base, second: entries };
                Operation::Extended(self.named(), vec![set])
            }
            7 => self.written_before::<F>(),
            // What is mapped read-only nowhere can be made no local table of.
            _ => {
                let page = F::address(self.chance.u64(..PAGES + 4));
                Operation::Remap(page, F::compose(Shape::ReadOnly, self.page_to_be()), 0, None)
            }
        }
    }

    /// A page that could be written to a moment ago becomes a local table.
    fn written_before<F: Hardware>(&mut self) -> Operation {
        let Some(base) = self.mapped::<F>(|to| to.writable) else { return self.unmap::<F>() };
        let root = self.known.domains[self.domain].vcpu().kernel;
        let view = View { content: self.content, writes: None };
        let frame = root.and_then(|root| view.translate::<F>(root, base)?.target);
        let unmap = match frame {
            Some(frame) => self.unmap_frame::<F>(number(frame), Shape::ReadOnly),
            None => self.unmap::<F>(),
        };
        // An entry of a multicall has room for so many.
        if matches!(&unmap, Operation::Updates(_, list) if list.len() > 32) {
            return unmap;
        }
        let set = Extended { command: mmu::MMUEXT_SET_LDT, argument: base & !0xfff, second: 512 };
        Operation::Multicall(vec![unmap, Operation::Extended(0x7ff0, vec![set])])
    }

    /// A page of descriptors that the domain has.
    fn descriptor_page(&mut self) -> Option<u64> {
        let mine: Vec<_> = self.known.descriptors.iter().filter(|page| page.domain == self.domain).collect();
        let count = std::num::NonZeroUsize::new(mine.len())?;
        Some(number(mine[self.chance.usize(..count.get())].frame))
    }

    /// A frame that could be one.
    fn page_to_be(&mut self) -> u64 {
        match self.one_in(4) {
            true => self.frame(),
            false => self.candidate().map_or_else(|| self.frame(), number),
        }
    }
}
