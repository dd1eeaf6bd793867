//! Grants: what a domain offers, and what it does with others' offers.

use penumbra_abi::grant_table::{self, GrantEntry};

use super::Author;
use crate::format::Hardware;
use crate::hardware::content::number;
use crate::operation::{Grant, Operation};
use crate::spec::{DOMAINS, Life};

/// Grant references that are used.
const REFERENCES: usize = 8;

impl Author<'_> {
    /// What a domain does with grants: its own, or those of another.
    pub(super) fn grant<F: Hardware>(&mut self) -> Operation {
        let own = self.known.tables.iter().any(|table| table.0 == self.domain);
        let mine = self.known.borrowed.iter().filter(|one| one.borrower == self.domain);
        let mine: Vec<_> = mine.copied().collect();
        let kind = self.chance.u32(..12);
        Operation::Grant(match kind {
            _ if !own && kind < 5 => Grant::Setup,
            0..4 => {
                let start = self.chance.usize(..DOMAINS);
                let alive = |at: &usize| self.known.domains[*at].life == Life::Alive;
                let borrower = (start..DOMAINS).chain(0..start).find(alive).unwrap_or(start) as u16;
                let entry = GrantEntry::access(borrower, self.frame() as u32, !self.one_in(3));
                let word = if self.one_in(8) { 0 } else { entry.to_word() };
                Grant::Offer { reference: self.chance.usize(..REFERENCES), word }
            }
            4..7 if !mine.is_empty() => {
                let lent = mine[self.chance.usize(..mine.len())];
                let at = self.mapped::<F>(|to| to.target == Some(lent.frame) && to.writable == lent.writable);
                let address = at.unwrap_or_else(|| self.address::<F>());
                match self.one_in(5) {
                    true => Grant::Replace { handle: lent.handle, address, new: self.address::<F>() },
                    false => Grant::Unmap { handle: lent.handle, address },
                }
            }
            7 => {
                let (lender, reference) = self.offered();
                Grant::Copy { lender, reference, frame: self.frame(), back: self.chance.bool() }
            }
            // Pins whose mapping was overwritten stay for good.
            _ if mine.len() > 40 => Grant::Unmap { handle: mine[0].handle, address: self.address::<F>() },
            _ => {
                let (lender, reference) = self.offered();
                let read_only = if self.one_in(3) { grant_table::GNTMAP_READONLY } else { 0 };
                let by_entry = self.table_of(1).filter(|_| self.one_in(6));
                match by_entry {
                    Some(table) => Grant::Map {
                        lender,
                        reference,
                        flags: grant_table::GNTMAP_HOST_MAP | grant_table::GNTMAP_CONTAINS_PTE | read_only,
                        address: number(table) << 12 | (self.index::<F>(1) as u64) << 3,
                    },
                    None => Grant::Map {
                        lender,
                        reference,
                        flags: grant_table::GNTMAP_HOST_MAP | read_only,
                        address: self.address::<F>(),
                    },
                }
            }
        })
    }

    /// A grant to the domain, if there is one.
    fn offered(&mut self) -> (u16, u32) {
        let start = self.chance.usize(..REFERENCES);
        for &(lender, table) in &self.known.tables {
            let to_me = |at: &usize| {
                let entry = GrantEntry::from_word(self.content.read(table, *at));
                usize::from(entry.domid) == self.domain && entry.flags != 0
            };
            if let Some(at) = (start..REFERENCES).chain(0..start).find(to_me)
                && !self.one_in(3)
            {
                return (lender as u16, at as u32);
            }
        }
        (self.chance.u16(..DOMAINS as u16), start as u32)
    }
}
