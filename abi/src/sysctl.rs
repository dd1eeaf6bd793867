//! `sysctl`: the control domain's operations on the whole system (`sysctl.h`).
//!
//! The argument is the address of a [`Sysctl`], which the hypervisor reads and writes back.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// The version of this interface; any other is refused with `EACCES`.
pub const INTERFACE_VERSION: u32 = 0x15;

/// Reads the hypervisor's log: [`ReadConsole`].
pub const READCONSOLE: u32 = 1;
/// Describes several domains: [`GetDomainInfoList`].
pub const GETDOMAININFOLIST: u32 = 6;

/// Bytes of [`Sysctl::body`].
pub const BODY_SIZE: usize = 128;

/// `struct xen_sysctl`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Sysctl {
    /// Which operation.
    pub command: u32,
    /// [`INTERFACE_VERSION`].
    pub interface_version: u32,
    /// The operation's own structure, at its start.
    pub body: [u8; BODY_SIZE],
}

/// Body of [`READCONSOLE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReadConsole {
    /// In: non-zero empties the ring afterwards.
    pub clear: u8,
    /// In: non-zero starts at `index`.
    pub incremental: u8,
    /// Padding.
    pub pad: [u8; 2],
    /// In: where to start in the log; out: where it ended.
    pub index: u32,
    /// In: guest address of the buffer.
    pub buffer: u64,
    /// In: its size in bytes; out: bytes written.
    pub count: u32,
    /// Padding that C inserts.
    pub pad1: u32,
}

/// Body of [`GETDOMAININFOLIST`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetDomainInfoList {
    /// In: the first number to look at.
    pub first_domain: u16,
    /// Padding that C inserts.
    pub pad: u16,
    /// In: how many structures fit.
    pub max_domains: u32,
    /// In: guest address of an array of [`crate::domctl::DomainInfo`].
    pub buffer: u64,
    /// Out: how many were written.
    pub num_domains: u32,
    /// Padding that C inserts.
    pub pad1: u32,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Sysctl>() == 136 && offset_of!(Sysctl, body) == 8);
    assert!(size_of::<ReadConsole>() == 24 && offset_of!(ReadConsole, buffer) == 8);
    assert!(size_of::<GetDomainInfoList>() == 24 && offset_of!(GetDomainInfoList, num_domains) == 16);
};

impl Sysctl {
    /// An operation with `body` at the start of its union.
    pub fn new(command: u32, body: &[u8]) -> Self {
        let mut operation = Self::new_zeroed();
        (operation.command, operation.interface_version) = (command, INTERFACE_VERSION);
        operation.body.iter_mut().zip(body).for_each(|(to, from)| *to = *from);
        operation
    }

    /// The body, read as `T`.
    pub fn read_body<T: FromBytes>(&self) -> Option<T> {
        T::read_from_prefix(&self.body).ok().map(|(value, _)| value)
    }

    /// Writes `value` over the start of the body.
    pub fn write_body<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.body.iter_mut().zip(value.as_bytes()).for_each(|(to, from)| *to = *from);
    }
}
