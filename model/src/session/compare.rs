//! What a hypercall came to, held against what the specification foresaw.

use hyp_core::domain::Life as CoreLife;
use penumbra_abi::errno::Errno;

use super::prediction::Prediction;
use super::{Check, DONE, LIST, Session};
use crate::format::Hardware;
use crate::hardware::content::{frame, number, slot};
use crate::operation::Operation;
use crate::spec::operations::Foreseen;
use crate::spec::{NO_NAME, NOBODY};

impl<F: Hardware> Session<F> {
    /// What the rest of an operation must come to, from element `begun` on.
    pub(super) fn predict(&self, domain: usize, operation: &Operation, begun: usize) -> Prediction {
        let mut foreseen = Foreseen::new(&self.known, &self.machine().content, self.counted);
        let mut prediction = Prediction::default();
        prediction.add::<F>(&mut foreseen, domain, operation, begun);
        prediction.writes = foreseen.writes;
        prediction
    }

    /// Elements up to `done` have been done, as was foreseen from element `begun` on.
    pub(super) fn commit(
        &mut self,
        foreseen: &Prediction,
        begun: usize,
        done: usize,
        lenient: bool,
    ) -> Check {
        let count = done.checked_sub(begun).filter(|count| *count < foreseen.known.len());
        if lenient {
            // A tree that is neither held nor let go yet may be in the way of something, or keep what would be gone without it; and so may a
            // table that was unhooked.
            self.tally.operations += done.saturating_sub(begun) as u64;
            self.tally.succeeded += done.saturating_sub(begun) as u64;
            self.learn();
            return Ok(());
        }
        let count = count.ok_or_else(|| {
            format!(
                "{done} elements were done, {begun} before, {} foreseen; then {:?}",
                foreseen.known.len() - 1,
                foreseen.refusal
            )
        })?;
        self.known = foreseen.known[count].clone();
        self.tally.operations += count as u64;
        self.tally.succeeded += count as u64;
        Ok(())
    }

    /// The end of a hypercall.
    pub(super) fn settle_up(
        &mut self,
        domain: usize,
        operation: &Operation,
        foreseen: &Prediction,
        begun: usize,
        answer: Result<u64, Errno>,
        lenient: bool,
    ) -> Check {
        match operation {
            Operation::Updates(..) | Operation::Extended(..) => {
                let done = if foreseen.known.is_empty() { begun } else { self.machine().word(DONE) as usize };
                self.compare(foreseen, answer, (begun, done), lenient)?;
            }
            Operation::Remap(..) | Operation::SetGlobal(..) | Operation::UpdateDescriptor(..) => {
                self.compare(foreseen, answer, (0, usize::from(answer.is_ok())), lenient)?;
            }
            Operation::OnVcpu(..) => {
                self.compare(foreseen, answer, (0, usize::from(answer.is_ok())), lenient)?;
                if answer.is_ok_and(|value| value != foreseen.value) && !lenient {
                    return Err(format!("{operation:x?}: {answer:?}, not {}", foreseen.value));
                }
                if self.domain(domain).is_some_and(|core| core.life() != CoreLife::Alive) {
                    self.bury(domain);
                }
            }
            Operation::Increase(count) => {
                return self.compare_increase(domain, *count, None, answer, lenient);
            }
            Operation::Populate(names) => {
                return self.compare_increase(domain, names.len(), Some(names), answer, lenient);
            }
            Operation::Decrease(_) => {
                let done =
                    answer.map_err(|errno| format!("decrease_reservation: {}", errno.name()))? as usize;
                self.compare(
                    foreseen,
                    if done + 1 == foreseen.known.len() { foreseen.answer() } else { Ok(0) },
                    (0, done),
                    lenient,
                )?;
            }
            Operation::Multicall(list) => return self.compare_multicall(list, foreseen, answer, lenient),
            other => unreachable!("{other:?} is no hypercall"),
        }
        if lenient {
            self.learn();
        }
        if answer.is_ok() {
            self.check_promise(domain, operation)?;
        }
        Ok(())
    }

    pub(super) fn compare(
        &mut self,
        foreseen: &Prediction,
        answer: Result<u64, Errno>,
        (begun, done): (usize, usize),
        lenient: bool,
    ) -> Check {
        self.tally.operations += u64::from(answer.is_err());
        let whole = done - begun + 1 == foreseen.known.len();
        if lenient {
            self.tally.succeeded += u64::from(answer.is_ok());
            self.learn();
            return Ok(());
        }
        match (answer, foreseen.refusal) {
            (Ok(_), None) if whole => {
                self.commit(foreseen, begun, done, lenient)?;
                self.check_written(foreseen)
            }
            (Err(errno), Some(errors)) if whole && errors.has(errno) => {
                self.commit(foreseen, begun, done, lenient)
            }
            (Err(errno), Some(errors)) if foreseen.known.is_empty() && errors.has(errno) => Ok(()),
            _ => Err(format!(
                "{answer:?} after {done} elements; foreseen: {} elements, then {:?}",
                begun + foreseen.known.len().max(1) - 1,
                foreseen.refusal
            )),
        }
    }

    /// What was to be written stands there.
    pub(super) fn check_written(&self, foreseen: &Prediction) -> Check {
        let hardware = F::hardware_bits(1);
        for (at, index, word) in foreseen.writes.places() {
            let stands = self.machine().content.read(at, index);
            let held = self.hypervisor.frames().hold(frame(at)).is_some_and(|hold| hold.owner.is_some());
            // A frame that becomes a table in the same batch is validated, and its entries brought into the form that is admitted.
            let forced = || {
                (1..=F::LEVELS)
                    .any(|level| F::admit(level, word).is_ok_and(|(raw, _)| (raw ^ stands) & !hardware == 0))
            };
            // The hypervisor's own entries come and go with a root, and are copied with it.
            let reserved = F::reserved_root_slots().contains(&index);
            if held && (stands ^ word) & !hardware != 0 && !reserved && !forced() {
                let at = number(at);
                return Err(format!("entry {index} of mfn {at:#x} holds {stands:#x}, not {word:#x}"));
            }
        }
        Ok(())
    }

    /// Frames that a domain was given.
    pub(super) fn compare_increase(
        &mut self,
        domain: usize,
        asked: usize,
        names: Option<&Vec<u64>>,
        answer: Result<u64, Errno>,
        lenient: bool,
    ) -> Check {
        let given = answer.map_err(|errno| format!("reservation: {}", errno.name()))? as usize;
        if lenient {
            self.learn();
        }
        let room = self.known.domains[domain].limit.saturating_sub(self.known.pages(domain));
        let free = self.known.owner.iter().filter(|owner| **owner == NOBODY).count();
        let expected = asked.min(room).min(free);
        if given != expected && !lenient {
            return Err(format!("{given} frames were given, not {expected}"));
        }
        self.tally.operations += asked as u64;
        self.tally.succeeded += given as u64;
        for place in 0..given {
            let told = self.machine().word(LIST + place * 8);
            let at = slot(told).ok_or_else(|| format!("mfn {told:#x} was given, which isn't RAM"))?;
            if !lenient {
                self.claim(domain, at)?;
                self.known.name[at] = names.and_then(|names| names.get(place)).copied().unwrap_or(NO_NAME);
            }
            if !self.machine().content.is_blank(at) {
                return Err(format!("mfn {told:#x} was given with something in it, or in a cache"));
            }
        }
        Ok(())
    }

    pub(super) fn compare_multicall(
        &mut self,
        list: &[Operation],
        foreseen: &Prediction,
        answer: Result<u64, Errno>,
        lenient: bool,
    ) -> Check {
        if answer != Ok(0) {
            return Err(format!("multicall: {answer:?}"));
        }
        // A refused tree keeps the bits that validation has forced on its entries before the bad one: what is asked of those pages later in
        // the same call isn't foreseen.
        let (mut surprised, mut rewritten) = (false, false);
        for (place, verdict) in foreseen.entries.iter().enumerate() {
            let result = Errno::from_return(self.machine().word(LIST + place * 64 + 8));
            let fine = match result {
                Ok(value) => value == 0 && verdict.is_none(),
                Err(errno) => verdict.is_some_and(|errors| errors.has(errno)),
            };
            surprised |= !fine;
            if !fine && !lenient && !rewritten {
                return Err(format!("entry {place} of a multicall: {result:?}, foreseen {verdict:?}"));
            }
            rewritten |= verdict.is_some();
            self.tally.operations += 1;
            self.tally.succeeded += u64::from(result.is_ok());
        }
        if foreseen.entries.len() != list.len() {
            return Err("a multicall's entries were not foreseen".into());
        }
        if surprised {
            self.learn();
        } else if let Some(known) = foreseen.known.last() {
            self.known = known.clone();
        }
        Ok(())
    }
}
