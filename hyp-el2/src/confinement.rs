//! The values that confine a guest in direct mode, bit by bit (docs/aarch64-confinement.md says against what).
//!
//! Kept apart from the code that writes them into registers, so that a test on any host can hold them against the list. Bit
//! numbers: DDI 0487, D19.2.

/// `HCR_EL2` while guests run. Clear, and meant to be: VM and DC (no second stage, no default cacheability), TGE, HCD (hypercalls), E2H,
/// ATA (no tags), FIEN (no fault injection), API and APK (no pointer authentication), TTLB and TRVM (a guest's own TLB maintenance
/// and its reads of translation registers are its own business), EnSCXT, AMVOFFEN.
pub const HCR: u64 = 1 << 31 // RW: EL1 is AArch64
    | 1 << 1 // SWIO: invalidation by set and way cleans, too
    | 1 << 3 // FMO
    | 1 << 4 // IMO: interrupts come to EL2
    | 1 << 5 // AMO
    | 1 << 9 // FB: a guest's TLB maintenance reaches all CPUs
    | 0b01 << 10 // BSU: and its barriers the inner shareable domain
    | 1 << 13 // TWI
    | 1 << 14 // TWE
    | 1 << 16 // TID1: REVIDR, AIDR
    | 1 << 18 // TID3: ID registers
    | 1 << 19 // TSC: smc
    | 1 << 20 // TIDCP: implementation-defined registers
    | 1 << 21 // TACR: ACTLR
    | 1 << 22 // TSW: cache maintenance by set and way
    | 1 << 23 // TPCP: cache maintenance to the point of coherency
    | 1 << 26 // TVM: SCTLR, TTBRs, TCR, MAIR, ...: only through us
    | 1 << 35 // TLOR: limited ordering regions
    | 1 << 36 // TERR: error records
    | 1 << 37; // TEA: external aborts

/// `HCR_EL2.TID5`, on CPUs that have memory tags: GMID_EL1.
pub const HCR_TAGS: u64 = 1 << 58;

/// `MDCR_EL2` but for HPMN, the number of counters: the guest has none, all of them being ours. Clear, and meant to be: HPME, E2PB
/// and E2TB (profiling and trace buffers use EL2's translation, and EL1's accesses trap), EnSPM.
pub const MDCR: u64 = 1 << 5 // TPMCR
    | 1 << 6 // TPM: the performance monitors
    | 1 << 8 // TDE: debug exceptions come to EL2
    | 1 << 9 // TDA: debug registers
    | 1 << 10 // TDOSA
    | 1 << 11 // TDRA
    | 1 << 14 // TPMS: profiling
    | 1 << 19; // TTRF: trace filter

/// `CPTR_EL2`: floating point and SIMD are free (and switched in full). RES1 bits, among them TZ on CPUs with SVE.
pub const CPTR: u64 = 1 << 30 // TAM: activity monitors
    | 1 << 20 // TTA: trace
    | 1 << 12 // TSM: SME
    | 1 << 8 // TZ: SVE
    | 1 << 13
    | 1 << 9
    | 0xff;

/// `CNTHCTL_EL2`: nothing of the physical counter (EL1PCTEN) and the physical timer (EL1PCEN) without a trap.
pub const CNTHCTL: u64 = 0;

/// `HCRX_EL2`: nothing of what later extensions would enable (TCR2_EL1, SCTLR2_EL1, D128, GCS, FPMR, ...).
pub const HCRX: u64 = 0;

/// `HSTR_EL2`: each system coprocessor register of AArch32 traps; 4 and 14 are reserved.
pub const HSTR: u64 = 0xffff & !(1 << 4 | 1 << 14);

/// `ICH_HCR_EL2`: no list registers in use; the virtual CPU interface traps (TC, TALL0, TALL1).
pub const ICH_HCR: u64 = 1 << 10 | 1 << 11 | 1 << 12;

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of ATTACKS.md's list, each with its bit.
    fn holds(register: u64, set: &[(&str, u32)], clear: &[(&str, u32)]) {
        for (name, bit) in set {
            assert!(register >> bit & 1 == 1, "{name}, bit {bit}, must be set");
        }
        for (name, bit) in clear {
            assert!(register >> bit & 1 == 0, "{name}, bit {bit}, must be clear");
        }
    }

    #[test]
    fn hcr_is_as_the_list_says() {
        let set = [
            ("SWIO", 1),
            ("FMO", 3),
            ("IMO", 4),
            ("AMO", 5),
            ("FB", 9),
            ("BSU[0]", 10),
            ("TWI", 13),
            ("TWE", 14),
            ("TID1", 16),
            ("TID3", 18),
            ("TSC", 19),
            ("TIDCP", 20),
            ("TACR", 21),
            ("TSW", 22),
            ("TPC", 23),
            ("TVM", 26),
            ("RW", 31),
            ("TLOR", 35),
            ("TERR", 36),
            ("TEA", 37),
        ];
        let clear = [
            ("VM", 0),
            ("PTW", 2),
            ("VF", 6),
            ("VI", 7),
            ("VSE", 8),
            ("BSU[1]", 11),
            ("DC", 12),
            ("TTLB", 25),
            ("TGE", 27),
            ("HCD", 29),
            ("TRVM", 30),
            ("E2H", 34),
            ("APK", 40),
            ("API", 41),
            ("NV", 42),
            ("FWB", 46),
            ("FIEN", 47),
            ("AMVOFFEN", 51),
            ("EnSCXT", 53),
            ("ATA", 56),
        ];
        holds(HCR, &set, &clear);
        assert_eq!(HCR.count_ones() as usize, set.len(), "nothing is set that the list doesn't name");
        holds(HCR_TAGS, &[("TID5", 58)], &[]);
    }

    #[test]
    fn mdcr_is_as_the_list_says() {
        let set = [
            ("TPMCR", 5),
            ("TPM", 6),
            ("TDE", 8),
            ("TDA", 9),
            ("TDOSA", 10),
            ("TDRA", 11),
            ("TPMS", 14),
            ("TTRF", 19),
        ];
        let clear =
            [("HPME", 7), ("E2PB[0]", 12), ("E2PB[1]", 13), ("EnSPM", 15), ("E2TB[0]", 24), ("E2TB[1]", 25)];
        holds(MDCR, &set, &clear);
        assert_eq!(MDCR & 0x1f, 0, "HPMN is added by who knows how many counters there are");
        assert_eq!(MDCR.count_ones() as usize, set.len());
    }

    #[test]
    fn floating_point_alone_is_free() {
        let set = [("TZ", 8), ("TSM", 12), ("TTA", 20), ("TAM", 30)];
        holds(CPTR, &set, &[("TFP", 10), ("TCPAC", 31)]);
    }

    #[test]
    fn time_and_extensions_are_not_for_guests() {
        holds(CNTHCTL, &[], &[("EL1PCTEN", 0), ("EL1PCEN", 1)]);
        assert_eq!(HCRX, 0);
        holds(ICH_HCR, &[("TC", 10), ("TALL0", 11), ("TALL1", 12)], &[("En", 0)]);
        for register in (0..16).filter(|number| ![4, 14].contains(number)) {
            assert!(HSTR >> register & 1 == 1, "c{register}");
        }
    }
}
