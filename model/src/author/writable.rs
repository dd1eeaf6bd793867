//! Writable page tables: tables that a guest writes to, by emulation or unhooked.

use super::Author;
use crate::format::{Hardware, Shape};
use crate::guest::PAGES;
use crate::hardware::content::number;
use crate::operation::{Grant, Operation};
use crate::spec::operations::Update;
use crate::spec::view::{Translation, View};

impl Author<'_> {
    /// Where a table of the domain is mapped read-only; of level 1 if possible.
    fn mapped_table<F: Hardware>(&mut self) -> Option<u64> {
        let world = self.world;
        let table = |level: u8, to: Translation| {
            to.target.is_some_and(|at| world.table[at] > 0 && world.level[at] <= level)
        };
        let any = if self.one_in(8) { F::LEVELS } else { 1 };
        self.mapped::<F>(|to| table(any, to))
    }

    /// Where the domain may write to an unhooked table.
    fn mapped_unhooked<F: Hardware>(&mut self) -> Option<u64> {
        let (known, domain) = (self.known, self.domain);
        self.mapped::<F>(|to| to.target.is_some_and(|at| known.is_unhooked(domain, at)))
    }

    fn table_writes<F: Hardware>(&mut self, at: Option<u64>) -> Operation {
        let count = [1, 1, 2, 4, 20][self.chance.usize(..5)];
        let address = at.unwrap_or_else(|| self.address::<F>()) & !0xfff;
        Operation::TableWrites(
            address,
            (0..count).map(|_| (self.index::<F>(1), self.entry::<F>(1))).collect(),
        )
    }

    /// A write to the entry above an unhooked table, or to some other of that table's.
    fn rival<F: Hardware>(&mut self) -> Option<Operation> {
        let mut mine = self.known.unhooked.iter().filter(|unhooked| unhooked.domain == self.domain);
        let above = mine.next().copied()?;
        let page = self.mapped::<F>(|to| !to.writable && to.target == Some(above.parent))?;
        let index = if self.one_in(3) { self.index::<F>(2) } else { above.index };
        Some(Operation::TableWrites(page & !0xfff, vec![(index, self.entry::<F>(2))]))
    }

    /// Where a table is mapped that hangs at one place only, and so can be unhooked.
    fn mapped_single<F: Hardware>(&mut self) -> Option<u64> {
        let (world, known, domain) = (self.world, self.known, self.domain);
        let is_single = |at: usize| {
            let pinned = u16::from(known.pinned(domain, at).is_some());
            world.level[at] == 1 && world.table[at] == 1 + pinned
        };
        self.mapped::<F>(|to| !to.writable && to.target.is_some_and(is_single))
    }

    /// Hangs a new table of pages at one place, and maps it read-only at another.
    fn graft<F: Hardware>(&mut self) -> Option<Operation> {
        let (new, above) = (self.candidate()?, self.table_of(2)?);
        let root = self.known.domains[self.domain].vcpu().kernel?;
        let page = F::address(self.chance.u64(..PAGES + 4));
        let to = View { content: self.content, writes: None }.translate::<F>(root, page)?;
        let place = |table: usize, index: usize| number(table) << 12 | (index as u64) << 3;
        let index = self.index::<F>(2);
        let hang = Update { pointer: place(above, index), value: F::compose(Shape::Table, number(new)) };
        let map =
            Update { pointer: place(to.table, to.index), value: F::compose(Shape::ReadOnly, number(new)) };
        Some(Operation::Updates(0x7ff0, vec![hang, map]))
    }

    /// A multicall that takes a table out, and goes on with what it must not be out for.
    pub(super) fn mixed<F: Hardware>(&mut self) -> Operation {
        let at = self.mapped_single::<F>().filter(|_| !self.one_in(6)).or_else(|| self.mapped_table::<F>());
        let address = at.unwrap_or_else(|| self.address::<F>());
        let view = View { content: self.content, writes: None };
        let root = self.known.domains[self.domain].vcpu().kernel;
        let table = root.and_then(|root| view.translate::<F>(root, address)?.target).map(number);
        let mut list = vec![Operation::Unhook(address)];
        for _ in 0..self.chance.usize(1..4) {
            let frame = table.filter(|_| !self.one_in(3)).unwrap_or_else(|| self.frame());
            list.push(match self.chance.u32(..10) {
                0..4 => Operation::Decrease(vec![frame]),
                4..6 => match self.grant::<F>() {
                    Operation::Grant(Grant::Offer { .. }) => self.remap::<F>(),
                    grant => grant,
                },
                6 => self.remap::<F>(),
                7 => self.updates::<F>(),
                8 => self.extended::<F>(),
                _ => Operation::Unhook(address),
            });
        }
        Operation::Multicall(list)
    }

    /// What a domain does with writable page tables.
    pub(super) fn writable<F: Hardware>(&mut self) -> Operation {
        let unhooked = self.mapped_unhooked::<F>();
        let single = self.mapped_single::<F>();
        if unhooked.is_none() && single.is_none() && !self.one_in(4) {
            return self.graft::<F>().unwrap_or_else(|| self.updates::<F>());
        }
        match self.chance.u32(..8) {
            0..2 => {
                let at = single.filter(|_| !self.one_in(8)).or_else(|| self.mapped_table::<F>());
                Operation::Unhook(at.unwrap_or_else(|| self.address::<F>()))
            }
            2 if unhooked.is_some() => {
                Operation::Hook(if self.one_in(4) { u64::MAX } else { self.address::<F>() })
            }
            3..5 if unhooked.is_some() => self.table_writes::<F>(unhooked),
            5 if unhooked.is_some() => self.rival::<F>().unwrap_or_else(|| self.table_writes::<F>(unhooked)),
            6 if unhooked.is_some() => Operation::Access(self.address::<F>(), None),
            _ => {
                let at = self.mapped_table::<F>();
                self.table_writes::<F>(at)
            }
        }
    }
}
