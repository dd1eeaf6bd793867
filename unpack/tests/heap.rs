//! The heap that a decoder takes is never more than was said before: a hypervisor that has lent it as much can't run out of it.

use peak_alloc::PeakAlloc;
use unpack::Packed;
use unpack::pack::{Excess, FORMATS, beyond_the_window, bzimage, payload, text};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Bytes that unpacking takes at most, besides what comes out, and those that were said.
fn taken(file: &[u8]) -> (u64, u64) {
    let packed = Packed::find(file).unwrap().packed().unwrap();
    let mut out = vec![0; packed.length()];
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let _ = packed.unpack(&mut out);
    ((HEAP.peak_usage() - before) as u64, packed.heap())
}

/// One test: what others take meanwhile would count.
#[test]
fn a_decoder_takes_no_more_than_it_said() {
    for length in [5000, 300_000, 20 << 20] {
        for format in FORMATS {
            let (taken, said) = taken(&bzimage(&payload(format, &text(length))));
            // Besides, what a heap of blocks loses between them.
            assert!(taken + (1 << 20) <= said, "{format}: {taken} bytes, {said} were said");
        }
    }
    for exponent in [10, 16, 18, 20, 23, 25] {
        for excess in [Excess::Literals, Excess::Sequence] {
            let (taken, said) = taken(&bzimage(&beyond_the_window(exponent, excess)));
            assert!(taken + (1 << 20) <= said, "{excess:?}, 2^{exponent}: {taken} bytes, {said} were said");
        }
    }
}
