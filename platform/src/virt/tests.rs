//! The parsers against good, odd and damaged blobs.

use proptest::prelude::*;
use vm_fdt::FdtWriter;

use super::*;

/// Devices of a `virt` machine with `gic` as its interrupt controller node.
fn blob(gic: impl Fn(&mut FdtWriter) -> Result<(), vm_fdt::Error>) -> Vec<u8> {
    build(gic, &MODULES).expect("the writer accepts the tree")
}

/// A module's node: name, kind, `reg`, arguments.
type ModuleNode<'a> = (&'a str, &'a str, &'a [u64], &'a str);

const MODULES: [ModuleNode<'_>; 4] = [
    ("module@51000000", "multiboot,kernel", &[0x5100_0000, 0x1388], "domain=guest"),
    ("module@52000000", "multiboot,ramdisk", &[0x5200_0000, 0x1388], ""),
    ("module@50000000", "multiboot,kernel", &[0x5000_0000, 0x1388], "tour"),
    ("module@53000000", "multiboot,strange", &[0x5300_0000, 0x1388], ""),
];

fn build(
    gic: impl Fn(&mut FdtWriter) -> Result<(), vm_fdt::Error>,
    modules: &[ModuleNode<'_>],
) -> Result<Vec<u8>, vm_fdt::Error> {
    let reservation = vm_fdt::FdtReserveEntry::new(0x4800_0000, 0x1000).expect("a sane reservation");
    let mut fdt = FdtWriter::new_with_mem_reserv(&[reservation])?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;

    let memory = fdt.begin_node("memory@40000000")?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[0x4000_0000, 0x4000_0000, 0x8_0000_0000, 0x1_0000_0000])?;
    fdt.end_node(memory)?;

    let uart = fdt.begin_node("pl011@9000000")?;
    fdt.property_string_list("compatible", vec!["arm,pl011".into(), "arm,primecell".into()])?;
    fdt.property_array_u64("reg", &[0x0900_0000, 0x1000])?;
    fdt.property_array_u32("interrupts", &[0, 1, 4])?;
    fdt.end_node(uart)?;

    let node = fdt.begin_node("intc@8000000")?;
    gic(&mut fdt)?;
    fdt.end_node(node)?;

    let timer = fdt.begin_node("timer")?;
    fdt.property_string_list("compatible", vec!["arm,armv8-timer".into(), "arm,armv7-timer".into()])?;
    fdt.property_array_u32("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4])?;
    fdt.end_node(timer)?;

    firmware(&mut fdt)?;

    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", "dom0_mem=256M")?;
    fdt.property_string("stdout-path", "/pl011@9000000:115200n8")?;
    for &(name, kind, reg, arguments) in modules {
        let module = fdt.begin_node(name)?;
        fdt.property_string_list("compatible", vec!["multiboot,module".into(), kind.into()])?;
        fdt.property_array_u64("reg", reg)?;
        fdt.property_string("bootargs", arguments)?;
        fdt.end_node(module)?;
    }
    fdt.end_node(chosen)?;
    fdt.end_node(root)?;
    fdt.finish()
}

/// What firmware offers, the processors, and what it keeps for itself.
fn firmware(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let psci = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
    fdt.property_string("method", "smc")?;
    fdt.end_node(psci)?;

    let cpus = fdt.begin_node("cpus")?;
    for name in ["cpu@0", "cpu@1"] {
        let cpu = fdt.begin_node(name)?;
        fdt.property_string("device_type", "cpu")?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(cpus)?;

    let reserved = fdt.begin_node("reserved-memory")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    let firmware = fdt.begin_node("firmware@7f000000")?;
    fdt.property_array_u64("reg", &[0x7f00_0000, 0x10_0000])?;
    fdt.end_node(firmware)?;
    fdt.end_node(reserved)?;
    Ok(())
}

fn gic_v3(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_array_u64("reg", &[0x0800_0000, 0x1_0000, 0x080a_0000, 0xf6_0000])
}

fn gic_v2(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    fdt.property_string("compatible", "arm,cortex-a15-gic")?;
    fdt.property_array_u64("reg", &[0x0800_0000, 0x1_0000, 0x0801_0000, 0x1_0000])
}

fn range(start: u64, size: u64) -> Range {
    Range::new(start, size).expect("a sane range")
}

#[test]
fn a_good_tree_is_read_in_full() {
    let blob = blob(gic_v3);
    let tree = DeviceTree::new(&blob).expect("a good blob");
    let uart = tree.console().expect("a UART");
    assert_eq!(uart, Uart { registers: range(0x0900_0000, 0x1000), interrupt: Some(33) });

    let board = tree.board().expect("a good board");
    let memory: Vec<Range> = board.memory.iter().collect();
    assert_eq!(memory, [range(0x4000_0000, 0x4000_0000), range(0x8_0000_0000, 0x1_0000_0000)]);
    let reserved: Vec<Range> = board.reserved.iter().collect();
    assert_eq!(reserved, [range(0x4800_0000, 0x1000), range(0x7f00_0000, 0x10_0000)]);
    assert_eq!(
        board.gic,
        Gic::V3 { distributor: range(0x0800_0000, 0x1_0000), redistributors: range(0x080a_0000, 0xf6_0000) }
    );
    assert_eq!(board.timer_interrupt, 26);
    assert_eq!(tree.firmware(), Some(Conduit::Smc));
    assert_eq!(board.cpus, 2);
    assert_eq!(board.command_line, "dom0_mem=256M");
}

#[test]
fn modules_come_by_address_and_strange_ones_are_counted() {
    let blob = blob(gic_v3);
    let board = DeviceTree::new(&blob).expect("a good blob").board().expect("a good board");
    let modules: Vec<Module<'_>> = board.modules.iter().collect();
    assert_eq!(modules.len(), 3);
    assert_eq!(modules[0].content, Some(range(0x5000_0000, 0x1388)));
    assert_eq!((modules[0].kind, modules[0].arguments), (ModuleKind::Kernel, "tour"));
    assert_eq!((modules[1].kind, modules[1].arguments), (ModuleKind::Kernel, "domain=guest"));
    assert_eq!((modules[2].kind, modules[2].arguments), (ModuleKind::Ramdisk, ""));
    assert_eq!(board.modules.left_out(), 1);
}

#[test]
fn a_gic_v2_is_told_from_a_v3() {
    let blob = blob(gic_v2);
    let board = DeviceTree::new(&blob).expect("a good blob").board().expect("a good board");
    assert_eq!(
        board.gic,
        Gic::V2 { distributor: range(0x0800_0000, 0x1_0000), cpu_interface: range(0x0801_0000, 0x1_0000) }
    );
}

/// What becomes of a GIC with these `reg` values.
fn board_with_gic(compatible: &'static str, reg: &[u64; 4]) -> Result<Gic, DeviceTreeError> {
    let blob = blob(|fdt| {
        fdt.property_string("compatible", compatible)?;
        fdt.property_array_u64("reg", reg)
    });
    DeviceTree::new(&blob).expect("a good blob").board().map(|board| board.gic)
}

#[test]
fn register_blocks_smaller_than_what_the_driver_touches_are_refused() {
    use DeviceTreeError::TooSmall;
    let v3 = |distributor, redistributors| {
        board_with_gic("arm,gic-v3", &[0x0800_0000, distributor, 0x080a_0000, redistributors]).err()
    };
    assert_eq!(v3(0x1000, 0xf6_0000), Some(TooSmall("GIC v3 distributor", 0x1_0000)));
    assert_eq!(v3(0x1_0000, 0x1000), Some(TooSmall("GIC v3 redistributors", 0x2_0000)));
    assert_eq!(
        v3(0x1_0000, 0x2_0000),
        None,
        "room for the boot CPU's is enough, although there are two CPUs"
    );
    let v2 = |distributor, cpu_interface| {
        board_with_gic("arm,gic-400", &[0x0800_0000, distributor, 0x0801_0000, cpu_interface]).err()
    };
    assert_eq!(v2(0x800, 0x2000), Some(TooSmall("GIC v2 distributor", 0x1000)));
    assert_eq!(v2(0x1000, 0x1000), Some(TooSmall("GIC v2 CPU interface", 0x2000)));
    assert_eq!(v2(0x1000, 0x2000), None);
}

/// Modules as the parser lists them: place, whether there is content, arguments.
fn listed(modules: &[ModuleNode<'_>]) -> (Vec<(u64, bool, String)>, usize) {
    let blob = build(gic_v3, modules).expect("the writer accepts the tree");
    let board = DeviceTree::new(&blob).expect("a good blob").board().expect("a good board");
    let list = board.modules.iter();
    let list = list.map(|module| (module.place, module.content.is_some(), module.arguments.into()));
    (list.collect(), board.modules.left_out())
}

#[test]
fn a_module_that_cannot_be_read_keeps_its_place() {
    const KERNEL: &str = "multiboot,kernel";
    let (list, left_out) = listed(&[
        ("module@52000000", KERNEL, &[0x5200_0000, 0x1000], "domain=b"),
        ("module@51000000", KERNEL, &[0x5100_0000], "domain=a"),
        ("module@50000000", KERNEL, &[0x5000_0000, 0], "control"),
        ("module", KERNEL, &[], "nowhere"),
    ]);
    let places = [
        (0, false, "nowhere".into()),
        (0x5000_0000, false, "control".into()),
        (0x5100_0000, false, "domain=a".into()),
        (0x5200_0000, true, "domain=b".into()),
    ];
    assert_eq!((list.as_slice(), left_out), (places.as_slice(), 0));
}

#[test]
fn of_too_many_modules_the_last_are_left_out() {
    let names: Vec<String> = (0..20).map(|number| format!("module@{number}")).collect();
    let regs: Vec<[u64; 2]> = (0..20).map(|number| [0x5000_0000 - number * 0x1000, 0x1000]).collect();
    let nodes: Vec<ModuleNode<'_>> = names
        .iter()
        .zip(&regs)
        .map(|(name, reg)| (name.as_str(), "multiboot,kernel", reg.as_slice(), ""))
        .collect();
    let (list, left_out) = listed(&nodes);
    assert_eq!((list.len(), left_out), (16, 4));
    assert_eq!(list.first().map(|module| module.0), Some(0x5000_0000 - 19 * 0x1000));
}

#[test]
fn a_blob_says_how_long_it_is_before_it_is_read() {
    let blob = blob(gic_v3);
    let prefix = blob.get(..DeviceTree::SIZE_PREFIX).expect("a header");
    assert_eq!(DeviceTree::claimed_size(prefix), Ok(blob.len()));
    assert_eq!(DeviceTree::claimed_size(&prefix[..4]), Ok(0), "no room for a size");
    assert_eq!(DeviceTree::claimed_size(&[0; 8]), Err(DeviceTreeError::NoBlob));
}

#[test]
fn what_is_missing_is_named() {
    let blob = blob(|fdt| fdt.property_string("compatible", "arm,gic-v9"));
    let tree = DeviceTree::new(&blob).expect("a good blob");
    assert!(tree.console().is_some(), "the UART is known, so the complaint can be printed");
    assert_eq!(tree.board().err(), Some(DeviceTreeError::Missing("GIC (v2 or v3)")));
}

#[test]
fn no_blob_and_a_blob_too_large_are_told_apart() {
    assert_eq!(DeviceTree::new(&[]).err(), Some(DeviceTreeError::NoBlob));
    assert_eq!(DeviceTree::new(&[0; 64]).err(), Some(DeviceTreeError::NoBlob));
    let mut blob = blob(gic_v3);
    blob[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(DeviceTree::new(&blob).err(), Some(DeviceTreeError::TooLarge(u32::MAX as usize)));
    blob[4..8].copy_from_slice(&0x10_0000u32.to_be_bytes());
    assert_eq!(DeviceTree::new(&blob).err(), Some(DeviceTreeError::TooLarge(0x10_0000)));
}

#[test]
fn ranges_that_wrap_or_are_empty_are_refused() {
    assert_eq!(Range::new(u64::MAX, 2), None);
    assert_eq!(Range::new(0x1000, 0), None);
    assert_eq!(Range::new(1 << 52, 1), None);
}

/// Reads everything there is to read; what comes out doesn't matter, only that it ends.
fn read_all(blob: &[u8]) {
    let Ok(tree) = DeviceTree::new(blob) else { return };
    let _ = tree.console();
    if let Ok(board) = tree.board() {
        assert!(board.memory.iter().all(|range| range.start < range.end));
        assert!(
            board
                .modules
                .iter()
                .all(|module| module.content.is_none_or(|content| content.start < content.end))
        );
        assert!(board.modules.iter().is_sorted_by_key(|module| module.place));
        let room = match board.gic {
            Gic::V2 { distributor, cpu_interface } => {
                distributor.size() >= 0x1000 && cpu_interface.size() >= 0x2000
            }
            Gic::V3 { distributor, redistributors } => {
                distributor.size() >= 0x1_0000 && redistributors.size() >= 0x2_0000
            }
        };
        assert!(room, "{:?}", board.gic);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        read_all(&bytes);
    }

    #[test]
    fn no_damage_makes_the_parser_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut blob = blob(gic_v3);
        for (place, value) in damage {
            let place = place.index(blob.len());
            blob[place] = value;
        }
        if let Some(cut) = cut {
            blob.truncate(cut.index(blob.len()));
        }
        read_all(&blob);
    }

    #[test]
    fn no_damaged_word_makes_the_parser_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u32>(), 0u32..16, (u32::MAX - 16)..]), 1..4),
    ) {
        let mut blob = blob(gic_v3);
        for (place, value) in damage {
            let place = place.index(blob.len() / 4) * 4;
            blob[place..place + 4].copy_from_slice(&value.to_be_bytes());
        }
        read_all(&blob);
    }
}
