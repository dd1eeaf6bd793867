//! The interrupt controller that a guest sees: version 2 (Arm IHI 0048B) or 3 (IHI 0069), as the `virt` board has it seen from EL1.
//!
//! One security state (`GICD_CTLR.DS` is 1), 256 shared interrupts, up to eight vCPUs, no LPIs. The distributor and version 3's
//! redistributors are this model; a vCPU's CPU interface is the hardware's virtual one, which this fills by list registers. Acknowledging and
//! ending an interrupt therefore costs the guest no trap, and the model learns of it when the list registers are taken back.
//!
//! # Who holds what
//! What is pending lies in the model (`state`) until [`VirtualGic::hand_out`] or [`VirtualGic::try_one`] puts it into a list register: its
//! latch goes along, so that another edge meanwhile is another interrupt. [`VirtualGic::take_back`] empties the list registers, and what wasn't
//! acknowledged is the model's again; so whatever was disabled, lowered, rerouted or given another priority in between isn't handed out as it was.
//! A vCPU that doesn't run has been taken back. Of the registers that concern what list registers hold,
//! [`VirtualGic::distributor_needs_lists`] and [`VirtualGic::redistributor_needs_lists`] tell: before such an access the
//! caller takes back every vCPU that runs, and hands out afterwards.
//!
//! # Levels
//! A level-sensitive interrupt goes out with `wants_eoi`, unless it is tied to a physical one: its end is a maintenance interrupt, upon which the caller
//! takes back and hands out, and it is pending again if its line is still up. One whose line falls before it is acknowledged stays
//! in the list register until the next taking back; the guest sees it once too often, as with hardware whose line falls late.
//!
//! # Accesses
//! Reserved registers read as zeros and ignore writes. Version 3: so do accesses of a width that a register hasn't (bytes only for priorities,
//! doublewords only for `IROUTER` and `GICR_TYPER`), and misaligned ones, as on the board. Version 2: each register takes bytes,
//! halfwords and words; doublewords and misaligned ones are [`NoSuchAccess`](super::NoSuchAccess), as is everything past the frame.

mod hand;
mod lists;
mod registers;
mod sgi;
mod state;
mod version2;
mod version3;

use super::board::MAX_VCPUS;
use super::{NoSuchAccess, Width};
pub use lists::{ListRegister, ListRegisters};
use state::{Bits, Cpu, SGIS, WORDS};

/// Shared interrupts: INTIDs 32 to 287.
const SHARED: usize = 256;
/// Bytes of a distributor.
const DISTRIBUTOR_SIZE: u64 = 0x1_0000;

/// Which architecture of interrupt controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// GICv2.
    V2,
    /// GICv3, affinity routing always on.
    V3,
}

/// A domain's interrupt controller.
pub struct VirtualGic {
    version: Version,
    vcpus: u8,
    /// The distributor forwards group 0 (bit 0), group 1 (bit 1).
    control: u32,
    /// vCPUs for which something became deliverable.
    changed: u32,
    shared: [Bits; WORDS - 1],
    priorities: [u8; SHARED],
    /// Version 2: which vCPUs a shared interrupt may go to. It goes to the first of them.
    targets: [u8; SHARED],
    /// Version 3: affinity that a shared interrupt goes to, Aff3 uppermost.
    routes: [u32; SHARED],
    cpus: [Cpu; MAX_VCPUS],
    /// PPIs that go with a physical interrupt, and with which.
    tied: u32,
    physical: [u16; 32],
}

impl VirtualGic {
    /// One that no domain uses: all zeros, no vCPUs.
    pub const fn new() -> Self {
        Self {
            version: Version::V2,
            vcpus: 0,
            control: 0,
            changed: 0,
            shared: [Bits::ZERO; WORDS - 1],
            priorities: [0; SHARED],
            targets: [0; SHARED],
            routes: [0; SHARED],
            cpus: [Cpu::ZERO; MAX_VCPUS],
            tied: 0,
            physical: [0; 32],
        }
    }

    /// The state after reset, for a new domain. More than eight vCPUs are eight.
    pub fn begin(&mut self, version: Version, vcpus: usize) {
        *self = Self::new();
        self.version = version;
        self.vcpus = vcpus.min(MAX_VCPUS) as u8;
        for vcpu in 0..self.vcpus() {
            let Some(cpu) = self.cpus.get_mut(vcpu) else { return };
            cpu.private.edge = SGIS;
            cpu.asleep = true;
            cpu.routed = [u32::MAX, 0, 0, 0, 0, 0, 0, 0, 0];
            if version == Version::V2 {
                cpu.private.enabled = SGIS;
            }
        }
        // Version 3's routes of zero are vCPU 0; so is the only vCPU of a version 2, whose targets can't be said.
        if (version == Version::V3 || vcpus == 1)
            && let Some(first) = self.cpus.first_mut()
        {
            first.routed = [u32::MAX; WORDS];
        }
    }

    /// How many vCPUs the domain has.
    pub fn vcpus(&self) -> usize {
        usize::from(self.vcpus)
    }

    /// From now on a PPI goes with a physical interrupt: it is raised with [`Self::pulse`], its list registers name the physical one,
    /// and deactivating it deactivates that one, too.
    pub fn set_physical(&mut self, intid: u32, physical: u32) {
        if let Some(of) = self.physical.get_mut(intid as usize)
            && intid >= 16
        {
            *of = physical as u16;
            self.tied |= 1 << intid;
        }
    }

    /// Whether such an interrupt is pending or active at this vCPU: while it runs, the physical one must be kept active.
    pub fn holds_physical(&self, vcpu: usize, intid: u32) -> bool {
        let Some(cpu) = self.cpus.get(vcpu) else { return false };
        let bits = (cpu.private.latched | cpu.private.active | cpu.listed[0]) & self.tied;
        intid < 32 && bits & 1 << intid != 0
    }

    /// Whether an interrupt would be signalled to a vCPU that has been taken back, if its CPU interface and its `PSTATE` allow.
    pub fn wanted(&self, vcpu: usize) -> bool {
        (0..WORDS).any(|word| self.deliverable(vcpu, word) != 0)
    }

    /// The vCPUs, one bit each, for which something may have become deliverable since the last call.
    pub const fn take_changed(&mut self) -> u32 {
        core::mem::replace(&mut self.changed, 0)
    }

    /// The guest's vCPU `vcpu` reads the distributor.
    ///
    /// # Errors
    /// [`NoSuchAccess`] past the frame; see the module.
    pub fn distributor_read(&mut self, vcpu: usize, offset: u64, width: Width) -> Result<u64, NoSuchAccess> {
        if vcpu >= self.vcpus() || offset >= DISTRIBUTOR_SIZE {
            return Err(NoSuchAccess);
        }
        match self.version {
            Version::V2 => self.read_distributor_2(vcpu, offset, width),
            Version::V3 => Ok(self.read_distributor_3(vcpu, offset, width)),
        }
    }

    /// The guest's vCPU `vcpu` writes the distributor.
    ///
    /// # Errors
    /// [`NoSuchAccess`] past the frame; see the module.
    pub fn distributor_write(
        &mut self,
        vcpu: usize,
        offset: u64,
        width: Width,
        value: u64,
    ) -> Result<(), NoSuchAccess> {
        if vcpu >= self.vcpus() || offset >= DISTRIBUTOR_SIZE {
            return Err(NoSuchAccess);
        }
        match self.version {
            Version::V2 => self.write_distributor_2(vcpu, offset, width, value),
            Version::V3 => {
                self.write_distributor_3(vcpu, offset, width, value);
                Ok(())
            }
        }
    }

    /// Whether an access to the distributor concerns what list registers hold.
    pub const fn distributor_needs_lists(offset: u64, write: bool) -> bool {
        match offset {
            0x200..0x400 | 0xf10..0xf30 => true,
            0 | 0x80..0xd00 | 0x6000..0x8000 => write,
            _ => false,
        }
    }

    /// The same for a redistributor, whose list registers are those of its vCPU.
    pub const fn redistributor_needs_lists(offset: u64, write: bool) -> bool {
        match offset {
            0x1_0200..0x1_0400 => true,
            0x1_0080..0x1_0d00 => write,
            _ => false,
        }
    }
}

impl Default for VirtualGic {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
