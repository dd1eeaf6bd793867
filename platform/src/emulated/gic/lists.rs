//! List registers: what of a vCPU's interrupts is in its virtual CPU interface.
//!
//! The neutral form of a list register, its two encodings, and the trait behind which the hardware (or a test) keeps them.

/// A vCPU's list registers, as the hardware holds them while it runs.
pub trait ListRegisters {
    /// How many there are; the model uses at most 16.
    fn count(&self) -> usize;
    /// Which hold no interrupt, one bit each (`ELRSR`).
    fn free(&self) -> u32;
    /// One's content.
    fn read(&self, index: usize) -> ListRegister;
    /// Replaces one.
    fn write(&mut self, index: usize, value: ListRegister);
}

/// What a list register says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ListRegister {
    /// The interrupt, by the number that the guest sees.
    pub intid: u16,
    /// It waits to be acknowledged.
    pub pending: bool,
    /// It has been acknowledged and not yet deactivated. Neither: the register is free.
    pub active: bool,
    /// Its priority; how many of the upper bits count is the hardware's affair.
    pub priority: u8,
    /// Its group, 0 or 1.
    pub group: u8,
    /// The physical interrupt that is deactivated with it.
    pub physical: Option<u32>,
    /// For an SGI of version 2: the vCPU that sent it.
    pub cpu: u8,
    /// A maintenance interrupt is asked for when it is deactivated. Not together with [`Self::physical`].
    pub wants_eoi: bool,
}

impl ListRegister {
    /// Nothing.
    pub const FREE: Self = Self {
        intid: 0,
        pending: false,
        active: false,
        priority: 0,
        group: 0,
        physical: None,
        cpu: 0,
        wants_eoi: false,
    };

    /// As version 3 has it, `ICH_LR<n>_EL2`.
    pub const fn encode_v3(self) -> u64 {
        let low = self.intid as u64
            | (self.priority as u64) << 48
            | ((self.group & 1) as u64) << 60
            | (self.pending as u64) << 62
            | (self.active as u64) << 63;
        match self.physical {
            Some(physical) => low | ((physical & 0x1fff) as u64) << 32 | 1 << 61,
            None => low | (self.wants_eoi as u64) << 41,
        }
    }

    /// What such a register says. INTIDs above 16 bits aren't handed out.
    pub const fn decode_v3(value: u64) -> Self {
        let hardware = value & 1 << 61 != 0;
        Self {
            intid: value as u16,
            pending: value & 1 << 62 != 0,
            active: value & 1 << 63 != 0,
            priority: (value >> 48) as u8,
            group: (value >> 60 & 1) as u8,
            physical: if hardware { Some((value >> 32 & 0x1fff) as u32) } else { None },
            cpu: 0,
            wants_eoi: !hardware && value & 1 << 41 != 0,
        }
    }

    /// As version 2 has it, `GICH_LR<n>`: five bits of the priority.
    pub const fn encode_v2(self) -> u32 {
        let low = (self.intid & 0x3ff) as u32
            | ((self.priority >> 3) as u32) << 23
            | (self.pending as u32) << 28
            | (self.active as u32) << 29
            | ((self.group & 1) as u32) << 30;
        match self.physical {
            Some(physical) => low | (physical & 0x3ff) << 10 | 1 << 31,
            None => low | ((self.cpu & 7) as u32) << 10 | (self.wants_eoi as u32) << 19,
        }
    }

    /// What such a register says.
    pub const fn decode_v2(value: u32) -> Self {
        let hardware = value & 1 << 31 != 0;
        Self {
            intid: (value & 0x3ff) as u16,
            pending: value & 1 << 28 != 0,
            active: value & 1 << 29 != 0,
            priority: ((value >> 23 & 0x1f) << 3) as u8,
            group: (value >> 30 & 1) as u8,
            physical: if hardware { Some(value >> 10 & 0x3ff) } else { None },
            cpu: if hardware { 0 } else { (value >> 10 & 7) as u8 },
            wants_eoi: !hardware && value & 1 << 19 != 0,
        }
    }
}
