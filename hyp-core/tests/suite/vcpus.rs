//! Several vCPUs a domain, their timers, and waiting: on the fake machine.

use std::sync::atomic::Ordering;

use crate::common::{self, POOL, Rig, SELF, leaf, place, table};
use hyp_core::Next;
use hyp_core::domain::MAX_VCPUS;
use hyp_core::domain::vcpu::RunState;
use hyp_core::fake::FakeStart;
use hyp_core::paging::Budget;
use penumbra_abi::errno::Errno;
use penumbra_abi::event_channel::{VIRQ_TIMER, *};
use penumbra_abi::hypercall as number;
use penumbra_abi::sched::*;
use penumbra_abi::vcpu::*;
use zerocopy::{FromZeros, IntoBytes};

/// A rig whose domain 1 has so many vCPUs.
fn rig(vcpus: u8) -> Rig {
    let rig = Rig::new(1);
    rig.domains[1].domain.set_vcpu_count(vcpus);
    rig
}

fn state(rig: &Rig, vcpu: usize) -> RunState {
    rig.domains[1].domain.vcpus[vcpu].state()
}

/// Domain 1's vCPU 0 gets the CPU; whoever else can run has had a turn before.
fn run(rig: &Rig) {
    for _ in 0..32 {
        match rig.hv.schedule() {
            Next::Run(vcpu) if std::ptr::eq(vcpu, rig.domains[1].vcpu()) => return rig.hv.switched(),
            Next::Run(_) | Next::Idle => rig.hv.switched(),
        }
    }
    panic!("domain 1 doesn't get the CPU");
}

fn sched(rig: &Rig, operation: u64, bytes: &[u8]) -> Result<u64, Errno> {
    let at = rig.give(1, 2048, bytes);
    rig.call(1, number::SCHED_OP, [operation, at, 0, 0, 0, 0])
}

fn poll(rig: &Rig, ports: &[u32], timeout: u64) -> Result<u64, Errno> {
    let ports_at = rig.give(1, 3000, ports.as_bytes());
    let request = SchedPoll { ports: ports_at, nr_ports: ports.len() as u32, pad: 0, timeout };
    sched(rig, SCHEDOP_POLL, request.as_bytes())
}

#[test]
fn a_domain_has_the_vcpus_it_was_given() {
    let rig = rig(2);
    let up = |vcpu| rig.vcpu_op(1, VCPUOP_IS_UP, vcpu, 0u64);
    assert_eq!((up(0), up(1)), (Ok(1), Ok(0)));
    for vcpu in [2, MAX_VCPUS as u64, u64::from(u32::MAX) + 1, u64::MAX] {
        for operation in 0..=VCPUOP_SEND_NMI {
            assert_eq!(rig.vcpu_op(1, operation, vcpu, 0u64), Err(Errno::ENOENT), "{operation} {vcpu:#x}");
        }
    }
    for operation in [12, 13, u64::MAX] {
        assert_eq!(rig.vcpu_op(1, operation, 0, 0u64), Err(Errno::ENOSYS));
    }
    assert_eq!(rig.vcpu_op(1, VCPUOP_UP, 1, 0u64), Err(Errno::EINVAL), "it has no registers");
}

/// The root that a vCPU starts with is validated and held like any other, and let go when the domain dies.
#[test]
fn a_second_vcpu_starts_on_a_root_that_is_held() {
    let rig = rig(2);
    let root = rig.domains[1].root;
    let low = rig.prepare(1, 0, &[(0, leaf(rig.pool(1, 3), false))]);
    let middle = rig.prepare(1, 1, &[(0, table(low))]);
    let own = rig.prepare(1, 2, &[(0, table(middle))]);
    assert_eq!(rig.initialise(1, 1, low.number()), Err(Errno::EINVAL), "it has the wrong level");
    rig.check();
    assert_eq!(rig.initialise(1, 1, own.number()), Ok(0));
    assert_eq!(rig.uses(own), 1);
    assert_eq!(rig.domains[1].domain.vcpus[1].context().take().entry, 0x1000);
    assert!(rig.remap(1, POOL + 2, leaf(own, true)).is_err(), "a held root isn't writable");
    assert_eq!(rig.initialise(1, 1, root.number()), Err(Errno::EEXIST));
    assert_eq!(rig.initialise(1, 0, root.number()), Err(Errno::EEXIST));
    rig.check();
    assert_eq!(rig.vcpu_op(1, VCPUOP_UP, 1, 0u64), Ok(0));
    assert_eq!(state(&rig, 1), RunState::Runnable);
    let ran = |_| matches!(rig.hv.schedule(), Next::Run(vcpu) if vcpu.index() == 1);
    assert!((0..8).any(ran), "it gets its turn");
    rig.check();
    // Its roots stay until the CPU has left them.
    rig.hv.kill(rig.domains[1].vcpu(), format_args!("a test"));
    assert!(!rig.hv.background());
    assert_eq!(rig.uses(own), 1);
    let _ = rig.hv.schedule();
    rig.hv.switched();
    rig.bury(1);
    assert_eq!(rig.hv.frames().hold(own).unwrap().owner, None);
    rig.check();
}

#[test]
fn a_vcpu_doesnt_start_with_what_isnt_the_domains() {
    let rig = rig(3);
    let foreign = rig.domains[0].root.number();
    for bad in [0, foreign, rig.pool(1, 0).number(), 1 << 39, u64::MAX] {
        assert_eq!(rig.initialise(1, 1, bad), Err(Errno::EINVAL), "{bad:#x}");
        rig.check();
    }
    let start = FakeStart { entry: 0, kernel_root: rig.domains[1].root.number(), user_root: 0 };
    assert_eq!(rig.vcpu_op(1, VCPUOP_INITIALISE, 1, start), Err(Errno::EINVAL), "the forbidden state");
    let start = FakeStart { entry: 1, user_root: foreign, ..start };
    assert_eq!(rig.vcpu_op(1, VCPUOP_INITIALISE, 1, start), Err(Errno::EINVAL), "a foreign user root");
    assert_eq!(rig.call(1, number::VCPU_OP, [VCPUOP_INITIALISE, 1, 8, 0, 0, 0]), Err(Errno::EFAULT));
    assert_eq!(rig.initialise(1, 2, rig.domains[1].root.number()), Err(Errno::EINVAL), "it has no vcpu_info");
    rig.check();
    rig.bury(1);
    rig.check();
}

/// A registered `vcpu_info` is written by the hypervisor for ever, so its page never becomes a table; nothing pending is lost.
#[test]
fn a_vcpu_info_moves_once_and_its_page_stays_a_page() {
    let rig = rig(3);
    let frame = rig.pool(1, 0);
    let register = |vcpu, mfn, offset| {
        rig.vcpu_op(1, VCPUOP_REGISTER_VCPU_INFO, vcpu, RegisterVcpuInfo { mfn, offset, rsvd: 0 })
    };
    for offset in [4096 - 48, 4096, u32::MAX] {
        assert_eq!(register(2, frame.number(), offset), Err(Errno::ENXIO), "{offset}");
    }
    for (mfn, offset) in [
        (frame.number(), 4),
        (rig.domains[1].root.number(), 0),
        (rig.domains[0].p2m[POOL as usize].number(), 0),
        (0, 0),
        (u64::MAX, 0),
    ] {
        assert_eq!(register(2, mfn, offset), Err(Errno::EINVAL), "{mfn:#x} {offset}");
    }
    let uses = rig.uses(frame);
    assert_eq!(register(2, frame.number(), 4096 - 56), Ok(0));
    assert_eq!(register(2, frame.number(), 0), Err(Errno::EINVAL), "once");
    assert_eq!(rig.uses(frame), uses + 1);
    let vcpu = &rig.domains[1].domain.vcpus[2];
    assert_eq!(rig.info(vcpu, 0).load(Ordering::SeqCst), 0x101, "pending, and masked as at first");
    assert_eq!(rig.info(vcpu, 1).load(Ordering::SeqCst), u64::MAX);
    assert_eq!(vcpu.context().take().vcpu_info, Some((frame, 4096 - 56)));
    // vCPU 0 takes what it had with it.
    rig.mask_upcalls(1, 0, false);
    rig.info(rig.domains[1].vcpu(), 2).store(0x1234, Ordering::SeqCst);
    assert_eq!(register(0, rig.pool(1, 1).number(), 64), Ok(0));
    assert_eq!(rig.info(rig.domains[1].vcpu(), 0).load(Ordering::SeqCst), 1);
    assert_eq!(rig.info(rig.domains[1].vcpu(), 2).load(Ordering::SeqCst), 0x1234);
    // Without any mapping it is still no table, and given back it is still there.
    rig.remap(1, POOL, 0).unwrap();
    assert!(rig.pin(1, frame, 1).is_err());
    rig.check();
    rig.bury(1);
    rig.check();
    assert_eq!(rig.hv.frames().hold(frame).unwrap().owner, None);
}

#[test]
fn another_running_vcpus_info_stays_where_it_is() {
    let rig = rig(2);
    rig.initialise(1, 1, rig.domains[1].root.number()).unwrap();
    rig.vcpu_op(1, VCPUOP_UP, 1, 0u64).unwrap();
    let request = RegisterVcpuInfo { mfn: rig.pool(1, 0).number(), offset: 0, rsvd: 0 };
    assert_eq!(rig.vcpu_op(1, VCPUOP_REGISTER_VCPU_INFO, 1, request), Err(Errno::EINVAL));
    rig.vcpu_op(1, VCPUOP_DOWN, 1, 0u64).unwrap();
    assert_eq!(rig.vcpu_op(1, VCPUOP_REGISTER_VCPU_INFO, 1, request), Ok(0));
}

#[test]
fn the_last_vcpu_that_goes_down_takes_the_domain_along() {
    let rig = rig(2);
    rig.initialise(1, 1, rig.domains[1].root.number()).unwrap();
    rig.vcpu_op(1, VCPUOP_UP, 1, 0u64).unwrap();
    assert_eq!(rig.vcpu_op(1, VCPUOP_DOWN, 1, 0u64), Ok(0));
    assert_eq!((state(&rig, 0), state(&rig, 1)), (RunState::Runnable, RunState::Offline));
    assert_eq!(rig.vcpu_op(1, VCPUOP_UP, 1, 0u64), Ok(0), "and up again, where it was");
    assert_eq!(rig.vcpu_op(1, VCPUOP_DOWN, 1, 0u64), Ok(0));
    assert_eq!(rig.vcpu_op(1, VCPUOP_DOWN, 0, 0u64), Ok(0));
    while rig.hv.background() {}
    assert!(rig.hv.domain(rig.domains[1].id()).is_none());
    rig.check();
}

/// An event for a blocked vCPU wakes it, an earlier one doesn't let it sleep, and masks don't keep it asleep.
#[test]
fn a_blocked_vcpu_wakes_by_an_event() {
    let rig = rig(1);
    let port = rig.bind_ipi(1, 0).unwrap();
    run(&rig);
    rig.mask_upcalls(1, 0, true);
    sched(&rig, SCHEDOP_BLOCK, &[]).unwrap();
    assert_eq!(state(&rig, 0), RunState::Blocked);
    assert_eq!(rig.domains[1].vcpu().context().take().unmasked, 1);
    rig.send(1, port).unwrap();
    assert_eq!(state(&rig, 0), RunState::Runnable);
    assert!(rig.hv.upcall_due(rig.domains[1].vcpu()), "it was unmasked when it went to sleep");
    run(&rig);
    sched(&rig, SCHEDOP_BLOCK, &[]).unwrap();
    assert_eq!(state(&rig, 0), RunState::Running, "the event is still there");
    rig.acknowledge(1, 0);
    sched(&rig, SCHEDOP_BLOCK, &[]).unwrap();
    assert_eq!(state(&rig, 0), RunState::Blocked);
    // A masked port doesn't end it; unmasking does.
    rig.clear_pending(1, port);
    rig.mask(1, port);
    rig.send(1, port).unwrap();
    assert_eq!(state(&rig, 0), RunState::Blocked);
    rig.on_port(1, EVTCHNOP_UNMASK, port).unwrap();
    assert_eq!(state(&rig, 0), RunState::Runnable);
}

#[test]
fn a_poll_ends_with_its_port_or_its_time() {
    let rig = rig(1);
    let [polled, other] = [(); 2].map(|()| rig.bind_ipi(1, 0).unwrap());
    [polled, other].iter().for_each(|port| rig.mask(1, *port));
    run(&rig);
    poll(&rig, &[polled], 0).unwrap();
    assert_eq!(state(&rig, 0), RunState::Blocked);
    rig.send(1, other).unwrap();
    assert_eq!(state(&rig, 0), RunState::Blocked, "not by another port");
    rig.send(1, polled).unwrap();
    assert_eq!(state(&rig, 0), RunState::Runnable);
    run(&rig);
    poll(&rig, &[polled], 0).unwrap();
    assert_eq!(state(&rig, 0), RunState::Running, "it is there already");
    rig.clear_pending(1, polled);
    let later = rig.hv.machine().advance(0) + 1_000_000;
    poll(&rig, &[polled], later).unwrap();
    rig.hv.tick();
    assert_eq!(state(&rig, 0), RunState::Blocked);
    rig.hv.machine().advance(1_000_000);
    rig.hv.tick();
    assert_eq!(state(&rig, 0), RunState::Runnable);
    run(&rig);
    poll(&rig, &[polled], 1).unwrap();
    assert_eq!(state(&rig, 0), RunState::Running, "that time has passed");
    rig.clear_pending(1, other);
    poll(&rig, &[polled, other], 0).unwrap();
    rig.send(1, other).unwrap();
    assert_eq!(state(&rig, 0), RunState::Runnable, "one of several");
    run(&rig);
    assert_eq!(poll(&rig, &[0; 129], 0), Err(Errno::EINVAL));
    assert_eq!(poll(&rig, &[polled, 1024], 0), Err(Errno::EINVAL));
    assert_eq!(state(&rig, 0), RunState::Running, "a poll that is refused doesn't wait");
    let request = SchedPoll { ports: 8, nr_ports: 1, pad: 0, timeout: 0 };
    assert_eq!(sched(&rig, SCHEDOP_POLL, request.as_bytes()), Err(Errno::EFAULT));
}

#[test]
fn timers_fire_once_in_time_and_not_when_stopped() {
    let (rig, fired) = with_timer();
    let fired = || fired(&rig);
    let now = || rig.hv.machine().advance(0);
    let set = |when, flags| {
        rig.vcpu_op(
            1,
            VCPUOP_SET_SINGLESHOT_TIMER,
            0,
            SetSingleshotTimer { timeout_abs_ns: when, flags, pad: 0 },
        )
    };
    let timer_op = |when: u64| rig.call(1, number::SET_TIMER_OP, [when, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(set(1, 0), Ok(0));
    assert!(fired(), "a time that has passed");
    assert_eq!(set(1, VCPU_SSHOTTMR_FUTURE), Err(Errno::ETIME));
    for by_timer_op in [false, true] {
        let when = now() + 5_000_000;
        if by_timer_op {
            timer_op(when)
        } else {
            set(when, 0).unwrap()
        };
        rig.hv.tick();
        assert!(!fired(), "too early");
        rig.hv.machine().advance(5_000_000);
        rig.hv.tick();
        assert!(fired());
        rig.hv.machine().advance(50_000_000);
        rig.hv.tick();
        assert!(!fired(), "once");
    }
    set(now() + 5_000_000, 0).unwrap();
    rig.vcpu_op(1, VCPUOP_STOP_SINGLESHOT_TIMER, 0, 0u64).unwrap();
    timer_op(now() + 5_000_000);
    timer_op(0);
    rig.hv.machine().advance(50_000_000);
    rig.hv.tick();
    assert!(!fired(), "stopped");
}

/// A vCPU of domain 1, its timer's port, and whether that has fired since it was asked last.
fn with_timer() -> (Rig, impl Fn(&Rig) -> bool) {
    let rig = rig(1);
    let port = rig.bind_virq(1, VIRQ_TIMER, 0).unwrap();
    let fired = move |rig: &Rig| {
        let fired = rig.is_pending(1, port);
        rig.clear_pending(1, port);
        rig.acknowledge(1, 0);
        fired
    };
    (rig, fired)
}

#[test]
fn timers_beyond_sense_and_periodic_ones_fire() {
    let (rig, fired) = with_timer();
    let fired = || fired(&rig);
    // Times beyond sense come after 100 ms, as in Xen.
    for nonsense in [u64::MAX, 1 << 63, rig.hv.machine().advance(0) + (1 << 51)] {
        rig.call(1, number::SET_TIMER_OP, [nonsense, 0, 0, 0, 0, 0]).unwrap();
        rig.hv.tick();
        assert!(!fired());
        rig.hv.machine().advance(101_000_000);
        rig.hv.tick();
        assert!(fired());
    }
    assert_eq!(rig.vcpu_op(1, VCPUOP_SET_PERIODIC_TIMER, 0, 999_999u64), Err(Errno::EINVAL));
    assert_eq!(rig.vcpu_op(1, VCPUOP_SET_PERIODIC_TIMER, 0, u64::MAX), Err(Errno::EINVAL));
    rig.vcpu_op(1, VCPUOP_SET_PERIODIC_TIMER, 0, 1_000_000u64).unwrap();
    for _ in 0..3 {
        // Many periods at once are one event.
        rig.hv.machine().advance(10_000_000);
        rig.hv.tick();
        assert!(fired());
        rig.hv.tick();
        assert!(!fired());
    }
    rig.vcpu_op(1, VCPUOP_STOP_PERIODIC_TIMER, 0, 0u64).unwrap();
    rig.hv.machine().advance(10_000_000);
    rig.hv.tick();
    assert!(!fired());
}

#[test]
fn only_ones_own_singleshot_timer_can_be_set() {
    let rig = rig(2);
    let timer = SetSingleshotTimer { timeout_abs_ns: 1, ..SetSingleshotTimer::default() };
    assert_eq!(rig.vcpu_op(1, VCPUOP_SET_SINGLESHOT_TIMER, 1, timer), Err(Errno::EINVAL));
    assert_eq!(rig.vcpu_op(1, VCPUOP_STOP_SINGLESHOT_TIMER, 1, 0u64), Err(Errno::EINVAL));
}

/// A non-maskable interrupt comes to a vCPU that sleeps with its events masked, and to one that has never run.
#[test]
fn a_non_maskable_interrupt_wakes() {
    let rig = rig(2);
    let send = |vcpu| rig.call(1, number::VCPU_OP, [VCPUOP_SEND_NMI, vcpu, 0, 0, 0, 0]);
    let came = |vcpu: usize| rig.domains[1].domain.vcpus[vcpu].context().take().non_maskable;
    run(&rig);
    sched(&rig, SCHEDOP_BLOCK, &[]).unwrap();
    rig.mask_upcalls(1, 0, true);
    assert_eq!(rig.vcpu_op(1, VCPUOP_SEND_NMI, 0, 0u64), Err(Errno::EINVAL), "it has no argument");
    assert_eq!((state(&rig, 0), came(0)), (RunState::Blocked, 0));
    assert_eq!(send(0), Ok(0));
    assert_eq!((state(&rig, 0), came(0)), (RunState::Runnable, 1));
    assert!(rig.hv.reschedule_wanted());
    assert_eq!(send(1), Ok(0));
    assert_eq!((state(&rig, 1), came(1)), (RunState::Offline, 1));
    assert_eq!(send(2), Err(Errno::ENOENT));
}

/// A timer wakes a vCPU that sleeps, and a dead domain's never fires.
#[test]
fn a_timer_wakes() {
    let rig = rig(1);
    rig.bind_virq(1, VIRQ_TIMER, 0).unwrap();
    run(&rig);
    rig.call(1, number::SET_TIMER_OP, [rig.hv.machine().advance(0) + 1_000_000, 0, 0, 0, 0, 0]).unwrap();
    sched(&rig, SCHEDOP_BLOCK, &[]).unwrap();
    assert_eq!(state(&rig, 0), RunState::Blocked);
    rig.hv.machine().advance(1_000_000);
    rig.hv.tick();
    assert_eq!(state(&rig, 0), RunState::Runnable);
    rig.call(1, number::SET_TIMER_OP, [rig.hv.machine().advance(0) + 1_000_000, 0, 0, 0, 0, 0]).unwrap();
    rig.bury(1);
    rig.hv.machine().advance(1_000_000);
    rig.hv.tick();
    rig.check();
}

/// All the time there is lies in one of the four states.
#[test]
fn the_account_of_time_adds_up() {
    let rig = rig(1);
    let read = || {
        rig.vcpu_op(1, VCPUOP_GET_RUNSTATE_INFO, 0, RunstateInfo::new_zeroed()).unwrap();
        rig.take::<RunstateInfo>(1, 2048)
    };
    let port = rig.bind_ipi(1, 0).unwrap();
    run(&rig);
    let before = read();
    assert_eq!(before.state, RUNSTATE_RUNNING);
    rig.hv.machine().advance(1000);
    sched(&rig, SCHEDOP_BLOCK, &[]).unwrap();
    rig.hv.machine().advance(10_000);
    rig.send(1, port).unwrap();
    rig.hv.machine().advance(100_000);
    run(&rig);
    let after = read();
    let spent = [0, 1, 2, 3].map(|state| after.time[state] - before.time[state]);
    assert!((1000..1500).contains(&spent[0]) && (100_000..100_500).contains(&spent[1]), "{spent:?}");
    assert!((10_000..10_500).contains(&spent[2]) && spent[3] == 0, "{spent:?}");
    assert!(after.state_entry_time > before.state_entry_time);
    // And where the guest has asked for it, it stands in its memory without being asked.
    let area = common::address(common::SCRATCH) + 3072;
    rig.vcpu_op(1, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, 0, area).unwrap();
    assert_eq!(rig.take::<RunstateInfo>(1, 3072).state_entry_time, after.state_entry_time);
    rig.hv.machine().advance(1000);
    run(&rig);
    let published = rig.take::<RunstateInfo>(1, 3072);
    assert!(published.state == RUNSTATE_RUNNING && published.state_entry_time > after.state_entry_time);
    // An area that can't be written is nobody's misfortune.
    rig.vcpu_op(1, VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, 0, 0xffff_ffff_ffff_fff8u64).unwrap();
    run(&rig);
}

/// Events go to the vCPU that was chosen for them.
#[test]
fn events_go_to_the_vcpu_that_was_named() {
    let rig = rig(2);
    let [to_first, to_second] = [0, 1].map(|vcpu| rig.bind_ipi(1, vcpu).unwrap());
    rig.send(1, to_second).unwrap();
    assert!(!rig.upcall_pending(1, 0) && rig.upcall_pending(1, 1));
    rig.send(1, to_first).unwrap();
    assert!(rig.upcall_pending(1, 0));
    for vcpu in [0, 1] {
        rig.acknowledge(1, vcpu);
    }
    let [one, other] = [(); 2].map(|()| rig.alloc_unbound(1, SELF, SELF).unwrap());
    let end = rig.bind_interdomain(1, SELF, one).unwrap();
    rig.acknowledge(1, 0);
    rig.clear_pending(1, end);
    assert_eq!(rig.bind_vcpu(1, end, 1), Ok(()));
    assert_eq!(rig.bind_vcpu(1, other, 1), Ok(()));
    assert_eq!(rig.bind_vcpu(1, end, 2), Err(Errno::ENOENT));
    assert_eq!(rig.bind_vcpu(1, to_first, 1), Err(Errno::EINVAL), "an IPI belongs to its vCPU");
    let timer = rig.bind_virq(1, VIRQ_TIMER, 1).unwrap();
    assert_eq!(rig.bind_vcpu(1, timer, 0), Err(Errno::EINVAL));
    let console = rig.bind_virq(1, VIRQ_CONSOLE, 0).unwrap();
    assert_eq!(rig.bind_vcpu(1, console, 1), Ok(()));
    rig.send(1, one).unwrap();
    assert!(rig.upcall_pending(1, 1) && !rig.upcall_pending(1, 0));
    assert_eq!(rig.port_status(1, SELF, end).unwrap().vcpu, 1);
    rig.check();
}

/// A root too large for one go: preempted again and again, it is still held once, and nothing is left over.
#[test]
fn starting_a_vcpu_can_be_preempted() {
    let rig = rig(2);
    let lows: Vec<_> =
        (0..8).map(|index| rig.prepare(1, index, &[(0, leaf(rig.pool(1, 20), false))])).collect();
    let entries: Vec<_> = lows.iter().enumerate().map(|(index, low)| (index, table(*low))).collect();
    let middle = rig.prepare(1, 8, &entries);
    let own = rig.prepare(1, 9, &[(0, table(middle))]);
    let start = FakeStart { entry: 1, kernel_root: own.number(), user_root: rig.domains[1].root.number() };
    let at = rig.give(1, 2048, start.as_bytes());
    let arguments = [VCPUOP_INITIALISE, 1, at, 0, 0, 0];
    let vcpu = rig.domains[1].vcpu();
    let mut preempted = 0;
    rig.hv.machine().set_root(rig.domains[1].root);
    loop {
        vcpu.context().take();
        rig.hv.hypercall_within(vcpu, number::VCPU_OP, arguments, &Budget::new(20));
        let registers = vcpu.context().take();
        rig.check();
        match (registers.result, registers.again) {
            (Some(result), None) => break assert_eq!(result, 0),
            _ => preempted += 1,
        }
    }
    assert!(preempted > 3, "{preempted}");
    assert_eq!(rig.uses(own), 1);
    rig.update(1, &[(place(middle, 0), 0)]).unwrap();
    rig.bury(1);
    rig.check();
}
