//! Instructions of ring 0 that a kernel in ring 3 must not get away with.
//!
//! Xen carries some privileged instructions out on a kernel's behalf (port I/O, some control-register and MSR accesses);
//! those here have no harmless meaning, and fault on Xen, too.

use core::arch::x86_64::{__cpuid, __cpuid_count};

use crate::direction;
use crate::traps::{faults, refused_selector};
use guest_core::architecture::Forbidden;

/// Names, and whether the instruction faulted.
pub const FORBIDDEN: &[Forbidden] = &[
    ("mov to cr3, of a frame that is no table", || faults!("mov cr3, {x}"; x = in(reg) 0u64)),
    ("mov to cr0, paging off", || faults!("mov cr0, {x}"; x = in(reg) 0x11u64)),
    ("lgdt", || faults!("lgdt [{x}]"; x = in(reg) &DESCRIPTOR)),
    ("lidt", || faults!("lidt [{x}]"; x = in(reg) &DESCRIPTOR)),
    ("lldt", || faults!("lldt {x:x}"; x = in(reg) 0u64)),
    ("ltr", || faults!("ltr {x:x}"; x = in(reg) 0xe008u64)),
    (
        "wrmsr of the system-call entry",
        || faults!("wrmsr"; in("ecx") 0xc000_0082u32, in("eax") 0u32, in("edx") 0u32),
    ),
    ("hlt", || faults!("hlt")),
    ("swapgs", || faults!("swapgs")),
    ("sysret", || faults!("sysretq")),
    ("vmrun", || faults!("vmrun"; in("rax") 0u64)),
    ("sgdt, if the processor can forbid it", || !can_forbid_tables() || faults!("sgdt [rsp - 64]")),
    ("a data segment of a local descriptor table", || {
        faults!("mov ds, {x:x}"; x = in(reg) LOCAL_SELECTOR) && refused_selector(LOCAL_SELECTOR)
    }),
    // `lcall [rax]` and `ljmp [rax]`, with a 32-bit offset.
    ("a far call through a local descriptor table", || {
        faults!(".byte 0xff, 0x18"; in("rax") &FAR_POINTER) && refused_selector(LOCAL_SELECTOR)
    }),
    ("a far jump through a local descriptor table", || {
        faults!(".byte 0xff, 0x28"; in("rax") &FAR_POINTER) && refused_selector(LOCAL_SELECTOR)
    }),
    ("an undefined instruction", || faults!("ud2")),
    // Not forbidden, but nothing that a guest may use to make the hypervisor copy backwards.
    ("a fault with the direction flag set", direction::fault),
    ("an emulated cpuid with the direction flag set", direction::cpuid),
    ("a hypercall with the direction flag set", direction::hypercall),
];

/// Whether the processor has user-mode instruction prevention. Not the hypervisor's answer, which hides that, but its own.
fn can_forbid_tables() -> bool {
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ecx >> 2 & 1 != 0
}

/// First descriptor of the local table, which no guest has, for ring 3. Such a selector must be refused as one; a page fault
/// instead would mean that the processor has looked for the table in the guest's own memory.
const LOCAL_SELECTOR: u64 = 7;

/// What a far call reads: a 32-bit offset and the selector.
static FAR_POINTER: [u16; 4] = [0, 0, LOCAL_SELECTOR as u16, 0];

/// A descriptor-table register's content: empty, at address 0.
static DESCRIPTOR: [u16; 5] = [0; 5];
