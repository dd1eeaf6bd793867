//! Where in a file a kernel's notes are.
//!
//! Usually a program header of type `PT_NOTE` leads to them. A kernel that was linked without one may still have them in sections, and
//! kernels from before there were notes have a text in a section named `__xen_guest`. Each place is looked at only if there was no note of
//! Xen's in the one before (`elf_xen_parse` of Xen 4.17), so that for most kernels section headers don't matter: they say
//! nothing about loading, and they stand at the end, where a file is cut first.
//!
//! Headers may all lead to the same bytes, so how many of them are followed, and how many bytes are read behind them, is limited: whoever made
//! the file must not keep the machine from starting.

use elf::abi::{PT_NOTE, SHT_NOBITS, SHT_NOTE};
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader};
use elf::section::{SectionHeader, SectionHeaderTable};
use elf::segment::SegmentTable;

use super::image::{ImageError, piece};
use super::notes::Notes;

/// Bytes of a section header.
const HEADER_SIZE: usize = 64;
/// The section with a kernel's words, as they were before there were notes, and the zero byte at its name's end.
const GUEST_SECTION: &[u8] = b"__xen_guest\0";

/// Program headers or sections with notes that a kernel can have. Linux has one of either kind, and some more sections.
const MAX_PLACES: usize = 64;
/// Bytes behind them, in all. Linux has less than a page.
const MAX_BYTES: usize = 1 << 20;

/// What may still be read.
struct Limits {
    places: usize,
    bytes: usize,
}

impl Limits {
    const ALL: Self = Self { places: MAX_PLACES, bytes: MAX_BYTES };

    /// Takes one more place off, with its content.
    fn take<'a>(&mut self, content: &'a [u8]) -> Result<&'a [u8], ImageError> {
        let left = self.places.checked_sub(1).zip(self.bytes.checked_sub(content.len()));
        (self.places, self.bytes) = left.ok_or(ImageError::TooManyNotes)?;
        Ok(content)
    }
}

/// What a kernel says about itself, wherever it says it.
pub(super) fn notes<'a>(
    file: &'a [u8],
    header: &FileHeader<LittleEndian>,
    segments: SegmentTable<'a, LittleEndian>,
) -> Result<Notes<'a>, ImageError> {
    let (mut notes, mut limits) = (Notes::default(), Limits::ALL);
    for segment in segments.into_iter().filter(|segment| segment.p_type == PT_NOTE) {
        notes.read(limits.take(piece(file, segment.p_offset, segment.p_filesz)?)?);
    }
    if notes.is_empty() {
        read_sections(file, header, &mut notes, limits)?;
    }
    Ok(notes)
}

fn read_sections<'a>(
    file: &'a [u8],
    header: &FileHeader<LittleEndian>,
    notes: &mut Notes<'a>,
    mut limits: Limits,
) -> Result<(), ImageError> {
    let sections = sections(file, header)?;
    for section in sections.into_iter().filter(|section| section.sh_type == SHT_NOTE) {
        notes.read(limits.take(content(file, &section)?)?);
    }
    if notes.is_empty()
        && let Some(section) = guest_section(file, header, sections)?
    {
        notes.read_words(limits.take(content(file, &section)?)?);
    }
    Ok(())
}

/// The table of sections; empty if there is none, or one of an unknown form.
fn sections<'a>(
    file: &'a [u8],
    header: &FileHeader<LittleEndian>,
) -> Result<SectionHeaderTable<'a, LittleEndian>, ImageError> {
    let is_known = header.e_shoff != 0 && usize::from(header.e_shentsize) == HEADER_SIZE;
    let count = if is_known { usize::from(header.e_shnum) } else { 0 };
    let bytes = piece(file, header.e_shoff, count.saturating_mul(HEADER_SIZE) as u64)?;
    Ok(SectionHeaderTable::new(LittleEndian, Class::ELF64, bytes))
}

fn guest_section(
    file: &[u8],
    header: &FileHeader<LittleEndian>,
    sections: SectionHeaderTable<'_, LittleEndian>,
) -> Result<Option<SectionHeader>, ImageError> {
    let Ok(names) = sections.get(usize::from(header.e_shstrndx)) else { return Ok(None) };
    let names = content(file, &names)?;
    let is_guests = |section: &SectionHeader| {
        names.get(section.sh_name as usize..).is_some_and(|name| name.starts_with(GUEST_SECTION))
    };
    Ok(sections.into_iter().find(is_guests))
}

/// The bytes that the file has of a section.
fn content<'a>(file: &'a [u8], section: &SectionHeader) -> Result<&'a [u8], ImageError> {
    let size = if section.sh_type == SHT_NOBITS { 0 } else { section.sh_size };
    piece(file, section.sh_offset, size)
}
