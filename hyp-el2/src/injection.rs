//! Taking an exception to EL1 on the guest's behalf (DDI 0487, `AArch64.TakeException`).

/// Execution state bits of a saved PSTATE (`SPSR_ELx`).
const MODE: u64 = 0b1_1111;
const EL1T: u64 = 0b0_0100;
const EL1H: u64 = 0b0_0101;
const AARCH32: u64 = 1 << 4;
/// D, A, I and F.
const MASKED: u64 = 0b1111 << 6;
/// What survives an exception: the condition flags, PAN (`SCTLR_EL1.SPAN` is set) and DIT.
const KEPT: u64 = 0b1111 << 28 | 1 << 22 | 1 << 24;

/// The syndrome of an undefined instruction of 4 bytes.
pub const UNDEFINED: u64 = 1 << 25;

/// Where a synchronous exception from the state `pstate` goes: the offset in the vector table, and the new PSTATE.
pub const fn synchronous(pstate: u64) -> (u64, u64) {
    let offset = match pstate & MODE {
        EL1T => 0x000,
        EL1H => 0x200,
        mode if mode & AARCH32 != 0 => 0x600,
        _ => 0x400,
    };
    (offset, (pstate & KEPT) | MASKED | EL1H)
}

/// Whether a guest at `pc` is caught in its own vector table: the exception that brought it to the entry it stands at was taken
/// from that very instruction, so it will be taken again for ever.
pub const fn has_no_handler(
    pc: u64,
    pstate: u64,
    vectors: u64,
    exception_return: u64,
    saved_pstate: u64,
) -> bool {
    let at_an_entry = pc.wrapping_sub(vectors) < 0x800 && pc.is_multiple_of(0x80);
    let in_kernel = pstate & MODE == EL1H && saved_pstate & MODE == EL1H;
    at_an_entry && in_kernel && pc == exception_return
}

/// Whether a state (SPSR's form) is one of AArch32: bit 4 of the mode (DDI 0487, C5.2.19, `SPSR_EL2.M[4]`).
pub const fn is_aarch32(pstate: u64) -> bool {
    pstate & AARCH32 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aarch32_is_told_from_aarch64() {
        assert!(is_aarch32(0x1d0), "user mode");
        for aarch64 in [0x3c0, 0x3c4, 0x3c5, 0xf000_03c0] {
            assert!(!is_aarch32(aarch64), "{aarch64:#x}");
        }
    }

    #[test]
    fn the_vector_depends_on_where_the_guest_was() {
        assert_eq!(synchronous(EL1H).0, 0x200);
        assert_eq!(synchronous(EL1T).0, 0x000);
        assert_eq!(synchronous(0).0, 0x400);
        assert_eq!(synchronous(AARCH32).0, 0x600);
    }

    #[test]
    fn flags_survive_and_interrupts_are_masked() {
        let (_, pstate) = synchronous(0xf000_0000 | 1 << 21 | 1 << 20);
        assert_eq!(pstate, 0xf000_03c5);
    }

    #[test]
    fn only_a_fault_on_the_vector_itself_is_hopeless() {
        assert!(has_no_handler(0x200, 0x3c5, 0, 0x200, 0x3c5));
        assert!(has_no_handler(0xffff_0200, 0x3c5, 0xffff_0000, 0xffff_0200, 0x3c5));
        assert!(!has_no_handler(0xffff_0200, 0x3c5, 0xffff_0000, 0x1000, 0x3c5), "a fault from elsewhere");
        assert!(!has_no_handler(0xffff_0204, 0x3c5, 0xffff_0000, 0xffff_0204, 0x3c5), "not an entry");
        assert!(!has_no_handler(0x200, 0x3c5, 0, 0x200, 0), "from user mode");
    }
}
