//! Machine memory, through the direct map.
//!
//! All RAM is mapped at [`layout::DIRECT_MAP`], and nothing else is. Whoever turns a frame into a pointer asks the map of
//! RAM first, so no frame number, whoever made it, leads astray.

use core::sync::atomic::{AtomicU64, Ordering};

use hyp_core::address::{MachineFrame, PAGE_SIZE};
use hyp_x86::layout;
use hyp_x86::ram::RamMap;
use spin::Once;

static RAM: Once<RamMap> = Once::new();
/// The largest stretches of RAM, where nearly every frame is: the first frame's number of each, and how many there are. Two, since a PC of more than
/// a few GiB has a hole below 4 GiB.
static LARGEST: [[AtomicU64; 2]; 2] = [const { [const { AtomicU64::new(0) }; 2] }; 2];

/// Says what is RAM. Only the first call counts.
pub fn set_ram(map: RamMap) {
    let map = RAM.call_once(|| map);
    for ([first, count], stretch) in LARGEST.iter().zip(map.largest()) {
        // Relaxed: no other CPU is started yet. With a count of zero the first means nothing.
        first.store(stretch.first, Ordering::Relaxed);
        count.store(stretch.end - stretch.first, Ordering::Relaxed);
    }
}

/// Whether the frame is RAM; nothing is before [`set_ram`].
#[inline(always)]
pub fn is_ram(frame: MachineFrame) -> bool {
    let [largest, second] = &LARGEST;
    is_in(largest, frame) || is_in(second, frame) || is_elsewhere_in_ram(frame)
}

#[inline(always)]
fn is_in([first, count]: &[AtomicU64; 2], frame: MachineFrame) -> bool {
    // Below the first, this wraps around to more than any count.
    // Relaxed, both: written before other CPUs start.
    let index = frame.number().wrapping_sub(first.load(Ordering::Relaxed));
    index < count.load(Ordering::Relaxed)
}

#[cold]
#[inline(never)]
fn is_elsewhere_in_ram(frame: MachineFrame) -> bool {
    RAM.get().is_some_and(|ram| ram.holds(frame))
}

/// The direct map's address of a machine address.
pub const fn direct(address: u64) -> *mut u8 {
    (layout::DIRECT_MAP + address) as *mut u8
}

/// A page of RAM, as the bytes of the direct map: `None` for what isn't RAM.
#[inline(always)]
pub fn page(frame: MachineFrame) -> Option<*mut u8> {
    is_ram(frame).then(|| direct(frame.start().bytes()))
}

/// A page as words that anyone may change at any time.
pub type Words = [AtomicU64; PAGE_SIZE / 8];

/// A page of RAM as words.
#[inline(always)]
pub fn words(frame: MachineFrame) -> Option<&'static Words> {
    // SAFETY: the page is RAM, so the direct map has it for ever, aligned. Memory that guests and table walkers change is only ever
    // seen through atomics or copies.
    page(frame).map(|page| unsafe { &*page.cast::<Words>() })
}

/// An entry of a table in RAM.
#[inline]
pub fn entry(table: MachineFrame, index: usize) -> Option<&'static AtomicU64> {
    words(table)?.get(index)
}

/// Words that [`zero`] writes at a time.
pub const ZERO_WORDS: usize = 16;

/// Copies a page.
///
/// # Safety
/// Both are whole pages of memory, aligned, to which there is no reference. Guests may write to either meanwhile: each word is read and written
/// once, by volatile accesses, so that nothing but the copy's content depends on them.
pub unsafe fn copy_page(from: *const u64, to: *mut u64) {
    for index in 0..PAGE_SIZE / 8 {
        // SAFETY: as the caller promises; the index is within a page.
        unsafe { to.add(index).write_volatile(from.add(index).read_volatile()) };
    }
}

/// Sets `words` 8-byte words from `start` on to zero.
///
/// A loop of plain stores: an emulator runs it many times faster than a string instruction, which it takes
/// one step at a time, and it costs hardly more instructions.
///
/// # Safety
/// The range is writable memory, aligned to 8 bytes, to which there is no reference, and `words` is a multiple of [`ZERO_WORDS`]. A guest may
/// write there meanwhile: then its bytes or zeros stand there. (To the compiler, assembly may write any memory.)
pub unsafe fn zero(start: *mut u8, words: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        core::arch::asm!(
            "test {end}, {end}",
            "jz 3f",
            "add {end}, {at}",
            "2:",
            "mov qword ptr [{at}], {zero}", "mov qword ptr [{at} + 8], {zero}",
            "mov qword ptr [{at} + 16], {zero}", "mov qword ptr [{at} + 24], {zero}",
            "mov qword ptr [{at} + 32], {zero}", "mov qword ptr [{at} + 40], {zero}",
            "mov qword ptr [{at} + 48], {zero}", "mov qword ptr [{at} + 56], {zero}",
            "mov qword ptr [{at} + 64], {zero}", "mov qword ptr [{at} + 72], {zero}",
            "mov qword ptr [{at} + 80], {zero}", "mov qword ptr [{at} + 88], {zero}",
            "mov qword ptr [{at} + 96], {zero}", "mov qword ptr [{at} + 104], {zero}",
            "mov qword ptr [{at} + 112], {zero}", "mov qword ptr [{at} + 120], {zero}",
            "add {at}, 128",
            "cmp {at}, {end}",
            "jb 2b",
            "3:",
            at = inout(reg) start => _,
            end = inout(reg) words * 8 => _,
            zero = in(reg) 0u64,
            options(nostack)
        );
    }
}
