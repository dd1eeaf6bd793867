//! An observer that knows only hardware: what is loaded, and what a walker and a careless TLB could do with it.
//!
//! It reads the fake format's bits by itself (from the drawing in `fake/format.rs`, not through its code), and asks the
//! frame table only for two facts: whose a frame is, and what its type says.

use std::collections::{BTreeMap, BTreeSet};

use hyp_core::Hypervisor;
use hyp_core::address::{DomainId, MachineFrame};
use hyp_core::domain::Life;
use hyp_core::fake::{Fake, RESERVED_ENTRY};
use hyp_core::frame::FrameType;
use hyp_core::machine::Mmu;

/// Domains that are looked at.
const DOMAINS: u16 = 32;

/// What all loaded roots lead to.
#[derive(Clone, Default)]
pub struct Seen {
    /// Tables, by frame, with each level at which the walker meets them.
    pub tables: BTreeSet<(u64, u8)>,
    /// Mapped frames: whether some entry is writable, and for which domain's walkers.
    pub mapped: BTreeMap<(u16, u64), bool>,
    problems: Vec<String>,
}

/// Present entries of a table as the hardware reads them.
pub fn present(hv: &Hypervisor<Fake>, table: u64, level: u8) -> Vec<(usize, u64)> {
    let count = [0, 16, 8, 32][usize::from(level)];
    let table = MachineFrame::new(table).expect("a frame");
    let entries = (0..count).map(|index| (index, hv.machine().read_entry(table, index)));
    entries.filter(|(_, raw)| raw >> 63 == 1).collect()
}

/// Bits 20 to 49.
pub fn target(raw: u64) -> u64 {
    (raw >> 20) & ((1 << 30) - 1)
}

/// Bit 5 clear, or bit 4 set.
pub fn writable(raw: u64) -> bool {
    raw & (1 << 5) == 0 || raw & (1 << 4) != 0
}

/// Walks from every root of every domain that can run or is still loaded.
pub fn observe(hv: &Hypervisor<Fake>) -> Seen {
    let mut seen = Seen::default();
    for number in 0..DOMAINS {
        let Some(domain) = hv.domain(DomainId::new(number)) else { continue };
        if domain.life() == Life::Building {
            continue;
        }
        for vcpu in &domain.vcpus {
            for root in [vcpu.kernel_root(), vcpu.user_root()].into_iter().flatten() {
                seen.walk(hv, number, root.number(), 3);
            }
        }
    }
    seen.judge(hv);
    seen
}

impl Seen {
    /// The first thing that must not be, if there is one.
    pub fn problem(&self) -> Result<(), &str> {
        self.problems.first().map_or(Ok(()), |problem| Err(problem))
    }

    fn walk(&mut self, hv: &Hypervisor<Fake>, domain: u16, table: u64, level: u8) {
        self.tables.insert((table, level));
        for (index, raw) in present(hv, table, level) {
            if level == 3 && (10..12).contains(&index) {
                if raw != RESERVED_ENTRY {
                    self.problems.push(format!("root {table:#x}: reserved slot {index} holds {raw:#x}"));
                }
                continue;
            }
            let is_table = raw & (1 << 9) != 0;
            if level == 3 && target(raw) == table {
                // The root leads to itself: what it shows are its own tables, and nobody may write to them there.
                if writable(raw) {
                    self.problems
                        .push(format!("root {table:#x}: entry {index} lets its own tables be written"));
                }
                continue;
            }
            match (level, is_table) {
                (1, false) => {
                    *self.mapped.entry((domain, target(raw))).or_default() |= writable(raw);
                }
                (2, false) => {
                    for frame in target(raw)..target(raw) + 16 {
                        *self.mapped.entry((domain, frame)).or_default() |= writable(raw);
                    }
                }
                (2 | 3, true) => self.walk(hv, domain, target(raw), level - 1),
                _ => self.problems.push(format!("table {table:#x} level {level}: entry {index} is {raw:#x}")),
            }
        }
    }

    fn judge(&mut self, hv: &Hypervisor<Fake>) {
        let mut problems = Vec::new();
        for &(table, level) in &self.tables {
            let usage = MachineFrame::new(table).and_then(|table| hv.frames().usage(table));
            let fine = usage.is_some_and(|usage| {
                usage.kind == FrameType::Table(level) && usage.complete && usage.uses > 0
            });
            if !fine {
                problems.push(format!("the walker meets {table:#x} as a level-{level} table: {usage:?}"));
            }
        }
        for (&(domain, mapped), &writable) in &self.mapped {
            if let Some(problem) = judge_mapping(hv, domain, mapped, writable) {
                problems.push(problem);
            }
        }
        self.problems.extend(problems);
    }
}

/// What is wrong with a translation that domain `domain` has, or may still have cached.
pub fn judge_mapping(hv: &Hypervisor<Fake>, domain: u16, mapped: u64, writable: bool) -> Option<String> {
    let frame = MachineFrame::new(mapped)?;
    let owner = hv.frames().hold(frame).and_then(|hold| hold.owner);
    let usage = hv.frames().usage(frame);
    let control = hv.domain(DomainId::new(domain)).is_some_and(|domain| domain.is_control());
    match owner {
        None => return Some(format!("d{domain} reaches {mapped:#x}, which nobody owns")),
        Some(_) if hv.has_borrowed(DomainId::new(domain), frame, writable) => {}
        Some(owner) if owner.number() != domain && !control => {
            return Some(format!("d{domain} reaches {mapped:#x}, which is {owner:?}'s"));
        }
        Some(_) => {}
    }
    match usage.map(|usage| (usage.kind, usage.uses)) {
        Some((FrameType::Table(level), uses)) if writable && uses > 0 => {
            Some(format!("d{domain} can write to {mapped:#x}, a table of level {level}"))
        }
        _ => None,
    }
}
