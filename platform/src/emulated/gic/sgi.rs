//! Interrupts that a vCPU sends to vCPUs.

use super::{Version, VirtualGic};

impl VirtualGic {
    /// A vCPU writes `ICC_SGI1R_EL1`: an SGI for those where it is in group 1.
    pub fn send_sgi(&mut self, from: usize, icc_sgi1r: u64) {
        self.send(from, icc_sgi1r, u32::MAX);
    }

    /// A vCPU writes `ICC_SGI0R_EL1` or `ICC_ASGI1R_EL1`: an SGI for those where it is in group 0, as on the board.
    pub fn send_sgi_group_0(&mut self, from: usize, value: u64) {
        self.send(from, value, 0);
    }

    fn send(&mut self, from: usize, value: u64, group: u32) {
        let intid = (value >> 24 & 0xf) as u32;
        let all = (1u32 << self.vcpus()) - 1;
        let mut to = if value & 1 << 40 != 0 {
            all & !1u32.unbounded_shl(from as u32)
        } else if value & 0x00ff_f0ff_00ff_0000 == 0 {
            value as u32 & all
        } else {
            // Another cluster, or another sixteen of this one: nobody is there.
            return;
        };
        while to != 0 {
            let vcpu = to.trailing_zeros() as usize;
            to &= to - 1;
            let Some(cpu) = self.cpus.get_mut(vcpu) else { return };
            if (cpu.private.group ^ group) & 1 << intid != 0 {
                continue;
            }
            cpu.private.latched |= 1 << intid;
            self.notice(vcpu, 0, 1 << intid);
        }
    }

    /// Version 2: a vCPU writes `GICD_SGIR`.
    pub(super) fn send_sgi_2(&mut self, from: usize, value: u32) {
        let all = (1u32 << self.vcpus()) - 1;
        let own = 1u32.unbounded_shl(from as u32);
        let mut to = match value >> 24 & 3 {
            0 => value >> 16 & all,
            1 => all & !own,
            2 => own & all,
            _ => 0,
        };
        let intid = value & 0xf;
        while to != 0 {
            let vcpu = to.trailing_zeros() as usize;
            to &= to - 1;
            self.add_senders(vcpu, intid, own as u8);
            self.notice(vcpu, 0, 1 << intid);
        }
    }

    /// Takes one sending of a pending interrupt out of the model: the sender, and whether there was a latch.
    pub(super) fn take_latch(&mut self, vcpu: usize, intid: u32) -> (u8, bool) {
        let (word, bit) = super::state::place(intid);
        let by_sender = intid < 16 && self.version == Version::V2;
        if by_sender
            && let Some(senders) = self.cpus.get_mut(vcpu).and_then(|cpu| cpu.senders.get_mut(intid as usize))
            && *senders != 0
        {
            let sender = senders.trailing_zeros() as u8;
            *senders &= *senders - 1;
            if *senders != 0 {
                return (sender, true);
            }
            if let Some(bits) = self.bits_mut(vcpu, 0) {
                bits.latched &= !bit;
            }
            return (sender, true);
        }
        let Some(bits) = self.bits_mut(vcpu, word) else { return (0, false) };
        let latch = bits.latched & bit != 0;
        bits.latched &= !bit;
        (0, latch)
    }
}
