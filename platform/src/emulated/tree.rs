//! The device tree that a domain with a machine of its own is given.
//!
//! What is the same for every such domain was written when this crate was built (`build.rs`): the `virt` board's own nodes, names and
//! values, at the places that [`super::board`] says. Here it is copied, completed in place, and freed of what the domain doesn't have: nothing
//! is allocated. The domain may have been asked for by a device tree that somebody else wrote, so no value here is trusted.

use core::fmt;

use dtoolkit::ToPropertyValue;
use dtoolkit::fdt_mut::{FdtMut, SliceBuffer};

use super::board;
use crate::virt::Range;

/// Everything but what depends on the domain.
static SKELETON: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/board.dtb"));

/// The largest tree that is ever written, in bytes, whatever the buffer has room for: a command line of almost this length fits.
pub const MAX_SIZE: usize = 64 << 10;

/// The versions of interrupt controllers that a domain may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Controller {
    /// GICv2: distributor and CPU interface.
    V2,
    /// GICv3: distributor and redistributors.
    V3,
}

/// What the domain's tree depends on. Addresses are the domain's own.
#[derive(Clone, Copy, Debug)]
pub struct GuestTree<'a> {
    /// `/chosen/bootargs`; nothing is said when it is empty.
    pub command_line: &'a str,
    /// The first file system, in RAM.
    pub initrd: Option<Range>,
    /// RAM: it starts at [`board::RAM_START`].
    pub memory: Range,
    /// How many vCPUs: 1 to [`board::MAX_VCPUS`].
    pub vcpus: usize,
    /// The interrupt controller.
    pub controller: Controller,
    /// Where Xen's services are on: a range without anything in it, where the domain may map its grant table.
    pub grant_window: Option<Range>,
    /// `/chosen/stdout-path`.
    pub stdout: Option<&'a str>,
    /// Hertz of the timers' counter, where firmware didn't set `CNTFRQ_EL0`.
    pub timer_hertz: Option<u32>,
    /// Whether there is a real-time clock.
    pub clock: bool,
    /// Whether there are performance monitors.
    pub monitors: bool,
    /// What the CPUs are, such as `arm,cortex-a72`.
    pub cpu_compatible: &'a str,
}

/// Why there is no tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestTreeError {
    /// It needs more than this many bytes.
    NoRoom(usize),
    /// That many vCPUs can't be had.
    Vcpus(usize),
    /// RAM is somewhere else than where the board has it.
    Memory(Range),
    /// The initrd isn't in RAM.
    Initrd(Range),
    /// A text has a zero in it: which text.
    Text(&'static str),
    /// The skeleton lacks something, which a test excludes.
    Skeleton,
}

impl fmt::Display for GuestTreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest's device tree: ")?;
        match self {
            Self::NoRoom(size) => write!(f, "needs more than {size} bytes"),
            Self::Vcpus(count) => write!(f, "{count} vCPUs, but 1 to {} can be had", board::MAX_VCPUS),
            Self::Memory(range) => {
                write!(f, "RAM at {:#x}, but it starts at {:#x}", range.start, board::RAM_START)
            }
            Self::Initrd(range) => {
                write!(f, "initrd at {:#x} to {:#x} is not in RAM", range.start, range.end)
            }
            Self::Text(what) => write!(f, "{what}: zero in a text"),
            Self::Skeleton => write!(f, "damaged skeleton"),
        }
    }
}

impl GuestTree<'_> {
    /// Writes the tree to the start of `buffer`: its length in bytes.
    ///
    /// # Errors
    /// [`GuestTreeError`]; what the buffer holds then is of no use.
    pub fn write(&self, buffer: &mut [u8]) -> Result<usize, GuestTreeError> {
        self.check()?;
        let size = buffer.len().min(MAX_SIZE);
        let room = GuestTreeError::NoRoom(size);
        let buffer = buffer.get_mut(..size).ok_or(room)?;
        buffer.get_mut(..SKELETON.len()).ok_or(room)?.copy_from_slice(SKELETON);
        let fdt = FdtMut::from_slice(buffer).map_err(|_| GuestTreeError::Skeleton)?;
        let mut editor = Editor { fdt, room };
        self.processors(&mut editor)?;
        self.controller(&mut editor)?;
        self.private_interrupts(&mut editor)?;
        editor.add("/memory@40000000", "reg", pair(self.memory.start, self.memory.size()))?;
        if !self.clock {
            editor.remove("/pl031@9010000")?;
        }
        self.chosen(&mut editor)?;
        editor.fdt.compact();
        Ok(editor.fdt.as_read_only().data().len())
    }

    fn check(&self) -> Result<(), GuestTreeError> {
        if self.vcpus == 0 || self.vcpus > board::MAX_VCPUS {
            return Err(GuestTreeError::Vcpus(self.vcpus));
        }
        if self.memory.start != board::RAM_START || self.memory.end <= self.memory.start {
            return Err(GuestTreeError::Memory(self.memory));
        }
        if let Some(initrd) = self.initrd
            && !(self.memory.start <= initrd.start
                && initrd.start < initrd.end
                && initrd.end <= self.memory.end)
        {
            return Err(GuestTreeError::Initrd(initrd));
        }
        for (what, text) in [
            ("command line", self.command_line),
            ("stdout", self.stdout.unwrap_or("")),
            ("CPU", self.cpu_compatible),
        ] {
            if text.contains('\0') {
                return Err(GuestTreeError::Text(what));
            }
        }
        Ok(())
    }

    fn processors(&self, editor: &mut Editor<'_>) -> Result<(), GuestTreeError> {
        for (number, path) in PROCESSORS.iter().enumerate() {
            if number < self.vcpus {
                editor.add(path, "compatible", self.cpu_compatible)?;
            } else {
                editor.remove(path)?;
            }
        }
        Ok(())
    }

    fn controller(&self, editor: &mut Editor<'_>) -> Result<(), GuestTreeError> {
        let (name, second) = match self.controller {
            Controller::V2 => ("arm,cortex-a15-gic", board::CPU_INTERFACE),
            Controller::V3 => ("arm,gic-v3", board::REDISTRIBUTORS),
        };
        editor.add(CONTROLLER, "compatible", name)?;
        let [a, b, c, d] = pair(board::DISTRIBUTOR.start, board::DISTRIBUTOR.size);
        let [e, f, g, h] = pair(second.start, second.size);
        editor.add(CONTROLLER, "reg", [a, b, c, d, e, f, g, h])?;
        match self.controller {
            Controller::V2 => Ok(()),
            Controller::V3 => editor.add(CONTROLLER, "#redistributor-regions", 1_u32),
        }
    }

    /// Interrupts of which each vCPU has its own. In version 2's form of them the flags also say which CPUs those are.
    fn private_interrupts(&self, editor: &mut Editor<'_>) -> Result<(), GuestTreeError> {
        let flags = match self.controller {
            Controller::V2 => LEVEL | ((1 << self.vcpus) - 1) << 8,
            Controller::V3 => LEVEL,
        };
        let one = |interrupt: u32| [1, interrupt - 16, flags];
        let [a, b, c] = one(board::SECURE_TIMER_INTERRUPT);
        let [d, e, f] = one(board::PHYSICAL_TIMER_INTERRUPT);
        let [g, h, i] = one(board::VIRTUAL_TIMER_INTERRUPT);
        let [j, k, l] = one(board::HYPERVISOR_TIMER_INTERRUPT);
        editor.add("/timer", "interrupts", [a, b, c, d, e, f, g, h, i, j, k, l])?;
        if let Some(hertz) = self.timer_hertz {
            editor.add("/timer", "clock-frequency", hertz)?;
        }
        if self.monitors {
            editor.add("/pmu", "interrupts", one(board::MONITOR_INTERRUPT))?;
        } else {
            editor.remove("/pmu")?;
        }
        if let Some(window) = self.grant_window {
            editor.add("/hypervisor", "reg", pair(window.start, window.end.saturating_sub(window.start)))?;
            editor.add("/hypervisor", "interrupts", one(board::EVENT_INTERRUPT))
        } else {
            editor.remove("/hypervisor")
        }
    }

    fn chosen(&self, editor: &mut Editor<'_>) -> Result<(), GuestTreeError> {
        if !self.command_line.is_empty() {
            editor.add("/chosen", "bootargs", self.command_line)?;
        }
        if let Some(path) = self.stdout {
            editor.add("/chosen", "stdout-path", path)?;
        }
        if let Some(initrd) = self.initrd {
            editor.add("/chosen", "linux,initrd-start", initrd.start)?;
            editor.add("/chosen", "linux,initrd-end", initrd.end)?;
        }
        Ok(())
    }
}

/// Paths in the skeleton.
const CONTROLLER: &str = "/intc@8000000";
const PROCESSORS: [&str; board::MAX_VCPUS] = [
    "/cpus/cpu@0",
    "/cpus/cpu@1",
    "/cpus/cpu@2",
    "/cpus/cpu@3",
    "/cpus/cpu@4",
    "/cpus/cpu@5",
    "/cpus/cpu@6",
    "/cpus/cpu@7",
];

/// An interrupt's flags: level-triggered, active high (Linux binding `arm,gic`).
const LEVEL: u32 = 4;

/// An address and a size, two cells each.
const fn pair(start: u64, size: u64) -> [u32; 4] {
    [(start >> 32) as u32, start as u32, (size >> 32) as u32, size as u32]
}

/// The tree being completed.
struct Editor<'a> {
    fdt: FdtMut<SliceBuffer<'a>>,
    /// What is said when there is no more room.
    room: GuestTreeError,
}

impl Editor<'_> {
    /// Gives a node of the skeleton one more property.
    fn add(&mut self, path: &str, name: &str, value: impl ToPropertyValue) -> Result<(), GuestTreeError> {
        let mut node = self.fdt.find_node_mut(path).ok_or(GuestTreeError::Skeleton)?;
        node.add_property(name, value).map(drop).map_err(|_| self.room)
    }

    /// Takes a node of the skeleton out.
    fn remove(&mut self, path: &str) -> Result<(), GuestTreeError> {
        self.fdt.find_node_mut(path).ok_or(GuestTreeError::Skeleton)?.remove();
        Ok(())
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
