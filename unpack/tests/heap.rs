//! The heap that a decoder takes is never more than was said before: a hypervisor that has lent it as much can't run out of it.

use peak_alloc::PeakAlloc;
use unpack::Packed;
use unpack::pack::{FORMATS, bzimage, payload, text};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

#[test]
fn a_decoder_takes_no_more_than_it_said() {
    for length in [5000, 300_000, 20 << 20] {
        for format in FORMATS {
            let file = bzimage(&payload(format, &text(length)));
            let packed = Packed::find(&file).unwrap().unwrap();
            let mut out = vec![0; packed.length()];
            let before = HEAP.current_usage();
            HEAP.reset_peak_usage();
            packed.unpack(&mut out).unwrap();
            let taken = HEAP.peak_usage() - before;
            assert!(taken as u64 <= packed.heap(), "{format}: {taken} bytes, {} were said", packed.heap());
            // What a heap of blocks loses between them, besides.
            assert!(taken as u64 + (1 << 20) <= packed.heap(), "{format}: {taken} of {}", packed.heap());
        }
    }
}
