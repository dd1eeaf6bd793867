//! A piece of this process's memory, page by page: mapped, protected, moved, given back, and filled with words that tell where they
//! belong.
//!
//! Every access is volatile, so that each one written here is one that the processor does. An access to a page without the right ends in a
//! signal, as it should; an address outside of the piece is a mistake of the caller and ends the process.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use nix::libc::c_void;
use nix::sys::mman::{MRemapFlags, MapFlags, MmapAdvise, ProtFlags};
use nix::sys::mman::{madvise, mmap_anonymous, mprotect, mremap, munmap};

use crate::Spoil;

/// Bytes of a page.
pub const PAGE: usize = 4096;
const WORDS: usize = PAGE / size_of::<u64>();

/// Who sees what is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// This process; a fork gets a copy.
    Private,
    /// Its children, too.
    Shared,
}

/// What may be done with pages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    None,
    Read,
    Write,
}

impl Rights {
    fn flags(self) -> ProtFlags {
        match self {
            Rights::None => ProtFlags::PROT_NONE,
            Rights::Read => ProtFlags::PROT_READ,
            Rights::Write => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        }
    }
}

/// Anonymous memory, given back when dropped.
pub struct Mapping {
    start: NonNull<c_void>,
    pages: usize,
}

// SAFETY: the memory stays mapped for as long as the value lives, wherever the value is.
unsafe impl Send for Mapping {}
// SAFETY: every access is one volatile word at a time; what threads may make of it is agreed upon among them.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// So many pages, readable and writable, zeros.
    pub fn new(pages: usize, sharing: Sharing) -> Result<Mapping> {
        let length = NonZeroUsize::new(pages * PAGE).context("a mapping of no pages")?;
        let sharing = match sharing {
            Sharing::Private => MapFlags::MAP_PRIVATE,
            Sharing::Shared => MapFlags::MAP_SHARED,
        };
        // SAFETY: new memory at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { mmap_anonymous(None, length, Rights::Write.flags(), sharing) };
        Ok(Mapping { start: start.context("mmap")?, pages })
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The address of a page.
    pub fn address(&self, page: usize) -> usize {
        self.place(page, 0) as usize
    }

    fn place(&self, page: usize, word: usize) -> *mut u64 {
        assert!(page < self.pages && word < WORDS, "page {page}, word {word} of {} pages", self.pages);
        // SAFETY: inside of the mapping, as just said.
        unsafe { self.start.as_ptr().cast::<u64>().add(page * WORDS + word) }
    }

    fn part(&self, pages: &Range<usize>) -> Result<(NonNull<c_void>, usize)> {
        ensure!(pages.start < pages.end && pages.end <= self.pages, "no pages {pages:?} of {}", self.pages);
        let start = NonNull::new(self.place(pages.start, 0).cast()).context("a mapping at address zero")?;
        Ok((start, (pages.end - pages.start) * PAGE))
    }

    /// One word of a page.
    pub fn read(&self, page: usize, word: usize) -> u64 {
        // SAFETY: inside of the mapping and aligned; if the page may not be read, that is a signal, and nothing else.
        unsafe { self.place(page, word).read_volatile() }
    }

    /// Writes one word of a page.
    pub fn write(&self, page: usize, word: usize, value: u64) {
        // SAFETY: inside of the mapping and aligned, and no Rust reference leads there; if the page may not be written, that is a signal.
        unsafe { self.place(page, word).write_volatile(value) }
    }

    /// Fills a page with words that tell the page's number, their place in it and `seed`.
    pub fn fill(&self, page: usize, seed: u64, spoil: Spoil) {
        // A few words tell pages apart as well as all would, and leave time for more pages.
        for word in (0..WORDS).step_by(STEP) {
            self.write(page, word, spoil.only(word == 0).word(pattern(page, word, seed)));
        }
    }

    /// Whether a page is as [`Mapping::fill`] leaves it when it has the number `page_then`.
    pub fn check(&self, page: usize, page_then: usize, seed: u64) -> Result<()> {
        self.expect(page, |word| pattern(page_then, word, seed))
    }

    /// Whether there is nothing but zeros in a page.
    pub fn check_zeros(&self, page: usize) -> Result<()> {
        self.expect(page, |_| 0)
    }

    fn expect(&self, page: usize, expected: impl Fn(usize) -> u64) -> Result<()> {
        for word in (0..WORDS).step_by(STEP) {
            let (found, expected) = (self.read(page, word), expected(word));
            ensure!(found == expected, "page {page}, word {word}: {found:#x} instead of {expected:#x}");
        }
        Ok(())
    }

    /// Changes what may be done with pages.
    pub fn protect(&self, pages: Range<usize>, rights: Rights) -> Result<()> {
        let (start, length) = self.part(&pages)?;
        // SAFETY: the pages are this mapping's, and no Rust reference leads there.
        unsafe { mprotect(start, length, rights.flags()) }.with_context(|| format!("mprotect of {pages:?}"))
    }

    /// Gives pages back but keeps their addresses: they are zeros afterwards, if the mapping is private.
    pub fn forget(&self, pages: Range<usize>) -> Result<()> {
        let (start, length) = self.part(&pages)?;
        // SAFETY: as above.
        unsafe { madvise(start, length, MmapAdvise::MADV_DONTNEED) }
            .with_context(|| format!("madvise of {pages:?}"))
    }

    /// Takes pages out; an access there is a fault from then on, until something else is mapped there.
    pub fn unmap(&self, pages: Range<usize>) -> Result<()> {
        let (start, length) = self.part(&pages)?;
        // SAFETY: as above.
        unsafe { munmap(start, length) }.with_context(|| format!("munmap of {pages:?}"))
    }

    /// Maps fresh memory where pages were taken out.
    pub fn map_again(&self, pages: Range<usize>) -> Result<()> {
        let (start, length) = self.part(&pages)?;
        let (at, length) = (NonZeroUsize::new(start.as_ptr() as usize), NonZeroUsize::new(length));
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED;
        // SAFETY: the addresses are this mapping's, and no Rust reference leads there.
        let mapped = unsafe { mmap_anonymous(at, length.context("no pages")?, Rights::Write.flags(), flags) };
        mapped.with_context(|| format!("mmap of {pages:?}"))?;
        Ok(())
    }

    /// Changes the number of pages; the addresses may change.
    pub fn resize(&mut self, pages: usize) -> Result<()> {
        let (old, new) = (self.pages * PAGE, pages * PAGE);
        // SAFETY: the whole mapping moves, and nothing holds an address of it but this value.
        self.start = unsafe { mremap(self.start, old, new, MRemapFlags::MREMAP_MAYMOVE, None) }
            .with_context(|| format!("mremap to {pages} pages"))?;
        self.pages = pages;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody can reach the memory any more. If that fails, the process's end gives it back.
        let _ = unsafe { munmap(self.start, self.pages * PAGE) };
    }
}

/// Every so many words of a page are filled and checked: 8 words of each page.
const STEP: usize = 64;

/// A word that is another for each page, place and seed (the finalizer of SplitMix64).
fn pattern(page: usize, word: usize, seed: u64) -> u64 {
    let mut x = seed ^ ((page as u64) << 20) ^ word as u64 ^ 0x9e37_79b9_7f4a_7c15;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
