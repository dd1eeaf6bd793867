//! What has to hold after every step.

use hyp_core::address::MachineFrame;
use hyp_core::domain::Life as CoreLife;
use hyp_core::domain::vcpu::RunState;
use hyp_core::frame::FrameType;
use hyp_core::machine::Entry;
use hyp_core::paging::writable::Slot;

use super::{Check, Session};
use crate::bits::Bits;
use crate::format::Hardware;
use crate::hardware::content::{FRAMES, WORDS, frame, number, slot};
use crate::hardware::reach::TAGS;
use crate::machine::Model;
use crate::spec::descriptors::{DescriptorPage, judged};
use crate::spec::vcpus::Vcpu;
use crate::spec::view::View;
use crate::spec::world::World;
use crate::spec::{DOMAINS, Domain as Known, Life, NO_NAME, NOBODY, Pin, Unhooked};

fn place(root: Option<MachineFrame>) -> Option<usize> {
    root.and_then(|root| slot(root.number()))
}

/// What the core says of a vCPU.
fn vcpu_of<F: Hardware>(vcpu: &hyp_core::Vcpu<Model<F>>) -> Vcpu {
    Vcpu {
        kernel: place(vcpu.kernel_root()),
        user: place(vcpu.user_root()),
        initialised: vcpu.is_initialised(),
        up: vcpu.state() != RunState::Offline,
        info: place(vcpu.registered_info()),
    }
}

impl<F: Hardware> Session<F> {
    /// Dying domains are taken apart by and by: what they still hold is learnt from the core.
    pub(super) fn follow_the_dying(&mut self) {
        for number in
            (0..DOMAINS).filter(|at| self.known.domains[*at].life == Life::Dying).collect::<Vec<_>>()
        {
            if self.domain(number).is_none_or(|core| core.life() == CoreLife::Vacant) {
                self.known.domains[number] = Known::default();
                self.known.pins.retain(|pin| pin.domain != number);
                self.known.descriptors.retain(|page| page.domain != number);
                continue;
            }
            self.learn_of(|domain| domain == number);
        }
    }

    /// Takes the core's word for all that the specification keeps. Only where it can't foresee what must happen: what follows from
    /// what it keeps is counted as ever, and has to agree.
    pub(super) fn learn(&mut self) {
        self.learn_of(|_| true);
        self.follow_the_kept();
    }

    /// As [`Self::learn`], of some domains.
    fn learn_of(&mut self, wanted: impl Fn(usize) -> bool) {
        let frames = self.hypervisor.frames();
        self.known.pins.retain(|pin| !wanted(pin.domain));
        for at in 0..FRAMES {
            let Some(hold) = frames.hold(frame(at)) else { continue };
            let owner = hold.owner.map(|owner| usize::from(owner.number()));
            if !wanted(owner.unwrap_or(usize::from(self.known.owner[at]))) {
                continue;
            }
            self.known.owner[at] = owner.map_or(NOBODY, |owner| owner as u8);
            self.known.name[at] =
                frames.m2p().and_then(|m2p| m2p.get(frame(at))).map_or(NO_NAME, |name| name.number());
            self.known.claimed.remove(at);
            if hold.allocated {
                self.known.claimed.insert(at);
            }
            if let (Some(domain), Some(usage)) = (owner, frames.usage(frame(at)).filter(|usage| usage.pinned))
                && let FrameType::Table(level) = usage.kind
            {
                self.known.pins.push(Pin { domain, table: at, level });
            }
        }
        self.learn_vcpus(&wanted);
        for number in (0..DOMAINS).filter(|number| wanted(*number)) {
            let Some(core) = self.domain(number).filter(|core| core.life() != CoreLife::Vacant) else {
                continue;
            };
            self.known.domains[number].shared = place(core.shared_info());
            self.known.domains[number].console = place(core.console_page());
        }
        self.learn_descriptors(&wanted);
    }

    /// Takes the core's word for pages of segment descriptors. Of which table doesn't matter to the counts, and the next call says so again.
    fn learn_descriptors(&mut self, wanted: impl Fn(usize) -> bool) {
        let wanted = |number: usize| wanted(number);
        self.known.descriptors.retain(|page| !wanted(page.domain));
        for domain in (0..DOMAINS).filter(|number| wanted(*number)) {
            let Some(core) = self.domain(domain) else { continue };
            for (vcpu, core) in core.vcpus.iter().enumerate() {
                let pages = core.context().pages();
                let found = pages.filter_map(|(local, frame)| Some((local, slot(frame.number())?)));
                let found = found.map(|(local, frame)| DescriptorPage { domain, vcpu, local, frame });
                self.known.descriptors.extend(found);
            }
        }
    }

    /// What stands in a page of segment descriptors is what a guest may have.
    fn check_descriptors(&self) -> Check {
        for page in &self.known.descriptors {
            for index in 0..WORDS {
                let word = self.machine().content.read(page.frame, index);
                if judged(word) != Some(word) {
                    let at = number(page.frame);
                    return Err(format!(
                        "descriptor {index} of mfn {at:#x}, d{}'s, is {word:#x}",
                        page.domain
                    ));
                }
            }
        }
        Ok(())
    }

    /// Takes the core's word for the vCPUs of some domains.
    pub(super) fn learn_vcpus(&mut self, wanted: impl Fn(usize) -> bool) {
        for number in (0..DOMAINS).filter(|number| wanted(*number)) {
            let Some(core) = self.domain(number) else { continue };
            for (known, vcpu) in self.known.domains[number].vcpus.iter_mut().zip(&core.vcpus) {
                *known = vcpu_of(vcpu);
            }
        }
    }

    /// What the hypervisor keeps: by snapshots of unhooked tables, and for grants.
    fn follow_the_kept(&mut self) {
        self.known.kept.clear();
        self.known.unhooked.clear();
        for number in 0..DOMAINS {
            let Some(core) = self.domain(number).filter(|core| core.has_unhooked()) else { continue };
            let tables = core.tables.lock();
            let unhooked = tables.slots.iter().filter_map(Slot::unhooked);
            self.known.unhooked.extend(unhooked.filter_map(|unhooked| {
                let (table, parent) = (slot(unhooked.table.number())?, slot(unhooked.parent.table.number())?);
                Some(Unhooked { domain: number, table, parent, index: unhooked.parent.index })
            }));
            for entry in tables.slots.iter().flat_map(Slot::held::<Model<F>>) {
                if let Entry::Leaf(leaf) = entry {
                    self.known.kept.extend(slot(leaf.frame.number()).map(|at| (at, leaf.writable)));
                }
            }
        }
        self.follow_the_grants();
    }

    /// Frames that nobody holds any more, when what is held can't be counted.
    fn follow_the_freed(&mut self) {
        for at in 0..FRAMES {
            if self.hypervisor.frames().hold(frame(at)).is_some_and(|hold| hold.owner.is_none()) {
                self.known.owner[at] = NOBODY;
                self.known.name[at] = NO_NAME;
            }
        }
    }

    /// Counts the world anew, and forgets whose the frames were that nobody holds any more.
    pub(super) fn refresh(&mut self) -> Check {
        self.counted = None;
        self.follow_the_kept();
        if self.is_unfinished() {
            self.follow_the_freed();
            return Ok(());
        }
        let view = View { content: &self.machine().content, writes: None };
        let world = World::count::<F>(&self.known, &view)
            .map_err(|errors| format!("the world contradicts itself: {errors:?}"))?;
        self.world = world;
        self.counted = Some(world);
        for at in 0..FRAMES {
            if self.world.references[at] == 0 && self.known.owner[at] != NOBODY {
                self.known.owner[at] = NOBODY;
                self.known.name[at] = NO_NAME;
            }
        }
        Ok(())
    }

    /// Everything that has to hold after every step.
    pub(super) fn check(&mut self, step: u64) -> Check {
        self.follow_the_dying();
        self.refresh()?;
        self.judge()?;
        self.check_ports()?;
        if !self.is_unfinished() {
            self.compare_records()?;
            self.compare_vcpus()?;
            self.check_descriptors()?;
        }
        if step.is_multiple_of(self.plan.audit_every) {
            let report = self.hypervisor.audit();
            if report.findings != 0 {
                return Err(format!("{report}"));
            }
        }
        Ok(())
    }

    /// Nothing that could be cached leads anywhere it must not.
    pub(super) fn judge(&self) -> Check {
        let mut may = [Bits::EMPTY; TAGS];
        for at in 0..FRAMES {
            let Some(owner) = self.hypervisor.frames().hold(frame(at)).and_then(|hold| hold.owner) else {
                continue;
            };
            may[0].insert(at);
            if let Some(may) = may.get_mut(usize::from(owner.number())) {
                may.insert(at);
            }
        }
        let mut may_write = may;
        for borrowed in self.known.borrowed.iter().filter(|borrowed| borrowed.host) {
            may[borrowed.borrower].insert(borrowed.frame);
            if borrowed.writable {
                may_write[borrowed.borrower].insert(borrowed.frame);
            }
        }
        self.machine().judge(self.hypervisor.frames(), &may, &may_write)
    }

    /// The vCPUs of the living are as they were made.
    fn compare_vcpus(&self) -> Check {
        for number in (0..DOMAINS).filter(|at| self.known.domains[*at].life == Life::Alive) {
            let Some(core) = self.domain(number) else { return Err(format!("d{number} is gone")) };
            for (index, known) in self.known.domains[number].vcpus.iter().enumerate() {
                let found = vcpu_of(&core.vcpus[index]);
                if found != *known {
                    return Err(format!("d{number}'s vCPU {index} is {found:?}, not {known:?}"));
                }
            }
        }
        Ok(())
    }

    /// The core's records are what was counted, to the digit.
    pub(super) fn compare_records(&self) -> Check {
        let frames = self.hypervisor.frames();
        for at in 0..FRAMES {
            let (Some(hold), Some(usage)) = (frames.hold(frame(at)), frames.usage(frame(at))) else {
                continue;
            };
            let owner = hold.owner.map_or(NOBODY, |owner| owner.number() as u8);
            let world = &self.world;
            let uses = world.writable[at] + world.table[at] + world.descriptors[at];
            let kind = match (world.writable[at], world.descriptors[at], world.table[at]) {
                (0, 0, 0) => usage.kind,
                (_, 0, 0) => FrameType::Writable,
                (0, _, 0) => FrameType::Descriptors,
                _ => FrameType::Table(world.level[at]),
            };
            let counted = (self.known.owner[at], u32::from(world.references[at]), u32::from(uses), kind);
            let recorded = (owner, hold.references, usage.uses, usage.kind);
            let name = frames.m2p().and_then(|m2p| m2p.get(frame(at))).map_or(NO_NAME, |name| name.number());
            if counted != recorded || name != self.known.name[at] {
                let mfn = number(at);
                return Err(format!(
                    "mfn {mfn:#x}: recorded {recorded:?} {name:#x}, counted {counted:?} {:#x}",
                    self.known.name[at]
                ));
            }
        }
        Ok(())
    }
}
