//! Debian's own kernel for x86-64, with a ramdisk that checks itself (`workloads/init`): on the bare machine, on Debian's Xen and on Penumbra the same two
//! files, so that what differs is the hypervisor.

use crate::case::{Board, Case, End, File, Hypervisor};
use crate::console::SWITCH;
use crate::{stock, table, verdict};

/// The shell's prompt.
const PROMPT: &str = "# ";
/// Memory of each machine without a hypervisor, and of the first domain on one, in MiB; the tasks below say it too.
const MEMORY: u64 = 512;
/// What the ramdisk is to do, and what it says then.
const SELF_CHECK: (&str, &str) = (
    "console=ttyS0 test=self expect_memory=512 expect_vcpus=1 then=poweroff",
    "console=hvc0 test=self expect_memory=512 expect_vcpus=1 then=poweroff",
);
const WORKLOADS: (&str, &str) = (
    "console=ttyS0 test=workloads may_skip=balloon then=poweroff",
    "console=hvc0 test=workloads then=poweroff",
);

/// What the self check says.
const CHECKED: [&str; 4] = ["Linux penumbra ", "memory: ", "processes: 300", "SELF-CHECK: PASS"];
/// What the workloads say, but for the balloon, which needs a hypervisor.
const WORKED: [&str; 9] = [
    "WORKLOAD fork-storm ok",
    "WORKLOAD mappings ok",
    "WORKLOAD copy-on-write ok",
    "WORKLOAD exec ok",
    "WORKLOAD threads ok",
    "WORKLOAD faults ok",
    "WORKLOAD debugging ok",
    "WORKLOAD memory-pressure ok",
    "WORKLOADS: PASS",
];

/// What is typed at a shell: its echo alone doesn't hold what it prints.
const SUM: &str = "echo sum $((6 * 111))\r";

/// All of them.
pub fn cases(board: Board) -> Vec<Case> {
    if board == Board::Virt {
        return stock::cases();
    }
    vec![
        natively("debian/self-check-on-the-bare-machine", SELF_CHECK.0).says(&CHECKED),
        natively("debian/workloads-on-the-bare-machine", WORKLOADS.0).says(&WORKED),
        on_xen("debian/self-check-on-debian-xen-4.17", SELF_CHECK.1).says(&CHECKED),
        with_balloon(on_xen("debian/workloads-on-debian-xen-4.17", WORKLOADS.1).says(&WORKED)),
        on_penumbra("debian/self-check", SELF_CHECK.1).says(&CHECKED),
        workloads("debian/workloads", "dom0_mem=512M"),
        shell(),
        as_xen_is_started(),
        vcpus("debian/self-check-with-two-vcpus", "dom0_mem=512M dom0_max_vcpus=2", 2),
        vcpus("debian/self-check-with-four-vcpus", "dom0_mem=512M dom0_max_vcpus=4", 4),
        workloads("debian/workloads-with-four-vcpus", "dom0_mem=512M dom0_max_vcpus=4"),
        three(),
        on_disc(),
        shells_in_turn(),
        grub("debian/grub", vec![(File::DebianGrub, "")], "dom0_mem=64M dom0=plain", None),
        grub(
            "debian/grub-as-a-second-domain",
            vec![(File::Guest, "then=shell"), (File::DebianGrub, "domain=grub memory=64M")],
            "dom0_mem=64M",
            Some("input goes to d1"),
        ),
        refused(
            "bad-input/debian/dom0-mem-too-small",
            1024,
            "dom0_mem=64M",
            "needed to start it, it is given 65536",
        ),
        refused(
            "bad-input/debian/dom0-mem-too-large",
            1024,
            "dom0_mem=2G",
            "it needs 2048 MiB of memory, and ",
        ),
        refused(
            "bad-input/debian/no-room-to-unpack",
            96,
            "dom0_mem=80M",
            "the kernel can't be unpacked: unpacking it takes ",
        ),
    ]
}

/// GRUB, which has no disk and no configuration here, comes to its prompt and does what it is told there.
fn grub(
    name: &str,
    modules: Vec<(File, &'static str)>,
    words: &'static str,
    reached: Option<&'static str>,
) -> Case {
    let case = Case::new(Board::Q35, name, "");
    let case = Case { modules, words, end: End::Says("first second"), ..case };
    let keys: Vec<_> = match reached {
        None => vec![("grub> ", "echo first${nothing} second\r")],
        // A line that isn't whole is shown only of who has the input.
        Some(line) => vec![("or file completions", SWITCH), (line, "echo first${nothing} second\r")],
    };
    case.types(&keys).says(&["Welcome to GRUB!", "GNU GRUB  version", "first second"])
}

/// A machine or a domain that is too small for the kernel, or a domain that is too large for the machine.
fn refused(name: &str, memory: u64, hypervisor: &'static str, line: &'static str) -> Case {
    let case = on_penumbra(name, "console=hvc0 then=shell");
    Case { memory, words: hypervisor, end: End::Stopped, ..case }
        .says(&["the first domain can't start: ", line])
}

/// The programs, with the audit asked for while each runs, and after the last.
fn workloads(name: &str, hypervisor: &'static str) -> Case {
    let case = Case { words: hypervisor, ..on_penumbra(name, "console=hvc0 test=workloads then=shell") };
    let mut case = case.types(&[("Run /init", SWITCH), ("input goes to the hypervisor", "a")]);
    for ended in &WORKED[..WORKED.len() - 1] {
        // Twice: right after one program, and as the next one begins. A program may be done before an audit is, and so may the shell.
        case = case.types_after_all(&[": clean", ended], "a").types_after_all(&[": clean"], "a");
    }
    // Another line makes the shell prompt again.
    let case = case
        .types_after_all(&[": clean", AT_SHELL], SWITCH)
        .types(&[("input goes to d0", "\r"), (PROMPT, "exit\r")]);
    with_balloon(case.says(&WORKED)).says(&["(PEN) d0 has shut down: power-off"])
}

/// The workloads' story, with the balloon at its place.
fn with_balloon(mut case: Case) -> Case {
    let at = case.story.iter().position(|text| *text == "WORKLOAD memory-pressure ok").unwrap_or(0);
    case.story.insert(at, "WORKLOAD balloon ok");
    case
}

/// A person's way: to a prompt, a command, and out. The next command comes only when the shell has long fallen silent (an audit has passed
/// meanwhile): nothing but what is typed wakes it.
fn shell() -> Case {
    let case = on_penumbra("debian/shell", "console=hvc0 then=shell");
    case.types(&[(PROMPT, SUM), ("sum 666", ""), (PROMPT, SWITCH)])
        .types(&[("input goes to the hypervisor", "a"), (": clean", SWITCH)])
        .types(&[("input goes to d0", "echo again $((7 * 111))\r"), ("again 777", ""), (PROMPT, "exit\r")])
        .says(&[
            "`exit` switches off",
            "sum 666",
            ": clean",
            "again 777",
            "(PEN) d0 has shut down: power-off",
        ])
}

/// Word for word what starts Debian's Xen with this kernel; the kernel speaks long before its console is there.
fn as_xen_is_started() -> Case {
    let case = on_penumbra("debian/as-xen-is-started", "console=hvc0 earlyprintk=xen");
    let case = Case { words: "dom0_mem=512M", memory: 1024, ..case };
    case.types(&[(PROMPT, SUM), ("sum 666", "exit\r")]).says(&[
        "(d0) [    0.000000] printk: bootconsole [xenboot0] enabled",
        "printk: console [hvc0] enabled",
        "Run /init as init process",
        "sum 666",
        "(PEN) d0 has shut down: power-off",
    ])
}

/// From a disc, as the second entry of GRUB's menu, which is chosen by the keys for "next" and "boot".
fn on_disc() -> Case {
    let case = on_penumbra("debian/from-a-disc-by-grub", SELF_CHECK.1);
    let case = Case { hypervisor: Hypervisor::PenumbraOnDisc, ..case };
    let case = case.types(&[("will be executed automatically in", "\x0e\r")]);
    case.says(&["Penumbra: the second entry", "(PEN) d0: guest, Alive"]).says(&CHECKED)
}

/// More than one vCPU.
fn vcpus(name: &str, hypervisor: &'static str, vcpus: u32) -> Case {
    let words = match vcpus {
        2 => "console=hvc0 test=self expect_memory=512 expect_vcpus=2 then=poweroff",
        _ => "console=hvc0 test=self expect_memory=512 expect_vcpus=4 then=poweroff",
    };
    Case { words: hypervisor, ..on_penumbra(name, words) }.says(&CHECKED)
}

/// Two more stock kernels from further modules; each checks itself, the first one last.
fn three() -> Case {
    let first = "console=hvc0 then=shell";
    let mut case = on_penumbra("debian/three-at-once", first);
    let second = "domain=second memory=256M vcpus=2 console=hvc0 test=self expect_memory=256 expect_vcpus=2 then=poweroff";
    let third = "domain=third memory=256M vcpus=4 console=hvc0 test=self expect_memory=256 expect_vcpus=4 then=poweroff";
    for words in [second, third] {
        case.modules.extend([(File::DebianKernel, words), (File::DebianRamdisk, "")]);
    }
    case.memory = 3 * MEMORY;
    case.finding = Some(both_others_are_well);
    let case = case.types(&[(" is gone; ", ""), (" is gone; ", "\r"), (PROMPT, SUM), ("sum 666", "exit\r")]);
    case.says(&[" is gone; ", " is gone; ", "(d0) sum 666", "(PEN) d0 has shut down: power-off"])
}

/// What each domain but the first gives back: its memory, 256 MiB above and 192 MiB below; and what it has besides, the page that it shares with the
/// hypervisor and its grant table, which Linux 6.1 begins with one frame.
const FRAMES_OF_THREE: u64 = (256 << 8) + 2;
const FRAMES_OF_SHELLS: u64 = (192 << 8) + 2;

/// Three kernels, each at a shell, and a person who goes from one to the next. One panics, another ends: the rest don't mind.
fn shells_in_turn() -> Case {
    let mut case = on_penumbra("debian/three-shells-in-turn", "console=hvc0 quiet then=shell");
    let others = [
        "domain=second memory=192M vcpus=4 console=hvc0 quiet then=shell",
        "domain=third memory=192M vcpus=3 console=hvc0 quiet then=shell",
    ];
    for words in others {
        case.modules.extend([(File::DebianKernel, words), (File::DebianRamdisk, "")]);
    }
    (case.words, case.memory) = ("dom0_mem=256M dom0_max_vcpus=2", 2 * MEMORY);
    // The third panics because it is told to.
    case.forbidden.retain(|bad| *bad != "Kernel panic");
    case.finding = Some(each_heard_its_own);
    // All are at their shells, in whatever order they came.
    case.types(&[(AT_SHELL, ""), (AT_SHELL, ""), (AT_SHELL, SWITCH)])
        .types(&[
            ("input goes to d1", "\r"),
            ("(d1) / # ", "echo one $((1 * 111))\r"),
            ("(d1) one 111", SWITCH),
        ])
        .types(&[
            ("input goes to d2", "\r"),
            ("(d2) / # ", "echo two $((2 * 111))\r"),
            ("(d2) two 222", SWITCH),
        ])
        .types(&[("input goes to the hypervisor", SWITCH), ("input goes to d0", "\r")])
        .types(&[("(d0) / # ", "echo three $((3 * 111))\r"), ("(d0) three 333", SWITCH)])
        .types(&[("input goes to d1", SWITCH), ("input goes to d2", "echo c > /proc/sysrq-trigger\r")])
        .types(&[("input goes to the hypervisor", ""), ("(PEN) d2 is gone; ", "a"), (": clean", SWITCH)])
        .types(&[("input goes to d0", SWITCH), ("input goes to d1", "nproc | sed s/^/CPUs:/\r")])
        .types(&[
            ("(d1) CPUs:4", "exit\r"),
            ("input goes to the hypervisor", ""),
            ("(PEN) d1 is gone; ", SWITCH),
        ])
        .types(&[("input goes to d0", SUM), ("sum 666", "exit\r")])
        .says(&["(d1) one 111", "(d2) two 222", "(d0) three 333", "Kernel panic", "(PEN) d2 has shut down: "])
        .says(&[": clean", "(d1) CPUs:4", "(PEN) d1 has shut down: power-off", "(d0) sum 666"])
        .says(&["(PEN) d0 has shut down: power-off"])
}

/// What `workloads/init` says before its shell.
const AT_SHELL: &str = "`exit` switches off";

fn each_heard_its_own(text: &str) -> Result<(), String> {
    let said = [("(d0) ", "three 333"), ("(d1) ", "one 111"), ("(d2) ", "two 222")];
    for (speaker, answer) in said {
        let answers = verdict::lines_of(text, speaker)
            .filter(|line| line.ends_with("11") || line.ends_with("22") || line.ends_with("33"));
        if let Some(other) = answers.into_iter().find(|line| !line.ends_with(answer)) {
            return Err(format!("{speaker}answers what was typed for somebody else: {other}"));
        }
    }
    table::frames_come_back(text, FRAMES_OF_SHELLS)
}

fn both_others_are_well(text: &str) -> Result<(), String> {
    for speaker in ["(d1) ", "(d2) "] {
        if !verdict::lines_of(text, speaker).any(|line| line == "SELF-CHECK: PASS") {
            return Err(format!("{speaker}does not say that it is well"));
        }
    }
    table::frames_come_back(text, FRAMES_OF_THREE)
}

/// As the first domain of ours.
fn on_penumbra(name: &str, words: &'static str) -> Case {
    Case { words: "dom0_mem=512M", memory: 2 * MEMORY, ..linux(name, words) }
}

/// With nothing below it.
fn natively(name: &str, words: &'static str) -> Case {
    let case = linux(name, words);
    Case { hypervisor: Hypervisor::Nothing, words, modules: vec![(File::DebianRamdisk, "")], ..case }
}

/// As the first domain of Debian's Xen.
fn on_xen(name: &str, words: &'static str) -> Case {
    let case = linux(name, words);
    Case { hypervisor: Hypervisor::DebianXen, words: "dom0_mem=512M", memory: 2 * MEMORY, ..case }
}

/// What the three have in common.
fn linux(name: &str, words: &'static str) -> Case {
    let mut case = Case::new(Board::Q35, name, words);
    case.modules = vec![(File::DebianKernel, words), (File::DebianRamdisk, "")];
    case.memory = MEMORY;
    case.limit = 300;
    // Linux itself speaks of panics where there is none; a real one begins like this.
    case.forbidden.retain(|word| *word != "panic");
    case.forbidden.extend(["Kernel panic", "hypervisor panic", ": FAIL", " FAILED: ", "BUG:"]);
    case
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Ended;

    #[test]
    fn a_frame_that_stays_away_is_noticed() {
        let three = |second: u64| {
            both_others_are_well(&format!(
                "(d1) SELF-CHECK: PASS\n(PEN) d1 is gone; 1000 frames are free\n\
                 (d2) SELF-CHECK: PASS\n(PEN) d2 is gone; {second} frames are free\n"
            ))
        };
        assert_eq!(three(1000 + FRAMES_OF_THREE), Ok(()));
        assert!(three(999 + FRAMES_OF_THREE).is_err());
    }

    #[test]
    fn what_is_a_failure_anywhere_is_one_here_but_linux_may_speak_of_panics() {
        let checked = |more: &str| {
            let case = on_penumbra("x", "").says(&CHECKED);
            case.judge(&format!("(d0) {}\n{more}\n", CHECKED.join("\n(d0) ")), Ended::Off)
        };
        assert_eq!(checked("(d0) Command line: panic=1"), Ok(()));
        for line in ["(PEN) error: audit: frame 1 is counted twice", "(d0) Kernel panic - not syncing"] {
            assert!(checked(line).is_err(), "{line}");
        }
    }
}
