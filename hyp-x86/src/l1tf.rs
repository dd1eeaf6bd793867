//! L1 terminal fault (XSA-273): what absent entries may hold on a processor that has it.
//!
//! Such a processor, walking to an entry that isn't present, goes on speculatively with the entry's address bits, and reads that line of
//! memory if the level-1 data cache holds it. Direct mode's entries hold machine addresses, so a guest would choose by an absent
//! entry which machine memory to read. Neither ownership nor types are asked: an absent entry leads nowhere.
//!
//! So there, an absent entry may hold an address only where there is no memory. Linux has written no other ones since 4.19: it inverts
//! the address bits of whatever it keeps in absent entries (swap entries, `PROT_NONE`), so that they lie near the top of the address
//! space. An entry without address bits names frame 0, which nobody is given; it is admitted, or no entry could be cleared. Above
//! level 1 the superpage bit has to be clear, since the speculative walk honours it, and 2 MiB or more from frame 0 on would be named.
//!
//! *Where there is no memory* is judged by the physical-address width that `cpuid` tells. The cache's own width may be larger, never
//! smaller; an address that lies beyond memory with fewer of its bits does so with more of them.
//!
//! Source: Intel, "L1 Terminal Fault"; Linux `Documentation/admin-guide/hw-vuln/l1tf.rst`. Xen 4.17 has the same rule (`pv-l1tf=`), and goes over to
//! shadow tables for a domain that breaks it.

use core::sync::atomic::{AtomicU64, Ordering};

use hyp_core::machine::Level;

use crate::format::{ADDRESS, Bits};

/// What `cpuid` and the processor's registers tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Processor {
    /// `cpuid` leaf 0: ebx, edx, ecx.
    pub vendor: [u32; 3],
    /// `IA32_ARCH_CAPABILITIES`, if there is such a register.
    pub capabilities: Option<u64>,
    /// `cpuid` leaf 0x8000_0008, al: bits of a physical address.
    pub address_bits: u32,
}

/// "GenuineIntel", as `cpuid` says it.
pub const INTEL: [u32; 3] = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];
/// Of `IA32_ARCH_CAPABILITIES`: the processor doesn't have the fault.
const RDCL_NO: u64 = 1 << 0;

impl Processor {
    /// Whether it has to be taken for one that has the fault: Intel's processors that don't say otherwise. (Some old ones don't have it and
    /// can't say so.)
    pub fn has_the_fault(&self) -> bool {
        self.vendor == INTEL && self.capabilities.unwrap_or(0) & RDCL_NO == 0
    }

    /// The rule on this processor, in a machine whose RAM ends at `end` (bytes). `None`: there is none, entries may hold anything.
    pub fn rule(&self, end: u64) -> Option<Rule> {
        let low = ADDRESS & (1u64.checked_shl(self.address_bits).unwrap_or(0).wrapping_sub(1));
        self.has_the_fault().then_some(Rule { low, end })
    }
}

/// Which absent entries are harmless.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// The address bits that the processor says it has.
    low: u64,
    /// Where RAM ends: bytes.
    end: u64,
}

impl Rule {
    /// Whether an absent entry of a table of `level` names no memory.
    #[inline]
    pub fn allows(&self, level: Level, raw: u64) -> bool {
        let superpage = level > 1 && raw & Bits::LARGE.bits() != 0;
        let address = raw & ADDRESS;
        !superpage && (address == 0 || address & self.low >= self.end)
    }
}

/// The rule in force; an end of zero is none.
static LOW: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// From now on absent entries that break the rule are refused. Before the first guest's first entry.
pub fn enforce(rule: Rule) {
    // Relaxed: other CPUs and guests start later.
    LOW.store(rule.low, Ordering::Relaxed);
    END.store(rule.end, Ordering::Relaxed);
}

/// Whether an absent entry may stand in a table of `level`.
#[inline]
pub(crate) fn is_harmless(level: Level, raw: u64) -> bool {
    // Relaxed: as above.
    let rule = Rule { low: LOW.load(Ordering::Relaxed), end: END.load(Ordering::Relaxed) };
    rule.end == 0 || rule.allows(level, raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKYLAKE: Processor = Processor { vendor: INTEL, capabilities: None, address_bits: 39 };
    const GIB: u64 = 1 << 30;

    #[test]
    fn who_has_the_fault() {
        assert!(SKYLAKE.has_the_fault());
        let says = |capabilities| Processor { capabilities: Some(capabilities), ..SKYLAKE };
        assert!(says(!RDCL_NO).has_the_fault() && !says(RDCL_NO).has_the_fault());
        // "AuthenticAMD".
        let amd = Processor { vendor: [0x6874_7541, 0x6974_6e65, 0x444d_4163], ..SKYLAKE };
        assert_eq!((amd.has_the_fault(), amd.rule(GIB)), (false, None));
    }

    /// Whatever the width of the cache, from what `cpuid` says to the widest there is, it finds no memory by what the rule allows.
    #[test]
    fn xsa_273_what_is_allowed_names_no_memory_at_any_width() {
        let rule = SKYLAKE.rule(4 * GIB).expect("it has the fault");
        for raw in (0..52).flat_map(|bit| [1u64 << bit, !(1u64 << bit), (1u64 << bit).wrapping_neg()]) {
            for level in (1..=4).filter(|level| rule.allows(*level, raw & !1)) {
                for width in 39..=52 {
                    let address = raw & ADDRESS & ((1 << width) - 1);
                    assert!(
                        address == 0 && raw & ADDRESS == 0 || address >= 4 * GIB,
                        "{raw:#x}, {level}, {width}"
                    );
                }
            }
        }
        assert!(!rule.allows(1, 4 * GIB - 4096) && rule.allows(1, 4 * GIB));
        assert!(!rule.allows(1, 1 << 39 | 4096), "a bit that the cache may not have");
    }

    #[test]
    fn a_processor_of_all_widths_has_a_rule() {
        for address_bits in [0, 36, 52, 64, u32::MAX] {
            let rule = Processor { address_bits, ..SKYLAKE }.rule(GIB).expect("it has the fault");
            assert!(rule.allows(1, 0) && !rule.allows(1, 4096));
        }
    }
}
