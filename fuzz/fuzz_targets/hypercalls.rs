//! Sequences of hypercalls by three domains; everything is recounted after each.
#![no_main]

use libfuzzer_sys::fuzz_target;
use penumbra_fuzz::{Step, run};

fuzz_target!(|steps: Vec<Step>| {
    run(&steps[..steps.len().min(24)]);
});
