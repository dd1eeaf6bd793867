//! Domain 1 as the control domain gets to see it: a list of machine frames, and foreign mappings of them.

use super::published::{MAGIC, Stage, Word};
use crate::architecture::{Architecture, PAGE_SIZE};
use crate::guest::Guest;
use crate::hypercalls;
use crate::pages::{Page, linear_pfn};
use core::mem::offset_of;
use penumbra_abi::Errno;
use penumbra_abi::start_info::StartInfo;

/// The domain that the experiment looks at.
pub const SUBJECT: u16 = 1;
/// How often the control domain yields while it waits for domain 1.
const PATIENCE: u32 = 400_000;
/// Frame numbers asked for at a time.
const CHUNK: usize = 512;
/// Domain 1's start info lies just after its kernel: its PFN is below this.
const START_INFO_LIMIT: u64 = 4096;

/// Domain 1, found. [`Self::close`] gives its window back.
pub struct Subject<'a, A: Architecture> {
    guest: &'a Guest<A>,
    /// A page of ours whose address serves as a window onto foreign frames.
    window: Page,
    store_frame: u64,
    p2m_pfn: u64,
}

impl<'a, A: Architecture> Subject<'a, A> {
    /// Finds domain 1's start info in its memory, and waits until it has published its numbers.
    ///
    /// # Errors
    /// What couldn't be done.
    pub fn find(guest: &'a Guest<A>) -> Result<Self, &'static str> {
        let window = guest.zeroed_page().ok_or("a page for the window")?;
        let mut subject = Self { guest, window, store_frame: 0, p2m_pfn: 0 };
        let start_info = subject.find_start_info().ok_or("there is a domain 1 with a start-info page")?;
        let field = |offset: usize| subject.foreign_word(start_info, offset / 8);
        let (store, list) = (field(offset_of!(StartInfo, store_mfn)), field(offset_of!(StartInfo, mfn_list)));
        (subject.store_frame, subject.p2m_pfn) = match (store, list) {
            (Ok(store), Ok(list)) => (store, linear_pfn(A::VIRT_BASE, list)),
            _ => return Err("domain 1's start info can be read"),
        };
        let shown = subject.wait_for(Stage::Shown) && subject.word(Word::Magic) == MAGIC;
        if shown { Ok(subject) } else { Err("domain 1 published its numbers") }
    }

    /// Gives the page of the window back.
    pub fn close(self) {
        self.guest.pages.free(self.window);
    }

    /// The machine frame of domain 1's start info: the first frame that begins as start info does.
    fn find_start_info(&self) -> Option<u64> {
        let begins_as_start_info = |mfn: u64| {
            let field = |offset: usize| self.foreign_word(mfn, offset / 8).unwrap_or(0);
            let is_near = self.guest.try_m2p(mfn).is_some_and(|pfn| pfn < START_INFO_LIMIT);
            is_near
                && field(0).to_le_bytes().starts_with(b"xen-3.0-")
                && field(offset_of!(StartInfo, nr_pages)) > 0
        };
        Self::find_in_list(begins_as_start_info).ok()?
    }

    /// How many machine frames domain 1 has, by counting its list.
    ///
    /// # Errors
    /// Why the hypervisor doesn't give the list.
    pub fn count() -> Result<u64, Errno> {
        let mut total = 0;
        Self::find_in_list(|_| {
            total += 1;
            false
        })?;
        Ok(total)
    }

    /// The first frame in the list of domain 1's frames that is `wanted`.
    ///
    /// # Errors
    /// Why the hypervisor doesn't give the list.
    pub fn find_in_list(mut wanted: impl FnMut(u64) -> bool) -> Result<Option<u64>, Errno> {
        let mut position = 0;
        loop {
            let mut frames = [0; CHUNK];
            let count = hypercalls::memory_list::<A>(SUBJECT, position, &mut frames)?;
            let found = frames.iter().copied().take(count).find(|&frame| wanted(frame));
            if found.is_some() || count < CHUNK {
                return Ok(found);
            }
            position += count as u64;
        }
    }

    /// The frame that is page `pfn` of domain 1's, by the list and the M2P.
    fn frame_of(&self, pfn: u64) -> Result<u64, Errno> {
        Self::find_in_list(|mfn| self.guest.try_m2p(mfn) == Some(pfn))?.ok_or(Errno::ENOENT)
    }

    /// Reads word `index` of foreign frame `mfn`.
    ///
    /// # Errors
    /// Why the frame can't be mapped.
    pub fn foreign_word(&self, mfn: u64, index: usize) -> Result<u64, Errno> {
        self.with_window(mfn, false, |address| A::read_word(address + index as u64 * 8))
    }

    /// Maps foreign frame `mfn` for the time of `action`, then puts the window's own page back.
    fn with_window<R>(&self, mfn: u64, writable: bool, action: impl FnOnce(u64) -> R) -> Result<R, Errno> {
        let address = self.guest.address(&self.window);
        let own = A::leaf(self.guest.frame(&self.window), true);
        hypercalls::update_va_mapping_otherdomain::<A>(address, A::leaf(mfn, writable), SUBJECT)?;
        let result = action(address);
        hypercalls::update_va_mapping::<A>(address, own).map(|()| result)
    }

    /// A word that domain 1 published; all ones when it can't be read.
    pub fn word(&self, word: Word) -> u64 {
        self.foreign_word(self.store_frame, word as usize).unwrap_or(!0)
    }

    /// Writes a word of the published page.
    ///
    /// # Errors
    /// Why the page can't be mapped writable.
    pub fn write(&self, word: Word, value: u64) -> Result<(), Errno> {
        let write = |address: u64| A::write_word(address + word as u64 * 8, value);
        self.with_window(self.store_frame, true, write)
    }

    /// Entry `pfn` of domain 1's own P2M, which lies in its memory.
    ///
    /// # Errors
    /// Why it can't be read.
    pub fn p2m(&self, pfn: u64) -> Result<u64, Errno> {
        let per_page = PAGE_SIZE / 8;
        let page = self.frame_of(self.p2m_pfn + pfn / per_page)?;
        self.foreign_word(page, (pfn % per_page) as usize)
    }

    /// Waits until domain 1 has come to `stage`; false when it doesn't, or can't be looked at any more.
    pub fn wait_for(&self, stage: Stage) -> bool {
        (0..PATIENCE)
            .map_while(|_| {
                hypercalls::yield_cpu::<A>();
                self.foreign_word(self.store_frame, Word::Stage as usize).ok()
            })
            .any(|reached| reached >= stage as u64)
    }
}
