//! The console page: what is written into its ring appears, what is typed arrives in the other, and indices that can't be right harm nobody.
//!
//! For a domain that has such a page: not for the control domain. Somebody has to type: the lines that begin with `ring:` say what.

use super::check::Check;
use crate::architecture::Architecture;
use crate::events::{self, Events, send, status};
use crate::guest::Guest;
use core::mem::offset_of;
use penumbra_abi::console::{ConsolePage, INPUT_RING, OUTPUT_RING};
use penumbra_abi::event_channel::EVTCHNSTAT_INTERDOMAIN;
use penumbra_abi::{DOMID_SELF, mmu};

/// Bytes that are read at a time.
const PIECE: usize = 64;

/// The domain's console page.
struct Rings<'a, A: Architecture> {
    guest: &'a Guest<A>,
    port: u32,
}

impl<A: Architecture> Rings<'_, A> {
    const INPUT: usize = offset_of!(ConsolePage, in_cons);
    const OUTPUT: usize = offset_of!(ConsolePage, out_cons);

    fn address(&self, offset: usize) -> u64 {
        self.guest.linear_of_frame(self.guest.info.console_mfn) + offset as u64
    }

    /// Reader's and writer's index of a ring.
    fn indices(&self, place: usize) -> (u32, u32) {
        let word = A::read_word(self.address(place));
        (word as u32, (word >> 32) as u32)
    }

    fn set_indices(&self, place: usize, consumed: u32, produced: u32) {
        let word = u64::from(consumed) | u64::from(produced) << 32;
        A::change_word(self.address(place), 0, word);
    }

    /// Writes as much as there is room for; the rest.
    fn write<'t>(&self, text: &'t [u8]) -> &'t [u8] {
        let (consumed, produced) = self.indices(Self::OUTPUT);
        let room = OUTPUT_RING - produced.wrapping_sub(consumed) as usize;
        let (now, later) = text.split_at(room.min(text.len()));
        for (number, byte) in now.iter().enumerate() {
            let at = produced.wrapping_add(number as u32) as usize % OUTPUT_RING;
            let (word, shift) = (self.address(INPUT_RING + at / 8 * 8), at % 8 * 8);
            A::change_word(word, !(0xff << shift), u64::from(*byte) << shift);
        }
        // The hypervisor changes the other half only while we send.
        self.set_indices(Self::OUTPUT, consumed, produced.wrapping_add(now.len() as u32));
        later
    }

    /// Writes all of it, as a driver does.
    fn print(&self, mut text: &[u8]) {
        while !text.is_empty() {
            text = self.write(text);
            let _ = send::<A>(self.port);
        }
    }

    /// Takes what was typed, and says so; how many bytes.
    fn read(&self, into: &mut [u8]) -> usize {
        let (consumed, produced) = self.indices(Self::INPUT);
        let count = into.len().min(produced.wrapping_sub(consumed) as usize);
        for (number, byte) in into[..count].iter_mut().enumerate() {
            let at = consumed.wrapping_add(number as u32) as usize % INPUT_RING;
            *byte = (A::read_word(self.address(at / 8 * 8)) >> (at % 8 * 8)) as u8;
        }
        // Only the half that is ours: the hypervisor may change the other at any time.
        let now = u64::from(consumed.wrapping_add(count as u32));
        A::change_word(self.address(Self::INPUT), !0xffff_ffff, now);
        let _ = send::<A>(self.port);
        count
    }
}

/// Runs the test `console-ring`.
pub fn run<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let rings = Rings { guest, port: guest.info.console_evtchn };
    check.that("there are a console page and a port", guest.info.console_mfn != 0 && rings.port != 0);
    let Some(events) = Events::open(guest).filter(|_| rings.port != 0) else {
        return check.that("the shared-info page can be mapped", false);
    };
    output(&rings, &events, check);
    absurd_indices(&rings, check);
    no_table(guest, check);
    input(&rings, &events, check);
    check.done("give the page back", events.close());
}

fn output<A: Architecture>(rings: &Rings<'_, A>, events: &Events<'_, A>, check: &mut Check<A>) {
    let status = check.done("ask what the port is", status::<A>(DOMID_SELF, rings.port));
    check.that("it is connected", status.is_some_and(|status| status.status == EVTCHNSTAT_INTERDOMAIN));
    check.done("unmask it", events::unmask::<A>(rings.port));
    let before = events.count(rings.port);
    let rest = rings.write(b"ring: hello through the ring\n");
    check.that("there is room", rest.is_empty());
    check.done("send", send::<A>(rings.port));
    let (consumed, produced) = rings.indices(Rings::<A>::OUTPUT);
    check.that("everything was taken before the hypercall returned", consumed == produced);
    check.that("an event says so", events.count(rings.port) == before + 1);
    check.done("send when nothing waits", send::<A>(rings.port));
    check.that("that is no event", events.count(rings.port) == before + 1);
    // Several times around the ring.
    for number in 0..100u8 {
        let mut line = *b"ring: line 00 of a hundred, which together are longer than the ring is\n";
        (line[11], line[12]) = (b'0' + number / 10, b'0' + number % 10);
        rings.print(&line);
    }
    let mut long = [b'='; OUTPUT_RING];
    long[OUTPUT_RING - 1] = b'\n';
    check.that("a full ring", rings.write(&long).is_empty());
    check.done("send", send::<A>(rings.port));
    let (consumed, produced) = rings.indices(Rings::<A>::OUTPUT);
    check.that("a full ring was taken", consumed == produced);
}

fn absurd_indices<A: Architecture>(rings: &Rings<'_, A>, check: &mut Check<A>) {
    let good = rings.indices(Rings::<A>::OUTPUT);
    for (consumed, produced) in [(0, OUTPUT_RING as u32 + 1), (1, 0), (0, u32::MAX), (0x8000_0000, 0)] {
        rings.set_indices(Rings::<A>::OUTPUT, consumed, produced);
        check.done("send with indices that can't be right", send::<A>(rings.port));
        check.that("they stay", rings.indices(Rings::<A>::OUTPUT) == (consumed, produced));
    }
    rings.set_indices(Rings::<A>::OUTPUT, good.0, good.1);
    rings.print(b"ring: and it still works\n");
}

/// The hypervisor writes there, so it can't become a table.
fn no_table<A: Architecture>(guest: &Guest<A>, check: &mut Check<A>) {
    let frame = guest.info.console_mfn;
    let pin = crate::hypercalls::mmuext::<A>(mmu::MMUEXT_PIN_L1_TABLE, frame, 0);
    check.refused("pin the console page", pin, super::REFUSED_TABLE);
}

fn input<A: Architecture>(rings: &Rings<'_, A>, events: &Events<'_, A>, check: &mut Check<A>) {
    rings.print(b"ring: type a line here\nring> ");
    let mut line = [0; PIECE];
    let mut length = 0;
    while length < PIECE && !line[..length].contains(&b'\r') {
        let taken = events.count(rings.port);
        let count = rings.read(&mut line[length..]);
        if count == 0 {
            events.wait_until(|| events.count(rings.port) > taken);
        }
        rings.print(&line[length..length + count]);
        length += count;
    }
    check.that("the line is what was typed", line[..length].ends_with(b"what was typed\r"));
    rings.print(b"\nring: typed: ");
    rings.print(&line[..length.saturating_sub(1)]);
    rings.print(b"\n");
}
