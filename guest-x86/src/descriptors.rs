//! A kernel's own segment descriptors: what it may have in them, and what it must not get by them.
//!
//! The dangerous ones are gates, which lead into ring 0, and pages that can still be written after they were judged.

use core::arch::asm;

use guest_core::architecture::Architecture;
use guest_core::guest::Guest;
use guest_core::hypercalls::{self, address_of, call, mmuext};
use guest_core::pages::Page;
use guest_core::tests::Check;
use penumbra_abi::Errno;
use penumbra_abi::hypercall::{SET_GDT, UPDATE_DESCRIPTOR};
use penumbra_abi::mmu::MMUEXT_SET_LDT;
use penumbra_abi::x86_64::FIRST_RESERVED_GDT_ENTRY;

use crate::machine::X86;
use crate::traps::faults;

const REFUSED: &[Errno] = &[Errno::EINVAL, Errno::EBUSY, Errno::EPERM];
/// Bits of a descriptor: its privilege level, and whether it is present.
const RING3: u64 = 3 << 45;
const PRESENT: u64 = 1 << 47;
/// Writable data for ring 0, flat.
const DATA: u64 = 0x00cf_9200_0000_ffff;
/// 64-bit code for ring 0 that takes on its caller's level.
const CONFORMING: u64 = 0x00af_9e00_0000_ffff;
/// A 64-bit call gate for ring 3 to the hypervisor's code segment, its first half.
const CALL_GATE: u64 = 0x8200_ec00_e008_0000;
/// A task-state segment, and a local table.
const TASK_STATE: u64 = 0x0000_8900_0000_0067;
const LOCAL_TABLE: u64 = 0x0000_8200_0000_ffff;
/// Descriptors on a page.
const COUNT: u64 = 512;

/// Runs the test `descriptors`.
pub fn run(guest: &Guest<X86>, check: &mut Check<X86>) {
    let Some(page) = guest.zeroed_page() else { return check.that("there is a page for the test", false) };
    limits(guest, check, &page);
    hostile(guest, check, &page);
    table(guest, check, &page);
    updates(guest, check, &page);
    check.done("take the table away", set_gdt(&[], 0));
    check.done("the page is an ordinary one again", guest.set_writable(&page, true));
    local(guest, check, &page);
    check.done("the page is an ordinary one at last", guest.set_writable(&page, true));
    guest.pages.free(page);
}

fn set_gdt(frames: &[u64], entries: u64) -> Result<(), Errno> {
    call::<X86>(SET_GDT, &[address_of(frames), entries]).map(drop)
}

fn update(guest: &Guest<X86>, page: &Page, index: u64, descriptor: u64) -> Result<(), Errno> {
    call::<X86>(UPDATE_DESCRIPTOR, &[(guest.frame(page) << 12) | (index * 8), descriptor]).map(drop)
}

/// Loads `ds`: whether that faulted.
fn refuses(selector: u64) -> bool {
    faults!("mov ds, {x:x}"; x = in(reg) selector)
}

fn data_segment() -> u64 {
    let selector: u64;
    // SAFETY: reading a selector changes nothing.
    unsafe { asm!("mov {:e}, ds", out(reg) selector, options(nomem, nostack, preserves_flags)) };
    selector
}

fn limits(guest: &Guest<X86>, check: &mut Check<X86>, page: &Page) {
    let frame = guest.frame(page);
    check.refused("a page that is mapped writable", set_gdt(&[frame], COUNT), REFUSED);
    check.done("make the page read-only", guest.set_writable(page, false));
    let most = u64::from(FIRST_RESERVED_GDT_ENTRY);
    check.refused("more descriptors than there are places", set_gdt(&[frame; 15], most + 1), REFUSED);
    check.refused("a device's frame", set_gdt(&[X86::DEVICE_FRAME], COUNT), REFUSED);
    check.refused("a table's frame", set_gdt(&[guest.root_frame()], COUNT), REFUSED);
    check.refused(
        "a second page that can't be one",
        set_gdt(&[frame, X86::DEVICE_FRAME], 2 * COUNT),
        REFUSED,
    );
    check.done("nothing is left of that", guest.set_writable(page, true));
}

/// Descriptors that lead into ring 0, or that the hypervisor would use for itself.
fn hostile(guest: &Guest<X86>, check: &mut Check<X86>, page: &Page) {
    for (what, descriptor) in
        [("a call gate", CALL_GATE), ("a task-state segment", TASK_STATE), ("a local table", LOCAL_TABLE)]
    {
        guest.write(page, 7, descriptor);
        check.done("make it read-only", guest.set_writable(page, false));
        check.refused(what, set_gdt(&[guest.frame(page)], COUNT), REFUSED);
        check.done("make it writable", guest.set_writable(page, true));
    }
    guest.write(page, 7, 0);
}

fn table(guest: &Guest<X86>, check: &mut Check<X86>, page: &Page) {
    guest.write(page, 2, DATA);
    guest.write(page, 3, CONFORMING);
    // Not present: it can hold what it likes.
    guest.write(page, 4, CALL_GATE & !PRESENT);
    check.done("make it read-only", guest.set_writable(page, false));
    check.done("take it as table", set_gdt(&[guest.frame(page)], COUNT));
    check.refused("it can't be written now", guest.set_writable(page, true), REFUSED);
    check.that("not by a store either", !X86::try_write_word(guest.address(page) + 7 * 8, CALL_GATE));
    check.that("data became ring 3's", guest.read(page, 2) & RING3 == RING3);
    check.that("conforming code too", guest.read(page, 3) & RING3 == RING3);
    check.that("load the data segment", !refuses((2 * 8) | 3));
    hypercalls::yield_cpu::<X86>();
    check.that("it survives other domains' turns", data_segment() == (2 * 8) | 3);
    check.that("what isn't present can't be loaded", refuses((4 * 8) | 3));
    check.that("the hypervisor's own segments can't", refuses(0xe010));
    check.that("but its segments for ring 3 can", !refuses(0xe02b));
    check.that("nor can anything behind the page", refuses((600 * 8) | 3));
    check.that("back to no data segment", !refuses(0));
}

fn updates(guest: &Guest<X86>, check: &mut Check<X86>, page: &Page) {
    check.refused("update to a call gate", update(guest, page, 5, CALL_GATE), REFUSED);
    check.done("update to a data segment", update(guest, page, 5, DATA));
    check.that("it can be loaded", !refuses((5 * 8) | 3));
    check.done("update to nothing while it is loaded", update(guest, page, 5, 0));
    hypercalls::yield_cpu::<X86>();
    check.that("the kernel is still there", matches!(data_segment(), 0 | 0x2b));
    check.that("and it can't be loaded any more", refuses((5 * 8) | 3));
    check.that("no data segment", !refuses(0));
    let root = call::<X86>(UPDATE_DESCRIPTOR, &[guest.root_frame() << 12, DATA]).map(drop);
    check.refused("an update of a page table", root, REFUSED);
    let unaligned = call::<X86>(UPDATE_DESCRIPTOR, &[guest.frame(page) << 12 | 4, DATA]).map(drop);
    check.refused("an update between two descriptors", unaligned, REFUSED);
}

fn local(guest: &Guest<X86>, check: &mut Check<X86>, page: &Page) {
    let set = |entries: u64| mmuext::<X86>(MMUEXT_SET_LDT, guest.address(page), entries);
    guest.write(page, 1, DATA);
    check.refused("more local descriptors than there can be", set(8193), REFUSED);
    check.refused(
        "a local table between pages",
        mmuext::<X86>(MMUEXT_SET_LDT, guest.address(page) + 8, 1),
        REFUSED,
    );
    check.done("make it read-only", guest.set_writable(page, false));
    check.done("take it as local table", set(COUNT));
    check.that("load a segment of it", !refuses(1 << 3 | 7));
    check.refused("it can't be written now", guest.set_writable(page, true), REFUSED);
    check.refused("update to a call gate", update(guest, page, 2, CALL_GATE), REFUSED);
    check.that("no data segment", !refuses(0));
    check.done("take it away", set(0));
    check.that("its segments are gone", refuses(1 << 3 | 7));
}
