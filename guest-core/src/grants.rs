//! Pages lent to other domains: one's own grant table, what is borrowed, and the part of a lender.
//!
//! The word `lend` makes a domain lend two pages to the control domain: one to be written to, by which they talk, signalling each
//! other by an event channel, and one to be read. They find each other by what both know: the lender is domain 1, the grant
//! references are [`TALK`] and [`TEXT`], and the lender's port stands in the page.

use crate::architecture::{Architecture, PAGE_SIZE};
use crate::events::{Events, alloc_unbound, send, unmask};
use crate::guest::Guest;
use crate::hypercalls::{address_of_mut, call, mmuext, update_va_mapping, yield_cpu};
use crate::pages::Page;
use crate::say;
use core::marker::PhantomData;
use penumbra_abi::grant_table::{
    self as abi, GTF_READING, GTF_WRITING, GrantEntry, GrantStatus, MapGrantRef, SetupTable, UnmapGrantRef,
};
use penumbra_abi::mmu::{MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// Grant reference of the page by which the domains talk.
pub const TALK: u32 = 8;
/// Grant reference of the page that is to be read.
pub const TEXT: u32 = 9;
/// Words of the page by which they talk: what is asked, and what is answered.
pub const QUESTION: u64 = 0;
/// See [`QUESTION`].
pub const ANSWER: u64 = 1;
/// Holds [`HELLO`] once the lender listens.
pub const GREETING: u64 = 2;
/// The lender's port.
pub const PORT: u64 = 3;
/// The lender listens.
pub const HELLO: u64 = 0x6e75_6d62_7261;
/// The question after which the lender takes the page back. Its answer are the entry's flags, while the page is still lent.
pub const ENOUGH: u64 = u64::MAX;
/// The control domain's number.
const CONTROL: u16 = 0;
/// How often to yield while waiting.
const PATIENCE: u32 = 1_000_000;

/// `grant_table_op` on one structure, which holds the answer then.
///
/// # Errors
/// Why the hypervisor refuses to look at it.
pub fn operation<A: Architecture, T>(command: u32, mut structure: T) -> Result<T, Errno> {
    let arguments = [u64::from(command), address_of_mut(&mut structure), 1];
    call::<A>(number::GRANT_TABLE_OP, &arguments).map(|_| structure)
}

/// Maps a grant of `lender` at `address`, which is that of an entry if the flags say so.
///
/// # Errors
/// What it came to.
pub fn map<A: Architecture>(
    lender: u16,
    reference: u32,
    address: u64,
    flags: u32,
) -> Result<MapGrantRef, GrantStatus> {
    let flags = flags | abi::GNTMAP_HOST_MAP;
    let request = MapGrantRef { host_addr: address, flags, reference, dom: lender, ..MapGrantRef::default() };
    match operation::<A, _>(abi::GNTTABOP_MAP_GRANT_REF, request) {
        Ok(answer) if answer.status == GrantStatus::OKAY => Ok(answer),
        Ok(answer) => Err(answer.status),
        Err(_) => Err(GrantStatus::GENERAL_ERROR),
    }
}

/// Undoes a mapping; what it came to.
pub fn unmap<A: Architecture>(handle: u32, address: u64) -> GrantStatus {
    let request = UnmapGrantRef { host_addr: address, handle, ..UnmapGrantRef::default() };
    let answer = operation::<A, _>(abi::GNTTABOP_UNMAP_GRANT_REF, request);
    answer.map_or(GrantStatus::GENERAL_ERROR, |answer| answer.status)
}

/// The first frame of one's own grant table, mapped.
pub struct Table<A> {
    page: Page,
    address: u64,
    architecture: PhantomData<A>,
}

impl<A: Architecture> Table<A> {
    /// Has the table set up, and maps it in the place of a page.
    pub fn open(guest: &Guest<A>) -> Option<Self> {
        let mut frame = 0u64;
        let request = SetupTable {
            dom: DOMID_SELF,
            nr_frames: 1,
            frame_list: address_of_mut(&mut frame),
            ..SetupTable::default()
        };
        let answer = operation::<A, _>(abi::GNTTABOP_SETUP_TABLE, request).ok()?;
        (answer.status == GrantStatus::OKAY).then_some(())?;
        let page = guest.pages.allocate()?;
        let address = guest.address(&page);
        update_va_mapping::<A>(address, A::leaf(frame, true)).ok()?;
        Some(Self { page, address, architecture: PhantomData })
    }

    /// Gives the page back.
    ///
    /// # Errors
    /// Why the hypervisor refuses.
    pub fn close(self, guest: &Guest<A>) -> Result<(), Errno> {
        guest.release(self.page)
    }

    /// Writes an entry, as a whole.
    pub fn set(&self, reference: u32, entry: GrantEntry) {
        A::write_word(self.address + u64::from(reference) * 8, entry.to_word());
    }

    /// What an entry holds.
    pub fn entry(&self, reference: u32) -> GrantEntry {
        GrantEntry::from_word(A::read_word(self.address + u64::from(reference) * 8))
    }

    /// Whether somebody uses a grant.
    pub fn is_used(&self, reference: u32) -> bool {
        self.entry(reference).flags & (GTF_READING | GTF_WRITING) != 0
    }
}

/// What stands in a word of the page that is to be read.
pub const fn text(index: u64) -> u64 {
    index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ HELLO
}

/// What the lender answers.
pub const fn answer(question: u64) -> u64 {
    question.rotate_left(7) ^ 0x5a5a
}

/// Yields until `done`; `false` when patience is at its end.
pub fn wait_until<A: Architecture>(mut done: impl FnMut() -> bool) -> bool {
    (0..PATIENCE).any(|_| {
        yield_cpu::<A>();
        done()
    })
}

/// What the word `lend` asks a domain for. Afterwards the page that is to be read is still lent.
pub fn lend<A: Architecture>(guest: &Guest<A>) {
    let (Some(table), Some(talk), Some(read)) =
        (Table::open(guest), guest.zeroed_page(), guest.zeroed_page())
    else {
        return say!(A, "lend: no table, or no pages");
    };
    (0..PAGE_SIZE / 8).for_each(|index| guest.write(&read, index as usize, text(index)));
    let (Some(events), Ok(port)) = (Events::open(guest), alloc_unbound::<A>(DOMID_SELF, CONTROL)) else {
        return say!(A, "lend: no events");
    };
    let _ = unmask::<A>(port);
    guest.write(&talk, PORT as usize, u64::from(port));
    guest.write(&talk, GREETING as usize, HELLO);
    table.set(TEXT, GrantEntry::access(CONTROL, guest.frame(&read) as u32, false));
    // Last: whoever finds this finds everything.
    table.set(TALK, GrantEntry::access(CONTROL, guest.frame(&talk) as u32, true));
    let word = |index: u64| guest.read(&talk, index as usize);
    let mut last = 0;
    while last != ENOUGH {
        events.wait_until(|| word(QUESTION) != last);
        last = word(QUESTION);
        let said = if last == ENOUGH { u64::from(table.entry(TALK).flags) } else { answer(last) };
        guest.write(&talk, ANSWER as usize, said);
        let _ = send::<A>(port);
    }
    let _ = events.close();
    take_back(guest, &table, talk);
}

/// Once the page is back, it is so for certain: it can become a page table.
fn take_back<A: Architecture>(guest: &Guest<A>, table: &Table<A>, page: Page) {
    let frame = guest.frame(&page);
    let _ = guest.set_writable(&page, false);
    let early = mmuext::<A>(MMUEXT_PIN_L1_TABLE, frame, 0);
    if early.is_ok() && table.is_used(TALK) {
        say!(A, "lend: ALLOWED a page table of a page that is lent");
    }
    let back = wait_until::<A>(|| !table.is_used(TALK));
    table.set(TALK, GrantEntry::default());
    let _ = guest.set_writable(&page, true);
    (0..PAGE_SIZE / 8).for_each(|index| guest.write(&page, index as usize, 0));
    let pinned = guest.set_writable(&page, false).and_then(|()| mmuext::<A>(MMUEXT_PIN_L1_TABLE, frame, 0));
    let freed = mmuext::<A>(MMUEXT_UNPIN_TABLE, frame, 0).and_then(|()| guest.release(page));
    say!(A, "lend: taken back: {back}, a table since: {}, freed: {}", pinned.is_ok(), freed.is_ok());
}
