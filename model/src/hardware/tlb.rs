//! A CPU's translation cache with addresses: a few entries, superpages and intermediate tables among them.
//!
//! It forgets by chance only, when it is full, and otherwise when it is told to.

use crate::format::{Hardware, Walk};
use crate::hardware::content::{Content, slot};

/// A cached translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cached {
    /// Whose it is.
    pub tag: usize,
    /// The address shifted right by the bits that the entry spans.
    pub prefix: u64,
    /// The level of the table in which the leaf stood.
    pub level: u8,
    /// Number of the first frame.
    pub frame: u64,
    /// Whether writes are allowed.
    pub writable: bool,
    /// Whether accesses go past the caches.
    pub uncached: bool,
}

/// A cached intermediate step: the table of `level` that translates addresses with this prefix.
#[derive(Clone, Copy, Debug)]
struct Step {
    tag: usize,
    prefix: u64,
    level: u8,
    table: usize,
    limited: bool,
}

/// The two kinds of entries.
#[derive(Default)]
pub struct Tlb {
    leaves: Vec<Cached>,
    steps: Vec<Step>,
}

const LEAVES: usize = 24;
const STEPS: usize = 8;

/// Where the bits of an address begin that a leaf in a table of `level` doesn't translate.
fn span<F: Hardware>(level: u8) -> u32 {
    12 + (1..level).map(F::index_bits).sum::<u32>()
}

impl Cached {
    /// The number of the frame behind an address.
    pub fn target<F: Hardware>(&self, address: u64) -> u64 {
        self.frame + ((address >> 12) & ((1 << (span::<F>(self.level) - 12)) - 1))
    }

    fn covers<F: Hardware>(&self, tag: usize, address: u64) -> bool {
        self.tag == tag && self.prefix == address >> span::<F>(self.level)
    }
}

impl Tlb {
    /// A cached translation of an address.
    pub fn look_up<F: Hardware>(&self, tag: usize, address: u64) -> Option<Cached> {
        self.leaves.iter().copied().find(|entry| entry.covers::<F>(tag, address))
    }

    /// Every cached translation under a tag.
    pub fn of(&self, tag: usize) -> impl Iterator<Item = Cached> + '_ {
        self.leaves.iter().copied().filter(move |entry| entry.tag == tag)
    }

    /// The address that an entry translates first.
    pub fn address<F: Hardware>(entry: &Cached) -> u64 {
        entry.prefix << span::<F>(entry.level)
    }

    /// Walks from the deepest step that is known, or from the root; takes in what it finds. `visit` is told of each entry used: table,
    /// level, index.
    pub fn walk<F: Hardware>(
        &mut self,
        content: &Content,
        (tag, root, address): (usize, usize, u64),
        chance: &mut fastrand::Rng,
        mut visit: impl FnMut(usize, u8, usize),
    ) -> Option<Cached> {
        let start = self.deepest::<F>(tag, address);
        let (mut table, mut level, mut limited) = start.unwrap_or((root, F::LEVELS, false));
        loop {
            let index = F::index(hyp_core::address::GuestVirtual::new(address), level);
            if level == F::LEVELS && F::reserved_root_slots().contains(&index) {
                return None;
            }
            let raw = content.read(table, index);
            match F::walk(level, raw) {
                Walk::Fault => return None,
                Walk::Table { frame, limited: here } => {
                    visit(table, level, index);
                    (table, level, limited) = (slot(frame)?, level - 1, limited || here);
                    let prefix = address >> span::<F>(level + 1);
                    push(&mut self.steps, STEPS, Step { tag, prefix, level, table, limited }, chance);
                }
                Walk::Leaf { frame, writable, uncached } => {
                    visit(table, level, index);
                    let prefix = address >> span::<F>(level);
                    let entry =
                        Cached { tag, prefix, level, frame, writable: writable && !limited, uncached };
                    // As x86 says of a fault, and as a walk after a permission fault on Arm: the old entry goes.
                    self.leaves.retain(|old| !old.covers::<F>(tag, address));
                    push(&mut self.leaves, LEAVES, entry, chance);
                    return Some(entry);
                }
            }
        }
    }

    fn deepest<F: Hardware>(&self, tag: usize, address: u64) -> Option<(usize, u8, bool)> {
        let fits = |step: &&Step| step.tag == tag && step.prefix == address >> span::<F>(step.level + 1);
        let step = self.steps.iter().filter(fits).min_by_key(|step| step.level)?;
        Some((step.table, step.level, step.limited))
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.leaves.clear();
        self.steps.clear();
    }

    /// Forgets everything under a tag.
    pub fn forget(&mut self, tag: usize) {
        self.leaves.retain(|entry| entry.tag != tag);
        self.steps.retain(|step| step.tag != tag);
    }

    /// Forgets the translations of one address under a tag, and steps on the way to it.
    pub fn forget_page<F: Hardware>(&mut self, tag: usize, address: u64) {
        self.leaves.retain(|entry| !entry.covers::<F>(tag, address));
        self.steps.retain(|step| step.tag != tag || step.prefix != address >> span::<F>(step.level + 1));
    }
}

/// Adds an entry; when it is full, another has to go.
fn push<T>(entries: &mut Vec<T>, capacity: usize, entry: T, chance: &mut fastrand::Rng) {
    match entries.len() < capacity {
        true => entries.push(entry),
        false => entries[chance.usize(..capacity)] = entry,
    }
}
