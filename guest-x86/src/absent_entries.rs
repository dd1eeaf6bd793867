//! XSA-273 (L1 terminal fault): an absent entry that names a frame lets some processors read that frame by speculation.
//!
//! This kernel proposes absent entries with frames of its own and of others, at two levels, by update and in a table that is pinned as a
//! whole. On a processor with the fault they are refused, and Linux's inverted ones are not; on any other they may stand, and keep each bit.

use core::arch::x86_64::{__cpuid, __cpuid_count};

use guest_core::guest::Guest;
use guest_core::hypercalls::{mmuext, update_entry};
use guest_core::pages::Page;
use guest_core::tests::Check;
use penumbra_abi::Errno;
use penumbra_abi::mmu::{MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE};

use crate::machine::X86;

/// "Genu", of "GenuineIntel".
const INTEL: u32 = 0x756e_6547;
/// The bits of a page's entry, but for the one that says present.
const BITS: u64 = 0x66;
const SUPERPAGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Whether the processor may have the fault: Intel's, if it can't even say that it doesn't.
fn has_the_fault() -> bool {
    let says = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx >> 29 & 1 != 0;
    __cpuid(0).ebx == INTEL && !says
}

/// Runs the test `absent-entries`.
pub fn run(guest: &Guest<X86>, check: &mut Check<X86>) {
    let (Some(table), Some(page)) = (guest.zeroed_page(), guest.zeroed_page()) else {
        return check.that("pages for the test", false);
    };
    let refused = guest.on_penumbra && has_the_fault();
    let frames = [guest.frame(&page), guest.root_frame(), 1, 0x100, 0x1234];
    check.done("the table is read-only", guest.set_writable(&table, false));
    check.done("the table is pinned", mmuext::<X86>(MMUEXT_PIN_L1_TABLE, guest.frame(&table), 0));
    for frame in frames {
        let raw = (frame << 12) | BITS;
        judge(guest, check, &table, raw, refused);
        judge(guest, check, &table, !raw & ADDRESS | BITS, false);
    }
    check.done("the table is let go", mmuext::<X86>(MMUEXT_UNPIN_TABLE, guest.frame(&table), 0));
    check.done("it is a page again", guest.set_writable(&table, true));
    let pin = |raw| {
        guest.write(&table, 7, raw);
        guest.set_writable(&table, false)?;
        let pinned = mmuext::<X86>(MMUEXT_PIN_L1_TABLE, guest.frame(&table), 0);
        if pinned.is_ok() {
            mmuext::<X86>(MMUEXT_UNPIN_TABLE, guest.frame(&table), 0)?;
        }
        guest.set_writable(&table, true)?;
        pinned.map(drop)
    };
    let whole = pin(frames[0] << 12 | BITS);
    check.that("a table with such an entry", whole == if refused { Err(Errno::EINVAL) } else { Ok(()) });
    check.done("a table with an inverted one", pin(!(frames[0] << 12) & ADDRESS | BITS));
    // An empty entry of the root, with the bit that would make it the name of much.
    let place = (guest.root_frame() << 12) | (310 * 8);
    let large = update_entry::<X86>(place, SUPERPAGE);
    check.that("a superpage from frame 0 on", large.is_err() == refused);
    check.done("nothing at all", update_entry::<X86>(place, 0));
    check.done("the table is freed", guest.release(table));
    guest.pages.free(page);
}

/// Proposes an absent entry: it is refused, without a trace, or stands as it is.
fn judge(guest: &Guest<X86>, check: &mut Check<X86>, table: &Page, raw: u64, refused: bool) {
    let place = (guest.frame(table) << 12) | (5 * 8);
    let outcome = update_entry::<X86>(place, raw);
    let stands = guest.read(table, 5);
    if refused {
        check.refused("an absent entry that names memory", outcome.map(|()| 0), &[Errno::EINVAL]);
        check.that("and it left no trace", stands == 0);
    } else {
        check.done("an absent entry", outcome);
        check.that("all its bits are kept", stands == raw);
    }
    check.done("the entry is emptied", update_entry::<X86>(place, 0));
}
