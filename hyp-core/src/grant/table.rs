//! What a domain lends: its table in shared pages, and the pins of the entries in use.
//!
//! The domain may write to the shared pages at any time. An entry is read once, as one word, and what was read is
//! what counts, since the word is exchanged only if it still is the same.

use penumbra_abi::grant_table::{
    GTF_PERMIT_ACCESS, GTF_READING, GTF_READONLY, GTF_TYPE_MASK, GTF_WRITING, GrantEntry, GrantStatus,
};

use super::{ENTRIES, MAX_FRAMES};
use crate::address::{DomainId, MachineFrame};
use crate::frame::{FrameError, FrameTable};
use crate::machine::Machine;

/// How often an entry that keeps changing is tried again before its domain's grant is refused. As in Xen.
const ATTEMPTS: u32 = 5;
/// How often the in-use flags of an entry that keeps changing are taken back. Then they stay: the domain that keeps changing
/// its own entry is the only one to lose by that.
const CLEARING_ATTEMPTS: u32 = 64;
/// Pins of one entry, of either kind.
const MAX_PINS: u16 = u16::MAX / 2;

/// The pins of one entry. Without pins, the rest says nothing.
#[derive(Clone, Copy, Debug)]
struct Active {
    /// Entries of version 1 name no frame beyond 32 bits.
    frame: u32,
    borrower: u16,
    readers: u16,
    writers: u16,
}

impl Active {
    const NONE: Self = Self { frame: 0, borrower: 0, readers: 0, writers: 0 };

    fn pins(&self) -> u32 {
        u32::from(self.readers).saturating_add(u32::from(self.writers))
    }

    fn count(&mut self, writable: bool) -> &mut u16 {
        if writable { &mut self.writers } else { &mut self.readers }
    }
}

/// The pins of one entry, for the auditor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pins {
    /// The entry's grant reference.
    pub reference: u32,
    /// Whose the pins are.
    pub borrower: DomainId,
    /// What is pinned.
    pub frame: MachineFrame,
    /// Pins that allow reading only.
    pub readers: u32,
    /// Pins that allow writing.
    pub writers: u32,
}

/// A domain's grant table.
#[derive(Debug)]
pub struct GrantTable {
    /// The shared frames' numbers plus one; 0 for none.
    frames: [u64; MAX_FRAMES],
    /// How many there are.
    count: usize,
    active: [Active; MAX_FRAMES * ENTRIES],
    /// Entries below this may be pinned; those above never were.
    touched: usize,
}

impl Default for GrantTable {
    fn default() -> Self {
        Self::new()
    }
}

/// Whose table, and what is needed to work on it.
pub struct Place<'a, M: Machine> {
    /// The machine.
    pub machine: &'a M,
    /// All frames.
    pub frames: &'a FrameTable,
    /// The domain that lends.
    pub lender: DomainId,
}

impl GrantTable {
    /// A table without frames.
    pub const fn new() -> Self {
        Self { frames: [0; MAX_FRAMES], count: 0, active: [Active::NONE; MAX_FRAMES * ENTRIES], touched: 0 }
    }

    /// Frames that it has, as a guest is told: at least one, which is full of empty entries until it is asked for.
    pub fn size(&self) -> usize {
        self.count.max(1)
    }

    /// Frames that really are there.
    pub fn shared(&self) -> impl Iterator<Item = MachineFrame> {
        self.frames.iter().take(self.count).filter_map(|word| MachineFrame::new(word.checked_sub(1)?))
    }

    /// Adds a frame, which the caller holds as *writable*. `false`: there is no room.
    pub fn add_frame(&mut self, frame: MachineFrame) -> bool {
        let Some(slot) = self.frames.get_mut(self.count) else { return false };
        *slot = frame.number().saturating_add(1);
        self.count = self.count.saturating_add(1);
        true
    }

    /// Takes the last frame away; its hold is the caller's.
    pub fn take_frame(&mut self) -> Option<MachineFrame> {
        let last = self.count.checked_sub(1)?;
        self.count = last;
        MachineFrame::new(self.frames.get(last)?.checked_sub(1)?)
    }

    /// Where an entry stands, if there is such a grant reference; the frame is `None` while it is only thought of as empty.
    fn locate(&self, reference: u32) -> Option<(usize, Option<(MachineFrame, usize)>)> {
        let index = usize::try_from(reference).ok()?;
        let (frame, within) = (index.checked_div(ENTRIES)?, index.checked_rem(ENTRIES)?);
        (frame < self.size()).then_some(())?;
        let word = self.frames.get(frame).copied().filter(|_| frame < self.count);
        let place =
            word.and_then(|word| MachineFrame::new(word.checked_sub(1)?)).map(|frame| (frame, within));
        Some((index, place))
    }

    /// Pins the frame of a grant for `borrower`: with its reference, and its use as *writable*. The flags in the
    /// entry say so from now on.
    ///
    /// # Errors
    /// As Xen answers: BAD_GNTREF, there is no such entry; BAD_PAGE, the frame isn't the lender's; GENERAL_ERROR, anything else.
    pub fn pin<M: Machine>(
        &mut self,
        place: &Place<'_, M>,
        reference: u32,
        borrower: DomainId,
        writable: bool,
    ) -> Result<MachineFrame, GrantStatus> {
        let (index, entry) = self.locate(reference).ok_or(GrantStatus::BAD_GNTREF)?;
        let mut active = self.active.get(index).copied().ok_or(GrantStatus::BAD_GNTREF)?;
        let is_pinned = active.pins() != 0;
        if is_pinned && (active.borrower != borrower.number() || *active.count(writable) >= MAX_PINS) {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        if !is_pinned || (writable && active.writers == 0) {
            let seen = mark(place.machine, entry, borrower, is_pinned, writable)?;
            if !is_pinned {
                active = Active { frame: seen.frame, borrower: borrower.number(), ..Active::NONE };
            }
        }
        // A number of 32 bits always is one.
        let frame = MachineFrame::new(u64::from(active.frame)).ok_or(GrantStatus::BAD_PAGE)?;
        if let Err(status) = hold(place, frame, writable) {
            unmark(place.machine, entry, active);
            return Err(status);
        }
        let count = active.count(writable);
        *count = count.saturating_add(1);
        if let Some(slot) = self.active.get_mut(index) {
            *slot = active;
            self.touched = self.touched.max(index.saturating_add(1));
        }
        Ok(frame)
    }

    /// Gives a pin back. No translation of the borrower's leads to the frame by it any more, in no TLB either. Says whether
    /// that freed the frame.
    pub fn unpin<M: Machine>(&mut self, place: &Place<'_, M>, reference: u32, writable: bool) -> bool {
        let Some(active) = self.active.get_mut(reference as usize) else { return false };
        let Some(left) = active.count(writable).checked_sub(1) else { return false };
        *active.count(writable) = left;
        let active = *active;
        // A lender that is being torn down has no entries any more.
        unmark(place.machine, self.locate(reference).and_then(|(_, entry)| entry), active);
        let Some(frame) = MachineFrame::new(u64::from(active.frame)) else { return false };
        match writable {
            true => place.frames.put_use(frame, place.machine),
            false => place.frames.put(frame, place.machine),
        }
    }

    /// Exchanges two entries that nobody uses.
    ///
    /// # Errors
    /// BAD_GNTREF: there is no such entry; EAGAIN: it is in use.
    pub fn swap<M: Machine>(&mut self, machine: &M, one: u32, other: u32) -> Result<(), GrantStatus> {
        let place = |reference| self.locate(reference).ok_or(GrantStatus::BAD_GNTREF);
        let (places, same) = ([place(one)?, place(other)?], one == other);
        let in_use =
            |(index, _): &(usize, _)| self.active.get(*index).is_some_and(|active| active.pins() != 0);
        if same {
            return Ok(());
        }
        if places.iter().any(in_use) {
            return Err(GrantStatus::EAGAIN);
        }
        let [(_, one), (_, other)] = places;
        let words = [word(machine, one), word(machine, other)];
        for (place, word) in [one, other].into_iter().zip(words.into_iter().rev()) {
            if let Some((frame, index)) = place {
                machine.write_frame(frame, index.saturating_mul(8), &word.to_le_bytes());
            }
        }
        Ok(())
    }

    /// The pins of all entries that have any. For the auditor.
    pub fn pins(&self) -> impl Iterator<Item = Pins> {
        let touched = (0u32..).zip(self.active.iter().take(self.touched));
        touched.filter(|(_, active)| active.pins() != 0).filter_map(|(reference, active)| {
            Some(Pins {
                reference,
                borrower: DomainId::new(active.borrower),
                frame: MachineFrame::new(u64::from(active.frame))?,
                readers: u32::from(active.readers),
                writers: u32::from(active.writers),
            })
        })
    }
}

/// Takes the reference, and the use, that a pin stands for.
pub(crate) fn hold<M: Machine>(
    place: &Place<'_, M>,
    frame: MachineFrame,
    writable: bool,
) -> Result<(), GrantStatus> {
    let Place { machine, frames, lender } = *place;
    let held = if writable { frames.get_writable(frame, lender, machine) } else { frames.get(frame, lender) };
    held.map_err(|error| match error {
        FrameError::NotMemory(_) | FrameError::NotOwned(_) => GrantStatus::BAD_PAGE,
        FrameError::InUse(..) | FrameError::TooManyReferences(_) => GrantStatus::GENERAL_ERROR,
    })
}

/// An entry as it stands in memory; empty if it isn't there yet.
fn word<M: Machine>(machine: &M, place: Option<(MachineFrame, usize)>) -> u64 {
    place.map_or(0, |(frame, index)| machine.read_word(frame, index))
}

/// Judges an entry and sets its in-use flags, in one exchange. Returns what it said.
fn mark<M: Machine>(
    machine: &M,
    place: Option<(MachineFrame, usize)>,
    borrower: DomainId,
    is_pinned: bool,
    writable: bool,
) -> Result<GrantEntry, GrantStatus> {
    let Some((frame, index)) = place else { return Err(GrantStatus::GENERAL_ERROR) };
    let mut current = machine.read_word(frame, index);
    for _ in 0..ATTEMPTS {
        let entry = GrantEntry::from_word(current);
        let grants = entry.flags & GTF_TYPE_MASK == GTF_PERMIT_ACCESS && entry.domid == borrower.number();
        // Of a grant in use only the right to write is still to be judged.
        if (!is_pinned && !grants) || (writable && entry.flags & GTF_READONLY != 0) {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let set = if writable { GTF_READING | GTF_WRITING } else { GTF_READING };
        let marked = GrantEntry { flags: entry.flags | set, ..entry };
        match machine.exchange_word(frame, index, current, marked.to_word()) {
            Ok(()) => return Ok(entry),
            Err(changed) => current = changed,
        }
    }
    Err(GrantStatus::GENERAL_ERROR)
}

/// Takes those in-use flags of an entry back for which `active` has no pins.
fn unmark<M: Machine>(machine: &M, place: Option<(MachineFrame, usize)>, active: Active) {
    let Some((frame, index)) = place else { return };
    let reading = if active.pins() == 0 { GTF_READING } else { 0 };
    let writing = if active.writers == 0 { GTF_WRITING } else { 0 };
    let mut current = machine.read_word(frame, index);
    for _ in 0..CLEARING_ATTEMPTS {
        let entry = GrantEntry::from_word(current);
        let cleared = GrantEntry { flags: entry.flags & !(reading | writing), ..entry };
        match machine.exchange_word(frame, index, current, cleared.to_word()) {
            Ok(()) => return,
            Err(changed) => current = changed,
        }
    }
}
