//! `physdev_op`: physical devices (`physdev.h`), as far as a domain without any gets.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Which interrupts have to be acknowledged.
pub const PHYSDEVOP_IRQ_STATUS_QUERY: u64 = 5;
/// Which rings of the guest may access ports (x86): 4 bytes, 0 to 3.
pub const PHYSDEVOP_SET_IOPL: u64 = 6;
/// Which ports the guest's users may access (x86): [`SetIoBitmap`].
pub const PHYSDEVOP_SET_IOBITMAP: u64 = 7;
/// Reads a register of an I/O APIC.
pub const PHYSDEVOP_APIC_READ: u64 = 8;
/// Writes one.
pub const PHYSDEVOP_APIC_WRITE: u64 = 9;
/// Acknowledges an interrupt.
pub const PHYSDEVOP_EOI: u64 = 12;
/// Has a physical interrupt for a number of the guest's.
pub const PHYSDEVOP_MAP_PIRQ: u64 = 13;
/// Gives it back.
pub const PHYSDEVOP_UNMAP_PIRQ: u64 = 14;
/// Says where PCI's configuration space is.
pub const PHYSDEVOP_PCI_MMCFG_RESERVED: u64 = 24;
/// Tells of a PCI device.
pub const PHYSDEVOP_PCI_DEVICE_ADD: u64 = 25;
/// One of them is gone.
pub const PHYSDEVOP_PCI_DEVICE_REMOVE: u64 = 26;

/// [`PHYSDEVOP_SET_IOBITMAP`] (`struct physdev_set_iobitmap`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetIoBitmap {
    /// Guest address of the bitmap, one bit a port: clear if it may be accessed.
    pub bitmap: u64,
    /// How many ports have a bit.
    pub nr_ports: u32,
    /// Padding that C inserts.
    pub pad: u32,
}

const _: () = assert!(size_of::<SetIoBitmap>() == 16);
