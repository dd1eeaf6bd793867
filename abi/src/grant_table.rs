//! `grant_table_op`: pages lent to other domains (`grant_table.h`), entries of version 1.
//!
//! A domain's grant table is an array of [`GrantEntry`] in pages that it shares with the hypervisor. An entry's place in
//! the array is its *grant reference*, which the domain tells to the one it lends the page to.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Maps granted pages: an array of [`MapGrantRef`].
pub const GNTTABOP_MAP_GRANT_REF: u32 = 0;
/// Undoes mappings: an array of [`UnmapGrantRef`].
pub const GNTTABOP_UNMAP_GRANT_REF: u32 = 1;
/// Makes the table larger and tells its frames: one [`SetupTable`].
pub const GNTTABOP_SETUP_TABLE: u32 = 2;
/// Prints the table (gone from Xen).
pub const GNTTABOP_DUMP_TABLE: u32 = 3;
/// Gives pages away for good.
pub const GNTTABOP_TRANSFER: u32 = 4;
/// Copies bytes between pages: an array of [`GrantCopy`].
pub const GNTTABOP_COPY: u32 = 5;
/// Tells how large the table is: one [`QuerySize`].
pub const GNTTABOP_QUERY_SIZE: u32 = 6;
/// Undoes mappings, each replaced by one that stands elsewhere: an array of [`UnmapAndReplace`].
pub const GNTTABOP_UNMAP_AND_REPLACE: u32 = 7;
/// Asks for another version of the entries: a 4-byte version, which the version in force replaces.
pub const GNTTABOP_SET_VERSION: u32 = 8;
/// Tells the frames of version 2's status entries: one [`GetStatusFrames`].
pub const GNTTABOP_GET_STATUS_FRAMES: u32 = 9;
/// Tells the version in force: one [`GetVersion`].
pub const GNTTABOP_GET_VERSION: u32 = 10;
/// Exchanges two entries of one's own table: an array of [`SwapGrantRef`].
pub const GNTTABOP_SWAP_GRANT_REF: u32 = 11;
/// Cache maintenance on a granted page (Arm).
pub const GNTTABOP_CACHE_FLUSH: u32 = 12;
/// The bits of the first argument that hold the operation (`GNTTABOP_CMD_MASK`); the others must be zero.
pub const GNTTABOP_COMMAND_MASK: u32 = 0xfff;

/// The entry grants nothing.
pub const GTF_INVALID: u16 = 0;
/// The domain may map the frame.
pub const GTF_PERMIT_ACCESS: u16 = 1;
/// The domain may give a frame away to this one.
pub const GTF_ACCEPT_TRANSFER: u16 = 2;
/// The domain may use a grant that this one has from a third (version 2).
pub const GTF_TRANSITIVE: u16 = 3;
/// The bits that hold an entry's type.
pub const GTF_TYPE_MASK: u16 = 3;
/// The domain may only read.
pub const GTF_READONLY: u16 = 1 << 2;
/// Set by the hypervisor while the frame is mapped.
pub const GTF_READING: u16 = 1 << 3;
/// Set by the hypervisor while the frame is mapped writable.
pub const GTF_WRITING: u16 = 1 << 4;
/// Only part of the page is granted (version 2); such a grant can't be mapped.
pub const GTF_SUB_PAGE: u16 = 1 << 8;

/// Entries at the start of a table that have fixed meanings (`GNTTAB_NR_RESERVED_ENTRIES`).
pub const RESERVED_ENTRIES: u32 = 8;

/// Map for devices: the answer says the machine address.
pub const GNTMAP_DEVICE_MAP: u32 = 1 << 0;
/// Map at [`MapGrantRef::host_addr`].
pub const GNTMAP_HOST_MAP: u32 = 1 << 1;
/// Map read-only.
pub const GNTMAP_READONLY: u32 = 1 << 2;
/// User mode may use the mapping, too.
pub const GNTMAP_APPLICATION_MAP: u32 = 1 << 3;
/// [`MapGrantRef::host_addr`] is the machine address of the entry to be written, not a virtual address.
pub const GNTMAP_CONTAINS_PTE: u32 = 1 << 4;
/// First of the bits that go into the entry's software bits (`GNTMAP_guest_avail0`).
pub const GNTMAP_GUEST_AVAILABLE_SHIFT: u32 = 16;

/// The source of a copy is a grant.
pub const GNTCOPY_SOURCE_GREF: u16 = 1 << 0;
/// The destination of a copy is a grant.
pub const GNTCOPY_DEST_GREF: u16 = 1 << 1;

/// What one operation came to (`enum grant_status`): 0, or a negative number.
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct GrantStatus(pub i16);

macro_rules! statuses {
    ($($name:ident = $value:literal, $meaning:literal;)*) => {
        impl GrantStatus {
            $(#[doc = $meaning] pub const $name: Self = Self($value);)*
        }

        impl fmt::Debug for GrantStatus {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($value => f.write_str(stringify!($name)),)*
                    other => write!(f, "GNTST_?({other})"),
                }
            }
        }
    };
}

statuses! {
    OKAY = 0, "Done.";
    GENERAL_ERROR = -1, "Refused, for no reason that has a number of its own.";
    BAD_DOMAIN = -2, "There is no such domain.";
    BAD_GNTREF = -3, "No such entry, or no sense in the flags.";
    BAD_HANDLE = -4, "Nothing is mapped by this handle.";
    BAD_VIRT_ADDR = -5, "The virtual address can't be used.";
    BAD_DEV_ADDR = -6, "The device address isn't that of the mapping.";
    NO_DEVICE_SPACE = -7, "No room in the device's address space.";
    PERMISSION_DENIED = -8, "The caller has no right to this.";
    BAD_PAGE = -9, "The frame isn't the granter's.";
    BAD_COPY_ARG = -10, "The copy would leave the page.";
    ADDRESS_TOO_BIG = -11, "The frame's number is too large.";
    EAGAIN = -12, "In use; to be asked again.";
    NO_SPACE = -13, "No handle is left.";
}

/// An entry of a grant table (`grant_entry_v1_t`). The domain writes it, the flags last; the hypervisor changes
/// [`GTF_READING`] and [`GTF_WRITING`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GrantEntry {
    /// Type and flags: `GTF_*`.
    pub flags: u16,
    /// The domain that the page is lent to.
    pub domid: u16,
    /// The page's machine frame number.
    pub frame: u32,
}

impl GrantEntry {
    /// The entry that lends frame `frame` to domain `domid`.
    pub const fn access(domid: u16, frame: u32, writable: bool) -> Self {
        let flags = if writable { GTF_PERMIT_ACCESS } else { GTF_PERMIT_ACCESS | GTF_READONLY };
        Self { flags, domid, frame }
    }

    /// Reads an entry from the 8-byte word that it is in memory (little-endian).
    pub const fn from_word(word: u64) -> Self {
        Self { flags: word as u16, domid: (word >> 16) as u16, frame: (word >> 32) as u32 }
    }

    /// The entry as one 8-byte word, so that it can be written at once.
    pub const fn to_word(self) -> u64 {
        self.flags as u64 | (self.domid as u64) << 16 | (self.frame as u64) << 32
    }
}

/// `struct gnttab_map_grant_ref`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MapGrantRef {
    /// Where to map: a virtual address of the caller's, or the machine address of an entry.
    pub host_addr: u64,
    /// `GNTMAP_*`.
    pub flags: u32,
    /// The grant reference.
    pub reference: u32,
    /// The domain that grants.
    pub dom: u16,
    /// Answer: what it came to.
    pub status: GrantStatus,
    /// Answer: the number by which the mapping is to be undone.
    pub handle: u32,
    /// Answer: the page's machine address (bytes).
    pub dev_bus_addr: u64,
}

/// `struct gnttab_unmap_grant_ref`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UnmapGrantRef {
    /// Where it is mapped, as when it was mapped; 0 leaves that mapping alone.
    pub host_addr: u64,
    /// The machine address that devices use; 0 leaves that mapping alone.
    pub dev_bus_addr: u64,
    /// The mapping's number.
    pub handle: u32,
    /// Answer: what it came to.
    pub status: GrantStatus,
    /// Padding that C inserts.
    pub pad: u16,
}

/// `struct gnttab_unmap_and_replace`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UnmapAndReplace {
    /// Where it is mapped, as when it was mapped.
    pub host_addr: u64,
    /// The virtual address whose entry takes the mapping's place, and is then empty.
    pub new_addr: u64,
    /// The mapping's number.
    pub handle: u32,
    /// Answer: what it came to.
    pub status: GrantStatus,
    /// Padding that C inserts.
    pub pad: u16,
}

/// `struct gnttab_setup_table`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SetupTable {
    /// Whose table.
    pub dom: u16,
    /// Padding that C inserts.
    pub pad: u16,
    /// How many frames the table shall have at least.
    pub nr_frames: u32,
    /// Answer: what it came to.
    pub status: GrantStatus,
    /// Padding that C inserts.
    pub pad2: [u16; 3],
    /// Guest address to which the numbers of the first `nr_frames` frames are written, 8 bytes each.
    pub frame_list: u64,
}

/// `struct gnttab_query_size`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct QuerySize {
    /// Whose table.
    pub dom: u16,
    /// Padding that C inserts.
    pub pad: u16,
    /// Answer: frames it has.
    pub nr_frames: u32,
    /// Answer: frames it may have.
    pub max_nr_frames: u32,
    /// Answer: what it came to.
    pub status: GrantStatus,
    /// Padding that C inserts.
    pub pad2: u16,
}

/// One end of a copy (`struct gnttab_copy_ptr`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CopyEnd {
    /// A grant reference in the lower 4 bytes, or a frame number of the caller's own.
    pub reference_or_frame: u64,
    /// The domain that grants; `DOMID_SELF` for a frame.
    pub domid: u16,
    /// First byte in the page.
    pub offset: u16,
    /// Padding that C inserts.
    pub pad: u32,
}

/// `struct gnttab_copy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GrantCopy {
    /// From where.
    pub source: CopyEnd,
    /// To where.
    pub dest: CopyEnd,
    /// Bytes.
    pub len: u16,
    /// `GNTCOPY_*`.
    pub flags: u16,
    /// Answer: what it came to.
    pub status: GrantStatus,
    /// Padding that C inserts.
    pub pad: u16,
}

/// `struct gnttab_get_status_frames`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetStatusFrames {
    /// How many frames are asked for.
    pub nr_frames: u32,
    /// Whose.
    pub dom: u16,
    /// Answer: what it came to.
    pub status: GrantStatus,
    /// Guest address for their numbers.
    pub frame_list: u64,
}

/// `struct gnttab_get_version`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetVersion {
    /// Whose table.
    pub dom: u16,
    /// Padding.
    pub pad: u16,
    /// Answer: the version.
    pub version: u32,
}

/// `struct gnttab_swap_grant_ref`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SwapGrantRef {
    /// One entry.
    pub ref_a: u32,
    /// The other.
    pub ref_b: u32,
    /// Answer: what it came to.
    pub status: GrantStatus,
    /// Padding that C inserts.
    pub pad: u16,
}

const _: () = assert!(size_of::<GrantEntry>() == 8);
const _: () = assert!(size_of::<MapGrantRef>() == 32 && core::mem::offset_of!(MapGrantRef, status) == 18);
const _: () = assert!(size_of::<UnmapGrantRef>() == 24 && core::mem::offset_of!(UnmapGrantRef, status) == 20);
const _: () = assert!(size_of::<UnmapAndReplace>() == 24);
const _: () = assert!(size_of::<SetupTable>() == 24 && core::mem::offset_of!(SetupTable, frame_list) == 16);
const _: () = assert!(size_of::<QuerySize>() == 16 && core::mem::offset_of!(QuerySize, status) == 12);
const _: () = assert!(size_of::<CopyEnd>() == 16 && size_of::<GrantCopy>() == 40);
const _: () = assert!(size_of::<GetStatusFrames>() == 16 && size_of::<GetVersion>() == 8);
const _: () = assert!(size_of::<SwapGrantRef>() == 12);

#[cfg(test)]
mod tests {
    use super::{GTF_PERMIT_ACCESS, GTF_READONLY, GrantEntry};
    use zerocopy::IntoBytes;

    #[test]
    fn an_entry_is_the_word_that_stands_in_memory() {
        let entry = GrantEntry { flags: 0x0102, domid: 0x0304, frame: 0x0506_0708 };
        assert_eq!(entry.to_word(), 0x0506_0708_0304_0102);
        assert_eq!(entry.as_bytes(), entry.to_word().to_le_bytes());
        assert_eq!(GrantEntry::from_word(entry.to_word()), entry);
        assert_eq!(GrantEntry::access(2, 7, false).flags, GTF_PERMIT_ACCESS | GTF_READONLY);
    }
}
