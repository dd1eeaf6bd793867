//! Hypercalls that change nothing, or nothing that stays.

use super::meter;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::{self, address_of, address_of_mut};
use penumbra_abi::mmu::{MMUEXT_INVLPG_LOCAL, MMUEXT_TLB_FLUSH_LOCAL, MmuextOp};
use penumbra_abi::multicall::MulticallEntry;
use penumbra_abi::sched::SCHEDOP_YIELD;
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number, version};

/// A number that is no hypercall (the last one that Xen's table has room for).
const NO_HYPERCALL: u64 = 63;
/// Calls in one multicall.
const CALLS: usize = 32;

/// Asks for the version.
pub fn null<A: Architecture>(_guest: &Guest<A>) -> Result<u64, Errno> {
    meter::simple_calls::<A>(|issue, _| issue(number::XEN_VERSION, [version::XENVER_VERSION, 0, 0, 0, 0, 0]))
}

/// A hypercall that there isn't.
pub fn unknown<A: Architecture>(_guest: &Guest<A>) -> Result<u64, Errno> {
    // The error is what is wanted here: it must not end the measurement.
    meter::simple_calls::<A>(|issue, _| issue(NO_HYPERCALL, [0; 6]) & 1)
}

/// Asks for the version, 32 times in one call, for each: what a multicall adds to an operation.
pub fn multicall_null<A: Architecture>(_guest: &Guest<A>) -> Result<u64, Errno> {
    let mut calls: [MulticallEntry; CALLS] =
        core::array::from_fn(|_| hypercalls::entry(number::XEN_VERSION, &[version::XENVER_VERSION, 0]));
    let arguments = [address_of_mut(&mut calls), CALLS as u64, 0, 0, 0, 0];
    let all = meter::simple_calls::<A>(|issue, _| issue(number::MULTICALL, arguments))?;
    Ok(meter::each(all, CALLS as u64))
}

/// Flushes one page.
pub fn invalidate_page<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    extended::<A>(MMUEXT_INVLPG_LOCAL, guest.info.pt_base)
}

/// Flushes everything.
pub fn flush<A: Architecture>(_guest: &Guest<A>) -> Result<u64, Errno> {
    extended::<A>(MMUEXT_TLB_FLUSH_LOCAL, 0)
}

fn extended<A: Architecture>(command: u32, argument1: u64) -> Result<u64, Errno> {
    let operation = MmuextOp { command, pad: 0, argument1, argument2: 0 };
    let arguments = [address_of(&operation), 1, 0, DOMID_SELF.into(), 0, 0];
    meter::simple_calls::<A>(|issue, _| issue(number::MMUEXT_OP, arguments))
}

/// Gives the CPU away, with nobody there to take it.
pub fn yield_cpu<A: Architecture>(_guest: &Guest<A>) -> Result<u64, Errno> {
    meter::simple_calls::<A>(|issue, _| issue(number::SCHED_OP, [SCHEDOP_YIELD, 0, 0, 0, 0, 0]))
}
