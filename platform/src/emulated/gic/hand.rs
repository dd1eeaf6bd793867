//! Handing interrupts out to list registers, and taking them back.

use super::state::{Slot, WORDS, place};
use super::{ListRegister, ListRegisters, Version, VirtualGic};

/// List registers that the model uses at most.
const MOST: usize = 16;

/// The most urgent interrupts so far: lower priority values first, then lower INTIDs.
struct Urgent {
    entries: [(u8, u16); MOST],
    length: usize,
    limit: usize,
    left_out: bool,
}

impl Urgent {
    const fn new(limit: usize) -> Self {
        Self { entries: [(0, 0); MOST], length: 0, limit, left_out: false }
    }

    /// Interrupts come by their INTIDs, so that equal priorities stay in that order.
    fn offer(&mut self, priority: u8, intid: u16) {
        if self.length == self.limit {
            self.left_out = true;
            let last = self.limit.checked_sub(1).and_then(|last| self.entries.get(last));
            if last.is_none_or(|(least, _)| *least <= priority) {
                return;
            }
            self.length -= 1;
        }
        let mut at = self.length;
        while at > 0 && self.entries.get(at - 1).is_some_and(|(before, _)| *before > priority) {
            self.entries.swap(at - 1, at);
            at -= 1;
        }
        if let Some(entry) = self.entries.get_mut(at) {
            *entry = (priority, intid);
            self.length += 1;
        }
    }

    fn chosen(&self) -> impl Iterator<Item = u16> + '_ {
        self.entries.iter().take(self.length).map(|(_, intid)| *intid)
    }
}

impl VirtualGic {
    /// Reads a vCPU's list registers into the state and empties them.
    pub fn take_back(&mut self, vcpu: usize, lists: &mut impl ListRegisters) {
        let Some(cpu) = self.cpus.get_mut(vcpu) else { return };
        cpu.waiting = false;
        let mut used = core::mem::take(&mut cpu.used);
        while used != 0 {
            let index = used.trailing_zeros() as usize;
            used &= used - 1;
            self.settle(vcpu, index, lists.read(index));
            lists.write(index, ListRegister::FREE);
        }
    }

    /// Writes the most urgent interrupts into a vCPU's list registers, which have been taken back. Those that are active come first, so that
    /// the guest can end them, but one list register is always left for what is pending. True: more are waiting than fit, all list
    /// registers are in use, and the caller asks for the maintenance interrupt that says when they run out.
    pub fn hand_out(&mut self, vcpu: usize, lists: &mut impl ListRegisters) -> bool {
        self.take_back(vcpu, lists);
        let count = lists.count().min(MOST);
        let pending: [u32; WORDS] = core::array::from_fn(|word| self.deliverable(vcpu, word));
        let any = pending.iter().any(|word| *word != 0);
        let Some(active) = self.cpus.get(vcpu).map(|cpu| cpu.active_here) else { return false };
        if !any && active == [0; WORDS] {
            return false;
        }
        let kept = count.saturating_sub(usize::from(any && count > 1));
        let active = self.choose(vcpu, &active, kept);
        let pending = self.choose(vcpu, &pending, count - active.length);
        for (index, intid) in active.chosen().chain(pending.chosen()).enumerate() {
            lists.write(index, self.list(vcpu, index, intid));
        }
        let waiting = active.left_out || pending.left_out;
        if let Some(cpu) = self.cpus.get_mut(vcpu) {
            cpu.waiting = waiting;
        }
        waiting
    }

    /// The short way, for one interrupt that has just become pending: it goes straight into a free list register. False: nothing has been changed
    /// that matters, and the caller takes back and hands out.
    pub fn try_one(&mut self, vcpu: usize, intid: u32, lists: &mut impl ListRegisters) -> bool {
        let (word, bit) = place(intid);
        let Some(cpu) = self.cpus.get(vcpu) else { return true };
        if cpu.waiting {
            return false;
        }
        // List registers whose interrupts are over are the model's again. What isn't in `used` is free anyway.
        let count = lists.count().min(MOST);
        let all = ((1u32 << count) - 1) as u16;
        let over = lists.free() as u16 & cpu.used;
        if cpu.listed.get(word).is_some_and(|listed| listed & bit != 0) || cpu.used & !over == all {
            self.reap(vcpu, over);
        }
        let Some(cpu) = self.cpus.get(vcpu) else { return true };
        if cpu.listed.get(word).is_some_and(|listed| listed & bit != 0) {
            return self.merge(vcpu, intid, lists);
        }
        if self.deliverable(vcpu, word) & bit == 0 {
            return true;
        }
        let free = if all & !cpu.used != 0 {
            all & !cpu.used
        } else {
            self.reap(vcpu, over);
            all & over
        };
        if free == 0 {
            return false;
        }
        let index = free.trailing_zeros() as usize;
        let value = self.list(vcpu, index, intid as u16);
        lists.write(index, value);
        true
    }

    /// Another edge of an interrupt that is in a list register.
    fn merge(&mut self, vcpu: usize, intid: u32, lists: &mut impl ListRegisters) -> bool {
        let (word, bit) = place(intid);
        let (Some(cpu), Some(bits)) = (self.cpus.get(vcpu), self.bits(vcpu, word)) else { return true };
        let simple = bits.edge & bits.enabled & bit != 0 && !self.has_source(intid) && !self.is_tied(intid);
        if !simple {
            return false;
        }
        let mut used = cpu.used;
        while used != 0 {
            let index = used.trailing_zeros() as usize;
            used &= used - 1;
            if cpu.slots.get(index).is_none_or(|slot| u32::from(slot.intid) != intid) {
                continue;
            }
            let now = lists.read(index);
            if !now.pending {
                // Active, or over since: that one the long way.
                return false;
            }
            // Two edges before the first is acknowledged are one interrupt.
            self.take_latch(vcpu, intid);
            return true;
        }
        false
    }

    /// An SGI of version 2, which says who sent it.
    fn has_source(&self, intid: u32) -> bool {
        intid < 16 && self.version == Version::V2
    }

    fn is_tied(&self, intid: u32) -> bool {
        intid < 32 && self.tied & 1 << intid != 0
    }

    fn choose(&self, vcpu: usize, words: &[u32; WORDS], limit: usize) -> Urgent {
        let mut urgent = Urgent::new(limit);
        for (index, word) in words.iter().enumerate() {
            let mut rest = *word;
            while rest != 0 {
                let intid = 32 * index as u32 + rest.trailing_zeros();
                rest &= rest - 1;
                urgent.offer(self.priority(vcpu, intid), intid as u16);
            }
        }
        urgent
    }

    /// What a list register is to say of an interrupt that is deliverable or active here; what is pending of it goes there.
    fn list(&mut self, vcpu: usize, index: usize, intid: u16) -> ListRegister {
        let number = u32::from(intid);
        let (word, bit) = place(number);
        let (Some(bits), Some(cpu)) = (self.bits(vcpu, word), self.cpus.get(vcpu)) else {
            return ListRegister::FREE;
        };
        let active = cpu.active_here.get(word).is_some_and(|here| here & bit != 0);
        let routed = cpu.routed.get(word).is_some_and(|routed| routed & bit != 0);
        let (edge, more) = (bits.edge & bit != 0, bits.pending() & bit != 0);
        let group = u8::from(bits.group & bit != 0);
        let forwarded = self.control >> group & 1 != 0;
        let tied = self.is_tied(number);
        // Of an active one only a plain edge can wait in the same list register; everything else is looked at again when it ends.
        let again = more && edge && routed && forwarded && bits.enabled & bit != 0;
        let pending = !active || again && !tied && !self.has_source(number);
        let mut sender = cpu.active_sender.get(usize::from(intid)).copied().unwrap_or(0);
        let mut latch = false;
        if pending {
            (sender, latch) = self.take_latch(vcpu, number);
        }
        let left = self.bits(vcpu, word).is_some_and(|bits| bits.pending() & bit != 0);
        let physical =
            self.physical.get(usize::from(intid)).filter(|_| tied).map(|physical| u32::from(*physical));
        if let Some(cpu) = self.cpus.get_mut(vcpu) {
            cpu.used |= 1 << index;
            if let Some(slot) = cpu.slots.get_mut(index) {
                *slot = Slot { intid, sender, latch };
            }
            if let Some(listed) = cpu.listed.get_mut(word) {
                *listed |= bit;
            }
        }
        ListRegister {
            intid,
            pending,
            active,
            priority: self.priority(vcpu, number),
            group,
            physical,
            cpu: sender,
            // Rerouted since it was acknowledged: another vCPU may wait for its end.
            wants_eoi: !tied && (!edge || left || !routed),
        }
    }

    /// These list registers have been found free: their interrupts are over.
    fn reap(&mut self, vcpu: usize, mut over: u16) {
        if let Some(cpu) = self.cpus.get_mut(vcpu) {
            cpu.used &= !over;
        }
        while over != 0 {
            let index = over.trailing_zeros() as usize;
            over &= over - 1;
            self.settle(vcpu, index, ListRegister::FREE);
        }
    }

    /// What has become of an interrupt in a list register.
    fn settle(&mut self, vcpu: usize, index: usize, now: ListRegister) {
        let Some(cpu) = self.cpus.get_mut(vcpu) else { return };
        let Some(slot) = cpu.slots.get(index).copied() else { return };
        let (word, bit) = place(slot.intid.into());
        let (Some(listed), Some(here)) = (cpu.listed.get_mut(word), cpu.active_here.get_mut(word)) else {
            return;
        };
        *listed &= !bit;
        let was_active = *here & bit != 0;
        if now.active && !was_active {
            *here |= bit;
            if let Some(sender) = cpu.active_sender.get_mut(usize::from(slot.intid)) {
                *sender = slot.sender;
            }
            if let Some(bits) = self.bits_mut(vcpu, word) {
                bits.active |= bit;
            }
        } else if !now.active && was_active {
            let elsewhere = word != 0 && cpu.routed.get(word).is_some_and(|routed| routed & bit == 0);
            self.deactivate(vcpu, word, bit);
            if elsewhere {
                self.notice(vcpu, word, bit);
            }
        }
        if !now.pending || !slot.latch {
            return;
        }
        if self.has_source(slot.intid.into()) {
            self.add_senders(vcpu, slot.intid.into(), 1u8.unbounded_shl(slot.sender.into()));
        } else if let Some(bits) = self.bits_mut(vcpu, word) {
            bits.latched |= bit;
        }
    }
}
