//! The hypervisor's command line.
#![no_main]

use hyp_core::options::{Options, parse_size};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    let options = Options::parse(line, |complaint| drop(complaint.to_string()));
    // In frames: no size in bytes that fits 64 bits has more.
    assert!(options.control_memory.is_none_or(|frames| frames != 0 && frames < 1 << 52));
    let _ = platform::q35::options::serial(line, |complaint| drop(complaint.to_string()));
    for word in line.split_ascii_whitespace() {
        let _ = parse_size(word, 10);
    }
});
