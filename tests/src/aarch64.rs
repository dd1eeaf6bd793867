//! Guests' tests that only AArch64 has: what confines a kernel at EL1, on several processors, since newer ones have more that must be
//! stopped.

use crate::case::{Board, Case};
use crate::table::{NEIGHBOUR, guest_test};

/// All of them.
pub fn guest_tests() -> Vec<Case> {
    let test = |name, words| Case::new(Board::Virt, name, words);
    let confined = |name| guest_test(test(name, "test=confined then=poweroff"));
    let instructions = |name| guest_test(test(name, "test=instructions then=poweroff"));
    let unseen = test("guest-test/unseen-by-the-hypervisor", "test=unseen then=poweroff");
    let writes = test("guest-test/table-writes", "test=table-writes then=poweroff");
    let on = |cpu, case| Case { cpu: Some(cpu), ..case };
    vec![
        confined("guest-test/confined"),
        on("max", confined("guest-test/confined-on-the-largest-processor")),
        on("neoverse-n1", confined("guest-test/confined-on-neoverse-n1")),
        guest_test(Case { icount: true, ..unseen }),
        on("max", instructions("guest-test/instructions-on-the-largest-processor")),
        on("neoverse-n1", instructions("guest-test/instructions-on-neoverse-n1")),
        guest_test(writes.domain(NEIGHBOUR)),
    ]
}
