//! How operations are made up, from what is known: mostly right, and often with one thing wrong.

use crate::format::{Hardware, Shape};
use crate::guest::PAGES;
use crate::hardware::content::{Content, FRAMES, SUPERPAGE, number};
use crate::operation::Operation;
use crate::spec::events::Ports;
use crate::spec::view::{Translation, View};
use crate::spec::world::World;
use crate::spec::{DOMAINS, Knowledge, Life, NOBODY};

mod descriptors;
mod entries;
mod events;
mod grants;
mod memory;
mod vcpus;
mod writable;

/// How operations are made up, from what is known.
pub struct Author<'a> {
    /// Chance.
    pub chance: &'a mut fastrand::Rng,
    /// What is known.
    pub known: &'a Knowledge,
    /// Ports.
    pub ports: &'a Ports,
    /// The world as it is.
    pub world: &'a World,
    /// Memory.
    pub content: &'a Content,
    /// Who is to do it.
    pub domain: usize,
}

impl Author<'_> {
    fn one_in(&mut self, count: u32) -> bool {
        self.chance.u32(..count) == 0
    }

    /// A frame of a domain's.
    fn of(&mut self, domain: usize) -> u64 {
        let start = self.chance.usize(..FRAMES);
        let mut all = (start..FRAMES).chain(0..start);
        let found = all.find(|at| usize::from(self.known.owner[*at]) == domain);
        number(found.unwrap_or(start))
    }

    /// A frame of the domain's own that is a table of `level`, if there is one.
    fn table_of(&mut self, level: u8) -> Option<usize> {
        let start = self.chance.usize(..FRAMES);
        let (world, known, domain) = (self.world, self.known, self.domain);
        let fits = |at: &usize| {
            world.table[*at] > 0 && world.level[*at] == level && usize::from(known.owner[*at]) == domain
        };
        (start..FRAMES).chain(0..start).find(fits)
    }

    /// A frame for an entry or an argument: mostly one's own.
    fn frame(&mut self) -> u64 {
        match self.chance.u32(..24) {
            0 => {
                let domain = self.chance.usize(..DOMAINS);
                self.of(domain)
            }
            1 => {
                let start = self.chance.usize(..FRAMES);
                let free = (start..FRAMES).chain(0..start).find(|at| self.known.owner[*at] == NOBODY);
                free.map_or(700, number)
            }
            // A hole, a device, too large a number.
            2 if self.one_in(4) => [700, 3, 1 << 30, (1 << 36) - 1][self.chance.usize(..4)],
            _ => self.of(self.domain),
        }
    }

    /// A frame that could become a table: the domain's, with no writable mapping, and no table yet.
    fn candidate(&mut self) -> Option<usize> {
        let start = self.chance.usize(..FRAMES);
        let (world, known, domain) = (self.world, self.known, self.domain);
        let fits = |at: &usize| {
            usize::from(known.owner[*at]) == domain && world.table[*at] == 0 && world.writable[*at] == 0
        };
        (start..FRAMES).chain(0..start).find(fits)
    }

    /// Makes an entry. Where tables of one level have more entries than those of the level above (the fake format), a root must not be
    /// proposed as a linear table: seen through itself, a table would show words behind its last entry, which nobody validates.
    fn compose<F: Hardware>(&mut self, shape: Shape, frame: u64) -> u64 {
        let linear = (2..=F::LEVELS).all(|level| F::entries(level) >= F::entries(level - 1));
        let limits = F::compose(Shape::LimitedTable, 0) ^ F::compose(Shape::Table, 0);
        let noise = if self.chance.u32(..64) == 0 {
            self.chance.u64(..) & self.chance.u64(..) & self.chance.u64(..)
        } else {
            0
        };
        match (shape, linear) {
            (Shape::LimitedTable, false) => F::compose(Shape::Table, frame) ^ noise & !limits,
            (_, false) => F::compose(shape, frame) ^ noise & !limits,
            (_, true) => F::compose(shape, frame) ^ noise,
        }
    }

    /// An entry for a table of `level`, likely to be admitted.
    fn entry<F: Hardware>(&mut self, level: u8) -> u64 {
        let shape = match self.chance.u32(..32) {
            0 => Shape::Forbidden(self.chance.u8(..8)),
            1 => Shape::NotPresent,
            2 => [Shape::Table, Shape::Writable, Shape::LimitedTable][self.chance.usize(..3)],
            3 => Shape::Superpage { writable: self.chance.bool() },
            4..8 => Shape::Nothing,
            _ if level > 1 => [Shape::Table, Shape::Table, Shape::LimitedTable][self.chance.usize(..3)],
            8..12 => Shape::Lifted,
            12..20 => Shape::ReadOnly,
            _ => Shape::Writable,
        };
        let frame = match (shape, level) {
            (Shape::Table | Shape::LimitedTable, 2..) if !self.one_in(4) => {
                let below = self.table_of(level - 1).or_else(|| self.candidate());
                below.map_or_else(|| self.frame(), number)
            }
            (Shape::Superpage { .. }, _) if !self.one_in(4) => {
                if self.one_in(3) {
                    self.of(self.domain) & !15
                } else {
                    SUPERPAGE
                }
            }
            (Shape::ReadOnly, _) => {
                // Anything may be read: tables too.
                let level = self.chance.u8(1..=F::LEVELS);
                self.table_of(level).map_or_else(|| self.frame(), number)
            }
            _ => self.frame(),
        };
        self.compose::<F>(shape, frame)
    }

    fn index<F: Hardware>(&mut self, level: u8) -> usize {
        match self.chance.u32(..16) {
            0 => self.chance.usize(..512),
            1 if level == F::LEVELS => F::reserved_root_slots().start,
            2 => F::entries(level) - 1,
            _ => self.chance.usize(..F::entries(level).min(8)),
        }
    }

    /// `DOMID_SELF` mostly; some other otherwise.
    fn named(&mut self) -> u16 {
        match self.chance.u32(..if self.domain == 0 { 6 } else { 40 }) {
            0 => self.chance.u16(..DOMAINS as u16),
            1 if self.one_in(10) => 0x7ff1,
            _ => 0x7ff0,
        }
    }

    /// An address: mostly one that the builder has mapped.
    fn address<F: Hardware>(&mut self) -> u64 {
        let page = match self.chance.u32(..8) {
            0 => self.chance.u64(..4096),
            _ => self.chance.u64(..PAGES + 4),
        };
        F::address(page) + self.chance.u64(..512) * 8
    }

    /// An address at which the domain's kernel has a frame mapped that is `wanted`.
    fn mapped<F: Hardware>(&mut self, wanted: impl Fn(Translation) -> bool) -> Option<u64> {
        let root = self.known.domains[self.domain].vcpu().kernel?;
        let view = View { content: self.content, writes: None };
        let start = self.chance.u64(..PAGES + 4);
        let mut pages = (start..PAGES + 4).chain(0..start).map(F::address);
        pages.find(|address| view.translate::<F>(root, *address).is_some_and(&wanted))
    }

    /// What has a module of its own, now and then.
    fn of_a_kind<F: Hardware>(&mut self) -> Option<Operation> {
        // Any hypercall ends it: so what is unhooked must be used at once, or never.
        if self.chance.u32(..9) == 0 || self.known.has_unhooked(self.domain) && !self.one_in(4) {
            return Some(self.writable::<F>());
        }
        if self.chance.u32(..10) == 0 {
            return Some(self.grant::<F>());
        }
        if self.chance.u32(..40) == 0 {
            return Some(self.extents());
        }
        if self.chance.u32(..20) == 0 {
            return Some(self.vcpus::<F>());
        }
        if self.chance.u32(..25) == 0 {
            return Some(self.descriptors::<F>());
        }
        if self.chance.u32(..25) == 0 {
            return Some(self.events());
        }
        None
    }

    /// Makes up a step.
    pub fn operation<F: Hardware>(&mut self) -> Operation {
        if let Some(operation) = self.of_a_kind::<F>() {
            return operation;
        }
        match self.chance.u32(..200) {
            0..60 => self.updates::<F>(),
            60..72 => self.unmap::<F>(),
            72..112 => self.extended::<F>(),
            112..140 => self.remap::<F>(),
            140..146 if self.one_in(2) => self.mixed::<F>(),
            140..146 => {
                let count = self.chance.usize(1..4);
                let one = |author: &mut Self| match author.chance.u32(..3) {
                    0 => author.updates::<F>(),
                    1 => author.extended::<F>(),
                    _ => author.remap::<F>(),
                };
                Operation::Multicall((0..count).map(|_| one(self)).collect())
            }
            146..150 => Operation::Increase(self.chance.usize(..4)),
            150..156 => {
                let count = self.chance.usize(..4);
                Operation::Populate((0..count).map(|_| self.chance.u64(..PAGES)).collect())
            }
            156..163 => {
                let count = self.chance.usize(1..4);
                Operation::Decrease((0..count).map(|_| self.frame()).collect())
            }
            163..184 => {
                let write = if self.chance.bool() { None } else { Some(self.entry::<F>(1)) };
                let address = self.address::<F>();
                Operation::Access(address, write)
            }
            184 if self.domain != 0 && self.one_in(6) => Operation::Crash,
            185 if self.one_in(6) => Operation::Destroy(self.chance.u16(..DOMAINS as u16)),
            186..192 => Operation::Evict(self.chance.usize(..FRAMES)),
            _ => {
                let vacant = self.known.domains.iter().filter(|domain| domain.life == Life::Vacant).count();
                if vacant > DOMAINS - 4 && self.chance.bool() {
                    Operation::Build
                } else {
                    Operation::Background(1)
                }
            }
        }
    }
}
