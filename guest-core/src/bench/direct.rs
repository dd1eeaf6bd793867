//! Changing entries of a level-1 table by writing to the table itself, which is mapped read-only.
//!
//! A hypervisor carries such a write out on the guest's behalf; or it lets the guest write, and validates the table afterwards. Penumbra
//! does the first until a few writes in a row have gone to one table, so that each way has rows of its own: single writes go to
//! two tables in turn, writes in a row to one table, up to the access below it that ends them.

use super::meter::{self, ask};
use super::tables::in_window;
use super::window::{self, BATCH, Say, Window};
use crate::architecture::{Architecture, TABLE_ENTRIES};
use crate::guest::Guest;
use crate::hypercalls::{mmu_update, mmuext};
use crate::pages::Page;
use penumbra_abi::mmu::{MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE, MmuUpdate};
use penumbra_abi::{DOMID_SELF, Errno, hypercall as number};

/// `vm_assist`: enable, writable page tables (`xen.h`).
const ASSIST_ENABLE: u64 = 0;
const ASSIST_WRITABLE_TABLES: u64 = 2;
/// Writes in a row that Penumbra carries out before it lets the guest write (`hyp-core`, `paging/table_write.rs`).
const CARRIED_OUT: u64 = 26;

/// One write that the hypervisor carries out, from absent to writable.
pub fn single_map<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    single(guest, Say::Absent, Say::Writable)
}

/// The same, from writable to absent.
pub fn single_unmap<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    single(guest, Say::Writable, Say::Absent)
}

/// Writes to two tables in turn: never two in a row.
fn single<A: Architecture>(guest: &Guest<A>, from: Say, to: Say) -> Result<u64, Errno> {
    with_tables(guest, |tables| {
        let before: [MmuUpdate; BATCH] = core::array::from_fn(|index| MmuUpdate {
            pointer: tables.slot(index as u64),
            value: tables.entry(index as u64, from),
        });
        meter::difference::<A>(
            BATCH as u64,
            || mmu_update::<A>(&before, DOMID_SELF.into()).map(drop),
            |index| A::write_word(tables.in_turn(index), tables.entry(index, to)),
            |index| A::write_word(tables.ordinary(index), tables.entry(index, to)),
        )
    })
}

/// 512 writes in a row to one table, for each; the access that makes the table a table again is counted.
pub fn row_map<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    row(guest, Say::Absent, Say::Writable)
}

/// The same, from writable to absent.
pub fn row_unmap<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    row(guest, Say::Writable, Say::Absent)
}

fn row<A: Architecture>(guest: &Guest<A>, from: Say, to: Say) -> Result<u64, Errno> {
    const LAST: u64 = TABLE_ENTRIES as u64 - 1;
    with_tables(guest, |tables| {
        meter::difference::<A>(
            TABLE_ENTRIES as u64,
            || {
                // The row is counted from the last write to another table.
                A::write_word(tables.in_turn(1), 0);
                (0..TABLE_ENTRIES).step_by(BATCH).try_for_each(|first| tables.set(first as u64, from))
            },
            |index| {
                A::write_word(tables.window.entry_address(index), tables.entry(index, to));
                if index == LAST {
                    let _ = A::try_read_word(tables.window.address(0));
                }
            },
            |index| A::write_word(tables.ordinary(index), tables.entry(index, to)),
        )
    })
}

/// What letting the guest write and taking the table back cost, no entry changed: one write in a row more than are carried out, and the access below.
pub fn out_and_in<A: Architecture>(guest: &Guest<A>) -> Result<u64, Errno> {
    with_tables(guest, |tables| {
        tables.set(0, Say::Writable)?;
        let write = |writes| {
            A::write_word(tables.in_turn(1), 0);
            (1..=writes).for_each(|index| {
                A::write_word(tables.window.entry_address(index), tables.entry(index, Say::Writable))
            });
            let _ = A::try_read_word(tables.window.address(0));
        };
        meter::difference::<A>(
            meter::REPETITIONS,
            || Ok(()),
            |_| write(CARRIED_OUT + 1),
            |_| write(CARRIED_OUT),
        )
    })
}

/// Two tables, of which one translates the window, and an ordinary page to compare with.
struct Tables<'a, A: Architecture> {
    guest: &'a Guest<A>,
    window: &'a Window<'a, A>,
    other: Page,
    ordinary: Page,
}

impl<A: Architecture> Tables<'_, A> {
    fn entry(&self, index: u64, say: Say) -> u64 {
        window::entry(self.guest, index, say)
    }

    /// Machine address of the entry that is written at turn `index`.
    fn slot(&self, index: u64) -> u64 {
        match index % 2 {
            0 => self.window.slot(index),
            _ => (self.guest.frame(&self.other) << 12) | (index * 8),
        }
    }

    /// Its virtual address.
    fn in_turn(&self, index: u64) -> u64 {
        match index % 2 {
            0 => self.window.entry_address(index),
            _ => self.guest.address(&self.other) + index * 8,
        }
    }

    fn ordinary(&self, index: u64) -> u64 {
        self.guest.address(&self.ordinary) + index * 8
    }

    /// Makes [`BATCH`] entries of the window, from `first` on, say `say`.
    fn set(&self, first: u64, say: Say) -> Result<(), Errno> {
        let updates: [MmuUpdate; BATCH] = core::array::from_fn(|index| {
            let index = first + index as u64;
            MmuUpdate { pointer: self.window.slot(index), value: self.entry(index, say) }
        });
        mmu_update::<A>(&updates, DOMID_SELF.into()).map(drop)
    }
}

/// Asks for direct writes, measures, and puts everything back.
///
/// # Errors
/// `EFAULT` where such a write faults.
fn with_tables<A: Architecture>(
    guest: &Guest<A>,
    measure: impl FnOnce(&Tables<'_, A>) -> Result<u64, Errno>,
) -> Result<u64, Errno> {
    ask::<A>(number::VM_ASSIST, [ASSIST_ENABLE, ASSIST_WRITABLE_TABLES, 0, 0, 0, 0])?;
    let ordinary = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    let other = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    guest.set_writable(&other, false)?;
    mmuext::<A>(MMUEXT_PIN_L1_TABLE, guest.frame(&other), 0)?;
    in_window(guest, |window| {
        let tables = Tables { guest, window, other, ordinary };
        let result = match A::try_write_word(window.entry_address(0), tables.entry(0, Say::ReadOnly)) {
            true => measure(&tables),
            false => Err(Errno::EFAULT),
        };
        let Tables { other, ordinary, .. } = tables;
        mmuext::<A>(MMUEXT_UNPIN_TABLE, guest.frame(&other), 0)?;
        guest.release(other)?;
        guest.pages.free(ordinary);
        result
    })
}
