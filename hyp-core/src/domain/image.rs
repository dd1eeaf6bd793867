//! A kernel that can be loaded: an ELF file with Xen's notes ([`super::notes`]).
//!
//! The file is a claim. Everything in it is checked before a domain is built from it, and what is wrong is said in
//! one line. Segments go where their *physical* addresses say, less `PADDR_OFFSET`; virtual ones mean nothing to a loader (Linux
//! has a segment at virtual address 0, for data of which each CPU gets its own copy).

use core::fmt;
use core::ops::Range;

use elf::abi::{EI_NIDENT, ELFMAGIC, PT_LOAD};
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::segment::{ProgramHeader, SegmentTable};

use super::notes::{Identity, Wishes};
use super::sections;
use crate::address::PAGE_BYTES;

/// Bytes of a program header.
const HEADER_SIZE: usize = 56;
/// Segments to load that a kernel can have. Linux has four.
const MAX_SEGMENTS: usize = 64;

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
    /// Two segments want the same memory.
    Overlap,
    /// More segments than are looked at.
    TooManySegments,
    /// More places with notes than are looked at, or more bytes of them.
    TooManyNotes,
    /// There is nothing to load.
    Empty,
    /// This note is missing (its name in `elfnote.h`).
    MissingNote(&'static str),
    /// This note's content makes no sense.
    BadNote(&'static str),
    /// It was made for another ABI than Xen's third.
    OtherAbi,
    /// It insists on a feature that there isn't.
    MissingFeature(&'static str),
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
            Self::Overlap => write!(f, "two of its segments overlap"),
            Self::TooManySegments => write!(f, "it has more than {MAX_SEGMENTS} segments"),
            Self::TooManyNotes => write!(f, "it has more notes than are read"),
            Self::Empty => write!(f, "it has nothing to load"),
            Self::MissingNote(name) => write!(f, "it has no Xen ELF note {name}: not a paravirtual kernel"),
            Self::BadNote(name) => write!(f, "its Xen ELF note {name} makes no sense"),
            Self::OtherAbi => write!(f, "it is for another ABI than xen-3.0"),
            Self::MissingFeature(name) => write!(f, "it insists on a feature that there isn't: {name}"),
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
    /// The page, in pseudo-physical bytes, where it wants code that issues hypercalls: within the kernel.
    pub hypercall_page: Option<u64>,
    /// What it asks for beyond the usual.
    pub wishes: Wishes,
    /// What it says about itself.
    pub identity: Identity<'a>,
}

/// A piece to load.
pub struct Segment<'a> {
    /// Pseudo-physical address of its first byte.
    pub start: u64,
    /// The bytes that the file has; the rest is zero, as fresh memory is.
    pub content: &'a [u8],
}

impl<'a> KernelImage<'a> {
    /// Checks `file`, which has to be for `machine` ([`crate::machine::Machine::ELF_MACHINE`]).
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(file: &'a [u8], machine: u16) -> Result<Self, ImageError> {
        let header = read_header(file)?;
        if header.e_machine != machine {
            return Err(ImageError::OtherMachine);
        }
        let segments = read_segments(file, &header)?;
        let notes = sections::notes(file, &header, segments)?;
        notes.check()?;
        let virt_base = notes.virt_base();
        if !virt_base.is_multiple_of(PAGE_BYTES) {
            return Err(ImageError::BadNote("VIRT_BASE"));
        }
        let mut image = Self {
            file,
            segments,
            entry: notes.entry.unwrap_or(header.e_entry),
            virt_base,
            paddr_offset: notes.paddr_offset(),
            end: 0,
            hypercall_page: None,
            wishes: notes.wishes,
            identity: notes.identity,
        };
        let (start, end) = image.check_segments()?;
        image.end = end;
        let within =
            |address: u64| address.checked_sub(virt_base).filter(|address| (start..end).contains(address));
        within(image.entry).ok_or(ImageError::BadEntry)?;
        if let Some(page) = image.wishes.hypercall_page {
            image.hypercall_page = Some(within(page).ok_or(ImageError::BadNote("HYPERCALL_PAGE"))?);
        }
        Ok(image)
    }

    fn headers(&self) -> impl Iterator<Item = ProgramHeader> + use<'a> {
        self.segments.into_iter().filter(|header| header.p_type == PT_LOAD && header.p_memsz > 0)
    }

    /// The lowest pseudo-physical byte and one past the highest, if all segments can be loaded.
    fn check_segments(&self) -> Result<(u64, u64), ImageError> {
        if self.headers().count() > MAX_SEGMENTS {
            return Err(ImageError::TooManySegments);
        }
        let (mut lowest, mut end) = (u64::MAX, 0);
        // Kept, so that headers which load nothing, of which there may be any number, are passed over once.
        let mut places = [const { 0..0 }; MAX_SEGMENTS];
        for (index, header) in self.headers().enumerate() {
            let place = self.check_segment(&header)?;
            let (before, rest) = places.split_at_mut_checked(index).ok_or(ImageError::TooManySegments)?;
            if before.iter().any(|before| before.start < place.end && place.start < before.end) {
                return Err(ImageError::Overlap);
            }
            (lowest, end) = (place.start.min(lowest), place.end.max(end));
            *rest.first_mut().ok_or(ImageError::TooManySegments)? = place;
        }
        if end == 0 { Err(ImageError::Empty) } else { Ok((lowest, end)) }
    }

    /// Where a segment goes, in pseudo-physical bytes, if it can be loaded.
    fn check_segment(&self, header: &ProgramHeader) -> Result<Range<u64>, ImageError> {
        content(self.file, header)?;
        let start = header.p_paddr.checked_sub(self.paddr_offset).ok_or(ImageError::BadSegment)?;
        let end = start.checked_add(header.p_memsz).ok_or(ImageError::BadSegment)?;
        // No machine has as much memory.
        let absurd = header.p_filesz > header.p_memsz || end >> 52 != 0;
        if absurd { Err(ImageError::BadSegment) } else { Ok(start..end) }
    }

    /// The pieces to load.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'a>> {
        self.headers().filter_map(|header| {
            let start = header.p_paddr.checked_sub(self.paddr_offset)?;
            Some(Segment { start, content: content(self.file, &header).ok()? })
        })
    }
}

/// The file's header.
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
pub(super) fn piece(file: &[u8], offset: u64, size: u64) -> Result<&[u8], ImageError> {
    let start = usize::try_from(offset).map_err(|_| ImageError::BadSegment)?;
    let end =
        offset.checked_add(size).and_then(|end| usize::try_from(end).ok()).ok_or(ImageError::BadSegment)?;
    file.get(start..end).ok_or(ImageError::CutShort)
}

/// The bytes that the file has of a segment.
fn content<'a>(file: &'a [u8], header: &ProgramHeader) -> Result<&'a [u8], ImageError> {
    piece(file, header.p_offset, header.p_filesz)
}
