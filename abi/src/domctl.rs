//! `domctl`: the control domain's operations on one domain (`domctl.h`).
//!
//! The argument is the address of a [`Domctl`], which the hypervisor reads and writes back.
//!
//! `getmemlist` was removed from Xen long after the version whose model Penumbra follows; its number is still kept free
//! there. The structure is the one of the headers that had it.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// The version of this interface; any other is refused with `EACCES`.
pub const INTERFACE_VERSION: u32 = 0x15;

/// Destroys a domain.
pub const DESTROYDOMAIN: u32 = 2;
/// Stops a domain.
pub const PAUSEDOMAIN: u32 = 3;
/// Lets it go on.
pub const UNPAUSEDOMAIN: u32 = 4;
/// Describes a domain, or the next one with a higher number: [`DomainInfo`].
pub const GETDOMAININFO: u32 = 5;
/// Lists a domain's machine frames: [`GetMemoryList`].
pub const GETMEMLIST: u32 = 6;

/// Bytes of [`Domctl::body`].
pub const BODY_SIZE: usize = 128;

/// `struct xen_domctl`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Domctl {
    /// Which operation.
    pub command: u32,
    /// [`INTERFACE_VERSION`].
    pub interface_version: u32,
    /// Which domain.
    pub domain: u16,
    /// Padding.
    pub pad: [u16; 3],
    /// The operation's own structure, at its start.
    pub body: [u8; BODY_SIZE],
}

/// Body of [`GETMEMLIST`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GetMemoryList {
    /// In: how many frame numbers fit into the buffer.
    pub max_pfns: u64,
    /// In: how many of the domain's pages to skip.
    pub start_pfn: u64,
    /// In: guest address of an array of 8-byte machine frame numbers.
    pub buffer: u64,
    /// Out: how many were written.
    pub num_pfns: u64,
}

/// The domain is being torn down.
pub const DOMINF_DYING: u32 = 1 << 0;
/// The domain has shut down.
pub const DOMINF_SHUTDOWN: u32 = 1 << 2;
/// The domain is paused.
pub const DOMINF_PAUSED: u32 = 1 << 3;
/// The domain waits for an event.
pub const DOMINF_BLOCKED: u32 = 1 << 4;
/// The domain runs or could run.
pub const DOMINF_RUNNING: u32 = 1 << 5;
/// How far the reason of a shutdown is shifted in the flags.
pub const DOMINF_SHUTDOWN_SHIFT: u32 = 16;
/// Mask of that reason, after the shift.
pub const DOMINF_SHUTDOWN_MASK: u32 = 255;

/// `struct xen_domctl_getdomaininfo`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DomainInfo {
    /// The domain's number.
    pub domain: u16,
    /// Padding.
    pub pad1: u16,
    /// `DOMINF_*`.
    pub flags: u32,
    /// Pages that it has.
    pub tot_pages: u64,
    /// Pages that it may have.
    pub max_pages: u64,
    /// Pages claimed and not yet allocated.
    pub outstanding_pages: u64,
    /// Shared pages.
    pub shr_pages: u64,
    /// Pages that are paged out.
    pub paged_pages: u64,
    /// Frame of its shared-info page.
    pub shared_info_frame: u64,
    /// Nanoseconds of CPU time that it has used.
    pub cpu_time: u64,
    /// vCPUs that are online.
    pub nr_online_vcpus: u32,
    /// Highest number of a vCPU.
    pub max_vcpu_id: u32,
    /// Security label.
    pub ssidref: u32,
    /// Unique number.
    pub handle: [u8; 16],
    /// CPU pool.
    pub cpupool: u32,
    /// Bits of its physical addresses.
    pub gpaddr_bits: u8,
    /// Padding.
    pub pad2: [u8; 7],
    /// What the architecture adds.
    pub arch_config: [u32; 2],
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Domctl>() == 144 && offset_of!(Domctl, body) == 16);
    assert!(size_of::<GetMemoryList>() == 32);
    assert!(size_of::<DomainInfo>() == 112 && offset_of!(DomainInfo, nr_online_vcpus) == 64);
    assert!(offset_of!(DomainInfo, handle) == 76 && offset_of!(DomainInfo, arch_config) == 104);
};

impl Domctl {
    /// An operation on `domain` with `body` at the start of its union.
    ///
    /// A body longer than [`BODY_SIZE`] is cut off; none here is.
    pub fn new(command: u32, domain: u16, body: &[u8]) -> Self {
        let mut operation = Self::new_zeroed();
        (operation.command, operation.interface_version, operation.domain) =
            (command, INTERFACE_VERSION, domain);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_read_back_as_it_was_written() {
        let list = GetMemoryList { max_pfns: 7, start_pfn: 3, buffer: 0xdead_b000, num_pfns: 0 };
        let operation = Domctl::new(GETMEMLIST, 1, list.as_bytes());
        assert_eq!(operation.as_bytes()[..10], [6, 0, 0, 0, 0x15, 0, 0, 0, 1, 0]);
        assert_eq!(operation.read_body::<GetMemoryList>(), Some(list));
    }
}
