//! What has to be said to the processor, and what has to be known of it, before there are guests.

use core::arch::x86_64::{__cpuid, __cpuid_count};

use hyp_x86::cpuid_faults;
use hyp_x86::l1tf::{self, Processor};
use hyp_x86::page_size;
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::model_specific::Msr;

use crate::msr;

/// The page-attribute table, as Xen's ABI has it: write-back, write-through, uncached-minus, uncached; write-combining, write-protected.
pub const GUEST_PAGE_ATTRIBUTES: u64 = 0x0000_0501_0007_0406;
/// The same, but for type 4, which is write-back like type 0: `format.rs` counts on that. No entry of a guest's can ask for it.
const PAGE_ATTRIBUTES: u64 = GUEST_PAGE_ATTRIBUTES & !(0xff << 32) | WRITE_BACK << 32;
const WRITE_BACK: u64 = 6;
const MSR_PAGE_ATTRIBUTES: u32 = 0x277;
/// Which flaws the processor doesn't have (`IA32_ARCH_CAPABILITIES`).
const MSR_ARCH_CAPABILITIES: u32 = 0x10a;

/// Switches protections on that the processor may have: ring 0 must not execute a guest's pages, and ring 3 must not learn
/// where the hypervisor has its descriptor tables.
pub fn set_features() {
    // SAFETY: every processor with long mode has the page-attribute table; no mapping that exists uses another type than these have
    // in common.
    unsafe { Msr::new(MSR_PAGE_ATTRIBUTES).write(PAGE_ATTRIBUTES) };
    if __cpuid(0).eax < 7 {
        return;
    }
    let features = __cpuid_count(7, 0);
    let mut wanted = Cr4Flags::empty();
    // ebx bit 7: supervisor-mode execution prevention; ecx bit 2: user-mode instruction prevention.
    wanted.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, features.ebx >> 7 & 1 != 0);
    wanted.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, features.ecx >> 2 & 1 != 0);
    // SAFETY: the hypervisor's own text isn't a user's page, and neither bit is set on a processor without it.
    unsafe { Cr4::update(|flags| *flags |= wanted) };
}

/// What guests' entries must not be on this processor: with the L1 terminal fault, absent ones must not name memory; where a change of page
/// size can stop the machine, superpages must not be executable. RAM ends at `end` (bytes).
pub fn judge(end: u64) {
    let names = __cpuid(0);
    let widths = __cpuid(0x8000_0008);
    // Leaf 7, edx bit 29: there is the register.
    let has_register = names.eax >= 7 && __cpuid_count(7, 0).edx >> 29 & 1 != 0;
    // SAFETY: the processor says that it has the register, which can be read at any time.
    let capabilities = has_register.then(|| unsafe { Msr::new(MSR_ARCH_CAPABILITIES).read() });
    let vendor = [names.ebx, names.edx, names.ecx];
    let processor = Processor { vendor, capabilities, address_bits: widths.eax & 0xff };
    if let Some(rule) = processor.rule(end) {
        l1tf::enforce(rule);
        log::info!(
            "the processor may have the L1 terminal fault: guests' absent entries must not name memory"
        );
    }
    if page_size::has_the_flaw(&processor) {
        page_size::enforce();
        log::info!(
            "the processor may stop at a change of page size: guests' superpages must not be executable"
        );
    }
}

/// Guests' `cpuid` comes to the hypervisor from now on, where the processor can do that.
pub fn let_cpuid_fault() {
    let names = __cpuid(0);
    let last = __cpuid(0x8000_0000).eax;
    let features = match last {
        cpuid_faults::FEATURES_LEAF..=0x8000_ffff => __cpuid(cpuid_faults::FEATURES_LEAF).eax,
        _ => 0,
    };
    let vendor = [names.ebx, names.edx, names.ecx];
    let Some(switch) = cpuid_faults::switch(vendor, features, || msr::read_if_there(cpuid_faults::PLATFORM))
    else {
        return;
    };
    let mut register = Msr::new(switch.register);
    // SAFETY: the processor says that the register has the bit, which changes what `cpuid` does outside ring 0, and nothing else.
    unsafe { register.write(register.read() | switch.bit) };
    log::info!("guests' cpuid is answered by the hypervisor");
}
