//! What belongs to the control domain, and what belongs to the console.

use crate::common::{Rig, SCRATCH, SELF, address};
use hyp_core::domain::vcpu::RunState;
use penumbra_abi::domctl::{self, Domctl};
use penumbra_abi::errno::Errno;
use penumbra_abi::sysctl::{self, Sysctl};
use penumbra_abi::{console, hypercall as number, memory, mmu, sched};
use zerocopy::IntoBytes;

/// Every call that could tell a guest about another domain, or change it.
#[test]
fn a_guest_has_no_right_to_the_control_domains_calls() {
    let rig = Rig::new(2);
    let place = address(SCRATCH);
    for target in [0, 2] {
        for command in [domctl::GETMEMLIST, domctl::GETDOMAININFO, domctl::DESTROYDOMAIN] {
            rig.give(1, 0, Domctl::new(command, target, &[]).as_bytes());
            assert_eq!(
                rig.call(1, number::DOMCTL, [place, 0, 0, 0, 0, 0]),
                Err(Errno::EPERM),
                "domctl {command}"
            );
        }
        rig.give(1, 0, &target.to_le_bytes());
        for operation in [memory::XENMEM_CURRENT_RESERVATION, memory::XENMEM_MAXIMUM_RESERVATION] {
            assert_eq!(rig.call(1, number::MEMORY_OP, [operation, place, 0, 0, 0, 0]), Err(Errno::EPERM));
        }
        let foreign = [place, 1, 0, u64::from(target), 0, 0];
        for call in [number::MMUEXT_OP, number::MMU_UPDATE] {
            assert_eq!(rig.call(1, call, foreign), Err(Errno::EPERM), "hypercall {call} for domain {target}");
        }
        let tables = [place, 1, 0, (u64::from(target) + 1) << 16 | SELF, 0, 0];
        assert_eq!(rig.call(1, number::MMU_UPDATE, tables), Err(Errno::EPERM));
        let other = [place, 0, mmu::UVMF_NONE, u64::from(target), 0, 0];
        assert_eq!(rig.call(1, number::UPDATE_VA_MAPPING_OTHERDOMAIN, other), Err(Errno::EPERM));
    }
    for command in [sysctl::READCONSOLE, sysctl::GETDOMAININFOLIST] {
        rig.give(1, 0, Sysctl::new(command, &[]).as_bytes());
        assert_eq!(rig.call(1, number::SYSCTL, [place, 0, 0, 0, 0, 0]), Err(Errno::EPERM));
    }
    let audit = [number::PENUMBRA_AUDIT, 0, 0, 0, 0, 0];
    assert_eq!(rig.call(1, number::PENUMBRA, audit), Err(Errno::EPERM));
    let read = [console::CONSOLEIO_READ, 16, place, 0, 0, 0];
    assert_eq!(rig.call(1, number::CONSOLE_IO, read), Err(Errno::EPERM));
    assert_eq!(rig.call(0, number::PENUMBRA, audit), Ok(0), "the control domain itself");
}

/// What the control domain reads from the console, at most 8 bytes.
fn typed(rig: &Rig) -> Vec<u8> {
    let read = [console::CONSOLEIO_READ, 8, address(SCRATCH), 0, 0, 0];
    let count = rig.call(0, number::CONSOLE_IO, read).unwrap() as usize;
    rig.word(0, 0).to_le_bytes()[..count].to_vec()
}

/// What the first domain's only vCPU does once it gets the CPU and asks to wait.
fn state_after_block(rig: &Rig) -> RunState {
    if rig.domains[0].vcpu().state() != RunState::Running {
        rig.hv.schedule();
        rig.hv.switched();
    }
    rig.call(0, number::SCHED_OP, [sched::SCHEDOP_BLOCK, 0, 0, 0, 0, 0]).unwrap();
    rig.domains[0].vcpu().state()
}

/// A domain that never reads what is typed isn't kept awake by it.
#[test]
fn what_is_typed_ends_one_wait() {
    let rig = Rig::new(0);
    rig.hv.console_input(b'x');
    assert_eq!(state_after_block(&rig), RunState::Running, "there is something to read");
    assert_eq!(state_after_block(&rig), RunState::Blocked, "which it doesn't");
    for byte in b"12345678" {
        rig.hv.console_input(*byte);
    }
    assert_eq!(rig.domains[0].vcpu().state(), RunState::Runnable, "woken by more");
    assert_eq!(typed(&rig), b"x1234567", "eight at a time");
    assert_eq!(state_after_block(&rig), RunState::Running, "who has read is told of the rest");
    assert_eq!(typed(&rig), b"8");
    assert_eq!(state_after_block(&rig), RunState::Blocked);
}

#[test]
fn ctrl_a_three_times_and_not_twice_switches_the_input() {
    let rig = Rig::new(0);
    let type_in = |bytes: &[u8]| bytes.iter().for_each(|byte| rig.hv.console_input(*byte));
    type_in(b"\x01\x01x");
    assert_eq!(typed(&rig), b"\x01\x01x");
    type_in(b"\x01\x01\x01q\x01\x01");
    assert_eq!(typed(&rig), b"");
    type_in(b"\x01y");
    assert_eq!(typed(&rig), b"y");
}

#[test]
fn the_old_root_is_let_go_only_when_the_new_one_is_loaded() {
    let rig = Rig::new(1);
    let old = rig.domains[1].root;
    let is_guests = |index: &usize| !hyp_core::fake::format::RESERVED_SLOTS.contains(index);
    let entries: Vec<_> = (0..32).filter(is_guests).map(|index| (index, rig.entry(old, index))).collect();
    let new = rig.prepare(1, 0, &entries);
    // From now on the vCPU's hold is the only one.
    rig.unpin(1, old).unwrap();
    rig.new_root(1, new).unwrap();
    assert_eq!(rig.uses(old), 0, "the old root was not let go");
    assert_eq!(rig.hv.machine().harmed_roots(), 0);
    assert_eq!(rig.hv.audit().findings, 0);
}
