//! Several hypercalls in one (`xen.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One call of a multicall: arguments: the address of an array of these, and their number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MulticallEntry {
    /// The hypercall's number.
    pub operation: u64,
    /// What it returned; written by the hypervisor.
    pub result: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

const _: () = assert!(size_of::<MulticallEntry>() == 64);
