//! A guest's own view: translations through the TLB of the CPU that it runs on, accesses, and the window of arguments.

use std::sync::atomic::Ordering::Relaxed;

use hyp_core::address::GuestVirtual;

use super::{Cpus, Model, WALKED, WINDOW, WINDOW_BYTES, lock};
use crate::format::Hardware;
use crate::hardware::content::{self, slot};
use crate::hardware::tlb::{Cached, Tlb};

impl<F: Hardware> Model<F> {
    /// Translates for the vCPU that runs on the current CPU, through its TLB.
    pub fn translate(&self, address: u64, write: bool) -> Option<(u64, bool)> {
        let mut cpus = lock(&self.cpus);
        let Cpus { all, current, chance } = &mut *cpus;
        let cpu = &mut all[*current];
        let loaded = cpu.loaded?;
        let root = F::root_of(GuestVirtual::new(address), Some(loaded.kernel), loaded.user)?;
        let root = slot(root.number())?;
        let hit = cpu.tlb.look_up::<F>(loaded.tag, address).filter(|entry| entry.writable || !write);
        let mut used = [(0, 0); 6];
        let mut count = 0;
        let entry = hit.or_else(|| {
            cpu.tlb.walk::<F>(&self.content, (loaded.tag, root, address), chance, |table, _, index| {
                used[count] = (table, index);
                count += 1;
            })
        })?;
        if !entry.writable && write {
            return None;
        }
        drop(cpus);
        for (at, &(table, index)) in used[..count].iter().enumerate() {
            let leaf = at + 1 == count;
            let raw = self.content.read(table, index);
            let marked = raw | F::used(leaf && write);
            if marked != raw {
                self.content.write(table, index, marked);
                self.noticed(table, index, marked);
            }
        }
        Some((entry.target::<F>(address), entry.uncached))
    }

    /// A guest's own access of one word, through the TLB and whatever memory type the entry says. `None`: it takes a fault.
    pub fn access(&self, address: u64, write: Option<u64>) -> Option<u64> {
        let (frame, uncached) = self.translate(address, write.is_some())?;
        let (at, index) = (slot(frame)?, (address % 4096 / 8) as usize);
        match (write, uncached) {
            (None, false) => Some(self.content.read(at, index)),
            (None, true) => Some(self.content.read_home(at, index)),
            (Some(value), true) => {
                self.content.write_home(at, index, value);
                Some(value)
            }
            (Some(value), false) => {
                self.content.write(at, index, value);
                self.noticed(at, index, value);
                Some(value)
            }
        }
    }

    /// A word is written by whoever may, through no particular mapping.
    pub fn write_word(&self, at: usize, index: usize, word: u64) {
        self.content.write(at, index, word);
        self.noticed(at, index, word);
    }

    /// A line of a frame leaves the caches, as it may at any time; walkers then see what memory holds.
    pub fn evict(&self, at: usize) {
        self.content.clean(at);
        if self.watch[at].load(Relaxed) & WALKED != 0 {
            for index in 0..content::WORDS {
                self.noticed(at, index, self.content.read(at, index));
            }
        }
    }

    /// A translation that a CPU has cached of the guest that it runs: of an address, or any.
    pub fn cached(&self, cpu: usize, address: Option<u64>) -> Option<Cached> {
        let cpus = lock(&self.cpus);
        let cpu = &cpus.all[cpu];
        let tag = cpu.loaded?.tag;
        match address {
            Some(address) => cpu.tlb.look_up::<F>(tag, address),
            None => cpu.tlb.of(tag).next(),
        }
    }

    /// Translations of the guest that a CPU runs which it has cached and which the tables, walked anew, don't give.
    pub fn stale(&self, cpu: usize) -> Vec<(u64, Cached)> {
        let mut cpus = lock(&self.cpus);
        let Cpus { all, chance, .. } = &mut *cpus;
        let cpu = &all[cpu];
        let Some(loaded) = cpu.loaded else { return Vec::new() };
        let mut stale = Vec::new();
        for entry in cpu.tlb.of(loaded.tag) {
            // What the prefix has lost at the top was sign, which a walk doesn't need.
            let address = Tlb::address::<F>(&entry);
            let root = F::root_of(GuestVirtual::new(address), Some(loaded.kernel), loaded.user);
            let root = root.and_then(|root| slot(root.number()));
            let now = root.and_then(|root| {
                Tlb::default().walk::<F>(&self.content, (loaded.tag, root, address), chance, |_, _, _| {})
            });
            if now != Some(entry) {
                stale.push((address, entry));
            }
        }
        stale
    }

    /// The part of the window that a range of addresses names, if it is in the window.
    pub(super) fn in_window(start: GuestVirtual, length: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(start.bytes().checked_sub(WINDOW)?).ok()?;
        let end = start.checked_add(length)?;
        (end <= WINDOW_BYTES).then_some(start..end)
    }

    /// Writes into the window.
    pub fn put(&self, offset: usize, bytes: &[u8]) -> u64 {
        lock(&self.window)[offset..offset + bytes.len()].copy_from_slice(bytes);
        WINDOW + offset as u64
    }

    /// Reads bytes from the window.
    pub fn bytes(&self, offset: usize, length: usize) -> Vec<u8> {
        lock(&self.window)[offset..offset + length].to_vec()
    }

    /// Reads a word from the window.
    pub fn word(&self, offset: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&lock(&self.window)[offset..offset + 8]);
        u64::from_le_bytes(word)
    }
}
