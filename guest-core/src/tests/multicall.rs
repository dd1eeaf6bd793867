//! Several calls in one: each gets its own result, a refused one doesn't stop the others.

use super::check::Check;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::{self, address_of, entry};
use penumbra_abi::multicall::MulticallEntry;
use penumbra_abi::{Errno, hypercall as number, mmu, version};

/// Calls in one batch.
const BATCH: usize = 32;

/// Runs the test `multicall`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    results(check);
    batch(guest, check);
    check.done("no calls at all", hypercalls::multicall::<A>(&mut []));
    let endless = [0x1000, u64::MAX / 64];
    check.refused(
        "a count without end",
        hypercalls::call::<A>(number::MULTICALL, &endless),
        &[Errno::EFAULT, Errno::EINVAL, Errno::E2BIG],
    );
}

fn results<A: Architecture>(check: &mut Check<A>) {
    let inner = [entry(number::XEN_VERSION, &[version::XENVER_VERSION, 0])];
    let mut calls = [
        entry(number::XEN_VERSION, &[version::XENVER_VERSION, 0]),
        entry(63, &[]),
        entry(number::UPDATE_VA_MAPPING, &[A::M2P_WINDOW, 0, 0]),
        entry(number::MULTICALL, &[address_of(&inner), 1]),
        entry(number::XEN_VERSION, &[version::XENVER_VERSION, 0]),
    ];
    check.done("five calls", hypercalls::multicall::<A>(&mut calls));
    let result = calls.map(|call| Errno::from_return(call.result));
    let direct = hypercalls::call::<A>(number::XEN_VERSION, &[version::XENVER_VERSION, 0]);
    check.that("the first gives the version", result[0] == direct && direct.is_ok());
    check.refused("a number that is no hypercall", result[1], &[Errno::ENOSYS]);
    check.refused("a mapping in the hypervisor's window", result[2], &[Errno::EINVAL, Errno::EPERM]);
    check.that("the one after the refusals was done", result[4] == direct);
    check.that("arguments stay", calls[2].arguments[0] == A::M2P_WINDOW);
    let nested_ok = result[3].is_ok() && inner[0].result != 0;
    check.that(
        "a multicall within is done or refused",
        nested_ok || result[3] == Err(Errno::ENOSYS) || result[3] == Err(Errno::EINVAL),
    );
}

/// Changes 32 mappings to read-only and back, in one call each.
fn batch<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let pages = core::array::from_fn::<_, BATCH, _>(|_| guest.pages.allocate());
    for writable in [false, true] {
        let mut calls = [MulticallEntry::default(); BATCH];
        for (call, page) in calls.iter_mut().zip(pages.iter().flatten()) {
            let leaf = A::leaf(guest.frame(page), writable);
            *call = entry(number::UPDATE_VA_MAPPING, &[guest.address(page), leaf, mmu::UVMF_INVLPG]);
        }
        check.done("a batch", hypercalls::multicall::<A>(&mut calls));
        check.that("each of the batch was done", calls.iter().all(|call| call.result == 0));
        let as_asked = |page| guest.mapping(guest.address(page)).is_some_and(|m| m.writable == writable);
        check.that("each entry is as asked", pages.iter().flatten().all(as_asked));
    }
    pages.into_iter().flatten().for_each(|page| guest.pages.free(page));
}
