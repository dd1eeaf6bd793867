//! Instructions that a hostile kernel makes up, and how they are executed.
//!
//! Each sequence is one instruction, usually of those that ring 0 keeps for itself or that the hypervisor emulates, with random
//! operands, and then nothing but `hlt`, which faults. Encodings: Intel SDM volume 2.

use crate::traps::FIXUP;
use core::arch::asm;
use core::sync::atomic::AtomicU64;
use guest_core::architecture::CODE_WORDS;
use guest_core::soak::Random;

/// `hlt`: one byte, and forbidden in ring 3.
const FILLER: u8 = 0xf4;
/// Second bytes of two-byte instructions (after 0x0f) that have to do with the system.
const SYSTEM: [u8; 30] = [
    0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0b, 0x20, 0x21, 0x22, 0x23, 0x30, 0x31, 0x32,
    0x33, 0x34, 0x35, 0x37, 0x78, 0x79, 0xa2, 0xaa, 0xae, 0xb2, 0xb4, 0xb5, 0xc7,
];
/// Instructions of one byte: ports, flags, segments, interrupts.
const SHORT: [u8; 22] = [
    0x6c, 0x6d, 0x6e, 0x6f, 0x8e, 0x8c, 0x9c, 0xce, 0xe4, 0xe5, 0xe6, 0xe7, 0xec, 0xed, 0xee, 0xef, 0xfa,
    0xfb, 0xf4, 0xcd, 0x0e, 0x1f,
];
const PREFIXES: [u8; 8] = [0x66, 0xf2, 0xf3, 0x48, 0x41, 0x4f, 0xf0, 0x2e];
/// Model-specific registers with a name: the time stamp, the APIC's base, system calls, page attributes, features, bases, AMD's.
const REGISTERS: [u32; 20] = [
    0x10,
    0x1b,
    0x8b,
    0xfe,
    0x174,
    0x175,
    0x176,
    0x179,
    0x1a0,
    0x1d9,
    0x277,
    0x2ff,
    0x48,
    0x49,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0100,
    0xc000_0102,
    0xc001_0114,
];
/// I/O ports of the board: interrupt controllers, timer, keyboard, clock, serial line, PCI, power management.
const PORTS: [u16; 12] = [0x20, 0x21, 0x40, 0x43, 0x61, 0x64, 0x70, 0x3f8, 0xcf8, 0xcfc, 0xcf9, 0x604];

/// Makes up a sequence.
pub fn code(random: &mut Random) -> [u64; CODE_WORDS] {
    let mut bytes = [FILLER; CODE_WORDS * 8];
    let mut noise = random.next().to_le_bytes();
    noise[0] = sparing_the_stack(noise[0]);
    let pick = |random: &mut Random, choices: &[u8]| choices[random.below(choices.len() as u64) as usize];
    let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
    let register = REGISTERS[random.below(20) as usize].to_le_bytes();
    let port = PORTS[random.below(12) as usize].to_le_bytes();
    match random.below(8) {
        0 | 1 => put(0, &[0x0f, pick(random, &SYSTEM), noise[0], noise[1], noise[2], noise[3], noise[4]]),
        2 => put(0, &[pick(random, &PREFIXES), 0x0f, pick(random, &SYSTEM), noise[0], noise[1], noise[2]]),
        // mov ecx, REGISTER; wrmsr or rdmsr
        3 => put(0, &[0xb9, register[0], register[1], register[2], register[3], 0x0f, 0x30 | noise[0] & 2]),
        // mov dx, PORT; an instruction of one byte, or two with its operand
        4 => put(0, &[0x66, 0xba, port[0], port[1], pick(random, &SHORT), noise[0]]),
        // ud2, "xen": carry out what follows
        5 => put(0, &[0x0f, 0x0b, b'x', b'e', b'n', 0x0f, pick(random, &SYSTEM), noise[0]]),
        // A far call or jump through memory
        6 => put(0, &[0x48, 0xff, 0x18 | noise[0] & 0x27, noise[1], noise[2]]),
        _ if random.once_in(8) => put(0, &noise),
        _ => put(0, &[0x0f, pick(random, &SYSTEM), noise[0], noise[1]]),
    }
    core::array::from_fn(|word| {
        let start = word * 8;
        u64::from_le_bytes(core::array::from_fn(|byte| bytes[start + byte]))
    })
}

/// An operand byte (ModRM) that doesn't name the stack pointer: without a stack there is no way back.
const fn sparing_the_stack(operands: u8) -> u8 {
    let register = if operands >> 3 & 7 == 4 { operands ^ 1 << 3 } else { operands };
    if register & 0xc7 == 0xc4 { register ^ 1 } else { register }
}

/// The stack pointer while made-up instructions do what they like.
static STACK: AtomicU64 = AtomicU64::new(0);

/// Jumps to `code` with `data` in all registers but the stack pointer, and comes back at the first fault.
pub fn execute(code: u64, data: u64) {
    // SAFETY: every register is saved or given up, memory is reached only through `data` or by bad luck, which is what this
    // kernel exists for; the fault handlers go on at label 2, where stack and flags are put in order.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "mov [{stack} + rip], rsp",
            "lea rax, [rip + 2f]",
            "mov [{fixup} + rip], rax",
            "mov rax, rsi",
            "mov rbx, rsi",
            "mov rcx, rsi",
            "mov rdx, rsi",
            "mov rbp, rsi",
            "mov r8, rsi",
            "mov r9, rsi",
            "mov r10, rsi",
            "mov r11, rsi",
            "mov r12, rsi",
            "mov r13, rsi",
            "mov r14, rsi",
            "mov r15, rsi",
            "jmp rdi",
            "2:",
            "mov rsp, [{stack} + rip]",
            "pop rbp",
            "pop rbx",
            "cld",
            stack = sym STACK,
            fixup = sym FIXUP,
            inout("rdi") code => _,
            inout("rsi") data => _,
            out("rax") _, out("rcx") _, out("rdx") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
}
