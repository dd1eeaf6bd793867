//! The arrays that the core keeps about frames, and the guests' read-only view of one of them.

use core::sync::atomic::{AtomicU64, Ordering};

use hyp_core::address::{MachineFrame, PAGE_SIZE};
use hyp_core::frame::{BootMemory, FrameRecord, Memory, allocator};
use hyp_core::machine::{Machine, PageTableFormat};
use hyp_el2::format::{VmsaStage1, kernel_read_only_leaf};
use hyp_el2::mapper::{self, Attributes, TableStore};

use crate::machine::El2;
use crate::memory::{direct, zero};
use crate::oracle;
use crate::own_tables::Pool;

/// The first reserved entry of every guest root: the table that leads to the M2P. The other reserved entries are absent.
static M2P_ENTRY: AtomicU64 = AtomicU64::new(0);

/// What stands in a reserved slot of a guest root.
pub fn reserved_entry(slot: usize) -> u64 {
    // Relaxed: set before there are guests, and never again.
    if slot == VmsaStage1::reserved_root_slots().start { M2P_ENTRY.load(Ordering::Relaxed) } else { 0 }
}

/// There isn't enough memory for the frame table, or not enough tables for the M2P.
#[derive(Clone, Copy, Debug)]
pub struct NoRoom;

/// Allocates and zeroes the arrays for all of `boot`'s RAM.
pub fn allocate(boot: &mut BootMemory, load: u64) -> Result<Memory, NoRoom> {
    // Arrays are indexed from a frame whose M2P entry is at the start of a page.
    let first = boot.start_of_ram() / PAGE_SIZE as u64 / 512 * 512;
    let count = (boot.end_of_ram() / PAGE_SIZE as u64).saturating_sub(first) as usize;
    let records = array::<FrameRecord>(boot, count)?;
    let free_map = array::<AtomicU64>(boot, allocator::words(count))?;
    let m2p = array::<AtomicU64>(boot, count)?;
    expose_m2p(&m2p, first, load)?;
    oracle::set_m2p(m2p.start, m2p.size);
    let first = MachineFrame::new(first).ok_or(NoRoom)?;
    Ok(Memory { first, records: records.content, free_map: free_map.content, m2p: m2p.content })
}

struct Array<T: 'static> {
    content: &'static [T],
    start: u64,
    size: u64,
}

/// What may be made of zeros.
///
/// # Safety
/// All-zero bytes must be a valid value, and shared references to it must be all that anyone needs (atomics).
unsafe trait Zeroable {}
// SAFETY: an integer.
unsafe impl Zeroable for AtomicU64 {}
// SAFETY: two atomic integers; the core asks for zeroed records.
unsafe impl Zeroable for FrameRecord {}

/// An array of zeros, of whole pages, 2 MiB-aligned if it is that large (so that it can be mapped with blocks).
fn array<T: Zeroable>(boot: &mut BootMemory, count: usize) -> Result<Array<T>, NoRoom> {
    let size = count.checked_mul(size_of::<T>()).ok_or(NoRoom)?.max(1).next_multiple_of(PAGE_SIZE);
    let align = if size >= 2 << 20 { 2 << 20 } else { PAGE_SIZE as u64 };
    let start = boot.allocate(size as u64, align).ok_or(NoRoom)?.bytes();
    let pointer = direct(start);
    // SAFETY: the range was just allocated, so nobody else uses it, and it is RAM in the direct map.
    unsafe { zero(pointer, size) };
    // SAFETY: it stays allocated for ever, is aligned to a page, holds `count` elements, and zeros are valid ones.
    let content = unsafe { core::slice::from_raw_parts(pointer.cast::<T>(), count) };
    Ok(Array { content, start, size: size as u64 })
}

/// Builds the tables through which guests read the M2P, and remembers the root entry that leads there.
fn expose_m2p(m2p: &Array<AtomicU64>, first: u64, load: u64) -> Result<(), NoRoom> {
    let mut pool = Pool::new(load);
    let root = pool.allocate().ok_or(NoRoom)?;
    let window = El2::M2P_WINDOW.bytes() & ((1 << 48) - 1);
    let attributes = Attributes::raw(kernel_read_only_leaf());
    mapper::map(&mut pool, root, window + first * 8, m2p.start, m2p.size, attributes).map_err(|_| NoRoom)?;
    // Relaxed: there are no other CPUs or guests yet.
    M2P_ENTRY.store(pool.read(root, VmsaStage1::reserved_root_slots().start), Ordering::Relaxed);
    Ok(())
}
