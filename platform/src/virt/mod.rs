//! QEMU's `virt` machine, as its flattened device tree describes it.
//!
//! [`DeviceTree::new`] checks the blob as a whole; [`DeviceTree::console`] and [`DeviceTree::board`] then read what
//! the hypervisor needs: where RAM is and which parts of it are taken, the UART, the interrupt controller, the
//! hypervisor timer, how firmware is called, the command line, and the boot modules that QEMU's `guest-loader` device
//! or a boot loader put into memory. These parsers are pure functions of the blob: they run (and are tested with mutated
//! blobs) on any host, and no blob makes them panic. The drivers in `gic` and `uart` touch hardware and exist
//! only where there is some.
//!
//! Nothing here is specific to one board, apart from [`LAST_RESORT_UART`]: any board with a PL011, a GIC v2 or v3 and PSCI
//! that describes itself in the same way will do.

mod devices;
mod memory;
mod modules;
#[cfg(test)]
mod tests;
mod tree;

#[cfg(all(target_arch = "aarch64", target_os = "none"))]
pub mod gic;
#[cfg(all(target_arch = "aarch64", target_os = "none"))]
pub mod uart;

pub use devices::{Conduit, Gic, Uart};
pub use memory::{Range, Ranges};
pub use modules::{Module, ModuleKind, Modules};
pub use tree::{DeviceTree, DeviceTreeError, MAX_BLOB_SIZE};

/// Where a `virt` machine has its PL011 (machine address, bytes).
///
/// Used for one purpose: to say that the device tree is unreadable, or names no UART, before stopping. Whatever else happens at a UART
/// goes to the one that the device tree names.
pub const LAST_RESORT_UART: u64 = 0x0900_0000;

/// What the hypervisor learns from a device tree. Addresses are machine addresses in bytes; interrupt numbers are GIC INTIDs.
#[derive(Clone, Debug)]
pub struct Board<'a> {
    /// RAM, in the order of the device tree.
    pub memory: Ranges,
    /// Parts of RAM (or of anything else) that somebody else uses: `/reserved-memory` and the reservation block.
    pub reserved: Ranges,
    /// The interrupt controller.
    pub gic: Gic,
    /// INTID of the EL2 physical timer (`CNTHP_*_EL2`).
    pub timer_interrupt: u32,
    /// How many CPUs there are (at least 1).
    pub cpus: usize,
    /// `/chosen/bootargs`, or the empty string.
    pub command_line: &'a str,
    /// The boot modules, by ascending address.
    pub modules: Modules<'a>,
}
