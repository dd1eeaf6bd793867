//! The control domain's calls, tried by a domain that isn't it.
//!
//! Each would show or change something that belongs to others: their memory, their lives, the log, the keyboard. Each must
//! be refused with `EPERM`, whatever else could be wrong with it; so the arguments are good ones, which would succeed if
//! nobody looked at who asks.

use super::attempts::Tally;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::{self, address_of, address_of_mut};
use crate::say;
use penumbra_abi::domctl::{self, DomainInfo, Domctl};
use penumbra_abi::memory::{
    MemoryReservation, XENMEM_DECREASE_RESERVATION, XENMEM_INCREASE_RESERVATION, XENMEM_MAXIMUM_RESERVATION,
};
use penumbra_abi::mmu::{MMUEXT_TLB_FLUSH_LOCAL, MmuextOp};
use penumbra_abi::{Errno, hypercall as number};

/// The domain that the calls are aimed at.
const CONTROL: u16 = 0;

type Result = core::result::Result<(), Errno>;

/// What a call is named, and a function that makes it.
type Attempt<A> = (&'static str, fn(&Guest<A>) -> Result);

/// Makes every call, prints a line for each, and adds to `tally`.
pub fn run<A: Architecture>(guest: &Guest<A>, mut tally: Tally) -> Tally {
    say!(A);
    say!(A, "==== The control domain's calls, tried by a domain that isn't it ====");
    for (name, attempt) in attempts::<A>() {
        let result = attempt(guest);
        tally.attempts += 1;
        tally.failures += u64::from(result != Err(Errno::EPERM));
        say!(A, "  {name:<44} {}", result.map_or_else(Errno::name, |()| "ALLOWED"));
    }
    tally
}

fn attempts<A: Architecture>() -> [Attempt<A>; 14] {
    [
        ("domctl: memory list of domain 0", |_| {
            hypercalls::memory_list::<A>(CONTROL, 0, &mut [0; 8]).map(drop)
        }),
        ("domctl: memory list of oneself", |_| hypercalls::memory_list::<A>(1, 0, &mut [0; 8]).map(drop)),
        ("domctl: description of domain 0", |_| on_control::<A>(domctl::GETDOMAININFO)),
        ("domctl: pause domain 0", |_| on_control::<A>(domctl::PAUSEDOMAIN)),
        ("domctl: destroy domain 0", |_| on_control::<A>(domctl::DESTROYDOMAIN)),
        ("sysctl: the hypervisor's log", |_| hypercalls::read_log::<A>(0, &mut [0; 64]).map(drop)),
        ("sysctl: list of domains", |_| {
            hypercalls::domain_list::<A>(0, &mut [DomainInfo::default(); 2]).map(drop)
        }),
        ("audit", |_| hypercalls::audit::<A>().map(drop)),
        ("console_io: read what is typed", |_| hypercalls::console_read::<A>(&mut [0; 8]).map(drop)),
        ("memory_op: pages of domain 0", |_| hypercalls::current_reservation::<A>(CONTROL).map(drop)),
        ("memory_op: most pages of domain 0", |_| {
            let arguments = [XENMEM_MAXIMUM_RESERVATION, address_of(&CONTROL)];
            hypercalls::call::<A>(number::MEMORY_OP, &arguments).map(drop)
        }),
        ("memory_op: more memory for domain 0", |_| reservation::<A>(XENMEM_INCREASE_RESERVATION, 0)),
        ("memory_op: take a page from domain 0", |guest| {
            reservation::<A>(XENMEM_DECREASE_RESERVATION, guest.root_frame())
        }),
        ("mmuext_op: flush, in domain 0's name", |_| {
            let operation = MmuextOp { command: MMUEXT_TLB_FLUSH_LOCAL, pad: 0, argument1: 0, argument2: 0 };
            let arguments = [address_of(&operation), 1, 0, u64::from(CONTROL)];
            hypercalls::call::<A>(number::MMUEXT_OP, &arguments).map(drop)
        }),
    ]
}

/// A `domctl` without a body, on domain 0.
fn on_control<A: Architecture>(command: u32) -> Result {
    let mut operation = Domctl::new(command, CONTROL, &[]);
    hypercalls::call::<A>(number::DOMCTL, &[address_of_mut(&mut operation)]).map(drop)
}

/// A reservation operation on one page of domain 0.
fn reservation<A: Architecture>(operation: u64, mut frame: u64) -> Result {
    let request = MemoryReservation {
        extent_start: address_of_mut(&mut frame),
        nr_extents: 1,
        domid: CONTROL,
        ..Default::default()
    };
    hypercalls::call::<A>(number::MEMORY_OP, &[operation, address_of(&request)]).map(drop)
}
