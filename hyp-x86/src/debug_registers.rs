//! A guest's debug registers: what it may write there.
//!
//! The processor obeys them in the hypervisor, too. So an address must be the guest's, never the hypervisor's, and a breakpoint on
//! instructions can't hit in ring 0; one on data can, where the hypervisor touches a guest's memory, and is passed over there (`fault.rs`).
//! Breakpoints on ports are refused (they would be the hypervisor's own accesses), as is general detect, which would let the hypervisor's
//! writes to these registers fault.
//!
//! Source: Intel SDM volume 3, 17.2; errors as Xen 4.17's `set_debugreg`.

use core::cell::Cell;

use penumbra_abi::errno::Errno;

use crate::layout;

/// Status: a single step.
pub const SINGLE_STEP: u64 = 1 << 14;
/// Status: reserved bits that read as one, and as zero.
const STATUS_ONES: u64 = 0xffff_0ff0;
const STATUS_ZEROS: u64 = !0xffff_efff;
/// Control: the same.
const CONTROL_ONES: u64 = 0x0000_0400;
const CONTROL_ZEROS: u64 = !0xffff_27ff;
/// Control: enable bits of the four breakpoints, for a task and for all.
const ENABLED: u64 = 0xff;
/// Control: any access to these registers faults.
const GENERAL_DETECT: u64 = 1 << 13;
/// What a breakpoint breaks on: accesses to a port.
const ON_PORT: u64 = 0b10;

/// The registers of one vCPU. All zeros is a vCPU that has never written any.
#[repr(C)]
pub struct DebugRegisters {
    addresses: [Cell<u64>; 4],
    status: Cell<u64>,
    control: Cell<u64>,
}

impl Default for DebugRegisters {
    fn default() -> Self {
        Self::new()
    }
}

impl DebugRegisters {
    /// No breakpoint.
    pub const fn new() -> Self {
        Self { addresses: [const { Cell::new(0) }; 4], status: Cell::new(0), control: Cell::new(0) }
    }

    /// What a guest reads from a register; 4 and 5 are other names of 6 and 7. `None`: there is no such register.
    pub fn get(&self, number: u64) -> Option<u64> {
        match number {
            0..=3 => self.addresses.get(number as usize).map(Cell::get),
            4 | 6 => Some(self.status()),
            5 | 7 => Some(self.control()),
            _ => None,
        }
    }

    /// Status, as the processor is to have it.
    pub fn status(&self) -> u64 {
        self.status.get() & !STATUS_ZEROS | STATUS_ONES
    }

    /// Control, as the processor is to have it.
    pub fn control(&self) -> u64 {
        self.control.get() & !CONTROL_ZEROS | CONTROL_ONES
    }

    /// The addresses.
    pub fn addresses(&self) -> [u64; 4] {
        self.addresses.each_ref().map(Cell::get)
    }

    /// Whether any breakpoint is set.
    #[inline(always)]
    pub fn are_active(&self) -> bool {
        self.control.get() & ENABLED != 0
    }

    /// Takes what a guest writes.
    ///
    /// # Errors
    /// ENODEV: there is no such register. EPERM: the value isn't one that guests may have.
    pub fn set(&self, number: u64, value: u64) -> Result<(), Errno> {
        match number {
            0..=3 => {
                let end = value.checked_add(7).ok_or(Errno::EPERM)?;
                let allowed = layout::is_guest_range(value, 1) && layout::is_guest_range(end, 1);
                let address = self.addresses.get(number as usize).filter(|_| allowed).ok_or(Errno::EPERM)?;
                address.set(value);
            }
            4 | 6 => self.status.set(value),
            5 | 7 => {
                if !is_allowed(value & !CONTROL_ZEROS) {
                    return Err(Errno::EPERM);
                }
                self.control.set(value);
            }
            _ => return Err(Errno::ENODEV),
        }
        Ok(())
    }

    /// Adds what a debug exception was for. As in the processor's own register, what was said before stays until the guest takes it away.
    pub fn record_status(&self, status: u64) {
        self.status.set(self.status.get() | status & !STATUS_ONES);
    }

    /// No breakpoint any more.
    pub fn clear(&self) {
        for register in self.addresses.iter().chain([&self.status, &self.control]) {
            register.set(0);
        }
    }
}

/// No general detect, and no breakpoint that is enabled for a port. (One that isn't enabled does nothing.)
fn is_allowed(control: u64) -> bool {
    let on_port = (0..4).any(|number| control >> (16 + 4 * number) & 0b11 == ON_PORT);
    control & GENERAL_DETECT == 0 && (control & ENABLED == 0 || !on_port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{LOWER_END, RESERVED_END, RESERVED_START};
    use proptest::prelude::*;

    #[test]
    fn addresses_are_the_guests() {
        let registers = DebugRegisters::new();
        for good in [0, 0x1234, LOWER_END - 8, RESERVED_END, u64::MAX - 7] {
            assert_eq!(registers.set(3, good), Ok(()), "{good:#x}");
            assert_eq!(registers.get(3), Some(good));
        }
        for bad in [LOWER_END - 7, LOWER_END, RESERVED_START - 8, RESERVED_START, RESERVED_END - 1, u64::MAX]
        {
            assert_eq!(registers.set(0, bad), Err(Errno::EPERM), "{bad:#x}");
        }
        assert_eq!(registers.get(0), Some(0), "what is refused changes nothing");
    }

    #[test]
    fn control_forbids_ports_and_general_detect() {
        let registers = DebugRegisters::new();
        // Breakpoint 1, local, on writes of 4 bytes.
        assert_eq!(registers.set(7, 0x00d0_0004), Ok(()));
        assert_eq!(registers.get(7), Some(0x00d0_0404));
        assert!(registers.are_active());
        assert_eq!(registers.set(7, 0x0020_0004), Err(Errno::EPERM), "on a port");
        assert_eq!(registers.set(7, 0x0020_0000), Ok(()), "which does nothing where it isn't enabled");
        assert!(!registers.are_active());
        assert_eq!(registers.set(5, 1 << 13), Err(Errno::EPERM), "general detect");
    }

    #[test]
    fn reserved_bits_are_what_the_processor_has_there() {
        let registers = DebugRegisters::new();
        assert_eq!((registers.get(6), registers.get(7)), (Some(0xffff_0ff0), Some(0x400)));
        assert_eq!(registers.set(6, !0), Ok(()));
        assert_eq!(registers.get(4), Some(0xffff_efff));
        assert_eq!(registers.set(8, 0), Err(Errno::ENODEV));
        assert_eq!((registers.get(8), registers.get(u64::MAX)), (None, None));
        registers.clear();
        assert_eq!(registers.get(6), Some(0xffff_0ff0));
    }

    #[test]
    fn status_is_added_until_it_is_taken_away() {
        let registers = DebugRegisters::new();
        registers.record_status(0xffff_0ff1);
        registers.record_status(SINGLE_STEP);
        assert_eq!(registers.get(6), Some(0xffff_4ff1));
        assert_eq!((registers.set(6, 0), registers.get(6)), (Ok(()), Some(0xffff_0ff0)));
    }

    proptest! {
        #[test]
        fn what_the_processor_gets_never_faults(number in 0u64..9, value in any::<u64>()) {
            let registers = DebugRegisters::new();
            let _ = registers.set(number, value);
            prop_assert_eq!(registers.control() >> 32, 0);
            prop_assert_eq!(registers.status() >> 32, 0);
            prop_assert_eq!(registers.control() & (1 << 13), 0);
        }
    }
}
