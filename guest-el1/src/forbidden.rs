//! What an EL1 kernel without a second stage could break out with.
//!
//! With stage 2 off, a guest's isolation rests on the translation registers being the hypervisor's, and on the traps that
//! keep caches, debug and other worlds out of reach. Each of these must be an undefined instruction to the guest.
//!
//! QEMU 7.2's Cortex-A72 undefines limited ordering regions, error records, SVE, profiling and trace by itself, so the same list is
//! tried on a processor that has more of it (`-cpu max`, `neoverse-n1`). Left out is the constant `ICC_SRE_EL1`, which QEMU lets guests
//! read whatever is trapped, what QEMU has on no processor (profiling and trace buffers), and implementation-defined registers
//! (`HCR_EL2.TIDCP`), which QEMU 7.2 gives to guests whatever is trapped: they are constants there.

use crate::traps::faults;
use core::arch::asm;
use guest_core::architecture::Forbidden;

/// Names, and whether the instruction faulted.
pub const FORBIDDEN: &[Forbidden] = &[
    ("sctlr_el1, MMU off", || faults!("msr sctlr_el1, xzr")),
    (
        "sctlr_el1, tables read big-endian",
        || faults!("mrs {x}, sctlr_el1", "orr {x}, {x}, #1 << 25", "msr sctlr_el1, {x}"; x = out(reg) _),
    ),
    ("ttbr0_el1", || faults!("msr ttbr0_el1, {x}"; x = in(reg) 0x4000_0000u64)),
    ("ttbr1_el1", || faults!("msr ttbr1_el1, {x}"; x = in(reg) 0x4000_0000u64)),
    (
        "tcr_el1, hardware dirty bits",
        || faults!("mrs {x}, tcr_el1", "orr {x}, {x}, #3 << 39", "msr tcr_el1, {x}"; x = out(reg) _),
    ),
    ("mair_el1, all memory a device", || faults!("msr mair_el1, {x}"; x = in(reg) 0x0404_0404_0404_0404u64)),
    ("dc isw", || faults!("dc isw, xzr")),
    ("dc csw", || faults!("dc csw, xzr")),
    ("dc cisw", || faults!("dc cisw, xzr")),
    ("amair_el1", || faults!("msr amair_el1, {x}"; x = in(reg) 1u64)),
    ("actlr_el1, write", || faults!("msr actlr_el1, {x}"; x = in(reg) !0u64)),
    ("actlr_el1, read", || faults!("mrs {x}, actlr_el1"; x = out(reg) _)),
    // Operations of an implementation.
    ("sys of an implementation", || faults!("sys #1, c15, c0, #0, {x}"; x = in(reg) 0u64)),
    ("sys of an implementation, c11", || faults!("sys #0, c11, c0, #0, {x}"; x = in(reg) 0u64)),
    // Trace (CPTR_EL2.TTA).
    ("trcidr0", || faults!("mrs {x}, S2_1_C0_C8_7"; x = out(reg) _)),
    ("trcprgctlr", || faults!("msr S2_1_C0_C1_0, {x}"; x = in(reg) 1u64)),
    // Debug (MDCR_EL2.TDA, TDRA, TDOSA).
    ("mdscr_el1, write", || faults!("msr mdscr_el1, {x}"; x = in(reg) 1u64 << 13)),
    ("mdscr_el1, read", || faults!("mrs {x}, mdscr_el1"; x = out(reg) _)),
    ("mdccint_el1", || faults!("msr mdccint_el1, {x}"; x = in(reg) 0u64)),
    ("mdccsr_el0", || faults!("mrs {x}, mdccsr_el0"; x = out(reg) _)),
    ("dbgbcr0_el1", || faults!("msr dbgbcr0_el1, {x}"; x = in(reg) 1u64)),
    ("dbgbvr0_el1", || faults!("msr dbgbvr0_el1, {x}"; x = in(reg) 0u64)),
    ("dbgwcr0_el1", || faults!("msr dbgwcr0_el1, {x}"; x = in(reg) 1u64)),
    ("dbgwvr0_el1", || faults!("mrs {x}, dbgwvr0_el1"; x = out(reg) _)),
    ("mdrar_el1, where the debug ROM is", || faults!("mrs {x}, mdrar_el1"; x = out(reg) _)),
    ("osdtrrx_el1", || faults!("mrs {x}, osdtrrx_el1"; x = out(reg) _)),
    ("dbgdtr_el0", || faults!("msr dbgdtr_el0, {x}"; x = in(reg) 0u64)),
    ("dbgclaimset_el1", || faults!("msr dbgclaimset_el1, {x}"; x = in(reg) 1u64)),
    ("oslar_el1", || faults!("msr oslar_el1, {x}"; x = in(reg) 0u64)),
    ("oslsr_el1", || faults!("mrs {x}, oslsr_el1"; x = out(reg) _)),
    ("osdlr_el1", || faults!("msr osdlr_el1, {x}"; x = in(reg) 0u64)),
    // Counters of events (MDCR_EL2.TPM, TPMCR).
    ("pmcr_el0, write", || faults!("msr pmcr_el0, {x}"; x = in(reg) 1u64)),
    ("pmcr_el0, read", || faults!("mrs {x}, pmcr_el0"; x = out(reg) _)),
    ("pmuserenr_el0", || faults!("msr pmuserenr_el0, {x}"; x = in(reg) 1u64)),
    ("pmcntenset_el0", || faults!("msr pmcntenset_el0, {x}"; x = in(reg) 1u64 << 31)),
    ("pmintenset_el1", || faults!("msr pmintenset_el1, {x}"; x = in(reg) 1u64 << 31)),
    ("pmccntr_el0", || faults!("mrs {x}, pmccntr_el0"; x = out(reg) _)),
    ("pmccfiltr_el0", || faults!("msr pmccfiltr_el0, {x}"; x = in(reg) 1u64 << 27)),
    ("pmevcntr0_el0", || faults!("mrs {x}, pmevcntr0_el0"; x = out(reg) _)),
    ("pmevtyper0_el0", || faults!("msr pmevtyper0_el0, {x}"; x = in(reg) 1u64 << 27)),
    ("pmxevtyper_el0", || faults!("mrs {x}, pmxevtyper_el0"; x = out(reg) _)),
    // The physical timer (CNTHCTL_EL2).
    ("cntp_ctl_el0, write", || faults!("msr cntp_ctl_el0, {x}"; x = in(reg) 1u64)),
    ("cntp_ctl_el0, read", || faults!("mrs {x}, cntp_ctl_el0"; x = out(reg) _)),
    ("cntp_cval_el0", || faults!("msr cntp_cval_el0, {x}"; x = in(reg) 0u64)),
    ("cntp_tval_el0", || faults!("msr cntp_tval_el0, {x}"; x = in(reg) 0u64)),
    // The interrupt controller's CPU interface (ICH_HCR_EL2, ICC_SRE_EL2).
    ("icc_pmr_el1", || faults!("msr S3_0_C4_C6_0, {x}"; x = in(reg) 0u64)),
    ("icc_iar0_el1", || faults!("mrs {x}, S3_0_C12_C8_0"; x = out(reg) _)),
    ("icc_iar1_el1", || faults!("mrs {x}, S3_0_C12_C12_0"; x = out(reg) _)),
    ("icc_eoir1_el1", || faults!("msr S3_0_C12_C12_1, {x}"; x = in(reg) 1023u64)),
    ("icc_dir_el1", || faults!("msr S3_0_C12_C11_1, {x}"; x = in(reg) 1023u64)),
    ("icc_ctlr_el1", || faults!("mrs {x}, S3_0_C12_C12_4"; x = out(reg) _)),
    ("icc_igrpen0_el1", || faults!("msr S3_0_C12_C12_6, {x}"; x = in(reg) 0u64)),
    ("icc_igrpen1_el1", || faults!("msr S3_0_C12_C12_7, {x}"; x = in(reg) 0u64)),
    ("icc_sgi0r_el1", || faults!("msr S3_0_C12_C11_7, {x}"; x = in(reg) 1u64)),
    ("icc_sgi1r_el1", || faults!("msr S3_0_C12_C11_5, {x}"; x = in(reg) 1u64)),
    ("smc", || faults!("smc #0"; inout("x0") 0x8400_0008u64 => _)),
    ("hvc that is no hypercall", || faults!("hvc #0"; inout("x0") 0x8400_0008u64 => _)),
    ("hvc with a neighbour of the right number", || faults!("hvc #0xea0"; inout("x0") 0u64 => _)),
    ("hvc with all bits set", || faults!("hvc #0xffff"; inout("x0") 0u64 => _)),
    // Other CPUs are started by hypercall alone, on tables that were validated: firmware can't be asked, by either instruction.
    ("psci cpu_on by smc", || faults!("smc #0"; inout("x0") 0xc400_0003u64 => _)),
    ("psci cpu_on by hvc", || faults!("hvc #0"; inout("x0") 0xc400_0003u64 => _)),
    (
        "psci cpu_suspend, which could resume with the MMU off",
        || faults!("hvc #0"; inout("x0") 0xc400_0001u64 => _),
    ),
    ("psci system_reset by smc", || faults!("smc #0"; inout("x0") 0x8400_0009u64 => _)),
    ("psci system_reset by hvc", || faults!("hvc #0"; inout("x0") 0x8400_0009u64 => _)),
    ("psci cpu_off", || faults!("smc #0"; inout("x0") 0x8400_0002u64 => _)),
    ("psci system_suspend", || faults!("smc #0"; inout("x0") 0xc400_000eu64 => _)),
    ("psci affinity_info", || faults!("hvc #0"; inout("x0") 0xc400_0004u64 => _)),
    ("psci system_reset2", || faults!("smc #0"; inout("x0") 0xc400_0012u64 => _)),
    // Limited ordering regions (TLOR), error records (TERR).
    ("lorsa_el1", || faults!("msr S3_0_C10_C4_0, {x}"; x = in(reg) 0u64)),
    ("lorc_el1", || faults!("msr S3_0_C10_C4_3, {x}"; x = in(reg) 1u64)),
    ("lorid_el1", || faults!("mrs {x}, S3_0_C10_C4_7"; x = out(reg) _)),
    ("erridr_el1", || faults!("mrs {x}, S3_0_C5_C3_0"; x = out(reg) _)),
    ("errselr_el1", || faults!("msr S3_0_C5_C3_1, {x}"; x = in(reg) 0u64)),
    ("erxctlr_el1", || faults!("msr S3_0_C5_C4_1, {x}"; x = in(reg) 0u64)),
    // State that isn't switched: SVE, SME, pointer authentication keys, activity monitors, tags.
    ("sve", || faults!(".inst 0x04bf5020"; out("x0") _)),
    ("zcr_el1", || faults!("msr S3_0_C1_C2_0, {x}"; x = in(reg) 0u64)),
    ("sme", || faults!(".inst 0xd503477f")),
    ("smcr_el1", || faults!("msr S3_0_C1_C2_6, {x}"; x = in(reg) 0u64)),
    ("apiakeylo_el1", || faults!("msr S3_0_C2_C1_0, {x}"; x = in(reg) 0u64)),
    ("amcr_el0", || faults!("mrs {x}, S3_3_C13_C2_0"; x = out(reg) _)),
    ("gcr_el1", || faults!("msr S3_0_C1_C0_6, {x}"; x = in(reg) 0u64)),
    ("gmid_el1", || faults!("mrs {x}, S3_1_C0_C0_4"; x = out(reg) _)),
    ("rgsr_el1", || faults!("msr S3_0_C1_C0_5, {x}"; x = in(reg) 0u64)),
    // Buffers that are written through EL1's translation, and the filter of trace.
    ("pmscr_el1", || faults!("msr S3_0_C9_C9_0, {x}"; x = in(reg) 1u64)),
    ("pmblimitr_el1", || faults!("msr S3_0_C9_C10_0, {x}"; x = in(reg) 1u64)),
    ("trblimitr_el1", || faults!("msr S3_0_C9_C11_0, {x}"; x = in(reg) 1u64)),
    ("trfcr_el1", || faults!("msr S3_0_C1_C2_1, {x}"; x = in(reg) 1u64)),
    // Registers that would give entries another meaning.
    ("tcr2_el1", || faults!("msr S3_0_C2_C0_3, {x}"; x = in(reg) 0u64)),
    ("pir_el1", || faults!("msr S3_0_C10_C2_3, {x}"; x = in(reg) 0u64)),
    ("pire0_el1", || faults!("msr S3_0_C10_C2_2, {x}"; x = in(reg) 0u64)),
    ("sctlr2_el1", || faults!("msr S3_0_C1_C0_3, {x}"; x = in(reg) 0u64)),
    ("sctlr_el12", || faults!("msr S3_5_C1_C0_0, {x}"; x = in(reg) 0u64)),
    ("vbar_el12", || faults!("msr S3_5_C12_C0_0, {x}"; x = in(reg) 0u64)),
    ("vttbr_el2", || faults!("msr vttbr_el2, xzr")),
    ("vbar_el2", || faults!("msr vbar_el2, xzr")),
    ("cnthctl_el2", || faults!("msr cnthctl_el2, xzr")),
    ("at s1e2r", || faults!("at s1e2r, xzr")),
    ("tlbi ipas2e1is", || faults!("tlbi ipas2e1is, xzr")),
    ("hcr_el2", || faults!("msr hcr_el2, xzr")),
    ("ttbr0_el2", || faults!("msr ttbr0_el2, xzr")),
    ("at s12e1w", || faults!("at s12e1w, xzr")),
    ("tlbi alle1", || faults!("tlbi alle1")),
    ("tlbi alle2", || faults!("tlbi alle2")),
];

/// Waiting must give the CPU to others, and end. (QEMU 7.2 never traps `wfe`: of that one can only be seen that it ends.)
pub const WAITS: &[(&str, fn())] = &[
    // SAFETY: both only wait; the hypervisor's timer ends it.
    ("wfe and wfi let others run", || unsafe { asm!("wfe", "wfi", options(nostack)) }),
];
