//! Devices that a guest sees and the hypervisor makes up.
//!
//! A domain with a machine of its own (stage-2 mode) finds the devices of the `virt` board at the addresses where that board has them. Nothing is
//! there but memory that isn't mapped: each access comes to EL2, which says of it the device, the offset and the [`Width`], and carries
//! the answer back. What a device *is* stands here, as plain safe code without any hardware, so that it runs, is tested and is fuzzed
//! on any host. All of a guest's values are claims: any offset, width and value may be passed, none panics.

pub mod board;
pub mod gic;
pub mod pl011;
pub mod pl031;
pub mod tree;

/// How many bytes an access moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// One.
    Byte,
    /// Two.
    Half,
    /// Four.
    Word,
    /// Eight.
    Double,
}

impl Width {
    /// In bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Double => 8,
        }
    }

    /// The bits that such an access moves.
    pub const fn mask(self) -> u64 {
        match self {
            Self::Byte => 0xff,
            Self::Half => 0xffff,
            Self::Word => 0xffff_ffff,
            Self::Double => u64::MAX,
        }
    }
}

/// The device has no such access: the guest gets the external abort that the bus would answer with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoSuchAccess;
