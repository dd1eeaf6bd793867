//! What confines this kernel, bit by bit, where a trap answers instead of refusing, and registers that must stay as they are.
//!
//! With stage 2 off the translation registers are what isolation rests on: each single bit of them is tried. What an instruction that
//! traps *does* is looked at here; that it *refuses* is `instructions`' to see, and that it traps at all where the answer looks
//! the same, `unseen`'s, by counting.

use core::arch::asm;
use guest_core::Architecture;
use guest_core::guest::Guest;
use guest_core::hypercalls::{address_of_mut, call};
use guest_core::tests::Check;
use penumbra_abi::hypercall::XEN_VERSION;
use penumbra_abi::version::XENVER_EXTRAVERSION;

use crate::machine::{Arm, Below, Kernel};
use crate::traps::faults;

/// Reads a system register.
macro_rules! read {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reads a register.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack)) };
        value
    }};
}

/// Each register that decides how translation works: reads it, and tries to write it; true if that faulted.
type Translation = (&'static str, fn() -> u64, fn(u64) -> bool);

const TRANSLATION: &[Translation] = &[
    ("sctlr_el1", || read!("sctlr_el1"), |x| faults!("msr sctlr_el1, {x}"; x = in(reg) x)),
    ("tcr_el1", || read!("tcr_el1"), |x| faults!("msr tcr_el1, {x}"; x = in(reg) x)),
    ("mair_el1", || read!("mair_el1"), |x| faults!("msr mair_el1, {x}"; x = in(reg) x)),
    ("amair_el1", || read!("amair_el1"), |x| faults!("msr amair_el1, {x}"; x = in(reg) x)),
    ("ttbr0_el1", || read!("ttbr0_el1"), |x| faults!("msr ttbr0_el1, {x}"; x = in(reg) x)),
    ("ttbr1_el1", || read!("ttbr1_el1"), |x| faults!("msr ttbr1_el1, {x}"; x = in(reg) x)),
];

/// A register's fields that must be zero: their names, how it is read, and which bits they are.
type Fields = (&'static str, fn() -> u64, u64);

/// Bits that must be clear in registers as they are: what would give entries another meaning.
const CLEAR: &[Fields] = &[
    (
        "SCTLR_EL1: EE, WXN, MSCEn, EnDA, EnDB, EnIA, EnIB, BT, ATA",
        || read!("sctlr_el1"),
        1 << 25 | 1 << 19 | 1 << 33 | 1 << 27 | 1 << 13 | 1 << 31 | 1 << 30 | 3 << 35 | 3 << 42,
    ),
    (
        "TCR_EL1: HA, HD, hierarchical permissions off, top byte, DS",
        || read!("tcr_el1"),
        3 << 39 | 3 << 41 | 3 << 37 | 0xff << 43 | 1 << 59,
    ),
    (
        "TTBR0_EL1 and TTBR1_EL1: address-space number, common",
        || read!("ttbr0_el1") | read!("ttbr1_el1"),
        0xffff << 48 | 1,
    ),
];

/// Runs the test `confined`.
pub fn run<B: Below>(guest: &Guest<Kernel<B>>, check: &mut Check<Kernel<B>>) {
    translation(check);
    address_translation(guest, check);
    caches(guest, check);
    identification(check);
    check.that("a breakpoint is this kernel's own", faults!("brk #7"));
    check.that("and says so", read!("esr_el1") == 0xf200_0007);
    let (before, after) = (read!("cntpct_el0"), read!("cntpct_el0"));
    check.that("the physical counter runs", after >= before);
}

/// The MMU is on, and no bit of what it works by can be changed.
fn translation<B: Below>(check: &mut Check<Kernel<B>>) {
    check.that("SCTLR_EL1: M, C, I", read!("sctlr_el1") & 0x1005 == 0x1005);
    check.that("one memory type", read!("mair_el1") == !0);
    for &(name, value, bits) in CLEAR {
        check.that(name, value() & bits == 0);
    }
    for &(name, value, is_refused) in TRANSLATION {
        let before = value();
        check.that(name, !is_refused(before));
        for bit in 0..64 {
            check.that(name, is_refused(before ^ 1 << bit));
            check.that(name, value() == before);
        }
    }
}

/// `at` shows machine addresses: those of frames that this kernel knows already. The answer is its own, and stays.
fn address_translation<B: Below>(guest: &Guest<Kernel<B>>, check: &mut Check<Kernel<B>>) {
    let Some(page) = guest.zeroed_page() else { return check.that("a page", false) };
    let address = guest.address(&page);
    let ask = |address: u64| {
        // SAFETY: translating an address changes PAR_EL1 and nothing else.
        unsafe { asm!("at s1e1r, {}", "isb", in(reg) address, options(nostack)) };
        read!("par_el1")
    };
    let frame = |answer: u64| (answer & 1 == 0).then_some(answer >> 12 & 0xf_ffff_ffff);
    check.that("one's own page", frame(ask(address)) == Some(guest.frame(&page)));
    let root = guest.info.pt_base;
    // SAFETY: as above.
    unsafe { asm!("at s1e1w, {}", "isb", in(reg) root, options(nostack)) };
    check.that("a table, to be written", read!("par_el1") & 1 == 1);
    for nothing in [0, 0x4000_0000, 0xffff_0000_0000_0000, Kernel::<B>::M2P_WINDOW + (4 << 40)] {
        check.that("where nothing is", ask(nothing) & 1 == 1);
    }
    let answer = ask(address);
    let mut text = [0u8; penumbra_abi::version::XEN_EXTRAVERSION_LEN];
    let told = call::<Arm>(XEN_VERSION, &[XENVER_EXTRAVERSION, address_of_mut(&mut text)]);
    check.done("a hypercall that translates", told);
    check.that("PAR_EL1 is as it was", read!("par_el1") == answer);
    guest.pages.free(page);
}

/// Cache maintenance by address loses nothing, wherever it is tried.
fn caches<B: Below>(guest: &Guest<Kernel<B>>, check: &mut Check<Kernel<B>>) {
    let Some(page) = guest.zeroed_page() else { return check.that("a page", false) };
    let root = guest.info.pt_base;
    let entry = Kernel::<B>::read_word(root + 8);
    guest.write(&page, 0, 0x5afe);
    for address in [guest.address(&page), root + 8, Kernel::<B>::M2P_WINDOW, 0, 0xffff_0000_0000_0000] {
        check.that("dc ivac", !faults!("dc ivac, {x}"; x = in(reg) address));
        check.that("dc civac", !faults!("dc civac, {x}"; x = in(reg) address));
        check.that("dc cvac", !faults!("dc cvac, {x}"; x = in(reg) address));
    }
    check.that("what was written is there", guest.read(&page, 0) == 0x5afe);
    check.that("and so is the table", Kernel::<B>::read_word(root + 8) == entry);
    guest.pages.free(page);
}

/// What the ID registers must not say, whatever the processor has: name, value, the fields that must be zero.
const HIDDEN: &[Fields] = &[
    ("EL2, EL3, RAS, SVE, MPAM, AMU", || read!("id_aa64pfr0_el1"), 0xff00 | 0xf_ffff << 28),
    ("the interrupt controller's registers", || read!("id_aa64pfr0_el1"), 0xf << 24),
    ("branch targets, MTE, RAS, MPAM, SME", || read!("id_aa64pfr1_el1"), !0xf0),
    ("SVE", || read!("S3_0_C0_C4_4"), !0),
    ("SME", || read!("S3_0_C0_C4_5"), !0),
    ("counters, breakpoints, trace, profiling", || read!("id_aa64dfr0_el1"), !0xf),
    ("debug", || read!("id_aa64dfr1_el1"), !0),
    ("pointer authentication", || read!("id_aa64isar1_el1"), 0xff0 | 0xff << 24),
    ("access flag, VMIDs, VHE, hierarchical permissions, LOR", || read!("id_aa64mmfr1_el1"), !0xf0_0000),
    (
        "larger addresses, nested virtualization, E0PD",
        || read!("id_aa64mmfr2_el1"),
        0xf << 16 | 0xf << 24 | 0xf << 60,
    ),
    (
        "AArch32",
        || read!("id_pfr0_el1") | read!("id_isar0_el1") | read!("id_mmfr0_el1") | read!("id_dfr0_el1"),
        !0,
    ),
    ("media and floating point of AArch32", || read!("mvfr0_el1") | read!("mvfr1_el1"), !0),
    ("revision, auxiliary", || read!("revidr_el1") | read!("aidr_el1") | read!("id_afr0_el1"), !0),
];

fn identification<B: Below>(check: &mut Check<Kernel<B>>) {
    for &(name, value, fields) in HIDDEN {
        check.that(name, value() & fields == 0);
    }
    check.that("EL0 and EL1 in AArch64 alone", read!("id_aa64pfr0_el1") & 0xff == 0x11);
}
