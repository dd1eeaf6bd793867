//! Extents: memory taken, given back, and exchanged.

use penumbra_abi::memory;

use super::Author;
use crate::guest::PAGES;
use crate::hardware::content::{FRAMES, number};
use crate::operation::{Extents, Operation};

impl Author<'_> {
    /// Extents, taken, given back, or exchanged.
    pub(super) fn extents(&mut self) -> Operation {
        let command = [
            memory::XENMEM_INCREASE_RESERVATION,
            memory::XENMEM_DECREASE_RESERVATION,
            memory::XENMEM_POPULATE_PHYSMAP,
            memory::XENMEM_EXCHANGE,
            memory::XENMEM_EXCHANGE,
        ][self.chance.usize(..5)];
        let (order, output_order) = (self.chance.u32(..3), self.chance.u32(..3));
        let names = command == memory::XENMEM_POPULATE_PHYSMAP;
        let frames = 1 << order.max(output_order);
        let count =
            if command == memory::XENMEM_EXCHANGE { frames >> order } else { self.chance.usize(1..3) };
        let one = |author: &mut Self| match names {
            true => author.chance.u64(..PAGES),
            false => author.spare() & !((1 << order) - 1),
        };
        let list = (0..count).map(|_| one(self)).collect();
        let output = (0..frames >> output_order).map(|_| self.chance.u64(..PAGES)).collect();
        Operation::Extents(Extents { command, order, list, output_order, output })
    }

    /// A frame that its domain only claims, if there is one.
    fn spare(&mut self) -> u64 {
        let start = self.chance.usize(..FRAMES);
        let (world, known, domain) = (self.world, self.known, self.domain);
        let spare = |at: &usize| usize::from(known.owner[*at]) == domain && world.references[*at] == 1;
        (start..FRAMES).chain(0..start).find(spare).map_or_else(|| self.frame(), number)
    }
}
