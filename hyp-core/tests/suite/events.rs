//! Event channels on the fake machine: who may do what, what each port becomes, and that no event gets lost.

use std::sync::atomic::Ordering;

use crate::common::{self, Rig, SELF};
use hyp_core::event::channel::PORTS;
use hyp_core::machine::FrameMemory;
use penumbra_abi::errno::Errno;
use penumbra_abi::event_channel::*;
use penumbra_abi::hypercall as number;
use penumbra_abi::{DOMID_INVALID, DOMID_XEN};
use proptest::prelude::*;

/// The port that a domain with a console page begins with.
const CONSOLE: u32 = 2;

/// The message goes from one domain to the other and back: pending bit, selector, upcall, and the hint for the backend.
#[test]
fn an_event_reaches_the_other_domain() {
    let rig = Rig::new(2);
    let (first, second) = rig.connect(1, 2);
    rig.mask_upcalls(2, 0, false);
    let told = rig.domains[2].vcpu();
    assert!(!rig.hv.upcall_due(told), "nothing yet");
    rig.send(1, first).unwrap();
    assert!(rig.is_pending(2, second) && !rig.is_pending(1, first));
    assert!(told.upcall_wanted() && rig.hv.upcall_due(told));
    assert_eq!(rig.acknowledge(2, 0), 1 << (second / 64));
    assert!(!rig.hv.upcall_due(told) && !told.upcall_wanted(), "the hint is forgotten");
    rig.clear_pending(2, second);
    rig.send(2, second).unwrap();
    assert!(rig.is_pending(1, first) && !rig.is_pending(2, second));
    rig.check();
}

/// A masked port only becomes pending; unmasking tells. A pending port isn't told twice.
#[test]
fn masks_hold_events_back_and_lose_none() {
    let rig = Rig::new(1);
    let port = rig.bind_ipi(1, 0).unwrap();
    rig.mask(1, port);
    rig.send(1, port).unwrap();
    assert!(rig.is_pending(1, port) && !rig.upcall_pending(1, 0));
    rig.on_port(1, EVTCHNOP_UNMASK, port).unwrap();
    assert!(rig.upcall_pending(1, 0));
    assert_eq!(rig.acknowledge(1, 0), 1);
    rig.send(1, port).unwrap();
    assert!(!rig.upcall_pending(1, 0), "it was pending already");
    rig.on_port(1, EVTCHNOP_UNMASK, port).unwrap();
    assert!(!rig.upcall_pending(1, 0), "it was unmasked already");
    // Upcalls that are masked stay pending, and are due once they aren't.
    rig.clear_pending(1, port);
    rig.mask_upcalls(1, 0, true);
    rig.send(1, port).unwrap();
    assert!(rig.upcall_pending(1, 0) && !rig.hv.upcall_due(rig.domains[1].vcpu()));
    assert!(rig.domains[1].vcpu().upcall_wanted(), "the hint stays");
    rig.mask_upcalls(1, 0, false);
    assert!(rig.hv.upcall_due(rig.domains[1].vcpu()));
}

/// A new connection has an event at once: one that was sent into the void before it may have been meant for it.
#[test]
fn what_was_sent_before_the_connection_is_made_good() {
    let rig = Rig::new(2);
    let waiting = rig.alloc_unbound(1, SELF, 2).unwrap();
    rig.send(1, waiting).unwrap();
    let port = rig.bind_interdomain(2, 1, waiting).unwrap();
    assert!(rig.is_pending(2, port) && rig.upcall_pending(2, 0));
}

#[test]
fn only_whom_a_port_waits_for_can_connect() {
    let rig = Rig::new(2);
    let waiting = rig.alloc_unbound(1, SELF, 2).unwrap();
    assert_eq!(rig.bind_interdomain(1, SELF, waiting), Err(Errno::EINVAL));
    assert_eq!(rig.bind_interdomain(0, 1, waiting), Err(Errno::EINVAL), "not even the control domain");
    assert_eq!(rig.bind_interdomain(2, 1, waiting + 1), Err(Errno::EINVAL), "closed");
    assert_eq!(rig.bind_interdomain(2, 1, 0), Err(Errno::EINVAL));
    assert_eq!(rig.bind_interdomain(2, 1, u32::MAX), Err(Errno::EINVAL));
    assert_eq!(rig.bind_interdomain(2, 9, waiting), Err(Errno::ESRCH));
    rig.bind_interdomain(2, 1, waiting).unwrap();
    assert_eq!(rig.bind_interdomain(2, 1, waiting), Err(Errno::EINVAL), "once");
    let status = rig.port_status(1, SELF, waiting).unwrap();
    assert_eq!((status.status, status.detail, status.remote_port), (EVTCHNSTAT_INTERDOMAIN, 2, 1));
}

#[test]
fn a_domain_deals_with_its_own_ports_only() {
    let rig = Rig::new(2);
    assert_eq!(rig.alloc_unbound(1, 2, 1), Err(Errno::EPERM));
    assert_eq!(rig.alloc_unbound(1, 0, 1), Err(Errno::EPERM));
    assert_eq!(rig.alloc_unbound(1, 9, 1), Err(Errno::ESRCH));
    assert_eq!(rig.port_status(1, 2, 1).map(drop), Err(Errno::EPERM));
    // The control domain opens a port for another, and looks at it.
    let port = rig.alloc_unbound(0, 2, 1).unwrap();
    let status = rig.port_status(0, 2, port).unwrap();
    assert_eq!((status.status, status.detail), (EVTCHNSTAT_UNBOUND, 1));
    assert_eq!(rig.port_status(2, SELF, port).unwrap().status, EVTCHNSTAT_UNBOUND);
    let reset = |who, dom| rig.channel(who, EVTCHNOP_RESET, Reset { dom });
    assert_eq!(reset(1, 2).map(drop), Err(Errno::EPERM));
    assert_eq!(reset(0, 2).map(drop), Err(Errno::EINVAL), "it isn't paused");
    reset(2, 2).unwrap();
    assert_eq!(rig.port_status(2, SELF, port).unwrap().status, EVTCHNSTAT_CLOSED);
}

#[test]
fn virtual_interrupts_are_bound_once() {
    let rig = Rig::new(1);
    let timer = rig.bind_virq(1, VIRQ_TIMER, 0).unwrap();
    assert_eq!(rig.bind_virq(1, VIRQ_TIMER, 0), Err(Errno::EEXIST));
    assert_eq!(rig.bind_virq(1, VIRQ_TIMER, 1), Err(Errno::ENOENT), "there is one vCPU");
    assert_eq!(rig.bind_virq(1, VIRQ_TIMER, u32::MAX), Err(Errno::ENOENT));
    assert_eq!(rig.bind_virq(1, NR_VIRQS, 0), Err(Errno::EINVAL));
    assert_eq!(rig.bind_virq(1, u32::MAX, 0), Err(Errno::EINVAL));
    assert_eq!(rig.bind_virq(1, VIRQ_CONSOLE, 1), Err(Errno::EINVAL), "it belongs to the domain");
    let status = rig.port_status(1, SELF, timer).unwrap();
    assert_eq!((status.status, status.detail), (EVTCHNSTAT_VIRQ, VIRQ_TIMER));
    assert_eq!(rig.send(1, timer), Err(Errno::EINVAL));
    rig.close(1, timer).unwrap();
    assert_eq!(rig.bind_virq(1, VIRQ_TIMER, 0), Ok(timer), "and again after it was closed");
}

/// Typed bytes and a domain's death are told to the control domain, and to nobody else.
#[test]
fn the_control_domain_hears_of_the_machine() {
    let rig = Rig::new(2);
    let ports = |who| [VIRQ_CONSOLE, VIRQ_DOM_EXC].map(|virq| rig.bind_virq(who, virq, 0).unwrap());
    let ([typed, died], others) = (ports(0), ports(1));
    rig.hv.console_input(b'x');
    assert!(rig.is_pending(0, typed) && !rig.is_pending(0, died));
    rig.bury(2);
    assert!(rig.is_pending(0, died));
    assert!(others.iter().all(|port| !rig.is_pending(1, *port)));
}

#[test]
fn every_port_but_the_first_can_be_had_and_comes_back() {
    let rig = Rig::new(1);
    rig.close(1, CONSOLE).unwrap();
    for expected in 1..PORTS as u32 {
        assert_eq!(rig.bind_ipi(1, 0), Ok(expected));
    }
    assert_eq!(rig.bind_ipi(1, 0), Err(Errno::ENOSPC));
    assert_eq!(rig.alloc_unbound(1, SELF, 0), Err(Errno::ENOSPC));
    assert_eq!(rig.bind_virq(1, VIRQ_TIMER, 0), Err(Errno::ENOSPC));
    rig.close(1, 700).unwrap();
    assert_eq!(rig.bind_ipi(1, 0), Ok(700));
    rig.channel(1, EVTCHNOP_RESET, Reset { dom: SELF as u16 }).unwrap();
    assert_eq!(rig.bind_ipi(1, 0), Ok(1));
}

#[test]
fn a_closed_port_has_no_event_and_its_other_end_waits_again() {
    let rig = Rig::new(2);
    let (first, second) = rig.connect(1, 2);
    rig.send(1, first).unwrap();
    rig.close(2, second).unwrap();
    assert!(!rig.is_pending(2, second));
    let status = rig.port_status(1, SELF, first).unwrap();
    assert_eq!((status.status, status.detail), (EVTCHNSTAT_UNBOUND, 2));
    assert_eq!(rig.close(2, second), Err(Errno::EINVAL));
    assert_eq!(rig.send(2, second), Err(Errno::EINVAL));
    assert_eq!(rig.send(1, first), Ok(()), "nobody is there, which is no error");
    assert_eq!(rig.bind_interdomain(2, 1, first), Ok(second), "it may connect again");
    // Within one domain, too.
    let one = rig.alloc_unbound(1, SELF, SELF).unwrap();
    let other = rig.bind_interdomain(1, SELF, one).unwrap();
    rig.clear_pending(1, other);
    rig.send(1, one).unwrap();
    assert!(rig.is_pending(1, other) && !rig.is_pending(1, one));
    rig.close(1, one).unwrap();
    assert_eq!(rig.port_status(1, SELF, other).unwrap().status, EVTCHNSTAT_UNBOUND);
}

/// The number of a dead domain may be another's later: whoever waited for the dead one must not be connected to the new one.
#[test]
fn a_dead_domains_ports_are_closed_and_nobody_waits_for_its_number() {
    let mut rig = Rig::new(2);
    let (first, second) = rig.connect(1, 2);
    let waiting = rig.alloc_unbound(1, SELF, 2).unwrap();
    rig.bury(2);
    assert!(rig.hv.domain(rig.domains[2].id()).is_none());
    for port in [first, waiting] {
        let status = rig.port_status(1, SELF, port).unwrap();
        assert_eq!((status.status, status.detail), (EVTCHNSTAT_UNBOUND, u32::from(DOMID_INVALID)));
        assert_eq!(rig.send(1, port), Ok(()));
    }
    let next = common::Guest::new(rig.hv, false);
    assert_eq!(next.id().number(), 2, "the number is given out again");
    rig.domains[2] = next;
    assert_eq!(rig.bind_interdomain(2, 1, waiting), Err(Errno::EINVAL));
    assert_eq!(rig.port_status(2, SELF, second).unwrap().status, EVTCHNSTAT_CLOSED);
    assert_eq!(rig.bind_virq(2, VIRQ_TIMER, 0), Ok(1), "nothing is left of the first life");
    rig.check();
}

/// A channel to a domain that is dying but not yet taken apart: events still go somewhere harmless, and no port is opened.
#[test]
fn a_dying_domain_opens_no_port() {
    let rig = Rig::new(2);
    let (first, _) = rig.connect(1, 2);
    rig.hv.kill(rig.domains[2].vcpu(), format_args!("a test"));
    rig.send(1, first).unwrap();
    assert_eq!(rig.alloc_unbound(0, 2, 1), Err(Errno::ESRCH));
    assert!(rig.bind_interdomain(1, 2, first).is_err());
    while rig.hv.background() {
        rig.send(1, first).unwrap();
        rig.check();
    }
}

#[test]
fn what_isnt_there_is_said_so() {
    let rig = Rig::new(1);
    let at = rig.give(1, 2048, &[0; 64]);
    let op = |operation, place| rig.call(1, number::EVENT_CHANNEL_OP, [operation, place, 0, 0, 0, 0]);
    for operation in [EVTCHNOP_INIT_CONTROL, EVTCHNOP_EXPAND_ARRAY, EVTCHNOP_SET_PRIORITY, 14, u64::MAX] {
        assert_eq!(op(operation, at), Err(Errno::ENOSYS));
    }
    assert_eq!(op(EVTCHNOP_BIND_PIRQ, at), Err(Errno::EINVAL));
    for operation in EVTCHNOP_BIND_INTERDOMAIN..=EVTCHNOP_RESET {
        let expected = if operation == EVTCHNOP_BIND_PIRQ { Errno::EINVAL } else { Errno::EFAULT };
        assert_eq!(op(operation, 0xffff_ffff_ffff_fff8), Err(expected), "{operation}");
    }
    for port in [0, PORTS as u32, 0x1_0001, u32::MAX] {
        for operation in [EVTCHNOP_SEND, EVTCHNOP_CLOSE, EVTCHNOP_UNMASK] {
            assert_eq!(rig.on_port(1, operation, port), Err(Errno::EINVAL));
        }
        assert_eq!(rig.bind_vcpu(1, port, 0), Err(Errno::EINVAL));
        assert_eq!(rig.port_status(1, SELF, port).map(drop), Err(Errno::EINVAL));
    }
}

/// The shared-info page is the guest's to fill with anything: only its own events suffer.
#[test]
fn a_guest_that_scribbles_over_its_bits_harms_nobody_else() {
    let rig = Rig::new(2);
    let (first, second) = rig.connect(1, 2);
    let page = rig.domains[1].domain.shared_info().unwrap();
    for index in 0..512 {
        rig.hv.machine().shared_word(page, index).unwrap().store(u64::MAX, Ordering::SeqCst);
    }
    rig.send(2, second).unwrap();
    rig.send(1, first).unwrap();
    assert!(rig.is_pending(2, second) && rig.upcall_pending(2, 0));
    rig.close(1, first).unwrap();
    rig.bury(1);
    rig.check();
}

/// What a port is in a model that knows nothing but the documentation.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Model {
    Unbound(usize),
    Connected(usize, u32),
    Ipi,
    /// The other end is the hypervisor, which finds nothing to show.
    Console,
}

#[derive(Clone, Debug)]
enum Step {
    Alloc(usize, usize),
    Connect(usize, usize, u32),
    Ipi(usize),
    Send(usize, u32),
    Close(usize, u32),
    Mask(usize, u32),
    Unmask(usize, u32),
    Take(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || 0..3usize;
    let port = || 1..7u32;
    let step = prop_oneof![
        2 => (who(), who()).prop_map(|(a, b)| Step::Alloc(a, b)),
        3 => (who(), who(), port()).prop_map(|(a, b, port)| Step::Connect(a, b, port)),
        1 => who().prop_map(Step::Ipi),
        6 => (who(), port()).prop_map(|(a, port)| Step::Send(a, port)),
        2 => (who(), port()).prop_map(|(a, port)| Step::Close(a, port)),
        2 => (who(), port()).prop_map(|(a, port)| Step::Mask(a, port)),
        2 => (who(), port()).prop_map(|(a, port)| Step::Unmask(a, port)),
        2 => who().prop_map(Step::Take),
    ];
    proptest::collection::vec(step, 1..120)
}

/// The model's ports, events sent and not yet taken, and masks.
#[derive(Default)]
struct World {
    ports: std::collections::BTreeMap<(usize, u32), Model>,
    pending: std::collections::BTreeSet<(usize, u32)>,
    masked: std::collections::BTreeSet<(usize, u32)>,
}

impl World {
    fn free(&self, who: usize) -> u32 {
        (1..).find(|port| !self.ports.contains_key(&(who, *port))).unwrap()
    }

    fn apply(&mut self, rig: &Rig, step: &Step) {
        match *step {
            Step::Alloc(a, b) => {
                let port = self.free(a);
                assert_eq!(rig.alloc_unbound(a, SELF, b as u64), Ok(port));
                self.ports.insert((a, port), Model::Unbound(b));
            }
            Step::Connect(a, b, remote) => {
                let waits = self.ports.get(&(b, remote)) == Some(&Model::Unbound(a));
                let port = self.free(a);
                let expected = if waits { Ok(port) } else { Err(Errno::EINVAL) };
                assert_eq!(rig.bind_interdomain(a, b as u64, remote), expected);
                if waits {
                    self.ports.insert((a, port), Model::Connected(b, remote));
                    self.ports.insert((b, remote), Model::Connected(a, port));
                    self.pending.insert((a, port));
                }
            }
            Step::Ipi(a) => {
                let port = self.free(a);
                assert_eq!(rig.bind_ipi(a, 0), Ok(port));
                self.ports.insert((a, port), Model::Ipi);
            }
            Step::Send(a, port) => {
                let target = match self.ports.get(&(a, port)) {
                    None => return assert_eq!(rig.send(a, port), Err(Errno::EINVAL)),
                    Some(Model::Unbound(_) | Model::Console) => None,
                    Some(Model::Connected(b, remote)) => Some((*b, *remote)),
                    Some(Model::Ipi) => Some((a, port)),
                };
                assert_eq!(rig.send(a, port), Ok(()));
                self.pending.extend(target);
            }
            Step::Close(a, port) => match self.ports.remove(&(a, port)) {
                None => assert_eq!(rig.close(a, port), Err(Errno::EINVAL)),
                Some(model) => {
                    assert_eq!(rig.close(a, port), Ok(()));
                    self.pending.remove(&(a, port));
                    // The other end of a connection to oneself is another port.
                    if let Model::Connected(b, remote) = model {
                        self.ports.insert((b, remote), Model::Unbound(a));
                    }
                }
            },
            Step::Mask(a, port) => {
                rig.mask(a, port);
                self.masked.insert((a, port));
            }
            Step::Unmask(a, port) => {
                rig.on_port(a, EVTCHNOP_UNMASK, port).unwrap();
                self.masked.remove(&(a, port));
            }
            Step::Take(a) => self.take(rig, a),
        }
    }

    /// The guest's handler: whatever is pending and not masked is found from the upcall and the selector alone.
    fn take(&mut self, rig: &Rig, who: usize) {
        let selected = rig.acknowledge(who, 0);
        let due: Vec<_> =
            self.pending.iter().filter(|key| key.0 == who && !self.masked.contains(key)).copied().collect();
        for key in due {
            assert!(selected & 1 << (key.1 / 64) != 0, "port {key:?} is pending, and nobody says so");
            rig.clear_pending(who, key.1);
            self.pending.remove(&key);
        }
    }

    fn compare(&self, rig: &Rig) {
        for who in 0..3 {
            for port in 1..20 {
                assert_eq!(
                    rig.is_pending(who, port),
                    self.pending.contains(&(who, port)),
                    "d{who} port {port}"
                );
                let status = rig.port_status(who, SELF, port).unwrap();
                let expected = match self.ports.get(&(who, port)) {
                    None => (EVTCHNSTAT_CLOSED, 0, 0),
                    Some(Model::Unbound(b)) => (EVTCHNSTAT_UNBOUND, *b as u32, 0),
                    Some(Model::Connected(b, remote)) => (EVTCHNSTAT_INTERDOMAIN, *b as u32, *remote),
                    Some(Model::Ipi) => (EVTCHNSTAT_IPI, 0, 0),
                    Some(Model::Console) => (EVTCHNSTAT_INTERDOMAIN, DOMID_XEN.into(), CONSOLE),
                };
                assert_eq!(
                    (status.status, status.detail, status.remote_port),
                    expected,
                    "d{who} port {port}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// No port is lost, no pending bit is lost or made up, and every event that isn't masked is told.
    #[test]
    fn ports_and_events_are_what_a_model_says(steps in steps()) {
        let rig = Rig::new(2);
        let mut world = World::default();
        world.ports.extend([1, 2].map(|guest| ((guest, CONSOLE), Model::Console)));
        for step in &steps {
            world.apply(&rig, step);
            world.compare(&rig);
        }
        for who in 0..3 {
            // An event that was masked when it came is told when it is unmasked, at the latest now.
            for port in 1..20 {
                rig.on_port(who, EVTCHNOP_UNMASK, port).unwrap();
            }
            world.masked.clear();
            world.take(&rig, who);
        }
        prop_assert!(world.pending.is_empty());
        rig.check();
    }

    /// Whatever a guest passes: an answer, and the books are right.
    #[test]
    fn arbitrary_operations_are_answered(
        operations in proptest::collection::vec((0..16u64, any::<[u32; 6]>(), 0..3usize), 1..60),
    ) {
        let rig = Rig::new(2);
        for (operation, words, who) in operations {
            let small = words.map(|word| if word % 3 == 0 { word } else { word % 8 });
            let at = rig.give(who, 2048, zerocopy::IntoBytes::as_bytes(&small));
            let _ = rig.call(who, number::EVENT_CHANNEL_OP, [operation, at, 0, 0, 0, 0]);
        }
        rig.bury(2);
        rig.check();
    }
}
