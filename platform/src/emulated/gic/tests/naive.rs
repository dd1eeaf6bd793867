//! A guest that acknowledges and ends at random, against a model that knows nothing of words or list registers.

use proptest::prelude::*;

use super::*;

const VCPUS: usize = 2;
const INTIDS: [u32; 12] = [1, 5, 20, 22, 32, 33, 40, 41, 42, 43, 100, 287];

/// What happens next; interrupts by their place in [`INTIDS`].
#[derive(Clone, Debug)]
enum Step {
    Raise(usize, usize),
    Send(usize, usize),
    Lower(usize),
    Enable(usize, usize, bool),
    Priority(usize, usize, u8),
    Route(usize, usize),
    Clear(usize, usize),
    Acknowledge(usize),
    End(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (vcpu, which) = (0..VCPUS, 0..INTIDS.len());
    let step = prop_oneof![
        8 => (vcpu.clone(), which.clone()).prop_map(|(vcpu, which)| Step::Raise(vcpu, which)),
        4 => (vcpu.clone(), 0..2usize).prop_map(|(vcpu, which)| Step::Send(vcpu, which)),
        2 => which.clone().prop_map(Step::Lower),
        2 => (vcpu.clone(), which.clone(), any::<bool>()).prop_map(|(vcpu, which, on)| Step::Enable(vcpu, which, on)),
        2 => (vcpu.clone(), which.clone(), 0..31u8).prop_map(|(vcpu, which, to)| Step::Priority(vcpu, which, to * 8)),
        1 => (vcpu.clone(), which.clone()).prop_map(|(vcpu, which)| Step::Route(vcpu, which)),
        1 => (vcpu.clone(), which).prop_map(|(vcpu, which)| Step::Clear(vcpu, which)),
        8 => vcpu.clone().prop_map(Step::Acknowledge),
        7 => vcpu.prop_map(Step::End),
    ];
    prop::collection::vec(step, 0..200)
}

/// One interrupt at one vCPU, or a shared one.
#[derive(Clone, Default)]
struct Naive {
    senders: u8,
    latched: bool,
    line: bool,
    enabled: bool,
    active: bool,
    priority: u8,
    route: usize,
}

struct World {
    version: Version,
    gic: Box<VirtualGic>,
    lists: [Fake; VCPUS],
    waiting: [bool; VCPUS],
    naive: [[Naive; INTIDS.len()]; VCPUS],
    /// What each vCPU has acknowledged and not ended, and at which priority.
    stack: [Vec<(usize, u8)>; VCPUS],
}

/// Odd shared ones are edge-triggered.
fn is_edge(intid: u32) -> bool {
    intid < 16 || intid >= 32 && intid % 2 == 1
}

impl World {
    fn new(version: Version, count: usize) -> Self {
        let naive = [const {
            [const {
                Naive {
                    senders: 0,
                    latched: false,
                    line: false,
                    enabled: true,
                    active: false,
                    priority: 0,
                    route: 0,
                }
            }; INTIDS.len()]
        }; VCPUS];
        let mut gic = Box::new(VirtualGic::new());
        gic.begin(version, VCPUS);
        let mut write = |offset, width, value| gic.distributor_write(0, offset, width, value).unwrap();
        write(0, Width::Word, 3);
        for word in 1..9 {
            write(0x100 + 4 * word, Width::Word, u64::MAX);
        }
        for word in 2..18 {
            write(0xc00 + 4 * word, Width::Word, 0x8888_8888);
        }
        if version == Version::V2 {
            (32..288).for_each(|intid| write(0x800 + intid, Width::Byte, 1));
        }
        let mut world = Self {
            version,
            gic,
            lists: [Fake::new(count), Fake::new(count)],
            waiting: [false; 2],
            naive,
            stack: [vec![], vec![]],
        };
        for vcpu in 0..VCPUS {
            world.write(vcpu, 0x100, Width::Word, u64::MAX);
        }
        world
    }

    /// A register of an interrupt, wherever this version has it.
    fn write(&mut self, vcpu: usize, offset: u64, width: Width, value: u64) {
        let private = match offset {
            0x400..0x800 => offset < 0x420,
            _ => offset & 0x7f == 0,
        };
        if self.version == Version::V3 && private {
            self.gic.redistributor_write(vcpu, 0x1_0000 + offset, width, value).unwrap();
        } else {
            self.gic.distributor_write(vcpu, offset, width, value).unwrap();
        }
    }

    fn take_back(&mut self) {
        for (vcpu, lists) in self.lists.iter_mut().enumerate() {
            self.gic.take_back(vcpu, lists);
        }
    }

    fn hand_out(&mut self) {
        for (vcpu, lists) in self.lists.iter_mut().enumerate() {
            self.waiting[vcpu] = self.gic.hand_out(vcpu, lists);
        }
    }

    /// Somebody's line or edge: the short way where it can be had.
    fn deliver(&mut self, intid: u32) {
        let changed = self.gic.take_changed();
        for vcpu in 0..VCPUS {
            if changed & 1 << vcpu != 0 && !self.gic.try_one(vcpu, intid, &mut self.lists[vcpu]) {
                self.waiting[vcpu] = self.gic.hand_out(vcpu, &mut self.lists[vcpu]);
            }
        }
    }

    /// The maintenance interrupts of running out, as the hardware asserts them.
    fn maintain(&mut self, vcpu: usize) {
        let used = self.lists[vcpu].registers.iter().filter(|one| one.pending || one.active).count();
        let pending = self.lists[vcpu].registers.iter().any(|one| one.pending);
        if self.waiting[vcpu] && (used <= 1 || !pending) {
            self.waiting[vcpu] = self.gic.hand_out(vcpu, &mut self.lists[vcpu]);
        }
    }

    /// The naive one's place: shared ones live at vCPU 0.
    fn of(&mut self, vcpu: usize, which: usize) -> &mut Naive {
        &mut self.naive[if INTIDS[which] < 32 { vcpu } else { 0 }][which]
    }

    fn pending(&mut self, vcpu: usize, which: usize) -> bool {
        let edge = is_edge(INTIDS[which]);
        let one = self.of(vcpu, which);
        one.latched || one.senders != 0 || one.line && !edge
    }

    /// The most urgent that may be signalled.
    fn best(&mut self, vcpu: usize) -> Option<u8> {
        let running = self.stack[vcpu].last().map_or(u8::MAX, |(_, priority)| *priority);
        (0..INTIDS.len())
            .filter(|which| {
                let pending = self.pending(vcpu, *which);
                let one = self.of(vcpu, *which);
                pending && one.enabled && !one.active && (INTIDS[*which] < 32 || one.route == vcpu)
            })
            .collect::<Vec<_>>()
            .into_iter()
            .map(|which| self.of(vcpu, which).priority)
            .filter(|priority| *priority < running)
            .min()
    }

    fn acknowledge(&mut self, vcpu: usize) -> bool {
        let running = self.stack[vcpu].last().map_or(u8::MAX, |(_, priority)| *priority);
        let expected = self.best(vcpu);
        let best = self.lists[vcpu]
            .registers
            .iter_mut()
            .filter(|one| one.pending && !one.active && one.priority < running);
        let Some(one) = best.min_by_key(|one| one.priority) else {
            assert_eq!(expected, None, "lost, of {:?}", self.lists[vcpu].registers);
            return false;
        };
        (one.pending, one.active) = (false, true);
        let one = *one;
        let which = INTIDS.iter().position(|intid| *intid == u32::from(one.intid)).unwrap();
        assert_eq!(Some(one.priority), expected, "{one:?} isn't the most urgent, or isn't due");
        let by_sender = self.version == Version::V2 && one.intid < 16;
        assert!(self.pending(vcpu, which), "{one:?} isn't pending");
        let naive = self.of(vcpu, which);
        assert!(naive.enabled && !naive.active, "{one:?}");
        if by_sender {
            assert!(naive.senders & 1 << one.cpu != 0, "{one:?}");
            naive.senders &= !(1 << one.cpu);
        }
        naive.latched = false;
        naive.active = true;
        self.stack[vcpu].push((which, one.priority));
        self.maintain(vcpu);
        true
    }

    fn end(&mut self, vcpu: usize) {
        let Some((which, _)) = self.stack[vcpu].pop() else { return };
        self.of(vcpu, which).active = false;
        if self.lists[vcpu].end(INTIDS[which] as u16) {
            self.waiting[vcpu] = self.gic.hand_out(vcpu, &mut self.lists[vcpu]);
        }
        // A shared one that was rerouted while it was active: now another vCPU may have it.
        if self.gic.take_changed() != 0 {
            self.take_back();
            self.hand_out();
        }
        self.maintain(vcpu);
    }

    /// A register access, between taking back and handing out.
    fn change(&mut self, vcpu: usize, step: &Step) {
        self.take_back();
        match *step {
            Step::Enable(_, which, on) => {
                let intid = INTIDS[which];
                let always = self.version == Version::V2 && intid < 16;
                self.of(vcpu, which).enabled = on || always;
                let offset = if on { 0x100 } else { 0x180 } + u64::from(intid / 32 * 4);
                self.write(vcpu, offset, Width::Word, 1 << (intid % 32));
            }
            Step::Priority(_, which, to) => {
                self.of(vcpu, which).priority = to;
                self.write(vcpu, 0x400 + u64::from(INTIDS[which]), Width::Byte, to.into());
            }
            Step::Clear(_, which) => {
                let intid = INTIDS[which];
                let by_sender = self.version == Version::V2 && intid < 16;
                if !by_sender {
                    self.of(vcpu, which).latched = false;
                }
                self.write(vcpu, 0x280 + u64::from(intid / 32 * 4), Width::Word, 1 << (intid % 32));
            }
            Step::Route(_, which) if INTIDS[which] >= 32 => {
                let intid = u64::from(INTIDS[which]);
                self.of(vcpu, which).route = vcpu;
                match self.version {
                    Version::V2 => self.write(0, 0x800 + intid, Width::Byte, 1 << vcpu),
                    Version::V3 => {
                        self.gic.distributor_write(0, 0x6000 + 8 * intid, Width::Double, vcpu as u64).unwrap()
                    }
                }
            }
            Step::Lower(which) => {
                self.gic.set_level(0, INTIDS[which], false);
                self.of(0, which).line = false;
            }
            _ => {}
        }
        self.gic.take_changed();
        self.hand_out();
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Raise(vcpu, which) => {
                let intid = INTIDS[which];
                if intid < 16 {
                    return;
                }
                // Private ones by their edge: their lines are lowered at vCPU 0 only.
                if intid < 32 {
                    self.gic.pulse(vcpu, intid);
                    self.of(vcpu, which).latched = true;
                } else {
                    self.gic.set_level(vcpu, intid, true);
                    let one = self.of(vcpu, which);
                    one.latched |= is_edge(intid) && !one.line;
                    one.line = true;
                }
                self.deliver(intid);
            }
            Step::Send(vcpu, which) => {
                let intid = INTIDS[which];
                let to = 1 - vcpu;
                match self.version {
                    Version::V2 => {
                        self.of(to, which).senders |= 1 << vcpu;
                        self.gic
                            .distributor_write(vcpu, 0xf00, Width::Word, 1 << (16 + to) | u64::from(intid))
                            .unwrap();
                    }
                    Version::V3 => {
                        self.of(to, which).latched = true;
                        self.gic.send_sgi_group_0(vcpu, 1 << to | u64::from(intid) << 24);
                    }
                }
                self.deliver(intid);
            }
            Step::Acknowledge(vcpu) => {
                self.acknowledge(vcpu);
            }
            Step::End(vcpu) => self.end(vcpu),
            Step::Enable(vcpu, ..)
            | Step::Priority(vcpu, ..)
            | Step::Route(vcpu, _)
            | Step::Clear(vcpu, _) => {
                self.change(vcpu, step);
            }
            Step::Lower(_) => self.change(0, step),
        }
    }
}

proptest! {
    #[test]
    fn each_interrupt_comes_as_often_as_it_should(steps in steps(), second in any::<bool>(), many in any::<bool>()) {
        let version = if second { Version::V2 } else { Version::V3 };
        let mut world = World::new(version, if many { 16 } else { 4 });
        for step in &steps {
            world.step(step);
        }
        // Everything that is left comes, too.
        for which in 0..INTIDS.len() {
            world.step(&Step::Lower(which));
        }
        for vcpu in 0..VCPUS {
            while world.acknowledge(vcpu) || !world.stack[vcpu].is_empty() {
                world.end(vcpu);
            }
        }
    }
}
