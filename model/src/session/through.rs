//! A hypercall from its first issue to its end, with all that may happen in between.

use hyp_core::frame::FrameType;
use hyp_core::paging::Budget;
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as call;

use super::{Check, DONE, OTHER, Session};
use crate::format::{Hardware, Shape, Walk};
use crate::guest::PAGES;
use crate::hardware::content::{FRAMES, frame, number, slot};
use crate::hardware::reach::CPUS;
use crate::machine::{Loaded, Moment};
use crate::operation::Operation;
use crate::spec::{DOMAINS, Life};

/// Times that an operation is issued again before it counts as endless.
pub(super) const PATIENCE: usize = 4000;

impl<F: Hardware> Session<F> {
    /// Issues a hypercall once: its result, or the arguments with which it wants to be issued again.
    pub(super) fn issue(
        &self,
        domain: usize,
        number: u64,
        arguments: [u64; 6],
        budget: &Budget,
    ) -> Result<Result<u64, Errno>, [u64; 6]> {
        let vcpu = self.vcpu(domain).expect("a domain that lives");
        vcpu.context().registers.take();
        self.hypervisor.hypercall_within(vcpu, number, arguments, budget);
        let registers = vcpu.context().registers.take();
        match (registers.result, registers.again) {
            (Some(result), None) => Ok(Errno::from_return(result)),
            (None, Some(again)) => Err(again),
            other => panic!("a hypercall has one outcome, not {other:?}"),
        }
    }

    pub(super) fn budget(&mut self) -> Budget {
        match self.chance.u8(..6) {
            0 => Budget::new(self.chance.u32(..4)),
            1 => Budget::new(self.chance.u32(4..80)),
            _ => Budget::new(Budget::HYPERCALL),
        }
    }

    /// Carries a hypercall through to its end, and holds its outcome against the specification.
    pub(super) fn hypercall(&mut self, domain: usize, operation: &Operation, depth: u32) -> Check {
        if matches!(operation, Operation::Multicall(_)) {
            self.tidy();
            self.hook_all()?;
            self.refresh()?;
        }
        let (hypercall, mut arguments) = self.encode(operation);
        if domain != 0 && depth == 0 && self.chance.u8(..12) == 0 {
            self.arrange_interlude(domain, operation);
        }
        let (mut begun, mut lenient) = (0, false);
        let mut foreseen = self.predict(domain, operation, begun);
        for _ in 0..PATIENCE {
            // What was foreseen of a multicall was foreseen at its beginning.
            let whole = matches!(operation, Operation::Multicall(_));
            lenient = whole && lenient || self.is_unforeseeable(domain);
            let budget = self.budget();
            self.counted = None;
            match self.issue(domain, hypercall, arguments, &budget) {
                Ok(answer) => {
                    drop(self.machine().no_interlude());
                    if self.domain(domain).is_some_and(|core| core.has_unhooked()) {
                        return Err("a table is unhooked after a hypercall".into());
                    }
                    return self.settle_up(domain, operation, &foreseen, begun, answer, lenient);
                }
                Err(again) => {
                    self.tally.preempted += 1;
                    arguments = again;
                    if operation.is_batch() {
                        let done = self.machine().word(DONE) as usize;
                        self.commit(&foreseen, begun, done, lenient)?;
                        begun = done;
                        self.between(domain, depth)?;
                        if !self.goes_on(domain) {
                            return Ok(());
                        }
                        foreseen = self.predict(domain, operation, begun);
                    } else if matches!(operation, Operation::Remap(..) | Operation::OnVcpu(..)) {
                        self.learn_vcpus(|number| number == domain);
                        if lenient {
                            // What was unhooked may be back before anything else is done.
                            self.learn();
                        }
                        self.between(domain, depth)?;
                        if !self.goes_on(domain) {
                            return Ok(());
                        }
                        foreseen = self.predict(domain, operation, begun);
                    } else {
                        self.judge()?;
                    }
                }
            }
        }
        Err(format!("{operation:x?} does not end"))
    }

    /// Between two pieces of a hypercall anything may happen: other domains have their turn, and this one's other vCPUs.
    pub(super) fn between(&mut self, domain: usize, depth: u32) -> Check {
        self.refresh()?;
        self.judge()?;
        if depth > 0 || self.chance.u8(..4) != 0 {
            return Ok(());
        }
        let others: Vec<_> = (0..DOMAINS).filter(|at| self.known.domains[*at].life == Life::Alive).collect();
        let turn = self.known.domains[domain].turn;
        // What was arranged for a flush of this hypercall's isn't for others': the control domain, for one, would wait for its own lock.
        let interlude = self.machine().no_interlude();
        // Arguments stand in a window that everybody uses.
        let window = self.machine().bytes(0, OTHER);
        let other = others[self.chance.usize(..others.len())];
        self.perform(other, 1)?;
        self.refresh()?;
        self.judge()?;
        self.machine().put(0, &window);
        if let Some(interlude) = interlude {
            self.machine().arrange(interlude);
        }
        self.known.domains[domain].turn = turn;
        if self.goes_on(domain) {
            self.run_on_some_cpu(domain);
        }
        Ok(())
    }

    /// Whether the vCPU of a domain that had its turn still runs.
    fn goes_on(&self, domain: usize) -> bool {
        let known = &self.known.domains[domain];
        known.life == Life::Alive && known.vcpu().up
    }

    /// While the core flushes for this domain, the control domain, on another CPU, maps one of its frames, uses it, and unmaps it again.
    pub(super) fn arrange_interlude(&mut self, domain: usize, operation: &Operation) {
        let start = self.chance.usize(..FRAMES);
        let mine = |at: &usize| usize::from(self.known.owner[*at]) == domain;
        let mut named = operation.tables::<F>();
        named.retain(mine);
        let any = (start..FRAMES).chain(0..start).find(mine);
        let target = if named.is_empty() || start.is_multiple_of(4) {
            any
        } else {
            named.get(start % named.len()).copied()
        };
        let Some(target) = target else { return };
        // What it writes is what stands there, since the outcome of the outer operation was foreseen before.
        self.arrange_mapping(domain, target, Moment::Flushed, None);
    }

    /// At some moment, the control domain, on another CPU, maps a frame of this domain's, writes a word to it (what stands there, if it
    /// isn't told otherwise), and unmaps it again.
    pub(super) fn arrange_mapping(
        &mut self,
        domain: usize,
        target: usize,
        moment: Moment,
        written: Option<u64>,
    ) {
        // What it has unhooked would return, with consequences that nobody has foreseen.
        if self.known.domains[0].life != Life::Alive || self.known.has_unhooked(0) {
            return;
        }
        let Some(vcpu) = self.vcpu(0) else { return };
        let cpu = self.machine().current();
        let other = (cpu + 1) % CPUS;
        self.run_on(other, 0);
        self.run_on(cpu, domain);
        let address = F::address(PAGES + 3);
        let raw = F::compose(Shape::Writable, number(target));
        let hypervisor = self.hypervisor;
        let entry = self.place_of(0, address);
        let machine = self.machine();
        machine.meanwhile(moment, move || {
            let Some((table, index)) = entry else { return };
            // Only where nothing is mapped; and nothing that the outer operation waits for may have been changed.
            if F::walk(1, machine.content.read(table, index)) != Walk::Fault {
                return;
            }
            // The CPU that flushes may be turning the target into a writable frame: whoever maps it waits for the end of that flush, which
            // is further up on this very stack.
            let usage = hypervisor.frames().usage(frame(target));
            let usage = usage.filter(|usage| usage.kind == FrameType::Writable);
            if usage.is_some_and(|usage| usage.uses > 0 && !usage.complete) {
                return;
            }
            machine.switch_to(other, Loaded::of(vcpu));
            let old = machine.content.read(table, index);
            let word = written.unwrap_or_else(|| machine.content.read(target, 0));
            for raw in [raw, old] {
                let arguments = [address, raw, 0, domain as u64, 0, 0];
                hypervisor.hypercall(vcpu, call::UPDATE_VA_MAPPING_OTHERDOMAIN, arguments);
                let wrote = machine.access(address, Some(word)).is_some();
                let result = vcpu.context().registers.take().result.map(Errno::from_return);
                machine.tell(format!(
                    "  interlude: d0: entry {raw:#x} for {address:#x}: {result:?}; wrote: {wrote}"
                ));
            }
        });
    }

    /// The level-1 entry that translates an address for a domain.
    pub(super) fn place_of(&self, domain: usize, address: u64) -> Option<(usize, usize)> {
        let root = frame(self.known.domains[domain].vcpu().kernel?);
        let at = hyp_core::address::GuestVirtual::new(address);
        let mut table = slot(F::root_of(at, Some(root), None)?.number())?;
        for level in (2..=F::LEVELS).rev() {
            match F::walk(level, self.machine().content.read(table, F::index(at, level))) {
                Walk::Table { frame, .. } => table = slot(frame)?,
                _ => return None,
            }
        }
        Some((table, F::index(at, 1)))
    }
}
