//! A kernel writes to its own page tables as if they were ordinary memory, with the help of its fault handler (Xen 2.0's way).
//!
//! On a write fault the handler asks the hypervisor to take the table out of its tree, which makes the table writable; then
//! writes cost nothing. On a fault where the table is missing it asks for the table back: the hypervisor looks at all of it first.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};
use guest_core::Architecture;
use guest_core::architecture::TABLE_ENTRIES;
use guest_core::guest::Guest;
use guest_core::hypercalls::{call, update_entry};
use guest_core::pages::Page;
use guest_core::tests::Check;
use penumbra_abi::hypercall::{PENUMBRA, PENUMBRA_HOOK, PENUMBRA_UNHOOK};

use crate::machine::{Arm, Below, Kernel};
use crate::saved_registers::{restore_registers, save_registers};
use crate::traps;

/// A slot of the root that nobody uses.
const SLOT: u64 = 301;
const START: u64 = 0xffff_0000_0000_0000 | SLOT << 39;
/// Tables of level 1 that are out of the tree at the same time.
const TABLES: usize = 3;

/// Tables that the handler has had taken out, and put back.
static UNHOOKED: AtomicU64 = AtomicU64::new(0);
static HOOKED: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
    .section .text.traps, "ax"
    .balign 2048
    .globl table_write_vectors
    table_write_vectors:
        .rept 4
        .balign 128
        b trap_fatal
        .endr
        .balign 128
        b table_write_fault
        .balign 128
        b trap_event
        .rept 10
        .balign 128
        b trap_fatal
        .endr

    table_write_fault:
    "#,
    save_registers!(176),
    r#"
        str x30, [sp, #160]
        mrs x0, esr_el1
        mrs x1, far_el1
        bl {handle}
        cmp x0, #0
        ldr x30, [sp, #160]
    "#,
    restore_registers!(176),
    r#"
        // The flags of what was interrupted come back with PSTATE.
        b.eq trap_synchronous
        eret
    "#,
    handle = sym handle,
);

unsafe extern "C" {
    static table_write_vectors: [u8; 2048];
}

/// Whether the access can be tried again.
extern "C" fn handle(syndrome: u64, address: u64) -> u64 {
    const DATA_ABORT: u64 = 0x25;
    const WRITE: u64 = 1 << 6;
    if syndrome >> 26 != DATA_ABORT {
        return 0;
    }
    // The fault's kind, without its level: 1 for a missing entry, 3 for missing rights.
    let (operation, counter) = match (syndrome >> 2 & 0xf, syndrome & WRITE != 0) {
        (3, true) => (PENUMBRA_UNHOOK, &UNHOOKED),
        (1, _) => (PENUMBRA_HOOK, &HOOKED),
        _ => return 0,
    };
    if call::<Arm>(PENUMBRA, &[operation, address & !0xfff]).is_err() {
        return 0;
    }
    counter.fetch_add(1, Ordering::Relaxed);
    // What the TLB knows of the address is of before.
    // SAFETY: forgetting a translation changes nothing.
    unsafe {
        asm!("tlbi vaae1, {}", "dsb nsh", "isb", in(reg) address >> 12 & ((1 << 44) - 1), options(nostack))
    };
    1
}

/// Runs the test `table-writes`.
pub fn run<B: Below>(guest: &Guest<Kernel<B>>, check: &mut Check<Kernel<B>>) {
    let Some(tree) = Tree::build(guest, check) else { return check.that("pages for tables", false) };
    check.that(
        "without a handler a write to a table is a fault",
        !Kernel::<B>::try_write_word(tree.entry(guest, 0, 5), tree.good),
    );
    // SAFETY: the vectors are code of this kernel.
    let install =
        |address: u64| unsafe { asm!("msr vbar_el1, {}", "isb", in(reg) address, options(nostack)) };
    install((&raw const table_write_vectors) as u64);
    tree.free_writes(guest, check);
    tree.bad_entry(guest, check);
    traps::install();
    check.that(
        "then it is a fault again",
        (0..TABLES).all(|table| !Kernel::<B>::try_write_word(tree.entry(guest, table, 5), 0)),
    );
    tree.remove(guest, check);
}

/// Tables of the test's own, all of which are in use.
struct Tree {
    root_slot: u64,
    high: [Page; 2],
    tables: [Page; TABLES],
    data: Page,
    /// An entry that maps `data`.
    good: u64,
}

impl Tree {
    fn build<B: Below>(guest: &Guest<Kernel<B>>, check: &mut Check<Kernel<B>>) -> Option<Self> {
        let high = [guest.zeroed_page()?, guest.zeroed_page()?];
        let tables = [guest.zeroed_page()?, guest.zeroed_page()?, guest.zeroed_page()?];
        let data = guest.zeroed_page()?;
        guest.write(&data, 0, 0x5ca1_ab1e);
        let good = Kernel::<B>::leaf(guest.frame(&data), true);
        guest.write(&high[0], 0, Kernel::<B>::table(guest.frame(&high[1])));
        for (index, table) in tables.iter().enumerate() {
            guest.write(&high[1], index, Kernel::<B>::table(guest.frame(table)));
        }
        for page in high.iter().chain(&tables) {
            check.done("a table is read-only", guest.set_writable(page, false));
        }
        let root_slot = (guest.root_frame() << 12) | (SLOT * 8);
        let entry = Kernel::<B>::table(guest.frame(&high[0]));
        check.done("the tree is in use", update_entry::<Kernel<B>>(root_slot, entry));
        Some(Self { root_slot, high, tables, data, good })
    }

    /// Where an entry stands, for writing.
    fn entry<B: Below>(&self, guest: &Guest<Kernel<B>>, table: usize, index: usize) -> u64 {
        guest.address(&self.tables[table]) + index as u64 * 8
    }

    /// What an entry translates.
    fn translated(table: usize, index: usize) -> u64 {
        START | (table as u64) << 21 | (index as u64) << 12
    }

    /// All tables are written at the same time; each is taken out once, and put back once.
    fn free_writes<B: Below>(&self, guest: &Guest<Kernel<B>>, check: &mut Check<Kernel<B>>) {
        let before = (UNHOOKED.load(Ordering::Relaxed), HOOKED.load(Ordering::Relaxed));
        let all = || (0..TABLE_ENTRIES).flat_map(|index| (0..TABLES).map(move |table| (table, index)));
        for (table, index) in all() {
            Kernel::<B>::write_word(self.entry(guest, table, index), self.good);
        }
        let unhooked = UNHOOKED.load(Ordering::Relaxed) - before.0;
        check.that("one fault for each table", unhooked == TABLES as u64);
        let right = all().all(|(table, index)| {
            Kernel::<B>::try_read_word(Self::translated(table, index)) == Some(0x5ca1_ab1e)
        });
        check.that("every entry translates", right);
        let hooked = HOOKED.load(Ordering::Relaxed) - before.1;
        check.that("one fault for each table on the way back", hooked == TABLES as u64);
    }

    /// A table with an entry that may not stand doesn't come back: the entry above it is empty then, and the guest has to mend the
    /// table, and to put it there anew.
    fn bad_entry<B: Below>(&self, guest: &Guest<Kernel<B>>, check: &mut Check<Kernel<B>>) {
        let (entry, address) = (self.entry(guest, 1, 7), Self::translated(1, 7));
        let table = Kernel::<B>::leaf(guest.root_frame(), true);
        for bad in [table, Kernel::<B>::leaf(Kernel::<B>::DEVICE_FRAME, true), self.good | 1 << 52] {
            Kernel::<B>::write_word(entry, bad);
            check.that("a bad entry never translates", Kernel::<B>::try_read_word(address).is_none());
            let beside = Kernel::<B>::try_read_word(Self::translated(1, 8));
            check.that("nor does what stands beside it", beside.is_none());
            check.done("the table is writable", guest.set_writable(&self.tables[1], true));
            Kernel::<B>::write_word(entry, self.good);
            check.done("mended", guest.set_writable(&self.tables[1], false));
            let place = (guest.frame(&self.high[1]) << 12) | 8;
            let again = Kernel::<B>::table(guest.frame(&self.tables[1]));
            check.done("and back", update_entry::<Kernel<B>>(place, again));
            check.that("a good one does", Kernel::<B>::try_read_word(address) == Some(0x5ca1_ab1e));
        }
    }

    fn remove<B: Below>(self, guest: &Guest<Kernel<B>>, check: &mut Check<Kernel<B>>) {
        check.done("the tree is out of use", update_entry::<Kernel<B>>(self.root_slot, 0));
        for page in self.high.into_iter().chain(self.tables).chain([self.data]) {
            check.done("a page comes back", guest.release(page));
        }
    }
}
