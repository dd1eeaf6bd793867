//! `XENMEM_exchange`: a domain gives some of its memory for other memory of the same amount, of other sizes or lower addresses.
//!
//! It is done a *chunk* at a time: as many frames as the larger of the two kinds of extents has. All of a chunk's old frames are stolen and
//! all of its new ones reserved before anything is committed; if one of these fails, everything is put back. The lock on the
//! lists of both (the first lock of all to be taken) is held for one chunk.

use core::mem::offset_of;

use penumbra_abi::errno::Errno;
use penumbra_abi::memory::MemoryExchange;
use zerocopy::IntoBytes;

use super::super::batch::NotDone;
use super::super::{Arguments, Call, Failure, Outcome, values};
use super::{end_of_addresses, slot};
use crate::address::MachineFrame;
use crate::domain::Domain;
use crate::frame::allocator::MAX_ORDER;
use crate::frame::extent::{Extent, Wanted, run};
use crate::machine::Machine;
use crate::paging::Budget;

/// Words of a guest's list that are copied at once.
const BLOCK: usize = 32;

/// The extents of chunk `number` of a list, `2^order` of them, by blocks: index of the first, and how many.
fn blocks(number: u64, order: u32) -> impl Iterator<Item = (u64, usize)> {
    let size = 1u64 << order;
    let block = move |start| {
        ((number << order).saturating_add(start), size.saturating_sub(start).min(BLOCK as u64) as usize)
    };
    (0..size).step_by(BLOCK).map(block)
}

/// Frames of a chunk at most.
const CHUNK: usize = 1 << MAX_ORDER;

/// The frames of the chunk in progress.
pub struct Chunk {
    stolen: List<MachineFrame>,
    reserved: List<Extent>,
}

/// So many of something, in place.
struct List<T> {
    items: [Option<T>; CHUNK],
    count: usize,
}

impl<T: Copy> List<T> {
    const fn new() -> Self {
        Self { items: [None; CHUNK], count: 0 }
    }

    /// Says whether there was room.
    fn push(&mut self, item: T) -> bool {
        let Some(slot) = self.items.get_mut(self.count) else { return false };
        *slot = Some(item);
        self.count = self.count.saturating_add(1);
        true
    }

    fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.items.iter().take(self.count).flatten().copied()
    }
}

impl Default for Chunk {
    fn default() -> Self {
        Self::new()
    }
}

impl Chunk {
    /// No chunk.
    pub const fn new() -> Self {
        Self { stolen: List::new(), reserved: List::new() }
    }

    fn clear(&mut self) {
        self.stolen.count = 0;
        self.reserved.count = 0;
    }
}

/// An exchange that has been looked at.
struct Request<'a, M: Machine> {
    domain: &'a Domain<M>,
    exchange: MemoryExchange,
    /// Old extents of a chunk, as a power of two.
    old_order: u32,
    /// New extents of a chunk, as a power of two.
    new_order: u32,
    /// One past the highest frame number allowed.
    end: u64,
}

impl<M: Machine> Request<'_, M> {
    /// Frames of a chunk.
    fn chunk_frames(&self) -> u32 {
        1u32 << self.exchange.input.extent_order.saturating_add(self.old_order).min(MAX_ORDER)
    }
}

impl<'a, M: Machine> Call<'a, M> {
    /// How many old extents are done is written to the guest in any case.
    pub(super) fn exchange(&self, arguments: &Arguments) -> Outcome {
        let [_, place, ..] = values(arguments);
        let mut exchange: MemoryExchange = self.read(place)?;
        let result =
            self.check_exchange(exchange).and_then(|request| self.each_chunk(&request, &mut exchange));
        let field = place.wrapping_add(offset_of!(MemoryExchange, nr_exchanged) as u64);
        self.write(field, &exchange.nr_exchanged)?;
        match result {
            Ok(()) => Ok(0),
            Err(NotDone::Errno(errno)) => Err(errno.into()),
            Err(NotDone::Preempted) => Err(Failure::Again(values(arguments))),
        }
    }

    fn check_exchange(&self, exchange: MemoryExchange) -> Result<Request<'a, M>, NotDone> {
        let (old, new) = (exchange.input, exchange.output);
        let chunk = old.extent_order.max(new.extent_order);
        if chunk > MAX_ORDER {
            return Err(Errno::EPERM.into());
        }
        let frames = |count: u64, order: u32| count.checked_mul(1u64 << order);
        let same_size = frames(old.nr_extents, old.extent_order)
            .is_some_and(|size| frames(new.nr_extents, new.extent_order) == Some(size));
        if exchange.nr_exchanged > old.nr_extents || old.domid != new.domid || !same_size {
            return Err(Errno::EINVAL.into());
        }
        let domain = self.named_domain(old.domid)?;
        // As in Xen, nothing is that low.
        let end = end_of_addresses(new.mem_flags).ok_or(Errno::ENOMEM)?;
        let old_order = chunk.saturating_sub(old.extent_order);
        let new_order = chunk.saturating_sub(new.extent_order);
        Ok(Request { domain, exchange, old_order, new_order, end })
    }

    fn each_chunk(&self, request: &Request<'_, M>, exchange: &mut MemoryExchange) -> Result<(), NotDone> {
        let first = exchange.nr_exchanged >> request.old_order;
        let end = exchange.input.nr_extents >> request.old_order;
        for number in first..end {
            exchange.nr_exchanged = number << request.old_order;
            // All of its frames may be scrubbed.
            let cost = Budget::FRAME.saturating_mul(request.chunk_frames());
            if self.budget.lacks(cost) || number > first && self.budget.is_spent() {
                return Err(NotDone::Preempted);
            }
            let outcome = self.one_chunk(request, number);
            // The old ones are put where they belong among the free frames, one by one.
            self.budget.charge(cost);
            outcome?;
        }
        exchange.nr_exchanged = exchange.input.nr_extents;
        Ok(())
    }

    fn one_chunk(&self, request: &Request<'_, M>, number: u64) -> Result<(), NotDone> {
        let frames = &self.hypervisor.frames;
        let owner = request.domain.id();
        let mut chunk = self.hypervisor.exchange.lock();
        chunk.clear();
        let prepared = self
            .steal_chunk(request, number, &mut chunk.stolen)
            .and_then(|()| self.reserve_chunk(request, number, &mut chunk.reserved));
        if let Err(error) = prepared {
            frames.cancel_all(chunk.reserved.iter());
            chunk.stolen.iter().for_each(|frame| frames.restore(frame, owner));
            return Err(error);
        }
        frames.free_stolen(chunk.stolen.iter(), owner, &self.hypervisor.machine);
        chunk.reserved.iter().for_each(|extent| frames.commit(extent));
        self.tell_chunk(request, number, &chunk.reserved)
    }

    fn steal_chunk(
        &self,
        request: &Request<'_, M>,
        number: u64,
        stolen: &mut List<MachineFrame>,
    ) -> Result<(), NotDone> {
        let old = request.exchange.input;
        for (at, count) in blocks(number, request.old_order) {
            let mut names = [0u64; BLOCK];
            let names = names.get_mut(..count).ok_or(Errno::EINVAL)?;
            self.read_bytes(slot(old.extent_start, at)?, names.as_mut_bytes())?;
            for first in names {
                self.steal_extent(request, *first, stolen)?;
            }
        }
        Ok(())
    }

    fn steal_extent(
        &self,
        request: &Request<'_, M>,
        first: u64,
        stolen: &mut List<MachineFrame>,
    ) -> Result<(), Errno> {
        let order = request.exchange.input.extent_order;
        let first = MachineFrame::new(first).ok_or(Errno::EINVAL)?;
        let mut count = 0u64;
        for frame in run(first, order) {
            self.budget.charge(1);
            if !self.hypervisor.frames.steal(frame, request.domain.id()) || !stolen.push(frame) {
                return Err(Errno::EINVAL);
            }
            count = count.saturating_add(1);
        }
        if count >> order == 1 { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn reserve_chunk(
        &self,
        request: &Request<'_, M>,
        number: u64,
        reserved: &mut List<Extent>,
    ) -> Result<(), NotDone> {
        let new = request.exchange.output;
        // The old frames are still counted, so the limit can't be.
        let wanted = Wanted { limit: u64::MAX, ..request.domain.wants(new.extent_order, request.end) };
        for (at, count) in blocks(number, request.new_order) {
            let mut names = [0u64; BLOCK];
            let names = names.get_mut(..count).ok_or(Errno::EINVAL)?;
            // The list can be read and written, seen without a change to it.
            self.read_bytes(slot(new.extent_start, at)?, names.as_mut_bytes())?;
            self.write_bytes(slot(new.extent_start, at)?, names.as_bytes())?;
            for _ in 0..count {
                let extent = self.reserve(wanted)?;
                if !reserved.push(extent) {
                    self.hypervisor.frames.cancel(extent);
                    return Err(Errno::EINVAL.into());
                }
            }
        }
        Ok(())
    }

    /// Names the new frames and tells the guest of them. That its list can be read and written has been seen before: only another
    /// vCPU can have changed that, and the guest has itself to blame.
    fn tell_chunk(
        &self,
        request: &Request<'_, M>,
        number: u64,
        reserved: &List<Extent>,
    ) -> Result<(), NotDone> {
        let (mut result, mut extents) = (Ok(()), reserved.iter());
        for (at, count) in blocks(number, request.new_order) {
            let told = slot(request.exchange.output.extent_start, at)
                .and_then(|slot| self.tell_block(slot, count, extents.by_ref()));
            result = result.and(told);
        }
        self.budget.charge(Budget::OPERATION);
        Ok(result?)
    }

    fn tell_block(
        &self,
        slot: u64,
        count: usize,
        extents: impl Iterator<Item = Extent>,
    ) -> Result<(), Errno> {
        let mut names = [0u64; BLOCK];
        let names = names.get_mut(..count).ok_or(Errno::EINVAL)?;
        let read = self.read_bytes(slot, names.as_mut_bytes());
        for (name, extent) in names.iter_mut().zip(extents) {
            if read.is_ok() {
                self.name_frames(extent.first, extent.order, *name);
            }
            *name = extent.first.number();
        }
        read.and_then(|()| self.write_bytes(slot, names.as_bytes()))
    }
}
