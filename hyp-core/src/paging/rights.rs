//! Rows of updates that change nothing but rights, as a guest issues them by the thousand: whether pages may be written to, with the bits
//! that hardware has set kept (`MMU_PT_UPDATE_PRESERVE_AD`).
//!
//! Each entry goes through the checks that [`super::leaf`] makes, in the same order. What differs is what is left out because there is
//! nothing to do: no reference moves, since the old entry leads to the same frame, and nothing here can free a frame, change its type
//! by more than a use, or flush. Whatever isn't as simple as that, or isn't allowed, is left to the general way, which does it or says
//! why not.

use penumbra_abi::mmu::{self, MmuUpdate};

use super::TableSpace;
use super::leaf::LeafTable;
use crate::frame::uses::Records;
use crate::machine::{Entry, Machine, PageTableFormat};

/// Bits of an address in a page that are an index of an entry.
const INDEX: u64 = 0xff8;

impl<M: Machine> TableSpace<'_, M> {
    /// Does as many of the updates as change rights in `table` alone, from the first on; returns how many those are.
    #[inline(always)]
    pub fn change_rights_in_row(&self, table: &LeafTable<M>, updates: &[MmuUpdate]) -> usize {
        let Some(records) = self.frames.records() else { return 0 };
        // By itself: a loop that writes to memory would look for it in the table's place each time.
        let words = table.words;
        let start = table.frame.start().bytes() | mmu::MMU_PT_UPDATE_PRESERVE_AD;
        let one = |update: &&MmuUpdate| {
            // Nothing but an index is left of a place in this table, with this command.
            let offset = update.pointer ^ start;
            let index = (offset / 8) as usize;
            offset & !INDEX == 0
                && index < M::Format::entries(1)
                && self.change_rights_once(words, index, update.value, records)
        };
        updates.iter().take_while(one).count()
    }

    /// Changes the rights by which entry `index` maps a page, if that is all that `raw` asks for, and is allowed; otherwise nothing has
    /// changed (`false`).
    #[inline(always)]
    fn change_rights_once(&self, words: M::Table, index: usize, raw: u64, records: Records) -> bool {
        let current = self.machine.read_in(words, index);
        let Ok((admitted, Entry::Leaf(_))) = M::Format::admit(1, raw) else { return false };
        let Some((was, is)) = M::Format::same_page(current, admitted) else { return false };
        let write = || {
            let kept = current & M::Format::hardware_bits(1);
            self.machine.exchange_in(words, index, current, admitted | kept).is_ok()
        };
        if is.writable == was.writable {
            return write();
        }
        // As much the domain's as for any other new entry.
        let Some(record) = records.owned(is.frame, self.target) else { return false };
        if is.writable {
            // The use comes before the entry.
            if !record.take_writable() {
                return false;
            }
            let written = write();
            if !written {
                record.drop_type();
            }
            return written;
        }
        let written = write();
        if written {
            record.drop_type();
        }
        written
    }
}
