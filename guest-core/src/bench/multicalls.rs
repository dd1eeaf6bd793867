//! Multicalls of entries that each take long, although they are one operation each.
//!
//! What an entry costs by itself is little beside what the hypervisor may do between two preemption points; what two thousand cost isn't.
//! So each has to be charged for what it does: ports that it names, pages, handlers.

use super::stretches::with_long_list;
use crate::architecture::{Architecture, PAGE_SIZE};
use crate::guest::Guest;
use crate::hypercalls::{address_of, call};
use penumbra_abi::event_channel::{EVTCHNOP_RESET, Reset};
use penumbra_abi::sched::{SCHEDOP_POLL, SchedPoll};
use penumbra_abi::vcpu::VCPUOP_INITIALISE;
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// Calls in the multicall.
const CALLS: u64 = 2000;
/// Words of an entry, and entries on a page.
const ENTRY_WORDS: usize = 8;
const ENTRIES: usize = PAGE_SIZE as usize / 8 / ENTRY_WORDS;
/// Ports that a vCPU can wait for at once.
const POLLED: u32 = 128;
/// No port has this number.
const NO_PORT: u64 = 9999;

/// One call of those that are repeated: its number and its first four arguments.
pub type Repeated = [u64; 5];

/// A multicall of 2000 entries that are these calls, in turn.
///
/// # Errors
/// There is no memory, the multicall is refused, or an entry comes to something else than `expected`.
pub fn repeat<A: Architecture>(
    guest: &Guest<A>,
    calls: &[Repeated],
    expected: Result<(), Errno>,
) -> Result<(), Errno> {
    let page = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    for (entry, [operation, first, second, third, fourth]) in calls.iter().cycle().take(ENTRIES).enumerate() {
        let words = [*operation, 0, *first, *second, *third, *fourth];
        words
            .iter()
            .enumerate()
            .for_each(|(word, value)| guest.write(&page, entry * ENTRY_WORDS + word, *value));
    }
    let result = with_long_list(guest, &page, |list| call::<A>(number::MULTICALL, &[list, CALLS]).map(drop));
    let results =
        (0..ENTRIES).map(|entry| Errno::from_return(guest.read(&page, entry * ENTRY_WORDS + 1)).map(drop));
    let other = results.into_iter().find(|result| *result != expected);
    guest.pages.free(page);
    result?;
    other.map_or(Ok(()), |other| Err(other.err().unwrap_or(Errno::EINVAL)))
}

/// Polls of 128 ports, of which the last one is none, so that nobody ever waits.
pub fn polls<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    let ports = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    (0..64).for_each(|pair| guest.write(&ports, pair, 1 << 32 | 1));
    guest.write(&ports, 63, NO_PORT << 32 | 1);
    let poll = SchedPoll { ports: guest.address(&ports), nr_ports: POLLED, ..Default::default() };
    let calls = [[number::SCHED_OP, SCHEDOP_POLL, address_of(&poll), 0, 0]];
    let result = repeat(guest, &calls, Err(Errno::EINVAL));
    guest.pages.free(ports);
    result
}

/// Resets of ports that are all closed by then.
pub fn resets<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    let reset = Reset { dom: DOMID_SELF };
    repeat(guest, &[[number::EVENT_CHANNEL_OP, EVTCHNOP_RESET, address_of(&reset), 0, 0]], Ok(()))
}

/// First registers for a vCPU that has them already: they are read all the same, from the start of this kernel.
pub fn second_starts<A: Architecture>(guest: &Guest<A>) -> Result<(), Errno> {
    repeat(guest, &[[number::VCPU_OP, VCPUOP_INITIALISE, 0, A::VIRT_BASE, 0]], Err(Errno::EEXIST))
}
