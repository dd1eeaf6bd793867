//! Makes the device tree of the board that a guest sees, with everything in it that is the same for each.
//!
//! The nodes, their names and what they say are those of QEMU's `virt` board. What depends on the guest (`src/emulated/tree.rs`) is filled
//! in when there is one, in place, and what it doesn't have is taken out.

use std::path::PathBuf;
use std::{env, fs};

use vm_fdt::{Error, FdtWriter};

#[allow(dead_code, unused_imports)]
#[path = "src/emulated/board.rs"]
mod board;

/// How other nodes name the interrupt controller and the clock.
const CONTROLLER: u32 = 0x8001;
const CLOCK: u32 = 0x8000;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/emulated/board.rs");
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names a folder"));
    let blob = skeleton().expect("the writer accepts the tree");
    fs::write(folder.join("board.dtb"), blob).expect("cargo's folder can be written to");
}

fn skeleton() -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_string("model", "linux,dummy-virt")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("interrupt-parent", CONTROLLER)?;
    firmware(&mut fdt)?;
    processors(&mut fdt)?;
    memory_and_controller(&mut fdt)?;
    devices(&mut fdt)?;
    empty(&mut fdt, "chosen")?;
    let hypervisor = fdt.begin_node("hypervisor")?;
    strings(&mut fdt, "compatible", &["xen,xen-4.17", "xen,xen"])?;
    fdt.end_node(hypervisor)?;
    fdt.end_node(root)?;
    fdt.finish()
}

fn firmware(fdt: &mut FdtWriter) -> Result<(), Error> {
    let psci = fdt.begin_node("psci")?;
    strings(fdt, "compatible", &["arm,psci-1.0", "arm,psci-0.2", "arm,psci"])?;
    fdt.property_string("method", "hvc")?;
    // Version 0.1 had no fixed numbers; since 0.2 these are the only ones (Arm DEN 0022).
    fdt.property_u32("cpu_suspend", 0xc400_0001)?;
    fdt.property_u32("cpu_off", 0x8400_0002)?;
    fdt.property_u32("cpu_on", 0xc400_0003)?;
    fdt.property_u32("migrate", 0xc400_0005)?;
    fdt.end_node(psci)
}

fn processors(fdt: &mut FdtWriter) -> Result<(), Error> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for number in 0..board::MAX_VCPUS {
        let cpu = fdt.begin_node(&format!("cpu@{number:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_u32("reg", number as u32)?;
        fdt.property_string("enable-method", "psci")?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)
}

fn memory_and_controller(fdt: &mut FdtWriter) -> Result<(), Error> {
    let memory = fdt.begin_node(&format!("memory@{:x}", board::RAM_START))?;
    fdt.property_string("device_type", "memory")?;
    fdt.end_node(memory)?;

    let controller = fdt.begin_node(&format!("intc@{:x}", board::DISTRIBUTOR.start))?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 0)?;
    fdt.property_phandle(CONTROLLER)?;
    fdt.end_node(controller)
}

fn devices(fdt: &mut FdtWriter) -> Result<(), Error> {
    let timer = fdt.begin_node("timer")?;
    strings(fdt, "compatible", &["arm,armv8-timer", "arm,armv7-timer"])?;
    fdt.property_null("always-on")?;
    fdt.end_node(timer)?;

    let monitors = fdt.begin_node("pmu")?;
    fdt.property_string("compatible", "arm,armv8-pmuv3")?;
    fdt.end_node(monitors)?;

    let clock = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", board::PERIPHERAL_HERTZ)?;
    fdt.property_string("clock-output-names", "clk24mhz")?;
    fdt.property_phandle(CLOCK)?;
    fdt.end_node(clock)?;

    peripheral(fdt, "pl011", board::UART, board::UART_INTERRUPT, &["uartclk", "apb_pclk"])?;
    peripheral(fdt, "pl031", board::CLOCK, board::CLOCK_INTERRUPT, &["apb_pclk"])
}

/// A device of Arm's own, by its name and place, with a level-triggered shared interrupt; all its clocks are the one that there is.
fn peripheral(
    fdt: &mut FdtWriter,
    name: &str,
    place: board::Place,
    interrupt: u32,
    clocks: &[&str],
) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("{name}@{:x}", place.start))?;
    strings(fdt, "compatible", &[&format!("arm,{name}"), "arm,primecell"])?;
    fdt.property_array_u64("reg", &[place.start, place.size])?;
    fdt.property_array_u32("interrupts", &[0, interrupt - 32, 4])?;
    fdt.property_array_u32("clocks", &vec![CLOCK; clocks.len()])?;
    strings(fdt, "clock-names", clocks)?;
    fdt.end_node(node)
}

fn empty(fdt: &mut FdtWriter, name: &str) -> Result<(), Error> {
    let node = fdt.begin_node(name)?;
    fdt.end_node(node)
}

fn strings(fdt: &mut FdtWriter, name: &str, values: &[&str]) -> Result<(), Error> {
    fdt.property_string_list(name, values.iter().map(ToString::to_string).collect())
}
