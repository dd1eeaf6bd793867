//! Reaching a running guest's memory through its own tables, whatever its addresses turn out to be.
//!
//! The guest's tables are loaded, write protection holds in ring 0 too (CR0.WP), and every entry of a guest's is a user's; so an
//! access by the hypervisor has the guest kernel's own rights. It may fault: each place where it may is written down in the table of
//! fix-ups, which `fault.rs` searches, and the access then ends where the table says. An address outside the guest's part is
//! refused before it is used, since all else would be reached with the hypervisor's rights.
//!
//! Nor may any address be used while one of the guest's tables is unhooked (`cpu::has_unhooked`). Hypercalls begin with all tables
//! hooked in, and an address is refused as if it faulted should that have changed since; who comes here otherwise shows that they
//! are, by [`Hooked`].
//!
//! Short accesses of a fixed size are plain moves, without a loop; the rest goes through `copy_guest` of `entry.s`.

use core::arch::asm;
use core::mem::offset_of;

use hyp_core::machine::GuestFault;
use hyp_x86::layout;

use crate::context::Frame;
use crate::{cpu, entry};

/// One line of the table of fix-ups: a fault between `first` and `end` (not included) goes on at `target`.
#[repr(C)]
struct Fixup {
    first: u64,
    end: u64,
    target: u64,
}

unsafe extern "C" {
    /// The table's start and end, from `layout.ld`.
    safe static fixups_start: u8;
    safe static fixups_end: u8;
}

/// Where to go on after a fault at `rip`, if that is one of the places where a guest's address may be bad.
pub fn fixup(rip: u64) -> Option<u64> {
    let (start, end) = (entry::address(&fixups_start), entry::address(&fixups_end));
    let count = (end - start) as usize / size_of::<Fixup>();
    // SAFETY: the linker gathers the lines between the two labels, aligned, in read-only memory.
    let fixups = unsafe { core::slice::from_raw_parts(start as *const Fixup, count) };
    fixups.iter().find(|fixup| (fixup.first..fixup.end).contains(&rip)).map(|fixup| fixup.target)
}

/// Fails unless the range is in the guest's part of the address space, where nothing of the hypervisor's is.
#[inline(always)]
fn check(address: u64, length: usize) -> Result<(), GuestFault> {
    let usable = layout::is_guest_range(address, length as u64) && !cpu::has_unhooked();
    if usable { Ok(()) } else { Err(GuestFault) }
}

/// Reads bytes from the guest. With a length that is known when this is compiled, it is a few moves.
///
/// # Errors
/// [`GuestFault`] when any byte can't be read; what was read before is lost.
#[inline(always)]
pub fn read(from: u64, into: &mut [u8]) -> Result<(), GuestFault> {
    match into.len() {
        16 | 24 if cpu::has_unhooked() => return Err(GuestFault),
        // A few words, as most operations are.
        16 | 24 => check_words(from, into.len() as u64)?,
        length => check(from, length)?,
    }
    let to = into.as_mut_ptr();
    // SAFETY: the range is the guest's, as was checked; `into` is the caller's alone, and as long as is said.
    unsafe {
        match into.len() {
            4 => load_half(to, from),
            8 => load::<1>(to, from),
            16 => load::<2>(to, from),
            24 => load::<3>(to, from),
            48 => load::<6>(to, from),
            64 => load::<8>(to, from),
            72 => load::<9>(to, from),
            length => copy(to, from as *const u8, length),
        }
    }
}

/// Reads the 16 bytes from a page that the guest has just executed, so that its own tables lead there, whatever else is unhooked.
///
/// # Errors
/// As [`read`].
#[inline(always)]
pub fn read_code(from: u64, into: &mut [u8; 16]) -> Result<(), GuestFault> {
    if !layout::are_guest_words(from, 16) {
        return Err(GuestFault);
    }
    // SAFETY: the range is the guest's, as was checked; `into` is the caller's alone.
    unsafe { load::<2>(into.as_mut_ptr(), from) }
}

/// Reads a descriptor from the window by which the processor sees the running guest's (`guest_descriptors.rs`), so many bytes from its start.
///
/// # Errors
/// [`GuestFault`] when there is none.
pub fn read_descriptor(offset: u64) -> Result<u64, GuestFault> {
    const BYTES: u64 = (layout::LOCAL_TABLE_PAGE + layout::LOCAL_TABLE_PAGES) * 4096;
    if offset > BYTES - 8 {
        return Err(GuestFault);
    }
    let mut descriptor = 0u64;
    // SAFETY: the range is the window's, which the hypervisor alone reads, and holds nothing but descriptors.
    unsafe { load::<1>((&raw mut descriptor).cast(), layout::DESCRIPTOR_TABLE + offset)? };
    Ok(descriptor)
}

/// Reads 16 bytes of code, the first `in_page` of which lie in one page and the others in the next one: how many of them can be read, which
/// is all, those of the first page, or none.
#[inline(never)]
pub fn read_code_over_two_pages(from: u64, into: &mut [u8; 16], in_page: usize) -> usize {
    if read(from, into).is_ok() {
        return into.len();
    }
    match into.get_mut(..in_page).map(|part| read(from, part)) {
        Some(Ok(())) => in_page,
        _ => 0,
    }
}

/// Writes bytes to the guest, as [`read`].
///
/// # Errors
/// [`GuestFault`] when any byte can't be written; bytes before it may have been.
#[inline(always)]
pub fn write(to: u64, from: &[u8]) -> Result<(), GuestFault> {
    check(to, from.len())?;
    // SAFETY: the range is the guest's, as was checked.
    unsafe {
        match from.len() {
            8 => store_from::<1>(to, from.as_ptr()),
            length => copy(to as *mut u8, from.as_ptr(), length),
        }
    }
}

/// # Safety
/// As [`entry::copy_guest`].
#[inline(always)]
unsafe fn copy(to: *mut u8, from: *const u8, length: usize) -> Result<(), GuestFault> {
    // SAFETY: the caller's promise.
    if unsafe { entry::copy_guest(to, from, length) } == 0 { Ok(()) } else { Err(GuestFault) }
}

/// Moves `WORDS` words from the guest.
///
/// # Safety
/// `from` is a guest's range of that length; `to` is the hypervisor's, valid for writes.
#[inline(always)]
unsafe fn load<const WORDS: usize>(to: *mut u8, from: u64) -> Result<(), GuestFault> {
    let failed: u64;
    // SAFETY: the caller's promise for both sides; a fault goes on at label 4, which says so.
    unsafe {
        asm!(
            "xorl {failed:e}, {failed:e}",
            "2:",
            ".set load_offset, 0",
            ".rept {words}",
            "movq load_offset({from}), {word}",
            "movq {word}, load_offset({to})",
            ".set load_offset, load_offset + 8",
            ".endr",
            "3:",
            ".pushsection .text.unlikely, \"ax\", @progbits",
            "4: movl $1, {failed:e}",
            "jmp 3b",
            ".popsection",
            ".pushsection .fixups, \"a\", @progbits",
            ".quad 2b, 3b, 4b",
            ".popsection",
            words = const WORDS,
            from = in(reg) from,
            to = in(reg) to,
            word = out(reg) _,
            failed = out(reg) failed,
            options(att_syntax, nostack)
        );
    }
    if failed == 0 { Ok(()) } else { Err(GuestFault) }
}

/// Moves 4 bytes from the guest.
///
/// # Safety
/// As [`load`].
#[inline(always)]
unsafe fn load_half(to: *mut u8, from: u64) -> Result<(), GuestFault> {
    let failed: u64;
    // SAFETY: the caller's promise for both sides; a fault goes on at label 4, which says so.
    unsafe {
        asm!(
            "xorl {failed:e}, {failed:e}",
            "2:",
            "movl ({from}), {word:e}",
            "movl {word:e}, ({to})",
            "3:",
            ".pushsection .text.unlikely, \"ax\", @progbits",
            "4: movl $1, {failed:e}",
            "jmp 3b",
            ".popsection",
            ".pushsection .fixups, \"a\", @progbits",
            ".quad 2b, 3b, 4b",
            ".popsection",
            from = in(reg) from,
            to = in(reg) to,
            word = out(reg) _,
            failed = out(reg) failed,
            options(att_syntax, nostack)
        );
    }
    if failed == 0 { Ok(()) } else { Err(GuestFault) }
}

/// Moves `WORDS` words to the guest.
///
/// # Safety
/// As [`load`], the other way round.
#[inline(always)]
unsafe fn store_from<const WORDS: usize>(to: u64, from: *const u8) -> Result<(), GuestFault> {
    // SAFETY: the two sides change their roles; a fault is told in the same way.
    unsafe { load::<WORDS>(to as *mut u8, from as u64) }
}

/// Every table of the running vCPU's domain is in its tree, so that the processor finds nothing but what was validated.
#[derive(Clone, Copy)]
pub struct Hooked(());

impl Hooked {
    /// If it is so now. If not, `cpu::later` and `cpu::hook_some` are the ways to have it so.
    #[inline(always)]
    pub fn now() -> Option<Self> {
        if cpu::has_unhooked() { None } else { Some(Self(())) }
    }
}

/// Fails unless words of the guest's begin there.
#[inline(always)]
fn check_words(address: u64, length: u64) -> Result<(), GuestFault> {
    if layout::are_guest_words(address, length) { Ok(()) } else { Err(GuestFault) }
}

/// What a handler finds in place of the frame's own: see [`push_frame`].
#[derive(Clone, Copy)]
pub struct Saved {
    /// The code segment with what the ABI puts beside it.
    pub cs: u64,
    /// The flags, the guest's interrupt flag among them.
    pub flags: u64,
}

/// Writes what a handler of an exception without an error code finds on its stack, lowest first: rcx, r11, rip, cs, flags, rsp, ss.
///
/// # Errors
/// As [`write`].
#[inline(always)]
pub fn push_frame(to: u64, frame: &Frame, saved: Saved, _: Hooked) -> Result<(), GuestFault> {
    check_words(to, 7 * 8)?;
    let failed: u64;
    // SAFETY: the words are the guest's, as was checked; a fault goes on at label 4, which says so. The frame is only read.
    unsafe {
        asm!(
            "2:",
            "movq {rcx}({frame}), {word}", "movq {word}, ({to})",
            "movq {r11}({frame}), {word}", "movq {word}, 8({to})",
            "movq {rip}({frame}), {word}", "movq {word}, 16({to})",
            "movq {cs}, 24({to})",
            "movq {flags}, 32({to})",
            "movq {rsp}({frame}), {word}", "movq {word}, 40({to})",
            "movq {ss}({frame}), {word}", "movq {word}, 48({to})",
            "xorl {word:e}, {word:e}",
            "3:",
            ".pushsection .text.unlikely, \"ax\", @progbits",
            "4: movl $1, {word:e}", "jmp 3b",
            ".popsection",
            ".pushsection .fixups, \"a\", @progbits",
            ".quad 2b, 3b, 4b",
            ".popsection",
            to = in(reg) to,
            frame = in(reg) frame,
            cs = in(reg) saved.cs,
            flags = in(reg) saved.flags,
            word = out(reg) failed,
            rcx = const offset_of!(Frame, rcx),
            r11 = const offset_of!(Frame, r11),
            rip = const offset_of!(Frame, rip),
            rsp = const offset_of!(Frame, rsp),
            ss = const offset_of!(Frame, ss),
            options(att_syntax, nostack)
        );
    }
    if failed == 0 { Ok(()) } else { Err(GuestFault) }
}

/// As [`push_frame`], with an error code between r11 and rip.
///
/// # Errors
/// As [`write`].
#[inline(always)]
pub fn push_frame_with_error(
    to: u64,
    frame: &Frame,
    error: u64,
    saved: Saved,
    _: Hooked,
) -> Result<(), GuestFault> {
    check_words(to, 8 * 8)?;
    let failed: u64;
    // SAFETY: as in `push_frame`.
    unsafe {
        asm!(
            "2:",
            "movq {rcx}({frame}), {word}", "movq {word}, ({to})",
            "movq {r11}({frame}), {word}", "movq {word}, 8({to})",
            "movq {error}, 16({to})",
            "movq {rip}({frame}), {word}", "movq {word}, 24({to})",
            "movq {cs}, 32({to})",
            "movq {flags}, 40({to})",
            "movq {rsp}({frame}), {word}", "movq {word}, 48({to})",
            "movq {ss}({frame}), {word}", "movq {word}, 56({to})",
            "xorl {word:e}, {word:e}",
            "3:",
            ".pushsection .text.unlikely, \"ax\", @progbits",
            "4: movl $1, {word:e}", "jmp 3b",
            ".popsection",
            ".pushsection .fixups, \"a\", @progbits",
            ".quad 2b, 3b, 4b",
            ".popsection",
            to = in(reg) to,
            frame = in(reg) frame,
            error = in(reg) error,
            cs = in(reg) saved.cs,
            flags = in(reg) saved.flags,
            word = out(reg) failed,
            rcx = const offset_of!(Frame, rcx),
            r11 = const offset_of!(Frame, r11),
            rip = const offset_of!(Frame, rip),
            rsp = const offset_of!(Frame, rsp),
            ss = const offset_of!(Frame, ss),
            options(att_syntax, nostack)
        );
    }
    if failed == 0 { Ok(()) } else { Err(GuestFault) }
}

/// Takes from the guest's stack what `iret` names (`penumbra_abi::x86_64::IretContext`, lowest first): rax, r11, rcx, the
/// hypercall's own flags, rip, cs, flags, rsp, ss. All but the fourth go into the frame as they are, unjudged; the fourth is
/// returned.
///
/// # Errors
/// As [`read`]; the frame holds some of it then.
#[inline(always)]
pub fn pop_frame(from: u64, frame: &Frame, _: Hooked) -> Result<u64, GuestFault> {
    check_words(from, 9 * 8)?;
    let (failed, flags): (u64, u64);
    // SAFETY: the words are the guest's, as was checked; a fault goes on at label 4, which says so. The frame's fields are
    // cells, and this CPU's alone.
    unsafe {
        asm!(
            "2:",
            "movq ({from}), {word}", "movq {word}, {rax}({frame})",
            "movq 8({from}), {word}", "movq {word}, {r11}({frame})",
            "movq 16({from}), {word}", "movq {word}, {rcx}({frame})",
            "movq 24({from}), {flags}",
            "movq 32({from}), {word}", "movq {word}, {rip}({frame})",
            "movq 40({from}), {word}", "movq {word}, {cs}({frame})",
            "movq 48({from}), {word}", "movq {word}, {rflags}({frame})",
            "movq 56({from}), {word}", "movq {word}, {rsp}({frame})",
            "movq 64({from}), {word}", "movq {word}, {ss}({frame})",
            "xorl {word:e}, {word:e}",
            "3:",
            ".pushsection .text.unlikely, \"ax\", @progbits",
            "4: movl $1, {word:e}", "jmp 3b",
            ".popsection",
            ".pushsection .fixups, \"a\", @progbits",
            ".quad 2b, 3b, 4b",
            ".popsection",
            from = in(reg) from,
            frame = in(reg) frame,
            word = out(reg) failed,
            flags = out(reg) flags,
            rax = const offset_of!(Frame, rax),
            rcx = const offset_of!(Frame, rcx),
            r11 = const offset_of!(Frame, r11),
            rip = const offset_of!(Frame, rip),
            cs = const offset_of!(Frame, cs),
            rflags = const offset_of!(Frame, rflags),
            rsp = const offset_of!(Frame, rsp),
            ss = const offset_of!(Frame, ss),
            options(att_syntax, nostack)
        );
    }
    if failed == 0 { Ok(flags) } else { Err(GuestFault) }
}
