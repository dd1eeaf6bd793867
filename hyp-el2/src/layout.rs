//! EL2's virtual address space (48 bits, one table root), the same on every board.
//!
//! ```text
//! 0x0000_0000_0000 ..  identity: only the one page that switches tables
//! 0x4000_0000_0000     the image: text, rodata, data, stacks
//! 0x4000_4000_0000     the boot window: the device tree, and until our own tables are in use, the UART
//! 0x6000_0000_0000 ..  devices
//! 0x8000_0000_0000 ..  the direct map: machine address + this
//! ```

/// Where the image is linked (`IMAGE_BASE` of the linker script).
pub const IMAGE: u64 = 0x4000_0000_0000;
/// The boot window: two blocks of 2 MiB that hold the device tree, then one for the UART.
pub const BOOT_WINDOW: u64 = IMAGE + (1 << 30);
/// Within the boot window, the block for the UART.
pub const BOOT_WINDOW_UART: u64 = BOOT_WINDOW + 2 * BLOCK;
/// The first device's registers; each further device follows at the next 2 MiB boundary after the one before it.
pub const DEVICES: u64 = 0x6000_0000_0000;
/// The direct map of RAM.
pub const DIRECT_MAP: u64 = 0x8000_0000_0000;
/// Machine addresses beyond this (bytes) have no place in the direct map, nor in the identity mapping.
pub const MACHINE_LIMIT: u64 = IMAGE;
/// Size of a level-2 block, in bytes.
pub const BLOCK: u64 = 2 << 20;
