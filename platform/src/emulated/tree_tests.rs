//! What guests read in their device trees.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};
use proptest::prelude::*;

use super::*;
use crate::virt::{Conduit, DeviceTree, Gic};

fn range(start: u64, size: u64) -> Range {
    Range::new(start, size).expect("a sane range")
}

fn guest(controller: Controller) -> GuestTree<'static> {
    GuestTree {
        command_line: "console=ttyAMA0 rdinit=/init",
        initrd: Some(range(0x4800_0000, 0x12_3456)),
        memory: range(0x4000_0000, 0x2000_0000),
        vcpus: 2,
        controller,
        grant_window: None,
        stdout: Some("/pl011@9000000"),
        timer_hertz: None,
        clock: true,
        monitors: true,
        cpu_compatible: "arm,cortex-a72",
    }
}

fn written(guest: &GuestTree<'_>) -> Vec<u8> {
    let mut buffer = vec![0xff; MAX_SIZE];
    let size = guest.write(&mut buffer).expect("there is room");
    buffer.truncate(size);
    buffer
}

fn cells(node: &FdtNode<'_>, name: &str) -> Vec<u32> {
    let property = node.property(name).unwrap_or_else(|| panic!("no {name} in {}", node.name()));
    property.value().as_chunks::<4>().0.iter().map(|bytes| u32::from_be_bytes(*bytes)).collect()
}

fn texts(node: &FdtNode<'_>, name: &str) -> Vec<String> {
    let property = node.property(name).unwrap_or_else(|| panic!("no {name} in {}", node.name()));
    let text = std::str::from_utf8(property.value()).expect("a text");
    text.split_terminator('\0').map(String::from).collect()
}

/// What the hypervisor's own parser finds in it.
fn agrees(guest: &GuestTree<'_>, blob: &[u8]) {
    let tree = DeviceTree::new(blob).expect("a sound tree");
    let board = tree.board().expect("a board");
    assert_eq!(tree.size(), blob.len());
    assert_eq!(board.memory.iter().collect::<Vec<_>>(), [guest.memory]);
    assert!(board.reserved.is_empty());
    assert_eq!(board.cpus, guest.vcpus);
    assert_eq!(board.command_line, guest.command_line);
    assert_eq!(board.timer_interrupt, 26);
    assert_eq!(board.modules.iter().count(), 0);
    let distributor = range(0x0800_0000, 0x1_0000);
    let expected = match guest.controller {
        Controller::V2 => Gic::V2 { distributor, cpu_interface: range(0x0801_0000, 0x1_0000) },
        Controller::V3 => Gic::V3 { distributor, redistributors: range(0x080a_0000, 0xf6_0000) },
    };
    assert_eq!(board.gic, expected);
    assert_eq!(tree.firmware(), Some(Conduit::Hvc));
    let uart = tree.console().expect("a UART");
    assert_eq!((uart.registers, uart.interrupt), (range(0x0900_0000, 0x1000), Some(33)));
}

#[test]
fn our_own_parser_finds_the_board_in_it() {
    for controller in [Controller::V2, Controller::V3] {
        let guest = guest(controller);
        agrees(&guest, &written(&guest));
    }
}

#[test]
fn every_vcpu_has_a_node_and_a_bit() {
    let mut length = 0;
    for vcpus in 1..=board::MAX_VCPUS {
        let guest = GuestTree { vcpus, ..guest(Controller::V2) };
        let blob = written(&guest);
        assert!(length + 80 < blob.len(), "a node that isn't there takes no room");
        length = blob.len();
        let tree = Fdt::new(&blob).expect("a sound tree");
        let cpus: Vec<_> = tree.find_node("/cpus").expect("CPUs").children().collect();
        assert_eq!(cpus.len(), vcpus);
        for (number, cpu) in cpus.iter().enumerate() {
            assert_eq!(cpu.name(), format!("cpu@{number}"));
            assert_eq!(cells(cpu, "reg"), [number as u32]);
            assert_eq!(texts(cpu, "enable-method"), ["psci"]);
            assert_eq!(texts(cpu, "compatible"), ["arm,cortex-a72"]);
        }
        let flags = ((1_u32 << vcpus) - 1) << 8 | 4;
        let timer = cells(&tree.find_node("/timer").expect("a timer"), "interrupts");
        assert_eq!(timer, [1, 13, flags, 1, 14, flags, 1, 11, flags, 1, 10, flags]);
    }
}

#[test]
fn devices_are_where_the_board_has_them() {
    let blob = written(&guest(Controller::V3));
    let tree = Fdt::new(&blob).expect("a sound tree");
    let node = |path| tree.find_node(path).unwrap_or_else(|| panic!("no {path}"));
    let controller = node("/intc@8000000");
    let handle = cells(&controller, "phandle");
    assert_eq!(cells(&tree.root(), "interrupt-parent"), handle);
    assert_eq!(cells(&controller, "#interrupt-cells"), [3]);
    assert_eq!(cells(&controller, "#redistributor-regions"), [1]);
    let clock = cells(&node("/apb-pclk"), "phandle");
    for (path, name, interrupt, clocks) in
        [("/pl011@9000000", "arm,pl011", 1, 2), ("/pl031@9010000", "arm,pl031", 2, 1)]
    {
        assert_eq!(texts(&node(path), "compatible"), [name, "arm,primecell"]);
        assert_eq!(cells(&node(path), "interrupts"), [0, interrupt, 4]);
        assert_eq!(cells(&node(path), "clocks"), clock.repeat(clocks));
        assert_eq!(texts(&node(path), "clock-names").len(), clocks);
    }
    assert_eq!(cells(&node("/apb-pclk"), "clock-frequency"), [24_000_000]);
    assert_eq!(cells(&node("/pl031@9010000"), "reg"), [0, 0x0901_0000, 0, 0x1000]);
    assert_eq!(cells(&node("/pmu"), "interrupts"), [1, 7, 4]);
    assert!(node("/timer").property("always-on").is_some());
    assert!(node("/timer").property("clock-frequency").is_none());
    assert_eq!(texts(&node("/psci"), "compatible"), ["arm,psci-1.0", "arm,psci-0.2", "arm,psci"]);
    assert_eq!(cells(&node("/psci"), "cpu_on"), [0xc400_0003]);
}

#[test]
fn what_the_domain_does_not_have_is_not_there() {
    let full = GuestTree {
        grant_window: Some(range(0x3800_0000, 0x20_0000)),
        timer_hertz: Some(62_500_000),
        ..guest(Controller::V3)
    };
    let bare = GuestTree {
        command_line: "",
        initrd: None,
        stdout: None,
        clock: false,
        monitors: false,
        ..guest(Controller::V3)
    };
    let (full, bare) = (written(&full), written(&bare));
    let (full, bare) = (Fdt::new(&full).expect("sound"), Fdt::new(&bare).expect("sound"));
    for path in ["/pl031@9010000", "/pmu", "/hypervisor"] {
        assert!(full.find_node(path).is_some() && bare.find_node(path).is_none(), "{path}");
    }
    assert_eq!(bare.find_node("/chosen").expect("empty, but there").properties().count(), 0);
    let chosen = full.find_node("/chosen").expect("there");
    assert_eq!(cells(&chosen, "linux,initrd-start"), [0, 0x4800_0000]);
    assert_eq!(cells(&chosen, "linux,initrd-end"), [0, 0x4812_3456]);
    assert_eq!(texts(&chosen, "stdout-path"), ["/pl011@9000000"]);
    let hypervisor = full.find_node("/hypervisor").expect("there");
    assert_eq!(texts(&hypervisor, "compatible"), ["xen,xen-4.17", "xen,xen"]);
    assert_eq!(cells(&hypervisor, "reg"), [0, 0x3800_0000, 0, 0x20_0000]);
    assert_eq!(cells(&hypervisor, "interrupts"), [1, 15, 4]);
    let timer = full.find_node("/timer").expect("there");
    assert_eq!(cells(&timer, "clock-frequency"), [62_500_000]);
}

#[test]
fn nonsense_is_refused_in_words() {
    let good = guest(Controller::V3);
    let refused = |guest: GuestTree<'_>| guest.write(&mut [0; MAX_SIZE]).expect_err("nonsense").to_string();
    let cases = [
        (GuestTree { vcpus: 0, ..good }, "0 vCPUs, but 1 to 8 can be had"),
        (GuestTree { vcpus: 9, ..good }, "9 vCPUs, but 1 to 8 can be had"),
        (
            GuestTree { memory: range(0x8000_0000, 1), ..good },
            "RAM at 0x80000000, but it starts at 0x40000000",
        ),
        (
            GuestTree { initrd: Some(range(0x5fff_f000, 0x1001)), ..good },
            "initrd at 0x5ffff000 to 0x60000001 is not in RAM",
        ),
        (GuestTree { command_line: "a\0b", ..good }, "command line: zero in a text"),
        (GuestTree { stdout: Some("\0"), ..good }, "stdout: zero in a text"),
        (GuestTree { cpu_compatible: "\0", ..good }, "CPU: zero in a text"),
    ];
    for (guest, words) in cases {
        assert_eq!(refused(guest), format!("guest's device tree: {words}"));
    }
}

#[test]
fn every_buffer_that_is_too_small_is_refused() {
    let guest = guest(Controller::V3);
    let full = written(&guest);
    // Compacting gives some of it back: less than that is never enough, and what is enough is the same tree.
    for size in (0..full.len() + 2048).rev().step_by(4) {
        let mut buffer = vec![0; size];
        match guest.write(&mut buffer) {
            Ok(length) => assert_eq!(buffer.get(..length), Some(&*full)),
            Err(error) => assert_eq!(error, GuestTreeError::NoRoom(size)),
        }
        assert!(size >= full.len() || guest.write(&mut buffer).is_err());
    }
    let long = "x".repeat(MAX_SIZE);
    let guest = GuestTree { command_line: &long, ..guest };
    assert_eq!(guest.write(&mut vec![0; 2 * MAX_SIZE]), Err(GuestTreeError::NoRoom(MAX_SIZE)));
}

proptest! {
    #[test]
    fn any_guest_is_described_or_refused(
        command_line in ".{0,300}",
        stdout in proptest::option::of(".{0,30}"),
        cpu_compatible in ".{0,30}",
        initrd in proptest::option::of((0_u64..1 << 36, 0_u64..1 << 36)),
        pages in 1_u64..1 << 24,
        vcpus in 0_usize..10,
        (v2, clock, monitors) in any::<(bool, bool, bool)>(),
        window in proptest::option::of(any::<(u64, u64)>()),
        timer_hertz in any::<Option<u32>>(),
        size in 0_usize..8192,
    ) {
        let guest = GuestTree {
            command_line: &command_line,
            initrd: initrd.map(|(start, end)| Range { start: 0x4000_0000 + start, end: 0x4000_0000 + end }),
            memory: range(0x4000_0000, pages * 4096),
            vcpus,
            controller: if v2 { Controller::V2 } else { Controller::V3 },
            grant_window: window.map(|(start, end)| Range { start, end }),
            stdout: stdout.as_deref(),
            timer_hertz,
            clock,
            monitors,
            cpu_compatible: &cpu_compatible,
        };
        let mut buffer = vec![0; size];
        if let Ok(length) = guest.write(&mut buffer) {
            agrees(&guest, &buffer[..length]);
        }
    }
}
