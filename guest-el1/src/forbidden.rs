//! What an EL1 kernel without a second stage could break out with.
//!
//! With stage 2 off, a guest's isolation rests on the translation registers being the hypervisor's, and on the traps that
//! keep caches, debug and other worlds out of reach. Each of these must be an undefined instruction to the guest.

use crate::traps::faults;
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
    ("actlr_el1", || faults!("msr actlr_el1, {x}"; x = in(reg) !0u64)),
    ("mdscr_el1", || faults!("msr mdscr_el1, {x}"; x = in(reg) 1u64 << 13)),
    ("dbgbcr0_el1", || faults!("msr dbgbcr0_el1, {x}"; x = in(reg) 1u64)),
    ("pmcr_el0", || faults!("msr pmcr_el0, {x}"; x = in(reg) 1u64)),
    ("cntp_ctl_el0", || faults!("msr cntp_ctl_el0, {x}"; x = in(reg) 1u64)),
    ("smc", || faults!("smc #0"; inout("x0") 0x8400_0008u64 => _)),
    ("hvc that is no hypercall", || faults!("hvc #0"; inout("x0") 0x8400_0008u64 => _)),
    ("hcr_el2", || faults!("msr hcr_el2, xzr")),
    ("ttbr0_el2", || faults!("msr ttbr0_el2, xzr")),
    ("tlbi alle2", || faults!("tlbi alle2")),
];
