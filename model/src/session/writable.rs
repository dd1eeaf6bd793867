//! Writable page tables: emulated writes, and tables that are taken out of their tree and put back.
//!
//! What an emulated write must come to is foreseen, as for any other update. Whether a table may be taken out, and whether it returns, is
//! the core's to say: it must have been a table of pages that hangs at one place; and what there is afterwards is counted and judged as ever.

use hyp_core::address::GuestVirtual;
use hyp_core::frame::FrameType;
use hyp_core::paging::Budget;
use hyp_core::paging::table_write::TableWrite;
use penumbra_abi::errno::Errno;

use super::through::PATIENCE;
use super::{Check, Session};
use crate::format::{Hardware, Shape};
use crate::hardware::content::{FRAMES, frame, number};
use crate::machine::Moment;
use crate::operation::Operation;
use crate::spec::errors::Errors;
use crate::spec::operations::Foreseen;
use crate::spec::view::{Translation, View};
use crate::spec::world::Asker;
use crate::spec::{DOMAINS, Knowledge, NOBODY, Unhooked};

impl<F: Hardware> Session<F> {
    /// Puts every domain's unhooked tables back.
    pub(super) fn hook_all(&mut self) -> Check {
        if self.known.unhooked.is_empty() {
            return Ok(());
        }
        let before = self.known.unhooked.clone();
        for domain in (0..DOMAINS).filter_map(|number| self.domain(number)) {
            let budget = Budget::unbounded();
            let _ = domain.table_space(self.machine(), self.hypervisor.frames(), &budget).hook_all();
        }
        self.counted = None;
        self.learn();
        self.check_pins(&before)
    }

    /// Those of these tables that have returned are pinned, if they were.
    fn check_pins(&mut self, before: &[Unhooked]) -> Check {
        for unhooked in before {
            let (domain, table) = (unhooked.domain, unhooked.table);
            let usage = self.hypervisor.frames().usage(frame(table));
            let is_table = usage.is_some_and(|usage| usage.kind == FrameType::Table(1) && usage.uses > 0);
            let is_pinned = self.known.pinned(domain, table).is_some();
            if is_table && self.pinned_before.contains(&(domain, table, !is_pinned)) {
                let at = number(table);
                return Err(format!("mfn {at:#x} returned; it was pinned before, or is now, but not both"));
            }
        }
        Ok(())
    }

    /// Where the tables of a domain's kernel lead.
    fn translation(&self, domain: usize, address: u64) -> Option<Translation> {
        let view = View { content: &self.machine().content, writes: None };
        view.translate::<F>(self.known.domains[domain].vcpu().kernel?, address)
    }

    /// The guest's kernel writes words to a page.
    pub(super) fn table_writes(&mut self, domain: usize, page: u64, writes: &[(usize, u64)]) -> Check {
        for &(index, raw) in writes {
            let address = page + 8 * index as u64;
            if self.machine().translate(address, true).is_some() {
                self.access(domain, address, Some(raw))?;
                continue;
            }
            self.tally.operations += 1;
            self.table_write(domain, address, index, raw)?;
            self.refresh()?;
            self.judge()?;
        }
        Ok(())
    }

    /// The hypervisor gets to see a write that has faulted.
    fn table_write(&mut self, domain: usize, address: u64, index: usize, raw: u64) -> Check {
        let (Some(core), Some(vcpu)) = (self.domain(domain), self.vcpu(domain)) else { return Ok(()) };
        let lenient = self.is_unforeseeable(domain);
        let mut foreseen = Foreseen::new(&self.known, &self.machine().content, None);
        let target = self.translation(domain, address).and_then(|to| to.target);
        let expected = if lenient {
            Ok(TableWrite::Again)
        } else {
            foresee::<F>(&mut foreseen, domain, target, index, raw)
        };
        let outcome = self.hypervisor.write_table(vcpu, GuestVirtual::new(address), |_| Some(raw));
        self.tally.succeeded += u64::from(outcome == TableWrite::Done);
        self.tally.emulated += u64::from(outcome == TableWrite::Done);
        let known = foreseen.known;
        match (outcome, expected) {
            _ if lenient => {
                target.into_iter().for_each(|at| self.forget_pin(domain, at));
                self.learn();
            }
            (TableWrite::Refused, Err(_)) => {}
            (TableWrite::Done, Ok(TableWrite::Done)) => {
                self.known = known;
                let (at, stands) = (target.unwrap_or(0), foreseen.writes.last(target.unwrap_or(0), index));
                let found = self.machine().content.read(at, index);
                if stands.is_none_or(|stands| (stands ^ found) & !F::hardware_bits(1) != 0) {
                    return Err(format!("an emulated write left {found:#x}, not {stands:x?}"));
                }
            }
            // After enough of them the table is the guest's to write to.
            (TableWrite::Again, _) if core.has_unhooked() => return self.check_unhooked(domain, target),
            (outcome, Ok(expected)) if outcome == expected => {}
            _ => {
                return Err(format!(
                    "an emulated write of {raw:#x} at {address:#x}: {outcome:?}, not {expected:?}"
                ));
            }
        }
        Ok(())
    }

    fn forget_pin(&mut self, domain: usize, table: usize) {
        self.pinned_before.retain(|one| (one.0, one.1) != (domain, table));
    }

    /// The table in place `target` was one that may be taken out, and is.
    fn check_unhooked(&mut self, domain: usize, target: Option<usize>) -> Check {
        let at = target.ok_or("a table was unhooked that nobody had mapped")?;
        let (uses, level) = (self.world.table[at], self.world.level[at]);
        let pinned = u16::from(self.known.pinned(domain, at).is_some());
        self.learn();
        let kind = self.hypervisor.frames().usage(frame(at)).map(|usage| usage.kind);
        let is_out = kind == Some(FrameType::Writable) && self.known.is_unhooked(domain, at);
        self.tally.unhooked += 1;
        self.forget_pin(domain, at);
        self.pinned_before.push((domain, at, pinned != 0));
        if !is_out || uses != 1 + pinned || level != 1 {
            let at = number(at);
            return Err(format!("mfn {at:#x}, {kind:?}, was unhooked, with {uses} uses at level {level}"));
        }
        Ok(())
    }

    /// `PENUMBRA_UNHOOK`
    pub(super) fn unhook(&mut self, domain: usize, operation: &Operation, address: u64) -> Check {
        let target = self.translation(domain, address).and_then(|to| to.target);
        let was_out = target.is_some_and(|at| self.known.is_unhooked(domain, at));
        let lenient = self.is_unfinished();
        // While the hypervisor copies the entries, somebody else tries to write one.
        if let Some(at) = target.filter(|_| domain != 0 && self.chance.bool()) {
            let raw = self.forged(domain);
            self.arrange_mapping(domain, at, Moment::Reads(at), Some(raw));
        }
        let answer = self.insist(domain, operation)?;
        drop(self.machine().no_interlude());
        if answer == Ok(0) && !was_out && !lenient {
            return self.check_unhooked(domain, target);
        }
        if !was_out {
            target.into_iter().for_each(|at| self.forget_pin(domain, at));
        }
        self.learn();
        match answer {
            Ok(0) | Err(Errno::EINVAL | Errno::EBUSY) => Ok(()),
            other => Err(format!("unhooking {address:#x}: {other:?}")),
        }
    }

    /// A multicall that takes tables out, gives memory back, and deals with grants. Whether each of these is refused is the core's to say.
    pub(super) fn mixed(&mut self, domain: usize, operation: &Operation, list: &[Operation]) -> Check {
        let is_kept = |known: &Knowledge, at: usize| known.pinned(domain, at).is_some();
        let kept: Vec<_> =
            (0..FRAMES).filter(|at| is_kept(&self.known, *at) && self.known.claimed.has(*at)).collect();
        let answer = self.insist(domain, operation)?;
        if answer != Ok(0) {
            return Err(format!("multicall: {answer:?}"));
        }
        self.pinned_before.retain(|one| one.0 != domain);
        self.learn();
        self.hook_all()?;
        self.refresh()?;
        // Only what was unpinned in between can have been given back (XSA-252).
        let repins = list.iter().any(|one| matches!(one, Operation::Extended(..)));
        let lost = |at: &&usize| is_kept(&self.known, **at) && !self.known.claimed.has(**at);
        match kept.iter().find(lost).filter(|_| !repins) {
            Some(at) => Err(format!("mfn {:#x} is pinned, and was given back", number(*at))),
            None => Ok(()),
        }
    }

    /// An entry that maps some frame, most likely another domain's.
    fn forged(&mut self, domain: usize) -> u64 {
        let start = self.chance.usize(..FRAMES);
        let others = |at: &usize| ![NOBODY, domain as u8].contains(&self.known.owner[*at]);
        let found = (start..FRAMES).chain(0..start).find(others);
        F::compose(Shape::Writable, number(found.unwrap_or(start)))
    }

    /// `PENUMBRA_HOOK`
    pub(super) fn hook(&mut self, domain: usize, operation: &Operation) -> Check {
        let before = self.known.unhooked.clone();
        let answer = self.insist(domain, operation)?;
        self.learn();
        self.check_pins(&before)?;
        if *operation == Operation::Hook(u64::MAX) && self.known.has_unhooked(domain) {
            return Err("a table is out after all were hooked in".into());
        }
        match answer {
            Ok(0) | Err(Errno::EINVAL | Errno::EBUSY | Errno::EPERM | Errno::ENOENT) => Ok(()),
            other => Err(format!("{operation:x?}: {other:?}")),
        }
    }

    /// Issues a hypercall until it comes to something.
    pub(super) fn insist(
        &mut self,
        domain: usize,
        operation: &Operation,
    ) -> Result<Result<u64, Errno>, String> {
        let (hypercall, mut arguments) = self.encode(operation);
        self.tally.operations += 1;
        for _ in 0..PATIENCE {
            let budget = self.budget();
            match self.issue(domain, hypercall, arguments, &budget) {
                Ok(answer) => {
                    self.tally.succeeded += u64::from(answer.is_ok());
                    return Ok(answer);
                }
                Err(again) => arguments = again,
            }
            self.tally.preempted += 1;
            // An entry of a multicall that is done may have mapped a grant.
            self.follow_the_grants();
            self.judge()?;
        }
        Err(format!("{operation:x?} does not end"))
    }
}

/// What an emulated write to a frame must come to.
fn foresee<F: Hardware>(
    foreseen: &mut Foreseen<'_>,
    domain: usize,
    target: Option<usize>,
    index: usize,
    raw: u64,
) -> Result<TableWrite, Errors> {
    let world = foreseen.world::<F>();
    let mine = |at: &usize| world.owner(&foreseen.known, *at) == Some(domain) && world.table[*at] > 0;
    let Some(at) = target.filter(mine) else { return Ok(TableWrite::NotATable) };
    let asker = Asker { owner: domain, target: domain };
    foreseen.entry::<F>(&world, (at, world.level[at], index), raw, asker)?;
    Ok(TableWrite::Done)
}
