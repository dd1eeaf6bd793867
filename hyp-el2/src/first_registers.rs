//! The first registers of a vCPU that a guest starts: what it may choose.
//!
//! With stage 2 off, a vCPU that began with its MMU off, with tables read in another way, or at another exception level would have all of
//! machine memory. So the translation registers must be what they are for every guest, to the bit, roots must be tables (which the
//! core looks at), and the state must be EL1 with its own stack pointer.

use hyp_core::address::{MachineAddress, MachineFrame};
use hyp_core::machine::Roots;
use penumbra_abi::errno::Errno;
use penumbra_abi::vcpu::ArmGuestContext;

use crate::confinement;

/// EL1 with its own stack pointer.
const EL1H: u64 = 0b0101;
/// What may be set besides: the condition flags, and D, A, I and F.
const FLAGS: u64 = 0xf << 28 | 0xf << 6;
/// Bytes of an instruction.
const INSTRUCTION: u64 = 4;

/// The roots to load, if a vCPU may start so on a CPU whose `TCR_EL1` is `tcr` for all guests.
///
/// # Errors
/// EINVAL, as Xen says of registers that it doesn't like.
pub fn judge(start: &ArmGuestContext, tcr: u64) -> Result<Roots, Errno> {
    let walks = start.ttbcr & !(confinement::NO_USER_WALKS | confinement::NO_KERNEL_WALKS);
    let fixed = start.sctlr == confinement::SCTLR && walks == tcr;
    let registers = &start.user_regs;
    if !fixed || registers.cpsr & !FLAGS != EL1H || !registers.pc.is_multiple_of(INSTRUCTION) {
        return Err(Errno::EINVAL);
    }
    let user = if start.ttbr0 == 0 { None } else { Some(root(start.ttbr0)?) };
    Ok(Roots { kernel: root(start.ttbr1)?, user })
}

/// The frame of a root that a guest names by its machine address, without an ASID.
fn root(address: u64) -> Result<MachineFrame, Errno> {
    // Above, in TTBRn_EL1, stands the ASID.
    const ADDRESS_END: u64 = 1 << 48;
    let address =
        MachineAddress::new(address).filter(|root| root.bytes() < ADDRESS_END && root.offset_in_frame() == 0);
    address.map(MachineFrame::containing).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCR: u64 = confinement::tcr(5);

    fn good() -> ArmGuestContext {
        let mut start = ArmGuestContext::default();
        (start.sctlr, start.ttbcr, start.ttbr1) = (confinement::SCTLR, TCR, 0x4020_1000);
        (start.user_regs.cpsr, start.user_regs.pc) = (0x3c5, 0xffff_ffc0_0010_0000);
        start
    }

    fn refused(change: impl FnOnce(&mut ArmGuestContext)) -> bool {
        let mut start = good();
        change(&mut start);
        matches!(judge(&start, TCR), Err(Errno::EINVAL))
    }

    #[test]
    fn a_kernel_starts_with_the_tables_that_it_names() {
        let frame = |number| MachineFrame::new(number).expect("a small number");
        let roots = judge(&good(), TCR).expect("a good start");
        assert_eq!((roots.kernel, roots.user), (frame(0x40201), None));
        let with_user = ArmGuestContext { ttbr0: 0x4020_2000, ..good() };
        assert_eq!(judge(&with_user, TCR).expect("a good start").user, Some(frame(0x40202)));
    }

    /// The worst case: with `SCTLR_EL1.M` clear, addresses are machine addresses.
    #[test]
    fn no_bit_of_sctlr_is_the_guests() {
        assert!(refused(|start| start.sctlr = 0));
        for bit in 0..64 {
            assert!(refused(|start| start.sctlr ^= 1 << bit), "bit {bit}");
        }
    }

    #[test]
    fn of_tcr_only_which_halves_are_walked_is_the_guests() {
        assert!(refused(|start| start.ttbcr = 0));
        for bit in (0..64).filter(|bit| ![7, 23].contains(bit)) {
            assert!(refused(|start| start.ttbcr ^= 1 << bit), "bit {bit}");
        }
        assert!(!refused(|start| start.ttbcr |= 1 << 7 | 1 << 23));
    }

    #[test]
    fn the_state_is_el1_in_aarch64_with_its_own_stack() {
        for state in (0..32).filter(|state| *state != EL1H) {
            assert!(refused(|start| start.user_regs.cpsr = 0x3c0 | state), "state {state:#x}");
        }
        for bit in (4..64).filter(|bit| FLAGS >> bit & 1 == 0) {
            assert!(refused(|start| start.user_regs.cpsr |= 1 << bit), "bit {bit}");
        }
        assert!(!refused(|start| start.user_regs.cpsr = EL1H | FLAGS));
        assert!(refused(|start| start.user_regs.pc += 2));
    }

    #[test]
    fn roots_have_no_address_space_number_and_are_aligned() {
        for bit in (0..12).chain(48..64) {
            assert!(refused(|start| start.ttbr1 |= 1 << bit), "bit {bit} of TTBR1");
            assert!(refused(|start| start.ttbr0 = 0x4020_2000 | 1 << bit), "bit {bit} of TTBR0");
        }
    }
}
