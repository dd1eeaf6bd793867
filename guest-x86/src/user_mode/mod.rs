//! User mode, under a root of its own: what a hostile program there may do, which is nothing but to come to the kernel.
//!
//! Both modes are ring 3 to the processor, so it is the hypervisor alone that tells them apart. Each program fills its registers, executes
//! one instruction, and ends with a system call. The instruction must come to the kernel once, with the place, the ring and every register of
//! the user's; at the end the user must have kept them all.

pub mod came;
mod segments;
mod words;

use core::arch::asm;
use core::array;
use core::mem::offset_of;

use guest_core::architecture::{Architecture, PAGE_SIZE};
use guest_core::events::{self, Events};
use guest_core::guest::Guest;
use guest_core::hypercalls::{address_of, address_of_mut, call};
use guest_core::tests::Check;
use penumbra_abi::Errno;
use penumbra_abi::event_channel::VIRQ_TIMER;
use penumbra_abi::hypercall as number;
use penumbra_abi::physdev::{PHYSDEVOP_SET_IOBITMAP, PHYSDEVOP_SET_IOPL, SetIoBitmap};
use penumbra_abi::shared_info::X86VcpuInfo;

use crate::machine::{VIRT_BASE, X86};
use crate::traps::{self, faults};
use crate::user::{USER_CODE, User};
use came::{
    BREAKPOINT, CS, Came, ERROR, FOR_USERS, GENERAL_PROTECTION, INVALID_OPCODE, MASKS_EVENTS, PAGE_FAULT,
    R11, RAX, RBX, RCX, RDI, RDX, RIP, RSP, SYSTEM_CALL, VECTOR, WORDS, user_mode_system_call,
};

/// In a page fault's error code: the page was there; it was a write; it was a user's.
const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// The first byte of the hypervisor's own map of all memory, Xen's as well.
pub const HYPERVISOR: u64 = 0xffff_8300_0000_0000;
/// Every program's last instructions: `xor ebx, ebx; syscall`.
const END: [u8; 4] = [0x31, 0xdb, 0x0f, 0x05];
/// Hypercalls' numbers that users try.
const HYPERCALLS: u32 = 64;
/// `1: dec rbx; jnz 1b`, and how far the user counts while the timer runs: for several times as long.
const COUNTING: [u8; 5] = [0x48, 0xff, 0xcb, 0x75, 0xfb];
const FAR: u64 = 40_000_000;
/// Nanoseconds until the timer's event.
const SOON: u64 = 5_000_000;

/// A program: the instruction in it, what it is meant to be, and what must come of it.
struct Program<'a> {
    /// Instructions before it, and the registers that they change.
    before: &'a [u8],
    changed: &'a [(usize, u64)],
    instruction: &'a [u8],
    vector: u64,
    error: u64,
}

impl Program<'_> {
    /// A program with nothing before its instruction, and what that must come to the kernel as.
    const fn of(instruction: &[u8], vector: u64, error: u64) -> Program<'_> {
        Program { before: &[], changed: &[], instruction, vector, error }
    }

    /// Runs it: whether everything came of it that must, and nothing else.
    fn comes(&self, guest: &Guest<X86>) -> bool {
        let after = match self.vector {
            BREAKPOINT | SYSTEM_CALL | FOR_USERS => self.instruction.len() as u64,
            _ => 0,
        };
        let skip = self.instruction.len() as u64 - after;
        let Ok((place, came)) = run_user(guest, &[self.before, self.instruction], 1, skip, || Ok(())) else {
            return false;
        };
        let place = place + self.before.len() as u64 + after;
        let Came { count, first, last } = came;
        count == 1
            && [first[VECTOR], first[ERROR], first[RIP]] == [self.vector, self.error, place]
            && first[CS] & 3 == 3
            && self.kept(&first, 1)
            && last[VECTOR] == SYSTEM_CALL
            && self.kept(&last, 0)
    }

    /// Whether the registers are what the program made them. `syscall` itself changes rcx and r11.
    fn kept(&self, frame: &[u64; WORDS], rbx: u64) -> bool {
        (0..VECTOR).all(|register| {
            let changed = self.changed.iter().find(|(number, _)| *number == register);
            let free = frame[VECTOR] == SYSTEM_CALL && [RCX, R11].contains(&register);
            let value = match register {
                RSP => 0,
                RBX => rbx,
                _ => changed.map_or(pattern(register), |(_, value)| *value),
            };
            free || frame[register] == value
        })
    }
}

/// What a program's register holds.
const fn pattern(register: usize) -> u64 {
    0x0101_0101_0101_0101 * (register as u64 + 1)
}

/// Runs the user with these instructions between those that fill its registers and those that end it, after `then`. Where they begin, and
/// what came of them.
fn run_user(
    guest: &Guest<X86>,
    code: &[&[u8]],
    count: u64,
    skip: u64,
    then: impl FnOnce() -> Result<(), Errno>,
) -> Result<(u64, Came), Errno> {
    let mut bytes = Bytes { bytes: [0; 256], length: 0 };
    for register in (0..16).filter(|register| ![RBX, RSP].contains(register)) {
        // `movabs register, pattern`
        bytes.add(&[0x48 | (register >> 3) as u8, 0xb8 | (register & 7) as u8]);
        bytes.add(&pattern(register).to_le_bytes());
    }
    let place = USER_CODE + bytes.length as u64;
    code.iter().chain(&[&END[..]]).for_each(|part| bytes.add(part));
    let user = User::with_entry(guest, &bytes.words(), user_mode_system_call)?;
    came::begin(skip);
    let begun = then();
    if begun.is_ok() {
        user.run(count);
    }
    user.end()?;
    begun.map(|()| (place, came::end()))
}

/// A program as it is put together.
struct Bytes {
    bytes: [u8; 256],
    length: usize,
}

impl Bytes {
    fn add(&mut self, part: &[u8]) {
        self.bytes[self.length..][..part.len()].copy_from_slice(part);
        self.length += part.len();
    }

    fn words(&self) -> [u64; 32] {
        let byte = |at: usize| u64::from(self.bytes[at]);
        array::from_fn(|index| (0..8).fold(0, |word, at| word | byte(8 * index + at) << (8 * at)))
    }
}

/// Runs the test `user-mode`.
pub fn run(guest: &Guest<X86>, check: &mut Check<X86>) {
    let Some(events) = Events::open(guest) else { return check.that("a page for events", false) };
    check.done("handlers", came::install());
    system_calls(guest, check);
    bad_returns(guest, check);
    segments::run(guest, check);
    instructions(guest, check);
    permissions(guest, check);
    accesses(guest, &events, check);
    event(guest, &events, check);
    words::run(guest, &events, check);
    X86::remove_traps();
    check.that("the handlers that were there before", X86::install_traps());
    check.done("give the page back", events.close());
}

/// A hypercall's number in a user's system call is the kernel's to look at, and nobody else's.
fn system_calls(guest: &Guest<X86>, check: &mut Check<X86>) {
    for number in 0..HYPERCALLS {
        // `mov eax, number; xor edi, edi`
        let mut before = [0xb8, 0, 0, 0, 0, 0x31, 0xff];
        before[1..5].copy_from_slice(&number.to_le_bytes());
        let changed = [(RAX, number.into()), (RDI, 0)];
        let call =
            Program { before: &before, changed: &changed, ..Program::of(&[0x0f, 0x05], SYSTEM_CALL, 0) };
        check.that("a hypercall's number is a system call's", call.comes(guest));
    }
}

/// The kernel goes to a user's code by segments that there aren't: it is told, each time, as if the user had got there, with the user's registers.
fn bad_returns(guest: &Guest<X86>, check: &mut Check<X86>) {
    for (name, segment) in [("no segment", 0x1233), ("the null segment", 3)] {
        let mut end = Bytes { bytes: [0; 256], length: 0 };
        end.add(&END);
        let came = User::with_entry(guest, &end.words(), user_mode_system_call).and_then(|user| {
            came::begin(0);
            user.run_in(segment, 7);
            user.end().map(|()| came::end())
        });
        let told = came.is_ok_and(|Came { first, .. }| {
            [first[VECTOR], first[ERROR], first[RIP]] == [GENERAL_PROTECTION, segment & !3, USER_CODE]
                && [first[CS] & 0xffff, first[RBX], first[RCX], first[R11]] == [segment, 7, 0, 0]
        });
        check.that(name, told);
    }
}

/// Instructions that users may not execute; the kernel gets a general-protection fault.
const PRIVILEGED: &[(&str, &[u8])] = &[
    ("cli", &[0xfa]),
    ("sti", &[0xfb]),
    ("hlt", &[0xf4]),
    ("rdmsr of nothing", &[0x0f, 0x32]),
    ("wrmsr of nothing", &[0x0f, 0x30]),
    ("mov rax, cr0", &[0x0f, 0x20, 0xc0]),
    ("mov cr0, rax", &[0x0f, 0x22, 0xc0]),
    ("mov rax, cr3", &[0x0f, 0x20, 0xd8]),
    ("mov cr3, rax", &[0x0f, 0x22, 0xd8]),
    ("mov cr4, rax", &[0x0f, 0x22, 0xe0]),
    ("mov dr7, rax", &[0x0f, 0x23, 0xf8]),
    ("in al, 0x60", &[0xe4, 0x60]),
    ("in al, dx", &[0xec]),
    ("out dx, al", &[0xee]),
    ("clts", &[0x0f, 0x06]),
    ("lgdt [rax]", &[0x0f, 0x01, 0x10]),
    ("invlpg [rax]", &[0x0f, 0x01, 0x38]),
    ("swapgs", &[0x0f, 0x01, 0xf8]),
    ("sysretq", &[0x48, 0x0f, 0x07]),
];

fn instructions(guest: &Guest<X86>, check: &mut Check<X86>) {
    for &(name, instruction) in PRIVILEGED {
        check.that(name, Program::of(instruction, GENERAL_PROTECTION, 0).comes(guest));
    }
    // The base of `fs`, which kernels may read and write: `mov ecx, 0xc000_0100; xor edx, edx`.
    let before = &[0xb9, 0, 1, 0, 0xc0, 0x31, 0xd2];
    for (name, instruction) in [("rdmsr", &[0x0f, 0x32]), ("wrmsr", &[0x0f, 0x30])] {
        let changed = &[(RCX, 0xc000_0100), (RDX, 0)];
        let program = Program { before, changed, ..Program::of(instruction, GENERAL_PROTECTION, 0) };
        check.that(name, program.comes(guest));
    }
    check.that("int3", Program::of(&[0xcc], BREAKPOINT, 0).comes(guest));
    check.that("int to a handler for users", Program::of(&[0xcd, 0x80], FOR_USERS, 0).comes(guest));
    let gate = |vector: u64| vector << gate_shift() | 2;
    let refused = Program::of(&[0xcd, 0x81], GENERAL_PROTECTION, gate(0x81));
    check.that("int to one that is for the kernel", refused.comes(guest));
    let refused = Program::of(&[0xcd, 0x82], GENERAL_PROTECTION, gate(0x82));
    check.that("int to none", refused.comes(guest));
    check.that("ud2", Program::of(&[0x0f, 0x0b], INVALID_OPCODE, 0).comes(guest));
}

/// What users may do if their kernel lets them: access ports, and read the time-stamp counter unless it forbids that.
fn permissions(guest: &Guest<X86>, check: &mut Check<X86>) {
    // `in al, dx`, of a port behind which nobody is: 0x303, by the pattern of rdx. And `rdtsc`.
    const IN: &[u8] = &[0xec];
    const COUNTER: &[u8] = &[0x0f, 0x31];
    let passes = |instruction: &[u8]| match run_user(guest, &[instruction], 1, 0, || Ok(())) {
        Ok((_, Came { count: 0, last, .. })) => last[RAX] != pattern(RAX),
        _ => false,
    };
    let faults = |instruction| Program::of(instruction, GENERAL_PROTECTION, 0).comes(guest);
    let level = |mut level: u32| {
        call::<X86>(number::PHYSDEV_OP, &[PHYSDEVOP_SET_IOPL, address_of_mut(&mut level)]).map(drop)
    };
    check.done("the highest level", level(3));
    check.that("users access ports", passes(IN));
    check.done("a lower one", level(1));
    check.that("users don't", faults(IN));
    let ports = [0u8; 0x400 / 8];
    let bitmap = |nr_ports| {
        let request = SetIoBitmap { bitmap: address_of(&ports), nr_ports, pad: 0 };
        call::<X86>(number::PHYSDEV_OP, &[PHYSDEVOP_SET_IOBITMAP, address_of(&request)]).map(drop)
    };
    check.done("a bitmap", bitmap(0x400));
    check.that("users access the ports that it allows", passes(IN));
    check.done("a shorter one", bitmap(0x303));
    check.that("and none behind it", faults(IN));
    check.refused("there are 65536 ports", bitmap(65537), &[Errno::EINVAL]);
    check.done("none", bitmap(0));
    check.that("users read the counter", passes(COUNTER));
    change_control_4(|four| four | COUNTER_FORBIDDEN);
    check.that("unless the kernel forbids it", faults(COUNTER));
    // SAFETY: reads a counter.
    let (first, second) = unsafe { (core::arch::x86_64::_rdtsc(), core::arch::x86_64::_rdtsc()) };
    check.that("which itself reads it on", first < second);
    change_control_4(|four| four & !COUNTER_FORBIDDEN);
    check.that("and allows it again", passes(COUNTER));
}

/// CR4: users can't read the time-stamp counter.
const COUNTER_FORBIDDEN: u64 = 1 << 2;

fn change_control_4(change: impl FnOnce(u64) -> u64) {
    let four: u64;
    // SAFETY: the hypervisor carries both out; the flag that changes concerns the time-stamp counter alone.
    unsafe {
        asm!("mov {}, cr4", out(reg) four, options(nomem, nostack, preserves_flags));
        asm!("mov cr4, {}", in(reg) change(four), options(nomem, nostack, preserves_flags));
    }
}

/// Where in an error code a gate's number begins: at bit 3, but for QEMU's emulator up to version 7.2, where it is bit 4.
fn gate_shift() -> u32 {
    // The test's own handlers are of use for users alone.
    X86::remove_traps();
    X86::install_traps();
    let refused = faults!("int 0x90"; options(nostack));
    let shift = if refused && traps::error() == 0x90 << 4 | 2 { 4 } else { 3 };
    // They could be installed before.
    let _ = came::install();
    shift
}

/// Loads and stores of rax.
const LOAD: u8 = 0xa1;
const STORE: u8 = 0xa3;

/// Each comes to a handler that masks events and to one that doesn't: the hypervisor has a way of its own for the first.
fn accesses(guest: &Guest<X86>, events: &Events<X86>, check: &mut Check<X86>) {
    let kernel = VIRT_BASE + PAGE_SIZE;
    let mut access = |name, operation, address: u64, error| {
        let mut instruction = [0x48, operation, 0, 0, 0, 0, 0, 0, 0, 0];
        instruction[2..].copy_from_slice(&address.to_le_bytes());
        let comes = |flags| {
            let installed = came::install_for_page_faults(flags);
            X86::write_word(events.address() + offset_of!(X86VcpuInfo, cr2) as u64, 0x55);
            installed.is_ok()
                && Program::of(&instruction, PAGE_FAULT, error).comes(guest)
                && X86::read_word(events.address() + offset_of!(X86VcpuInfo, cr2) as u64) == address
        };
        check.that(name, comes(MASKS_EVENTS) && comes(0));
    };
    access("a read of the kernel's memory", LOAD, kernel, USER);
    access("a write to it", STORE, kernel + 8, USER | WRITE);
    access("a write to the user's own code", STORE, USER_CODE, USER | WRITE | PRESENT);
    access("a read of nothing", LOAD, 0, USER);
    access("a read of the hypervisor's memory", LOAD, HYPERVISOR, USER | PRESENT);
}

/// An event that comes while the user counts: the kernel's callback gets it, and the user counts on.
fn event(guest: &Guest<X86>, events: &Events<X86>, check: &mut Check<X86>) {
    let Some(port) = check.done("the timer", events::bind_virq::<X86>(VIRQ_TIMER, 0)) else { return };
    check.done("it is unmasked", events::unmask::<X86>(port));
    // Masked until the user runs.
    events.mask(true);
    let before = (events.upcalls(), events.count(port));
    let soon = || {
        let deadline = events::now::<X86>() + SOON;
        call::<X86>(number::SET_TIMER_OP, &[deadline]).map(drop)
    };
    let ran = check.done("the user counts", run_user(guest, &[&COUNTING], FAR, 0, soon));
    check.that("an event came", (events.upcalls(), events.count(port)) == (before.0 + 1, before.1 + 1));
    let unnoticed = ran.is_some_and(|(_, Came { count, last, .. })| {
        count == 0 && last[VECTOR] == SYSTEM_CALL && Program::of(&[], SYSTEM_CALL, 0).kept(&last, 0)
    });
    check.that("and the user didn't notice", unnoticed);
    check.done("close the port", events::close::<X86>(port));
}
