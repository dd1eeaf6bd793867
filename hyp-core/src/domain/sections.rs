//! Where in a file a kernel's notes are.
//!
//! Usually a program header of type `PT_NOTE` leads to them. A kernel that was linked without one may still have them in sections, and
//! kernels from before there were notes have a text in a section named `__xen_guest`. Each place is looked at only if there was no note of
//! Xen's in the one before (`elf_xen_parse` of Xen 4.17), so that for most kernels section headers don't matter: they say
//! nothing about loading, and they stand at the end, where a file is cut first.

use elf::abi::{PT_NOTE, SHT_NOBITS, SHT_NOTE};
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader};
use elf::section::{SectionHeader, SectionHeaderTable};
use elf::segment::SegmentTable;

use super::image::{ImageError, piece};
use super::notes::Notes;

/// Bytes of a section header.
const HEADER_SIZE: usize = 64;
/// The section with a kernel's words, as they were before there were notes.
const GUEST_SECTION: &[u8] = b"__xen_guest";

/// What a kernel says about itself, wherever it says it.
pub(super) fn notes<'a>(
    file: &'a [u8],
    header: &FileHeader<LittleEndian>,
    segments: SegmentTable<'a, LittleEndian>,
) -> Result<Notes<'a>, ImageError> {
    let mut notes = Notes::default();
    for segment in segments.into_iter().filter(|segment| segment.p_type == PT_NOTE) {
        notes.read(piece(file, segment.p_offset, segment.p_filesz)?);
    }
    if notes.is_empty() {
        read_sections(file, header, &mut notes)?;
    }
    Ok(notes)
}

fn read_sections<'a>(
    file: &'a [u8],
    header: &FileHeader<LittleEndian>,
    notes: &mut Notes<'a>,
) -> Result<(), ImageError> {
    let sections = sections(file, header)?;
    for section in sections.into_iter().filter(|section| section.sh_type == SHT_NOTE) {
        notes.read(content(file, &section)?);
    }
    if notes.is_empty()
        && let Some(section) = guest_section(file, header, sections)?
    {
        notes.read_words(content(file, &section)?);
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
        let name = names.get(section.sh_name as usize..).unwrap_or(&[]);
        name.split(|byte| *byte == 0).next() == Some(GUEST_SECTION)
    };
    Ok(sections.into_iter().find(is_guests))
}

/// The bytes that the file has of a section.
fn content<'a>(file: &'a [u8], section: &SectionHeader) -> Result<&'a [u8], ImageError> {
    let size = if section.sh_type == SHT_NOBITS { 0 } else { section.sh_size };
    piece(file, section.sh_offset, size)
}
