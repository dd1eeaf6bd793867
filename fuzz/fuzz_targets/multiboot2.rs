//! The information that a multiboot 2 loader leaves, in a physical memory that is blank elsewhere. What is taken from it must be what a
//! reader finds who walks the tags without any care.
#![no_main]

use libfuzzer_sys::fuzz_target;
use platform::q35::multiboot::{Information, PhysicalMemory, read};
use platform::q35::multiboot2::LOADER_MAGIC;

/// Where GRUB left the information that the corpus begins with.
const BASE: u64 = 0x73_d000;
/// Other memory that can be read: where GRUB had put the modules, and much more.
const BLANK: core::ops::Range<u64> = 0x10_0000..0x60_0000;

struct Memory<'m> {
    information: &'m [u8],
    blank: &'m [u8],
}

impl<'m> PhysicalMemory<'m> for Memory<'m> {
    fn bytes(&self, start: u64, length: u64) -> Option<&'m [u8]> {
        let (from, memory) =
            if BLANK.contains(&start) { (BLANK.start, self.blank) } else { (BASE, self.information) };
        let start = usize::try_from(start.checked_sub(from)?).ok()?;
        memory.get(start..start.checked_add(usize::try_from(length).ok()?)?)
    }
}

fuzz_target!(|bytes: &[u8]| {
    let blank = vec![0; (BLANK.end - BLANK.start) as usize];
    let memory = Memory { information: bytes, blank: &blank };
    let taken = read(&memory, LOADER_MAGIC, BASE as u32).inspect_err(|malformed| drop(malformed.to_string()));
    let Ok(information) = taken else { return };
    for module in information.modules.iter() {
        assert_eq!(module.place.end - module.place.start, module.content.len() as u64);
    }
    assert!(
        information.memory.iter().all(|region| region.start < region.end) && !information.memory.is_empty()
    );
    assert_eq!(information.occupied[0].start, BASE);
    compare(bytes, &information, &memory);
    let _ = platform::q35::options::serial(information.command_line, |complaint| drop(complaint.to_string()));
});

/// Holds modules and usable memory against the tags (Multiboot2 Specification 2.0, section 3.6).
fn compare(bytes: &[u8], information: &Information<'_>, physical: &Memory<'_>) {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let (mut modules, mut memory, mut at) = (Vec::new(), Vec::new(), 8);
    while word(at) != 0 {
        let (kind, end) = (word(at), at + word(at + 4) as usize);
        if kind == 3 {
            modules.push(module(&bytes[at + 8..end], physical));
        }
        if kind == 6 {
            let step = word(at + 8) as usize;
            let entries = (at + 16..).step_by(step).take_while(|entry| entry + step <= end);
            let usable = entries
                .filter(|entry| word(entry + 16) == 1 && long(entry + 8) != 0 && long(*entry) != u64::MAX);
            memory.extend(usable.map(|entry| (long(entry), long(entry).saturating_add(long(entry + 8)))));
        }
        at = end.next_multiple_of(8);
    }
    assert_eq!(information.modules.len(), modules.len(), "other modules");
    for (module, wanted) in information.modules.iter().zip(modules) {
        // What can't be used keeps its place.
        let taken = module.fault.is_none().then_some((module.place.start, module.place.end));
        assert_eq!(taken, wanted.map(|(start, end, _)| (start, end)), "another module");
        assert!(wanted.is_none_or(|(.., line)| line.trim().ends_with(module.arguments)), "other words");
    }
    if !memory.is_empty() {
        assert!(
            information.memory.iter().map(|region| (region.start, region.end)).eq(memory),
            "other memory"
        );
    }
}

/// Where the module of a tag lies, and its words; `None`: it can't be used.
fn module<'b>(content: &'b [u8], physical: &Memory<'_>) -> Option<(u64, u64, &'b str)> {
    let (place, line) = content.split_at_checked(8)?;
    let [start, end] = [0, 4].map(|at| u64::from(u32::from_le_bytes(place[at..at + 4].try_into().unwrap())));
    let length = line.iter().position(|byte| *byte == 0)?;
    physical.bytes(start, end.checked_sub(start)?)?;
    Some((start, end, std::str::from_utf8(&line[..length]).ok()?))
}
