//! A small physical memory with a block in it, whole, cut short, and under arbitrary bytes.

extern crate std;

use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const BASE: u64 = 0x9000;

/// Memory from [`BASE`] on. Leaked, since the block's parts borrow from it for ever, as they do on the machine.
struct Memory(&'static [u8]);

impl PhysicalMemory<'static> for Memory {
    fn bytes(&self, start: u64, length: u64) -> Option<&'static [u8]> {
        let start = usize::try_from(start.checked_sub(BASE)?).ok()?;
        self.0.get(start..start.checked_add(usize::try_from(length).ok()?)?)
    }
}

fn memory(bytes: Vec<u8>) -> Memory {
    Memory(bytes.leak())
}

fn put(bytes: &mut [u8], address: u64, words: &[u32]) {
    for (index, word) in words.iter().enumerate() {
        let at = (address - BASE) as usize + index * 4;
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
}

fn put_text(bytes: &mut [u8], address: u64, text: &str) {
    let at = (address - BASE) as usize;
    bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
}

/// A block as QEMU writes one: 2 modules, 3 memory-map entries.
fn sample() -> Vec<u8> {
    let mut bytes = vec![0; 0x4000];
    let flags = FLAG_MEMORY | FLAG_COMMAND_LINE | FLAG_MODULES | FLAG_MEMORY_MAP;
    put(&mut bytes, 0x9000, &[flags, 639, 0xfffff, 0, 0xa000, 2, 0xa100, 0, 0, 0, 0, 72, 0xa200]);
    put_text(&mut bytes, 0xa000, "penumbra/hyp-x86.elf console=com1 dom0_mem=256M");
    put(&mut bytes, 0xa100, &[0xb000, 0xb100, 0xa300, 0, 0xc000, 0xc010, 0xa340, 0]);
    put_text(&mut bytes, 0xa300, "guest-x86.elf tour loud");
    put_text(&mut bytes, 0xa340, "guest-x86.elf domain=guest memory=64M");
    put(&mut bytes, 0xa200, &[20, 0, 0, 0x9fc00, 0, 1]);
    put(&mut bytes, 0xa218, &[20, 0xf0000, 0, 0x10000, 0, 2]);
    put(&mut bytes, 0xa230, &[20, 0x100000, 0, 0, 1, 1]);
    bytes
}

#[test]
fn reads_what_qemu_writes() {
    let information = read(&memory(sample()), LOADER_MAGIC, 0x9000).unwrap();
    assert_eq!(information.command_line, "console=com1 dom0_mem=256M");
    assert_eq!(information.modules.len(), 2);
    assert_eq!(information.modules[0].file, "guest-x86.elf");
    assert_eq!(information.modules[0].arguments, "tour loud");
    assert_eq!(information.modules[0].content.len(), 0x100);
    assert_eq!(information.modules[1].arguments, "domain=guest memory=64M");
    let expected = [Region { start: 0, end: 0x9fc00 }, Region { start: 0x100000, end: 0x1_0010_0000 }];
    assert_eq!(&information.memory[..], expected);
    assert!(information.occupied.iter().any(|region| region.start == 0xa340 && region.end == 0xa366));
}

#[test]
fn a_block_without_a_map_falls_back_on_the_memory_size() {
    let mut bytes = sample();
    put(&mut bytes, 0x9000, &[FLAG_MEMORY]);
    let information = read(&memory(bytes), LOADER_MAGIC, 0x9000).unwrap();
    assert_eq!(&information.memory[..], [Region { start: 0x100000, end: 0x100000 + 0xfffff * 1024 }]);
    assert_eq!((information.command_line, information.modules.len()), ("", 0));
}

#[test]
fn each_broken_part_is_named() {
    let check = |address, words: &[u32], expected| {
        let mut bytes = sample();
        put(&mut bytes, address, words);
        assert_eq!(read(&memory(bytes), LOADER_MAGIC, 0x9000).err(), Some(expected));
    };
    check(0x9000, &[0], Malformed::NoMemory);
    check(0x9010, &[0xffff_fff0], Malformed::Unreadable(Part::CommandLine));
    check(0x9014, &[33], Malformed::TooMany(Part::ModuleList));
    check(0x9018, &[0xffff_fff0], Malformed::Unreadable(Part::ModuleList));
    check(0xa100, &[0xb101], Malformed::Backwards(0));
    check(0xa100, &[0xc000, 0xffff_ffff], Malformed::Unreadable(Part::ModuleContent(0)));
    check(0xa108, &[0x1], Malformed::Unreadable(Part::ModuleString(0)));
    check(0xa200, &[19], Malformed::Unreadable(Part::MemoryMap));
    check(0x902c, &[0xffff_ffff], Malformed::TooMany(Part::MemoryMap));
    check(0x902c, &[0xfff0], Malformed::Unreadable(Part::MemoryMap));
    assert_eq!(read(&memory(sample()), 1, 0x9000).err(), Some(Malformed::Magic(1)));
    assert_eq!(read(&memory(sample()), LOADER_MAGIC, 0x8fff).err(), Some(Malformed::Header(0x8fff)));
}

/// A module that can't be used keeps its place in the list, unless it is the first.
#[test]
fn a_further_module_that_is_broken_is_that_modules_matter() {
    let check = |address, words: &[u32], fault| {
        let mut bytes = sample();
        put(&mut bytes, address, words);
        let information = read(&memory(bytes), LOADER_MAGIC, 0x9000).unwrap();
        let [first, second] = &information.modules[..] else { panic!("two modules") };
        assert_eq!((first.content.len(), first.arguments, first.fault), (0x100, "tour loud", None));
        assert_eq!(second, &Module { fault: Some(fault), ..Module::default() });
    };
    check(0xa110, &[0xc000, 0xffff_ffff], Malformed::Unreadable(Part::ModuleContent(1)));
    check(0xa110, &[0xc000, 0xbfff], Malformed::Backwards(1));
    check(0xa118, &[0x1], Malformed::Unreadable(Part::ModuleString(1)));
    // A byte that is no UTF-8.
    check(0xa348, &[0x2066_e96c], Malformed::Unreadable(Part::ModuleString(1)));
    let mut bytes = sample();
    put(&mut bytes, 0xa308, &[0x2066_e96c]);
    let first = read(&memory(bytes), LOADER_MAGIC, 0x9000).err();
    assert_eq!(first, Some(Malformed::Unreadable(Part::ModuleString(0))));
}

#[test]
fn a_string_without_end_is_refused() {
    let mut bytes = sample();
    let length = bytes.len();
    bytes[0x1000..length].fill(b'a');
    assert_eq!(
        read(&memory(bytes), LOADER_MAGIC, 0x9000).err(),
        Some(Malformed::Unreadable(Part::CommandLine))
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512), address in 0x8ff0u32..0x9100) {
        let _ = read(&memory(bytes), LOADER_MAGIC, address);
    }

    #[test]
    fn a_damaged_block_never_panics(damage in proptest::collection::vec((0usize..0x4000, any::<u8>()), 1..64)) {
        let mut bytes = sample();
        for (at, byte) in damage {
            bytes[at] = byte;
        }
        if let Ok(information) = read(&memory(bytes), LOADER_MAGIC, 0x9000) {
            for module in information.modules.iter() {
                prop_assert_eq!(module.content.len() as u64, module.place.end - module.place.start);
            }
            prop_assert!(information.memory.iter().all(|region| region.start < region.end));
        }
    }

    #[test]
    fn damage_to_the_header_and_lists_never_panics(
        header in proptest::collection::vec((0usize..13, any::<u32>()), 1..6),
        entries in proptest::collection::vec((0usize..80, any::<u32>()), 0..8),
    ) {
        let mut bytes = sample();
        for (word, value) in header {
            put(&mut bytes, BASE + word as u64 * 4, &[value]);
        }
        for (word, value) in entries {
            put(&mut bytes, 0xa100 + word as u64 * 4, &[value]);
        }
        let _ = read(&memory(bytes), LOADER_MAGIC, 0x9000);
    }
}
