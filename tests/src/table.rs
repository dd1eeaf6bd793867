//! The tests.
//!
//! Each function is one chapter of what must work; most of it is the same on both machines.

use crate::case::{Board, Case, End, File, Hypervisor};
use crate::{aarch64, bad_input, console, debian, oracle, own_fault, packed, soak, stacks, stretch, verdict};

/// The control domain's prompt.
pub(crate) const PROMPT: &str = "penumbra# ";
/// The smallest second domain.
pub(crate) const NEIGHBOUR: &str = "domain=neighbour memory=16M";

/// The domain that the tour looks at: always domain 1.
const TOURIST: &str = "domain=guest memory=64M tour";

/// Every test of one machine.
pub fn cases(board: Board) -> Vec<Case> {
    let all = [
        boot(board),
        ramdisks(board),
        experiment(board),
        guest_tests(board),
        ends(board),
        console::cases(board),
        bad_input::cases(board),
        own_fault::cases(board),
        reference(board),
        bare(board),
        debian::cases(board),
        disc(board),
        packed::cases(board),
        soak::cases(board),
        stretch::cases(board),
    ]
    .concat();
    let judged = oracle::judged(board, &all);
    [all, judged].concat()
}

/// The machine comes up, whatever its memory and its interrupt controller.
fn boot(board: Board) -> Vec<Case> {
    let off = |name| {
        Case::new(board, name, "then=poweroff").says(&["(PEN) d0: control, Alive", "(d0) guest kernel ("])
    };
    let mut cases = vec![
        Case { memory: 256, ..off("boot/256-MiB") },
        Case { memory: 8192, ..off("boot/8-GiB") },
        off("boot/own-tables").says(&[]),
        // Kibibytes by default, as documented: about 100 MB.
        Case { words: "dom0_mem=100000", ..off("boot/dom0-mem-in-KiB") }
            .says(&["control domain, 25000 pages"]),
        Case { words: "dom0_mem=1G", memory: 2048, ..off("boot/dom0-mem-in-GiB") }.says(&["262144 pages"]),
    ];
    if board == Board::Virt {
        cases.push(Case { gic: 2, ..off("boot/gic-2") });
        cases.push(Case { gic: 3, ..off("boot/gic-3") });
    }
    for case in &mut cases {
        case.story.insert(0, "(PEN) own tables: ");
        case.finding = Some(own_tables_are_safe);
    }
    cases
}

/// A ramdisk arrives whole, and in the domain whose kernel it follows; the sum of [`ramdisk`](crate::case::ramdisk) was
/// computed by another program.
fn ramdisks(board: Board) -> Vec<Case> {
    const LENGTH_AND_SUM: &str = "ramdisk: 5003 bytes, sum 0xa8a0c64e05e4b6e4";
    let case = |name| Case::new(board, name, "then=poweroff");
    let mut first = case("boot/ramdisk");
    first.modules.push((File::Ramdisk, ""));
    let mut first = first.domain(NEIGHBOUR).says(&["(d0) guest kernel (", LENGTH_AND_SUM]);
    first.forbidden.push("(d1) ramdisk");
    let mut second = Case { end: End::Says("(d1) ramdisk: "), ..case("boot/ramdisk-of-the-second-domain") };
    second.modules[0].1 = "then=shell";
    let mut second = second.domain(NEIGHBOUR).says(&["(d1) guest kernel (", LENGTH_AND_SUM]);
    second.modules.push((File::Ramdisk, ""));
    second.forbidden.push("(d0) ramdisk");
    vec![first, second]
}

/// The hypervisor looks at its own tables once they are loaded.
fn own_tables_are_safe(text: &str) -> Result<(), String> {
    let line = verdict::lines_of(text, verdict::HYPERVISOR).find(|line| line.starts_with("own tables: "));
    match line {
        Some(line) if line.contains("none writable and executable") && line.contains("stacks guarded") => {
            Ok(())
        }
        Some(line) => Err(format!("its own tables are not as they must be: {line}")),
        None => Err("it says nothing of its own tables".into()),
    }
}

/// The documented experiment, and what a guest may not do.
fn experiment(board: Board) -> Vec<Case> {
    let mut tour = Case::new(board, "tour", "tour then=poweroff").domain(TOURIST).says(&[
        "entry in memory",
        "entry >> 12",
        "pte_val",
        "GETMEMLIST of domain 1",
        "==== The control domain's calls, tried by",
        "xm dmesg",
        "(d0) TOUR: PASS",
    ]);
    tour.finding = Some(the_numbers_agree);
    vec![tour]
}

/// What the control domain's kernel can test by itself, beside a neighbour that must not notice.
fn guest_tests(board: Board) -> Vec<Case> {
    let alone = [
        ("guest-test/hypercalls", "test=hypercalls then=poweroff"),
        ("guest-test/instructions", "test=instructions then=poweroff"),
        ("guest-test/pin", "test=pin then=poweroff"),
        ("guest-test/linear", "test=linear then=poweroff"),
        ("guest-test/superpages", "test=superpages then=poweroff"),
        ("guest-test/root", "test=root then=poweroff"),
        ("guest-test/reservation", "test=reservation then=poweroff"),
        ("guest-test/memory", "test=memory then=poweroff"),
        ("guest-test/multicall", "test=multicall then=poweroff"),
        ("guest-test/console", "test=console then=poweroff"),
        ("guest-test/events", "test=events then=poweroff"),
        ("guest-test/runstate", "test=runstate then=poweroff"),
        ("guest-test/grant-table", "test=grant-table then=poweroff"),
        ("guest-test/balloon", "test=balloon then=poweroff"),
        // One after another: what a test leaves behind must not disturb the next.
        ("guest-test/all-in-one-run", "test=all then=poweroff"),
    ];
    let mut cases =
        alone.map(|(name, words)| guest_test(Case::new(board, name, words).domain(NEIGHBOUR))).to_vec();
    if board == Board::Q35 {
        cases.extend(guest_tests_of_a_pc(board));
    }
    cases.extend(attacks(board));
    // Neither domain ever gives the CPU away.
    let preemption = Case::new(board, "guest-test/preemption", "test=preemption then=poweroff");
    cases.push(guest_test(preemption.domain("domain=spinner memory=16M spin")));
    let signal = Case::new(board, "guest-test/signal", "test=signal then=poweroff");
    cases.push(guest_test(signal.domain("domain=answering memory=16M echo=50")));
    let vcpus = Case {
        words: "dom0_mem=64M dom0_max_vcpus=2",
        ..Case::new(board, "guest-test/vcpus", "test=vcpus then=poweroff")
    };
    cases.push(guest_test(vcpus.domain(NEIGHBOUR)));
    let registers = Case::new(board, "guest-test/registers", "test=registers then=poweroff");
    let mut registers =
        guest_test(registers.domain("domain=other memory=16M registers=7").says(&["(d1) registers: kept"]));
    registers.forbidden.push("registers: LOST");
    cases.push(registers);
    if board == Board::Virt {
        cases.extend(aarch64::guest_tests());
    }
    let share = Case::new(board, "guest-test/share", "test=share then=poweroff");
    let taken_back = "(d1) lend: taken back: true, a table since: true, freed: true";
    cases.push(guest_test(share.domain("domain=lender memory=16M lend").says(&[taken_back])));
    cases
}

/// The same, of what there is on x86-64 only.
fn guest_tests_of_a_pc(board: Board) -> Vec<Case> {
    let alone = [
        ("guest-test/table-writes", "test=table-writes then=poweroff"),
        ("guest-test/descriptors", "test=descriptors then=poweroff"),
        ("guest-test/user-mode", "test=user-mode then=poweroff"),
        ("guest-test/interface", "test=interface then=poweroff"),
    ];
    let mut cases =
        alone.map(|(name, words)| guest_test(Case::new(board, name, words).domain(NEIGHBOUR))).to_vec();
    cases.extend(absent_entries(board));
    cases.push(superpages_of_data(board));
    let timers = Case::new(board, "guest-test/timers", "test=timers then=poweroff");
    cases.push(guest_test(Case { icount: true, ..timers }.domain(NEIGHBOUR)));
    // Domain 1 takes every turn that it can get, some of them in the middle of a trap's coming.
    let late = Case::new(board, "guest-test/late-traps", "test=late-traps spinner then=poweroff");
    let late = Case { icount: true, words: "dom0_mem=64M dom0_max_vcpus=2", ..late };
    cases.push(guest_test(late.domain("domain=spinner memory=16M spin")));
    cases
}

/// What may stand in absent entries: on a processor without the L1 terminal fault, and on one that may have it.
fn absent_entries(board: Board) -> [Case; 2] {
    let usual = Case::new(board, "guest-test/absent-entries", "test=absent-entries then=poweroff");
    let usual = Case { forbidden: [&usual.forbidden[..], &["L1 terminal fault"]].concat(), ..usual };
    let name = "guest-test/absent-entries-where-they-leak";
    let leaks = Case::new(board, name, "test=absent-entries then=poweroff");
    let leaks = leaks.says(&["may have the L1 terminal fault"]);
    [guest_test(usual), guest_test(Case { cpu: Some("qemu64,vendor=GenuineIntel"), ..leaks })]
}

/// Superpages on a processor of Intel's that doesn't say that changes of page size do it no harm (XSA-304).
fn superpages_of_data(board: Board) -> Case {
    let name = "guest-test/superpages-where-code-is-refused";
    let case = Case::new(board, name, "test=superpages then=poweroff");
    let case = case.says(&["superpages must not be executable"]);
    guest_test(Case { cpu: Some("qemu64,vendor=GenuineIntel"), ..case })
}

/// Defines the lines of a domain's attacks, in their order.
macro_rules! attacks {
    ($domain:literal: $($name:literal),* $(,)?) => {
        &[$(concat!("(", $domain, ") TEST attacks/", $name, ": PASS")),*]
    };
    ($domain:literal) => {
        attacks!($domain: "xsa-148", "xsa-182", "xsa-167-176", "forbidden-bits", "xsa-154", "xsa-109", "xsa-227", "xsa-214-287", "xsa-224", "xsa-242", "xsa-248", "xsa-252", "xsa-280", "xsa-45-264-290", "xsa-240", "xsa-299-309-310", "xsa-241-286-292-294", "xsa-29-212", "xsa-213")
    };
}

/// What published flaws let a guest do, each with a line of its own; docs/attacks.md names them by it. The control domain has everything
/// recounted after each; an ordinary domain, whom nothing is allowed that others aren't, has it once, by the control domain.
fn attacks(board: Board) -> [Case; 2] {
    let case = Case::new(board, "guest-test/attacks", "test=attacks then=poweroff");
    let case = case.domain(NEIGHBOUR).says(attacks!("d0"));
    let control = Case { finding: Some(every_guest_test_passes), ..case };
    let ordinary = Case::new(board, "guest-test/attacks-by-an-ordinary-domain", "then=shell");
    let mut ordinary = ordinary
        .domain("domain=attacker memory=64M number=1 test=attacks")
        .types(&[("(d1) TEST attacks/xsa-213", "xm audit\r"), (": clean", "poweroff\r")])
        .says(attacks!("d1"))
        .says(&["audit: 0 findings"]);
    ordinary.forbidden.push(": FAIL ");
    [control, ordinary]
}

/// A case of a guest's own tests, each of which has to pass.
pub(crate) fn guest_test(case: Case) -> Case {
    Case { finding: Some(every_guest_test_passes), ..case.says(&["TEST ", ": PASS"]) }
}

/// The MFN that domain 1 reads from its entry is the one that the control domain finds.
fn the_numbers_agree(text: &str) -> Result<(), String> {
    let entry = number(text, "(d1) ", "entry in memory")?;
    let mfn = number(text, "(d1) ", "entry >> 12")?;
    let seen = number(text, "(d0) ", "MFN")?;
    let p2m = number(text, "(d0) ", "P2M[PFN]")?;
    let pfn = number(text, "(d1) ", "machine_to_phys[MFN]")?;
    let same = (entry >> 12) & ((1 << 36) - 1) == mfn && mfn == seen && p2m == mfn;
    match (same, pfn == mfn) {
        (false, _) => Err(format!("entry {entry:#x}, its MFN {mfn:#x}, seen as {seen:#x}, P2M {p2m:#x}")),
        (true, true) => Err("the PFN is the MFN: nothing is shown by that".into()),
        (true, false) => Ok(()),
    }
}

/// The number in a speaker's line `name  0x...`.
fn number(text: &str, speaker: &str, name: &str) -> Result<u64, String> {
    verdict::lines_of(text, speaker)
        .filter_map(|line| line.trim().strip_prefix(name)?.trim().strip_prefix("0x"))
        .find_map(|rest| u64::from_str_radix(rest.split_whitespace().next()?, 16).ok())
        .ok_or_else(|| format!("no line of {speaker}with a number for {name:?}"))
}

/// Each of the control domain's own tests says PASS, and there is at least one.
fn every_guest_test_passes(text: &str) -> Result<(), String> {
    // On Xen the first domain's lines have no prefix.
    let lines = text.lines().map(|line| line.strip_prefix(verdict::CONTROL).unwrap_or(line).trim_end());
    let verdicts: Vec<&str> = lines.filter(|line| line.starts_with("TEST ")).collect();
    match verdicts.iter().find(|line| !line.ends_with(": PASS")) {
        Some(line) => Err((*line).to_owned()),
        None if verdicts.is_empty() => Err("no test ran".into()),
        None => Ok(()),
    }
}

/// A domain comes to its end; its frames come back, nothing is left over, and the others go on.
fn ends(board: Board) -> Vec<Case> {
    let ways: [(&str, &str, &str); 4] = [
        ("domain-end/shutdown", "domain=dying memory=32M die=shutdown", "(PEN) d2 has shut down: power-off"),
        ("domain-end/crash", "domain=dying memory=32M die=crash", "(PEN) d2 has shut down: crash"),
        (
            "domain-end/fault-without-handler",
            "domain=dying memory=32M die=fault",
            "(PEN) error: d2 vcpu 0 crashed: ",
        ),
        (
            "domain-end/write-to-own-table",
            "domain=dying memory=32M die=table-write",
            "(PEN) error: d2 vcpu 0 crashed: ",
        ),
    ];
    let watched =
        Case::new(board, "domain-end/watched-by-the-control-domain", "test=neighbour then=poweroff");
    let mut cases = vec![guest_test(watched.domain("domain=dying memory=32M die=fault"))];
    cases.extend(ways.map(|(name, dying, line)| end(board, name, dying, line)));
    if board == Board::Virt {
        const LINE: &str = "vcpu 0 crashed: AArch32 state, which guests don't have";
        let spins = "domain=dying memory=32M die=aarch32";
        cases.push(end(board, "domain-end/user-mode-in-aarch32", spins, LINE));
        let traps = "domain=dying memory=32M die=aarch32-coprocessor";
        cases.push(end(board, "domain-end/coprocessor-access-in-aarch32", traps, LINE));
    } else {
        let faults = "domain=dying memory=32M die=user-fault";
        let line = "vcpu 0 crashed: page fault at address 0x5000, no handler";
        cases.push(end(board, "domain-end/fault-of-a-user-without-handler", faults, line));
        cases.push(stacks::case(board, TOURIST));
    }
    cases
}

/// Two domains die the same way, so that what the second gives back can be counted. Afterwards domain 1 and the control
/// domain are still well enough for the whole tour.
fn end(board: Board, name: &str, dying: &'static str, line: &'static str) -> Case {
    let mut case = Case::new(board, name, "then=shell").domain(TOURIST).domain(dying).domain(dying).types(&[
        (" is gone; ", ""),
        (" is gone; ", "\r"),
        (PROMPT, "xm audit\r"),
        (": clean", "tour\r"),
        ("TOUR: ", "poweroff\r"),
    ]);
    case.forbidden.push("still alive");
    case.finding = Some(every_frame_comes_back);
    let dump: &[&str] = match (board, name) {
        (Board::Q35, "domain-end/fault-without-handler") => &["(PEN) rip ", "(PEN) code: ", " <0f> 0b "],
        (Board::Q35, "domain-end/write-to-own-table") => {
            &["(PEN) rip ", "(PEN) code: ", "page-table walk of 0xffffffff8", "L4[0x1ff] = ", "L1["]
        }
        _ => &[],
    };
    case.says(&[line]).says(dump).says(&[" is gone; ", " is gone; ", "audit: 0 findings", "(d0) TOUR: PASS"])
}

/// Frames of each dying domain above: 32 MiB.
const DYING_FRAMES: u64 = 32 << 8;

fn every_frame_comes_back(text: &str) -> Result<(), String> {
    frames_come_back(text, DYING_FRAMES)
}

/// Of two domains that go, the second, which had so many frames, gives them all back.
pub(crate) fn frames_come_back(text: &str, frames: u64) -> Result<(), String> {
    let free: Vec<u64> = verdict::lines_of(text, verdict::HYPERVISOR)
        .filter_map(|line| line.split_once(" is gone; ")?.1.split(' ').next()?.parse().ok())
        .collect();
    match free.as_slice() {
        [first, second] if first.checked_add(frames).is_some_and(|all| *second >= all) => Ok(()),
        [first, second] => {
            Err(format!("{first} frames were free, then {second}: fewer than {frames} came back"))
        }
        other => Err(format!("two domains should have gone, but these did: {other:?}")),
    }
}

/// Our kernel with nothing below it: what is measured natively is the same kernel.
fn bare(board: Board) -> Vec<Case> {
    if board != Board::Virt {
        return Vec::new();
    }
    let case = Case::new(board, "bare/boots-without-a-hypervisor", "");
    let words = "some words then=poweroff";
    let case = Case { hypervisor: Hypervisor::Nothing, words, modules: Vec::new(), memory: 256, ..case };
    vec![
        case.says(&[
            "guest kernel (aarch64): control domain, 16384 pages",
            "words: some words then=poweroff",
        ]),
    ]
}

/// GRUB brings the hypervisor and its modules from a disc, by multiboot 2: the first entry after a while, the second when it is chosen
/// (there: [`debian::on_disc`]).
fn disc(board: Board) -> Vec<Case> {
    if board != Board::Q35 {
        return Vec::new();
    }
    let case = Case::new(board, "boot/from-a-disc-by-grub", "");
    let case = Case { hypervisor: Hypervisor::PenumbraOnDisc, modules: Vec::new(), ..case };
    vec![case.says(&[
        "(d1) guest kernel (x86-64): domain",
        "words: domain=guest memory=64M tour",
        "(d0) TOUR: PASS",
    ])]
}

/// Our PV kernel on the real Xen: the ABI is the real one.
fn reference(board: Board) -> Vec<Case> {
    if board == Board::Virt {
        // Xen on Arm has no paravirtual page tables.
        return Vec::new();
    }
    let on_xen = |name, control| Case {
        hypervisor: Hypervisor::DebianXen,
        words: "dom0_mem=512M",
        memory: 1024,
        limit: 180,
        // Xen does not switch a machine off by itself: it halts.
        end: End::Says("(XEN) Hardware Dom0 halted"),
        ..Case::new(board, name, control).says(&["Xen version 4.17"])
    };
    let experiment = on_xen("abi/guest-x86-on-debian-xen-4.17", "tour then=poweroff");
    let tests = on_xen("abi/guest-tests-on-debian-xen-4.17", "test=all then=poweroff");
    // The last of all: a kernel that crashes before it has passed none of them.
    let tests = guest_test(tests).says(&["TEST interface: PASS"]);
    // With a second vCPU, which the first starts: what can't be tried with one.
    let vcpus = on_xen("abi/vcpus-on-debian-xen-4.17", "test=vcpus then=poweroff");
    let vcpus = guest_test(Case { words: "dom0_mem=512M dom0_max_vcpus=2", ..vcpus });
    vec![experiment.says(&["entry in memory", "attempts refused", "XEN: PASS"]), tests, vcpus]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_distinct_and_free_of_blanks() {
        let all: Vec<Case> = [Board::Virt, Board::Q35].into_iter().flat_map(cases).collect();
        let names: HashSet<&String> = all.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), all.len());
        assert!(names.iter().all(|name| !name.contains(' ')));
    }

    #[test]
    fn each_machine_is_judged_by_something_it_says() {
        for case in [Board::Virt, Board::Q35].into_iter().flat_map(cases) {
            assert!(!case.story.is_empty(), "{}", case.name);
        }
    }

    #[test]
    fn frames_that_stay_away_are_noticed() {
        let gone = |first: u64, second: u64| {
            every_frame_comes_back(&format!(
                "(PEN) d1 is gone; {first} frames are free\n(PEN) d2 is gone; {second} frames are free\n"
            ))
        };
        assert_eq!(gone(1000, 1000 + DYING_FRAMES), Ok(()));
        assert!(gone(1000, 999 + DYING_FRAMES).is_err());
        assert!(every_frame_comes_back("(PEN) d1 is gone; 5 frames are free\n").is_err());
    }

    #[test]
    fn own_tables_are_judged_by_the_hypervisors_line() {
        assert!(
            own_tables_are_safe("(PEN) own tables: 9 pages, none writable and executable, stacks guarded\n")
                .is_ok()
        );
        assert!(
            own_tables_are_safe("(PEN) own tables: 9 pages, 1 writable and executable, stacks guarded\n")
                .is_err()
        );
        assert!(
            own_tables_are_safe("(d0) own tables: none writable and executable, stacks guarded\n").is_err()
        );
    }

    #[test]
    fn the_experiments_numbers_must_agree() {
        let said = |seen: &str| {
            format!(
                "(d1)   entry in memory   0x60000001234703   what\n(d1)   entry >> 12  0x1234  x\n\
                 (d1)   machine_to_phys[MFN]  0x42  y\n(d0)   MFN   {seen}  in the list\n(d0)   P2M[PFN]  0x1234  z\n"
            )
        };
        assert_eq!(the_numbers_agree(&said("0x1234")), Ok(()));
        assert!(the_numbers_agree(&said("0x1235")).is_err());
        assert!(the_numbers_agree("").is_err());
    }

    #[test]
    fn guest_tests_count_only_with_a_verdict() {
        assert!(every_guest_test_passes("(d0) TEST a: PASS\n(d0) TEST b: PASS\n").is_ok());
        assert!(every_guest_test_passes("(d0) TEST a: PASS\n(d0) TEST b: FAIL x\n").is_err());
        assert!(every_guest_test_passes("TEST a: PASS\r\n").is_ok(), "as on Xen");
        assert!(every_guest_test_passes("(d1) TEST a: PASS\n").is_err());
    }
}
