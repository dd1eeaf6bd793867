//! The world as it follows from what holders lead to, counted anew.

use hyp_core::machine::Entry;
use penumbra_abi::errno::Errno;

use super::errors::Errors;
use super::view::View;
use super::{Knowledge, Life, NOBODY};
use crate::format::{Hardware, Walk};
use crate::hardware::content::{FRAMES, slot};

/// Why each frame is held, counted.
#[derive(Clone, Copy)]
pub struct World {
    /// All reasons.
    pub references: [u16; FRAMES],
    /// Reasons to be writable.
    pub writable: [u16; FRAMES],
    /// Reasons to be a page of segment descriptors.
    pub descriptors: [u16; FRAMES],
    /// Reasons to be a table.
    pub table: [u16; FRAMES],
    /// Of which level.
    pub level: [u8; FRAMES],
}

/// Who asks: tables have to be `owner`'s, frames that are mapped `target`'s.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    /// Whose the tables are.
    pub owner: usize,
    /// Whose frames may be mapped.
    pub target: usize,
}

impl World {
    fn empty() -> Self {
        let none = [0; FRAMES];
        Self { references: none, writable: none, descriptors: none, table: none, level: [0; FRAMES] }
    }

    /// Counts everything.
    ///
    /// # Errors
    /// The world contradicts itself: a frame that is held in ways that exclude each other.
    pub fn count<F: Hardware>(known: &Knowledge, view: &View<'_>) -> Result<Self, Errors> {
        let mut world = Self::empty();
        let mut wrong = Errors::NONE;
        for at in 0..FRAMES {
            world.references[at] += u16::from(known.claimed.has(at));
        }
        for &(frame, writable) in &known.kept {
            world.references[frame] += 1;
            world.writable[frame] += u16::from(writable);
        }
        for domain in known.domains.iter().filter(|domain| domain.life != Life::Vacant) {
            for page in [domain.shared, domain.console].into_iter().flatten() {
                world.references[page] += 1;
                world.writable[page] += 1;
            }
            for vcpu in &domain.vcpus {
                for root in [vcpu.kernel, vcpu.user].into_iter().flatten() {
                    world.add_table::<F>(known, view, root, F::LEVELS, None, &mut wrong);
                }
                if let Some(info) = vcpu.info {
                    world.references[info] += 1;
                    world.writable[info] += 1;
                }
            }
        }
        for page in &known.descriptors {
            world.references[page.frame] += 1;
            world.descriptors[page.frame] += 1;
            if world.writable[page.frame] > 0 {
                wrong.add(Errno::EINVAL);
            }
        }
        for pin in &known.pins {
            world.add_table::<F>(known, view, pin.table, pin.level, None, &mut wrong);
        }
        if wrong.is_empty() { Ok(world) } else { Err(wrong) }
    }

    /// Whose a frame is: nobody's when nobody holds it any more.
    pub fn owner(&self, known: &Knowledge, at: usize) -> Option<usize> {
        (known.owner[at] != NOBODY && self.references[at] > 0).then(|| usize::from(known.owner[at]))
    }

    /// Adds one use of a frame as a table, with everything below it if it is the first.
    pub fn add_table<F: Hardware>(
        &mut self,
        known: &Knowledge,
        view: &View<'_>,
        table: usize,
        level: u8,
        asker: Option<Asker>,
        wrong: &mut Errors,
    ) {
        if asker.is_some_and(|asker| self.owner(known, table) != Some(asker.owner)) {
            return wrong.add(Errno::EINVAL);
        }
        let other = self.writable[table] > 0 || self.descriptors[table] > 0;
        if other || self.table[table] > 0 && self.level[table] != level {
            return wrong.add(Errno::EINVAL);
        }
        self.references[table] += 1;
        self.table[table] += 1;
        if self.table[table] > 1 {
            return;
        }
        self.level[table] = level;
        for index in 0..F::entries(level) {
            if level == F::LEVELS && F::reserved_root_slots().contains(&index) {
                continue;
            }
            let raw = view.read(table, index);
            if raw != 0 {
                self.add_entry::<F>(known, view, (table, level), raw, asker, wrong);
            }
        }
    }

    /// Adds what an entry of a table of `level` leads to.
    pub fn add_entry<F: Hardware>(
        &mut self,
        known: &Knowledge,
        view: &View<'_>,
        (above, level): (usize, u8),
        raw: u64,
        asker: Option<Asker>,
        wrong: &mut Errors,
    ) {
        // The entry above an unhooked table is no entry that a guest may write, but the walker passes over it. (Elsewhere an entry that is
        // foreseen may look like it, too, until the format has forced bits on it.)
        let is_above_unhooked = asker.is_none() && known.unhooked.iter().any(|out| out.parent == above);
        if is_above_unhooked && F::walk(level, raw) == Walk::Fault {
            return;
        }
        let stands = if view.writes.is_none() { Some(raw) } else { admitted::<F>(level, raw) };
        let Some(raw) = stands else { return wrong.add(Errno::EINVAL) };
        match F::walk(level, raw) {
            Walk::Fault => {}
            // A root may lead to itself, if nothing can be written through that; it holds nothing by it.
            Walk::Table { frame, .. } if slot(frame) == Some(above) => {
                if level != F::LEVELS || !F::is_harmless_to_itself(raw) {
                    wrong.add(Errno::EINVAL);
                }
            }
            Walk::Table { frame, .. } => match slot(frame) {
                Some(table) => self.add_table::<F>(known, view, table, level - 1, asker, wrong),
                None => wrong.add(Errno::EINVAL),
            },
            Walk::Leaf { .. } if level > 2 => wrong.add(Errno::EINVAL),
            Walk::Leaf { frame, writable, .. } => {
                let span = if level == 1 { 1 } else { F::entries(1) as u64 };
                for frame in frame..frame + span {
                    self.add_page(known, frame, writable, asker, wrong);
                }
            }
        }
    }

    fn add_page(
        &mut self,
        known: &Knowledge,
        frame: u64,
        writable: bool,
        asker: Option<Asker>,
        wrong: &mut Errors,
    ) {
        let Some(at) = slot(frame) else {
            return wrong.add(Errno::EPERM);
        };
        if known.owner[at] == NOBODY || asker.is_some_and(|asker| self.owner(known, at) != Some(asker.target))
        {
            return wrong.add(Errno::EBUSY);
        }
        self.references[at] += 1;
        if writable {
            if self.table[at] > 0 || self.descriptors[at] > 0 {
                return wrong.add(Errno::EBUSY);
            }
            self.writable[at] += 1;
        }
    }
}

/// The entry as it will stand, if the format lets it. What the format believes it means must be what the walker makes of it.
///
/// # Panics
/// When it isn't: a hole in the format.
pub fn admitted<F: Hardware>(level: u8, raw: u64) -> Option<u64> {
    let (stands, entry) = F::admit(level, raw).ok()?;
    let agrees = match (entry, F::walk(level, stands)) {
        (Entry::Absent, Walk::Fault) => true,
        (Entry::Table(table), Walk::Table { frame, .. }) => table.number() == frame,
        (Entry::Leaf(leaf), Walk::Leaf { frame, writable, uncached }) => {
            leaf.frame.number() == frame && leaf.level == level && leaf.writable >= writable && !uncached
        }
        _ => false,
    };
    assert!(
        agrees,
        "{raw:#x} at level {level} is admitted as {entry:?}, but the walker makes {:?} of it",
        F::walk(level, stands)
    );
    Some(stands)
}
