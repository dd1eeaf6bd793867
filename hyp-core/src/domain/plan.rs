//! What a domain is built from, and why it may not be possible.

use core::fmt;

use super::image::ImageError;
use crate::address::PAGE_SHIFT;
use crate::paging::Stop;

/// P2M frames that a new domain can have: 8 GiB of memory.
pub const MAX_P2M_FRAMES: usize = 4096;

/// What a domain is built from.
pub struct Plan<'a> {
    /// The kernel's file.
    pub kernel: &'a [u8],
    /// The ramdisk's file, or empty.
    pub ramdisk: &'a [u8],
    /// The kernel's command line.
    pub arguments: &'a str,
    /// Frames of memory.
    pub pages: u64,
    /// Whether it is the control domain.
    pub control: bool,
}

/// Why a domain can't be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BuildError {
    /// The kernel is packed, and can't be unpacked.
    Packed(unpack::Error),
    /// The kernel is no good.
    Image(ImageError),
    /// The domain table is full.
    TooManyDomains,
    /// More memory than the builder lays out in one go (frames).
    TooLarge(u64),
    /// The kernel and what goes with it needs this many frames, of which the domain has fewer.
    TooSmall {
        /// Frames needed.
        needed: u64,
        /// Frames asked for.
        given: u64,
    },
    /// The machine has fewer free frames than this.
    OutOfMemory {
        /// Frames needed.
        needed: u64,
        /// Frames free.
        free: u64,
    },
    /// The first tables were refused; the layout that the kernel asks for is impossible.
    Tables(Stop),
    /// The addresses that the kernel asks for don't fit the address space.
    Layout,
    /// The kernel leaves the hypervisor fewer addresses than it uses.
    HypervisorsPlace,
}

impl From<ImageError> for BuildError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<unpack::Error> for BuildError {
    fn from(error: unpack::Error) -> Self {
        Self::Packed(error)
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |frames: &u64| frames.checked_shr(20 - PAGE_SHIFT).unwrap_or(0);
        match self {
            Self::Packed(error) => write!(f, "the kernel can't be unpacked: {error}"),
            Self::Image(error) => write!(f, "the kernel can't be used: {error}"),
            Self::TooManyDomains => write!(f, "there are as many domains as there can be"),
            Self::TooLarge(pages) => {
                write!(f, "{} MiB are more than a domain can have at its start", mib(pages))
            }
            Self::TooSmall { needed, given } => {
                write!(f, "{} KiB of memory are needed to start it, it is given {}", needed << 2, given << 2)
            }
            Self::OutOfMemory { needed, free } => {
                write!(f, "it needs {} MiB of memory, and {} MiB are free", mib(needed), mib(free))
            }
            Self::Tables(stop) => write!(f, "its first page tables are refused: {stop:?}"),
            Self::Layout => write!(f, "the addresses it asks for don't fit the address space"),
            Self::HypervisorsPlace => {
                write!(f, "it claims addresses that are the hypervisor's (HV_START_LOW)")
            }
        }
    }
}
