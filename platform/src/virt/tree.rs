//! The device tree as a whole: checked once, then searched.

use core::fmt;

use dtoolkit::error::FdtParseError;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property, ToCellInt};

use super::{Board, devices, memory, modules};

/// The largest blob that is accepted, in bytes: what the arm64 boot protocol allows (Linux, `booting.rst`).
pub const MAX_BLOB_SIZE: usize = 2 << 20;

/// First word of every blob, big-endian (Devicetree Specification 0.4, 5.2).
const MAGIC: u32 = 0xd00d_feed;

/// Why a device tree is of no use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeviceTreeError {
    /// There is no blob at that address.
    NoBlob,
    /// The blob claims to be larger than [`MAX_BLOB_SIZE`], or than the memory that was given (bytes).
    TooLarge(usize),
    /// The blob is damaged.
    Damaged(FdtParseError),
    /// Something that every board must have is missing or unreadable: the node or property in question.
    Missing(&'static str),
    /// A device has fewer bytes of registers than every device of its kind has: which device, and how many those are.
    TooSmall(&'static str, u64),
}

impl fmt::Display for DeviceTreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoBlob => write!(f, "device tree: none at the address in x0"),
            Self::TooLarge(size) => write!(f, "device tree: claims to be {size} bytes, too many"),
            Self::Damaged(error) => write!(f, "device tree: damaged: {error}"),
            Self::Missing(what) => write!(f, "device tree: {what}: missing or unreadable"),
            Self::TooSmall(what, needed) => {
                write!(f, "device tree: {what}: `reg` gives it less than {needed:#x} bytes")
            }
        }
    }
}

/// A device tree that has passed the structural checks.
#[derive(Clone, Copy, Debug)]
pub struct DeviceTree<'a> {
    fdt: Fdt<'a>,
}

impl<'a> DeviceTree<'a> {
    /// Checks the blob at the start of `memory`; what follows the blob is ignored.
    ///
    /// # Errors
    /// What is wrong with the blob as a whole.
    pub fn new(memory: &'a [u8]) -> Result<Self, DeviceTreeError> {
        let size = Self::claimed_size(memory)?;
        let blob = memory.get(..size).ok_or(DeviceTreeError::TooLarge(size))?;
        Fdt::new(blob).map(|fdt| Self { fdt }).map_err(DeviceTreeError::Damaged)
    }

    /// How long a blob says it is, in bytes, from its first [`Self::SIZE_PREFIX`] bytes: so that no more memory has to be
    /// touched than holds the blob.
    ///
    /// # Errors
    /// [`DeviceTreeError::NoBlob`] and [`DeviceTreeError::TooLarge`].
    pub fn claimed_size(prefix: &[u8]) -> Result<usize, DeviceTreeError> {
        let word = |offset: usize| {
            let bytes = prefix.get(offset..)?.first_chunk::<4>()?;
            Some(u32::from_be_bytes(*bytes))
        };
        if word(0) != Some(MAGIC) {
            return Err(DeviceTreeError::NoBlob);
        }
        let size = word(4).map_or(0, |size| size as usize);
        if size > MAX_BLOB_SIZE { Err(DeviceTreeError::TooLarge(size)) } else { Ok(size) }
    }

    /// How many bytes [`Self::claimed_size`] needs: the first two words of the header.
    pub const SIZE_PREFIX: usize = 8;

    /// Size of the blob in bytes.
    pub fn size(&self) -> usize {
        self.fdt.data().len()
    }

    /// The UART for the hypervisor's console: what `/chosen/stdout-path` names if that is a PL011, otherwise the first PL011.
    pub fn console(&self) -> Option<super::Uart> {
        devices::console(self)
    }

    /// How firmware is called, if the tree says so.
    pub fn firmware(&self) -> Option<super::Conduit> {
        devices::firmware(self)
    }

    /// Everything else.
    ///
    /// # Errors
    /// [`DeviceTreeError::Missing`] for what the hypervisor can't do without.
    pub fn board(&self) -> Result<Board<'a>, DeviceTreeError> {
        let memory = memory::ram(self);
        if memory.is_empty() {
            return Err(DeviceTreeError::Missing("a memory node with a sane `reg`"));
        }
        Ok(Board {
            memory,
            reserved: memory::reserved(self),
            gic: devices::gic(self)?,
            timer_interrupt: devices::hypervisor_timer(self)
                .ok_or(DeviceTreeError::Missing("hypervisor interrupt of the `arm,armv8-timer` node"))?,
            cpus: devices::cpus(self),
            command_line: self.find("/chosen").and_then(|chosen| text(&chosen, "bootargs")).unwrap_or(""),
            modules: modules::modules(self),
        })
    }

    pub(super) fn find(&self, path: &str) -> Option<FdtNode<'a>> {
        self.fdt.find_node(path)
    }

    /// The reservation block: pairs of start and size in bytes.
    pub(super) fn reservations(&self) -> impl Iterator<Item = (u64, u64)> {
        self.fdt.memory_reservations().map(|entry| (entry.address(), entry.size()))
    }

    /// Top-level nodes, and those on buses whose addresses are the CPU's own (an empty `ranges`).
    pub(super) fn devices(&self) -> impl Iterator<Item = FdtNode<'a>> {
        let top = self.fdt.root().children();
        let behind_buses =
            self.fdt.root().children().filter(is_transparent_bus).flat_map(|bus| bus.children());
        top.chain(behind_buses)
    }

    /// The first device that is compatible with any of `names` and not disabled.
    pub(super) fn compatible(&self, names: &[&str]) -> Option<FdtNode<'a>> {
        self.devices().find(|node| is_enabled(node) && names.iter().any(|name| node.is_compatible(name)))
    }
}

fn is_transparent_bus(node: &FdtNode<'_>) -> bool {
    node.is_compatible("simple-bus")
        && node.property("ranges").is_some_and(|ranges| ranges.value().is_empty())
}

fn is_enabled(node: &FdtNode<'_>) -> bool {
    text(node, "status").is_none_or(|status| status == "okay" || status == "ok")
}

/// A property that holds one string.
pub(super) fn text<'a>(node: &FdtNode<'a>, name: &str) -> Option<&'a str> {
    let value: &'a [u8] = node.property(name)?.value_as::<&'a [u8]>().ok()?;
    core::ffi::CStr::from_bytes_until_nul(value).ok()?.to_str().ok()
}

/// The `index`-th pair of `reg`: address and size in bytes, under the parent's `#address-cells` and `#size-cells`.
pub(super) fn reg(node: &FdtNode<'_>, index: usize) -> Option<(u64, u64)> {
    let entry = node.reg().ok()??.nth(index)?;
    Some((entry.address::<u64>().ok()?, entry.size::<u64>().ok()?))
}

/// The `index`-th triple of an `interrupts` property in the GIC's own form, as an INTID.
///
/// (Linux binding `arm,gic`: type 0 = SPI counted from INTID 32, 1 = PPI counted from 16.)
pub(super) fn interrupt(node: &FdtNode<'_>, index: usize) -> Option<u32> {
    let property = node.property("interrupts")?;
    let [kind, number, _flags] = property.as_prop_encoded_array([1, 1, 1]).ok()?.nth(index)?;
    let number: u32 = number.to_int().ok()?;
    match kind.to_int::<u32>().ok()? {
        0 if number < 988 => Some(number + 32),
        1 if number < 16 => Some(number + 16),
        _ => None,
    }
}
