//! `memory_op`: how much memory a domain has, and which (`memory.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Allocates extents; their first MFNs are written to the list. Returns how many were done.
pub const XENMEM_INCREASE_RESERVATION: u64 = 0;
/// Gives back the extents whose first MFNs are in the list. Returns how many were done.
pub const XENMEM_DECREASE_RESERVATION: u64 = 1;
/// The highest MFN of RAM in the machine, or one beyond.
pub const XENMEM_MAXIMUM_RAM_PAGE: u64 = 2;
/// Pages that a domain has now. The argument is the address of a domain number.
pub const XENMEM_CURRENT_RESERVATION: u64 = 3;
/// Pages that a domain may have. The argument is the address of a domain number.
pub const XENMEM_MAXIMUM_RESERVATION: u64 = 4;
/// The MFNs of the M2P itself, one for each 2 MiB of it.
pub const XENMEM_MACHPHYS_MFN_LIST: u64 = 5;
/// Allocates extents for the PFNs in the list, enters them in the M2P, and writes the MFNs over the PFNs.
pub const XENMEM_POPULATE_PHYSMAP: u64 = 6;
/// The calling domain's pseudo-physical memory map.
pub const XENMEM_MEMORY_MAP: u64 = 9;
/// The machine's memory map, for the control domain.
pub const XENMEM_MACHINE_MEMORY_MAP: u64 = 10;
/// Sets a domain's pseudo-physical memory map.
pub const XENMEM_SET_MEMORY_MAP: u64 = 13;
/// Sets how much memory is populated on demand (translated guests only).
pub const XENMEM_SET_POD_TARGET: u64 = 16;
/// How much memory is populated on demand (translated guests only).
pub const XENMEM_GET_POD_TARGET: u64 = 17;
/// Gives extents back and allocates others at once.
pub const XENMEM_EXCHANGE: u64 = 11;
/// Where the M2P is mapped: [`MachphysMapping`].
pub const XENMEM_MACHPHYS_MAPPING: u64 = 12;
/// The highest PFN that a domain uses.
pub const XENMEM_MAXIMUM_GPFN: u64 = 14;

/// The bits of the first argument that hold the sub-operation (`MEMOP_CMD_MASK`); the rest says where a preempted
/// operation goes on (`MEMOP_EXTENT_SHIFT`).
pub const MEMORY_OP_COMMAND_MASK: u64 = 63;
/// How far the start extent of a preempted operation is shifted in the first argument.
pub const MEMORY_OP_EXTENT_SHIFT: u32 = 6;

/// Mask for the number of address bits that extents must fit in (`XENMEMF_address_bits`), 0 for no limit.
pub const XENMEMF_ADDRESS_BITS_MASK: u32 = 0xff;

/// Flag of [`MemoryReservation::mem_flags`]: populate on demand.
pub const XENMEMF_POPULATE_ON_DEMAND: u32 = 1 << 16;

/// What to reserve or to give back (`struct xen_memory_reservation`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryReservation {
    /// Guest address of an array of 8-byte frame numbers, one an extent. Zero: no list.
    pub extent_start: u64,
    /// Number of extents.
    pub nr_extents: u64,
    /// log2 of the frames in each extent.
    pub extent_order: u32,
    /// `XENMEMF_*`.
    pub mem_flags: u32,
    /// Whose reservation; unprivileged domains can only name themselves.
    pub domid: u16,
    /// Padding that C inserts.
    pub pad: [u16; 3],
}

/// What is given for what (`struct xen_memory_exchange`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryExchange {
    /// The extents that are given.
    pub input: MemoryReservation,
    /// The extents that are taken: as much memory. The list holds PFNs, which MFNs replace.
    pub output: MemoryReservation,
    /// Extents of the input that were exchanged; 0 at first.
    pub nr_exchanged: u64,
}

/// Where the M2P is (`struct xen_machphys_mapping`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MachphysMapping {
    /// Virtual address of its first byte.
    pub v_start: u64,
    /// Virtual address one beyond its window.
    pub v_end: u64,
    /// The highest MFN that can be looked up.
    pub max_mfn: u64,
}

/// A buffer for a memory map (`struct xen_memory_map`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryMap {
    /// Entries that fit; on return, entries written.
    pub nr_entries: u32,
    /// Padding that C inserts.
    pub pad: u32,
    /// Guest address of an array of [`MemoryMapEntry`], packed.
    pub buffer: u64,
}

/// A domain and its memory map (`struct xen_foreign_memory_map`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ForeignMemoryMap {
    /// Whose map.
    pub domid: u16,
    /// Padding that C inserts.
    pub pad: [u16; 3],
    /// The map.
    pub map: MemoryMap,
}

/// Bytes that a [`MemoryMapEntry`] takes in the buffer: the packed form of BIOS call 0x15, 0xe820.
pub const MEMORY_MAP_ENTRY_SIZE: usize = 20;
/// Kind of a memory-map entry that is usable RAM.
pub const MEMORY_MAP_RAM: u32 = 1;

/// A region of a memory map; packed to [`MEMORY_MAP_ENTRY_SIZE`] bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed(4))]
pub struct MemoryMapEntry {
    /// First byte.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// [`MEMORY_MAP_RAM`] or another kind.
    pub kind: u32,
}

const _: () = assert!(size_of::<MemoryReservation>() == 32);
const _: () = assert!(core::mem::offset_of!(MemoryReservation, domid) == 24);
const _: () = assert!(size_of::<MemoryExchange>() == 72 && size_of::<ForeignMemoryMap>() == 24);
const _: () = assert!(size_of::<MachphysMapping>() == 24 && size_of::<MemoryMap>() == 16);
const _: () = assert!(size_of::<MemoryMapEntry>() == MEMORY_MAP_ENTRY_SIZE);
