//! The values that confine a guest in direct mode, bit by bit (docs/aarch64-confinement.md says against what).
//!
//! Kept apart from the code that writes them into registers, so that a test on any host can hold them against the list. Bit
//! numbers: DDI 0487, D19.2.

use hyp_core::address::DomainId;
use hyp_core::domain::MAX_DOMAINS;

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

/// `MAIR_EL1`: index 0 is Normal write-back memory; all others too, so that none of them can mean anything else.
pub const MAIR: u64 = 0xffff_ffff_ffff_ffff;

/// `SCTLR_EL1` while guests run, for ever: the MMU and caches on, little-endian, WXN off; cache maintenance from EL0 off (it traps to
/// us anyway), `dc zva` and `CTR_EL0` from EL0 on; SPAN, LSMAOE, nTLSMD, EIS, EOS, TSCXT as on a CPU without those features.
pub const SCTLR: u64 = 1 << 0 // M
    | 1 << 2  // C
    | 1 << 3  // SA
    | 1 << 4  // SA0
    | 1 << 7  // ITD
    | 1 << 8  // SED
    | 1 << 11 // EOS
    | 1 << 12 // I
    | 1 << 14 // DZE
    | 1 << 15 // UCT
    | 1 << 16 // nTWI
    | 1 << 18 // nTWE
    | 1 << 20 // TSCXT
    | 1 << 22 // EIS
    | 1 << 23 // SPAN
    | 1 << 28 // nTLSMD
    | 1 << 29; // LSMAOE

/// `TCR_EL1.EPD0` and `EPD1`: no walks.
pub const NO_USER_WALKS: u64 = 1 << 7;
/// See [`NO_USER_WALKS`].
pub const NO_KERNEL_WALKS: u64 = 1 << 23;

/// `TCR_EL1` with both halves on, on a CPU whose `ID_AA64MMFR0_EL1.PARange` is this: 4 KiB granule and 48 bits in both, write-back
/// inner-shareable walks, ASID from TTBR0, no hardware management of access flag and dirty state, no top-byte-ignore, output size as the
/// CPU has it (at most 48 bits).
pub const fn tcr(physical_range: u64) -> u64 {
    let walks = 0b11 << 12 | 0b01 << 10 | 0b01 << 8;
    let size = 16;
    // TG0 is 0b00 for 4 KiB, TG1 0b10.
    let granule = 0b10 << 30;
    let output = (if physical_range > 5 { 5 } else { physical_range }) << 32;
    walks | walks << 16 | size | size << 16 | granule | output
}

/// The tag of a domain's translations, `VTTBR_EL2.VMID`: its number plus one, though stage 2 is off. Every CPU has 8 bits of it.
pub const fn vmid(domain: DomainId) -> u64 {
    (domain.number() as u64 + 1) & 0xff
}

/// So no two domains share one.
const _: () = assert!(MAX_DOMAINS < 0xff);

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

    /// The MMU is on, for ever, and reads tables as validation does.
    #[test]
    fn translation_is_as_the_list_says() {
        let on = [("M", 0), ("C", 2), ("I", 12)];
        let off = [
            ("A", 1),
            ("CP15BEN", 5),
            ("UMA", 9),
            ("EnDB", 13),
            ("WXN", 19),
            ("IESB", 21),
            ("E0E", 24),
            ("EE", 25),
            ("UCI", 26),
            ("EnDA", 27),
            ("EnIB", 30),
            ("EnIA", 31),
            ("BT0", 35),
            ("BT1", 36),
            ("ATA0", 42),
            ("ATA", 43),
        ];
        holds(SCTLR, &on, &off);
        assert_eq!(SCTLR >> 32, 0, "nothing that later extensions would enable");
        assert!(
            MAIR.to_ne_bytes().iter().all(|attribute| *attribute == 0xff),
            "write-back, whatever the index"
        );
    }

    #[test]
    fn no_cpu_makes_tables_mean_anything_else() {
        for range in 0..16 {
            let value = tcr(range);
            let field = |low: u32, bits: u32| value >> low & ((1 << bits) - 1);
            assert_eq!((field(0, 6), field(16, 6)), (16, 16), "48 bits of addresses, four levels");
            assert_eq!((field(14, 2), field(30, 2)), (0b00, 0b10), "4 KiB");
            assert_eq!((field(8, 6), field(24, 6)), (0b11_01_01, 0b11_01_01), "walks are cached and shared");
            assert!(field(32, 3) <= 5, "no more than 48 bits of machine addresses");
            holds(value, &[], &[("EPD0", 7), ("A1", 22), ("EPD1", 23), ("AS", 36), ("HA", 39), ("HD", 40)]);
            assert_eq!(value >> 37, 0, "no top byte, no hierarchical permissions off, no larger addresses");
        }
        assert_eq!((NO_USER_WALKS, NO_KERNEL_WALKS), (1 << 7, 1 << 23));
    }

    #[test]
    fn no_two_domains_share_a_tag_and_none_has_the_hypervisors() {
        let tags = (0..MAX_DOMAINS).map(|number| vmid(DomainId::new(number as u16)));
        let distinct: std::collections::BTreeSet<u64> = tags.collect();
        assert_eq!(distinct.len(), MAX_DOMAINS);
        assert!(!distinct.contains(&0) && distinct.iter().all(|tag| *tag <= 0xff));
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
