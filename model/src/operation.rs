//! Operations of guests, and how they are made up.

use penumbra_abi::grant_table::{self, GrantEntry};
use penumbra_abi::mmu;

use crate::format::{Hardware, Shape, Walk};
use crate::guest::PAGES;
use crate::hardware::content::{Content, FRAMES, SUPERPAGE, number};
use crate::spec::operations::{Extended, Update};
use crate::spec::view::{Translation, View};
use crate::spec::world::World;
use crate::spec::{DOMAINS, Knowledge, Life, NOBODY};

/// Where a mask stands that names the first vCPU.
pub const MASK: u64 = crate::machine::WINDOW + 8192;

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

    /// Whether the specification says beforehand what it must come to.
    pub fn is_foreseen(&self) -> bool {
        self.is_batch() || matches!(self, Self::Remap(..) | Self::Multicall(_) | Self::Decrease(_))
    }
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

/// Grant references that are used.
const REFERENCES: usize = 8;

/// How operations are made up, from what is known.
pub struct Author<'a> {
    /// Chance.
    pub chance: &'a mut fastrand::Rng,
    /// What is known.
    pub known: &'a Knowledge,
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

    fn update<F: Hardware>(&mut self) -> Update {
        let level = self.chance.u8(1..=F::LEVELS);
        let table = if self.one_in(3) { self.candidate() } else { self.table_of(level) };
        let frame = table.map_or_else(|| self.frame(), number);
        // Of a frame that is no table yet, entries are prepared that fit together by chance.
        let level = table.map_or(level, |at| {
            if self.world.table[at] > 0 {
                self.world.level[at]
            } else {
                1 + (at % usize::from(F::LEVELS)) as u8
            }
        });
        let index = self.index::<F>(level);
        let value = self.entry::<F>(level);
        // A root that leads to itself: too rare if left to chance alone.
        let value = match level == F::LEVELS && self.one_in(24) {
            true => self.compose::<F>(Shape::LimitedTable, frame),
            false => value,
        };
        let kind = match self.chance.u32(..32) {
            0 => 3,
            1 => mmu::MMU_MACHPHYS_UPDATE,
            2..8 => mmu::MMU_PT_UPDATE_PRESERVE_AD,
            _ => 0,
        };
        let value = if kind == mmu::MMU_MACHPHYS_UPDATE { self.chance.u64(..PAGES) } else { value };
        let off = if self.one_in(100) { 4 } else { 0 };
        Update { pointer: (frame << 12 | (index as u64) << 3 | kind) + off, value }
    }

    /// `DOMID_SELF` mostly; some other otherwise.
    fn named(&mut self) -> u16 {
        match self.chance.u32(..if self.domain == 0 { 6 } else { 40 }) {
            0 => self.chance.u16(..DOMAINS as u16),
            1 if self.one_in(10) => 0x7ff1,
            _ => 0x7ff0,
        }
    }

    fn updates<F: Hardware>(&mut self) -> Operation {
        let count = [1, 1, 1, 2, 3, 6][self.chance.usize(..6)];
        let frames_of = self.named();
        let tables_of = if self.one_in(60) { u64::from(self.chance.u16(..DOMAINS as u16)) + 1 } else { 0 };
        Operation::Updates(
            tables_of << 16 | u64::from(frames_of),
            (0..count).map(|_| self.update::<F>()).collect(),
        )
    }

    /// Takes every writable mapping of a frame away, so that it can become a table.
    fn unmap<F: Hardware>(&mut self) -> Operation {
        let frame = self.of(self.domain);
        let shape = if self.chance.bool() { Shape::ReadOnly } else { Shape::Nothing };
        let value = F::compose(shape, frame);
        let mut list = Vec::new();
        for table in (0..FRAMES).filter(|at| self.world.table[*at] > 0 && self.world.level[*at] == 1) {
            for index in (0..F::entries(1)).filter(|_| usize::from(self.known.owner[table]) == self.domain) {
                match F::walk(1, self.content.read(table, index)) {
                    Walk::Leaf { frame: mapped, writable: true, .. } if mapped == frame => {
                        list.push(Update { pointer: number(table) << 12 | (index as u64) << 3, value });
                    }
                    _ => {}
                }
            }
        }
        Operation::Updates(0x7ff0, list)
    }

    fn extended<F: Hardware>(&mut self) -> Operation {
        let count = [1, 1, 1, 2][self.chance.usize(..4)];
        let of = self.named();
        let one = |author: &mut Self| {
            let level = author.chance.u8(1..=F::LEVELS);
            let table = if author.one_in(2) { author.candidate() } else { author.table_of(level) };
            let frame = table.map_or_else(|| author.frame(), number);
            let level = table.map_or(level, |at| {
                if author.world.table[at] > 0 {
                    author.world.level[at]
                } else {
                    1 + (at % usize::from(F::LEVELS)) as u8
                }
            });
            match author.chance.u32(..24) {
                0..8 => Extended { command: u32::from(level) - 1, argument: frame, second: MASK },
                8 => Extended { command: author.chance.u32(..5), argument: frame, second: MASK },
                9..15 => {
                    let mine = author.known.pins.iter().filter(|pin| pin.domain == author.domain);
                    let mine: Vec<_> = mine.map(|pin| number(pin.table)).collect();
                    let frame = if mine.is_empty() || author.one_in(6) {
                        frame
                    } else {
                        mine[author.chance.usize(..mine.len())]
                    };
                    Extended { command: mmu::MMUEXT_UNPIN_TABLE, argument: frame, second: MASK }
                }
                15..19 => {
                    let root = author.table_of(F::LEVELS).map_or(frame, number);
                    Extended {
                        command: mmu::MMUEXT_NEW_BASEPTR,
                        argument: if author.one_in(4) { frame } else { root },
                        second: MASK,
                    }
                }
                19..21 => {
                    let root = author.table_of(F::LEVELS).map_or(0, number);
                    Extended {
                        command: mmu::MMUEXT_NEW_USER_BASEPTR,
                        argument: if author.one_in(3) { 0 } else { root },
                        second: MASK,
                    }
                }
                21 => {
                    let command =
                        if author.chance.bool() { mmu::MMUEXT_CLEAR_PAGE } else { mmu::MMUEXT_COPY_PAGE };
                    Extended { command, argument: author.frame(), second: author.frame() }
                }
                _ => Extended {
                    command: author.chance.u32(mmu::MMUEXT_TLB_FLUSH_LOCAL..=mmu::MMUEXT_INVLPG_ALL),
                    argument: author.address::<F>(),
                    second: MASK,
                },
            }
        };
        Operation::Extended(of, (0..count).map(|_| one(self)).collect())
    }

    /// An address: mostly one that the builder has mapped.
    fn address<F: Hardware>(&mut self) -> u64 {
        let page = match self.chance.u32(..8) {
            0 => self.chance.u64(..4096),
            _ => self.chance.u64(..PAGES + 4),
        };
        F::address(page) + self.chance.u64(..512) * 8
    }

    fn remap<F: Hardware>(&mut self) -> Operation {
        let other = if self.one_in(if self.domain == 0 { 3 } else { 30 }) {
            Some(self.chance.u16(..DOMAINS as u16))
        } else {
            None
        };
        let mut raw = self.entry::<F>(1);
        if let Some(other) = other.filter(|_| !self.one_in(3)) {
            let shape = if self.chance.bool() { Shape::Writable } else { Shape::ReadOnly };
            raw = F::compose(shape, self.of(usize::from(other)));
        }
        let flags = [mmu::UVMF_NONE, mmu::UVMF_INVLPG, mmu::UVMF_TLB_FLUSH, mmu::UVMF_INVLPG | mmu::UVMF_ALL]
            [self.chance.usize(..4)];
        let address = self.address::<F>();
        Operation::Remap(address, raw, flags, other)
    }

    /// An address at which the domain's kernel has a frame mapped that is `wanted`.
    fn mapped<F: Hardware>(&mut self, wanted: impl Fn(Translation) -> bool) -> Option<u64> {
        let root = self.known.domains[self.domain].kernel?;
        let view = View { content: self.content, writes: None };
        let start = self.chance.u64(..PAGES + 4);
        let mut pages = (start..PAGES + 4).chain(0..start).map(F::address);
        pages.find(|address| view.translate::<F>(root, *address).is_some_and(&wanted))
    }

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
        let root = self.known.domains[self.domain].kernel?;
        let page = F::address(self.chance.u64(..PAGES + 4));
        let to = View { content: self.content, writes: None }.translate::<F>(root, page)?;
        let place = |table: usize, index: usize| number(table) << 12 | (index as u64) << 3;
        let index = self.index::<F>(2);
        let hang = Update { pointer: place(above, index), value: F::compose(Shape::Table, number(new)) };
        let map =
            Update { pointer: place(to.table, to.index), value: F::compose(Shape::ReadOnly, number(new)) };
        Some(Operation::Updates(0x7ff0, vec![hang, map]))
    }

    /// What a domain does with writable page tables.
    fn writable<F: Hardware>(&mut self) -> Operation {
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

    /// What a domain does with grants: its own, or those of another.
    fn grant<F: Hardware>(&mut self) -> Operation {
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

    /// Makes up a step.
    pub fn operation<F: Hardware>(&mut self) -> Operation {
        // Any hypercall ends it: so what is unhooked must be used at once, or never.
        if self.chance.u32(..9) == 0 || self.known.has_unhooked(self.domain) && !self.one_in(4) {
            return self.writable::<F>();
        }
        if self.chance.u32(..10) == 0 {
            return self.grant::<F>();
        }
        match self.chance.u32(..200) {
            0..60 => self.updates::<F>(),
            60..72 => self.unmap::<F>(),
            72..112 => self.extended::<F>(),
            112..140 => self.remap::<F>(),
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
