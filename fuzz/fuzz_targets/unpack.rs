//! A packed kernel as a boot loader leaves it: whatever it says and holds, nothing is written beyond the memory that it was given, and
//! the decoder takes no more heap than was said before, which is all that a hypervisor lends it.
#![no_main]

use std::alloc::System;
use std::cell::RefCell;
use std::panic;

use cap::Cap;
use libfuzzer_sys::fuzz_target;
use unpack::{Found, Packed};

/// Beyond the limit an allocation fails, which no decoder survives.
#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// What a fuzzer's process has for what comes out, and for the decoder. Windows that are larger than what any decoder has besides fit in.
const LONGEST: usize = 12 << 20;
const LARGEST_HEAP: u64 = 64 << 20;
/// What heaps of a hypervisor lose between the blocks.
const LOSS: usize = 1 << 20;
/// Bytes behind what comes out, which nobody may write.
const BEYOND: usize = 16;

thread_local! {
    /// Where it comes out, made once: most runs need little of it.
    static OUT: RefCell<Vec<u8>> = RefCell::new(vec![0; LONGEST + BEYOND]);
}

/// Whoever reports what went wrong needs memory for it.
fn lift_limit_in_panics() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |what| {
        let _ = HEAP.set_limit(usize::MAX);
        report(what);
    }));
}

fuzz_target!(init: lift_limit_in_panics(), |file: &[u8]| {
    let found = Packed::find(file).inspect_err(|error| drop(error.to_string()));
    let Some(packed) = found.ok().and_then(Found::packed) else { return };
    let (length, heap) = (packed.length(), packed.heap());
    if length > LONGEST || heap > LARGEST_HEAP {
        return;
    }
    OUT.with_borrow_mut(|out| {
        let out = &mut out[..length + BEYOND];
        out[length..].fill(0xa5);
        HEAP.set_limit(HEAP.allocated() + heap as usize - LOSS).expect("more than there is now");
        let result = packed.unpack(out);
        HEAP.set_limit(usize::MAX).expect("more than there is now");
        assert!(out[length..].iter().all(|byte| *byte == 0xa5), "written beyond the end");
        drop(result.map_err(|error| error.to_string()));
    });
});
