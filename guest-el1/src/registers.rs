//! The registers that belong to a domain while it runs, filled with what a seed says, and compared with it.
//!
//! What another domain, or another vCPU, left in one of them would be its secret; what it put there could be an attack. So all that a
//! kernel may use are here: the SIMD registers and those of EL1 that are switched with a vCPU. Left out are those that this kernel
//! itself lives on: the vectors, `TPIDR_EL1`, `CPACR_EL1`, and the virtual timer's control.

use core::arch::{asm, global_asm};

/// 32 SIMD registers of 128 bits each.
const VECTOR_WORDS: usize = 64;

/// `ldp` or `stp` of all of them, at x0.
#[rustfmt::skip]
macro_rules! all_vectors {
    ($instruction:literal) => {
        concat!(
            $instruction, " q0, q1, [x0], #32\n",
            $instruction, " q2, q3, [x0], #32\n",
            $instruction, " q4, q5, [x0], #32\n",
            $instruction, " q6, q7, [x0], #32\n",
            $instruction, " q8, q9, [x0], #32\n",
            $instruction, " q10, q11, [x0], #32\n",
            $instruction, " q12, q13, [x0], #32\n",
            $instruction, " q14, q15, [x0], #32\n",
            $instruction, " q16, q17, [x0], #32\n",
            $instruction, " q18, q19, [x0], #32\n",
            $instruction, " q20, q21, [x0], #32\n",
            $instruction, " q22, q23, [x0], #32\n",
            $instruction, " q24, q25, [x0], #32\n",
            $instruction, " q26, q27, [x0], #32\n",
            $instruction, " q28, q29, [x0], #32\n",
            $instruction, " q30, q31, [x0], #32\n",
        )
    };
}

global_asm!(
    ".section .text.registers, \"ax\"",
    ".arch_extension fp",
    ".arch_extension simd",
    "vectors_load:",
    all_vectors!("ldp"),
    "ret",
    "vectors_store:",
    all_vectors!("stp"),
    "ret",
);

unsafe extern "C" {
    fn vectors_load(from: *const [u64; VECTOR_WORDS]);
    fn vectors_store(to: *mut [u64; VECTOR_WORDS]);
}

/// What a seed says of register number `index`.
const fn word(seed: u64, index: u64) -> u64 {
    (seed ^ index << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31)
}

fn vectors(seed: u64) -> [u64; VECTOR_WORDS] {
    core::array::from_fn(|index| word(seed, index as u64))
}

/// Defines how the listed registers are filled and compared: each with the bits that hold what is written.
macro_rules! registers {
    ($($index:literal $name:literal $bits:literal),* $(,)?) => {
        fn fill_system(seed: u64) {
            $(
                // SAFETY: the register is the kernel's own, and nothing that it does meanwhile depends on it.
                unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) word(seed, $index) & $bits, options(nomem, nostack)) };
            )*
        }

        fn changed_system(seed: u64) -> Option<&'static str> {
            $({
                let value: u64;
                // SAFETY: reads a register.
                unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack)) };
                if (value ^ word(seed, $index)) & $bits != 0 {
                    return Some($name);
                }
            })*
            None
        }
    };
}

// The first two: FPCR and FPSR, which the assembler knows only where there is floating point.
registers! {
    64 "S3_3_C4_C4_0" 0x03c0_0000u64,
    65 "S3_3_C4_C4_1" 0x0800_009fu64,
    66 "sp_el0" 0xffff_ffff_ffff_fff0u64,
    67 "elr_el1" 0xffff_ffff_ffff_fffcu64,
    68 "spsr_el1" 0xf000_03cfu64,
    69 "esr_el1" 0xffff_ffffu64,
    70 "far_el1" 0xffff_ffff_ffff_ffffu64,
    71 "tpidr_el0" 0xffff_ffff_ffff_ffffu64,
    72 "tpidrro_el0" 0xffff_ffff_ffff_ffffu64,
    73 "contextidr_el1" 0xffff_ffffu64,
    74 "par_el1" 0x0000_ffff_ffff_f000u64,
    75 "cntkctl_el1" 0x3u64,
    76 "csselr_el1" 0x7u64,
    77 "cntv_cval_el0" 0xffff_ffff_ffff_ffffu64,
}

/// Fills all of them.
pub fn fill(seed: u64) {
    // SAFETY: this kernel is compiled without SIMD, so the registers hold nothing of it.
    unsafe { vectors_load(&vectors(seed)) };
    fill_system(seed);
}

/// The name of one that doesn't hold what [`fill`] has put there.
pub fn changed(seed: u64) -> Option<&'static str> {
    let mut now = [0; VECTOR_WORDS];
    // SAFETY: reads registers into memory that is large enough.
    unsafe { vectors_store(&mut now) };
    if now != vectors(seed) { Some("a SIMD register") } else { changed_system(seed) }
}
