//! Multicalls of what only x86 has to say about traps and segments, measured as `guest_core::bench::stretches` does.

use guest_core::architecture::Architecture;
use guest_core::bench::multicalls::{Repeated, repeat};
use guest_core::guest::Guest;
use guest_core::hypercalls::call;
use guest_core::pages::Page;
use penumbra_abi::Errno;
use penumbra_abi::hypercall::{SET_GDT, SET_TRAP_TABLE};

use crate::machine::X86;

/// The vector that gets handlers, again and again: nothing raises it.
const UNUSED_VECTOR: u64 = 255;
/// Handlers in a table: with the entry that ends it, a page.
const HANDLERS: usize = 255;
/// Pages of a guest's part of the global table, and descriptors on a page.
const PAGES: usize = 14;
const ON_A_PAGE: usize = 512;
/// Writable data for ring 3, flat, and loaded before.
const DATA: u64 = 0x00cf_f300_0000_ffff;

/// What is measured as `multicall-trap-table`: 255 handlers are registered over and over.
pub fn trap_tables(guest: &Guest<X86>) -> Result<(), Errno> {
    let table = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    for index in 0..HANDLERS {
        guest.write(&table, index * 2, UNUSED_VECTOR);
        guest.write(&table, index * 2 + 1, X86::VIRT_BASE);
    }
    let result = repeat(guest, &[[SET_TRAP_TABLE, guest.address(&table), 0, 0]], Ok(()));
    guest.pages.free(table);
    result
}

/// What is measured as `multicall-set-gdt`: 14 pages that are descriptors already.
pub fn known_tables(guest: &Guest<X86>) -> Result<(), Errno> {
    with_pages(guest, |set| repeat(guest, &[set], Ok(())))
}

/// What is measured as `multicall-set-gdt-anew`: 14 pages that are taken away each time, and have to be judged each time.
pub fn new_tables(guest: &Guest<X86>) -> Result<(), Errno> {
    with_pages(guest, |set| repeat(guest, &[set, [SET_GDT, 0, 0, 0]], Ok(())))
}

/// Does `work` with the hypercall that makes 14 full pages the global table.
fn with_pages(guest: &Guest<X86>, work: impl FnOnce(Repeated) -> Result<(), Errno>) -> Result<(), Errno> {
    let list = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    let pages = [const { None }; PAGES].map(|_: Option<Page>| guest.zeroed_page());
    for (index, page) in pages.iter().flatten().enumerate() {
        (0..ON_A_PAGE).for_each(|descriptor| guest.write(page, descriptor, DATA));
        guest.set_writable(page, false)?;
        guest.write(&list, index, guest.frame(page));
    }
    let result = work([SET_GDT, guest.address(&list), (PAGES * ON_A_PAGE) as u64, 0]);
    call::<X86>(SET_GDT, &[0, 0])?;
    for page in pages.into_iter().flatten() {
        guest.release(page)?;
    }
    guest.pages.free(list);
    result
}
