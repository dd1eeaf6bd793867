//! What each operation must come to.

use std::cell::Cell;

use penumbra_abi::errno::Errno;
use penumbra_abi::mmu;

use super::errors::Errors;
use super::vcpus::Vcpu;
use super::view::{Translation, View, Writes};
use super::world::{Asker, World, admitted};
use super::{Knowledge, Life, Pin};
use crate::format::{Hardware, Walk};
use crate::hardware::content::{Content, WORDS, slot};

/// One element of an `mmu_update`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Update {
    /// Machine address and kind.
    pub pointer: u64,
    /// Entry, or name.
    pub value: u64,
}

/// One element of an `mmuext_op`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extended {
    /// `MMUEXT_*`
    pub command: u32,
    /// Its first argument.
    pub argument: u64,
    /// Its second: where a mask of vCPUs stands, or a frame to copy from.
    pub second: u64,
}

/// What is known, with what is foreseen on top of it.
pub struct Foreseen<'a> {
    /// What is known, and will be.
    pub known: Knowledge,
    /// Memory.
    pub content: &'a Content,
    /// What will be written to it.
    pub writes: Writes,
    /// The world as it will be, if nothing has changed since it was counted.
    world: Cell<Option<World>>,
}

impl<'a> Foreseen<'a> {
    /// Nothing foreseen yet. `world` is what would be counted, if that has just been done.
    pub fn new(known: &Knowledge, content: &'a Content, world: Option<World>) -> Self {
        Self { known: known.clone(), content, writes: Writes::default(), world: Cell::new(world) }
    }

    /// Something changes: what was counted isn't true any more.
    pub(super) fn change(&mut self) -> &mut Self {
        self.world.set(None);
        self
    }

    pub(super) fn view(&self) -> View<'_> {
        View { content: self.content, writes: Some(&self.writes) }
    }

    /// The world as it will be.
    ///
    /// # Panics
    /// When it contradicts itself.
    pub fn world<F: Hardware>(&self) -> World {
        let world = self.world.get().unwrap_or_else(|| {
            World::count::<F>(&self.known, &self.view()).expect("a world without contradictions")
        });
        self.world.set(Some(world));
        world
    }

    /// Whether a table can be held in addition to all there is.
    pub(super) fn may_hold<F: Hardware>(
        &self,
        domain: usize,
        frame: u64,
        level: u8,
    ) -> Result<usize, Errors> {
        let Some(table) = slot(frame) else { return Err(Errors::only(Errno::EINVAL)) };
        let (mut world, mut wrong) = (self.world::<F>(), Errors::NONE);
        let asker = Asker { owner: domain, target: domain };
        world.add_table::<F>(&self.known, &self.view(), table, level, Some(asker), &mut wrong);
        if wrong.is_empty() { Ok(table) } else { Err(wrong) }
    }

    /// One element of `mmu_update` on `owner`'s tables, whose leaves may map `target`'s frames.
    ///
    /// # Errors
    /// What it may be refused with.
    pub fn update<F: Hardware>(&mut self, owner: usize, target: usize, update: Update) -> Result<(), Errors> {
        let place = update.pointer & !mmu::MMU_UPDATE_KIND_MASK;
        let refused = |errno| Err(Errors::only(errno));
        if place >> 52 != 0 {
            return refused(Errno::EINVAL);
        }
        if update.pointer & 3 == mmu::MMU_MACHPHYS_UPDATE {
            let world = self.world::<F>();
            let at = slot(place >> 12).filter(|at| world.owner(&self.known, *at) == Some(target));
            let Some(at) = at else { return refused(Errno::EINVAL) };
            self.change().known.name[at] = update.value;
            return Ok(());
        }
        if !place.is_multiple_of(8) {
            return refused(Errno::EINVAL);
        }
        let index = (place % 4096 / 8) as usize;
        let world = self.world::<F>();
        let own = |at: &usize| world.owner(&self.known, *at) == Some(owner) && world.descriptors[*at] == 0;
        let Some(at) = slot(place >> 12).filter(own) else { return refused(Errno::EINVAL) };
        if world.table[at] == 0 {
            self.change().writes.push(at, index, update.value);
            return Ok(());
        }
        self.entry::<F>(&world, (at, world.level[at], index), update.value, Asker { owner, target })
    }

    /// Writes an entry of a table.
    ///
    /// # Errors
    /// What it may be refused with.
    pub fn entry<F: Hardware>(
        &mut self,
        world: &World,
        (table, level, index): (usize, u8, usize),
        raw: u64,
        asker: Asker,
    ) -> Result<(), Errors> {
        if index >= F::entries(level) {
            return Err(Errors::only(Errno::EINVAL));
        }
        if level == F::LEVELS && F::reserved_root_slots().contains(&index) {
            return Err(Errors::only(Errno::EINVAL));
        }
        let Some(stands) = admitted::<F>(level, raw) else { return Err(Errors::only(Errno::EINVAL)) };
        let (old, new) = (F::walk(level, self.view().read(table, index)), F::walk(level, stands));
        // The same frame with the same rights: nothing changes hands.
        if old != new || matches!(new, Walk::Table { frame, .. } if slot(frame) == Some(table)) {
            let (mut world, mut wrong) = (*world, Errors::NONE);
            world.add_entry::<F>(&self.known, &self.view(), (table, level), raw, Some(asker), &mut wrong);
            if !wrong.is_empty() {
                return Err(wrong);
            }
        }
        self.change().writes.push(table, index, stands);
        Ok(())
    }

    /// Where the tables of a domain's kernel will lead.
    pub(super) fn translation<F: Hardware>(&self, domain: usize, address: u64) -> Option<Translation> {
        self.view().translate::<F>(self.known.domains[domain].vcpu().kernel?, address)
    }

    /// `update_va_mapping`: where the walk ends is found in memory, never in a TLB.
    ///
    /// # Errors
    /// What it may be refused with.
    pub fn remap<F: Hardware>(
        &mut self,
        domain: usize,
        address: u64,
        raw: u64,
        target: usize,
    ) -> Result<(), Errors> {
        let refused = Err(Errors::only(Errno::EINVAL));
        let root = |at: Option<usize>| at.map(crate::hardware::content::frame);
        let Vcpu { kernel, user, .. } = *self.known.domains[domain].vcpu();
        let at = hyp_core::address::GuestVirtual::new(address);
        let Some(root) = F::root_of(at, root(kernel), root(user)) else { return refused };
        let Some(mut table) = slot(root.number()) else { return refused };
        for level in (2..=F::LEVELS).rev() {
            let index = F::index(at, level);
            if level == F::LEVELS && F::reserved_root_slots().contains(&index) {
                return refused;
            }
            let Walk::Table { frame, .. } = F::walk(level, self.view().read(table, index)) else {
                return refused;
            };
            let Some(next) = slot(frame) else { return refused };
            table = next;
        }
        let world = self.world::<F>();
        // A walk through a linear entry ends in a table of a higher level: what stands there is no entry of a page.
        if world.table[table] == 0 || world.level[table] != 1 {
            return refused;
        }
        self.entry::<F>(&world, (table, 1, F::index(at, 1)), raw, Asker { owner: domain, target })
    }

    /// One element of `mmuext_op`, asked by `domain` about `owner`'s tables.
    ///
    /// # Errors
    /// What it may be refused with.
    pub fn extended<F: Hardware>(
        &mut self,
        domain: usize,
        owner: usize,
        operation: Extended,
    ) -> Result<(), Errors> {
        let frame = operation.argument;
        if owner != domain
            && (mmu::MMUEXT_NEW_BASEPTR..=mmu::MMUEXT_NEW_USER_BASEPTR).contains(&operation.command)
        {
            return Err(Errors::only(Errno::EPERM));
        }
        match operation.command {
            mmu::MMUEXT_CLEAR_PAGE => self.fill::<F>(owner, frame, None),
            mmu::MMUEXT_COPY_PAGE => self.fill::<F>(owner, frame, Some(operation.second)),
            command @ mmu::MMUEXT_PIN_L1_TABLE..=mmu::MMUEXT_PIN_L4_TABLE => {
                self.pin::<F>(owner, frame, command as u8 + 1)
            }
            mmu::MMUEXT_UNPIN_TABLE => self.unpin(owner, frame),
            mmu::MMUEXT_NEW_BASEPTR => {
                let root = self.may_hold::<F>(domain, frame, F::LEVELS)?;
                self.change().known.domains[domain].vcpu_mut().kernel = Some(root);
                Ok(())
            }
            mmu::MMUEXT_NEW_USER_BASEPTR => {
                let root =
                    if frame == 0 { None } else { Some(self.may_hold::<F>(domain, frame, F::LEVELS)?) };
                self.change().known.domains[domain].vcpu_mut().user = root;
                Ok(())
            }
            mmu::MMUEXT_TLB_FLUSH_LOCAL..=mmu::MMUEXT_INVLPG_ALL => Ok(()),
            mmu::MMUEXT_SET_LDT => self.set_local::<F>(domain, frame, operation.second as u32),
            _ => Err(Errors::only(Errno::ENOSYS)),
        }
    }

    /// Fills a frame, which has to be the domain's and not in use as anything that excludes writing, with zeros, or with what another of
    /// its frames holds.
    fn fill<F: Hardware>(&mut self, owner: usize, frame: u64, from: Option<u64>) -> Result<(), Errors> {
        let world = self.world::<F>();
        let owned = |at: &usize| world.owner(&self.known, *at) == Some(owner);
        let refused = Errors::only(Errno::EINVAL);
        let page = match from {
            None => vec![0; WORDS],
            Some(from) => self.view().page(slot(from).filter(owned).ok_or(refused)?),
        };
        let fits = |at: &usize| owned(at) && world.table[*at] == 0 && world.descriptors[*at] == 0;
        let at = slot(frame).filter(fits).ok_or(refused)?;
        for (index, word) in page.into_iter().enumerate() {
            self.change().writes.push(at, index, word);
        }
        Ok(())
    }

    fn pin<F: Hardware>(&mut self, owner: usize, frame: u64, level: u8) -> Result<(), Errors> {
        let refused = Err(Errors::only(Errno::EINVAL));
        if level > F::LEVELS || slot(frame).is_some_and(|at| self.known.pinned(owner, at).is_some()) {
            return refused;
        }
        let table = self.may_hold::<F>(owner, frame, level)?;
        self.change().known.pins.push(Pin { domain: owner, table, level });
        Ok(())
    }

    fn unpin(&mut self, owner: usize, frame: u64) -> Result<(), Errors> {
        let pins = &mut self.change().known.pins;
        let at = slot(frame);
        let pin = pins.iter().position(|pin| Some(pin.table) == at && pin.domain == owner);
        pins.swap_remove(pin.ok_or(Errors::only(Errno::EINVAL))?);
        Ok(())
    }

    /// Whether a domain may name another, and whom it means.
    ///
    /// # Errors
    /// What it is refused with.
    pub fn named(&self, domain: usize, number: u16) -> Result<usize, Errors> {
        let number = usize::from(number);
        match number {
            0x7ff0 => Ok(domain),
            number if number == domain => Ok(domain),
            _ if domain != 0 => Err(Errors::only(Errno::EPERM)),
            number if self.known.domains.get(number).is_some_and(|other| other.life == Life::Alive) => {
                Ok(number)
            }
            _ => Err(Errors::only(Errno::ESRCH)),
        }
    }

    /// Gives a frame back.
    ///
    /// # Errors
    /// What it may be refused with (which a guest sees as an extent that was not done).
    pub fn decrease<F: Hardware>(&mut self, owner: usize, frame: u64) -> Result<(), Errors> {
        let world = self.world::<F>();
        let at = slot(frame).filter(|at| world.owner(&self.known, *at) == Some(owner));
        let Some(at) = at else { return Err(Errors::only(Errno::EINVAL)) };
        if !self.known.claimed.has(at) || self.known.pinned(owner, at).is_some() {
            return Err(Errors::only(Errno::EBUSY));
        }
        self.change().known.claimed.remove(at);
        Ok(())
    }
}
