//! Machine memory, as EL2 reaches it: the direct map.

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};

use hyp_core::address::{MachineFrame, PAGE_SIZE};
use hyp_core::machine::{FlushScope, FrameMemory, Mmu};
use hyp_el2::layout::DIRECT_MAP;
use hyp_el2::store;
use platform::virt::{Range, Ranges};
use spin::Once;

use crate::machine::El2;
use crate::{frame_arrays, roots};

/// RAM as the direct map holds it: whole pages.
static RAM: Once<Ranges> = Once::new();

/// The largest of these ranges once more, start and size in bytes: on most machines the only one, and asked for with each entry and each copy.
static LARGEST: (AtomicU64, AtomicU64) = (AtomicU64::new(0), AtomicU64::new(0));

/// Says what the direct map holds. Once, after the tables that hold it are in use.
pub fn set_ram(ranges: Ranges) {
    let size = |range: &Range| range.end.saturating_sub(range.start);
    if let Some(largest) = RAM.call_once(|| ranges).iter().max_by_key(size) {
        // Relaxed: there are no other CPUs or guests yet.
        LARGEST.0.store(largest.start, Ordering::Relaxed);
        LARGEST.1.store(size(&largest), Ordering::Relaxed);
    }
}

/// Where the direct map has the machine address `address`, whether or not there is memory.
pub fn direct(address: u64) -> *mut u8 {
    ptr::with_exposed_provenance_mut((DIRECT_MAP + address) as usize)
}

#[inline(always)]
fn is_in_largest(start: u64) -> bool {
    // Relaxed: set before there are other CPUs or guests, and a size of 0 holds nothing. Below the start, this wraps around, beyond any size.
    start.wrapping_sub(LARGEST.0.load(Ordering::Relaxed)) < LARGEST.1.load(Ordering::Relaxed)
}

#[inline]
fn is_ram(start: u64) -> bool {
    is_in_largest(start) || is_in_any_range(start)
}

#[inline(never)]
fn is_in_any_range(start: u64) -> bool {
    let within = |range: Range| range.start <= start && start < range.end;
    RAM.get().is_some_and(|ranges| ranges.iter().any(within))
}

/// Whether a frame is RAM.
pub fn is_memory(frame: MachineFrame) -> bool {
    is_ram(frame.start().bytes())
}

/// The frame in the direct map, if it is RAM.
fn frame_pointer(frame: MachineFrame) -> Option<*mut u8> {
    let start = frame.start().bytes();
    is_ram(start).then(|| direct(start))
}

/// How many bytes of `length` from `offset` lie within a frame.
fn clip(offset: usize, length: usize) -> usize {
    PAGE_SIZE.saturating_sub(offset).min(length)
}

/// A frame as words that anyone may change at any time.
pub type Words = [AtomicU64; PAGE_SIZE / 8];

/// A frame of RAM as words.
fn words(frame: MachineFrame) -> Option<&'static Words> {
    // SAFETY: the frame is RAM and in the direct map for ever, aligned; guests and table walkers access it concurrently, which is why
    // it is read and written atomically only.
    frame_pointer(frame).map(|pointer| unsafe { &*pointer.cast::<Words>() })
}

/// The entry `index` of a table.
fn entry(table: MachineFrame, index: usize) -> Option<&'static AtomicU64> {
    words(table)?.get(index)
}

impl Mmu for El2 {
    type Table = &'static Words;

    #[inline]
    fn table(&self, table: MachineFrame) -> Option<Self::Table> {
        words(table)
    }

    #[inline]
    fn read_in(&self, table: Self::Table, index: usize) -> u64 {
        // Acquire: what the entry leads to was written before.
        table.get(index).map_or(0, |entry| entry.load(Ordering::Acquire))
    }

    #[inline(always)]
    fn are_zero(&self, table: Self::Table, first: usize, count: usize) -> bool {
        // Relaxed: nothing is reached by what is zero. All are read, since that is faster than asking after each.
        let run = table.get(first..first.saturating_add(count)).unwrap_or(&[]);
        run.iter().fold(0, |all, entry| all | entry.load(Ordering::Relaxed)) == 0
    }

    #[inline(always)]
    fn write_data_in(&self, frame: Self::Table, index: usize, word: u64) {
        if let Some(place) = frame.get(index) {
            // Relaxed: data, as any other that is copied.
            place.store(word, Ordering::Relaxed);
        }
    }

    fn read_entry(&self, table: MachineFrame, index: usize) -> u64 {
        words(table).map_or(0, |words| self.read_in(words, index))
    }

    fn write_entry(&self, table: MachineFrame, index: usize, raw: u64) {
        if let Some(words) = words(table) {
            self.write_in(words, index, raw);
        }
    }

    #[inline(always)]
    fn write_in(&self, table: Self::Table, index: usize, raw: u64) {
        if let Some(entry) = table.get(index) {
            store::write(entry, raw, &roots::REMEMBERED, roots::forget_translations);
            table_written();
        }
    }

    fn exchange_entry(&self, table: MachineFrame, index: usize, current: u64, new: u64) -> Result<(), u64> {
        self.exchange_in(words(table).ok_or(0u64)?, index, current, new)
    }

    #[inline(always)]
    fn exchange_in(&self, table: Self::Table, index: usize, current: u64, new: u64) -> Result<(), u64> {
        let entry = table.get(index).ok_or(0u64)?;
        store::exchange(entry, (current, new), &roots::REMEMBERED, roots::forget_translations)?;
        table_written();
        Ok(())
    }

    fn reserved_entry(&self, slot: usize) -> u64 {
        frame_arrays::reserved_entry(slot)
    }

    fn load_roots(&self, kernel: MachineFrame, user: Option<MachineFrame>) {
        roots::load(kernel, user);
    }

    fn flush(&self, scope: FlushScope) {
        roots::flush(scope);
    }
}

/// Makes a written entry visible to the table walkers.
fn table_written() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb ishst", options(nostack)) };
}

impl FrameMemory for El2 {
    #[inline]
    fn read_frame(&self, frame: MachineFrame, offset: usize, into: &mut [u8]) {
        let length = clip(offset, into.len());
        match frame_pointer(frame) {
            // SAFETY: `offset + length` is within the frame, which is RAM in the direct map; `into` is ours and no guest's. A guest may
            // write at the same time: any bytes may come out, and all of them are judged as claims.
            Some(pointer) => unsafe { copy(pointer.add(offset.min(PAGE_SIZE)), into.as_mut_ptr(), length) },
            None => into.fill(0),
        }
    }

    fn write_frame(&self, frame: MachineFrame, offset: usize, from: &[u8]) {
        write_data(frame, offset, from);
        // It may be code: the domain builder writes kernels with this. Here, where the lines are still in the cache, rather than over a
        // domain's whole memory when it starts; the instruction caches follow once, in `Context::reset`.
        if let Some(pointer) = frame_pointer(frame) {
            let offset = offset.min(PAGE_SIZE);
            clean_to_unification(pointer.wrapping_add(offset), clip(offset, from.len()));
        }
    }

    fn scrub_frame(&self, frame: MachineFrame) {
        if let Some(pointer) = frame_pointer(frame) {
            // SAFETY: a whole frame of RAM in the direct map, to which nobody has a reference. Most are nobody's at the time; one that a guest
            // has had cleared is its own, and its other vCPUs may use it meanwhile, which `zero` allows.
            unsafe { zero(pointer, PAGE_SIZE) };
            clean(pointer, PAGE_SIZE);
        }
    }

    fn copy_frame(&self, from: MachineFrame, to: MachineFrame) {
        if let (Some(from), Some(to)) = (frame_pointer(from), frame_pointer(to)) {
            // SAFETY: two whole frames of RAM in the direct map, aligned, to which nobody has a reference; if they are the same one, each word
            // is written with what it holds. Guests that own them may write at the same time: `copy_aligned` reads and writes each word
            // once, by volatile accesses and assembly, so nothing but the copy's content depends on them.
            unsafe { copy_aligned(from, to, PAGE_SIZE) };
            clean_to_unification(to, PAGE_SIZE);
        }
    }

    fn read_word(&self, frame: MachineFrame, index: usize) -> u64 {
        // Acquire: a guest may have written something else before it, which is to be read next.
        entry(frame, index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn exchange_word(&self, frame: MachineFrame, index: usize, current: u64, new: u64) -> Result<(), u64> {
        let word = entry(frame, index).ok_or(0u64)?;
        // SeqCst: promised to be ordered before and after everything else, since guests decide by several words (pending, masked, selected).
        word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst).map(drop)
    }

    fn shared_word(&self, frame: MachineFrame, index: usize) -> Option<&AtomicU64> {
        entry(frame, index)
    }
}

/// Copies bytes into a frame, as data: nobody is promised that they can be executed.
#[inline]
pub fn write_data(frame: MachineFrame, offset: usize, from: &[u8]) {
    let length = clip(offset, from.len());
    if let Some(pointer) = frame_pointer(frame) {
        // SAFETY: as in `read_frame`, the other way round. The core never names a frame of the hypervisor's own.
        unsafe { copy(from.as_ptr(), pointer.add(offset.min(PAGE_SIZE)), length) };
    }
}

/// Whether `length` bytes between these addresses are copied as words: what hypercalls read and write nearly always is. (The target's code
/// is made for strict alignment, so the compiler would copy a structure byte by byte, or call for it.)
#[inline(always)]
pub const fn are_words(one: u64, other: u64, length: usize) -> bool {
    let places = one | other;
    (places | length as u64).is_multiple_of(8) || length == 4 && places.is_multiple_of(4)
}

/// Copies bytes.
///
/// # Safety
/// As [`ptr::copy_nonoverlapping`]; only a guest may write to either side meanwhile.
#[inline]
unsafe fn copy(from: *const u8, into: *mut u8, length: usize) {
    if are_words(from.addr() as u64, into.addr() as u64, length) {
        // SAFETY: checked; the caller's promise.
        unsafe { copy_aligned(from, into, length) }
    } else {
        // SAFETY: the caller's promise.
        unsafe { ptr::copy_nonoverlapping(from, into, length) }
    }
}

/// Copies words. Small structures are of a few sizes; arrays of any are copied 64 bytes at a time.
///
/// # Safety
/// As [`copy`]; [`are_words`] says that this is the way.
#[inline(always)]
pub unsafe fn copy_aligned(from: *const u8, into: *mut u8, length: usize) {
    let (words, to) = (from.cast::<u64>(), into.cast::<u64>());
    // SAFETY: aligned; the caller's promise for the same bytes. Volatile as in `copy_words`.
    unsafe {
        match length {
            8 => copy_words::<1>(words, to),
            16 => copy_words::<2>(words, to),
            24 => copy_words::<3>(words, to),
            4 => into.cast::<u32>().write_volatile(from.cast::<u32>().read_volatile()),
            _ => copy_array(words, to, length),
        }
    }
}

/// # Safety
/// As [`copy`], for so many words; both aligned.
#[inline(always)]
unsafe fn copy_words<const COUNT: usize>(from: *const u64, into: *mut u64) {
    for index in 0..COUNT {
        // SAFETY: the caller's promise. Volatile: the compiler makes no call of it, and reads what a guest may change just once.
        unsafe { into.add(index).write_volatile(from.add(index).read_volatile()) };
    }
}

/// # Safety
/// As [`copy`], both aligned; `length` is in bytes, of whole words.
#[inline(always)]
unsafe fn copy_array(from: *const u64, into: *mut u64, length: usize) {
    let (mut from, mut into, mut left) = (from, into, length);
    while left >= 64 {
        // SAFETY: the caller's promise for 64 bytes more. Two registers for each pair: compiled code would take a word at a time.
        unsafe {
            asm!(
                "ldp {a}, {b}, [{from}]",
                "ldp {c}, {d}, [{from}, #16]",
                "stp {a}, {b}, [{into}]",
                "stp {c}, {d}, [{into}, #16]",
                "ldp {a}, {b}, [{from}, #32]",
                "ldp {c}, {d}, [{from}, #48]",
                "stp {a}, {b}, [{into}, #32]",
                "stp {c}, {d}, [{into}, #48]",
                from = in(reg) from,
                into = in(reg) into,
                a = out(reg) _,
                b = out(reg) _,
                c = out(reg) _,
                d = out(reg) _,
                options(nostack, preserves_flags)
            );
        }
        (from, into, left) = (from.wrapping_add(8), into.wrapping_add(8), left - 64);
    }
    while left > 0 {
        // SAFETY: the caller's promise for one word more.
        unsafe { copy_words::<1>(from, into) };
        (from, into, left) = (from.wrapping_add(1), into.wrapping_add(1), left - 8);
    }
}

/// Size of a cache line, or of what `dc zva` zeroes, in bytes: from a register's log2 of words.
fn bytes_of_words(log2: u64) -> usize {
    4 << (log2 & 0xf)
}

/// Zeroes memory a block at a time.
///
/// # Safety
/// The `size` bytes from `start` must be mapped Normal memory, both multiples of 4096, to which there is no reference. A guest may write there
/// meanwhile: then its bytes or zeros stand there.
pub unsafe fn zero(start: *mut u8, size: usize) {
    let zva: u64;
    // SAFETY: reads an ID register.
    unsafe { asm!("mrs {}, dczid_el0", out(reg) zva, options(nomem, nostack)) };
    if zva & 1 << 4 != 0 {
        for index in 0..size / 8 {
            // SAFETY: the caller's promise. Volatile, as a guest may write to the same words.
            unsafe { start.cast::<u64>().add(index).write_volatile(0) };
        }
        return;
    }
    let step = bytes_of_words(zva);
    let mut at = start;
    let end = start.wrapping_add(size);
    while at < end {
        // SAFETY: blocks are at most 2 KiB and aligned, so each lies within the range, by the caller's promise. To the compiler, assembly that
        // may write any memory; to a guest's CPU, stores.
        unsafe { asm!("dc zva, {}", in(reg) at, options(nostack)) };
        at = at.wrapping_add(step);
    }
}

fn cache_types() -> u64 {
    let types: u64;
    // SAFETY: reads an ID register.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) types, options(nomem, nostack)) };
    types
}

/// Calls `line` with an address in each of the data cache's lines that the range touches.
fn each_line(start: *mut u8, size: usize, types: u64, line: impl Fn(*mut u8)) {
    let step = bytes_of_words(types >> 16);
    let end = start.wrapping_add(size);
    let mut at = start.wrapping_sub(start.addr() % step);
    while at < end {
        line(at);
        at = at.wrapping_add(step);
    }
}

/// Makes written bytes visible to instruction fetches that miss the instruction cache (to the point of unification). Nothing to
/// do on CPUs whose caches see to it themselves (`CTR_EL0.IDC`).
fn clean_to_unification(start: *mut u8, size: usize) {
    let types = cache_types();
    if types & 1 << 28 == 0 {
        // SAFETY: cleaning changes no content; every address here is in the direct map of RAM.
        each_line(start, size, types, |at| unsafe { asm!("dc cvau, {}", in(reg) at, options(nostack)) });
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb ish", options(nostack)) };
}

/// Empties the instruction caches of all CPUs, unless theirs follow memory by themselves (`CTR_EL0.DIC`).
pub fn forget_instructions() {
    if cache_types() & 1 << 29 == 0 {
        // SAFETY: costs time only.
        unsafe { asm!("ic ialluis", "dsb ish", "isb", options(nostack)) };
    }
}

/// Writes the cache's content back to memory, and empties the cache of it, to the point of coherency.
pub fn clean(start: *mut u8, size: usize) {
    // SAFETY: cleaning changes no content; every address here is in the direct map of RAM.
    each_line(start, size, cache_types(), |at| unsafe { asm!("dc civac, {}", in(reg) at, options(nostack)) });
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}
