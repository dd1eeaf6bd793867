//! Flushes that a guest was promised.

use penumbra_abi::mmu::*;

use super::{Check, Session};
use crate::format::Hardware;
use crate::hardware::reach::CPUS;
use crate::operation::{Operation, named_by};
use crate::spec::vcpus::VCPUS;

/// What is not cached any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Promise {
    /// The address, or all of them.
    address: Option<u64>,
    /// Where.
    whose: Whose,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Whose {
    /// On the CPU that the asking vCPU is on.
    Mine,
    /// On those that run these vCPUs of the domain, a bit each.
    Of(u64),
}

const ALL: Whose = Whose::Of((1 << VCPUS) - 1);

/// What an operation that succeeds promises.
fn promised(operation: &Operation) -> Option<Promise> {
    let promise = |address, whose| Some(Promise { address, whose });
    match operation {
        Operation::Remap(address, _, flags, _) => {
            let whose = match flags & !UVMF_FLUSHTYPE_MASK {
                UVMF_LOCAL => Whose::Mine,
                UVMF_ALL => ALL,
                mask => Whose::Of(named_by(mask)?),
            };
            match flags & UVMF_FLUSHTYPE_MASK {
                UVMF_TLB_FLUSH => promise(None, whose),
                UVMF_INVLPG => promise(Some(*address), whose),
                _ => None,
            }
        }
        Operation::Extended(_, list) => {
            let last = list.last()?;
            let (address, named) = (Some(last.argument), named_by(last.second));
            match last.command {
                MMUEXT_TLB_FLUSH_LOCAL | MMUEXT_NEW_BASEPTR => promise(None, Whose::Mine),
                MMUEXT_TLB_FLUSH_ALL => promise(None, ALL),
                MMUEXT_TLB_FLUSH_MULTI => promise(None, Whose::Of(named?)),
                MMUEXT_INVLPG_LOCAL => promise(address, Whose::Mine),
                MMUEXT_INVLPG_ALL => promise(address, ALL),
                MMUEXT_INVLPG_MULTI => promise(address, Whose::Of(named?)),
                _ => None,
            }
        }
        _ => None,
    }
}

impl<F: Hardware> Session<F> {
    /// What was promised to be flushed is not cached any more.
    pub(super) fn check_promise(&self, domain: usize, operation: &Operation) -> Check {
        let Some(Promise { address, whose }) = promised(operation) else { return Ok(()) };
        for cpu in 0..CPUS {
            let runs = |loaded: &crate::machine::Loaded| match whose {
                Whose::Mine => cpu == self.machine().current(),
                Whose::Of(vcpus) => loaded.tag == domain && vcpus >> loaded.vcpu & 1 != 0,
            };
            if !self.machine().loaded(cpu).as_ref().is_some_and(runs) {
                continue;
            }
            // Nobody has used an address since.
            if let Some(entry) = self.machine().cached(cpu, address) {
                return Err(format!(
                    "{entry:x?} is still cached on CPU {cpu}, after a flush that was promised"
                ));
            }
        }
        Ok(())
    }
}
