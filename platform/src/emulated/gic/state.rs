//! What is known of each interrupt: bit words, 32 interrupts to each.
//!
//! Word 0 holds a vCPU's private interrupts (SGIs 0 to 15, PPIs 16 to 31) and exists once per vCPU; words 1 to 8 hold the shared ones (32 to 287),
//! once per domain. Where a shared interrupt goes is kept as one more bit word per vCPU, so that "what could be signalled here" is
//! a few operations per word and never a walk over interrupts.

use super::{Version, VirtualGic};

/// Words of a vCPU: the private one and the shared ones.
pub(super) const WORDS: usize = 9;
/// SGIs, as bits of word 0.
pub(super) const SGIS: u32 = 0xffff;

/// 32 interrupts.
#[derive(Clone, Copy)]
pub(super) struct Bits {
    pub enabled: u32,
    /// Became pending by an edge or by a register, and nobody has acknowledged it. In a list register it is there instead.
    pub latched: u32,
    /// The device holds its line up.
    pub line: u32,
    /// Acknowledged and not deactivated, at any vCPU.
    pub active: u32,
    /// Edge-triggered; otherwise the line itself is what is pending.
    pub edge: u32,
    /// In group 1.
    pub group: u32,
}

impl Bits {
    pub const ZERO: Self = Self { enabled: 0, latched: 0, line: 0, active: 0, edge: 0, group: 0 };

    /// What is pending, enabled or not.
    pub const fn pending(&self) -> u32 {
        self.latched | self.line & !self.edge
    }
}

/// What one vCPU has of its own.
#[derive(Clone, Copy)]
pub(super) struct Cpu {
    pub private: Bits,
    pub priorities: [u8; 32],
    /// Which interrupts go to it; all of its private ones.
    pub routed: [u32; WORDS],
    /// Which are active here: a shared one may have been sent elsewhere since.
    pub active_here: [u32; WORDS],
    /// Which are in its list registers.
    pub listed: [u32; WORDS],
    /// Version 2: who sent each SGI that is pending, a bit per vCPU.
    pub senders: [u8; 16],
    /// Version 2: who sent the SGI that is active.
    pub active_sender: [u8; 16],
    /// What the model has put into each list register, where `used` has its bit.
    pub slots: [Slot; 16],
    pub used: u16,
    /// The last time, more waited than there were list registers for.
    pub waiting: bool,
    /// `GICR_WAKER`: `ProcessorSleep`.
    pub asleep: bool,
}

impl Cpu {
    pub const ZERO: Self = Self {
        private: Bits::ZERO,
        priorities: [0; 32],
        routed: [0; WORDS],
        active_here: [0; WORDS],
        listed: [0; WORDS],
        senders: [0; 16],
        active_sender: [0; 16],
        slots: [Slot { intid: 0, sender: 0, latch: false }; 16],
        used: 0,
        waiting: false,
        asleep: false,
    };
}

/// What a list register was given.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub intid: u16,
    /// Version 2: the SGI's sender.
    pub sender: u8,
    /// The latch went into the list register; otherwise it was pending by its line alone.
    pub latch: bool,
}

/// An interrupt's word and its bit there.
pub(super) const fn place(intid: u32) -> (usize, u32) {
    (intid as usize / 32, 1 << (intid % 32))
}

impl VirtualGic {
    /// The word of a vCPU; `None` past the last one.
    pub(super) fn bits(&self, vcpu: usize, word: usize) -> Option<&Bits> {
        match word.checked_sub(1) {
            None => self.cpus.get(vcpu).map(|cpu| &cpu.private),
            Some(word) => self.shared.get(word),
        }
    }

    /// The same, to change it.
    pub(super) fn bits_mut(&mut self, vcpu: usize, word: usize) -> Option<&mut Bits> {
        match word.checked_sub(1) {
            None => self.cpus.get_mut(vcpu).map(|cpu| &mut cpu.private),
            Some(word) => self.shared.get_mut(word),
        }
    }

    /// The groups that the distributor forwards, as a word has them.
    const fn forwarded(&self, group: u32) -> u32 {
        (if self.control & 2 != 0 { group } else { 0 }) | (if self.control & 1 != 0 { !group } else { 0 })
    }

    /// Which interrupts of a word could be signalled to a vCPU now, its own masks aside.
    pub(super) fn deliverable(&self, vcpu: usize, word: usize) -> u32 {
        self.bits(vcpu, word).map_or(0, |bits| self.due(vcpu, word) & !bits.active)
    }

    /// The same, active or not.
    fn due(&self, vcpu: usize, word: usize) -> u32 {
        let (Some(bits), Some(cpu)) = (self.bits(vcpu, word), self.cpus.get(vcpu)) else { return 0 };
        let Some(routed) = cpu.routed.get(word) else { return 0 };
        bits.pending() & bits.enabled & routed & self.forwarded(bits.group)
    }

    /// Whether one of these interrupts may be signalled. Of one in a list register it isn't known whether it is still active.
    fn news(&self, vcpu: usize, word: usize, of: u32) -> bool {
        let (Some(bits), Some(cpu)) = (self.bits(vcpu, word), self.cpus.get(vcpu)) else { return false };
        let listed = cpu.listed.get(word).copied().unwrap_or(0);
        self.due(vcpu, word) & of & (!bits.active | listed) != 0
    }

    /// Tells of the vCPUs to which something of these interrupts could be signalled; a private word has one vCPU only.
    pub(super) fn notice(&mut self, vcpu: usize, word: usize, of: u32) {
        let vcpus = if word == 0 { vcpu..vcpu + 1 } else { 0..self.vcpus() };
        for vcpu in vcpus {
            if self.news(vcpu, word, of) {
                self.changed |= 1 << vcpu;
            }
        }
    }

    /// After a change that may concern everything.
    pub(super) fn notice_all(&mut self) {
        for vcpu in 0..self.vcpus() {
            if self.wanted(vcpu) {
                self.changed |= 1 << vcpu;
            }
        }
    }

    /// A device's line. It is the level itself that is pending, or for an edge-triggered interrupt its rise. `vcpu` is whose, for a PPI.
    pub fn set_level(&mut self, vcpu: usize, intid: u32, level: bool) {
        let (word, bit) = place(intid);
        let Some(bits) = self.bits_mut(vcpu, word) else { return };
        if !level {
            bits.line &= !bit;
            return;
        }
        if bits.line & bit != 0 {
            return;
        }
        bits.line |= bit;
        bits.latched |= bit & bits.edge;
        self.notice(vcpu, word, bit);
    }

    /// An interrupt becomes pending until it is acknowledged. `vcpu` is whose, for a PPI.
    pub fn pulse(&mut self, vcpu: usize, intid: u32) {
        let (word, bit) = place(intid);
        let Some(bits) = self.bits_mut(vcpu, word) else { return };
        bits.latched |= bit;
        if intid < 16 && self.version == Version::V2 {
            self.add_senders(vcpu, intid, 1 << vcpu);
        }
        self.notice(vcpu, word, bit);
    }

    /// Version 2: more vCPUs have sent an SGI.
    pub(super) fn add_senders(&mut self, vcpu: usize, intid: u32, senders: u8) {
        let Some(cpu) = self.cpus.get_mut(vcpu) else { return };
        let Some(of) = cpu.senders.get_mut(intid as usize) else { return };
        *of |= senders;
        if *of != 0 {
            cpu.private.latched |= 1 << intid;
        }
    }

    /// Deactivated, wherever it was active.
    pub(super) fn deactivate(&mut self, vcpu: usize, word: usize, which: u32) {
        let Some(bits) = self.bits_mut(vcpu, word) else { return };
        bits.active &= !which;
        let of = if word == 0 { vcpu..vcpu + 1 } else { 0..self.vcpus() };
        for cpu in self.cpus.get_mut(of).into_iter().flatten() {
            if let Some(here) = cpu.active_here.get_mut(word) {
                *here &= !which;
            }
        }
    }

    /// Active, by a register: a shared one where it is routed to (nowhere: at the vCPU that asks).
    pub(super) fn activate(&mut self, vcpu: usize, word: usize, which: u32) {
        let Some(bits) = self.bits_mut(vcpu, word) else { return };
        let mut rest = which & !bits.active;
        bits.active |= which;
        let of = if word == 0 { vcpu..vcpu + 1 } else { 0..self.vcpus() };
        for cpu in self.cpus.get_mut(of).into_iter().flatten() {
            if let (Some(here), Some(routed)) = (cpu.active_here.get_mut(word), cpu.routed.get(word)) {
                *here |= rest & routed;
                rest &= !routed;
            }
        }
        if let Some(here) = self.cpus.get_mut(vcpu).and_then(|cpu| cpu.active_here.get_mut(word)) {
            *here |= rest;
        }
    }

    /// An interrupt's priority.
    pub(super) fn priority(&self, vcpu: usize, intid: u32) -> u8 {
        let index = intid as usize;
        match index.checked_sub(32) {
            None => self.cpus.get(vcpu).and_then(|cpu| cpu.priorities.get(index)),
            Some(index) => self.priorities.get(index),
        }
        .copied()
        .unwrap_or(0)
    }

    /// Sends a shared interrupt to one vCPU, or to none.
    pub(super) fn route(&mut self, intid: u32, to: Option<usize>) {
        let (word, bit) = place(intid);
        for (vcpu, cpu) in self.cpus.iter_mut().enumerate() {
            let Some(routed) = cpu.routed.get_mut(word) else { return };
            if Some(vcpu) == to { *routed |= bit } else { *routed &= !bit }
        }
    }
}
