//! Multicalls of what only x86 has to say about traps and segments, measured as `guest_core::bench::stretches` does.

use guest_core::architecture::Architecture;
use guest_core::bench::given_back::GivenBack;
use guest_core::bench::multicalls::{Repeated, repeat};
use guest_core::bench::window::Window;
use guest_core::guest::Guest;
use guest_core::hypercalls::{address_of, call, mmuext, update_entry};
use guest_core::pages::Page;
use penumbra_abi::hypercall::{MMUEXT_OP, SET_GDT, SET_TRAP_TABLE};
use penumbra_abi::mmu::{MMUEXT_SET_LDT, MmuextOp};
use penumbra_abi::{DOMID_SELF, Errno};

use crate::machine::X86;

/// The vector that gets handlers, again and again: nothing raises it.
const UNUSED_VECTOR: u64 = 255;
/// Handlers in a table: with the entry that ends it, a page.
const HANDLERS: usize = 255;
/// Pages of a guest's part of the global table, and of the local one; descriptors on a page.
const GLOBAL_PAGES: usize = 14;
const LOCAL_PAGES: usize = 16;
const ON_A_PAGE: usize = 512;
/// Writable data, flat, for ring 0 and never loaded: the hypervisor makes it one for ring 3 that was loaded before.
const DATA: u64 = 0x00cf_9200_0000_ffff;

/// What is measured as `multicall-trap-table`: 255 handlers are registered over and over.
pub fn trap_tables(guest: &Guest<X86>) -> Result<(), Errno> {
    let table = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    for index in 0..HANDLERS {
        guest.write(&table, index * 2, UNUSED_VECTOR);
        guest.write(&table, index * 2 + 1, X86::VIRT_BASE);
    }
    let result = repeat(guest, &[[SET_TRAP_TABLE, guest.address(&table), 0, 0, 0]], Ok(()));
    guest.pages.free(table);
    result
}

/// What is measured as `multicall-set-gdt`: 14 pages that are descriptors already.
pub fn known_tables(guest: &Guest<X86>) -> Result<(), Errno> {
    with_pages(guest, |set| repeat(guest, &[set], Ok(())))
}

/// What is measured as `multicall-set-gdt-anew`: 14 pages that are taken away each time, and have to be judged each time.
pub fn new_tables(guest: &Guest<X86>) -> Result<(), Errno> {
    with_pages(guest, |set| repeat(guest, &[set, [SET_GDT, 0, 0, 0, 0]], Ok(())))
}

/// Does `work` with the hypercall that makes 14 full pages the global table.
fn with_pages(guest: &Guest<X86>, work: impl FnOnce(Repeated) -> Result<(), Errno>) -> Result<(), Errno> {
    let list = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    let pages = full_pages::<GLOBAL_PAGES>(guest)?;
    pages.iter().flatten().enumerate().for_each(|(index, page)| guest.write(&list, index, guest.frame(page)));
    let result = work([SET_GDT, guest.address(&list), (GLOBAL_PAGES * ON_A_PAGE) as u64, 0, 0]);
    call::<X86>(SET_GDT, &[0, 0])?;
    guest.pages.free(list);
    result.and(release(guest, pages))
}

/// What is measured as `multicall-set-ldt-anew`: 16 pages become the local table and are taken away, in turn.
pub fn new_local_tables(guest: &Guest<X86>) -> Result<(), Errno> {
    with_local_pages(guest, |operation| {
        let operations = [operation, MmuextOp { argument2: 0, ..operation }];
        let calls = operations.each_ref().map(|one| [MMUEXT_OP, address_of(one), 1, 0, DOMID_SELF.into()]);
        repeat(guest, &calls, Ok(()))
    })
}

/// Does `work` with the operation that makes 16 full pages the local table.
fn with_local_pages(
    guest: &Guest<X86>,
    work: impl FnOnce(MmuextOp) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let pages = full_pages::<LOCAL_PAGES>(guest)?;
    let window = Window::open_number(guest, 1)?;
    for (index, page) in pages.iter().flatten().enumerate() {
        update_entry::<X86>(window.slot(index as u64), X86::leaf(guest.frame(page), false))?;
    }
    let result = work(MmuextOp {
        command: MMUEXT_SET_LDT,
        pad: 0,
        argument1: window.address(0),
        argument2: (LOCAL_PAGES * ON_A_PAGE) as u64,
    });
    mmuext::<X86>(MMUEXT_SET_LDT, 0, 0)?;
    window.close()?;
    result.and(release(guest, pages))
}

/// What is measured as `set-gdt-then-superpage`: the end of a table with a superpage that was given back, after 14 pages to be judged.
pub fn global_table_then_superpage(guest: &Guest<X86>) -> Result<(), Errno> {
    let given = GivenBack::new(guest, 511)?;
    with_pages(guest, |[operation, list, entries, ..]| {
        given.unpinned_after(&[[operation, list, entries, 0, 0, 0]], None)
    })?;
    given.take_again()
}

/// What is measured as `set-ldt-then-superpage`: the same, after 15 pages.
pub fn local_table_then_superpage(guest: &Guest<X86>) -> Result<(), Errno> {
    let given = GivenBack::new(guest, 511)?;
    with_local_pages(guest, |operation| {
        let few = MmuextOp { argument2: operation.argument2 - ON_A_PAGE as u64, ..operation };
        given.unpinned_after(&[[MMUEXT_OP, address_of(&few), 1, 0, DOMID_SELF.into(), 0]], None)
    })?;
    given.take_again()
}

/// Pages full of descriptors, which are mapped to be read.
fn full_pages<const COUNT: usize>(guest: &Guest<X86>) -> Result<[Option<Page>; COUNT], Errno> {
    let pages = [const { None }; COUNT].map(|_: Option<Page>| guest.zeroed_page());
    for page in pages.iter().flatten() {
        (0..ON_A_PAGE).for_each(|descriptor| guest.write(page, descriptor, DATA));
        guest.set_writable(page, false)?;
    }
    Ok(pages)
}

fn release<const COUNT: usize>(guest: &Guest<X86>, pages: [Option<Page>; COUNT]) -> Result<(), Errno> {
    pages.into_iter().flatten().try_for_each(|page| guest.release(page))
}
