//! What the caches take in, and what the machine watches for while the core works.

use std::sync::atomic::Ordering::Relaxed;

use super::{Cpus, Model, WALKED, WRITABLE, lock};
use crate::bits::Bits;
use crate::format::Hardware;
use crate::hardware::content::{self, slot};
use crate::hardware::former::Former;
use crate::hardware::reach::{Astray, CPUS, Reach, TAGS};

impl<F: Hardware> Model<F> {
    pub(super) fn forget_all(&self, cpus: &mut Cpus, cpu: usize) {
        cpus.all[cpu].reach = [Reach::default(); TAGS];
        cpus.all[cpu].former.iter_mut().for_each(Former::clear);
        cpus.all[cpu].tlb.clear();
    }

    pub(super) fn forget(&self, cpus: &mut Cpus, cpu: usize, tag: usize) {
        cpus.all[cpu].reach[tag] = Reach::default();
        cpus.all[cpu].former[tag].clear();
        cpus.all[cpu].tlb.forget(tag);
    }

    /// Everything that the loaded roots lead to is in the caches at once.
    pub(super) fn speculate_all(&self, cpus: &mut Cpus, cpu: usize) {
        let Some(loaded) = cpus.all[cpu].loaded else { return };
        let reach = &mut cpus.all[cpu].reach[loaded.tag];
        for root in [Some(loaded.kernel), loaded.user].into_iter().flatten() {
            let Some(root) = slot(root.number()) else { continue };
            let met = reach.meet::<F>(&self.content, root, F::LEVELS, false);
            self.account(cpu, loaded.tag, met);
        }
        self.mark(&cpus.all[cpu].reach[loaded.tag]);
    }

    pub(super) fn account(&self, cpu: usize, tag: usize, met: Result<(), Astray>) {
        if let Err(Astray { table, raw }) = met {
            let table = content::number(table);
            self.violate(format!("CPU {cpu} walks out of RAM for d{tag}: {raw:#x} in mfn {table:#x}"));
        }
    }

    pub(super) fn mark(&self, reach: &Reach) {
        let tables = reach.tables.iter().flatten().fold(Bits::EMPTY, |all, some| all.union(some));
        for (at, watch) in self.watch.iter().enumerate() {
            let bits = (u8::from(reach.writable.has(at)) * WRITABLE) | (u8::from(tables.has(at)) * WALKED);
            if bits != 0 {
                watch.fetch_or(bits, Relaxed);
            }
        }
    }

    /// Something was written to a frame: if walkers use it as a table, they meet it.
    #[inline]
    pub(super) fn noticed(&self, at: usize, index: usize, raw: u64) {
        if self.watch[at].load(Relaxed) & WALKED != 0 {
            self.meet_written(at, index, raw);
        }
    }

    pub(super) fn meet_written(&self, at: usize, index: usize, raw: u64) {
        let mut cpus = lock(&self.cpus);
        for cpu in 0..CPUS {
            for tag in 0..TAGS {
                let reach = &mut cpus.all[cpu].reach[tag];
                let before = (reach.readable, reach.writable, reach.tables);
                let met = reach.written::<F>(&self.content, at, index, raw);
                let changed = before != (reach.readable, reach.writable, reach.tables);
                self.account(cpu, tag, met);
                if changed {
                    self.mark(&cpus.all[cpu].reach[tag]);
                }
            }
        }
    }

    /// A store to an entry as hardware sees it.
    pub(super) fn store(&self, at: usize, index: usize, raw: u64) {
        self.replaces(at, index, self.content.read(at, index), raw);
        self.content.write(at, index, raw);
        self.noticed(at, index, raw);
    }

    /// An entry is about to be replaced: if walkers use it as one of a table's, they mustn't meet two that are present, and may go on
    /// using the one that goes.
    pub(super) fn replaces(&self, at: usize, index: usize, old: u64, new: u64) {
        if !F::BREAKS || self.watch[at].load(Relaxed) & WALKED == 0 {
            return;
        }
        let mut cpus = lock(&self.cpus);
        for level in (1..=F::LEVELS).filter(|level| index < F::entries(*level)) {
            if level == F::LEVELS && F::reserved_root_slots().contains(&index) {
                continue;
            }
            let caches = cpus.all.iter_mut().flat_map(|cpu| cpu.reach.iter().zip(&mut cpu.former));
            for (_, former) in caches.filter(|(reach, _)| reach.walks(level, at)) {
                let before = former.conflict::<F>((at, level, index), new);
                if let Some(before) = before.or_else(|| F::conflict(level, old, new).then_some(old)) {
                    let table = content::number(at);
                    self.violate(format!("no break before {new:#x} replaces {before:#x} in mfn {table:#x}"));
                }
                former.take_in::<F>((at, level, index), (old, new));
            }
        }
    }

    /// The core looks at a table, or writes to it: nobody else may be able to.
    #[inline]
    pub(super) fn guard(&self, at: usize, index: usize, what: &str) {
        if self.watch[at].load(Relaxed) & WRITABLE != 0 {
            let cpus = lock(&self.cpus);
            let held = cpus.all.iter().flat_map(|cpu| &cpu.reach).any(|reach| reach.writable.has(at));
            drop(cpus);
            if held {
                let frame = content::number(at);
                self.violate(format!(
                    "entry {index} of mfn {frame:#x} is {what} while a TLB may still let it be written"
                ));
            }
        }
        if self.content.is_split(at, index) {
            let frame = content::number(at);
            self.violate(format!(
                "entry {index} of mfn {frame:#x} is {what}, and memory holds another than the cache"
            ));
        }
    }
}
