//! Where the few devices are that a hypervisor drives by itself, and how firmware is called.

use dtoolkit::Node;
use dtoolkit::fdt::FdtNode;
use dtoolkit::standard::NodeStandard;

use super::memory::Range;
use super::tree::{DeviceTree, DeviceTreeError, interrupt, reg, text};

/// A PL011 UART.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uart {
    /// Its registers.
    pub registers: Range,
    /// INTID of its interrupt.
    pub interrupt: Option<u32>,
}

/// An interrupt controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gic {
    /// GICv2: everything through memory.
    V2 {
        /// The distributor's registers.
        distributor: Range,
        /// The CPU interface's registers.
        cpu_interface: Range,
    },
    /// GICv3 and v4: the CPU interface is in system registers.
    V3 {
        /// The distributor's registers.
        distributor: Range,
        /// The first region of redistributors.
        redistributors: Range,
    },
}

/// The instruction by which firmware is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// `smc`
    Smc,
    /// `hvc`: there is a hypervisor above us.
    Hvc,
}

const PL011: [&str; 2] = ["arm,pl011", "arm,sbsa-uart"];

/// See [`DeviceTree::console`].
pub(super) fn console(tree: &DeviceTree<'_>) -> Option<Uart> {
    let chosen = tree.find("/chosen").and_then(|chosen| text(&chosen, "stdout-path"));
    let named = chosen.and_then(|path| tree.find(resolve(tree, path)));
    named
        .filter(|node| PL011.iter().any(|name| node.is_compatible(name)))
        .or_else(|| tree.compatible(&PL011))
        .and_then(|node| {
            let registers = registers(reg(&node, 0))?;
            Some(Uart { registers, interrupt: interrupt(&node, 0) })
        })
}

/// A node's path from what stands in `stdout-path`: options after a colon are dropped, an alias is looked up.
fn resolve<'a>(tree: &DeviceTree<'a>, stdout: &'a str) -> &'a str {
    let path = stdout.split(':').next().unwrap_or("");
    if path.starts_with('/') {
        return path;
    }
    tree.find("/aliases").and_then(|aliases| text(&aliases, path)).unwrap_or(path)
}

/// Bytes of a GICv3's distributor (Arm IHI 0069, 12.8).
const DISTRIBUTOR_V3: u64 = 0x1_0000;
/// Bytes of one GICv3 redistributor: its control frame and its SGI frame (IHI 0069, 12.10). The driver uses no more of
/// them than the boot CPU's, and no more of a GICv4's than these two frames.
const REDISTRIBUTOR: u64 = 0x2_0000;
/// Bytes of a GICv2's distributor (IHI 0048, 4.1.2).
const DISTRIBUTOR_V2: u64 = 0x1000;
/// Bytes of a GICv2's CPU interface, `GICC_DIR` included (IHI 0048, 4.1.3).
const CPU_INTERFACE: u64 = 0x2000;

/// The GIC that the device tree names.
pub(super) fn gic(tree: &DeviceTree<'_>) -> Result<Gic, DeviceTreeError> {
    if let Some(node) = tree.compatible(&["arm,gic-v3"]) {
        let distributor = block(&node, 0, "GIC v3 distributor", DISTRIBUTOR_V3)?;
        let redistributors = block(&node, 1, "GIC v3 redistributors", REDISTRIBUTOR)?;
        return Ok(Gic::V3 { distributor, redistributors });
    }
    let node = tree.compatible(&["arm,cortex-a15-gic", "arm,gic-400", "arm,cortex-a7-gic"]);
    let node = node.ok_or(DeviceTreeError::Missing("GIC (v2 or v3)"))?;
    let distributor = block(&node, 0, "GIC v2 distributor", DISTRIBUTOR_V2)?;
    let cpu_interface = block(&node, 1, "GIC v2 CPU interface", CPU_INTERFACE)?;
    Ok(Gic::V2 { distributor, cpu_interface })
}

/// The `index`-th register block of a device whose driver touches `needed` bytes of it: if the tree gave it less, the driver
/// would leave what is mapped.
fn block(
    node: &FdtNode<'_>,
    index: usize,
    what: &'static str,
    needed: u64,
) -> Result<Range, DeviceTreeError> {
    let range = registers(reg(node, index)).ok_or(DeviceTreeError::Missing(what))?;
    if range.size() < needed { Err(DeviceTreeError::TooSmall(what, needed)) } else { Ok(range) }
}

/// A device's registers: page-aligned, as everything must be that gets a mapping of its own. Mappings are whole pages, so a
/// PL011, whose registers are one page at most, needs no minimum (some boards' trees give theirs 512 bytes).
fn registers(reg: Option<(u64, u64)>) -> Option<Range> {
    let (start, size) = reg?;
    Range::new(start, size).filter(|range| range.start % 4096 == 0 && range.size() <= 1 << 30)
}

/// INTID of the hypervisor's physical timer: the fourth of the timer node's interrupts (Linux binding `arm,arch_timer`).
pub(super) fn hypervisor_timer(tree: &DeviceTree<'_>) -> Option<u32> {
    interrupt(&tree.compatible(&["arm,armv8-timer"])?, 3)
}

/// PSCI's conduit.
pub(super) fn firmware(tree: &DeviceTree<'_>) -> Option<Conduit> {
    match text(&tree.compatible(&["arm,psci-1.0", "arm,psci-0.2"])?, "method")? {
        "smc" => Some(Conduit::Smc),
        "hvc" => Some(Conduit::Hvc),
        _ => None,
    }
}

/// The number of CPU nodes.
pub(super) fn cpus(tree: &DeviceTree<'_>) -> usize {
    let is_cpu = |node: &FdtNode<'_>| text(node, "device_type") == Some("cpu");
    tree.find("/cpus").map_or(0, |cpus| cpus.children().filter(is_cpu).count()).max(1)
}
