//! Entries of level-1 tables: pages, which nearly every update is about.
//!
//! What the general path does, without its detours: a level-1 entry leads to no table, so nothing here is ever preempted in the
//! middle, and one entry's references are taken and given back at once. The checks are the general ones, in the same order: the
//! format judges the bits, the frame's record the rights; an entry that leads to the same frame with the same rights moves no
//! reference, by its neutral form (XSA-148, XSA-182).

use super::update::HardwareBits;
use super::validate::RUN;
use super::{Budget, Refusal, Stop, TableSpace};
use crate::address::{GuestVirtual, MachineFrame, PAGE_SHIFT};
use crate::machine::{Entry, Leaf, Machine, PageTableFormat};

/// A complete level-1 table of the domain, found once for several updates. It stays one as long as nothing but leaves of
/// the domain's tables is changed, under the same lock.
pub struct LeafTable<M: Machine> {
    pub(super) frame: MachineFrame,
    pub(super) words: M::Table,
}

impl<M: Machine> LeafTable<M> {
    /// Whether it is the table with this frame.
    #[inline]
    pub fn is(&self, frame: MachineFrame) -> bool {
        self.frame == frame
    }
}

/// Which level-1 table translates an address: remembered until anything but a leaf changes ([`TableSpace::forget_found`]), since
/// changes come in rows. It saves the walk and nothing else: what is found is held against the frame's record like any other
/// table, so an answer that is out of date could confuse the guest, and nobody else.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    root: Option<MachineFrame>,
    /// The address without the bits that are an index into the table, or below.
    region: u64,
    table: Option<MachineFrame>,
}

impl Found {
    /// Nothing found yet.
    pub const fn new() -> Self {
        Self { root: None, region: 0, table: None }
    }
}

impl<M: Machine> TableSpace<'_, M> {
    /// The complete level-1 table that translates `address` under `root`; `None` if there is none, or if something is unfinished.
    #[inline(always)]
    pub fn leaf_table_at(&mut self, root: MachineFrame, address: GuestVirtual) -> Option<LeafTable<M>> {
        let region = region::<M>(address);
        let found = self.state.found;
        let known = found.root == Some(root) && found.region == region;
        let table = if known { found.table } else { self.walk_to_leaf_table(root, address) };
        self.leaf_table(table?)
    }

    #[inline(never)]
    fn walk_to_leaf_table(&mut self, root: MachineFrame, address: GuestVirtual) -> Option<MachineFrame> {
        let table = self.find(root, address)?.table;
        self.state.found = Found { root: Some(root), region: region::<M>(address), table: Some(table) };
        Some(table)
    }

    /// For every change that isn't one of a leaf alone.
    pub(super) fn forget_found(&mut self) {
        self.state.found = Found::new();
    }

    /// The complete level-1 table with this frame; `None` if it is none, or if something is unfinished.
    #[inline]
    pub fn leaf_table(&self, frame: MachineFrame) -> Option<LeafTable<M>> {
        let found = self.state.unfinished.is_none() && self.table_level(frame) == Some(1);
        let words = if found { self.machine.table(frame) } else { None };
        words.map(|words| LeafTable { frame, words })
    }

    /// What entry `index` of a level-1 table holds.
    #[inline(always)]
    pub(super) fn leaf(&self, table: &LeafTable<M>, index: usize) -> Entry {
        M::Format::decode(1, self.machine.read_in(table.words, index))
    }

    /// Writes entry `index` of a level-1 table.
    ///
    /// # Errors
    /// The refusal, and then the old entry stands.
    #[inline(always)]
    pub fn update_leaf(
        &self,
        table: &LeafTable<M>,
        index: usize,
        raw: u64,
        bits: HardwareBits,
    ) -> Result<(), Refusal> {
        // A function of each way of writing, since the usual one can't fail.
        match bits {
            HardwareBits::Replace => self.change_leaf::<true>(table, index, raw, bits),
            _ => self.change_leaf::<false>(table, index, raw, bits),
        }
    }

    /// Writes entry `index`, which is `admitted`. Not a closure, which the compiler would call where it is large.
    #[inline(always)]
    fn write_leaf<const REPLACES: bool>(
        &self,
        table: &LeafTable<M>,
        index: usize,
        admitted: u64,
        bits: HardwareBits,
    ) -> Result<(), Refusal> {
        if !REPLACES {
            return self.write(table.frame, 1, index, admitted, bits);
        }
        self.machine.write_in(table.words, index, admitted);
        Ok(())
    }

    /// As [`Self::update_leaf`].
    #[inline(always)]
    fn change_leaf<const REPLACES: bool>(
        &self,
        table: &LeafTable<M>,
        index: usize,
        raw: u64,
        bits: HardwareBits,
    ) -> Result<(), Refusal> {
        if index >= M::Format::entries(1) {
            return Err(Refusal::Unaligned);
        }
        let (admitted, new) = M::Format::admit(1, raw)?;
        let old = self.leaf(table, index);
        match (old, new) {
            (Entry::Leaf(before), Entry::Leaf(after))
                if before.frame == after.frame && before.writable != after.writable =>
            {
                self.change_rights::<REPLACES>(table, index, (admitted, after), bits)
            }
            (Entry::Leaf(before), Entry::Leaf(after)) if before.frame == after.frame => {
                self.write_leaf::<REPLACES>(table, index, admitted, bits)
            }
            (Entry::Absent, Entry::Absent) => self.write_leaf::<REPLACES>(table, index, admitted, bits),
            _ => {
                self.acquire_leaf_entry(new)?;
                if let Err(refusal) = self.write_leaf::<REPLACES>(table, index, admitted, bits) {
                    self.release_leaf(new);
                    return Err(refusal);
                }
                self.release_leaf(old);
                Ok(())
            }
        }
    }

    /// From read-only to writable or back, of the same frame: the entry's reference stays, the use comes or goes.
    #[inline(always)]
    fn change_rights<const REPLACES: bool>(
        &self,
        table: &LeafTable<M>,
        index: usize,
        (admitted, leaf): (u64, Leaf),
        bits: HardwareBits,
    ) -> Result<(), Refusal> {
        if leaf.writable {
            self.frames.use_writable(leaf.frame, self.target, self.machine)?;
            self.write_leaf::<REPLACES>(table, index, admitted, bits)
                .inspect_err(|_| self.frames.drop_use(leaf.frame))
        } else {
            // As much the domain's as for any other new entry.
            let writable = self.frames.use_of(leaf.frame, self.target)?;
            self.write_leaf::<REPLACES>(table, index, admitted, bits)?;
            writable.end();
            Ok(())
        }
    }

    /// Gives back what an entry of a level-1 table held.
    #[inline(always)]
    fn release_leaf(&self, entry: Entry) {
        if let Entry::Leaf(leaf) = entry {
            self.release_page(leaf.frame, leaf.writable);
        }
    }

    /// Gives back what a mapping of one page held.
    #[inline(always)]
    pub(super) fn release_page(&self, frame: MachineFrame, writable: bool) {
        let freed = match writable {
            true => self.frames.put_use(frame, self.machine),
            false => self.frames.put(frame, self.machine),
        };
        if freed {
            self.budget.charge(Budget::FRAME);
        }
    }

    /// As [`Self::release_page`], of one of hundreds that go in one stretch: a frame that this frees is scrubbed later.
    pub(super) fn release_page_of_many(&self, frame: MachineFrame, writable: bool) {
        if writable {
            self.frames.drop_use(frame);
        }
        if self.frames.put_unscrubbed(frame, self.machine) {
            self.budget.charge(Budget::FRAME);
        }
    }

    /// Validates the entries of a locked level-1 table, from `progress` on. On error the table stays incomplete.
    pub(super) fn validate_leaves(&self, table: MachineFrame, progress: usize) -> Result<(), Stop> {
        let words = self.machine.table(table).ok_or(Refusal::NotATable(table))?;
        let entries = M::Format::entries(1);
        // They are paid for together: the entries before, and afterwards the flushes of those frames that were tables last.
        self.budget.charge_flushes(self.frames.type_flushes());
        let end = progress.saturating_add(self.budget.piece(entries.saturating_sub(progress)));
        let mut index = progress;
        while index < end {
            match self.machine.read_in(words, index) {
                0 => index = self.past_empty_entries(words, index, end),
                proposed => {
                    if let Err(refusal) = self.validate_leaf(words, index, proposed) {
                        self.frames.set_progress(table, index);
                        return Err(refusal.into());
                    }
                    index = index.saturating_add(1);
                }
            }
        }
        self.budget.charge_flushes(self.frames.type_flushes());
        if end < entries {
            self.frames.set_progress(table, end);
            return Err(Stop::Preempted);
        }
        self.frames.complete(table);
        Ok(())
    }

    #[inline(always)]
    fn validate_leaf(&self, table: M::Table, index: usize, proposed: u64) -> Result<(), Refusal> {
        let (admitted, entry) = M::Format::admit(1, proposed)?;
        if admitted != proposed {
            self.machine.write_in(table, index, admitted);
        }
        self.acquire_leaf_entry(entry)
    }

    /// Gives back what the entries of a level-1 table hold, from number `progress` down to the first.
    pub(super) fn invalidate_leaves(&self, table: MachineFrame, mut progress: usize) -> Result<(), Stop> {
        let words = self.machine.table(table).ok_or(Refusal::NotATable(table))?;
        while let Some(index) = progress.checked_sub(1) {
            if let Some(before) = progress.checked_sub(RUN)
                && self.passes_empty_run(words, before, M::Format::entries(1))
            {
                progress = before;
                continue;
            }
            self.release_leaf(M::Format::decode(1, self.machine.read_in(words, index)));
            progress = index;
            self.charge_entry(table, progress)?;
        }
        Ok(())
    }
}

/// What all addresses have in common that a level-1 table translates.
#[inline(always)]
pub fn region<M: Machine>(address: GuestVirtual) -> u64 {
    address.bytes().checked_shr(PAGE_SHIFT.saturating_add(M::Format::index_bits(1))).unwrap_or(0)
}
