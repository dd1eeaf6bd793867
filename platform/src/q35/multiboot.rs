//! The multiboot 1 information block, read as a claim.
//!
//! The loader leaves physical addresses: a header, a command line, a list of modules with a string each, a memory map.
//! Nothing in it is trusted: an address that leads nowhere, a string without end, a list that is cut short give a
//! [`Malformed`] that names the part, never a fault. Where the part is that of a module behind the first, the rest can still be used. Memory is reached only through [`PhysicalMemory`], so that
//! the same code runs on the host under arbitrary bytes.
//!
//! Source: Multiboot Specification 0.6.96, section 3.3.

use core::fmt;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::q35::list::List;
use crate::q35::multiboot2;

/// What a multiboot 1 loader leaves in `eax`.
pub const LOADER_MAGIC: u32 = 0x2bad_b002;
/// Bytes of the header that we read.
pub const HEADER_BYTES: u64 = size_of::<Header>() as u64;
/// Most modules that are taken; a block that lists more is refused.
pub const MAXIMUM_MODULES: usize = 32;
/// Most entries of the memory map that are taken.
pub const MAXIMUM_REGIONS: usize = 64;
/// Longest memory map (bytes).
pub const MAXIMUM_MAP_BYTES: u32 = 64 << 10;
/// Longest string, its NUL not counted (bytes).
pub const MAXIMUM_STRING: usize = 4096;

/// Physical memory as far as it may be read.
pub trait PhysicalMemory<'m> {
    /// The `length` bytes at physical address `start`, or `None` when any of them can't be read.
    fn bytes(&self, start: u64, length: u64) -> Option<&'m [u8]>;
}

/// What is wrong with the block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// `eax` held neither [`LOADER_MAGIC`] nor multiboot 2's but this.
    Magic(u32),
    /// The header can't be read at this physical address.
    Header(u32),
    /// A part of the block leads to memory that can't be read, or has no end.
    Unreadable(Part),
    /// More modules or memory-map entries than are taken.
    TooMany(Part),
    /// A module ends before it starts.
    Backwards(usize),
    /// There is neither a memory map nor a memory size.
    NoMemory,
}

/// A part of the block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The command line.
    CommandLine,
    /// The list of modules.
    ModuleList,
    /// The content of this module.
    ModuleContent(usize),
    /// The string of this module.
    ModuleString(usize),
    /// The memory map.
    MemoryMap,
    /// The list of tags (multiboot 2).
    Tags,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("command line"),
            Self::ModuleList => f.write_str("list of modules"),
            Self::ModuleContent(index) => write!(f, "content of module {index}"),
            Self::ModuleString(index) => write!(f, "string of module {index}"),
            Self::MemoryMap => f.write_str("memory map"),
            Self::Tags => f.write_str("list of tags"),
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(found) => {
                write!(f, "no multiboot loader: magic {found:#x} in place of {LOADER_MAGIC:#x}")
            }
            Self::Header(address) => write!(f, "multiboot information at {address:#x} can't be read"),
            Self::Unreadable(part) => write!(f, "multiboot information: the {part} can't be read"),
            Self::TooMany(part) => write!(f, "multiboot information: the {part} is too long"),
            Self::Backwards(index) => {
                write!(f, "multiboot information: module {index} ends before it starts")
            }
            Self::NoMemory => f.write_str("multiboot information: neither a memory map nor a memory size"),
        }
    }
}

/// A stretch of physical memory, `start` to `end` (bytes, end not included).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// First byte beyond.
    pub end: u64,
}

/// A boot module.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Module<'m> {
    /// Where its content lies.
    pub place: Region,
    /// The content.
    pub content: &'m [u8],
    /// The first word of its string: the file's name, as QEMU passes it.
    pub file: &'m str,
    /// The rest of its string.
    pub arguments: &'m str,
    /// Why it can't be used, if it can't. Then it has nothing of the above, and keeps its place in the list.
    pub fault: Option<Malformed>,
}

impl Module<'_> {
    /// What stands for a module that can't be used. That is its own domain's matter, but for the first: without it there is nothing to do.
    ///
    /// # Errors
    /// It is the first.
    pub(crate) fn unusable(index: usize, fault: Malformed) -> Result<Self, Malformed> {
        if index == 0 { Err(fault) } else { Ok(Self { fault: Some(fault), ..Self::default() }) }
    }
}

/// The block, checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Information<'m> {
    /// The hypervisor's command line, without the image's own name if the loader put it first.
    pub command_line: &'m str,
    /// The modules, in the loader's order.
    pub modules: List<Module<'m>, MAXIMUM_MODULES>,
    /// Usable memory, as the firmware tells it: not sorted, may overlap.
    pub memory: List<Region, MAXIMUM_REGIONS>,
    /// Memory that the block itself, its strings and its lists occupy, and that must stay until they were used.
    pub occupied: List<Region, { 2 * MAXIMUM_MODULES }>,
}

#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Header {
    flags: u32,
    memory_lower: u32,
    memory_upper: u32,
    boot_device: u32,
    command_line: u32,
    module_count: u32,
    module_list: u32,
    symbols: [u32; 4],
    map_length: u32,
    map_address: u32,
}

#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct ModuleEntry {
    start: u32,
    end: u32,
    string: u32,
    reserved: u32,
}

#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct MapEntry {
    size: u32,
    base: [u32; 2],
    length: [u32; 2],
    kind: u32,
}

const FLAG_MEMORY: u32 = 1 << 0;
const FLAG_COMMAND_LINE: u32 = 1 << 2;
const FLAG_MODULES: u32 = 1 << 3;
const FLAG_MEMORY_MAP: u32 = 1 << 6;
const KIND_USABLE: u32 = 1;

/// Reads the block that the loader left, in either form.
///
/// # Errors
/// [`Malformed`] names the first part that can't be used.
pub fn read<'m>(
    memory: &impl PhysicalMemory<'m>,
    magic: u32,
    address: u32,
) -> Result<Information<'m>, Malformed> {
    match magic {
        LOADER_MAGIC => {}
        multiboot2::LOADER_MAGIC => return multiboot2::read(memory, address),
        other => return Err(Malformed::Magic(other)),
    }
    let header: Header = record(memory, address.into()).ok_or(Malformed::Header(address))?;
    let mut information = Information::default();
    occupy(&mut information, address.into(), HEADER_BYTES, Part::MemoryMap)?;
    read_command_line(memory, &header, &mut information)?;
    read_modules(memory, &header, &mut information)?;
    read_memory(memory, &header, &mut information)?;
    Ok(information)
}

fn read_command_line<'m>(
    memory: &impl PhysicalMemory<'m>,
    header: &Header,
    information: &mut Information<'m>,
) -> Result<(), Malformed> {
    if header.flags & FLAG_COMMAND_LINE == 0 || header.command_line == 0 {
        return Ok(());
    }
    let line = string(memory, header.command_line.into()).ok_or(Malformed::Unreadable(Part::CommandLine))?;
    occupy(information, header.command_line.into(), line.len() as u64 + 1, Part::CommandLine)?;
    information.command_line = without_image_name(line);
    Ok(())
}

/// A loader may put the image's path first: a word that isn't an option, since it holds a slash before any `=`.
fn without_image_name(line: &str) -> &str {
    let (first, rest) = line.trim_start().split_once(' ').unwrap_or((line.trim_start(), ""));
    let name = first.split('=').next().unwrap_or(first);
    if name.contains('/') || first.ends_with(".elf") { rest.trim() } else { line.trim() }
}

fn read_modules<'m>(
    memory: &impl PhysicalMemory<'m>,
    header: &Header,
    information: &mut Information<'m>,
) -> Result<(), Malformed> {
    if header.flags & FLAG_MODULES == 0 {
        return Ok(());
    }
    let count = header.module_count as usize;
    if count > MAXIMUM_MODULES {
        return Err(Malformed::TooMany(Part::ModuleList));
    }
    for index in 0..count {
        let place = u64::from(header.module_list) + (index * size_of::<ModuleEntry>()) as u64;
        let entry: ModuleEntry = record(memory, place).ok_or(Malformed::Unreadable(Part::ModuleList))?;
        let module = match read_module(memory, index, &entry, information) {
            Err(fault @ Malformed::TooMany(_)) => return Err(fault),
            Err(fault) => Module::unusable(index, fault)?,
            Ok(module) => module,
        };
        information.modules.push(module).map_err(|_| Malformed::TooMany(Part::ModuleList))?;
    }
    let bytes = (count * size_of::<ModuleEntry>()) as u64;
    occupy(information, header.module_list.into(), bytes, Part::ModuleList)
}

fn read_module<'m>(
    memory: &impl PhysicalMemory<'m>,
    index: usize,
    entry: &ModuleEntry,
    information: &mut Information<'m>,
) -> Result<Module<'m>, Malformed> {
    let length = entry.end.checked_sub(entry.start).ok_or(Malformed::Backwards(index))?;
    let content = memory
        .bytes(entry.start.into(), length.into())
        .ok_or(Malformed::Unreadable(Part::ModuleContent(index)))?;
    let mut line = "";
    if entry.string != 0 {
        let part = Part::ModuleString(index);
        line = string(memory, entry.string.into()).ok_or(Malformed::Unreadable(part))?;
        occupy(information, entry.string.into(), line.len() as u64 + 1, part)?;
    }
    let (file, arguments) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    let place = Region { start: entry.start.into(), end: entry.end.into() };
    Ok(Module { place, content, file, arguments: arguments.trim(), fault: None })
}

fn read_memory<'m>(
    memory: &impl PhysicalMemory<'m>,
    header: &Header,
    information: &mut Information<'m>,
) -> Result<(), Malformed> {
    if header.flags & FLAG_MEMORY_MAP != 0 {
        return read_memory_map(memory, header, information);
    }
    if header.flags & FLAG_MEMORY == 0 || header.memory_upper == 0 {
        return Err(Malformed::NoMemory);
    }
    let start = 1 << 20;
    let region = Region { start, end: start + u64::from(header.memory_upper) * 1024 };
    information.memory.push(region).map_err(|_| Malformed::TooMany(Part::MemoryMap))
}

/// Entries are `size` + 4 bytes long: the size field doesn't count itself.
fn read_memory_map<'m>(
    memory: &impl PhysicalMemory<'m>,
    header: &Header,
    information: &mut Information<'m>,
) -> Result<(), Malformed> {
    let malformed = Malformed::Unreadable(Part::MemoryMap);
    if header.map_length > MAXIMUM_MAP_BYTES {
        return Err(Malformed::TooMany(Part::MemoryMap));
    }
    let end = u64::from(header.map_address) + u64::from(header.map_length);
    let mut at = u64::from(header.map_address);
    while at < end {
        let entry: MapEntry = record(memory, at).ok_or(malformed)?;
        if (entry.size as usize) < size_of::<MapEntry>() - 4 {
            return Err(malformed);
        }
        at += u64::from(entry.size) + 4;
        let start = join(entry.base);
        let region = Region { start, end: start.saturating_add(join(entry.length)) };
        if entry.kind == KIND_USABLE && region.start < region.end {
            information.memory.push(region).map_err(|_| Malformed::TooMany(Part::MemoryMap))?;
        }
    }
    occupy(information, header.map_address.into(), header.map_length.into(), Part::MemoryMap)
}

fn join([low, high]: [u32; 2]) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn occupy(information: &mut Information<'_>, start: u64, bytes: u64, part: Part) -> Result<(), Malformed> {
    let region = Region { start, end: start + bytes };
    information.occupied.push(region).map_err(|_| Malformed::TooMany(part))
}

fn record<'m, T: FromBytes>(memory: &impl PhysicalMemory<'m>, address: u64) -> Option<T> {
    T::read_from_bytes(memory.bytes(address, size_of::<T>() as u64)?).ok()
}

/// The text up to the first NUL; `None` when it is too long, unreadable, or no UTF-8.
///
/// Looks page by page, since only the pages that hold the string need to be readable.
fn string<'m>(memory: &impl PhysicalMemory<'m>, address: u64) -> Option<&'m str> {
    let mut length = 0;
    while length <= MAXIMUM_STRING as u64 {
        let at = address + length;
        let rest_of_page = 4096 - at % 4096;
        let piece = memory.bytes(at, rest_of_page)?;
        if let Some(nul) = piece.iter().position(|&byte| byte == 0) {
            let bytes = memory.bytes(address, length + nul as u64)?;
            return core::str::from_utf8(bytes).ok();
        }
        length += rest_of_page;
    }
    None
}

#[cfg(test)]
mod tests;
