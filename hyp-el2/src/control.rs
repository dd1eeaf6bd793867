//! What confines a guest in direct mode.
//!
//! Stage 2 is off, so isolation rests on the validated tables, and on a guest not being able to do anything that would bypass
//! them. This file is the list in docs/aarch64-confinement.md, register by register; the values are in [`confinement`]. All of them
//! are written once for each CPU, before the first guest, and never again, except for `TCR_EL1`'s two walk-disable bits.

use core::arch::asm;

use aarch64_cpu::registers::{
    CNTHCTL_EL2, CNTVOFF_EL2, HCR_EL2, ID_AA64DFR0_EL1, ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64PFR0_EL1,
    MAIR_EL1, MDCR_EL2, MIDR_EL1, Readable, SCTLR_EL1, TCR_EL1, VMPIDR_EL2, Writeable,
};
use hyp_el2::confinement;

/// `TCR_EL1` with both halves on.
pub fn tcr() -> u64 {
    confinement::tcr(ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange))
}

/// Everything, for the CPU that executes this.
pub fn confine_guests() {
    confine_execution();
    confine_debug();
    confine_floating_point();
    confine_interrupts_and_time();
    fix_translation();
}

/// `HCR_EL2` and its extensions.
fn confine_execution() {
    let tags = if ID_AA64PFR1_MTE.read() != 0 { confinement::HCR_TAGS } else { 0 };
    HCR_EL2.set(confinement::HCR | tags);
    // HCRX_EL2, if there is one (FEAT_HCX): nothing enabled.
    if ID_AA64MMFR1_EL1.get() >> 40 & 0xf != 0 {
        // SAFETY: the register exists, and its value enables nothing.
        unsafe { asm!("msr S3_4_C1_C2_2, {}", in(reg) confinement::HCRX, options(nomem, nostack)) };
    }
    // Fine-grained traps, if there are any (FEAT_FGT): bits named "n..." trap when zero, the others don't; both are what we want.
    if ID_AA64MMFR0_EL1.get() >> 56 & 0xf != 0 {
        // SAFETY: HFGRTR, HFGWTR, HFGITR, HDFGRTR and HDFGWTR exist, and zero enables nothing new for guests.
        unsafe {
            asm!(
                "msr S3_4_C1_C1_4, xzr",
                "msr S3_4_C1_C1_5, xzr",
                "msr S3_4_C1_C1_6, xzr",
                "msr S3_4_C3_C1_4, xzr",
                "msr S3_4_C3_C1_5, xzr",
                options(nomem, nostack)
            );
        }
    }
    // HSTR_EL2: every access to the system coprocessor from AArch32 traps (T0 to T15, but for the reserved 4 and 14). The ID
    // registers say that there is no AArch32, but on a CPU that has it (Cortex-A57, A72) a guest's kernel can still return to EL0 in
    // that state: the return itself can't be trapped. Nothing is to be gained there: EL0 in AArch32 uses the same tables under the
    // same TCR_EL1, has no cache maintenance, and its exceptions go to EL1 in AArch64. And it doesn't last: its first coprocessor
    // access, or the first interrupt, comes to EL2 from AArch32, which is the end of the domain (`run`).
    // SAFETY: traps for AArch32 only.
    unsafe { asm!("msr hstr_el2, {}", in(reg) confinement::HSTR, options(nomem, nostack)) };
}

/// The MTE field of `ID_AA64PFR1_EL1`, which names the group of registers that TID5 traps.
struct MteField;
const ID_AA64PFR1_MTE: MteField = MteField;

impl MteField {
    fn read(&self) -> u64 {
        let value: u64;
        // SAFETY: reads an ID register.
        unsafe { asm!("mrs {}, id_aa64pfr1_el1", out(reg) value, options(nomem, nostack)) };
        value >> 8 & 0xf
    }
}

/// `MDCR_EL2`: debug, PMU, profiling and trace are not for guests, and never write memory for them.
fn confine_debug() {
    let counters = {
        let value: u64;
        if matches!(ID_AA64DFR0_EL1.get() >> 8 & 0xf, 0 | 0xf) {
            0
        } else {
            // SAFETY: there is a PMU, so the register exists; reading it has no effect.
            unsafe { asm!("mrs {}, pmcr_el0", out(reg) value, options(nomem, nostack)) };
            value >> 11 & 0x1f
        }
    };
    MDCR_EL2.set(confinement::MDCR | counters);
    // SAFETY: no single step, no breakpoints, no user access to the debug channel.
    unsafe { asm!("msr mdscr_el1, xzr", options(nomem, nostack)) };
}

/// `CPTR_EL2`: floating point and SIMD are free (and switched in full); SVE, SME, trace and activity monitors trap.
fn confine_floating_point() {
    // SAFETY: FP isn't trapped and nothing that the hypervisor uses is.
    unsafe { asm!("msr cptr_el2, {}", in(reg) confinement::CPTR, options(nomem, nostack)) };
}

/// The physical timer and counter are ours; the virtual ones run along with them. The GIC's CPU interface is ours.
fn confine_interrupts_and_time() {
    CNTHCTL_EL2.set(confinement::CNTHCTL);
    CNTVOFF_EL2.set(0);
    VMPIDR_EL2.set(1 << 31);
    // SAFETY: what the guest reads as MIDR_EL1; the real one.
    unsafe { asm!("msr vpidr_el2, {}", in(reg) MIDR_EL1.get(), options(nomem, nostack)) };
    if ID_AA64PFR0_EL1.get() >> 24 & 0xf != 0 {
        // SAFETY: GIC system registers exist, and ICC_SRE_EL2 (set up with the GIC) keeps EL1 from ICC_SRE_EL1.
        unsafe { asm!("msr S3_4_C12_C11_0, {}", in(reg) confinement::ICH_HCR, options(nomem, nostack)) };
    }
}

/// EL1's translation regime, with no walks allowed until roots are loaded. `TVM` keeps it as it is.
fn fix_translation() {
    TCR_EL1.set(tcr() | confinement::NO_USER_WALKS | confinement::NO_KERNEL_WALKS);
    MAIR_EL1.set(confinement::MAIR);
    SCTLR_EL1.set(confinement::SCTLR);
    // SAFETY: auxiliary memory attributes, and the stage 2 that is off: nothing.
    unsafe {
        asm!(
            "msr amair_el1, xzr",
            "msr vttbr_el2, xzr",
            "msr vtcr_el2, {res1}",
            "isb",
            "tlbi alle1",
            "dsb sy",
            "isb",
            res1 = in(reg) 1u64 << 31,
            options(nostack)
        );
    }
}
