//! Version 2's distributor.

use super::registers::{CONFIGURATIONS, END, FIRST, TARGETS};
use super::{NoSuchAccess, VirtualGic, Width};

/// `GICD_IIDR`: a GIC-400's.
const IMPLEMENTER: u32 = 0x0200_043b;
/// `PIDR4` to `7`, `PIDR0` to `3`, `CIDR0` to `3`, at the end of the first page.
const IDENTIFICATION: [u8; 12] = [0x04, 0, 0, 0, 0x90, 0xb4, 0x2b, 0, 0x0d, 0xf0, 0x05, 0xb1];
const IDENTIFICATION_AT: u64 = 0xfd0;

/// `GICD_SGIR`.
const SEND: u64 = 0xf00;
/// `GICD_CPENDSGIR`, `GICD_SPENDSGIR`: a byte of senders for each SGI.
const CLEAR_SENDERS: u64 = 0xf10;
const SET_SENDERS: u64 = 0xf20;
const SENDERS_END: u64 = 0xf30;

impl VirtualGic {
    pub(super) fn read_distributor_2(
        &self,
        vcpu: usize,
        offset: u64,
        width: Width,
    ) -> Result<u64, NoSuchAccess> {
        check(offset, width)?;
        let word = match offset & !3 {
            0x0 => self.control,
            0x4 => 8 | (u32::from(self.vcpus).saturating_sub(1)) << 5,
            0x8 => IMPLEMENTER,
            at @ TARGETS..CONFIGURATIONS => self.targets_of(vcpu, (at - TARGETS) as usize),
            at @ FIRST..END => self.read_common(vcpu, at),
            at @ CLEAR_SENDERS..SENDERS_END => self.senders_of(vcpu, at as usize & 0xc),
            at @ IDENTIFICATION_AT..0x1000 => {
                let index = (at - IDENTIFICATION_AT) as usize / 4;
                IDENTIFICATION.get(index).copied().unwrap_or(0).into()
            }
            _ => 0,
        };
        Ok(u64::from(word >> (8 * (offset & 3))) & width.mask())
    }

    pub(super) fn write_distributor_2(
        &mut self,
        vcpu: usize,
        offset: u64,
        width: Width,
        value: u64,
    ) -> Result<(), NoSuchAccess> {
        check(offset, width)?;
        let shift = 8 * (offset as u32 & 3);
        let mask = (width.mask() << shift) as u32;
        let value = (value << shift) as u32 & mask;
        match offset & !3 {
            0x0 => {
                self.control = (self.control & !mask | value) & 3;
                self.notice_all();
            }
            at @ TARGETS..CONFIGURATIONS => self.set_targets(vcpu, (at - TARGETS) as usize, value, mask),
            at @ FIRST..END => self.write_common(vcpu, at, value, mask),
            // Only as a whole: its parts mean nothing alone.
            SEND if width == Width::Word => self.send_sgi_2(vcpu, value),
            at @ CLEAR_SENDERS..SENDERS_END => {
                self.change_senders(vcpu, at as usize & 0xc, value, at >= SET_SENDERS);
            }
            _ => {}
        }
        Ok(())
    }

    /// `GICD_ITARGETSR`: private interrupts' read as the vCPU that reads; with one vCPU there is nothing to say.
    fn targets_of(&self, vcpu: usize, first: usize) -> u32 {
        if self.vcpus <= 1 {
            return 0;
        }
        u32::from_le_bytes([0, 1, 2, 3].map(|index| match (first + index).checked_sub(32) {
            None => 1u8.unbounded_shl(vcpu as u32),
            Some(shared) => self.targets.get(shared).copied().unwrap_or(0),
        }))
    }

    fn set_targets(&mut self, vcpu: usize, first: usize, value: u32, mask: u32) {
        if self.vcpus <= 1 {
            return;
        }
        let all = ((1u32 << self.vcpus) - 1) as u8;
        for (index, (byte, meant)) in value.to_le_bytes().into_iter().zip(mask.to_le_bytes()).enumerate() {
            let intid = first + index;
            let Some(targets) = intid.checked_sub(32).and_then(|shared| self.targets.get_mut(shared)) else {
                continue;
            };
            if meant == 0 {
                continue;
            }
            *targets = byte & all;
            let to = (byte & all != 0).then(|| byte.trailing_zeros() as usize);
            self.route(intid as u32, to);
        }
        self.notice(vcpu, first / 32, u32::MAX);
    }

    fn senders_of(&self, vcpu: usize, first: usize) -> u32 {
        let senders = |index| self.cpus.get(vcpu).and_then(|cpu| cpu.senders.get(first + index)).copied();
        u32::from_le_bytes([0, 1, 2, 3].map(|index| senders(index).unwrap_or(0)))
    }

    fn change_senders(&mut self, vcpu: usize, first: usize, value: u32, set: bool) {
        let all = ((1u32 << self.vcpus) - 1) as u8;
        for (index, byte) in value.to_le_bytes().into_iter().enumerate() {
            let intid = (first + index) as u32;
            if set {
                self.add_senders(vcpu, intid, byte & all);
                continue;
            }
            let Some(cpu) = self.cpus.get_mut(vcpu) else { return };
            let Some(senders) = cpu.senders.get_mut(first + index) else { return };
            *senders &= !byte;
            if *senders == 0 {
                cpu.private.latched &= !(1 << intid);
            }
        }
        self.notice(vcpu, 0, u32::MAX);
    }
}

fn check(offset: u64, width: Width) -> Result<(), NoSuchAccess> {
    if width == Width::Double || !offset.is_multiple_of(width.bytes()) { Err(NoSuchAccess) } else { Ok(()) }
}
