//! Files for bad boot loaders: our own kernels, changed where something is to be noticed.

use anyhow::{Context, Result, ensure};
use machine_tests::case::{Board, Change, Damage, Packing};
use object::elf::{PT_LOAD, PT_NOTE, PT_NULL};
use unpack::{Format, pack};

/// Where in an ELF file its program headers are, and how many there are (System V gABI, chapter 4).
const HEADERS: usize = 32;
const HEADER_COUNT: usize = 56;
/// Bytes of one, and where its physical address and its length in memory are.
const HEADER: usize = 56;
const ADDRESS: usize = 24;
const LENGTH: usize = 40;

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
            for header in headers(&bytes, PT_NOTE)? {
                bytes[header..][..4].copy_from_slice(&PT_NULL.to_le_bytes());
            }
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

/// Where the program headers of this kind are.
fn headers(bytes: &[u8], kind: u32) -> Result<Vec<usize>> {
    let first = u64::from_le_bytes(bytes[HEADERS..][..8].try_into()?) as usize;
    let count = u16::from_le_bytes(bytes[HEADER_COUNT..][..2].try_into()?);
    let all = (0..usize::from(count)).map(|number| first + number * HEADER);
    Ok(all.filter(|at| bytes[*at..].starts_with(&kind.to_le_bytes())).collect())
}

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
        // Behind the stream's header, so that tables and lengths are hit: content alone has no check in two of the formats.
        Damage::Corrupt => payload[30..middle].fill(0xff),
        Damage::TooLarge => payload[trailer..].fill(0xff),
        Damage::WrongLength => {
            payload[trailer..].copy_from_slice(&(kernel.len() as u32 - 1).to_le_bytes());
        }
        Damage::NoFormat => payload[..4].fill(0),
        Damage::None | Damage::CutShort | Damage::TooOld => {}
    }
    let mut file = pack::bzimage(&payload);
    if damage == Damage::CutShort {
        file.truncate(file.len() / 2);
    }
    if damage == Damage::TooOld {
        file[0x206] = 7;
    }
    file
}
