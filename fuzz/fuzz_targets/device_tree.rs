//! A device tree blob.
#![no_main]

use libfuzzer_sys::fuzz_target;
use platform::virt::DeviceTree;

fuzz_target!(|blob: &[u8]| {
    let _ = DeviceTree::claimed_size(blob);
    let Ok(tree) = DeviceTree::new(blob) else { return };
    assert!(tree.size() <= blob.len());
    let _ = (tree.console(), tree.firmware());
    let Ok(board) = tree.board() else { return };
    for range in board.memory.iter().chain(board.reserved.iter()) {
        assert!(range.start <= range.end);
    }
    board.modules.iter().for_each(drop);
});
