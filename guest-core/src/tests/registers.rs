//! Each domain has its registers for itself: what it puts into them stays there while others run, and is seen by nobody.
//!
//! Both this test and a domain with the word `registers=SEED` fill all registers that a domain may use, again and again with
//! other values, give the CPU away, and look.

use super::check::Check;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::hypercalls::yield_cpu;
use crate::say;

/// How often the registers are filled anew.
const TURNS: u64 = 400;
/// How often the CPU is given away in between.
const YIELDS: usize = 3;
/// Turns after which the other domain says that all is well so far.
const FEW: u64 = 20;

/// Runs the test `registers`.
pub fn run<A: Architecture>(_guest: &Guest<A>, check: &mut Check<A>) {
    for seed in 0..TURNS {
        let changed = turn::<A>(seed);
        if let Some(name) = changed {
            say!(A, "  in turn {seed}: {name}");
        }
        check.that("every register is as it was", changed.is_none());
    }
}

/// One turn; the name of a register that changed.
fn turn<A: Architecture>(seed: u64) -> Option<&'static str> {
    A::fill_registers(seed);
    // (The neighbour does the same with other seeds meanwhile.)
    (0..YIELDS).for_each(|_| yield_cpu::<A>());
    A::changed_register(seed)
}

/// What the word `registers=SEED` asks a domain for.
pub fn keep<A: Architecture>(first: u64) -> ! {
    let mut seed = first << 32;
    loop {
        seed = seed.wrapping_add(1);
        if let Some(name) = turn::<A>(seed) {
            say!(A, "registers: LOST {name}");
        }
        if seed & 0xffff_ffff == FEW {
            say!(A, "registers: kept for {FEW} turns");
        }
    }
}
