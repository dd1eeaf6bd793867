//! The x86-64 hypervisor: long mode, guests in ring 3 with Xen's PV ABI.
//!
//! | file | what |
//! |---|---|
//! | `boot.s`, `boot.rs`, `processor.rs` | from the multiboot loader to the first guest |
//! | `tables.rs`, `stack.rs`, `descriptors.rs` | the hypervisor's own tables, stacks, segments and gates |
//! | `entry.s`, `entry.rs`, `trap.rs` | in from a guest and out again |
//! | `frame.rs`, `context.rs`, `cpu.rs` | a vCPU's registers, and switching from one to another |
//! | `writable_tables.rs` | page faults that the guest never hears of |
//! | `guest_descriptors.rs` | segment descriptors of guests |
//! | `hypercall.rs`, `callbacks.rs`, `bounce.rs` | what x86 adds to the core: its own hypercalls, exceptions |
//! | `emulate.rs`, `msr.rs`, `ports.rs` | instructions that are carried out for guests |
//! | `code.rs`, `carried_out.rs` | where they stand; the way on behind them |
//! | `access.rs` | a guest's memory, through its own addresses |
//! | `machine.rs`, `memory.rs`, `clock.rs`, `console.rs`, `interrupts.rs` | the machine, as the core sees it |
//! | `iret.rs` | the way back out of a guest's handler |
//! | `loaded.rs`, `parts.rs` | what of a vCPU's registers the processor holds; parts of them |
//! | `fault.rs`, `machine_check.rs`, `dump.rs` | exceptions in the hypervisor itself; what the log tells of a guest that crashes |
//!
//! On the host this program is empty: its pure parts are the library `hyp_x86`, which is tested there.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod access;
#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod bounce;
#[cfg(target_os = "none")]
mod callbacks;
#[cfg(target_os = "none")]
mod carried_out;
#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod code;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod context;
#[cfg(target_os = "none")]
mod cpu;
#[cfg(target_os = "none")]
mod deliver;
#[cfg(target_os = "none")]
mod descriptors;
#[cfg(target_os = "none")]
mod dump;
#[cfg(target_os = "none")]
mod emulate;
#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
mod fault;
#[cfg(target_os = "none")]
mod frame;
#[cfg(target_os = "none")]
mod guest_descriptors;
#[cfg(target_os = "none")]
mod heap;
#[cfg(target_os = "none")]
mod hypercall;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod iret;
#[cfg(target_os = "none")]
mod loaded;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod machine_check;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod msr;
#[cfg(target_os = "none")]
mod non_maskable;
#[cfg(target_os = "none")]
mod parts;
#[cfg(target_os = "none")]
mod ports;
#[cfg(target_os = "none")]
mod processor;
#[cfg(target_os = "none")]
mod stack;
#[cfg(target_os = "none")]
mod tables;
#[cfg(target_os = "none")]
mod trap;
#[cfg(target_os = "none")]
mod unpacker;
#[cfg(target_os = "none")]
mod writable_tables;

#[cfg(not(target_os = "none"))]
fn main() {}
