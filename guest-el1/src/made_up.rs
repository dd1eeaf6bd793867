//! Instructions that a hostile kernel makes up, and how they are executed.
//!
//! Each sequence is one or two instructions, usually of the system's own (registers, caches, translations, calls), with random
//! operands, and then nothing but undefined ones. Encodings: Arm ARM, C4.1.

use crate::traps::FIXUP;
use core::arch::asm;
use core::sync::atomic::AtomicU64;
use guest_core::architecture::CODE_WORDS;
use guest_core::soak::Random;

/// Moves between general and system registers, system operations, hints, barriers: all of these begin so.
const SYSTEM: u32 = 0xd500_0000;
const SYSTEM_BITS: u32 = 0x003f_ffff;
/// Operations on caches, translations and addresses: `op0` is 1.
const OPERATION: u32 = 0xd508_0000;
const OPERATION_BITS: u32 = 0x0007_ffff;
/// Register moves: `op0` is 2 or 3. Bit 21 is the direction.
const MOVE: u32 = 0xd510_0000;
const MOVE_BITS: u32 = 0x002f_ffff;
/// Calls to other exception levels, breakpoints, halts.
const EXCEPTION: u32 = 0xd400_0000;
const EXCEPTION_BITS: u32 = 0x00ff_ffff;
/// Loads and stores of exclusives and others with odd addressing.
const MEMORY: u32 = 0x0800_0000;
const MEMORY_BITS: u32 = 0xf3ff_ffff;

/// Makes up a sequence.
pub fn code(random: &mut Random) -> [u64; CODE_WORDS] {
    let mut one = || {
        let noise = random.next() as u32;
        match random.below(8) {
            0 => SYSTEM | noise & SYSTEM_BITS,
            1 | 2 => OPERATION | noise & OPERATION_BITS,
            3 | 4 => MOVE | noise & MOVE_BITS,
            5 => EXCEPTION | noise & EXCEPTION_BITS,
            6 => MEMORY | noise & MEMORY_BITS,
            _ => noise,
        }
    };
    let pair = [one(), one()].map(|instruction| if breaks_the_kernel(instruction) { 0 } else { instruction });
    let mut code = [0; CODE_WORDS];
    code[0] = u64::from(pair[0]) | u64::from(pair[1]) << 32;
    code
}

/// Instructions that are a kernel's to use, but end this one: its vectors, its choice of stack, its masks, waiting for ever.
fn breaks_the_kernel(instruction: u32) -> bool {
    let system_register = instruction & 0xffff_ffe0;
    // msr vbar_el1; msr spsel, daif and the like with an immediate; msr daif; msr spsel.
    system_register == 0xd518_c000
        || instruction & 0xfff8_f01f == 0xd500_401f
        || system_register == 0xd51b_4220
        || system_register == 0xd518_4200
}

/// The stack pointer while made-up instructions do what they like.
static STACK: AtomicU64 = AtomicU64::new(0);

/// Jumps to `code` with `data` in all registers but the stack pointer, and comes back at the first fault.
pub fn execute(code: u64, data: u64) {
    // SAFETY: every register is saved or given up, memory is reached only through `data` or by bad luck, which is what this
    // kernel exists for; the fault handlers go on at label 2, where the stack is put in order.
    unsafe {
        asm!(
            "stp x18, x19, [sp, #-48]!",
            "stp x29, x30, [sp, #16]",
            "adrp x2, {stack}",
            "mov x3, sp",
            "str x3, [x2, :lo12:{stack}]",
            "adrp x2, {fixup}",
            "adr x3, 2f",
            "str x3, [x2, :lo12:{fixup}]",
            // The page was data until now.
            "dsb ish",
            "ic iallu",
            "dsb ish",
            "isb",
            "mov x17, x0",
            "mov x0, x1",
            "mov x2, x1",
            "mov x3, x1",
            "mov x4, x1",
            "mov x5, x1",
            "mov x8, x1",
            "mov x16, x1",
            "mov x29, x1",
            "mov x30, x1",
            "br x17",
            "2:",
            "adrp x2, {stack}",
            "ldr x3, [x2, :lo12:{stack}]",
            "mov sp, x3",
            "ldp x29, x30, [sp, #16]",
            "ldp x18, x19, [sp], #48",
            stack = sym STACK,
            fixup = sym FIXUP,
            inout("x0") code => _,
            inout("x1") data => _,
            out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _,
            out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _,
            out("x17") _, out("x20") _, out("x21") _, out("x22") _, out("x23") _, out("x24") _, out("x25") _,
            out("x26") _, out("x27") _, out("x28") _,
        );
    }
}
