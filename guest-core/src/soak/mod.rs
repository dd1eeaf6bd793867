//! The soak: hostile domains at full tilt, beside one that looks after its memory.
//!
//! - [`hostile`]: a domain that issues random and half-valid hypercalls, writes random page-table entries, and executes random
//!   privileged instructions, as its seed has it, until it has done what it was told, or is dead.
//! - [`witness`]: a domain that knows every word of its own memory, and says so round after round.
//! - [`control`]: the control domain, which has everything recounted again and again, destroys hostile domains that
//!   take too long (or just so), and gives the verdict.
//!
//! Words: `soak=control`, `soak=witness`, or `soak=hostile seed=0xS operations=N wait=TURNS`.

mod claims;
mod control;
mod hostile;
mod random;
mod witness;

pub use random::Random;

use crate::architecture::Architecture;
use crate::guest::Guest;

/// Plays the part that the word `soak=` gives to this domain, if it is there.
pub fn take_part<A: Architecture>(guest: &Guest<A>) {
    match guest.words().value("soak") {
        Some("control") => control::run(guest),
        Some("witness") => witness::run(guest),
        Some("hostile") => hostile::run(guest),
        _ => {}
    }
}
