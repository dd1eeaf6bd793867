//! A kernel as it comes from the boot loader: an ELF file with Xen's notes.
//!
//! The file is a claim. Everything in it is checked before a domain is built from it, and what is wrong is said in
//! one line. Source of the notes: `elfnote.h` of Xen's public headers.

use core::fmt;

use elf::abi::{EI_NIDENT, ELFMAGIC, EM_AARCH64, EM_X86_64, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::note::{Note, NoteIterator};
use elf::segment::{ProgramHeader, SegmentTable};
use penumbra_abi::elfnote;

use crate::address::PAGE_BYTES;

/// Bytes of a program header.
const HEADER_SIZE: usize = 56;

/// What is wrong with a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageError {
    /// Not an ELF file for 64-bit little-endian machines.
    NotElf,
    /// An ELF file for another machine.
    OtherMachine,
    /// The file is shorter than its headers say.
    CutShort,
    /// A segment lies outside of any memory, or wraps around.
    BadSegment,
    /// There is nothing to load.
    Empty,
    /// This note is missing: (its number in `elfnote.h`).
    MissingNote(&'static str),
    /// The entry point isn't in the kernel.
    BadEntry,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotElf => write!(f, "it is no 64-bit ELF file"),
            Self::OtherMachine => write!(f, "it is for another machine"),
            Self::CutShort => write!(f, "the file is cut short"),
            Self::BadSegment => write!(f, "one of its segments has impossible addresses"),
            Self::Empty => write!(f, "it has nothing to load"),
            Self::MissingNote(name) => write!(f, "it has no Xen ELF note {name}: not a paravirtual kernel"),
            Self::BadEntry => write!(f, "its entry point lies outside of it"),
        }
    }
}

/// A kernel that can be loaded.
pub struct KernelImage<'a> {
    file: &'a [u8],
    segments: SegmentTable<'a, LittleEndian>,
    /// First instruction, guest-virtual.
    pub entry: u64,
    /// Where pseudo-physical frame 0 is mapped, guest-virtual.
    pub virt_base: u64,
    paddr_offset: u64,
    /// One past the last pseudo-physical byte of the kernel.
    pub end: u64,
}

/// A piece to load.
pub struct Segment<'a> {
    /// Pseudo-physical address of its first byte.
    pub start: u64,
    /// The bytes that the file has; the rest is zero, as fresh memory is.
    pub content: &'a [u8],
}

/// The notes that matter, as they are found.
#[derive(Default)]
struct Notes {
    entry: Option<u64>,
    virt_base: Option<u64>,
    paddr_offset: Option<u64>,
    xen_version: bool,
}

impl<'a> KernelImage<'a> {
    /// Checks `file`; `platform` is `x86_64` or `aarch64`.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(file: &'a [u8], platform: &str) -> Result<Self, ImageError> {
        let header = read_header(file)?;
        let machine = if platform == "aarch64" { EM_AARCH64 } else { EM_X86_64 };
        if header.e_machine != machine {
            return Err(ImageError::OtherMachine);
        }
        let segments = read_segments(file, &header)?;
        let notes = read_notes(file, segments)?;
        if !notes.xen_version {
            return Err(ImageError::MissingNote("XEN_VERSION"));
        }
        let entry = notes.entry.unwrap_or(header.e_entry);
        let virt_base = notes.virt_base.ok_or(ImageError::MissingNote("VIRT_BASE"))?;
        let mut image =
            Self { file, segments, entry, virt_base, paddr_offset: notes.paddr_offset.unwrap_or(0), end: 0 };
        image.end = image.check_segments()?;
        let offset = entry.checked_sub(virt_base).ok_or(ImageError::BadEntry)?;
        if offset >= image.end || !virt_base.is_multiple_of(PAGE_BYTES) {
            return Err(ImageError::BadEntry);
        }
        Ok(image)
    }

    fn headers(&self) -> impl Iterator<Item = ProgramHeader> + use<'a> {
        self.segments.into_iter().filter(|header| header.p_type == PT_LOAD)
    }

    /// The highest pseudo-physical byte, if all segments can be loaded.
    fn check_segments(&self) -> Result<u64, ImageError> {
        let mut end = 0;
        for header in self.headers() {
            content(self.file, &header)?;
            if header.p_filesz > header.p_memsz {
                return Err(ImageError::BadSegment);
            }
            let start = header.p_paddr.checked_sub(self.paddr_offset).ok_or(ImageError::BadSegment)?;
            let last = start.checked_add(header.p_memsz).ok_or(ImageError::BadSegment)?;
            end = last.max(end);
        }
        match end {
            0 => Err(ImageError::Empty),
            // No machine has as much memory.
            end if end >> 52 != 0 => Err(ImageError::BadSegment),
            end => Ok(end),
        }
    }

    /// The pieces to load.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'a>> {
        self.headers().filter_map(|header| {
            let start = header.p_paddr.checked_sub(self.paddr_offset)?;
            Some(Segment { start, content: content(self.file, &header).ok()? })
        })
    }
}

/// The file's header. Section headers aren't looked at: they say nothing about loading, and they stand at the end, where a
/// file is cut first.
fn read_header(file: &[u8]) -> Result<FileHeader<LittleEndian>, ImageError> {
    if !file.starts_with(&ELFMAGIC) {
        return Err(ImageError::NotElf);
    }
    let (ident, rest) = file.split_at_checked(EI_NIDENT).ok_or(ImageError::CutShort)?;
    let ident = parse_ident::<LittleEndian>(ident).map_err(|_| ImageError::NotElf)?;
    let header = FileHeader::parse_tail(ident, rest).map_err(|_| ImageError::CutShort)?;
    if header.class == Class::ELF64 { Ok(header) } else { Err(ImageError::NotElf) }
}

fn read_segments<'a>(
    file: &'a [u8],
    header: &FileHeader<LittleEndian>,
) -> Result<SegmentTable<'a, LittleEndian>, ImageError> {
    if usize::from(header.e_phentsize) != HEADER_SIZE {
        return Err(ImageError::NotElf);
    }
    let size = HEADER_SIZE.checked_mul(usize::from(header.e_phnum)).ok_or(ImageError::BadSegment)?;
    let bytes = piece(file, header.e_phoff, size as u64)?;
    Ok(SegmentTable::new(LittleEndian, Class::ELF64, bytes))
}

/// `size` bytes of the file from `offset` on.
fn piece(file: &[u8], offset: u64, size: u64) -> Result<&[u8], ImageError> {
    let start = usize::try_from(offset).map_err(|_| ImageError::BadSegment)?;
    let end =
        offset.checked_add(size).and_then(|end| usize::try_from(end).ok()).ok_or(ImageError::BadSegment)?;
    file.get(start..end).ok_or(ImageError::CutShort)
}

/// The bytes that the file has of a segment.
fn content<'a>(file: &'a [u8], header: &ProgramHeader) -> Result<&'a [u8], ImageError> {
    piece(file, header.p_offset, header.p_filesz)
}

fn read_notes(file: &[u8], segments: SegmentTable<'_, LittleEndian>) -> Result<Notes, ImageError> {
    let mut notes = Notes::default();
    for header in segments.into_iter().filter(|header| header.p_type == PT_NOTE) {
        // Alignments other than 4 and 8 aren't notes; the iterator ends there.
        let align = usize::try_from(header.p_align).unwrap_or(0);
        for note in NoteIterator::new(LittleEndian, Class::ELF64, align, content(file, &header)?) {
            let Note::Unknown(note) = note else { continue };
            if note.name != elfnote::OWNER && note.name != b"Xen" {
                continue;
            }
            let Ok(kind) = u32::try_from(note.n_type) else { continue };
            match kind {
                elfnote::ENTRY => notes.entry = number(note.desc),
                elfnote::VIRT_BASE => notes.virt_base = number(note.desc),
                elfnote::PADDR_OFFSET => notes.paddr_offset = number(note.desc),
                elfnote::XEN_VERSION => notes.xen_version = note.desc.starts_with(b"xen-3.0"),
                _ => {}
            }
        }
    }
    Ok(notes)
}

/// A note's number: 8 bytes, or 4.
fn number(bytes: &[u8]) -> Option<u64> {
    match bytes.len() {
        8 => Some(u64::from_le_bytes(bytes.try_into().ok()?)),
        4 => Some(u64::from(u32::from_le_bytes(bytes.try_into().ok()?))),
        _ => None,
    }
}
