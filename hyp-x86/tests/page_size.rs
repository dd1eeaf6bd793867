//! XSA-304 by the format itself, in a program of its own: the rule is the machine's, and in force from then on.

use hyp_core::machine::{EntryFault, PageTableFormat};
use hyp_x86::format::X86Format;
use hyp_x86::page_size::enforce;

/// 2 MiB from frame 0x12200 on, writable; the bit that says no-execute; a table of level 1.
const LARGE: u64 = 0x1220_00e7;
const NO_EXECUTE: u64 = 1 << 63;
const TABLE: u64 = 0x1220_0067;

/// XSA-304: an instruction fetched after its mapping had changed between 4 KiB and 2 MiB, with nothing invalidated, stopped the machine.
///
/// The attacker has a page of code mapped by a table, puts a superpage of the same memory in the table's place by a plain store, and goes on. The
/// superpage is what is refused: with every right but one, and by whatever way entries are judged.
#[test]
fn xsa_304_executable_superpages_are_refused_on_a_processor_with_the_flaw() {
    assert!(X86Format::admit(2, LARGE).is_ok(), "until the rule is in force");
    enforce();
    for rights in [0x87, 0x85, 0x83, 0x81, 0xe7, 0x1e7, 0xe7 | 1 << 52] {
        let raw = LARGE & !0xfff | rights;
        assert_eq!(X86Format::admit(2, raw), Err(EntryFault::ForbiddenBits(NO_EXECUTE)), "{rights:#x}");
        assert!(X86Format::admit(2, raw | NO_EXECUTE).is_ok(), "{rights:#x}");
    }
    // Pages and tables are as ever: a processor that knows one size alone changes none.
    for level in 2..=4 {
        assert!(X86Format::admit(level, TABLE).is_ok());
    }
    assert!(X86Format::admit(1, TABLE).is_ok() && X86Format::admit_page(TABLE).is_some());
    assert!(X86Format::admit(2, 0).is_ok() && X86Format::admit(2, LARGE & !1).is_ok(), "nothing is mapped");
    // What the core makes itself of what was admitted stays so.
    let read_only = X86Format::with_write(LARGE | NO_EXECUTE, false);
    assert!(X86Format::admit(2, read_only).is_ok());
}
