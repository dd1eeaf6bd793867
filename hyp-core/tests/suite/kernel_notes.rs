//! Where a kernel may have its notes: behind a program header, in sections, or as words from before there were notes.

use hyp_core::domain::builder::Plan;
use hyp_core::domain::image::{ImageError, KernelImage};
use hyp_core::fake::{self, kernel};
use penumbra_abi::elfnote;

/// Of an ELF file: the second program header, which leads to the notes, and where such a header says where and how long.
const NOTES: usize = 64 + 56;
const OFFSET: usize = 8;
const PHYSICAL: usize = 24;
const LENGTH: usize = 32;
/// Types of sections.
const PROGBITS: u32 = 1;
const NOTE: u32 = 7;
const NOBITS: u32 = 8;
/// Where the kernel is linked that is built as kernels were before there were notes.
const BASE: u64 = 0x80_0000;

/// What the sections' table says of one.
struct Section {
    kind: u32,
    name: &'static [u8],
    at: u64,
    size: u64,
}

fn word(file: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(file[at..at + 8].try_into().unwrap())
}

/// The file without its program header for notes, and with a table of sections: an empty one, these, and one with their names.
fn with_sections(mut file: Vec<u8>, sections: &[Section]) -> Vec<u8> {
    file[NOTES..NOTES + 4].fill(0);
    let names_at = file.len() as u64;
    let mut names = vec![0];
    let mut table = vec![0; 64];
    let mut header = |name: usize, kind: u32, at: u64, size: u64| {
        table.extend([name as u32, kind].map(u32::to_le_bytes).concat());
        table.extend([0, 0, at, size, 0, 1, 0].map(u64::to_le_bytes).concat());
    };
    for section in sections {
        header(names.len(), section.kind, section.at, section.size);
        names.extend(section.name);
        names.push(0);
    }
    header(0, 3, names_at, names.len() as u64);
    file.extend(names);
    let place = file.len() as u64;
    file[40..48].copy_from_slice(&place.to_le_bytes());
    file[58..60].copy_from_slice(&64u16.to_le_bytes());
    file[60..62].copy_from_slice(&(sections.len() as u16 + 2).to_le_bytes());
    file[62..64].copy_from_slice(&(sections.len() as u16 + 1).to_le_bytes());
    file.extend(table);
    file
}

/// A kernel whose notes are in a section and nowhere else.
fn noted(more: &[(u32, &[u8])]) -> Vec<u8> {
    let file = kernel::image_with(kernel::VIRT_BASE, 0x3000, more);
    let (at, size) = (word(&file, NOTES + OFFSET), word(&file, NOTES + LENGTH));
    with_sections(file, &[Section { kind: NOTE, name: b".note.Xen", at, size }])
}

/// A kernel without notes, whose physical addresses are virtual ones, and which says this of itself.
fn worded(words: &[u8]) -> Vec<u8> {
    let mut file = kernel::image_at(BASE, 0x3000);
    let physical = word(&file, 64 + PHYSICAL) + BASE;
    file[64 + PHYSICAL..][..8].copy_from_slice(&physical.to_le_bytes());
    let at = file.len() as u64;
    file.extend(words);
    let text = Section { kind: PROGBITS, name: b"__xen_guest", at, size: words.len() as u64 };
    with_sections(file, &[Section { kind: PROGBITS, name: b".text", at: 0, size: 0 }, text])
}

fn parse(file: &[u8]) -> Result<KernelImage<'_>, ImageError> {
    KernelImage::parse(file, kernel::ELF_MACHINE)
}

fn complaint(file: &[u8]) -> Option<ImageError> {
    parse(file).err()
}

fn builds(file: &[u8]) -> bool {
    let plan = Plan { kernel: file, ramdisk: b"", arguments: "", pages: 1200, control: false };
    fake::hypervisor(4096).build_domain(&plan).is_ok()
}

#[test]
fn notes_may_stand_in_a_section_alone() {
    let file =
        noted(&[(elfnote::GUEST_OS, b"linux\0"), (elfnote::HYPERCALL_PAGE, &0x80_2000u64.to_le_bytes())]);
    let image = parse(&file).unwrap();
    assert_eq!((image.virt_base, image.entry), (kernel::VIRT_BASE, kernel::VIRT_BASE + 0x1000));
    assert_eq!((image.hypercall_page, image.identity.is_linux()), (Some(0x2000), true));
    assert!(builds(&file));
}

#[test]
fn sections_count_only_where_no_header_leads_to_notes() {
    let other = kernel::image_with(kernel::VIRT_BASE, 0x3000, &[(elfnote::XEN_VERSION, b"xen-2.0\0")]);
    let (at, size) = (word(&other, NOTES + OFFSET), word(&other, NOTES + LENGTH));
    let mut file = with_sections(other, &[Section { kind: NOTE, name: b"", at, size }]);
    assert_eq!(complaint(&file), Some(ImageError::OtherAbi));
    // Now a header leads to the first three, which are good.
    file[NOTES] = 4;
    file[NOTES + LENGTH..][..8].copy_from_slice(&(size - 24).to_le_bytes());
    assert_eq!(complaint(&file), None);
}

#[test]
fn a_table_of_sections_that_leads_nowhere_is_named() {
    let missing = Some(ImageError::MissingNote("XEN_VERSION"));
    let whole = noted(&[]);
    assert_eq!(complaint(&whole), None);
    assert_eq!(complaint(&whole[..whole.len() - 1]), Some(ImageError::CutShort));
    let changed = |at: usize, bytes: &[u8]| {
        let mut file = whole.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        complaint(&file)
    };
    assert_eq!(changed(40, &[0; 8]), missing, "no table");
    assert_eq!(changed(40, &[0xff; 8]), Some(ImageError::BadSegment));
    assert_eq!(changed(58, &[40]), missing, "headers of another length");
    assert_eq!(changed(60, &[1]), missing, "only the empty section");
    let table = word(&whole, 40) as usize;
    assert_eq!(changed(table + 64 + 4, &[PROGBITS as u8]), missing, "no section of notes");
    assert_eq!(
        changed(table + 64 + 32, &[0xff; 4]),
        Some(ImageError::CutShort),
        "its end is beyond the file's"
    );
    assert_eq!(changed(table + 64 + 24, &[0xff; 8]), Some(ImageError::BadSegment));
    // Their names are of no use to notes.
    assert_eq!(changed(62, &[0xff; 2]), None);
}

/// What Linux 2.6.18 said of itself, at other addresses.
const WORDS: &[u8] = b"GUEST_OS=linux,GUEST_VER=2.6,XEN_VER=xen-3.0,VIRT_BASE=0x800000,VIRT_ENTRY=0x801000,HYPERCALL_PAGE=0x2,\
    FEATURES=writable_page_tables|writable_descriptor_tables|auto_translated_physmap|pae_pgdir_above_4gb,LOADER=generic\0";

#[test]
fn words_from_before_there_were_notes_are_understood() {
    let file = worded(WORDS);
    let image = parse(&file).unwrap();
    assert_eq!((image.virt_base, image.entry, image.end), (BASE, BASE + 0x1000, 0x4000));
    assert_eq!(image.hypercall_page, Some(0x2000));
    let identity = image.identity;
    assert_eq!((identity.system, identity.version, identity.loader), ("linux", "2.6", "generic"));
    assert!(builds(&file));
}

#[test]
fn words_are_judged_as_notes_are() {
    let judge = |words: &[u8]| complaint(&worded(words));
    assert_eq!(judge(b"VIRT_BASE=0x800000\0"), Some(ImageError::MissingNote("XEN_VERSION")));
    assert_eq!(judge(b"XEN_VER=xen-2.0,VIRT_BASE=0x800000\0"), Some(ImageError::OtherAbi));
    assert_eq!(judge(b"XEN_VER=xen-3.0,VIRT_BASE=0x800010\0"), Some(ImageError::BadNote("VIRT_BASE")));
    assert_eq!(
        judge(b"XEN_VER=xen-3.0,ELF_PADDR_OFFSET=0x800000\0"),
        Some(ImageError::MissingNote("VIRT_BASE"))
    );
    let with = |more: &str| {
        judge(format!("XEN_VER=xen-3.0,VIRT_BASE=0x800000,VIRT_ENTRY=0x801000,{more}").as_bytes())
    };
    assert_eq!(with("\0,XEN_VER=xen-2.0"), None, "it ends at the first zero byte");
    assert_eq!(with("PAE=yes[extended-cr3],BSD_SYMTAB"), None);
    assert_eq!(with("FEATURES=!teleport"), Some(ImageError::MissingFeature("of an unknown name")));
    assert_eq!(with("VIRT_ENTRY=0x700000"), Some(ImageError::BadEntry));
    assert_eq!(with("ELF_PADDR_OFFSET=0x900000"), Some(ImageError::BadSegment));
    for page in ["0x4", "0xfffffffffffff", "0xffffffffffffffff", "0"] {
        let error = with(&format!("HYPERCALL_PAGE={page}"));
        assert_eq!(error, Some(ImageError::BadNote("HYPERCALL_PAGE")), "{page}");
    }
    assert_eq!(with("\n"), Some(ImageError::MissingNote("XEN_VERSION")), "no text");
}

/// `0x`, `0` and nothing in front, as C has them.
#[test]
fn numbers_in_words_are_cs() {
    for base in ["0x800000", "040000000", "8388608"] {
        let words = format!("XEN_VER=xen-3.0,VIRT_BASE={base},VIRT_ENTRY=8392704");
        let file = worded(words.as_bytes());
        let image = parse(&file).unwrap();
        assert_eq!((image.virt_base, image.entry), (BASE, BASE + 0x1000), "{base}");
    }
    assert_eq!(complaint(&worded(b"XEN_VER=xen-3.0,VIRT_BASE=0x")), Some(ImageError::BadEntry), "0, then");
}

#[test]
fn words_stand_in_the_section_of_their_name() {
    let missing = Some(ImageError::MissingNote("XEN_VERSION"));
    let whole = worded(WORDS);
    let table = word(&whole, 40) as usize;
    for (at, byte, expected) in [
        // The name's place, the section's kind, and which section has the names.
        (table + 2 * 64, 8, missing),
        (table + 2 * 64 + 4, NOBITS as u8, missing),
        (62, 9, missing),
        (62, 1, missing),
        (62, 3, None),
    ] {
        let mut file = whole.clone();
        file[at] = byte;
        assert_eq!(complaint(&file), expected, "{at:#x}: {byte}");
    }
}

/// A kernel with its one header for notes, and these more, which all lead to the same bytes.
fn with_headers(count: u16, at: u64, size: u64) -> Vec<u8> {
    let mut file = kernel::image_at(kernel::VIRT_BASE, 0x3000);
    let mut header = file[NOTES..NOTES + 56].to_vec();
    header[OFFSET..OFFSET + 8].copy_from_slice(&at.to_le_bytes());
    header[LENGTH..LENGTH + 8].copy_from_slice(&size.to_le_bytes());
    let (first, place) = (file[64..NOTES + 56].to_vec(), file.len() as u64);
    file.extend(first);
    file.extend(header.repeat(usize::from(count)));
    file[32..40].copy_from_slice(&place.to_le_bytes());
    file[56..58].copy_from_slice(&(count + 2).to_le_bytes());
    file
}

/// As many headers as there can be, all with the same megabytes: reading them all would take hours.
#[test]
fn headers_that_all_lead_to_the_same_notes_are_too_many() {
    let too_many = Some(ImageError::TooManyNotes);
    assert_eq!(complaint(&with_headers(63, 0, 0)), None);
    assert_eq!(complaint(&with_headers(64, 0, 0)), too_many);
    assert_eq!(complaint(&with_headers(u16::MAX - 2, 0, 0)), too_many);
    let mut file = with_headers(2, 0, 0);
    let (size, at) = (word(&file, NOTES + LENGTH), file.len() - 2 * 56);
    file.resize(2 << 20, 0);
    let mut sized = |first: u64, second: u64| {
        for (header, size) in [(at, first), (at + 56, second)] {
            file[header + OFFSET..][..8].copy_from_slice(&(1u64 << 20).to_le_bytes());
            file[header + LENGTH..][..8].copy_from_slice(&size.to_le_bytes());
        }
        complaint(&file)
    };
    assert_eq!(sized(1 << 20, 0), too_many);
    assert_eq!(sized((1 << 20) - size, 0), None);
    assert_eq!(sized((1 << 20) - size, 1), too_many);
    assert_eq!(sized(1, (1 << 20) - size), too_many);
}

#[test]
fn sections_have_the_same_limits() {
    let too_many = Some(ImageError::TooManyNotes);
    let with = |count: usize, kind: u32, size: u64| {
        let mut file = kernel::image_at(kernel::VIRT_BASE, 0x3000);
        let (at, length) = (word(&file, NOTES + OFFSET), word(&file, NOTES + LENGTH));
        file.resize(2 << 20, 0);
        let mut sections = vec![Section { kind: NOTE, name: b"", at, size: length }];
        sections.extend((0..count).map(|_| Section { kind, name: b"", at: 1 << 20, size }));
        complaint(&with_sections(file, &sections))
    };
    assert_eq!(with(63, NOTE, 0), None);
    assert_eq!(with(64, NOTE, 0), too_many);
    assert_eq!(with(1000, PROGBITS, 0), None, "others don't count");
    assert_eq!(with(1, NOTE, 1 << 20), too_many);
    let mut words = WORDS.to_vec();
    words.resize((1 << 20) + 1, 0);
    assert_eq!(complaint(&worded(&words)), too_many);
    words.pop();
    assert_eq!(complaint(&worded(&words)), None);
}

/// Of a name no more is looked at than what has to be there; the zero byte at its end belongs to it.
#[test]
fn a_name_that_is_cut_off_is_another() {
    let mut file = worded(WORDS);
    let size = word(&file, 40) as usize + 3 * 64 + LENGTH;
    let names = word(&file, size);
    assert_eq!(complaint(&file), None);
    file[size..size + 8].copy_from_slice(&(names - 1).to_le_bytes());
    assert_eq!(complaint(&file), Some(ImageError::MissingNote("XEN_VERSION")));
}

/// As Xen takes it: Mini-OS says nothing of a base, and is linked at 0.
#[test]
fn a_base_that_is_not_said_is_zero() {
    let mut file = kernel::image_at(0, 0x3000);
    let notes = word(&file, NOTES + OFFSET) as usize;
    let note =
        (notes..).step_by(4).find(|at| file[*at..*at + 4] == elfnote::VIRT_BASE.to_le_bytes()).unwrap();
    file[note] = 99;
    assert_eq!(parse(&file).map(|image| image.virt_base), Ok(0));
    file[note] = elfnote::PADDR_OFFSET as u8;
    assert_eq!(complaint(&file), Some(ImageError::MissingNote("VIRT_BASE")));
}
