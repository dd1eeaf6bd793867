//! Debian's own kernel, with a ramdisk that checks itself (`workloads/init`): on the bare machine, on Debian's Xen and on Penumbra the same two
//! files, so that what differs is the hypervisor.

use crate::case::{Board, Case, File, Hypervisor};

/// Memory of each machine without a hypervisor, and of the first domain on one, in MiB; the tasks below say it too.
const MEMORY: u64 = 512;
/// What the ramdisk is to do, and what it says then.
const SELF_CHECK: (&str, &str) = (
    "console=ttyS0 test=self expect_memory=512 expect_vcpus=1 then=poweroff",
    "console=hvc0 test=self expect_memory=512 expect_vcpus=1 then=poweroff",
);
const WORKLOADS: (&str, &str) =
    ("console=ttyS0 test=workloads then=poweroff", "console=hvc0 test=workloads then=poweroff");

/// What the self check says.
const CHECKED: [&str; 4] = ["Linux penumbra ", "memory: ", "processes: 300", "SELF-CHECK: PASS"];
/// What the workloads say.
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

/// All of them.
pub fn cases(board: Board) -> Vec<Case> {
    if board != Board::Q35 {
        return Vec::new();
    }
    vec![
        natively("debian/self-check-on-the-bare-machine", SELF_CHECK.0).says(&CHECKED),
        natively("debian/workloads-on-the-bare-machine", WORKLOADS.0).says(&WORKED),
        on_xen("debian/self-check-on-debian-xen-4.17", SELF_CHECK.1).says(&CHECKED),
        on_xen("debian/workloads-on-debian-xen-4.17", WORKLOADS.1).says(&WORKED).says(&[]),
    ]
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
    case.forbidden =
        vec!["Kernel panic", "hypervisor panic", "hypervisor fault", ": FAIL", " FAILED: ", "BUG:"];
    case
}
