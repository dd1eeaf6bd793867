//! What a single hypercall does with a list or a large structure counts: many of them in a multicall are preempted as one long hypercall is.

use crate::common::{Rig, SELF};
use hyp_core::paging::Budget;
use penumbra_abi::event_channel::{EVTCHNOP_RESET, Reset};
use penumbra_abi::grant_table::{GNTTABOP_SETUP_TABLE, GNTTABOP_UNMAP_GRANT_REF, SetupTable, UnmapGrantRef};
use penumbra_abi::hypercall as number;
use penumbra_abi::memory::{MemoryMap, XENMEM_MEMORY_MAP};
use penumbra_abi::multicall::MulticallEntry;
use penumbra_abi::sched::{SCHEDOP_POLL, SchedPoll};
use penumbra_abi::version::XENVER_CAPABILITIES;
use zerocopy::IntoBytes;

/// Entries of the multicalls.
const ENTRIES: usize = 40;
/// Where their arguments stand in the scratch memory, and where they may write to.
const ARGUMENT: u64 = 2560;
const LIST: u64 = 2688;

/// Writes what a hypercall reads; its arguments.
type Prepare<'a> = &'a dyn Fn() -> [u64; 3];

/// Entries that are left when a multicall of forty equal ones is preempted within that budget.
fn left(rig: &Rig, budget: u32, operation: u64, arguments: [u64; 3]) -> Option<u64> {
    let [first, second, third] = arguments;
    let entry = MulticallEntry { operation, result: 0, arguments: [first, second, third, 0, 0, 0] };
    let at = rig.give(1, 0, [entry; ENTRIES].as_bytes());
    let vcpu = rig.domains[1].vcpu();
    vcpu.context().take();
    let arguments = [at, ENTRIES as u64, 0, 0, 0, 0];
    rig.hv.hypercall_within(vcpu, number::MULTICALL, arguments, &Budget::new(budget));
    vcpu.context().take().again.map(|[_, left, ..]| left)
}

/// A poll of 128 ports, of which the last one is none.
fn poll(rig: &Rig) -> [u64; 3] {
    let mut ports = [1u32; 128];
    ports[127] = u32::MAX;
    let ports = rig.give(1, LIST, ports.as_bytes());
    let poll = SchedPoll { ports, nr_ports: 128, ..SchedPoll::default() };
    [SCHEDOP_POLL, rig.give(1, ARGUMENT, poll.as_bytes()), 0]
}

fn reset(rig: &Rig) -> [u64; 3] {
    [EVTCHNOP_RESET, rig.give(1, ARGUMENT, Reset { dom: SELF as u16 }.as_bytes()), 0]
}

#[test]
fn a_budget_is_spent_by_a_few_calls_that_go_through_a_list() {
    let rig = Rig::new(1);
    assert_eq!(
        left(&rig, Budget::HYPERCALL, number::XEN_VERSION, [0; 3]),
        None,
        "all of the smallest are done"
    );
    let polls = left(&rig, Budget::HYPERCALL, number::SCHED_OP, poll(&rig));
    assert_eq!(polls, Some(ENTRIES as u64 - 16), "two for each port");
    let resets = left(&rig, Budget::HYPERCALL, number::EVENT_CHANNEL_OP, reset(&rig));
    assert_eq!(resets, Some(ENTRIES as u64 - 16), "one for four ports");
    rig.check();
}

#[test]
fn a_large_structure_costs_more_than_an_operation() {
    let rig = Rig::new(1);
    let list = rig.give(1, LIST, &[0; 1024]);
    let map = MemoryMap { nr_entries: 32, buffer: list, ..MemoryMap::default() };
    let map = || [XENMEM_MEMORY_MAP, rig.give(1, ARGUMENT, map.as_bytes()), 0];
    let setup = SetupTable { dom: SELF as u16, nr_frames: 8, frame_list: list, ..SetupTable::default() };
    let setup = || [GNTTABOP_SETUP_TABLE.into(), rig.give(1, ARGUMENT, setup.as_bytes()), 1];
    // The table grows now, and not when that would be what is charged.
    assert_eq!(rig.call(1, number::GRANT_TABLE_OP, pad(setup())), Ok(0));
    // As much as the multicall's entries cost by themselves, and a little more.
    let budget = ENTRIES as u32 * Budget::OPERATION + 1;
    assert_eq!(left(&rig, budget, number::XEN_VERSION, [0; 3]), None);
    let text = || [XENVER_CAPABILITIES, list, 0];
    let calls: [(&str, u64, Prepare<'_>); 3] = [
        ("the domain's memory map", number::MEMORY_OP, &map),
        ("a text of 1024 bytes", number::XEN_VERSION, &text),
        ("the frames of a grant table", number::GRANT_TABLE_OP, &setup),
    ];
    for (what, operation, arguments) in calls {
        let left = left(&rig, budget, operation, arguments());
        assert!(left.is_some_and(|left| left > ENTRIES as u64 / 2), "{what}: {left:?}");
    }
    rig.check();
}

fn pad([first, second, third]: [u64; 3]) -> [u64; 6] {
    [first, second, third, 0, 0, 0]
}

#[test]
fn grants_cost_more_than_other_operations() {
    let rig = Rig::new(1);
    // All refused, which spares them little.
    let requests = [UnmapGrantRef { handle: u32::MAX, ..UnmapGrantRef::default() }; 130];
    let at = rig.give(1, 0, requests.as_bytes());
    let vcpu = rig.domains[1].vcpu();
    vcpu.context().take();
    let arguments = [GNTTABOP_UNMAP_GRANT_REF.into(), at, 130, 0, 0, 0];
    rig.hv.hypercall_within(vcpu, number::GRANT_TABLE_OP, arguments, &Budget::new(Budget::HYPERCALL));
    let left = vcpu.context().take().again.map(|[_, _, left, ..]| left);
    assert_eq!(left, Some(2), "128 within a hypercall's budget");
    rig.check();
}
