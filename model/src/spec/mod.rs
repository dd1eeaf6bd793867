//! What must happen, said naively.
//!
//! The specification keeps almost nothing: whose each frame is and whether its owner still claims it, which tables are pinned, which roots are
//! set. Everything else ([`world`]) is worked out anew each time, from the entries that stand in memory, by walking from the holders
//! down and counting. An operation is allowed if what it asks for can be added to that world without a contradiction. The core, which never
//! recomputes anything, has to give the same answer, and its records have to say the same numbers.

pub mod descriptors;
pub mod errors;
pub mod events;
pub mod operations;
pub mod vcpus;
pub mod view;
pub mod world;

use crate::hardware::content::FRAMES;
use crate::hardware::reach::TAGS;
use descriptors::DescriptorPage;
use vcpus::{VCPUS, Vcpu};

/// Domains there can be at a time.
pub const DOMAINS: usize = TAGS;
/// Nobody's.
pub const NOBODY: u8 = 0xff;
/// What the M2P says of a frame without a name.
pub const NO_NAME: u64 = !0;

/// Where a domain is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Life {
    /// There is no such domain.
    #[default]
    Vacant,
    /// It can make hypercalls.
    Alive,
    /// It is being taken apart.
    Dying,
}

/// What is known of a domain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Domain {
    /// Where it is in its life.
    pub life: Life,
    /// Its vCPUs.
    pub vcpus: [Vcpu; VCPUS],
    /// Which of them has its turn: the one that does what the domain does.
    pub turn: usize,
    /// The page that it shares with the hypervisor.
    pub shared: Option<usize>,
    /// The page with its console's ring, which the hypervisor holds as long as the domain lives.
    pub console: Option<usize>,
    /// Frames it may have, the shared page not counted.
    pub limit: usize,
}

/// A pin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pin {
    /// Who asked for it.
    pub domain: usize,
    /// The table.
    pub table: usize,
    /// Its level.
    pub level: u8,
}

/// All that the specification keeps.
#[derive(Clone)]
pub struct Knowledge {
    /// Whose each frame is, or was last while somebody still holds it.
    pub owner: [u8; FRAMES],
    /// Frames that their owners claim.
    pub claimed: crate::bits::Bits,
    /// What owners call their frames.
    pub name: [u64; FRAMES],
    /// Pins.
    pub pins: Vec<Pin>,
    /// Domains by number.
    pub domains: [Domain; DOMAINS],
    /// Frames that the hypervisor keeps without an entry that leads to them, and whether as writable: by the snapshot of an unhooked table,
    /// by a grant that is mapped, or as part of a grant table. The core's word is taken for these.
    pub kept: Vec<(usize, bool)>,
    /// Unhooked tables.
    pub unhooked: Vec<Unhooked>,
    /// Grants that are mapped.
    pub borrowed: Vec<Borrowed>,
    /// Pages of segment descriptors.
    pub descriptors: Vec<DescriptorPage>,
    /// Frames of grant tables, with their domains.
    pub tables: Vec<(usize, usize)>,
}

/// An unhooked table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unhooked {
    /// Whose it is.
    pub domain: usize,
    /// The table.
    pub table: usize,
    /// The table whose entry led to it.
    pub parent: usize,
    /// Which entry.
    pub index: usize,
}

/// A grant that is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Borrowed {
    /// By whom.
    pub borrower: usize,
    /// The number by which the mapping is undone.
    pub handle: u32,
    /// Whose grant it is.
    pub lender: usize,
    /// Which of them.
    pub reference: u32,
    /// Place of the frame.
    pub frame: usize,
    /// Whether it may be written to.
    pub writable: bool,
    /// Whether it is mapped at an address of the borrower's.
    pub host: bool,
}

impl Default for Knowledge {
    fn default() -> Self {
        Self {
            owner: [NOBODY; FRAMES],
            claimed: crate::bits::Bits::EMPTY,
            name: [NO_NAME; FRAMES],
            pins: Vec::new(),
            domains: [Domain::default(); DOMAINS],
            kept: Vec::new(),
            unhooked: Vec::new(),
            borrowed: Vec::new(),
            descriptors: Vec::new(),
            tables: Vec::new(),
        }
    }
}

impl Knowledge {
    /// The level at which a domain has pinned a frame.
    pub fn pinned(&self, domain: usize, table: usize) -> Option<u8> {
        self.pins.iter().find(|pin| pin.domain == domain && pin.table == table).map(|pin| pin.level)
    }

    /// Whether a domain has unhooked tables.
    pub fn has_unhooked(&self, domain: usize) -> bool {
        self.unhooked.iter().any(|unhooked| unhooked.domain == domain)
    }

    /// Whether a table of a domain is unhooked.
    pub fn is_unhooked(&self, domain: usize, table: usize) -> bool {
        self.unhooked.iter().any(|unhooked| (unhooked.domain, unhooked.table) == (domain, table))
    }

    /// Whether there is such a domain.
    pub fn is_present(&self, domain: usize) -> bool {
        self.domains.get(domain).is_some_and(|domain| domain.life != Life::Vacant)
    }

    /// Frames that count as a domain's, the shared page and its grant table not among them.
    pub fn pages(&self, domain: usize) -> usize {
        let all = self.owner.iter().filter(|owner| usize::from(**owner) == domain).count();
        let tables = self.tables.iter().filter(|table| table.0 == domain).count();
        all - usize::from(self.domains[domain].shared.is_some()) - tables
    }
}
