//! The multiboot 2 information, read as a claim, into the same [`Information`] as multiboot 1's.
//!
//! The loader leaves one stretch of memory: its length, then tags, each with a type and a length, on multiples of eight bytes.
//! GRUB is the loader that is meant: it hands on what follows a file's name on its lines, so that strings hold no names; the word
//! `placeholder`, which entries written for Xen put in a name's place, is taken away.
//!
//! Source: Multiboot2 Specification 2.0, section 3.6.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::q35::multiboot::{Information, Malformed, Module, Part, PhysicalMemory, Region};

/// What a multiboot 2 loader leaves in `eax`.
pub const LOADER_MAGIC: u32 = 0x36d7_6289;
/// Longest information that is taken (bytes).
pub const MAXIMUM_BYTES: u32 = 1 << 20;

/// Tags that are read (section 3.6.2 and those after it).
const TAG_END: u32 = 0;
const TAG_COMMAND_LINE: u32 = 1;
const TAG_MODULE: u32 = 3;
const TAG_MEMORY: u32 = 4;
const TAG_MEMORY_MAP: u32 = 6;
/// Tags begin on multiples of this.
const TAG_ALIGNMENT: usize = 8;
/// RAM in a memory map.
const KIND_USABLE: u32 = 1;
/// What entries written for Xen put where GRUB leaves a file's name out.
const PLACEHOLDER: &str = "placeholder";

#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Header {
    bytes: u32,
    reserved: u32,
}

#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Tag {
    kind: u32,
    bytes: u32,
}

#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct ModuleTag {
    start: u32,
    end: u32,
}

#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct MapTag {
    entry_bytes: u32,
    version: u32,
}

#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct MapEntry {
    base: [u32; 2],
    length: [u32; 2],
    kind: u32,
    reserved: u32,
}

/// Reads the information that the loader left at physical address `address`.
///
/// # Errors
/// [`Malformed`] names the first part that can't be used.
pub fn read<'m>(memory: &impl PhysicalMemory<'m>, address: u32) -> Result<Information<'m>, Malformed> {
    let start = u64::from(address);
    let head = memory.bytes(start, size_of::<Header>() as u64).ok_or(Malformed::Header(address))?;
    let header = Header::read_from_bytes(head).map_err(|_| Malformed::Header(address))?;
    if header.bytes > MAXIMUM_BYTES {
        return Err(Malformed::TooMany(Part::Tags));
    }
    let all = memory.bytes(start, header.bytes.into()).ok_or(Malformed::Header(address))?;
    let mut information = Information::default();
    let region = Region { start, end: start + u64::from(header.bytes) };
    information.occupied.push(region).map_err(|_| Malformed::TooMany(Part::Tags))?;
    let mut upper = None;
    let mut rest = all.get(size_of::<Header>()..).ok_or(Malformed::Header(address))?;
    while let Some((kind, content, after)) = next(rest)? {
        match kind {
            TAG_COMMAND_LINE => {
                let line = text(content).ok_or(Malformed::Unreadable(Part::CommandLine))?;
                information.command_line = without_placeholder(line);
            }
            TAG_MODULE => {
                let index = information.modules.len();
                let module = read_module(memory, content, index);
                let module = module.or_else(|fault| Module::unusable(index, fault))?;
                information.modules.push(module).map_err(|_| Malformed::TooMany(Part::ModuleList))?;
            }
            // Its second word: KiB from 1 MiB on.
            TAG_MEMORY => upper = content.get(4..8).and_then(|word| u32::read_from_bytes(word).ok()),
            TAG_MEMORY_MAP => read_map(content, &mut information)?,
            _ => {}
        }
        rest = after;
    }
    fall_back_on_size(&mut information, upper)?;
    Ok(information)
}

/// A tag's type, its content, and what follows it.
type Next<'m> = (u32, &'m [u8], &'m [u8]);

/// The next tag; `None` at the end, which a tag has to mark.
fn next(rest: &[u8]) -> Result<Option<Next<'_>>, Malformed> {
    const MALFORMED: Malformed = Malformed::Unreadable(Part::Tags);
    let (tag, _) = Tag::read_from_prefix(rest).map_err(|_| MALFORMED)?;
    let bytes = tag.bytes as usize;
    let content = rest.get(size_of::<Tag>()..bytes).ok_or(MALFORMED)?;
    if tag.kind == TAG_END {
        return Ok(None);
    }
    let after = rest.get(bytes.next_multiple_of(TAG_ALIGNMENT)..).ok_or(MALFORMED)?;
    Ok(Some((tag.kind, content, after)))
}

fn read_module<'m>(
    memory: &impl PhysicalMemory<'m>,
    content: &'m [u8],
    index: usize,
) -> Result<Module<'m>, Malformed> {
    let (tag, line) = ModuleTag::read_from_prefix(content)
        .map_err(|_| Malformed::Unreadable(Part::ModuleContent(index)))?;
    let length = tag.end.checked_sub(tag.start).ok_or(Malformed::Backwards(index))?;
    let bytes = memory
        .bytes(tag.start.into(), length.into())
        .ok_or(Malformed::Unreadable(Part::ModuleContent(index)))?;
    let line = text(line).ok_or(Malformed::Unreadable(Part::ModuleString(index)))?;
    let place = Region { start: tag.start.into(), end: tag.end.into() };
    Ok(Module { place, content: bytes, file: "", arguments: without_placeholder(line), fault: None })
}

fn read_map(content: &[u8], information: &mut Information<'_>) -> Result<(), Malformed> {
    let malformed = Malformed::Unreadable(Part::MemoryMap);
    let (tag, entries) = MapTag::read_from_prefix(content).map_err(|_| malformed)?;
    let bytes = tag.entry_bytes as usize;
    if bytes < size_of::<MapEntry>() {
        return Err(malformed);
    }
    for entry in entries.chunks_exact(bytes) {
        let (entry, _) = MapEntry::read_from_prefix(entry).map_err(|_| malformed)?;
        let start = join(entry.base);
        let region = Region { start, end: start.saturating_add(join(entry.length)) };
        if entry.kind == KIND_USABLE && region.start < region.end {
            information.memory.push(region).map_err(|_| Malformed::TooMany(Part::MemoryMap))?;
        }
    }
    Ok(())
}

/// Without a memory map, the memory from 1 MiB on, as far as the loader tells its size (in KiB).
fn fall_back_on_size(information: &mut Information<'_>, upper: Option<u32>) -> Result<(), Malformed> {
    if !information.memory.is_empty() {
        return Ok(());
    }
    let upper = upper.filter(|upper| *upper > 0).ok_or(Malformed::NoMemory)?;
    let region = Region { start: 1 << 20, end: (1 << 20) + u64::from(upper) * 1024 };
    information.memory.push(region).map_err(|_| Malformed::TooMany(Part::MemoryMap))
}

fn join([low, high]: [u32; 2]) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// A string up to its NUL, which has to be there.
fn text(bytes: &[u8]) -> Option<&str> {
    let length = bytes.iter().position(|&byte| byte == 0)?;
    core::str::from_utf8(bytes.get(..length)?).ok()
}

fn without_placeholder(line: &str) -> &str {
    let line = line.trim();
    match line.strip_prefix(PLACEHOLDER) {
        Some(rest) if rest.is_empty() || rest.starts_with(' ') => rest.trim(),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    const BASE: u64 = 0x9000;
    const MODULE: u64 = 0xa000;

    struct Memory(&'static [u8]);

    impl PhysicalMemory<'static> for Memory {
        fn bytes(&self, start: u64, length: u64) -> Option<&'static [u8]> {
            let start = usize::try_from(start.checked_sub(BASE)?).ok()?;
            self.0.get(start..start.checked_add(usize::try_from(length).ok()?)?)
        }
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn tag(kind: u32, content: &[u8]) -> Vec<u8> {
        let mut bytes = words(&[kind, 8 + content.len() as u32]);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(8), 0xee);
        bytes
    }

    fn module(start: u64, end: u64, line: &[u8]) -> Vec<u8> {
        tag(TAG_MODULE, &[words(&[start as u32, end as u32]), line.to_vec()].concat())
    }

    fn map() -> Vec<u8> {
        let entry = |base, length, kind| words(&[base, 0, length, 0, kind, 0]);
        let entries = [entry(0, 0x9fc00, 1), entry(0xf0000, 0x10000, 2), entry(0x10_0000, 0x700_0000, 1)];
        tag(TAG_MEMORY_MAP, &[words(&[24, 0]), entries.concat()].concat())
    }

    /// Tags behind their header, in a memory that goes on after them.
    fn block(tags: &[Vec<u8>]) -> Vec<u8> {
        let tags = tags.concat();
        let mut bytes = words(&[8 + tags.len() as u32, 0]);
        bytes.extend(tags);
        bytes.resize(0x2000, 0);
        bytes
    }

    fn read_block(bytes: Vec<u8>) -> Result<Information<'static>, Malformed> {
        read(&Memory(bytes.leak()), BASE as u32)
    }

    fn sample() -> Vec<Vec<u8>> {
        vec![
            tag(2, b"GRUB 2.06-13\0"),
            tag(TAG_COMMAND_LINE, b"placeholder console=com1 dom0_mem=256M\0"),
            map(),
            tag(77, &[1, 2, 3]),
            module(MODULE, MODULE + 0x100, b"tour loud\0"),
            module(MODULE + 0x100, MODULE + 0x180, b"\0"),
            tag(TAG_END, &[]),
        ]
    }

    #[test]
    fn reads_what_grub_writes() {
        let information = read_block(block(&sample())).unwrap();
        assert_eq!(information.command_line, "console=com1 dom0_mem=256M");
        let modules: Vec<_> =
            information.modules.iter().map(|one| (one.content.len(), one.arguments)).collect();
        assert_eq!(modules, [(0x100, "tour loud"), (0x80, "")]);
        let expected = [Region { start: 0, end: 0x9fc00 }, Region { start: 0x10_0000, end: 0x710_0000 }];
        assert_eq!(&information.memory[..], expected);
        assert_eq!(information.occupied[0].start, BASE);
    }

    /// A module that can't be used keeps its place among the others, unless it is the first.
    #[test]
    fn a_further_module_that_is_broken_is_that_modules_matter() {
        for (broken, fault) in [
            (module(MODULE, MODULE + 1, b"latin-1 \xe9\0"), Malformed::Unreadable(Part::ModuleString(1))),
            (module(MODULE, MODULE - 1, b"\0"), Malformed::Backwards(1)),
            (module(MODULE, 0xffff_ffff, b"\0"), Malformed::Unreadable(Part::ModuleContent(1))),
        ] {
            let good = |words: &[u8]| module(MODULE, MODULE + 0x80, words);
            let block = block(&[map(), good(b"first\0"), broken, good(b"last\0"), tag(TAG_END, &[])]);
            let information = read_block(block).unwrap();
            let found = information.modules.iter().map(|one| (one.content.len(), one.arguments, one.fault));
            let found: Vec<_> = found.collect();
            assert_eq!(found, [(0x80, "first", None), (0, "", Some(fault)), (0x80, "last", None)]);
        }
        let first = block(&[map(), module(MODULE, MODULE, b"\xe9\0"), tag(TAG_END, &[])]);
        assert_eq!(read_block(first).err(), Some(Malformed::Unreadable(Part::ModuleString(0))));
    }

    #[test]
    fn without_a_map_the_memory_size_counts() {
        let block = block(&[tag(TAG_MEMORY, &words(&[639, 1024])), tag(TAG_END, &[])]);
        let information = read_block(block).unwrap();
        assert_eq!(&information.memory[..], [Region { start: 1 << 20, end: 2 << 20 }]);
    }

    #[test]
    fn each_broken_part_is_named() {
        let check = |tags: &[Vec<u8>], expected| assert_eq!(read_block(block(tags)).err(), Some(expected));
        check(&[tag(TAG_END, &[])], Malformed::NoMemory);
        check(&[map()], Malformed::Unreadable(Part::Tags));
        check(&[words(&[TAG_MODULE, 7]), tag(TAG_END, &[])], Malformed::Unreadable(Part::Tags));
        check(&[words(&[99, u32::MAX]), tag(TAG_END, &[])], Malformed::Unreadable(Part::Tags));
        check(&[tag(TAG_COMMAND_LINE, b"no end")], Malformed::Unreadable(Part::CommandLine));
        check(&[module(MODULE, MODULE - 1, b"\0")], Malformed::Backwards(0));
        check(&[module(MODULE, 0xffff_ffff, b"\0")], Malformed::Unreadable(Part::ModuleContent(0)));
        check(&[module(MODULE, MODULE, b"x")], Malformed::Unreadable(Part::ModuleString(0)));
        check(&[tag(TAG_MEMORY_MAP, &words(&[23, 0]))], Malformed::Unreadable(Part::MemoryMap));
        assert_eq!(read_block(words(&[MAXIMUM_BYTES + 1, 0])).err(), Some(Malformed::TooMany(Part::Tags)));
        assert_eq!(read_block(words(&[0x4000, 0])).err(), Some(Malformed::Header(BASE as u32)));
        assert_eq!(read_block(vec![0; 4]).err(), Some(Malformed::Header(BASE as u32)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = read_block(bytes);
        }

        #[test]
        fn a_damaged_block_never_panics(damage in proptest::collection::vec((0usize..0x200, any::<u8>()), 1..16)) {
            let mut bytes = block(&sample());
            for (at, byte) in damage {
                bytes[at] = byte;
            }
            let _ = read_block(bytes);
        }
    }
}
