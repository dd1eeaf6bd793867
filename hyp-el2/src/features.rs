//! What guests see of the CPU's ID registers: an allow-list, so that a feature nobody has thought about is hidden.
//!
//! `HCR_EL2.TID3` traps reads of `op0 = 3, op1 = 0, CRn = 0, CRm = 1..7`. A field that isn't listed reads as "not there".

use crate::syndrome::Encoding;

/// A 4-bit field, by its lowest bit.
const fn fields<const N: usize>(lowest_bits: [u32; N]) -> u64 {
    let mut mask = 0;
    let mut i = 0;
    while i < N {
        mask |= 0xf << lowest_bits[i];
        i += 1;
    }
    mask
}

/// Fields of which a missing feature is `0b1111` or another value, not 0.
const FLOATING_POINT: u64 = fields([16, 20]);

/// What a guest gets when it reads an ID register whose real value is `real`.
///
/// `None`: this isn't an ID register of the trapped group.
pub fn visible(encoding: Encoding, real: u64) -> Option<u64> {
    let Encoding(3, 0, 0, group @ 1..=7, number) = encoding else { return None };
    Some(match (group, number) {
        // ID_AA64PFR0_EL1: floating point and SIMD, CSV2, CSV3, DIT; EL0 and EL1 in AArch64 only, no EL2, no EL3.
        (4, 0) => (real & (FLOATING_POINT | fields([48, 56, 60]))) | 0x11,
        // ID_AA64PFR1_EL1: SSBS as PSTATE has it.
        (4, 1) => real & fields([4]),
        // ID_AA64DFR0_EL1: the debug architecture must be named; there is nothing else.
        (5, 0) => 0x6,
        // ID_AA64ISAR0_EL1: AES, SHA1, SHA2, CRC32, atomics, RDM, SHA3, SM3, SM4, DP, FHM, flag manipulation, TLBI ranges, RNDR.
        (6, 0) => real & fields([4, 8, 12, 16, 20, 28, 32, 36, 40, 44, 48, 52, 56, 60]),
        // ID_AA64ISAR1_EL1: DPB, JSCVT, FCMA, LRCPC, FRINTTS, SB, BF16, DGH, I8MM. No pointer authentication.
        (6, 1) => real & fields([0, 12, 16, 20, 32, 36, 44, 48, 52]),
        // ID_AA64MMFR0_EL1: physical address range, ASID size, mixed endianness no, 4 KiB granule; 64 KiB is 0b1111 when absent.
        (7, 0) => (real & fields([0, 4, 28])) | 0xf << 24,
        // ID_AA64MMFR1_EL1: PAN. No hardware access flag, no VMIDs, no VHE.
        (7, 1) => real & fields([20]),
        // ID_AA64MMFR2_EL1: UAO, unaligned atomics (AT), IDS.
        (7, 2) => real & fields([4, 32, 36]),
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_registers_are_not_ours_to_answer() {
        assert_eq!(visible(Encoding(3, 0, 1, 0, 0), !0), None);
        assert_eq!(visible(Encoding(3, 0, 0, 0, 6), !0), None);
        assert_eq!(visible(Encoding(3, 0, 0, 8, 0), !0), None);
    }

    #[test]
    fn features_that_could_escape_are_hidden_on_any_cpu() {
        let pfr0 = visible(Encoding(3, 0, 0, 4, 0), !0).expect("an ID register");
        assert_eq!(pfr0 >> 32 & 0xf, 0, "no SVE");
        assert_eq!(pfr0 >> 8 & 0xff, 0, "no EL2, no EL3");
        assert_eq!(pfr0 >> 24 & 0xf, 0, "no GIC system registers");
        let mmfr1 = visible(Encoding(3, 0, 0, 7, 1), !0).expect("an ID register");
        assert_eq!(mmfr1 & 0xf, 0, "no hardware management of access flag and dirty state");
        assert_eq!(visible(Encoding(3, 0, 0, 7, 3), !0), Some(0), "no new kinds of table entry");
        assert_eq!(visible(Encoding(3, 0, 0, 4, 4), !0), Some(0), "no SVE details");
    }
}
