//! Debian's own kernel for AArch64, with a ramdisk that checks itself (`workloads/init`): on the bare machine and on Debian's Xen the same
//! two files as on Penumbra, so that what differs is the hypervisor.

use std::sync::LazyLock;

use crate::case::{Board, Case, File, Hypervisor};

/// Memory of the machines without a hypervisor, and of the first domain on one, in MiB; the tasks below say it too.
const MEMORY: u64 = 512;
/// What the self check says.
const CHECKED: [&str; 6] = [
    "Linux penumbra ",
    "memory: ",
    "processes: 300",
    "a second: ",
    "programs on each of ",
    "SELF-CHECK: PASS",
];
/// What the workloads say, but for those that this machine can't run.
const WORKED: [&str; 8] = [
    "WORKLOAD fork-storm ok",
    "WORKLOAD mappings ok",
    "WORKLOAD copy-on-write ok",
    "WORKLOAD exec ok",
    "WORKLOAD threads ok",
    "WORKLOAD faults ok",
    "WORKLOAD memory-pressure ok",
    "WORKLOADS: PASS",
];
/// Lines of 64 bytes each, by the console in each direction: 64 KiB.
const LINES: usize = 1024;

/// All of them.
pub fn cases() -> Vec<Case> {
    let alone = |gic, cpus, words| Case { gic, cpus, ..natively(words) };
    let one = "console=ttyAMA0 test=self expect_memory=512 expect_vcpus=1 then=poweroff";
    let four = "console=ttyAMA0 test=self expect_memory=512 expect_vcpus=4 then=poweroff";
    let named = |name: &str, case: Case| Case { name: format!("aarch64/debian/{name}"), ..case };
    vec![
        named("self-check-on-the-bare-machine", alone(3, 1, one)).says(&CHECKED),
        named("self-check-on-the-bare-machine-with-gic-2", alone(2, 1, one)).says(&CHECKED),
        named("self-check-on-the-bare-machine-with-four-cpus", alone(3, 4, four)).says(&CHECKED),
        named("self-check-on-the-bare-machine-with-four-cpus-and-gic-2", alone(2, 4, four)).says(&CHECKED),
        named(
            "workloads-on-the-bare-machine",
            natively("console=ttyAMA0 test=workloads may_skip=balloon+debugging then=poweroff"),
        )
        .says(&WORKED),
        pasted(natively(
            "console=ttyAMA0 test=self expect_memory=512 expect_vcpus=1 expect_lines=1024 then=poweroff",
        )),
        on_xen("debian/self-check-on-debian-xen-4.17").says(&["(XEN) ", "hypervisor: xen 4.17", CHECKED[5]]),
    ]
}

/// 64 KiB come out of the console, and as many go into it at once.
fn pasted(case: Case) -> Case {
    static PASTE: LazyLock<String> = LazyLock::new(|| {
        let line =
            |number| format!("IN {number:05} abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ01\r");
        (0..LINES).map(line).collect()
    });
    let name = "aarch64/debian/console-on-the-bare-machine".into();
    Case { name, finding: Some(every_line_came_out), ..case }
        .types(&[("console: ready", &PASTE)])
        .says(&["console: 1024 lines", "SELF-CHECK: PASS"])
}

fn every_line_came_out(text: &str) -> Result<(), String> {
    for number in 0..LINES {
        let line = format!("OUT {number:05} abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0\n");
        if !text.contains(&line) {
            return Err(format!("line {number} did not come out whole"));
        }
    }
    Ok(())
}

/// With nothing below it.
fn natively(words: &'static str) -> Case {
    let case = linux("debian");
    Case { hypervisor: Hypervisor::Nothing, words, modules: vec![(File::DebianRamdisk, "")], ..case }
}

/// As the first domain of Debian's Xen.
fn on_xen(name: &str) -> Case {
    let words = "console=hvc0 test=self expect_memory=512 expect_vcpus=1 then=poweroff";
    let modules = vec![(File::DebianKernel, words), (File::DebianRamdisk, "")];
    let hypervisor = Hypervisor::DebianXen;
    Case { hypervisor, modules, words: "dom0_mem=512M", memory: 2 * MEMORY, ..linux(name) }
}

/// What they have in common.
fn linux(name: &str) -> Case {
    let mut case = Case::new(Board::Virt, name, "");
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

    #[test]
    fn a_line_that_lacks_a_byte_is_noticed() {
        let line =
            |number| format!("OUT {number:05} abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0\n");
        let text: String = (0..LINES).map(line).collect();
        assert_eq!(every_line_came_out(&text), Ok(()));
        assert!(every_line_came_out(&text.replacen("00777 abc", "00777 ab", 1)).is_err());
        assert!(every_line_came_out("").is_err());
    }
}
