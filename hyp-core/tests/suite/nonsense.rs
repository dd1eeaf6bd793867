//! Nonsense, of every sort that a guest or a boot loader can produce. Nothing may panic (arithmetic is checked in this build),
//! and the books stay right.

use crate::common::observe;
use crate::common::{self, Rig, SELF, leaf, place, table};
use hyp_core::address::{DomainId, GuestVirtual, PAGE_SIZE};
use hyp_core::domain::Life;
use hyp_core::domain::builder::Plan;
use hyp_core::fake::{self, kernel};
use hyp_core::{BootInformation, Hypervisor, Module, ModuleKind};
use penumbra_abi::{hypercall as number, memory, mmu, sched};
use proptest::prelude::*;
use std::cell::RefCell;

thread_local! {
    /// One machine serves all cases that go well: nonsense isn't supposed to change much.
    static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
    static EMPTY: RefCell<Option<&'static Hypervisor<fake::Fake>>> = const { RefCell::new(None) };
}

/// A word that means something now and then.
fn word() -> impl Strategy<Value = u64> {
    let scratch = common::address(common::SCRATCH);
    prop_oneof![
        3 => 0u64..10,
        1 => any::<u64>(),
        4 => (0u64..0x3000).prop_map(move |offset| scratch + offset),
        2 => 0u64..1 << 24,
        1 => Just(SELF),
        1 => Just(SELF | 2 << 16),
        2 => fake::FIRST_FRAME..fake::FIRST_FRAME + 5000,
        2 => (fake::FIRST_FRAME..fake::FIRST_FRAME + 5000, 0u64..512).prop_map(|(mfn, at)| mfn << 12 | at << 3),
        2 => (fake::FIRST_FRAME..fake::FIRST_FRAME + 5000, any::<bool>())
            .prop_map(|(mfn, writable)| leaf(common::frame(mfn), writable)),
        1 => (fake::FIRST_FRAME..fake::FIRST_FRAME + 5000).prop_map(|mfn| table(common::frame(mfn))),
        1 => (0u64..20).prop_map(|back| u64::MAX - back),
        1 => Just(1 << 31 | 3),
        1 => (0u32..64).prop_map(|bit| 1 << bit),
        1 => Just(0x15 << 32 | 6),
        1 => Just(0x15 << 32 | 1),
        1 => Just(0x15 << 32 | 5),
    ]
}

fn any_number() -> impl Strategy<Value = u64> {
    let known = vec![
        number::MMU_UPDATE,
        number::MMUEXT_OP,
        number::UPDATE_VA_MAPPING,
        number::UPDATE_VA_MAPPING_OTHERDOMAIN,
        number::MULTICALL,
        number::MEMORY_OP,
        number::CONSOLE_IO,
        number::SCHED_OP,
        number::XEN_VERSION,
        number::DOMCTL,
        number::SYSCTL,
        number::PENUMBRA,
    ];
    prop_oneof![12 => prop::sample::select(known), 1 => 0u64..64, 1 => any::<u64>()]
}

/// The control domain's own end stops the machine, which the fake one can't do gracefully; and a guest that has ended would make
/// the rest of the cases dull.
fn ends_the_machine(number: u64, arguments: &[u64; 6], memory: &[u64]) -> bool {
    let shutdown = |number, operation| number == number::SCHED_OP && operation == sched::SCHEDOP_SHUTDOWN;
    let in_memory = memory.windows(3).any(|call| shutdown(call[0], call[2]));
    let destroy = number == number::DOMCTL || memory.contains(&number::DOMCTL);
    shutdown(number, arguments[0])
        || (number == number::MULTICALL && in_memory)
        || (destroy && memory.iter().any(|word| *word as u32 == penumbra_abi::domctl::DESTROYDOMAIN))
}

/// One call, in at most so many pieces: a guest may abandon what was preempted.
fn call(rig: &Rig, who: usize, number: u64, mut arguments: [u64; 6]) {
    for _ in 0..20 {
        match rig.call_once(who, number, arguments) {
            Ok(_) => return,
            Err(again) => arguments = again,
        }
    }
}

/// Whether both domains still live, and have the memory for arguments: now and then, nonsense hits just that.
fn usable(rig: &Rig) -> bool {
    (0..2).all(|who| {
        rig.hv.machine().set_root(rig.domains[who].root);
        let pages = (0..4).map(|page| GuestVirtual::new(common::address(common::SCRATCH + page)));
        let mut mapped = pages.map(|page| rig.hv.machine().translate(page, true));
        rig.domains[who].domain.life() == Life::Alive && mapped.all(|frame| frame.is_some())
    })
}

fn with_rig(test: impl FnOnce(&Rig)) {
    let rig = RIG.with(RefCell::take).filter(usable).unwrap_or_else(|| Rig::new(1));
    test(&rig);
    let report = rig.hv.audit();
    assert_eq!(report.findings, 0, "{report}");
    observe::observe(rig.hv).problem().expect("the observer");
    RIG.with(|slot| slot.replace(Some(rig)));
}

/// Structures that could be right, with fields that are not.
fn structure() -> impl Strategy<Value = (u64, [u64; 6], Vec<u64>)> {
    let scratch = common::address(common::SCRATCH);
    let batch = |number: u64| {
        (prop::collection::vec(word(), 0..24), 0u64..12, prop_oneof![Just(0), word()], word()).prop_map(
            move |(memory, count, done, foreign)| (number, [scratch, count, done, foreign, 0, 0], memory),
        )
    };
    let extended =
        (prop::collection::vec((0u64..24, word(), word()), 1..6), prop_oneof![3 => Just(SELF), 1 => word()])
            .prop_map(move |(operations, foreign)| {
                let count = operations.len() as u64;
                let memory = operations.into_iter().flat_map(|(command, a, b)| [command, a, b]).collect();
                (number::MMUEXT_OP, [scratch, count, 0, foreign, 0, 0], memory)
            });
    let reservation =
        (0u64..16, word(), word(), any::<u64>(), 0u64..8, prop_oneof![Just(SELF), 0u64..3, any::<u64>()])
            .prop_map(move |(operation, start, extents, order, from, domain)| {
                let order = if order % 4 == 0 { order } else { 0 };
                let operation = operation | from << memory::MEMORY_OP_EXTENT_SHIFT;
                (number::MEMORY_OP, [operation, scratch, 0, 0, 0, 0], vec![start, extents, order, domain])
            });
    let multicall = (
        prop::collection::vec((any_number(), prop::array::uniform6(word())), 1..5),
        0u64..8,
        prop::collection::vec(word(), 0..8),
    )
        .prop_map(move |(calls, count, rest)| {
            let mut memory: Vec<u64> = Vec::new();
            for (number, arguments) in calls {
                memory.extend([number, 0]);
                memory.extend(arguments);
            }
            memory.extend(rest);
            (number::MULTICALL, [scratch, count, 0, 0, 0, 0], memory)
        });
    let control = (
        prop::sample::select(vec![number::DOMCTL, number::SYSCTL]),
        0u64..8,
        prop::collection::vec(word(), 0..8),
    )
        .prop_map(move |(number, command, body)| {
            let mut memory = vec![0x15 << 32 | command];
            memory.extend(body);
            (number, [scratch, 0, 0, 0, 0, 0], memory)
        });
    prop_oneof![3 => batch(number::MMU_UPDATE), 3 => extended, 2 => reservation, 3 => multicall, 2 => control]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_hypercall_with_any_arguments_is_survived(
        who in 0usize..2,
        number in any_number(),
        arguments in prop::array::uniform6(word()),
        memory in prop::collection::vec(word(), 0..40),
    ) {
        prop_assume!(!ends_the_machine(number, &arguments, &memory));
        with_rig(|rig| {
            rig.give(who, 0, zerocopy::IntoBytes::as_bytes(&memory[..]));
            call(rig, who, number, arguments);
        });
    }

    #[test]
    fn half_valid_structures_are_survived(who in 0usize..2, (number, arguments, memory) in structure()) {
        prop_assume!(!ends_the_machine(number, &arguments, &memory));
        with_rig(|rig| {
            rig.give(who, 0, zerocopy::IntoBytes::as_bytes(&memory[..]));
            call(rig, who, number, arguments);
        });
    }
}

/// Builds from a file, whatever it is; then everything that was built dies, and all memory is back.
fn boot(content: &[u8], command_line: &str, arguments: &str, further: &str, ramdisk: &[u8]) {
    let hv = EMPTY.with(RefCell::take).unwrap_or_else(|| fake::hypervisor(common::MACHINE));
    let free = hv.frames().free_frames();
    let good = kernel::image(PAGE_SIZE);
    let module = |content, arguments, kind| Module { content, arguments, kind };
    let modules = [
        module(content, arguments, ModuleKind::Kernel),
        module(ramdisk, further, ModuleKind::Ramdisk),
        module(content, further, ModuleKind::Kernel),
        module(&good, further, ModuleKind::Kernel),
    ];
    let _ = hv.start_domains(&BootInformation { command_line, modules: &modules });
    let plan = Plan { kernel: content, ramdisk, arguments, pages: kernel::MINIMUM_FRAMES, control: false };
    let _ = hv.build_domain(&plan);
    let report = hv.audit();
    assert_eq!(report.findings, 0, "{report}");
    observe::observe(hv).problem().expect("the observer");
    for number in 0..8 {
        let Some(domain) = hv.domain(DomainId::new(number)) else { continue };
        let vcpu = &domain.vcpus[0];
        let _ =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| hv.kill(vcpu, format_args!("the end"))));
    }
    while hv.background() {}
    for number in 0..8 {
        assert_eq!(hv.domain(DomainId::new(number)).map(|domain| domain.life()), None::<Life>);
    }
    assert_eq!(hv.frames().free_frames(), free, "memory is lost");
    let report = hv.audit();
    assert_eq!(report.findings, 0, "{report}");
    EMPTY.with(|slot| slot.replace(Some(hv)));
}

/// Keeps the one panic that is meant (the machine is switched off) out of the output.
fn quiet() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        if !text.contains("switched off") {
            eprintln!("{text}");
        }
    }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_kernel_with_changed_bytes_is_survived(
        changes in prop::collection::vec(
            (0usize..260, prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x80)]), 1..6),
        cut in prop_oneof![2 => Just(usize::MAX), 1 => 0usize..300, 1 => 200usize..4096],
        words in prop::collection::vec((0usize..32, word()), 0..2),
    ) {
        quiet();
        let mut file = kernel::image(PAGE_SIZE);
        for (at, byte) in changes {
            if let Some(slot) = file.get_mut(at) { *slot = byte; }
        }
        for (at, value) in words {
            if let Some(slot) = file.get_mut(8 * at..8 * at + 8) { slot.copy_from_slice(&value.to_le_bytes()); }
        }
        file.truncate(cut);
        boot(&file, "dom0_mem=4M", "", "domain=x memory=4M", b"");
    }

    #[test]
    fn any_bytes_for_a_kernel_are_survived(file in prop::collection::vec(any::<u8>(), 0..600)) {
        quiet();
        boot(&file, "", "", "domain=x memory=4M", b"");
        let mut named = b"\x7fELF\x02\x01\x01".to_vec();
        named.extend(file);
        boot(&named, "", "", "domain=x memory=4M", b"");
    }

    #[test]
    fn any_command_line_and_arguments_are_survived(
        line in "(dom0_mem=[0-9a-zA-Z,:]{0,12}|[ -~]{0,20}| |\\PC{0,8}){0,4}",
        arguments in "\\PC{0,1200}",
        further in "(domain=\\PC{0,5} | memory=[0-9KMGTx]{0,9} |\\PC{0,5}){0,4}",
        ramdisk in prop::collection::vec(any::<u8>(), 0..9000),
    ) {
        quiet();
        boot(&kernel::image(PAGE_SIZE), &line, &arguments, &further, &ramdisk);
    }
}

#[test]
fn keys_on_the_console_are_survived() {
    let rig = Rig::new(1);
    for _ in 0..3 {
        rig.hv.console_input(1);
    }
    for key in (0..=255u8).filter(|key| *key != b'r') {
        rig.hv.console_input(key);
    }
    rig.check();
}

#[test]
fn a_batch_at_the_end_of_the_address_space_does_not_wrap_around() {
    let rig = Rig::new(1);
    let (one, index) = rig.builder_entry(1, common::POOL);
    let before = rig.entry(one, index);
    let update = mmu::MmuUpdate { pointer: place(one, index), value: 0 };
    rig.give(1, 0, zerocopy::IntoBytes::as_bytes(&update));
    for start in [u64::MAX - 7, u64::MAX - 15, (1 << 24) - 8, 0u64.wrapping_sub(16)] {
        for number in [number::MMU_UPDATE, number::MMUEXT_OP, number::MULTICALL] {
            let done = rig.call(1, number, [start, 3, 0, SELF, 0, 0]);
            assert_eq!(done, Err(penumbra_abi::errno::Errno::EFAULT), "{number} at {start:#x}");
        }
    }
    assert_eq!(rig.entry(one, index), before);
    rig.check();
}
