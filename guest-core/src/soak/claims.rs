//! What a hostile domain claims: frames, addresses, entries and whole structures, mostly right, with something wrong.
//!
//! A hostile guest that breaks itself at the first step tries nothing afterwards. So what it changes lies in an *arena* of its own
//! pages, while what it names may be anything: its tables, the neighbours' frames, the hypervisor's, a device's. Once in a
//! while it is *reckless*, and changes what it lives on, too.

use super::Random;
use crate::architecture::{Architecture, Level, PAGE_SIZE, ROOT_LEVEL, TABLE_ENTRIES, table_index};
use crate::guest::Guest;
use crate::hypercalls;
use crate::pages::{linear_address, linear_pfn};
use core::ops::Range;
use penumbra_abi::DOMID_SELF;

/// Pages of the arena.
pub const ARENA: u64 = 96;
/// Pages beside the arena in which arguments are prepared.
pub const DESK: u64 = 4;
/// How seldom the domain is reckless.
const RECKLESS: u64 = 2000;
/// Domain numbers that have a meaning of their own: oneself, device memory, the hypervisor's, copy-on-write, none, idle.
const SPECIAL_DOMAINS: [u64; 6] = [0x7ff0, 0x7ff1, 0x7ff2, 0x7ff3, 0x7ff4, 0x7fff];

/// Whether a page holds code: a kernel that loses its fault handlers can be caught in one fault for ever, and an emulator
/// that counts instructions then has none to count.
fn is_image<A: Architecture>(pfn: u64) -> bool {
    A::read_only_image().contains(&linear_address(A::VIRT_BASE, pfn))
}

/// A domain with a seed.
pub struct Claims<'a, A: Architecture> {
    /// The domain.
    pub guest: &'a Guest<A>,
    /// Where all choices come from.
    pub random: Random,
    /// The arena's pages.
    pub arena: Range<u64>,
    desk: Range<u64>,
    /// Whether this operation may change what the domain lives on.
    pub reckless: bool,
    /// Whether everything in this operation is as it should be.
    sober: bool,
    highest: u64,
}

impl<'a, A: Architecture> Claims<'a, A> {
    /// Takes the arena from the domain's free pages.
    pub fn new(guest: &'a Guest<A>, seed: u64) -> Option<Self> {
        let start = guest.pages.allocate()?.pfn();
        let first = (0..DESK).filter_map(|_| guest.pages.allocate()).last()?.pfn();
        let last = (1..ARENA).filter_map(|_| guest.pages.allocate()).last()?.pfn();
        let highest = hypercalls::maximum_ram_page::<A>().unwrap_or(1 << 20);
        Some(Self {
            guest,
            random: Random::new(seed),
            arena: first + 1..last + 1,
            desk: start..first + 1,
            reckless: false,
            sober: false,
            highest,
        })
    }

    /// Begins another operation.
    pub fn next_operation(&mut self) {
        self.reckless = self.random.once_in(RECKLESS);
        self.sober = self.random.once_in(2);
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.random.below(choices.len() as u64) as usize]
    }

    /// A page of the arena; when reckless, any page of the domain's.
    pub fn page(&mut self) -> u64 {
        let any = self.random.below(self.guest.info.nr_pages);
        if self.reckless && !is_image::<A>(any) {
            any
        } else {
            self.arena.start + self.random.below(self.arena.end - self.arena.start)
        }
    }

    /// The machine frame of such a page.
    pub fn own_frame(&mut self) -> u64 {
        let pfn = self.page();
        self.guest.p2m(pfn).unwrap_or(0)
    }

    /// A frame that isn't the domain's to change: a neighbour's, the hypervisor's, a device's, none at all.
    pub fn foreign_frame(&mut self) -> u64 {
        let frame = self.some_frame();
        let image = self.guest.try_m2p(frame.min(self.highest)).is_some_and(is_image::<A>);
        if (self.reckless && !image) || !self.is_vital(frame) { frame } else { A::DEVICE_FRAME }
    }

    /// Whether the domain's code, data or tables are at this address.
    pub fn lives_at(&self, address: u64) -> bool {
        let pfn = linear_pfn(A::VIRT_BASE, address);
        pfn < self.guest.info.nr_pages && !self.arena.contains(&pfn)
    }

    /// Whether the domain can go on under a root: one that has its kernel where the root it started with has it.
    pub fn is_good_root(&self, frame: u64) -> bool {
        let slot = table_index(A::VIRT_BASE, ROOT_LEVEL) as u64 * 8;
        let linear = |pfn| A::try_read_word(linear_address(A::VIRT_BASE, pfn) + slot);
        let page = self.guest.try_m2p(frame.min(self.highest)).filter(|&pfn| pfn < self.guest.info.nr_pages);
        page.and_then(linear) == Some(A::read_word(self.guest.info.pt_base + slot))
    }

    /// Whether the domain lives on the frame: its code, its data, its tables.
    fn is_vital(&self, frame: u64) -> bool {
        let name = if frame <= self.highest { self.guest.try_m2p(frame) } else { None };
        name.is_some_and(|pfn| !self.arena.contains(&pfn) && self.guest.p2m(pfn) == Some(frame))
    }

    fn some_frame(&mut self) -> u64 {
        match self.random.below(8) {
            0 | 1 => self.own_frame() ^ (1 << self.random.below(16)),
            2 | 3 => self.random.below(self.highest + 2),
            4 => self.hypervisors_frame(),
            5 => A::DEVICE_FRAME,
            6 => self.random.of_any_size(),
            _ => !0 >> self.random.below(24),
        }
    }

    fn hypervisors_frame(&mut self) -> u64 {
        let slot = self.random.below(A::RESERVED_SLOTS.len() as u64) + A::RESERVED_SLOTS.start as u64;
        let entry = A::read_word(self.guest.info.pt_base + slot * 8);
        A::decode(ROOT_LEVEL, entry).map_or(0, |mapping| mapping.frame)
    }

    /// A table of the tree that the domain runs on.
    pub fn table_frame(&mut self) -> u64 {
        let address = self.arena_address();
        let level = self.random.below(u64::from(ROOT_LEVEL)) as Level + 1;
        self.guest.walk(address).find(|step| step.level == level).map_or(0, |step| step.table_frame)
    }

    /// Any frame, to be named.
    pub fn frame(&mut self) -> u64 {
        match self.random.below(8) {
            _ if self.sober => self.own_frame(),
            0..=3 => self.own_frame(),
            4 => self.table_frame(),
            _ => self.foreign_frame(),
        }
    }

    /// The linear address of a page of the arena.
    pub fn arena_address(&mut self) -> u64 {
        linear_address(A::VIRT_BASE, self.page())
    }

    /// Any virtual address; none of those that the domain's own code and data live at, unless it is reckless.
    pub fn address(&mut self) -> u64 {
        let arena = self.arena_address();
        match self.random.below(12) {
            _ if self.sober => arena,
            0..=5 => arena,
            6 => arena + self.random.below(PAGE_SIZE),
            // Across the end of a page, and of the arena.
            7 => arena + PAGE_SIZE - self.random.below(64),
            8 => linear_address(A::VIRT_BASE, self.arena.end) - self.random.below(64),
            9 => self.guest.info.pt_base + self.random.below(PAGE_SIZE),
            10 => A::M2P_WINDOW + self.random.below(16 << 40),
            _ => self.random.next() >> self.random.below(64) & !(1 << 63),
        }
    }

    /// An entry for a table of `level`.
    pub fn entry(&mut self, level: Level) -> u64 {
        let frame = self.frame();
        let entry = match self.random.below(8) {
            0 => 0,
            1..=3 if self.sober && level > 1 => A::table(frame),
            1 if self.sober => A::leaf(frame, false),
            1 => self.random.of_any_size(),
            2 | 3 if level > 1 => A::leaf(frame, self.random.once_in(2)),
            _ if level > 1 => A::table(frame),
            _ => A::leaf(frame, self.random.once_in(2)),
        };
        match self.random.below(4) {
            0 if !self.sober => entry ^ 1 << self.random.below(64),
            _ => entry,
        }
    }

    /// The machine address of an entry: of one that maps a page of the arena, in a table made of such a page, in an unused slot of
    /// the domain's root, or nowhere.
    pub fn place(&mut self) -> u64 {
        let index = self.random.below(TABLE_ENTRIES as u64);
        match self.random.below(10) {
            0..=3 => {
                let address = self.arena_address();
                self.guest.leaf(address).map_or(0, |step| step.machine_address())
            }
            4..=6 => (self.own_frame() << 12) | (index * 8),
            7 if self.sober => (self.guest.root_frame() << 12) | (self.random.below(256) * 8),
            8 | 9 if self.sober => (self.own_frame() << 12) | (index * 8),
            7 | 8 => (self.guest.root_frame() << 12) | (self.random.below(A::RESERVED_SLOTS.end as u64) * 8),
            _ => (self.foreign_frame() << 12) | self.random.below(PAGE_SIZE),
        }
    }

    /// A domain, as a hypercall's argument.
    pub fn domain(&mut self) -> u64 {
        match self.random.below(8) {
            _ if self.sober => u64::from(DOMID_SELF),
            0..=4 => u64::from(DOMID_SELF),
            5 => self.one_of(&SPECIAL_DOMAINS),
            6 => self.random.below(8),
            _ => self.random.of_any_size(),
        }
    }

    /// A count: mostly the true one.
    pub fn count(&mut self, true_one: u64) -> u64 {
        match self.random.below(8) {
            _ if self.sober => true_one,
            0 => self.random.below(600),
            1 => self.random.of_any_size(),
            _ => true_one,
        }
    }

    /// Any argument.
    pub fn argument(&mut self) -> u64 {
        match self.random.below(8) {
            0..=2 => self.address(),
            3 => self.frame(),
            4 => self.domain(),
            5 => self.random.below(16),
            6 => self.entry(1),
            _ => self.random.of_any_size(),
        }
    }

    /// Writes words to the desk, or to a page of the arena as far as it can be written; returns where.
    pub fn store(&mut self, words: &[u64]) -> u64 {
        let desk = self.desk.start + self.random.below(self.desk.end - self.desk.start);
        let page = if self.random.once_in(16) { self.page() } else { desk };
        let start = linear_address(A::VIRT_BASE, page) + self.random.below(128) * 8;
        for (index, &word) in words.iter().enumerate() {
            if !A::try_write_word(start + index as u64 * 8, word) {
                break;
            }
        }
        start
    }

    /// Where a structure is said to be: mostly where it is.
    pub fn pointer(&mut self, true_one: u64) -> u64 {
        match self.random.below(12) {
            _ if self.sober => true_one,
            0 => self.address(),
            1 => true_one ^ 1 << self.random.below(8),
            _ => true_one,
        }
    }
}
