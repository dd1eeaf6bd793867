//! Instructions of ring 0 that a kernel in ring 3 must not get away with.
//!
//! Xen carries some privileged instructions out on a kernel's behalf (port I/O, some control-register and MSR accesses);
//! those here have no harmless meaning, and fault on Xen, too.

use crate::traps::faults;
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
    ("an undefined instruction", || faults!("ud2")),
];

/// A descriptor-table register's content: empty, at address 0.
static DESCRIPTOR: [u16; 5] = [0; 5];
