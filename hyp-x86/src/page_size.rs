//! Machine check error on page size change (XSA-304, CVE-2018-12207): which superpages a guest may have on a processor that has it.
//!
//! Such a processor, fetching an instruction by an address whose mapping has changed from one page size to another without an invalidation in
//! between, may find it under both sizes in its translation cache for instructions, and stops the whole machine by a machine check. A
//! guest of direct mode changes sizes by plain stores and may leave the invalidation out.
//!
//! So there, no superpage may be executed: each one's own entry has to say no-execute. What is only data is in the caches for data, which don't
//! have the flaw. Xen's paravirtual guests have no superpages; where it gives a guest some by nested paging, it does the same (`ept=no-exec-sp`).
//!
//! Source: Intel, "Machine Check Error Avoidance on Page Size Change"; Linux `Documentation/admin-guide/hw-vuln/multihit.rst`.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::l1tf::{INTEL, Processor};

/// Of `IA32_ARCH_CAPABILITIES`: the processor doesn't have the flaw.
const PSCHANGE_MC_NO: u64 = 1 << 6;

/// Whether the processor has to be taken for one that has the flaw: Intel's that don't say otherwise. (Some, small ones and old ones, don't have
/// it and can't say so.)
pub fn has_the_flaw(processor: &Processor) -> bool {
    processor.vendor == INTEL && processor.capabilities.unwrap_or(0) & PSCHANGE_MC_NO == 0
}

/// Whether superpages must not be executed.
static DATA_ONLY: AtomicBool = AtomicBool::new(false);

/// From now on executable superpages are refused. Before the first guest's first entry.
pub fn enforce() {
    // Relaxed: other CPUs and guests start later.
    DATA_ONLY.store(true, Ordering::Relaxed);
}

/// Whether superpages have to be data.
#[inline]
pub(crate) fn is_data_only() -> bool {
    // Relaxed: as above.
    DATA_ONLY.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xsa_304_who_has_the_flaw() {
        let skylake = Processor { vendor: INTEL, capabilities: None, address_bits: 39 };
        assert!(has_the_flaw(&skylake), "it has no register to say so");
        let says = |capabilities| Processor { capabilities: Some(capabilities), ..skylake };
        assert!(has_the_flaw(&says(!PSCHANGE_MC_NO)) && !has_the_flaw(&says(PSCHANGE_MC_NO)));
        // "AuthenticAMD", "HygonGenuine".
        for vendor in [[0x6874_7541, 0x6974_6e65, 0x444d_4163], [0x6f67_7948, 0x6e65_476e, 0x656e_6975]] {
            assert!(!has_the_flaw(&Processor { vendor, ..skylake }));
        }
    }
}
