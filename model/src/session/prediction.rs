//! What an operation must come to, element by element, by the specification.

use penumbra_abi::errno::Errno;

use crate::format::Hardware;
use crate::operation::Operation;
use crate::spec::Knowledge;
use crate::spec::errors::Errors;
use crate::spec::operations::Foreseen;
use crate::spec::vcpus::OnVcpu;
use crate::spec::view::Writes;

/// What an operation must come to.
#[derive(Default)]
pub(super) struct Prediction {
    /// What is known after so many elements; empty if not even the first is looked at.
    pub(super) known: Vec<Knowledge>,
    /// Why the element after those is refused, if there is one.
    pub(super) refusal: Option<Errors>,
    /// What will stand in memory.
    pub(super) writes: Writes,
    /// What is answered, of an operation that answers with a number.
    pub(super) value: u64,
    /// Of a multicall: why each entry is refused, if it is.
    pub(super) entries: Vec<Option<Errors>>,
}

impl Prediction {
    pub(super) fn answer(&self) -> Result<u64, Errno> {
        match self.refusal {
            None => Ok(0),
            Some(errors) if errors.has(Errno::EINVAL) => Err(Errno::EINVAL),
            Some(_) => Err(Errno::EBUSY),
        }
    }

    pub(super) fn add<F: Hardware>(
        &mut self,
        foreseen: &mut Foreseen<'_>,
        domain: usize,
        operation: &Operation,
        begun: usize,
    ) {
        self.refusal = self.elements::<F>(foreseen, domain, operation, begun).err();
    }

    pub(super) fn elements<F: Hardware>(
        &mut self,
        foreseen: &mut Foreseen<'_>,
        domain: usize,
        operation: &Operation,
        begun: usize,
    ) -> Result<(), Errors> {
        match operation {
            Operation::Updates(domains, list) => {
                let (tables, frames) = penumbra_abi::mmu::decode_foreign_domain(*domains);
                let owner = foreseen.named(domain, tables.unwrap_or(0x7ff0))?;
                let target = foreseen.named(domain, frames)?;
                self.known.push(foreseen.known.clone());
                for update in &list[begun..] {
                    foreseen.update::<F>(owner, target, *update)?;
                    self.known.push(foreseen.known.clone());
                }
            }
            Operation::Extended(of, list) => {
                let owner = foreseen.named(domain, *of)?;
                self.known.push(foreseen.known.clone());
                for one in &list[begun..] {
                    foreseen.extended::<F>(domain, owner, *one)?;
                    self.known.push(foreseen.known.clone());
                }
            }
            Operation::Remap(address, raw, _, of) => self.one(foreseen, |foreseen| {
                let target = of.map_or(Ok(domain), |of| foreseen.named(domain, of))?;
                foreseen.remap::<F>(domain, *address, *raw, target)
            })?,
            Operation::OnVcpu(number, one) => self.on_vcpu::<F>(foreseen, domain, *number, *one)?,
            Operation::SetGlobal(list, entries) => {
                self.one(foreseen, |foreseen| foreseen.set_global::<F>(domain, list, *entries))?;
            }
            Operation::UpdateDescriptor(place, raw) => {
                self.one(foreseen, |foreseen| foreseen.update_descriptor::<F>(domain, *place, *raw))?;
            }
            Operation::Decrease(list) => {
                self.known.push(foreseen.known.clone());
                for frame in list {
                    foreseen.decrease::<F>(domain, *frame)?;
                    self.known.push(foreseen.known.clone());
                }
            }
            Operation::Multicall(list) => {
                for entry in list {
                    let mut inner = Self::default();
                    inner.add::<F>(foreseen, domain, entry, 0);
                    self.entries.push(inner.refusal);
                }
                self.known.push(foreseen.known.clone());
            }
            _ => {}
        }
        Ok(())
    }

    /// An operation that is done whole or not at all.
    fn one<'a>(
        &mut self,
        foreseen: &mut Foreseen<'a>,
        act: impl FnOnce(&mut Foreseen<'a>) -> Result<(), Errors>,
    ) -> Result<(), Errors> {
        self.known.push(foreseen.known.clone());
        act(foreseen)?;
        self.known.push(foreseen.known.clone());
        Ok(())
    }

    fn on_vcpu<F: Hardware>(
        &mut self,
        foreseen: &mut Foreseen<'_>,
        domain: usize,
        number: u64,
        one: OnVcpu,
    ) -> Result<(), Errors> {
        let before = foreseen.known.clone();
        let outcome = foreseen.on_vcpu::<F>(domain, number, one);
        // What a refusal leaves behind is known at once.
        self.known.push(if outcome.is_ok() { before } else { foreseen.known.clone() });
        self.value = outcome?;
        self.known.push(foreseen.known.clone());
        Ok(())
    }
}
