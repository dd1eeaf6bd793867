//! A multiboot information block, in a small physical memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use platform::q35::multiboot::{LOADER_MAGIC, PhysicalMemory, read};

/// Where the memory begins, and the block.
const BASE: u64 = 0x9000;

struct Memory<'m>(&'m [u8]);

impl<'m> PhysicalMemory<'m> for Memory<'m> {
    fn bytes(&self, start: u64, length: u64) -> Option<&'m [u8]> {
        let start = usize::try_from(start.checked_sub(BASE)?).ok()?;
        self.0.get(start..start.checked_add(usize::try_from(length).ok()?)?)
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(information) = read(&Memory(bytes), LOADER_MAGIC, BASE as u32) else { return };
    for module in information.modules.iter() {
        assert!(module.place.start <= module.place.end);
    }
    let _ = platform::q35::options::serial(information.command_line, |complaint| drop(complaint.to_string()));
});
