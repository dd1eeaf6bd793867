//! Domains' consoles: the rings of the console page, whatever a guest makes of them; `console_io`; and to whom typed bytes go.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{Guest, Rig, SCRATCH, SELF, address};
use hyp_core::fake;
use hyp_core::machine::FrameMemory;
use hyp_core::paging::Budget;
use penumbra_abi::console::{CONSOLEIO_READ, CONSOLEIO_WRITE, INPUT_RING, OUTPUT_RING};
use penumbra_abi::errno::Errno;
use penumbra_abi::event_channel::*;
use penumbra_abi::start_info::StartInfo;
use penumbra_abi::{DOMID_XEN, hypercall as number};
use proptest::prelude::*;
use zerocopy::{FromZeros, IntoBytes};

/// The console's port.
const PORT: u32 = 2;
/// Where the indices stand: words of the page.
const INPUT_INDICES: usize = 3072 / 8;
const OUTPUT_INDICES: usize = 3080 / 8;
const CTRL_A_THRICE: &[u8] = b"\x01\x01\x01";

impl Rig {
    fn console_word(&self, who: usize, index: usize) -> &std::sync::atomic::AtomicU64 {
        let page = self.domains[who].domain.console_page().expect("a console page");
        self.hv.machine().shared_word(page, index).expect("memory")
    }

    /// Reader's and writer's index of a ring.
    fn indices(&self, who: usize, place: usize) -> (u32, u32) {
        let word = self.console_word(who, place).load(Ordering::SeqCst);
        (word as u32, (word >> 32) as u32)
    }

    fn set_indices(&self, who: usize, place: usize, consumed: u32, produced: u32) {
        let word = u64::from(consumed) | u64::from(produced) << 32;
        self.console_word(who, place).store(word, Ordering::SeqCst);
    }

    /// The guest writes into its output ring, without looking whether there is room.
    fn print(&self, who: usize, text: &[u8]) {
        let page = self.domains[who].domain.console_page().expect("a console page");
        let (consumed, produced) = self.indices(who, OUTPUT_INDICES);
        for (at, byte) in (produced..=u32::MAX).chain(0..).zip(text) {
            let offset = INPUT_RING + at as usize % OUTPUT_RING;
            self.hv.machine().write_frame(page, offset, &[*byte]);
        }
        self.set_indices(who, OUTPUT_INDICES, consumed, produced.wrapping_add(text.len() as u32));
    }

    /// As [`Self::print`], with the event.
    fn say(&self, who: usize, text: &[u8]) {
        self.print(who, text);
        self.send(who, PORT).expect("the console's port");
    }

    /// The guest takes all input.
    fn typed(&self, who: usize) -> Vec<u8> {
        let page = self.domains[who].domain.console_page().expect("a console page");
        let (consumed, produced) = self.indices(who, INPUT_INDICES);
        let mut text = Vec::new();
        for at in 0..produced.wrapping_sub(consumed) {
            let mut byte = [0];
            let offset = consumed.wrapping_add(at) as usize % INPUT_RING;
            self.hv.machine().read_frame(page, offset, &mut byte);
            text.extend(byte);
        }
        self.set_indices(who, INPUT_INDICES, produced, produced);
        text
    }

    fn keys(&self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.hv.console_input(*byte));
    }

    /// Which domain has the input.
    fn focus(&self) -> Option<u16> {
        self.hv.input_goes_to().map(|domain| domain.number())
    }

    /// Who has it after `CTRL-a` three times.
    fn switch(&self) -> Option<u16> {
        self.keys(CTRL_A_THRICE);
        self.focus()
    }

    /// What was written to the serial line after the first `from` bytes.
    fn output_from(&self, from: usize) -> String {
        self.hv.machine().output()[from..].to_owned()
    }

    /// What `work` has written to the serial line.
    fn output_of(&self, work: impl FnOnce()) -> String {
        let before = self.hv.machine().output().len();
        work();
        self.output_from(before)
    }
}

#[test]
fn what_a_guest_writes_is_shown_before_its_event_returns() {
    let rig = Rig::new(1);
    let text = rig.output_of(|| rig.say(1, b"hello from the ring\nand more\n"));
    assert_eq!(text, "(d1) hello from the ring\n(d1) and more\n");
    assert_eq!(rig.indices(1, OUTPUT_INDICES), (29, 29));
    assert!(rig.is_pending(1, PORT), "it hears that there is room");
    rig.clear_pending(1, PORT);
    rig.send(1, PORT).unwrap();
    assert!(!rig.is_pending(1, PORT), "nothing was moved");
    rig.check();
}

#[test]
fn start_info_names_the_page_and_the_port() {
    let rig = Rig::new(1);
    let guest = &rig.domains[1];
    let page = guest.domain.console_page().unwrap();
    let magic = b"xen-3.0-x86_64";
    let found = guest.p2m.iter().find_map(|frame| {
        let mut info = StartInfo::new_zeroed();
        rig.hv.machine().read_frame(*frame, 0, info.as_mut_bytes());
        info.magic.starts_with(magic).then_some(info)
    });
    let info = found.expect("a start-info page");
    assert_eq!((info.console_mfn, info.console_evtchn), (page.number(), PORT));
    assert_eq!(info.store_evtchn, 0, "there is no store");
    assert!(guest.p2m.contains(&page), "it is the domain's own");
    assert!(rig.domains[0].domain.console_page().is_none(), "the control domain has none");
}

#[test]
fn rings_and_their_indices_wrap_around() {
    let rig = Rig::new(1);
    for start in [OUTPUT_RING as u32 - 3, u32::MAX - 2, u32::MAX - OUTPUT_RING as u32] {
        rig.set_indices(1, OUTPUT_INDICES, start, start);
        assert_eq!(
            rig.output_of(|| rig.say(1, b"round and round\n")),
            "(d1) round and round\n",
            "{start:#x}"
        );
        assert_eq!(rig.indices(1, OUTPUT_INDICES), (start.wrapping_add(16), start.wrapping_add(16)));
        rig.keys(CTRL_A_THRICE);
        rig.set_indices(1, INPUT_INDICES, start, start);
        rig.keys(b"typed");
        assert_eq!(rig.typed(1), b"typed", "{start:#x}");
        rig.keys(CTRL_A_THRICE);
        rig.keys(CTRL_A_THRICE);
    }
}

/// A full ring: more than a hypercall may do in one go, and every byte once.
#[test]
fn a_full_ring_is_shown_in_pieces_and_whole() {
    let rig = Rig::new(1);
    let line: Vec<u8> =
        (0..OUTPUT_RING).map(|at| if at % 64 == 63 { b'\n' } else { b'a' + (at % 64 % 26) as u8 }).collect();
    rig.print(1, &line);
    let at = rig.give(1, 2048, Port { port: PORT }.as_bytes());
    let arguments = [EVTCHNOP_SEND, at, 0, 0, 0, 0];
    let mut again = 0;
    let text = rig.output_of(|| {
        while let Err(rest) = rig.call_once(1, number::EVENT_CHANNEL_OP, arguments) {
            assert_eq!(rest, arguments, "it is the same event");
            assert!(rig.is_pending(1, PORT), "there is room already");
            again += 1;
        }
    });
    assert_eq!(again, OUTPUT_RING as u32 * 16 / Budget::HYPERCALL - 1);
    assert_eq!(text.replace("(d1) ", "").as_bytes(), line);
    // A budget of one entry gets on, too.
    rig.print(1, b"x\n");
    let vcpu = rig.domains[1].vcpu();
    vcpu.context().take();
    rig.hv.hypercall_within(vcpu, number::EVENT_CHANNEL_OP, arguments, &Budget::new(1));
    assert_eq!(vcpu.context().take().result, Some(0));
    assert_eq!(rig.indices(1, OUTPUT_INDICES), (OUTPUT_RING as u32 + 2, OUTPUT_RING as u32 + 2));
}

#[test]
fn indices_that_can_not_be_right_do_nothing() {
    let rig = Rig::new(1);
    rig.say(1, b"one of the round\n");
    rig.keys(CTRL_A_THRICE);
    rig.clear_pending(1, PORT);
    let page = rig.domains[1].domain.console_page().unwrap();
    for (consumed, produced) in [(0, OUTPUT_RING as u32 + 1), (1, 0), (0, u32::MAX), (0x8000_0000, 0)] {
        rig.set_indices(1, OUTPUT_INDICES, consumed, produced);
        rig.set_indices(1, INPUT_INDICES, consumed, produced);
        let mut before = [0; 1024];
        rig.hv.machine().read_frame(page, 0, &mut before);
        let text = rig.output_of(|| {
            rig.send(1, PORT).unwrap();
            rig.keys(b"nowhere to go");
        });
        let mut after = [0; 1024];
        rig.hv.machine().read_frame(page, 0, &mut after);
        assert_eq!((text.as_str(), before == after), ("", true));
        assert_eq!(rig.indices(1, OUTPUT_INDICES), (consumed, produced));
        assert!(!rig.is_pending(1, PORT));
    }
}

#[test]
fn what_is_typed_waits_for_room() {
    let rig = Rig::new(1);
    rig.say(1, b"");
    rig.keys(CTRL_A_THRICE);
    let text: Vec<u8> = (0..INPUT_RING + 300).map(|at| b'!' + (at % 64) as u8).collect();
    rig.keys(&text);
    assert!(rig.is_pending(1, PORT));
    assert_eq!(rig.typed(1), text[..INPUT_RING]);
    rig.clear_pending(1, PORT);
    rig.send(1, PORT).unwrap();
    assert!(rig.is_pending(1, PORT));
    assert_eq!(rig.typed(1), text[INPUT_RING..]);
    // More than both can hold: the oldest of those that wait are forgotten.
    let text: Vec<u8> = (0..3 * INPUT_RING).map(|at| b'!' + (at % 61) as u8).collect();
    rig.keys(&text);
    let first = rig.typed(1);
    rig.send(1, PORT).unwrap();
    assert_eq!((first.as_slice(), rig.typed(1).as_slice()), (&text[..INPUT_RING], &text[2 * INPUT_RING..]));
}

/// The port is like one that is connected to somebody.
#[test]
fn the_port_behaves_like_another_domains() {
    let rig = Rig::new(1);
    rig.domains[1].domain.set_vcpu_count(2);
    let status = rig.port_status(1, SELF, PORT).unwrap();
    let expected = (EVTCHNSTAT_INTERDOMAIN, u32::from(DOMID_XEN), PORT, 0);
    assert_eq!((status.status, status.detail, status.remote_port, status.vcpu), expected);
    rig.bind_vcpu(1, PORT, 1).unwrap();
    assert_eq!(rig.port_status(1, SELF, PORT).unwrap().vcpu, 1);
    rig.say(1, b"to the second\n");
    assert!(rig.upcall_pending(1, 1) && !rig.upcall_pending(1, 0));
    rig.clear_pending(1, PORT);
    rig.mask(1, PORT);
    rig.acknowledge(1, 1);
    rig.say(1, b"masked\n");
    assert!(rig.is_pending(1, PORT) && !rig.upcall_pending(1, 1));
    rig.on_port(1, EVTCHNOP_UNMASK, PORT).unwrap();
    assert!(rig.upcall_pending(1, 1));
    assert_eq!(rig.bind_interdomain(1, SELF, PORT), Err(Errno::EINVAL), "nobody else can connect");
    assert_eq!(rig.bind_interdomain(0, 1, PORT), Err(Errno::EINVAL));
    // Closed, it is gone, and what is typed waits without an event.
    rig.keys(CTRL_A_THRICE);
    rig.close(1, PORT).unwrap();
    assert_eq!(rig.send(1, PORT), Err(Errno::EINVAL));
    assert_eq!(rig.close(1, PORT), Err(Errno::EINVAL));
    assert_eq!(rig.bind_ipi(1, 0), Ok(1));
    assert_eq!(rig.bind_ipi(1, 0), Ok(PORT), "it can be another's");
    rig.keys(b"x");
    assert!(!rig.is_pending(1, PORT), "which hears nothing of the console");
    rig.check();
}

#[test]
fn the_page_stays_writable_and_comes_back_in_the_end() {
    let rig = Rig::new(1);
    let guest = &rig.domains[1];
    let page = guest.domain.console_page().unwrap();
    rig.say(1, b"still here\n");
    let pfn = guest.p2m.iter().position(|frame| *frame == page).unwrap() as u64;
    rig.remap(1, pfn, 0).unwrap();
    assert!(rig.pin(1, page, 1).is_err(), "no table, even when the domain has it nowhere");
    rig.memory(1, penumbra_abi::memory::XENMEM_DECREASE_RESERVATION, SELF, &[page.number()]).unwrap();
    rig.check();
    let owner = rig.hv.frames().hold(page).and_then(|hold| hold.owner);
    assert_eq!(owner, Some(guest.id()), "given away by the domain, it is still held");
    rig.send(1, PORT).unwrap();
    let free = rig.hv.frames().free_frames();
    rig.bury(1);
    let back = rig.hv.frames().free_frames() - free;
    // All but the one that the domain gave away, which has now been freed as well, and the shared-info page.
    assert_eq!(back as u64, fake::kernel::MINIMUM_FRAMES + 1);
    assert!(rig.hv.domain(guest.id()).is_none());
}

/// `console_io`: the first domain reads, control domain or not; all write.
#[test]
fn the_first_domain_may_use_console_io_whatever_it_is() {
    let hv = fake::hypervisor(crate::common::MACHINE);
    let domains = (0..2).map(|_| Guest::new(hv, false)).collect();
    let rig = Rig { hv, domains };
    let read = [CONSOLEIO_READ, 16, address(SCRATCH), 0, 0, 0];
    rig.keys(b"early");
    assert_eq!(rig.call(0, number::CONSOLE_IO, read), Ok(5), "before it uses its page");
    assert_eq!(rig.call(1, number::CONSOLE_IO, read), Err(Errno::EPERM));
    rig.keys(b"late");
    rig.say(0, b"prompt> ");
    assert_eq!(rig.call(0, number::CONSOLE_IO, read), Ok(0), "it is in the page now");
    assert_eq!(rig.typed(0), b"late");
    for who in 0..2 {
        let at = rig.give(who, 0, b"written\n");
        let text = rig.output_of(|| {
            assert_eq!(rig.call(who, number::CONSOLE_IO, [CONSOLEIO_WRITE, 8, at, 0, 0, 0]), Ok(0));
        });
        assert!(text.contains(&format!("(d{who}) written\n")) || text == "written\n", "{text}");
    }
    rig.check();
}

/// Round they go, those that use their consoles, and each gets what is typed while it has the input.
#[test]
fn the_input_goes_round() {
    let rig = Rig::new(3);
    rig.say(3, b"login: ");
    assert_eq!(rig.switch(), Some(3), "d1 and d2 have said nothing yet");
    rig.say(1, b"# ");
    assert_eq!(rig.switch(), None);
    assert_eq!(rig.switch(), Some(0));
    let text = rig.output_of(|| assert_eq!(rig.switch(), Some(1)));
    assert_eq!(text, "\n(d1) # ", "the prompt is shown");
    rig.keys(b"one");
    assert_eq!(rig.output_of(|| rig.say(1, b"o")), "o", "an answer to each key");
    assert_eq!(rig.output_of(|| rig.say(3, b"o")), "", "not from the others");
    assert_eq!(rig.switch(), Some(3));
    rig.keys(b"three");
    assert_eq!((rig.typed(1).as_slice(), rig.typed(3).as_slice()), (&b"one"[..], &b"three"[..]));
    assert_eq!((rig.typed(2).len(), rig.indices(2, INPUT_INDICES)), (0, (0, 0)));
}

#[test]
fn a_domains_end_takes_the_input_on() {
    let mut rig = Rig::new(2);
    rig.say(1, b"one\n");
    rig.say(2, b"two\n");
    assert_eq!(rig.switch(), Some(1));
    rig.keys(b"unread");
    rig.bury(1);
    assert_eq!(rig.focus(), Some(2));
    rig.keys(b"x");
    assert_eq!(rig.typed(2), b"x");
    rig.bury(2);
    assert_eq!(rig.focus(), None, "nobody is left but those who were before");
    // The number's next bearer has nothing of its past.
    rig.domains[1] = Guest::new(rig.hv, false);
    assert_eq!(rig.domains[1].id().number(), 1);
    assert_eq!((rig.switch(), rig.switch()), (Some(0), None), "d1 has said nothing yet");
    rig.say(1, b"");
    assert_eq!(rig.typed(1), b"");
    assert_eq!((rig.switch(), rig.switch()), (Some(0), Some(1)));
    rig.check();
}

/// A guest that writes and reads on another CPU meanwhile, as it should: every byte once, and in order.
#[test]
fn nothing_is_lost_between_two_cpus() {
    const BYTES: usize = 20_000;
    let rig = Rig::new(1);
    rig.say(1, b"");
    rig.keys(CTRL_A_THRICE);
    let before = rig.hv.machine().output().len();
    let page = rig.domains[1].domain.console_page().unwrap();
    let mut heard = Vec::new();
    std::thread::scope(|scope| {
        let (input, output) = (rig.console_word(1, INPUT_INDICES), rig.console_word(1, OUTPUT_INDICES));
        let machine = rig.hv.machine();
        let guest = scope.spawn(move || {
            let (mut written, mut heard) = (0, Vec::new());
            while written < BYTES || heard.len() < BYTES / 10 {
                let word = output.load(Ordering::Acquire);
                if written < BYTES && ((word >> 32) as u32).wrapping_sub(word as u32) < OUTPUT_RING as u32 {
                    machine.write_frame(
                        page,
                        INPUT_RING + written % OUTPUT_RING,
                        &[b'a' + (written % 26) as u8],
                    );
                    output.fetch_add(1 << 32, Ordering::Release);
                    written += 1;
                }
                let word = input.load(Ordering::Acquire);
                if (word >> 32) as u32 != word as u32 {
                    let mut byte = [0];
                    machine.read_frame(page, heard.len() % INPUT_RING, &mut byte);
                    heard.extend(byte);
                    input.fetch_add(1, Ordering::Release);
                }
            }
            heard
        });
        let at = rig.give(1, 2048, Port { port: PORT }.as_bytes());
        let mut typed = 0;
        while !guest.is_finished() {
            let _ = rig.call_once(1, number::EVENT_CHANNEL_OP, [EVTCHNOP_SEND, at, 0, 0, 0, 0]);
            // No more than can wait.
            let (consumed, produced) = rig.indices(1, INPUT_INDICES);
            if typed < BYTES / 10 && produced.wrapping_sub(consumed) < INPUT_RING as u32 {
                rig.hv.console_input(b'A' + (typed % 26) as u8);
                typed += 1;
            }
        }
        heard = guest.join().expect("the guest");
    });
    rig.send(1, PORT).unwrap();
    let expected: String = (0..BYTES).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
    assert_eq!(rig.output_from(before), format!("(d1) {expected}"));
    assert!(heard.iter().enumerate().all(|(at, byte)| *byte == b'A' + (at % 26) as u8));
}

/// A guest that changes the indices while the hypervisor works with them gets nonsense, and nobody else anything.
#[test]
fn a_guest_that_scribbles_at_the_same_time_harms_nobody() {
    let rig = Rig::new(1);
    rig.say(1, b"");
    rig.keys(CTRL_A_THRICE);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let words = [INPUT_INDICES, OUTPUT_INDICES].map(|index| rig.console_word(1, index));
        let stop = &stop;
        scope.spawn(move || {
            let mut state = 1u64;
            while !stop.load(Ordering::Relaxed) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Mostly possible, sometimes not.
                let word = (state & 0x0fff_0000_0000) | (state >> 20 & 0xfff);
                words[(state >> 60) as usize % 2].store(word, Ordering::Relaxed);
            }
        });
        for _ in 0..300 {
            let at = rig.give(1, 2048, Port { port: PORT }.as_bytes());
            let _ = rig.call_once(1, number::EVENT_CHANNEL_OP, [EVTCHNOP_SEND, at, 0, 0, 0, 0]);
            rig.keys(b"key");
        }
        stop.store(true, Ordering::Relaxed);
    });
    rig.check();
    rig.bury(1);
    rig.check();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever stands in the page: at most a ring's worth comes out, and nothing is written but input and two indices.
    #[test]
    fn any_page_is_survived(
        words in proptest::collection::vec(any::<u64>(), 512),
        near in any::<[u32; 2]>(),
        waiting in any::<[u16; 2]>(),
        keys in proptest::collection::vec(2..=255u8, 0..40),
    ) {
        let rig = Rig::new(1);
        rig.say(1, b"");
        rig.keys(CTRL_A_THRICE);
        for (index, word) in words.iter().enumerate() {
            rig.console_word(1, index).store(*word, Ordering::SeqCst);
        }
        for (index, place) in [INPUT_INDICES, OUTPUT_INDICES].into_iter().enumerate() {
            let waiting = u32::from(waiting[index] % 2100);
            rig.set_indices(1, place, near[index], near[index].wrapping_add(waiting));
        }
        let count = || {
            let text = rig.hv.machine().output();
            (text.chars().count(), text.matches("(d1) ").count())
        };
        let before = count();
        rig.send(1, PORT).unwrap();
        rig.keys(&keys);
        let after = count();
        let shown = after.0 - before.0;
        // A prefix is added to each line, with the end of the last one, or a carriage return.
        prop_assert!(shown <= OUTPUT_RING + (after.1 - before.1) * 6, "{shown}");
        let page = rig.domains[1].domain.console_page().unwrap();
        let written = (0..512).filter(|index| rig.hv.machine().read_word(page, *index) != words[*index]);
        prop_assert!(written.into_iter().all(|index| index < INPUT_RING / 8 || [INPUT_INDICES, OUTPUT_INDICES].contains(&index)));
        rig.check();
    }
}
