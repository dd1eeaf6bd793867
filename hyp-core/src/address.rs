//! Frames and addresses that can't be mixed up.
//!
//! A *machine* frame is a page of real memory. A *pseudo-physical* frame is a page of what one domain thinks of
//! as its memory, counted from 0. A *guest-virtual* address goes through the tables of the guest that runs. Each
//! is a type of its own with a private field, so that one can't be passed where another is meant; the way from
//! one to another is a lookup (P2M, M2P, a walk), never a cast.

use core::fmt;

/// Bytes in a page, the same on every machine we run on (4 KiB granule).
pub const PAGE_SIZE: usize = 4096;
/// [`PAGE_SIZE`], for arithmetic on addresses.
pub const PAGE_BYTES: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// The number of a machine frame (MFN): a machine address shifted right by [`PAGE_SHIFT`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineFrame(u64);

impl MachineFrame {
    /// Frames that an address of 52 bits can name; nothing beyond is a frame on any machine.
    pub const LIMIT: u64 = 1 << (52 - PAGE_SHIFT);

    /// The frame numbered `number`, or `None` when no machine address could name it.
    pub const fn new(number: u64) -> Option<Self> {
        if number < Self::LIMIT { Some(Self(number)) } else { None }
    }

    /// The frame that holds machine address `address` (bytes).
    pub const fn containing(address: MachineAddress) -> Self {
        Self(address.0 >> PAGE_SHIFT)
    }

    /// The frame's number.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The machine address of the frame's first byte.
    pub const fn start(self) -> MachineAddress {
        MachineAddress(self.0 << PAGE_SHIFT)
    }

    /// The frame `count` frames further up, if there can be one.
    pub const fn checked_add(self, count: u64) -> Option<Self> {
        match self.0.checked_add(count) {
            Some(number) => Self::new(number),
            None => None,
        }
    }
}

impl fmt::Debug for MachineFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mfn {:#x}", self.0)
    }
}

/// A machine address in bytes, of at most 52 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MachineAddress(u64);

impl MachineAddress {
    /// The address `bytes`, or `None` beyond 52 bits.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes >> 52 == 0 { Some(Self(bytes)) } else { None }
    }

    /// The address as a number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Bytes from the start of the frame that holds this address.
    pub const fn offset_in_frame(self) -> usize {
        (self.0 % PAGE_BYTES) as usize
    }
}

impl fmt::Debug for MachineAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "machine address {:#x}", self.0)
    }
}

/// A pseudo-physical frame number (PFN): an index into one domain's own idea of memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PseudoFrame(u64);

impl PseudoFrame {
    /// The pseudo-physical frame numbered `number`; any number is one, since it is only a name.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The frame's number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for PseudoFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn {:#x}", self.0)
    }
}

/// An address that a guest gave, to be looked up in the guest's own tables. A claim: it proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestVirtual(u64);

impl GuestVirtual {
    /// The guest-virtual address `bytes`.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The address as a number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The address `bytes` further up, unless that leaves the address space.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(address) => Some(Self(address)),
            None => None,
        }
    }
}

impl fmt::Debug for GuestVirtual {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest va {:#x}", self.0)
    }
}

/// Which domain. Numbers from [`DomainId::RESERVED`] up are names with a meaning of their own (Xen's `DOMID_*`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(u16);

impl DomainId {
    /// The first domain, which controls the others.
    pub const CONTROL: Self = Self(0);
    /// First of the numbers that are no domain (`DOMID_FIRST_RESERVED`).
    pub const RESERVED: u16 = 0x7ff0;
    /// "The domain that asks" (`DOMID_SELF`).
    pub const SELF: Self = Self(0x7ff0);

    /// The domain with this number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number as it stands in the ABI.
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Debug for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}", self.0)
    }
}
