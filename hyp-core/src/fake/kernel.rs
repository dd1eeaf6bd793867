//! A kernel file for the fake machine: the smallest ELF with Xen's notes that the domain builder accepts.

use penumbra_abi::elfnote;

/// The number that the file has for its machine (x86-64's: tools can show the file).
pub const ELF_MACHINE: u16 = 62;
/// Where the kernel wants pseudo-physical frame 0.
pub const VIRT_BASE: u64 = 0x80_0000;
/// Frames that a domain with this kernel needs at least.
pub const MINIMUM_FRAMES: u64 = 1024;

/// The file: one segment of `size` bytes at pseudo-physical 0x1000, each byte 0x90.
pub fn image(size: usize) -> Vec<u8> {
    image_at(VIRT_BASE, size)
}

/// The same, with pseudo-physical frame 0 at `base`.
pub fn image_at(base: u64, size: usize) -> Vec<u8> {
    image_with(base, size, &[])
}

/// The same, with more notes: number and content of each. What comes later holds.
pub fn image_with(base: u64, size: usize, more: &[(u32, &[u8])]) -> Vec<u8> {
    let mut notes = [
        note(elfnote::XEN_VERSION, b"xen-3.0\0"),
        note(elfnote::VIRT_BASE, &base.to_le_bytes()),
        note(elfnote::ENTRY, &(base + 0x1000).to_le_bytes()),
    ]
    .concat();
    notes.extend(more.iter().flat_map(|(kind, content)| note(*kind, content)));
    let headers = 64 + 2 * 56;
    let mut file = file_header();
    file.extend(segment(base, 1, (headers + notes.len()) as u64, 0x1000, size as u64));
    file.extend(segment(base, 4, headers as u64, 0, notes.len() as u64));
    file.extend(notes);
    file.extend(std::iter::repeat_n(0x90, size));
    file
}

fn file_header() -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend([2, 0]);
    header.extend(ELF_MACHINE.to_le_bytes());
    header.extend([1, 0, 0, 0]);
    header.extend([0; 8]);
    header.extend(64u64.to_le_bytes());
    header.extend([0; 8]);
    header.extend([0; 4]);
    header.extend([64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    header
}

fn segment(base: u64, kind: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    let mut header = [kind.to_le_bytes(), 7u32.to_le_bytes()].concat();
    for value in [offset, base + address, address, size, size, 4] {
        header.extend(value.to_le_bytes());
    }
    header
}

fn note(kind: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = [4u32.to_le_bytes(), (content.len() as u32).to_le_bytes(), kind.to_le_bytes()].concat();
    bytes.extend(elfnote::OWNER);
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
