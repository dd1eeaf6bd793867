//! What `ESR_EL2` says about a trap (DDI 0487, D24.2.40).

/// A syndrome register's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Syndrome(pub u64);

/// Why the guest came to EL2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// WFI: nothing to do until an interrupt.
    WaitForInterrupt,
    /// WFE: nothing to do until another CPU has done something.
    WaitForEvent,
    /// `hvc` with this number.
    HypervisorCall(u16),
    /// `mrs`, `msr` or a system instruction.
    SystemRegister(Access),
    /// A breakpoint, a watchpoint, a single step, or `brk`: the guest's own business, which comes here because debug registers are
    /// not for guests (`MDCR_EL2.TDE`).
    Debug,
    /// An abort that isn't a matter of tables: an external abort, since there is no second stage.
    Abort,
    /// Anything else: an instruction that guests don't have.
    Undefined,
}

/// The exception class of a hypercall with its instruction length bit and immediate, as one constant to compare with:
/// `hvc #0xEA1` from AArch64.
pub const XEN_HYPERCALL: u64 = 0x16 << 26 | 1 << 25 | 0xea1;

impl Syndrome {
    /// The exception class.
    pub const fn class(self) -> u64 {
        self.0 >> 26 & 0x3f
    }

    /// Reads the syndrome of an exception from AArch64.
    pub fn cause(self) -> Cause {
        match self.class() {
            // ISS.TI: bit 0 tells WFE (and WFET) from WFI.
            0x01 if self.0 & 1 == 0 => Cause::WaitForInterrupt,
            0x01 => Cause::WaitForEvent,
            0x16 => Cause::HypervisorCall(self.0 as u16),
            0x18 => Cause::SystemRegister(Access::decode(self.0)),
            0x20 | 0x24 => Cause::Abort,
            0x30 | 0x32 | 0x34 | 0x3c => Cause::Debug,
            _ => Cause::Undefined,
        }
    }
}

/// A register or system instruction, as `op0, op1, CRn, CRm, op2`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encoding(pub u8, pub u8, pub u8, pub u8, pub u8);

/// A trapped `mrs`, `msr` or system instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// Which.
    pub encoding: Encoding,
    /// The general register, 31 for XZR.
    pub register: u8,
    /// `mrs`.
    pub is_read: bool,
}

impl Access {
    fn decode(syndrome: u64) -> Self {
        let field = |shift: u32, bits: u32| (syndrome >> shift & ((1 << bits) - 1)) as u8;
        Self {
            encoding: Encoding(field(20, 2), field(14, 3), field(10, 4), field(1, 4), field(17, 3)),
            register: field(5, 5),
            is_read: syndrome & 1 != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hypercall_is_told_from_other_hvcs() {
        assert_eq!(Syndrome(XEN_HYPERCALL).cause(), Cause::HypervisorCall(0xea1));
        assert_eq!(Syndrome(0x5a00_0000).cause(), Cause::HypervisorCall(0));
    }

    #[test]
    fn a_register_access_is_decoded() {
        // msr sctlr_el1, x3: op0 3, op1 0, CRn 1, CRm 0, op2 0.
        let syndrome = 0x18 << 26 | 1 << 25 | 3 << 20 | 1 << 10 | 3 << 5;
        let access = Access { encoding: Encoding(3, 0, 1, 0, 0), register: 3, is_read: false };
        assert_eq!(Syndrome(syndrome).cause(), Cause::SystemRegister(access));
    }

    #[test]
    fn waiting_for_an_event_is_told_from_waiting_for_an_interrupt() {
        assert_eq!(Syndrome(0x0600_0000).cause(), Cause::WaitForInterrupt);
        assert_eq!(Syndrome(0x0600_0001).cause(), Cause::WaitForEvent);
    }

    #[test]
    fn every_class_has_a_cause() {
        for class in 0..64u64 {
            let _ = Syndrome(class << 26).cause();
        }
        assert_eq!(Syndrome(0x17 << 26).cause(), Cause::Undefined, "smc");
        assert_eq!(Syndrome(0x09 << 26).cause(), Cause::Undefined, "pointer authentication");
    }
}
