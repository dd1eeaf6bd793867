//! The registers that belong to a domain while it runs, filled with what a seed says, and compared with it.
//!
//! What another domain left in one of them would be its secret; what it put there could be an attack. This kernel is compiled without
//! floating point, so these are all that it doesn't use itself: the x87 and SSE registers with their control words, and the base
//! of `fs`.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_core::hypercalls::call;
use penumbra_abi::hypercall::SET_SEGMENT_BASE;
use penumbra_abi::x86_64::SEGBASE_FS;

use crate::machine::X86;

/// What `fxsave` writes (Intel SDM volume 1, 10.5.1).
#[repr(C, align(16))]
struct Area([u64; 64]);

/// Words of the area: the control word and the tags, the SSE control word, the first x87 and the first SSE register.
const CONTROL: usize = 0;
const SSE_CONTROL: usize = 3;
const X87: usize = 4;
const SSE: usize = 20;
const SSE_END: usize = 52;

/// What `fs` leads to: which of the two is the seed's.
static PLACES: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(1)];

/// What a seed says of word number `index`.
const fn word(seed: u64, index: u64) -> u64 {
    (seed ^ index << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31)
}

fn area(seed: u64) -> Area {
    let mut area = Area([0; 64]);
    let rounding = word(seed, 0) & 0b11;
    // All x87 registers in use; all exceptions masked; some rounding.
    area.0[CONTROL] = 0x37f & !(0b11 << 10) | rounding << 10 | 0xff << 32;
    area.0[SSE_CONTROL] = 0x1f80 | rounding << 13;
    for register in 0..8 {
        // A normal number: the highest bit of its 64-bit mantissa is set, its exponent is neither zero nor all ones.
        area.0[X87 + 2 * register] = word(seed, register as u64) | 1 << 63;
        area.0[X87 + 2 * register + 1] = 0x3f00 | word(seed, 8 + register as u64) & 0xff;
    }
    (SSE..SSE_END).for_each(|index| area.0[index] = word(seed, index as u64));
    area
}

/// Fills all of them.
pub fn fill(seed: u64) {
    let area = area(seed);
    // SAFETY: the area is aligned and has no reserved bit set; this kernel uses none of these registers.
    unsafe { asm!("fxrstor64 [{}]", in(reg) &raw const area, options(nostack, preserves_flags)) };
    let place = &PLACES[(word(seed, 99) & 1) as usize];
    // An address of the kernel's own is never refused.
    let _ = call::<X86>(SET_SEGMENT_BASE, &[SEGBASE_FS, place.as_ptr() as u64]);
}

/// The name of one that doesn't hold what [`fill`] has put there.
pub fn changed(seed: u64) -> Option<&'static str> {
    let (mut now, expected) = (Area([0; 64]), area(seed));
    // SAFETY: writes to the area, which is aligned and large enough.
    unsafe { asm!("fxsave64 [{}]", in(reg) &raw mut now, options(nostack, preserves_flags)) };
    let through_fs: u64;
    // SAFETY: the base of `fs` is the address of a static word.
    unsafe { asm!("mov {}, fs:[0]", out(reg) through_fs, options(nostack, readonly, preserves_flags)) };
    let same = |range: core::ops::Range<usize>| now.0[range.clone()] == expected.0[range];
    let place = PLACES[(word(seed, 99) & 1) as usize].load(Ordering::Relaxed);
    let control = (now.0[CONTROL] ^ expected.0[CONTROL]) & 0xff_0000_ffff == 0;
    // The upper half says which bits the processor has.
    let sse_control = (now.0[SSE_CONTROL] ^ expected.0[SSE_CONTROL]) & 0xffff_ffff == 0;
    [
        (control, "the x87 control word"),
        (sse_control, "MXCSR"),
        (same(X87..SSE), "an x87 register"),
        (same(SSE..SSE_END), "an SSE register"),
        (through_fs == place, "the base of fs"),
    ]
    .into_iter()
    .find_map(|(good, name)| (!good).then_some(name))
}
