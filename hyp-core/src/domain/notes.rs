//! What a kernel says about itself in its ELF notes.
//!
//! Each note has a number (`elfnote.h` of Xen's public headers) and a content: a number of 4 or 8 bytes, or a text that ends with a
//! zero byte. The notes are a claim like everything else in the file. A note whose content makes no sense counts as absent; numbers
//! that aren't known are passed over. Kernels from before there were notes say the same in words: [`Notes::read_words`].

use elf::endian::LittleEndian;
use elf::file::Class;
use elf::note::{Note, NoteIterator};
use penumbra_abi::elfnote;

use super::image::ImageError;
use crate::address::PAGE_BYTES;

/// Notes begin on multiples of this, whatever the file says: so Xen reads them, and so kernels are made that boot on Xen.
const ALIGNMENT: usize = 4;
/// The ABI that Penumbra speaks, as `XEN_VERSION` begins when it names it.
const ABI: &str = "xen-3.0";
/// The operating system by whose name a Linux kernel is known.
const LINUX: &str = "linux";
/// The system that asks a store for its disks before anything else, and waits for the answer.
const ASKS_A_STORE: &str = "GRUB";
/// Features that a kernel may insist on (`!` in front of one, in `FEATURES`).
const PROVIDED: [&str; 2] = ["writable_page_tables", "pae_pgdir_above_4gb"];
/// Features that there are, but not here: named in the complaint.
const REFUSED: [&str; 5] = [
    "writable_descriptor_tables",
    "auto_translated_physmap",
    "supervisor_mode_kernel",
    "dom0",
    "hvm_callback_vector",
];

/// The notes that matter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Notes<'a> {
    pub(super) entry: Option<u64>,
    virt_base: Option<u64>,
    paddr_offset: Option<u64>,
    /// Notes that were found.
    count: usize,
    /// They aren't notes, but the words of a kernel from before there were any.
    are_words: bool,
    version: Option<&'a str>,
    features: &'a str,
    /// What else the kernel asks for.
    pub wishes: Wishes,
    /// What it says about itself.
    pub identity: Identity<'a>,
}

/// What a kernel asks for beyond the usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `INIT_P2M`: where its P2M shall be mapped, guest-virtual; a multiple of a page.
    pub p2m_base: Option<u64>,
    /// `MOD_START_PFN`: its ramdisk needn't be mapped, the first frame's pseudo-physical number is enough.
    pub takes_unmapped_ramdisk: bool,
    /// `HYPERCALL_PAGE`: where the hypervisor shall write code that issues hypercalls, guest-virtual; a multiple of a page.
    pub hypercall_page: Option<u64>,
    /// `HV_START_LOW`: the lowest address that it leaves to the hypervisor.
    pub hypervisor_start: Option<u64>,
}

/// What a kernel says about itself, for people who read the log. Only printable text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity<'a> {
    /// `GUEST_OS`.
    pub system: &'a str,
    /// `GUEST_VERSION`.
    pub version: &'a str,
    /// `LOADER`.
    pub loader: &'a str,
    /// `SUPPORTED_FEATURES`: one bit for each `XENFEAT_*`.
    pub features: u64,
}

impl Identity<'_> {
    /// Whether it is a Linux kernel, as far as it says so itself.
    pub fn is_linux(&self) -> bool {
        self.system == LINUX
    }

    /// Whether it can't start without an answer from a store.
    pub fn needs_store(&self) -> bool {
        self.system == ASKS_A_STORE
    }
}

impl<'a> Notes<'a> {
    /// Whether there are none of Xen's.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Where pseudo-physical frame 0 is mapped; 0 unless something else is said, as Xen takes it.
    pub(super) fn virt_base(&self) -> u64 {
        self.virt_base.unwrap_or(0)
    }

    /// What is taken off the file's physical addresses. In the days of words those were virtual ones.
    pub(super) fn paddr_offset(&self) -> u64 {
        let unsaid = if self.are_words { self.virt_base() } else { 0 };
        self.paddr_offset.unwrap_or(unsaid)
    }

    /// Adds the notes of one segment or section to those that were found before; what comes later holds.
    pub(super) fn read(&mut self, content: &'a [u8]) {
        for note in NoteIterator::new(LittleEndian, Class::ELF64, ALIGNMENT, content) {
            let Note::Unknown(note) = note else { continue };
            if note.name != elfnote::OWNER && note.name != b"Xen" {
                continue;
            }
            self.count = self.count.saturating_add(1);
            if let Ok(kind) = u32::try_from(note.n_type) {
                self.take(kind, note.desc);
            }
        }
    }

    /// Reads what kernels from before there were notes have in the section `__xen_guest`: words `NAME=VALUE` parted by commas, up to a zero
    /// byte. Numbers are as C writes them; the page of hypercalls is counted in pages from `VIRT_BASE`.
    pub(super) fn read_words(&mut self, content: &'a [u8]) {
        self.are_words = true;
        let mut hypercall_page = None;
        for word in text(content).split(',') {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name {
                "VIRT_BASE" => self.virt_base = written(value),
                "VIRT_ENTRY" => self.entry = written(value),
                "ELF_PADDR_OFFSET" => self.paddr_offset = written(value),
                "HYPERCALL_PAGE" => hypercall_page = written(value),
                "XEN_VER" => self.version = Some(value),
                "GUEST_OS" => self.identity.system = value,
                "GUEST_VER" => self.identity.version = value,
                "LOADER" => self.identity.loader = value,
                "FEATURES" => self.features = value,
                _ => {}
            }
        }
        let place = |page: u64| page.checked_mul(PAGE_BYTES)?.checked_add(self.virt_base());
        // A place that no number can say is no place within the kernel.
        self.wishes.hypercall_page = hypercall_page.map(|page| place(page).unwrap_or(u64::MAX));
    }

    fn take(&mut self, kind: u32, content: &'a [u8]) {
        match kind {
            elfnote::ENTRY => self.entry = number(content),
            elfnote::VIRT_BASE => self.virt_base = number(content),
            elfnote::PADDR_OFFSET => self.paddr_offset = number(content),
            elfnote::XEN_VERSION => self.version = Some(text(content)),
            elfnote::GUEST_OS => self.identity.system = text(content),
            elfnote::GUEST_VERSION => self.identity.version = text(content),
            elfnote::LOADER => self.identity.loader = text(content),
            elfnote::FEATURES => self.features = text(content),
            elfnote::SUPPORTED_FEATURES => self.identity.features = number(content).unwrap_or(0),
            elfnote::INIT_P2M => self.wishes.p2m_base = number(content),
            elfnote::MOD_START_PFN => {
                self.wishes.takes_unmapped_ramdisk = number(content).is_some_and(|yes| yes != 0);
            }
            elfnote::HYPERCALL_PAGE => self.wishes.hypercall_page = number(content),
            elfnote::HV_START_LOW => self.wishes.hypervisor_start = number(content),
            _ => {}
        }
    }

    /// Whether this can be a kernel for Penumbra at all.
    pub(super) fn check(&self) -> Result<(), ImageError> {
        let version = self.version.ok_or(ImageError::MissingNote("XEN_VERSION"))?;
        if !version.starts_with(ABI) {
            return Err(ImageError::OtherAbi);
        }
        if self.paddr_offset.is_some() && self.virt_base.is_none() {
            return Err(ImageError::MissingNote("VIRT_BASE"));
        }
        let is_odd =
            |address: Option<u64>| address.is_some_and(|address| !address.is_multiple_of(PAGE_BYTES));
        if is_odd(self.wishes.p2m_base) {
            return Err(ImageError::BadNote("INIT_P2M"));
        }
        if is_odd(self.wishes.hypercall_page) {
            return Err(ImageError::BadNote("HYPERCALL_PAGE"));
        }
        let mut required = self.features.split('|').filter_map(|feature| feature.trim().strip_prefix('!'));
        if let Some(missing) = required.find(|feature| !PROVIDED.contains(feature)) {
            let name = REFUSED.into_iter().find(|name| *name == missing);
            return Err(ImageError::MissingFeature(name.unwrap_or("of an unknown name")));
        }
        Ok(())
    }
}

/// A note's number: 8 bytes, or 4.
fn number(bytes: &[u8]) -> Option<u64> {
    match bytes.len() {
        8 => Some(u64::from_le_bytes(bytes.try_into().ok()?)),
        4 => Some(u64::from(u32::from_le_bytes(bytes.try_into().ok()?))),
        _ => None,
    }
}

/// A number as C writes it: hexadecimal behind `0x`, octal behind `0`.
fn written(text: &str) -> Option<u64> {
    match (text.strip_prefix("0x"), text.strip_prefix('0').filter(|rest| !rest.is_empty())) {
        (Some(digits), _) => u64::from_str_radix(digits, 16).ok(),
        (None, Some(digits)) => u64::from_str_radix(digits, 8).ok(),
        (None, None) => text.parse().ok(),
    }
}

/// A note's text, up to its first zero byte; empty if it isn't one that can be shown.
fn text(bytes: &[u8]) -> &str {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or(&[]);
    let shown = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    core::str::from_utf8(bytes).ok().filter(|_| bytes.iter().all(shown)).unwrap_or("")
}
