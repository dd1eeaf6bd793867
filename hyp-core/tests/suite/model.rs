//! Random operations of several domains against a naive model.
//!
//! The model keeps almost nothing: which tables are pinned, which roots are set, who owns what. Everything else it works out
//! anew before each step, by reading the tables in force from the holders down; an operation is allowed if what it asks for
//! can be added to that world without a contradiction. The core, which never recomputes anything, has to give the same
//! answer. After each step the auditor has to be content, the observer too, and a *careless TLB*, which keeps whatever
//! it could have seen since everything was last flushed, must not lead anywhere it shouldn't.
//!
//! Frames are few and reused for everything, so that they are tables now and data then, of all levels and domains.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::common::observe::{self, judge_mapping, present, target, writable};
use crate::common::{self, Guest, POOL, Rig, SELF, leaf, lifted, place, table};
use hyp_core::address::{DomainId, MachineFrame};
use hyp_core::domain::Life;
use hyp_core::fake::{self, kernel};
use hyp_core::frame::FrameType;
use hyp_core::paging::update::HardwareBits;
use hyp_core::paging::{Budget, Stop};
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::{memory, mmu};
use proptest::prelude::*;

/// Domains: the control domain and two guests.
const DOMAINS: usize = 3;
/// The slot of a first root that maps the pool and the scratch memory; the others are emptied to make the walks short.
const LAST_SLOT: usize = 23;
/// Frames of each domain that are played with.
const FEW: usize = 7;

/// Where an entry leads: by name, so that a shrunk case still makes sense.
#[derive(Clone, Copy, Debug)]
enum To {
    Nothing,
    /// Not present, with a frame's number in it.
    NotPresent(usize),
    Own(usize),
    Foreign(usize, usize),
    /// One of the builder's tables, by level.
    First(u8),
    Hole,
    Free,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    ReadOnly,
    Writable,
    Lifted,
    Table,
    Forbidden,
}

#[derive(Clone, Copy, Debug)]
struct Raw {
    to: To,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Step {
    /// `mmu_update` on a pool frame: frame, entry, what, whether A/D are kept, and for the control domain: whose frames.
    Update(usize, usize, Raw, bool, usize),
    /// The same on one of the builder's tables.
    UpdateFirst(u8, usize, Raw),
    /// `update_va_mapping` of the address at which a pool frame was mapped first.
    Remap(usize, Raw, usize),
    Pin(usize, u8),
    Unpin(usize),
    /// Unmaps a frame, fills it, pins it.
    Build(usize, u8, Vec<(usize, Raw)>),
    Root(usize),
    FirstRoot,
    UserRoot(Option<usize>),
    /// Pins and unpins within a budget, asked so many times: frame, level, budget, times.
    Piecemeal(usize, u8, u32, u8),
    UnpinPiecemeal(usize, u32),
    UpdatePiecemeal(usize, usize, Raw, u32),
    GiveBack(usize),
    Populate(usize),
    /// Control domain only: pin or unpin for another.
    PinFor(usize, usize, u8),
    Kill,
    Background(u8),
}

fn to() -> impl Strategy<Value = To> {
    prop_oneof![
        2 => Just(To::Nothing),
        1 => (0..FEW).prop_map(To::NotPresent),
        12 => (0..FEW).prop_map(To::Own),
        2 => (0..DOMAINS, 0..FEW).prop_map(|(who, index)| To::Foreign(who, index)),
        1 => (1u8..4).prop_map(To::First),
        1 => Just(To::Hole),
        1 => Just(To::Free),
    ]
}

fn raw() -> impl Strategy<Value = Raw> {
    let kind = prop_oneof![
        4 => Just(Kind::ReadOnly),
        4 => Just(Kind::Writable),
        1 => Just(Kind::Lifted),
        6 => Just(Kind::Table),
        1 => Just(Kind::Forbidden),
    ];
    (to(), kind).prop_map(|(to, kind)| Raw { to, kind })
}

/// An entry that a table of `level` could well hold.
fn fitting(level: u8) -> impl Strategy<Value = Raw> {
    let kind = if level == 1 {
        prop_oneof![Just(Kind::ReadOnly), Just(Kind::Writable)].boxed()
    } else {
        Just(Kind::Table).boxed()
    };
    let to = prop_oneof![9 => (0..FEW).prop_map(To::Own), 1 => to()];
    (to, kind).prop_map(|(to, kind)| Raw { to, kind })
}

fn index() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0usize..3, 2 => 5usize..8, 2 => 9usize..13, 1 => 14usize..18, 1 => 30usize..34]
}

fn step() -> impl Strategy<Value = Step> {
    let few = 0..FEW;
    let budget = prop_oneof![0u32..3, 8u32..40];
    let build = (0..FEW, 1u8..4).prop_flat_map(|(at, level)| {
        let entries = prop::collection::vec((index(), fitting(level)), 0..4);
        (Just(at), Just(level), entries)
    });
    prop_oneof![
        10 => (few.clone(), index(), raw(), any::<bool>(), 0..DOMAINS)
            .prop_map(|(at, index, raw, keep, of)| Step::Update(at, index, raw, keep, of)),
        3 => (1u8..4, index(), raw()).prop_map(|(level, index, raw)| Step::UpdateFirst(level, index, raw)),
        8 => (few.clone(), raw(), 0..DOMAINS).prop_map(|(at, raw, of)| Step::Remap(at, raw, of)),
        6 => (few.clone(), 0u8..5).prop_map(|(at, level)| Step::Pin(at, level)),
        4 => few.clone().prop_map(Step::Unpin),
        14 => build.prop_map(|(at, level, entries)| Step::Build(at, level, entries)),
        3 => few.clone().prop_map(Step::Root),
        1 => Just(Step::FirstRoot),
        2 => prop::option::of(few.clone()).prop_map(Step::UserRoot),
        6 => (few.clone(), 1u8..4, budget.clone(), 1u8..5)
            .prop_map(|(at, level, budget, times)| Step::Piecemeal(at, level, budget, times)),
        3 => (few.clone(), budget.clone()).prop_map(|(at, budget)| Step::UnpinPiecemeal(at, budget)),
        6 => (few.clone(), index(), raw(), budget)
            .prop_map(|(at, index, raw, budget)| Step::UpdatePiecemeal(at, index, raw, budget)),
        2 => few.clone().prop_map(Step::GiveBack),
        3 => few.clone().prop_map(Step::Populate),
        2 => (1..DOMAINS, few, 1u8..4).prop_map(|(who, at, level)| Step::PinFor(who, at, level)),
        1 => Just(Step::Kill),
        2 => (1u8..6).prop_map(Step::Background),
    ]
}

/// What a frame is used for, as the model counts it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Writable,
    Table(u8),
}

/// All uses there are, worked out from the holders down.
#[derive(Clone, Default)]
struct World {
    uses: BTreeMap<u64, (Role, u32)>,
    wrong: Vec<Errno>,
}

/// What the model knows. Everything else is in the tables.
struct Model {
    rig: Rig,
    few: Vec<Vec<MachineFrame>>,
    pins: BTreeSet<(usize, u64, u8)>,
    alive: [bool; DOMAINS],
    /// What a TLB may still hold: domain, frame, writable.
    cached: BTreeSet<(u16, u64, bool)>,
    flushes: u64,
    steps: u64,
}

type Asked = Result<u64, Errno>;

/// Leaves of a new domain's tables only those that the test needs.
fn shrink(rig: &Rig, who: usize, root: MachineFrame) {
    for slot in 16..LAST_SLOT {
        rig.update(who, &[(place(root, slot), 0)]).expect("an entry of one's own");
    }
}

impl Model {
    fn new(rig: Rig) -> Self {
        let few = rig.domains.iter().map(|guest| guest.p2m[POOL as usize..][..FEW].to_vec()).collect();
        let pins = (0..DOMAINS).map(|who| (who, rig.domains[who].root.number(), 3)).collect();
        for (who, guest) in rig.domains.iter().enumerate() {
            shrink(&rig, who, guest.root);
        }
        let flushes = rig.hv.machine().flushes();
        Self { rig, few, pins, alive: [true; DOMAINS], cached: BTreeSet::new(), flushes, steps: 0 }
    }

    fn owner(&self, frame: u64) -> Option<u16> {
        let hold = self.rig.hv.frames().hold(MachineFrame::new(frame)?)?;
        hold.owner.map(DomainId::number)
    }

    fn first_table(&self, who: usize, level: u8) -> MachineFrame {
        let root = self.rig.domains[who].root;
        let two = common::frame(target(self.rig.entry(root, LAST_SLOT)));
        match level {
            3 => root,
            2 => two,
            _ => common::frame(target(self.rig.entry(two, 0))),
        }
    }

    fn raw(&self, who: usize, raw: Raw) -> u64 {
        let frame = match raw.to {
            To::Nothing => return 0,
            To::NotPresent(index) => return leaf(self.few[who][index], true) & !(1 << 63),
            To::Own(index) => self.few[who][index],
            To::Foreign(whose, index) => self.few[whose][index],
            To::First(level) => self.first_table(who, level),
            To::Hole => common::frame(fake::FIRST_FRAME - 1),
            To::Free => {
                let (_, end) = self.rig.hv.frames().extent();
                common::frame(end - 1)
            }
        };
        match raw.kind {
            Kind::ReadOnly => leaf(frame, false),
            Kind::Writable => leaf(frame, true),
            Kind::Lifted => lifted(frame),
            Kind::Table => table(frame),
            Kind::Forbidden => leaf(frame, false) | 1 << 12,
        }
    }

    /// The world as it is: everything that holders lead to, nothing judged.
    fn world(&self) -> World {
        let mut world = World::default();
        // The hypervisor itself writes to each domain's shared-info page, and to the page of its console.
        let domains = self.rig.domains.iter().map(|guest| guest.domain);
        let shared = domains.flat_map(|domain| [domain.shared_info(), domain.console_page()]).flatten();
        world.uses.extend(shared.map(|frame| (frame.number(), (Role::Writable, 1))));
        let roots =
            self.rig.domains.iter().flat_map(|guest| {
                [guest.vcpu().kernel_root(), guest.vcpu().user_root()].into_iter().flatten()
            });
        let roots: Vec<_> = roots.map(|root| (root.number(), 3)).collect();
        let pins = self.pins.iter().map(|&(_, frame, level)| (frame, level));
        for (frame, level) in roots.into_iter().chain(pins) {
            self.add_table(&mut world, frame, level, None);
        }
        assert_eq!(world.wrong, [], "the world as it is contradicts itself");
        world
    }

    /// Adds one use of a frame as a table, with all below it. `new`: the owner of tables, and whose frames leaves may map.
    fn add_table(&self, world: &mut World, frame: u64, level: u8, new: Option<(u16, u16)>) {
        if let Some((owner, _)) = new
            && self.owner(frame) != Some(owner)
        {
            return world.wrong.push(Errno::EINVAL);
        }
        match world.uses.get_mut(&frame) {
            Some((Role::Table(at), uses)) if *at == level => return *uses += 1,
            Some(_) => return world.wrong.push(Errno::EINVAL),
            None => drop(world.uses.insert(frame, (Role::Table(level), 1))),
        }
        for (index, raw) in present(self.rig.hv, frame, level) {
            if level != 3 || !(10..12).contains(&index) {
                self.add_entry(world, level, raw, new);
            }
        }
    }

    fn add_entry(&self, world: &mut World, level: u8, raw: u64, new: Option<(u16, u16)>) {
        if raw >> 63 == 0 {
            return;
        }
        let known = 1 << 63 | ((1 << 30) - 1) << 20 | 1 << 9 | 1 << 7 | 1 << 5 | 1 << 4 | 3;
        let is_table = raw & 1 << 9 != 0;
        // A superpage stands at level 2 only, at a multiple of its 16 frames.
        let superpage = level == 2 && !is_table && target(raw).is_multiple_of(16);
        if raw & !known != 0 || (is_table != (level > 1) && !superpage) {
            return world.wrong.push(Errno::EINVAL);
        }
        if is_table {
            return self.add_table(world, target(raw), level - 1, new);
        }
        for frame in target(raw)..target(raw) + if superpage { 16 } else { 1 } {
            self.add_page(world, frame, writable(raw), new);
        }
    }

    fn add_page(&self, world: &mut World, frame: u64, writable: bool, new: Option<(u16, u16)>) {
        if let Some((_, whose)) = new {
            let is_memory =
                MachineFrame::new(frame).is_some_and(|frame| self.rig.hv.frames().hold(frame).is_some());
            match self.owner(frame) {
                _ if !is_memory => return world.wrong.push(Errno::EPERM),
                owner if owner != Some(whose) => return world.wrong.push(Errno::EBUSY),
                _ => {}
            }
        }
        if writable {
            match world.uses.get_mut(&frame) {
                Some((Role::Writable, uses)) => *uses += 1,
                Some(_) => world.wrong.push(Errno::EBUSY),
                None => drop(world.uses.insert(frame, (Role::Writable, 1))),
            }
        }
    }

    /// Whether a table can be held in addition to all there is.
    fn may_hold(&self, who: usize, frame: MachineFrame, level: u8) -> Vec<Errno> {
        let mut world = self.world();
        let id = who as u16;
        self.add_table(&mut world, frame.number(), level, Some((id, id)));
        world.wrong
    }

    /// Whether an entry may be written to a frame of `who`'s, mapping frames of `whose`.
    fn may_write(&self, who: usize, frame: MachineFrame, index: usize, raw: u64, whose: usize) -> Vec<Errno> {
        let mut world = self.world();
        if self.owner(frame.number()) != Some(who as u16) {
            return vec![Errno::EINVAL];
        }
        let Some((Role::Table(level), _)) = world.uses.get(&frame.number()).copied() else {
            return Vec::new();
        };
        if index >= common::ENTRIES[usize::from(level)] {
            return vec![Errno::EINVAL];
        }
        if level == 3 && (10..12).contains(&index) {
            return vec![Errno::EINVAL];
        }
        let old = self.rig.entry(frame, index);
        // Rights and target alone decide whether anything changes.
        let meaning = |raw: u64| (raw >> 63, target(raw), raw & 1 << 9, writable(raw));
        self.add_entry(&mut world, level, raw, Some((who as u16, whose as u16)));
        let admissible = !world.wrong.contains(&Errno::EINVAL) || raw & 1 << 12 == 0;
        if old >> 63 == 1 && raw >> 63 == 1 && meaning(old) == meaning(raw) && admissible {
            return Vec::new();
        }
        world.wrong
    }

    /// Holds the core's answer against the model's. Somebody else's unfinished business may be in the way for a while.
    fn agree(&self, step: &Step, expected: &[Errno], answer: Asked) -> bool {
        let unfinished = self.rig.domains.iter().any(|guest| guest.domain.tables.lock().unfinished.is_some());
        match answer {
            Ok(_) => assert!(expected.is_empty(), "{step:?} was allowed, but for {expected:?}"),
            Err(Errno::EBUSY | Errno::EINVAL) if unfinished => {}
            Err(errno) => {
                assert!(expected.contains(&errno), "{step:?}: refused with {errno:?}, expected {expected:?}")
            }
        }
        answer.is_ok()
    }

    /// What an interrupted or refused operation has left is finished first, so that the model need not know of it.
    fn tidy(&self) {
        for who in 0..DOMAINS {
            while self.rig.space(who, &Budget::new(64)).settle(None).is_err() {}
        }
    }

    fn apply(&mut self, who: usize, step: &Step) {
        if !self.alive[who] {
            return self.revive(who);
        }
        match step {
            Step::Update(at, index, raw, keep, of) => self.update(who, step, (*at, *index), *raw, *keep, *of),
            Step::UpdateFirst(level, index, raw) => {
                let frame = self.first_table(who, *level);
                let raw = self.raw(who, *raw);
                // The guest's arguments have to stay mapped.
                if *level == 1 || self.rig.entry(frame, *index) == 0 || *level == 3 && *index < 16 {
                    let expected = self.may_write(who, frame, *index, raw, who);
                    let answer = self.rig.update(who, &[(place(frame, *index), raw)]);
                    self.agree(step, &expected, answer);
                }
            }
            Step::Remap(at, raw, of) => self.remap(who, step, *at, *raw, *of),
            Step::Pin(at, level) => self.pin(who, step, *at, *level),
            Step::Unpin(at) => self.unpin(who, step, *at),
            Step::Build(at, level, entries) => self.build(who, step, (*at, *level), entries),
            Step::Root(at) => self.root(who, step, self.few[who][*at]),
            Step::FirstRoot => self.root(who, step, self.rig.domains[who].root),
            Step::UserRoot(at) => {
                let frame = at.map(|at| self.few[who][at]);
                let expected = frame.map_or(Vec::new(), |frame| self.may_hold(who, frame, 3));
                let number = frame.map_or(0, MachineFrame::number);
                let answer = self.rig.extended(who, mmu::MMUEXT_NEW_USER_BASEPTR, number);
                if self.agree(step, &expected, answer) {
                    assert_eq!(self.rig.domains[who].vcpu().user_root(), frame);
                }
            }
            Step::Piecemeal(at, level, budget, times) => {
                self.piecemeal(who, step, (*at, *level), *budget, *times)
            }
            Step::UnpinPiecemeal(at, budget) => self.unpin_piecemeal(who, step, *at, *budget),
            Step::UpdatePiecemeal(at, index, raw, budget) => {
                self.update_piecemeal(who, step, (*at, *index), *raw, *budget)
            }
            Step::GiveBack(at) => self.give_back(who, *at),
            Step::Populate(at) => self.populate(who, *at),
            Step::PinFor(whose, at, level) => self.pin_for(who, *whose, *at, *level),
            Step::Kill => self.kill(who),
            Step::Background(steps) => {
                for _ in 0..*steps {
                    self.rig.hv.background();
                    self.check();
                }
            }
        }
    }

    /// The control domain pins for another, or an ordinary one would like to.
    fn pin_for(&mut self, who: usize, whose: usize, at: usize, level: u8) {
        let control = if who == 0 { whose } else { 0 };
        let frame = self.few[control][at];
        let answer = self.rig.extended_for(who, u32::from(level) - 1, frame.number(), control as u64);
        if who != 0 {
            assert_eq!(answer, Err(Errno::EPERM));
        } else if !self.alive[control] {
            assert_eq!(answer, Err(Errno::ESRCH));
        } else if self.pinned(control, frame).is_some() {
            assert_eq!(answer, Err(Errno::EINVAL));
        } else if answer.is_ok() {
            // The pin is in force now; `world` finds out whether that makes sense.
            self.pins.insert((control, frame.number(), level));
        } else {
            self.tidy();
            assert!(!self.may_hold(control, frame, level).is_empty());
        }
    }

    fn update_piecemeal(&mut self, who: usize, step: &Step, at: (usize, usize), raw: Raw, budget: u32) {
        let frame = self.few[who][at.0];
        let raw = self.raw(who, raw);
        let expected = self.may_write(who, frame, at.1, raw, who);
        let place = hyp_core::address::MachineAddress::new(place(frame, at.1)).expect("an address");
        let budget = Budget::new(budget);
        let answer = self.rig.space(who, &budget).update_at(place, raw, HardwareBits::Replace);
        match answer {
            Ok(()) => drop(self.agree(step, &expected, Ok(0))),
            Err(Stop::Refused(refusal)) => drop(self.agree(step, &expected, Err(refusal.errno()))),
            Err(Stop::Preempted) => {}
        }
    }

    fn unpin_piecemeal(&mut self, who: usize, step: &Step, at: usize, budget: u32) {
        let frame = self.few[who][at];
        let before = self.pinned(who, frame);
        let answer = self.rig.space(who, &Budget::new(budget)).unpin(frame);
        match (before, answer) {
            (Some(level), Ok(())) => assert!(self.pins.remove(&(who, frame.number(), level))),
            (_, Err(Stop::Preempted)) => {}
            (None, Err(Stop::Refused(_))) => {}
            other => panic!("{step:?}: {other:?}"),
        }
    }

    /// Fills a table that hangs nowhere, and pins it.
    fn build(&mut self, who: usize, step: &Step, (at, level): (usize, u8), entries: &[(usize, Raw)]) {
        let frame = self.few[who][at];
        let _ = self.rig.remap(who, POOL + at as u64, 0);
        for (index, raw) in entries {
            let raw = self.raw(who, *raw);
            let expected = self.may_write(who, frame, *index, raw, who);
            let answer = self.rig.update(who, &[(place(frame, *index), raw)]);
            self.agree(step, &expected, answer);
            self.tidy();
        }
        self.pin(who, step, at, level);
    }

    fn pinned(&self, who: usize, frame: MachineFrame) -> Option<u8> {
        let mut levels = (1..4).filter(|level| self.pins.contains(&(who, frame.number(), *level)));
        levels.next()
    }

    fn update(&mut self, who: usize, step: &Step, at: (usize, usize), raw: Raw, keep: bool, of: usize) {
        let frame = self.few[who][at.0];
        let raw = self.raw(who, raw);
        // Only the control domain may name another; the others hear of it.
        let expected = match of {
            of if of == who => self.may_write(who, frame, at.1, raw, who),
            _ if who != 0 => vec![Errno::EPERM],
            of if !self.alive[of] => vec![Errno::ESRCH],
            of => self.may_write(who, frame, at.1, raw, of),
        };
        let kind = if keep { mmu::MMU_PT_UPDATE_PRESERVE_AD } else { mmu::MMU_NORMAL_PT_UPDATE };
        let foreign = if of == who { SELF } else { of as u64 };
        let answer = self.rig.update_for(who, &[(place(frame, at.1) | kind, raw)], foreign);
        self.agree(step, &expected, answer);
    }

    fn remap(&mut self, who: usize, step: &Step, at: usize, raw: Raw, of: usize) {
        let pfn = POOL + at as u64;
        let raw = self.raw(who, raw);
        let vcpu = self.rig.domains[who].vcpu();
        // The walk starts at the root that is set, which may be anything by now.
        let walked = hyp_core::paging::walk::level_one_place(
            self.rig.hv.machine(),
            vcpu.kernel_root().expect("a root"),
            hyp_core::address::GuestVirtual::new(common::address(pfn)),
        );
        let of = if who == 0 { of } else { who };
        let expected = match walked {
            _ if !self.alive[of] => vec![Errno::ESRCH],
            None => vec![Errno::EINVAL],
            Some(found) => self.may_write(who, found.table, found.index, raw, of),
        };
        let arguments = [common::address(pfn), raw, 0, of as u64, 0, 0];
        let number =
            if of == who { number::UPDATE_VA_MAPPING } else { number::UPDATE_VA_MAPPING_OTHERDOMAIN };
        let answer = self.rig.call(who, number, arguments);
        self.agree(step, &expected, answer);
    }

    fn may_pin(&self, who: usize, frame: MachineFrame, level: u8) -> Vec<Errno> {
        if !(1..4).contains(&level) || self.pinned(who, frame).is_some() {
            return vec![Errno::EINVAL];
        }
        self.may_hold(who, frame, level)
    }

    fn pin(&mut self, who: usize, step: &Step, at: usize, level: u8) {
        let frame = self.few[who][at];
        let expected = self.may_pin(who, frame, level);
        // Command 4 is another operation, so "level 5" is passed over; "level 0" is one that doesn't exist.
        let Some(command) = u32::from(level).checked_sub(1).filter(|command| *command < 4) else { return };
        let answer = self.rig.extended(who, command, frame.number());
        if self.agree(step, &expected, answer) {
            self.pins.insert((who, frame.number(), level));
        }
    }

    fn unpin(&mut self, who: usize, step: &Step, at: usize) {
        let frame = self.few[who][at];
        let answer = self.rig.unpin(who, frame);
        match self.pinned(who, frame) {
            Some(level) => {
                assert_eq!(answer, Ok(0), "{step:?}");
                self.pins.remove(&(who, frame.number(), level));
            }
            None => assert_eq!(answer, Err(Errno::EINVAL), "{step:?}"),
        }
    }

    fn root(&mut self, who: usize, step: &Step, frame: MachineFrame) {
        let expected = self.may_hold(who, frame, 3);
        let before = self.rig.domains[who].vcpu().kernel_root();
        let answer = self.rig.new_root(who, frame);
        let now = self.rig.domains[who].vcpu().kernel_root();
        let fine = self.agree(step, &expected, answer);
        assert_eq!(now, if fine { Some(frame) } else { before }, "{step:?}");
    }

    fn piecemeal(&mut self, who: usize, step: &Step, at: (usize, u8), budget: u32, times: u8) {
        let frame = self.few[who][at.0];
        let expected = self.may_pin(who, frame, at.1);
        for _ in 0..times {
            let answer = self.rig.space(who, &Budget::new(budget)).pin(frame, at.1);
            match answer {
                Err(Stop::Preempted) => self.check(),
                Ok(()) => {
                    self.agree(step, &expected, Ok(0));
                    self.pins.insert((who, frame.number(), at.1));
                    return;
                }
                Err(Stop::Refused(refusal)) => {
                    self.agree(step, &expected, Err(refusal.errno()));
                    return;
                }
            }
        }
    }

    fn give_back(&mut self, who: usize, at: usize) {
        let frame = self.few[who][at];
        let claimed = self.rig.hv.frames().hold(frame).is_some_and(|hold| hold.allocated);
        let may =
            claimed && self.owner(frame.number()) == Some(who as u16) && self.pinned(who, frame).is_none();
        let done = self.rig.memory(who, memory::XENMEM_DECREASE_RESERVATION, SELF, &[frame.number()]);
        assert_eq!(done, Ok(u64::from(may)), "giving back {frame:?}, claimed: {claimed}");
    }

    /// Takes a new frame for one that was given back.
    fn populate(&mut self, who: usize, at: usize) {
        let pages = self.rig.domains[who].domain.pages(self.rig.hv.frames());
        let done = self.rig.memory(who, memory::XENMEM_POPULATE_PHYSMAP, SELF, &[POOL + at as u64]);
        assert_eq!(done, Ok(u64::from(pages < kernel::MINIMUM_FRAMES)));
        if done == Ok(1) {
            let frame = common::frame(self.rig.word(who, 64));
            assert!((0..512).all(|index| self.rig.entry(frame, index) == 0), "{frame:?} isn't scrubbed");
            self.few[who][at] = frame;
        }
    }

    fn kill(&mut self, who: usize) {
        if who == 0 {
            return;
        }
        self.alive[who] = false;
        self.rig.hv.kill(self.rig.domains[who].vcpu(), format_args!("a test"));
    }

    /// A little tear-down, and a new domain in the place once it is vacant. Pins go with the domain, at their own pace.
    fn revive(&mut self, who: usize) {
        self.rig.hv.background();
        if self.rig.domains[who].domain.life() != Life::Vacant {
            return;
        }
        let guest = Guest::new(self.rig.hv, false);
        let number = usize::from(guest.id().number());
        if self.rig.domains[number].domain.life() != Life::Alive || self.alive[number] {
            return;
        }
        self.few[number] = guest.p2m[POOL as usize..][..FEW].to_vec();
        self.pins.insert((number, guest.root.number(), 3));
        let root = guest.root;
        self.rig.domains[number] = guest;
        self.alive[number] = true;
        shrink(&self.rig, number, root);
    }

    /// Everything that has to hold after every step.
    fn check(&mut self) {
        self.steps += 1;
        let hv = self.rig.hv;
        let report = hv.audit();
        assert_eq!(report.findings, 0, "{report}");
        let seen = observe::observe(hv);
        seen.problem().expect("the observer");
        let flushes = hv.machine().flushes();
        if flushes != self.flushes {
            self.cached.clear();
            self.flushes = flushes;
        }
        for (&(domain, frame), &writable) in &seen.mapped {
            self.cached.insert((domain, frame, writable));
        }
        for &(domain, frame, writable) in &self.cached {
            if let Some(problem) = judge_mapping(hv, domain, frame, writable) {
                panic!("still cached, and never flushed: {problem}");
            }
        }
        // Pins of dying domains go one by one.
        for who in (0..DOMAINS).filter(|who| !self.alive[*who]).collect::<Vec<_>>() {
            let gone: Vec<_> = self
                .pins
                .iter()
                .copied()
                .filter(|(whose, frame, _)| {
                    let usage = hv.frames().usage(common::frame(*frame));
                    *whose == who && !usage.is_some_and(|usage| usage.pinned)
                })
                .collect();
            for pin in gone {
                self.pins.remove(&pin);
            }
        }
    }

    /// With nothing unfinished, the core's types and uses are the model's to the digit.
    fn compare(&self) {
        self.tidy();
        if self.alive.contains(&false) {
            return;
        }
        let world = self.world();
        let (first, end) = self.rig.hv.frames().extent();
        for frame in (first..end).map(common::frame) {
            let usage = self.rig.hv.frames().usage(frame).expect("memory");
            let counted = world.uses.get(&frame.number()).copied();
            let recorded = match usage.kind {
                FrameType::Table(level) if usage.uses > 0 => Some((Role::Table(level), usage.uses)),
                FrameType::Writable if usage.uses > 0 => Some((Role::Writable, usage.uses)),
                _ => None,
            };
            assert_eq!(recorded, counted, "{frame:?}");
        }
    }

    /// Everybody dies; all memory comes back.
    fn end(mut self, free: usize) -> Rig {
        for who in 0..DOMAINS {
            let vcpu = self.rig.domains[who].vcpu();
            // The machine is switched off with its control domain; the fake one only says so.
            let _ = catch_unwind(AssertUnwindSafe(|| self.rig.hv.kill(vcpu, format_args!("the end"))));
            self.alive[who] = false;
        }
        while self.rig.hv.background() {
            let report = self.rig.hv.audit();
            assert_eq!(report.findings, 0, "{report}");
        }
        for guest in &self.rig.domains {
            assert_eq!(guest.domain.life(), Life::Vacant);
        }
        assert_eq!(self.rig.hv.frames().free_frames(), free, "memory is lost");
        self.rig
    }
}

thread_local! {
    /// A machine without domains, left by the last case that went well.
    static MACHINE: RefCell<Option<Rig>> = const { RefCell::new(None) };
    static STEPS: RefCell<(u64, std::time::Duration)> = const { RefCell::new((0, std::time::Duration::ZERO)) };
}

fn run(steps: &[(usize, Step)]) {
    let old = MACHINE.with(RefCell::take);
    let hv = old.map_or_else(|| fake::hypervisor(common::MACHINE), |rig| rig.hv);
    let free = hv.frames().free_frames();
    let domains = (0..DOMAINS).map(|index| Guest::new(hv, index == 0)).collect();
    let mut model = Model::new(Rig { hv, domains });
    let start = std::time::Instant::now();
    for (count, (who, step)) in steps.iter().enumerate() {
        model.tidy();
        model.apply(*who, step);
        model.check();
        if count % 8 == 0 {
            model.compare();
        }
    }
    model.tidy();
    model.check();
    STEPS.with_borrow_mut(|(count, time)| {
        *count += model.steps;
        *time += start.elapsed();
    });
    let rig = model.end(free);
    MACHINE.with(|machine| machine.replace(Some(rig)));
}

#[test]
fn the_core_agrees_with_a_naive_model() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        if !text.contains("switched off") {
            eprintln!("{text}");
        }
    }));
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24);
    let config = ProptestConfig { cases, max_shrink_iters: 300, ..ProptestConfig::default() };
    let steps = prop::collection::vec((0..DOMAINS, step()), 60..160);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner.run(&steps, |steps| {
        run(&steps);
        Ok(())
    });
    STEPS.with_borrow(|(count, time)| {
        println!("{count} checked steps, {:.0} a second", *count as f64 / time.as_secs_f64());
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
