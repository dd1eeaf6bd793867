//! Files for bad boot loaders: our own kernels, changed where something is to be noticed.

use anyhow::{Context, Result, ensure};
use machine_tests::case::{Board, Change, Damage, Packing};
use object::elf::{PT_LOAD, PT_NOTE, PT_NULL, SHT_PROGBITS, SHT_STRTAB};
use unpack::Format;
use unpack::pack::{self, Excess};

/// Xen's notes about the page of hypercalls and the P2M's place (`elfnote.h` of Xen's public headers).
const HYPERCALL_PAGE: u32 = 2;
const INIT_P2M: u32 = 15;
/// Where in an ELF file its first instruction's address is.
const ENTRY: usize = 24;
/// Where in an ELF file its program headers are, and how many there are (System V gABI, chapter 4).
const HEADERS: usize = 32;
const HEADER_COUNT: usize = 56;
/// Bytes of one, and where its physical address and its length in memory are.
const HEADER: usize = 56;
const ADDRESS: usize = 24;
const LENGTH: usize = 40;
/// Where in the file the section headers are, bytes of one, and how many there are; behind that, which of them has their names.
const SECTIONS: usize = 40;
const SECTION: usize = 64;
const SECTION_COUNT: usize = 60;

/// The same ELF file, with the other architecture's number in its header (`e_machine`, System V gABI, chapter 4).
pub fn for_the_other_machine(mut bytes: Vec<u8>, board: Board) -> Vec<u8> {
    let machine = match board {
        Board::Virt => object::elf::EM_X86_64,
        Board::Q35 => object::elf::EM_AARCH64,
    };
    if let Some(field) = bytes.get_mut(18..20) {
        field.copy_from_slice(&machine.to_le_bytes());
    }
    bytes
}

/// The same ELF file with this change.
pub fn changed(mut bytes: Vec<u8>, change: Change) -> Result<Vec<u8>> {
    let loads = headers(&bytes, PT_LOAD)?;
    match change {
        Change::OverlappingSegments => {
            let [first, second, ..] = loads[..] else { anyhow::bail!("a kernel with one segment") };
            let address: [u8; 8] = bytes[first + ADDRESS..][..8].try_into()?;
            bytes[second + ADDRESS..][..8].copy_from_slice(&address);
        }
        Change::EndlessSegment => {
            let last = loads.last().context("a kernel without segments")?;
            bytes[last + LENGTH..][..8].copy_from_slice(&(u64::MAX - 0xfff).to_le_bytes());
        }
        Change::NoNotes => {
            hide_notes(&mut bytes)?;
            bytes[SECTIONS..][..8].fill(0);
        }
        Change::EndlessNotes => add_notes(&mut bytes, 1000, &vec![0; 1 << 20])?,
        Change::HypercallPage => {
            let entry = u64::from_le_bytes(bytes[ENTRY..][..8].try_into()?);
            add_notes(&mut bytes, 1, &note(HYPERCALL_PAGE, entry & !0xfff))?;
        }
        Change::LowP2m => add_notes(&mut bytes, 1, &note(INIT_P2M, 1 << 39))?,
        Change::NotesInSection => hide_notes(&mut bytes)?,
        Change::Words => {
            hide_notes(&mut bytes)?;
            add_words(&mut bytes);
        }
        Change::OtherAbi => {
            let name = b"xen-3.0\0";
            let places: Vec<_> =
                (0..bytes.len() - name.len()).filter(|at| bytes[*at..].starts_with(name)).collect();
            ensure!(!places.is_empty(), "a kernel that names no ABI");
            places.into_iter().for_each(|at| bytes[at + 4] = b'9');
        }
    }
    Ok(bytes)
}

/// Takes away what leads to the notes.
fn hide_notes(bytes: &mut [u8]) -> Result<()> {
    for header in headers(bytes, PT_NOTE)? {
        bytes[header..][..4].copy_from_slice(&PT_NULL.to_le_bytes());
    }
    Ok(())
}

/// Gives the file another table of program headers: its own, and so many more for notes, which all lead to the content behind the table.
fn add_notes(bytes: &mut Vec<u8>, more: usize, content: &[u8]) -> Result<()> {
    let first = u64::from_le_bytes(bytes[HEADERS..][..8].try_into()?) as usize;
    let count = usize::from(u16::from_le_bytes(bytes[HEADER_COUNT..][..2].try_into()?));
    let own = bytes[first..][..count * HEADER].to_vec();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let table = bytes.len();
    let place = (table + (count + more) * HEADER) as u64;
    let mut header = [PT_NOTE, 0].map(u32::to_le_bytes).concat();
    header.extend([place, 0, 0, content.len() as u64, 0, 4].map(u64::to_le_bytes).concat());
    bytes.extend(own);
    bytes.extend(header.repeat(more));
    bytes.extend(content);
    bytes[HEADERS..][..8].copy_from_slice(&(table as u64).to_le_bytes());
    bytes[HEADER_COUNT..][..2].copy_from_slice(&((count + more) as u16).to_le_bytes());
    Ok(())
}

/// One of Xen's notes, with a number in it.
fn note(kind: u32, content: u64) -> Vec<u8> {
    let mut note = [4, 8, kind].map(u32::to_le_bytes).concat();
    note.extend(b"Xen\0");
    note.extend(content.to_le_bytes());
    note
}

/// What the x86-64 guest says in its notes, in words; it is linked at this base, with physical addresses from 0 on.
const WORDS: &[u8] = b"GUEST_OS=penumbra-guest,XEN_VER=xen-3.0,VIRT_BASE=0xffffffff80000000,ELF_PADDR_OFFSET=0,LOADER=generic\0";
/// The table of sections' names: none, and that of the one that had the words.
const NAMES: &[u8] = b"\0__xen_guest\0";

/// Puts another table of sections in the place of the file's: an empty one, the words, and the names.
fn add_words(bytes: &mut Vec<u8>) {
    let (words, names) = (bytes.len(), bytes.len() + WORDS.len());
    bytes.extend(WORDS);
    bytes.extend(NAMES);
    let table = bytes.len() as u64;
    bytes.extend([0; SECTION]);
    for (name, kind, at, length) in
        [(1, SHT_PROGBITS, words, WORDS.len()), (0, SHT_STRTAB, names, NAMES.len())]
    {
        bytes.extend([name, kind].map(u32::to_le_bytes).concat());
        bytes.extend([0, 0, at as u64, length as u64, 0, 1, 0].map(u64::to_le_bytes).concat());
    }
    bytes[SECTIONS..][..8].copy_from_slice(&table.to_le_bytes());
    bytes[SECTION_COUNT..][..4].copy_from_slice(&[3, 0, 2, 0]);
}

/// Where the program headers of this kind are.
fn headers(bytes: &[u8], kind: u32) -> Result<Vec<usize>> {
    let first = u64::from_le_bytes(bytes[HEADERS..][..8].try_into()?) as usize;
    let count = u16::from_le_bytes(bytes[HEADER_COUNT..][..2].try_into()?);
    let all = (0..usize::from(count)).map(|number| first + number * HEADER);
    Ok(all.filter(|at| bytes[*at..].starts_with(&kind.to_le_bytes())).collect())
}

/// A window of 8 MiB: what the decoder has to itself is less.
const WINDOW: u8 = 23;

/// The kernel as a bzImage.
pub fn packed(kernel: &[u8], packing: Packing, damage: Damage) -> Vec<u8> {
    let format = match packing {
        Packing::Xz => Format::Xz,
        Packing::Gzip => Format::Gzip,
        Packing::Zstd => Format::Zstd,
        Packing::Lz4 => Format::Lz4,
    };
    let mut payload = pack::payload(format, kernel);
    let (middle, trailer) = (payload.len() / 2, payload.len() - 4);
    match damage {
        // Behind the stream's header, so that tables and lengths are hit.
        Damage::Corrupt => payload[30..middle].fill(0xff),
        Damage::TooLarge => payload[trailer..].fill(0xff),
        Damage::WrongLength => {
            payload[trailer..].copy_from_slice(&(kernel.len() as u32 - 1).to_le_bytes());
        }
        // Right before the length; LZ4 has none.
        Damage::Check if format != Format::Lz4 => payload[trailer - 1] ^= 1,
        Damage::NoFormat => payload[..4].fill(0),
        Damage::LongLiterals => payload = pack::beyond_the_window(WINDOW, Excess::Literals),
        Damage::LongSequence => payload = pack::beyond_the_window(WINDOW, Excess::Sequence),
        Damage::None | Damage::Check | Damage::CutShort | Damage::TooOld => {}
    }
    let mut file = pack::bzimage(&payload);
    if damage == Damage::CutShort {
        file.truncate(file.len() / 2);
    }
    if (damage, format) == (Damage::Check, Format::Lz4) {
        let last = file.len() - 1;
        file[last] ^= 1;
    }
    if damage == Damage::TooOld {
        file[0x206] = 7;
    }
    file
}
