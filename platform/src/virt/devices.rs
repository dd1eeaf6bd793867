//! Where the few devices are that a hypervisor drives by itself, and how firmware is called.

use dtoolkit::Node;
use dtoolkit::standard::NodeStandard;

use super::memory::Range;
use super::tree::{DeviceTree, interrupt, reg, text};

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

/// The GIC that the device tree names.
pub(super) fn gic(tree: &DeviceTree<'_>) -> Option<Gic> {
    if let Some(node) = tree.compatible(&["arm,gic-v3"]) {
        let (distributor, redistributors) = (registers(reg(&node, 0))?, registers(reg(&node, 1))?);
        return Some(Gic::V3 { distributor, redistributors });
    }
    let node = tree.compatible(&["arm,cortex-a15-gic", "arm,gic-400", "arm,cortex-a7-gic"])?;
    let (distributor, cpu_interface) = (registers(reg(&node, 0))?, registers(reg(&node, 1))?);
    Some(Gic::V2 { distributor, cpu_interface })
}

/// A device's registers: page-aligned, as everything must be that gets a mapping of its own.
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
    let is_cpu = |node: &dtoolkit::fdt::FdtNode<'_>| text(node, "device_type") == Some("cpu");
    tree.find("/cpus").map_or(0, |cpus| cpus.children().filter(is_cpu).count()).max(1)
}
