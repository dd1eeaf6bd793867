//! The calls themselves.

use hyp_core::domain::Life;
use penumbra_abi::errno::Errno;
use penumbra_abi::multicall::MulticallEntry;
use penumbra_abi::{hypercall as number, sched};
use zerocopy::IntoBytes;

use crate::common::{POOL, Rig, address, leaf};

/// Where the list of a multicall stands.
const LIST: u64 = 512;
/// What a result holds that nobody has written.
const UNWRITTEN: u64 = 0x5555;

fn entry(operation: u64, arguments: [u64; 6]) -> MulticallEntry {
    MulticallEntry { operation, result: UNWRITTEN, arguments }
}

/// An entry of a multicall by which a page of the pool is unmapped.
fn unmap(index: u64) -> MulticallEntry {
    entry(number::UPDATE_VA_MAPPING, [address(POOL + index), 0, 0, 0, 0, 0])
}

/// XSA-213: `iret` within a multicall took the vCPU to user mode, and Xen went on with the next entry, in the kernel's name, with
/// the user's page tables loaded: it read and wrote memory as the kernel's that was the user's choice.
///
/// The attacker puts `iret` between two entries. It is an entrance of its own here, of which the list of hypercalls knows nothing: so it
/// does nothing in a multicall, whatever its arguments, and the rest is done as the kernel that the vCPU still is.
#[test]
fn xsa_213_a_multicall_does_not_leave_the_kernel() {
    let rig = Rig::new(1);
    let list = [unmap(0), entry(number::IRET, [address(0); 6]), unmap(1)];
    let at = rig.give(1, LIST, list.as_bytes());
    let root = rig.domains[1].vcpu().kernel_root();
    assert_eq!(rig.call(1, number::MULTICALL, [at, 3, 0, 0, 0, 0]), Ok(0));
    let result = |index: u64| rig.word(1, LIST + 64 * index + 8);
    assert_eq!((result(0), Errno::from_return(result(1)), result(2)), (0, Err(Errno::ENOSYS), 0));
    assert_eq!(rig.domains[1].vcpu().kernel_root(), root);
    rig.check();
}

/// XSA-213, the other change in the middle of a multicall: the domain ends. The attacker shuts itself down in the first entry, or has
/// another vCPU do so; what comes after it would be done for a domain whose tables are being taken apart.
#[test]
fn xsa_213_a_multicall_ends_with_its_domain() {
    for reason in [0, 3] {
        let rig = Rig::new(1);
        let place = rig.give(1, 64, &u32::to_le_bytes(reason));
        let shutdown = entry(number::SCHED_OP, [sched::SCHEDOP_SHUTDOWN, place, 0, 0, 0, 0]);
        let at = rig.give(1, LIST, [unmap(0), shutdown, unmap(1)].as_bytes());
        let (table, index) = rig.builder_entry(1, POOL + 1);
        let mapped = leaf(rig.pool(1, 1), true);
        assert_eq!(rig.entry(table, index) & !3, mapped);
        let _ = rig.call_once(1, number::MULTICALL, [at, 3, 0, 0, 0, 0]);
        assert_ne!(rig.domains[1].domain.life(), Life::Alive, "reason {reason}");
        assert_eq!(rig.entry(table, index) & !3, mapped, "reason {reason}: the third entry was carried out");
        assert_eq!(rig.word(1, LIST + 64 * 2 + 8), UNWRITTEN);
        rig.check();
        while rig.hv.background() {
            rig.check();
        }
        assert_eq!(rig.domains[1].domain.life(), Life::Vacant);
    }
}
