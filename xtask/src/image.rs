//! From what the compiler leaves to what boot loaders take.
//!
//! - aarch64: the loader of an arm64 `Image` copies the file to memory as it is, so the ELF file's loadable segments
//!   are laid out flat by physical address ([`flat`]). The guest kernel exists in both forms: as an ELF file for the domain builder,
//!   and flat (`guest-el1.img`) for a machine without a hypervisor.
//! - x86-64: QEMU's multiboot loader takes only 32-bit ELF files, and GRUB's wants the multiboot header early in the
//!   file, so the segments are written again under 32-bit headers ([`multiboot`]).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use object::Endianness;
use object::elf::{EM_386, ET_EXEC, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader as _};
use object::write::elf::{FileHeader as Header, ProgramHeader, Writer};

use crate::build::{self, Program};
use crate::cli::{Arch, ImageOptions, Profile};
use crate::iso;
use crate::toolchain::Toolchain;
use crate::workspace;

/// The artefacts of one architecture.
#[derive(Clone)]
pub struct Artefacts {
    pub hypervisor: PathBuf,
    pub guest: PathBuf,
}

/// `cargo xtask image`.
pub fn command(options: &ImageOptions) -> Result<()> {
    check(options)?;
    let (mut failures, mut for_disc) = (Vec::new(), None);
    for arch in Arch::chosen(options.arch) {
        let toolchain = Toolchain::ready(arch)?;
        // One program that does not build keeps nobody from taking the others.
        let programs = [Program::Hypervisor, Program::Guest];
        let made = programs.map(|program| make(&toolchain, program, arch, options.profile));
        for path in made.iter().flatten() {
            println!("{}  {} bytes", workspace::shown(path), size(path)?);
        }
        match made {
            [Ok(hypervisor), Ok(guest)] if arch == Arch::X86_64 => {
                for_disc = Some(Artefacts { hypervisor, guest })
            }
            made => failures.extend(made.into_iter().filter_map(Result::err)),
        }
    }
    for failure in &failures {
        eprintln!("{failure:#}");
    }
    ensure!(failures.is_empty(), "{} of the artefacts could not be made", failures.len());
    for_disc.map_or(Ok(()), |artefacts| disc(options, &artefacts))
}

/// What can be told before anything is built.
fn check(options: &ImageOptions) -> Result<()> {
    let Some(guest) = &options.guest else { return Ok(()) };
    ensure!(options.arch != Some(Arch::Aarch64), "--guest goes onto the disc, which is x86_64's");
    let kernel = (guest != "debian").then(|| PathBuf::from(guest));
    kernel.iter().chain(&options.initrd).try_for_each(|file| workspace::is_file(file))
}

/// The disc with GRUB on it. Where nothing can be installed, it is left out, unless somebody wants a kernel on it.
fn disc(options: &ImageOptions, artefacts: &Artefacts) -> Result<()> {
    if let Err(error) = iso::tools() {
        ensure!(options.guest.is_none(), "{error:#}");
        println!("penumbra.iso is left out: {error:#}");
        return Ok(());
    }
    let disc = workspace::artefacts()?.join("penumbra.iso");
    iso::make(artefacts, iso::Guest::chosen(options)?.as_ref(), &disc)?;
    println!("{}  {} bytes", workspace::shown(&disc), size(&disc)?);
    Ok(())
}

/// Makes both artefacts of one architecture.
pub fn artefacts(arch: Arch, profile: Profile) -> Result<Artefacts> {
    let toolchain = Toolchain::ready(arch)?;
    Ok(Artefacts {
        hypervisor: make(&toolchain, Program::Hypervisor, arch, profile)?,
        guest: make(&toolchain, Program::Guest, arch, profile)?,
    })
}

/// Makes the hypervisor with the oracle, for tests.
pub fn oracle(profile: Profile) -> Result<PathBuf> {
    make(&Toolchain::ready(Arch::Aarch64)?, Program::Oracle, Arch::Aarch64, profile)
}

/// A file's length in bytes.
pub fn size(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?.len())
}

fn make(toolchain: &Toolchain, program: Program, arch: Arch, profile: Profile) -> Result<PathBuf> {
    let elf = build::build(toolchain, program, arch, profile)?;
    let content = fs::read(&elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let (name, content) = match (program, arch) {
        (Program::Hypervisor, Arch::Aarch64) => ("hyp-el2.img".into(), flat(&content)),
        (Program::Oracle, Arch::Aarch64) => ("hyp-el2-oracle.img".into(), flat(&content)),
        (Program::Oracle, Arch::X86_64) => bail!("there is no oracle for {arch}"),
        (Program::Hypervisor, Arch::X86_64) => ("hyp-x86.elf".into(), multiboot(&content)),
        (Program::Guest, _) => (format!("{}.elf", build::package(program, arch)), Ok(content)),
    };
    let content = content.with_context(|| format!("{} cannot be made from {}", name, elf.display()))?;
    // What is built with every check is for tests, and larger.
    if program == Program::Hypervisor && profile == Profile::Release {
        check_size(&name, content.len())?;
    }
    if (program, arch) == (Program::Guest, Arch::Aarch64) {
        // The same kernel for a machine without a hypervisor.
        let bare = workspace::artefacts()?.join("guest-el1.img");
        workspace::replace(&bare, &flat(&content).context("guest-el1.img cannot be made")?)?;
    }
    let path = workspace::artefacts()?.join(name);
    workspace::replace(&path, &content)?;
    Ok(path)
}

/// A hypervisor is small enough to be read: its image stays below this.
const HYPERVISOR_LIMIT: usize = 512 << 10;

fn check_size(name: &str, length: usize) -> Result<()> {
    ensure!(
        length < HYPERVISOR_LIMIT,
        "{name} is too large: {length} bytes, and it must stay below {HYPERVISOR_LIMIT}"
    );
    Ok(())
}

/// A loadable segment: what the file holds of it, and how much memory it takes.
struct Segment<'data> {
    physical: u64,
    memory_size: u64,
    flags: u32,
    content: &'data [u8],
}

/// An ELF file's entry address and its loadable segments by physical address.
fn segments(elf: &[u8]) -> Result<(u64, Vec<Segment<'_>>)> {
    let header = FileHeader64::<Endianness>::parse(elf).context("not a 64-bit ELF file")?;
    let endian = header.endian()?;
    let mut segments = Vec::new();
    for segment in header.program_headers(endian, elf)?.iter().filter(|s| s.p_type(endian) == PT_LOAD) {
        let Ok(content) = segment.data(endian, elf) else {
            bail!("a segment reaches beyond the end of the file")
        };
        segments.push(Segment {
            physical: segment.p_paddr(endian),
            memory_size: segment.p_memsz(endian),
            flags: segment.p_flags(endian),
            content,
        });
    }
    segments.retain(|segment| segment.memory_size > 0);
    segments.sort_by_key(|segment| segment.physical);
    ensure!(!segments.is_empty(), "no loadable segment");
    Ok((header.e_entry(endian), segments))
}

/// Where `ARM\x64` stands in an arm64 Image, and where its size in memory does (Linux,
/// Documentation/arch/arm64/booting.rst).
const IMAGE_MAGIC: (usize, &[u8]) = (56, b"ARM\x64");
const IMAGE_SIZE: usize = 16;
/// No image of ours comes near this; a stray segment far away would.
const IMAGE_LIMIT: u64 = 64 << 20;

/// The flat arm64 Image: segments by physical address, gaps filled with zeros, trailing zero memory left out.
pub fn flat(elf: &[u8]) -> Result<Vec<u8>> {
    let (_, segments) = segments(elf)?;
    let start = segments.first().map_or(0, |segment| segment.physical);
    let mut image = Vec::new();
    let mut end = start;
    for segment in &segments {
        ensure!(segment.physical >= end, "two segments overlap at {:#x}", segment.physical);
        end = segment.physical.checked_add(segment.memory_size).context("a segment wraps around")?;
        ensure!(end - start <= IMAGE_LIMIT, "the segment at {:#x} is too far away", segment.physical);
        if !segment.content.is_empty() {
            image.resize(usize::try_from(segment.physical - start)?, 0);
            image.extend_from_slice(segment.content);
        }
    }
    check_image_header(&image, end - start)?;
    Ok(image)
}

fn check_image_header(image: &[u8], memory_size: u64) -> Result<()> {
    let (at, magic) = IMAGE_MAGIC;
    ensure!(image.get(at..at + magic.len()) == Some(magic), "no arm64 Image header at the first segment");
    let stated =
        image.get(IMAGE_SIZE..IMAGE_SIZE + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    ensure!(
        stated.is_some_and(|stated| stated >= memory_size),
        "the Image header states {stated:?} bytes of memory, but the program takes {memory_size}"
    );
    Ok(())
}

/// Multiboot 1: the header's magic number, and within how many bytes of the file it must be (Multiboot
/// Specification 0.6.96, 3.1).
const MULTIBOOT_MAGIC: [u8; 4] = 0x1BAD_B002_u32.to_le_bytes();
const MULTIBOOT_REACH: usize = 8192;

/// The same segments as a 32-bit ELF file whose addresses are physical. The entry address is taken as it is.
pub fn multiboot(elf: &[u8]) -> Result<Vec<u8>> {
    let (entry, segments) = segments(elf)?;
    ensure!(u32::try_from(entry).is_ok(), "the entry {entry:#x} is no 32-bit physical address");
    for segment in &segments {
        let end = segment.physical.checked_add(segment.memory_size);
        ensure!(
            end.is_some_and(|end| end <= 1 << 32),
            "the segment at {:#x} is beyond 4 GiB",
            segment.physical
        );
    }
    let mut buffer = Vec::new();
    let mut writer = Writer::new(Endianness::Little, false, &mut buffer);
    writer.reserve_file_header();
    writer.reserve_program_headers(u32::try_from(segments.len())?);
    // Each segment's content starts at the same offset within a page in the file as in memory, as ELF asks.
    let offsets: Vec<usize> =
        segments.iter().map(|segment| reserve(&mut writer, segment)).collect::<Result<_>>()?;
    write_headers(&mut writer, entry, &segments, &offsets)?;
    for (segment, offset) in segments.iter().zip(&offsets) {
        writer.pad_until(*offset);
        writer.write(segment.content);
    }
    check_multiboot_header(&buffer)?;
    Ok(buffer)
}

const PAGE: usize = 4096;

fn reserve(writer: &mut Writer<'_>, segment: &Segment<'_>) -> Result<usize> {
    let within_page = usize::try_from(segment.physical)? % PAGE;
    let page = writer.reserved_len().saturating_sub(within_page).div_ceil(PAGE) * PAGE;
    writer.reserve_until(page + within_page);
    Ok(writer.reserve(segment.content.len(), 1))
}

fn write_headers(
    writer: &mut Writer<'_>,
    entry: u64,
    segments: &[Segment<'_>],
    offsets: &[usize],
) -> Result<()> {
    writer.write_file_header(&Header {
        os_abi: 0,
        abi_version: 0,
        e_type: ET_EXEC,
        e_machine: EM_386,
        e_entry: entry,
        e_flags: 0,
    })?;
    writer.write_align_program_headers();
    for (segment, offset) in segments.iter().zip(offsets) {
        writer.write_program_header(&ProgramHeader {
            p_type: PT_LOAD,
            p_flags: segment.flags,
            p_offset: u64::try_from(*offset)?,
            p_vaddr: segment.physical,
            p_paddr: segment.physical,
            p_filesz: u64::try_from(segment.content.len())?,
            p_memsz: segment.memory_size,
            p_align: PAGE as u64,
        });
    }
    Ok(())
}

fn check_multiboot_header(file: &[u8]) -> Result<()> {
    let reach = &file[..file.len().min(MULTIBOOT_REACH)];
    let found = reach.chunks_exact(4).any(|word| word == MULTIBOOT_MAGIC);
    ensure!(found, "no multiboot header in the first {MULTIBOOT_REACH} bytes");
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};
    use object::elf::{EM_X86_64, FileHeader32};

    /// A 64-bit ELF file with these segments: physical address, content, memory size.
    fn elf64(entry: u64, segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut buffer = Vec::new();
        let mut writer = Writer::new(Endianness::Little, true, &mut buffer);
        writer.reserve_file_header();
        writer.reserve_program_headers(segments.len() as u32);
        let offsets: Vec<usize> =
            segments.iter().map(|(_, content, _)| writer.reserve(content.len(), 8)).collect();
        let header = Header {
            os_abi: 0,
            abi_version: 0,
            e_type: ET_EXEC,
            e_machine: EM_X86_64,
            e_entry: entry,
            e_flags: 0,
        };
        writer.write_file_header(&header).unwrap();
        writer.write_align_program_headers();
        for ((physical, content, memory_size), offset) in segments.iter().zip(&offsets) {
            writer.write_program_header(&ProgramHeader {
                p_type: PT_LOAD,
                p_flags: 5,
                p_offset: *offset as u64,
                p_vaddr: 0xffff_8300_0000_0000 + physical,
                p_paddr: *physical,
                p_filesz: content.len() as u64,
                p_memsz: *memory_size,
                p_align: 8,
            });
        }
        for ((_, content, _), offset) in segments.iter().zip(&offsets) {
            writer.pad_until(*offset);
            writer.write(content);
        }
        buffer
    }

    fn image_head(memory_size: u64) -> Vec<u8> {
        let mut head = vec![0; 64];
        head[IMAGE_SIZE..IMAGE_SIZE + 8].copy_from_slice(&memory_size.to_le_bytes());
        head[56..60].copy_from_slice(b"ARM\x64");
        head
    }

    #[test]
    fn a_flat_image_has_each_segment_at_its_place_and_no_trailing_zeros() {
        let head = image_head(0x5000);
        let image =
            flat(&elf64(0, &[(0x1000, &[7; 16], 16), (0, &head, 64), (0x2000, &[], 0x3000)])).unwrap();
        assert_eq!(image.len(), 0x1010);
        assert_eq!(&image[..64], &head[..]);
        assert!(image[64..0x1000].iter().all(|byte| *byte == 0));
        assert_eq!(&image[0x1000..], &[7; 16]);
    }

    #[test]
    fn a_flat_image_must_say_how_much_memory_it_takes() {
        assert!(flat(&elf64(0, &[(0, &image_head(0x1000), 0x1001)])).is_err());
        assert!(flat(&elf64(0, &[(0, &[0; 64], 64)])).is_err(), "no header");
    }

    #[test]
    fn overlapping_and_far_segments_are_refused() {
        let head = image_head(u64::MAX);
        assert!(flat(&elf64(0, &[(0, &head, 64), (32, &[1], 1)])).is_err());
        assert!(flat(&elf64(0, &[(0, &head, 64), (1 << 40, &[1], 1)])).is_err());
        assert!(flat(&elf64(0, &[(0, &head, u64::MAX)])).is_err());
    }

    #[test]
    fn a_multiboot_file_is_32_bit_and_by_physical_address() {
        let elf =
            multiboot(&elf64(0x10_0010, &[(0x10_0000, &MULTIBOOT_MAGIC, 4), (0x20_0123, &[9; 3], 0x1000)]))
                .unwrap();
        let header = FileHeader32::<Endianness>::parse(&elf[..]).unwrap();
        let endian = header.endian().unwrap();
        assert_eq!((header.e_machine(endian), header.e_entry(endian)), (EM_386, 0x10_0010));
        let segments = header.program_headers(endian, &elf[..]).unwrap();
        assert_eq!(segments.len(), 2);
        assert_eq!((segments[1].p_paddr(endian), segments[1].p_memsz(endian)), (0x20_0123, 0x1000));
        assert_eq!(segments[1].p_offset(endian) % 4096, 0x123);
        assert_eq!(segments[1].data(endian, &elf[..]).unwrap(), [9; 3]);
    }

    #[test]
    fn a_multiboot_file_needs_its_header_and_32_bit_addresses() {
        assert!(multiboot(&elf64(0, &[(0x10_0000, &[0; 16], 16)])).is_err());
        assert!(multiboot(&elf64(1 << 32, &[(0x10_0000, &MULTIBOOT_MAGIC, 4)])).is_err());
        assert!(multiboot(&elf64(0, &[(0x1_4000_0000, &MULTIBOOT_MAGIC, 4)])).is_err());
    }

    #[test]
    fn a_file_that_is_not_there_is_named_before_anything_is_built() {
        let options = |line: &str| {
            let words = ["xtask", "image"].into_iter().chain(line.split_whitespace());
            match Cli::parse_from(words).command {
                Command::Image(options) => options,
                _ => panic!("another command"),
            }
        };
        let file = workspace::root().join("Cargo.toml").display().to_string();
        for line in ["", "--guest debian", &format!("--guest {file} --initrd {file}")] {
            assert!(check(&options(line)).is_ok(), "{line}");
        }
        let typo =
            ["--guest nosuch", "--guest debian --initrd nosuch", &format!("--guest {file} --initrd nosuch")]
                .map(|line| check(&options(line)).unwrap_err().to_string());
        assert_eq!(typo, ["there is no file nosuch"; 3]);
        assert!(check(&options("--arch aarch64 --guest debian")).is_err());
    }

    #[test]
    fn a_large_hypervisor_is_refused() {
        assert!(check_size("h", HYPERVISOR_LIMIT - 1).is_ok());
        assert!(check_size("h", HYPERVISOR_LIMIT).is_err());
    }

    #[test]
    fn other_files_are_refused() {
        assert!(flat(b"text").is_err());
        let whole = elf64(0, &[(0, &image_head(64), 64)]);
        for length in 0..whole.len() {
            assert!(flat(&whole[..length]).is_err(), "cut to {length} bytes");
        }
    }
}
