//! A packed kernel as a boot loader leaves it: whatever it says and holds, nothing is written beyond the memory that it was given.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unpack::Packed;

/// What a fuzzer's process has for what comes out, and for the decoder.
const LONGEST: usize = 1 << 20;
const LARGEST_HEAP: u64 = 64 << 20;

fuzz_target!(|file: &[u8]| {
    let Ok(Some(packed)) = Packed::find(file).inspect_err(|error| drop(error.to_string())) else { return };
    if packed.length() > LONGEST || packed.heap() > LARGEST_HEAP {
        return;
    }
    let mut out = vec![0xa5; packed.length() + 16];
    let result = packed.unpack(&mut out);
    assert!(out.iter().skip(packed.length()).all(|byte| *byte == 0xa5), "written beyond the end");
    drop(result.map_err(|error| error.to_string()));
});
