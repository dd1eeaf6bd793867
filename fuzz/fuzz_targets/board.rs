//! The board of a guest with a machine of its own: its UART and its clock, whatever they are asked, and the device tree that tells of them.
#![no_main]

use std::collections::VecDeque;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use platform::emulated::pl011::Pl011;
use platform::emulated::pl031::Pl031;
use platform::emulated::tree::{Controller, GuestTree, MAX_SIZE};
use platform::emulated::{NoSuchAccess, Width, board};
use platform::virt::{DeviceTree, Range};

/// `UARTDR`, `UARTFR`, `UARTLCR_H` and `UARTCR`.
const DATA: u64 = 0;
const FLAGS: u64 = 0x18;
const LINE: u64 = 0x2c;
const CONTROL: u64 = 0x30;

#[derive(Arbitrary, Debug)]
enum Step {
    Read(Offset, u8),
    Write(Offset, u8, u64),
    /// So many characters come in, each the next after the last.
    Receive(u8, u8),
    /// So many are read.
    Drain(u8),
    ReadClock(Offset, u8),
    WriteClock(Offset, u8, u64),
    Later(u32),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Offset {
    Near(u8),
    Any(u64),
}

impl Offset {
    fn value(self) -> u64 {
        match self {
            Self::Near(offset) => offset.into(),
            Self::Any(offset) => offset,
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Guest<'a> {
    command_line: &'a str,
    initrd: Option<(u32, u32)>,
    memory: u32,
    vcpus: u8,
    v2: bool,
    grant_window: Option<(u64, u64)>,
    stdout: Option<&'a str>,
    timer_hertz: Option<u32>,
    clock: bool,
    monitors: bool,
    cpu: &'a str,
    room: u16,
}

fuzz_target!(|input: (u32, Vec<Step>, Guest<'_>)| {
    let (start, steps, guest) = input;
    devices(start.into(), steps);
    tree(&guest);
});

/// The UART, what waits in it, and the clock at a time.
struct Devices {
    uart: Pl011,
    waiting: VecDeque<u8>,
    clock: Pl031,
    now: u64,
}

fn devices(now: u64, steps: Vec<Step>) {
    let mut devices = Devices { uart: Pl011::new(), waiting: VecDeque::new(), clock: Pl031::new(), now };
    devices.uart.begin();
    devices.clock.begin();
    for step in steps {
        match step {
            Step::Read(offset, choice) => devices.read(offset.value(), width(choice)),
            Step::Write(offset, choice, value) => devices.write(offset.value(), width(choice), value),
            Step::Receive(first, count) => {
                for byte in (0..count % 32).map(|index| first.wrapping_add(index)) {
                    let room = devices.uart.room() > 0;
                    assert_eq!(devices.uart.receive(byte), room);
                    devices.waiting.extend(room.then_some(byte));
                }
            }
            Step::Drain(count) => (0..count % 32).for_each(|_| devices.read(DATA, Width::Byte)),
            Step::ReadClock(offset, choice) => {
                let (offset, width) = (offset.value(), width(choice));
                let value = devices.clock.read(offset, width, devices.now);
                assert_eq!(value.is_ok(), sound(offset, width));
                assert!(value.is_ok_and(|value| value & !width.mask() == 0) || value == Err(NoSuchAccess));
            }
            Step::WriteClock(offset, choice, value) => {
                let (offset, width) = (offset.value(), width(choice));
                let outcome = devices.clock.write(offset, width, value, devices.now);
                assert_eq!(outcome.is_ok(), sound(offset, width));
            }
            Step::Later(seconds) => devices.now += u64::from(seconds),
        }
        let empty = devices.register(FLAGS) & 0x10 != 0;
        assert_eq!(empty, devices.waiting.is_empty(), "the flags tell whether something waits");
        if let Some(deadline) = devices.clock.deadline() {
            assert!(deadline > 0 && !devices.clock.interrupt(deadline - 1));
            assert!(devices.clock.interrupt(deadline));
        }
    }
}

impl Devices {
    fn register(&mut self, offset: u64) -> u64 {
        self.uart.read(offset, Width::Word).expect("there is such a register")
    }

    fn read(&mut self, offset: u64, width: Width) {
        let value = self.uart.read(offset, width);
        assert_eq!(value.is_ok(), sound(offset, width));
        let Ok(value) = value else { return };
        assert_eq!(value & !width.mask(), 0);
        if offset & !3 == DATA
            && let Some(oldest) = self.waiting.pop_front()
        {
            assert_eq!(value as u8, oldest, "characters come in order, each once");
        }
    }

    fn write(&mut self, offset: u64, width: Width, value: u64) {
        let (line, control) = (self.register(LINE), self.register(CONTROL));
        let depth = if line & 0x10 == 0 { 1 } else { 16 };
        let sent = self.uart.write(offset, width, value);
        assert_eq!(sent.is_ok(), sound(offset, width));
        let is_data = sent.is_ok() && offset & !3 == DATA;
        assert_eq!(sent.ok().flatten(), is_data.then_some(value as u8));
        if is_data && control & 0x80 != 0 && self.waiting.len() < depth {
            self.waiting.push_back(value as u8);
        }
        if (line ^ self.register(LINE)) & 0x10 != 0 {
            self.waiting.clear();
        }
    }
}

fn width(choice: u8) -> Width {
    match choice % 4 {
        0 => Width::Byte,
        1 => Width::Half,
        2 => Width::Word,
        _ => Width::Double,
    }
}

fn sound(offset: u64, width: Width) -> bool {
    offset < board::UART.size && offset % width.bytes() == 0
}

/// What is written is read back; what can't be written is refused.
fn tree(guest: &Guest<'_>) {
    let Some(memory) = Range::new(board::RAM_START, guest.memory.into()) else { return };
    let place = |(start, size): (u32, u32)| Range::new(board::RAM_START + u64::from(start), size.into());
    let described = GuestTree {
        command_line: guest.command_line,
        initrd: guest.initrd.and_then(place),
        memory,
        vcpus: usize::from(guest.vcpus % 10),
        controller: if guest.v2 { Controller::V2 } else { Controller::V3 },
        grant_window: guest.grant_window.map(|(start, end)| Range { start, end }),
        stdout: guest.stdout,
        timer_hertz: guest.timer_hertz,
        clock: guest.clock,
        monitors: guest.monitors,
        cpu_compatible: guest.cpu,
    };
    let mut small = vec![0xff; guest.room.into()];
    let _ = described.write(&mut small);
    let mut buffer = vec![0xff; MAX_SIZE];
    let Ok(length) = described.write(&mut buffer) else { return };
    let tree = DeviceTree::new(&buffer).expect("a sound tree");
    assert_eq!(tree.size(), length);
    let found = tree.board().expect("a board");
    assert_eq!(found.memory.iter().collect::<Vec<_>>(), [memory]);
    assert_eq!((found.cpus, found.command_line), (described.vcpus, described.command_line));
    assert!(found.reserved.is_empty() && tree.firmware().is_some());
    assert_eq!(tree.console().map(|uart| uart.registers.start), Some(board::UART.start));
}
