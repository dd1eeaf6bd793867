//! Registers that both versions have, at the same offsets: a bit, a byte or two bits per interrupt.
//!
//! Accesses come as words with a mask of the bytes that are meant, so that byte accesses (version 2 anywhere, version 3 to priorities) need no
//! care elsewhere. Offsets are the distributor's; a redistributor's second frame is the same for word 0.

use super::state::SGIS;
use super::{Version, VirtualGic};

/// `GICD_IGROUPR`: the first register that says something of single interrupts.
pub(super) const FIRST: u64 = 0x080;
/// `GICD_IPRIORITYR`.
pub(super) const PRIORITIES: u64 = 0x400;
/// `GICD_ITARGETSR`.
pub(super) const TARGETS: u64 = 0x800;
/// `GICD_ICFGR`.
pub(super) const CONFIGURATIONS: u64 = 0xc00;
/// Past the configurations.
pub(super) const END: u64 = 0xd00;

/// Every second bit, upper ones, of 16: `ICFGR`'s form.
fn spread(bits: u32) -> u32 {
    (0..16).fold(0, |word, index| word | (bits >> index & 1) << (2 * index + 1))
}

/// And back.
fn gather(word: u32) -> u32 {
    (0..16).fold(0, |bits, index| bits | (word >> (2 * index + 1) & 1) << index)
}

impl VirtualGic {
    /// The first interrupt and the word of a register that has a bit each.
    pub(super) const fn word_of(offset: u64) -> usize {
        (offset as usize & 0x7f) / 4
    }

    /// The word at `offset`, a multiple of 4 in [`FIRST`]..[`TARGETS`] or [`CONFIGURATIONS`]..[`END`].
    pub(super) fn read_common(&self, vcpu: usize, offset: u64) -> u32 {
        if (PRIORITIES..TARGETS).contains(&offset) {
            let first = (offset - PRIORITIES) as u32;
            return u32::from_le_bytes([0, 1, 2, 3].map(|index| self.priority(vcpu, first + index)));
        }
        if offset >= CONFIGURATIONS {
            let index = (offset - CONFIGURATIONS) as usize / 4;
            let Some(bits) = self.bits(vcpu, index / 2) else { return 0 };
            return spread(bits.edge >> (16 * (index % 2)));
        }
        let Some(bits) = self.bits(vcpu, Self::word_of(offset)) else { return 0 };
        match offset >> 7 {
            1 => bits.group,
            2 | 3 => bits.enabled,
            4 | 5 => bits.pending(),
            6 | 7 => bits.active,
            _ => 0,
        }
    }

    /// Writes those bytes of it that `mask` has.
    pub(super) fn write_common(&mut self, vcpu: usize, offset: u64, value: u32, mask: u32) {
        if (PRIORITIES..TARGETS).contains(&offset) {
            return self.write_priorities(vcpu, (offset - PRIORITIES) as usize, value, mask);
        }
        if offset >= CONFIGURATIONS {
            return self.write_configuration(vcpu, (offset - CONFIGURATIONS) as usize / 4, value, mask);
        }
        let word = Self::word_of(offset);
        let value = value & mask;
        // Version 2's SGIs are always enabled, and pending by their own registers only.
        let fixed = if word == 0 && self.version == Version::V2 { SGIS } else { 0 };
        let Some(bits) = self.bits_mut(vcpu, word) else { return };
        match offset >> 7 {
            1 => bits.group = bits.group & !mask | value,
            2 => bits.enabled |= value,
            3 => bits.enabled &= !(value & !fixed),
            4 => bits.latched |= value & !fixed,
            5 => bits.latched &= !(value & !fixed),
            6 => self.activate(vcpu, word, value),
            _ => self.deactivate(vcpu, word, value),
        }
        self.notice(vcpu, word, u32::MAX);
    }

    fn write_priorities(&mut self, vcpu: usize, first: usize, value: u32, mask: u32) {
        let new = value.to_le_bytes().into_iter().zip(mask.to_le_bytes());
        for (index, (byte, meant)) in new.enumerate() {
            let intid = first + index;
            let of = match intid.checked_sub(32) {
                None => self.cpus.get_mut(vcpu).and_then(|cpu| cpu.priorities.get_mut(intid)),
                Some(shared) => self.priorities.get_mut(shared),
            };
            if let Some(of) = of
                && meant != 0
            {
                *of = byte;
            }
        }
    }

    /// SGIs are always edge-triggered.
    fn write_configuration(&mut self, vcpu: usize, index: usize, value: u32, mask: u32) {
        let Some(bits) = self.bits_mut(vcpu, index / 2) else { return };
        if index == 0 {
            return;
        }
        let shift = 16 * (index % 2);
        let meant = gather(mask) << shift;
        bits.edge = bits.edge & !meant | (gather(value) << shift) & meant;
        self.notice(vcpu, index / 2, u32::MAX);
    }
}
