//! What a kernel at EL1 does by itself: system calls, page faults, TLB maintenance, its tables.
//!
//! In direct mode none of it concerns the hypervisor. Measured in a domain and again with nothing below the kernel, the
//! figures must be the same to the digit: the difference is what the hypervisor costs, and that is nothing.

use core::arch::{asm, global_asm};

use guest_core::architecture::{Architecture, PAGE_SIZE};
use guest_core::bench::ArchitectureRow;
use guest_core::bench::upcall::send_to_itself;
use guest_core::guest::Guest;
use guest_core::hypercalls::update_va_mapping;
use guest_core::pages::Page;
use penumbra_abi::Errno;

use crate::machine::{Below, Kernel};
use crate::{traps, upcall};

/// Rows that only this architecture has.
pub const fn rows<B: Below>() -> &'static [ArchitectureRow<Kernel<B>>] {
    &[
        ("event-upcall", |guest, count| send_to_itself(guest, count, &upcall::HANDLER)),
        ("native-system-call", |guest, count| with_user_page(guest, |code| system_calls::<B>(code, count))),
        ("native-page-fault", |_, count| with_vectors(|| page_faults::<B>(count))),
        ("native-flush-page", |guest, count| Ok(flushes_of_page::<B>(guest.info.pt_base, count))),
        ("native-flush-all", |_, count| Ok(flushes_of_all::<B>(count))),
    ]
}

/// An address in the kernel's half that nothing is mapped at.
const NOWHERE: u64 = 0xffff_9000_0000_0000;
/// In an entry: EL0 may use it, nobody may write, and EL0 may execute it.
const USER: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const USER_NO_EXECUTE: u64 = 1 << 54;
/// `1: svc #0; subs x8, x8, #1; b.ne 1b; svc #0`, the first two in the first word.
const USER_LOOP: [u64; 2] = [0xf100_0508_d400_0001, 0xd400_0001_54ff_ffc1];
/// `SPSR_EL1` of the user: EL0, all interrupts masked.
const USER_STATE: u64 = 0x3c0;

global_asm!(
    r#"
    .section .text.traps, "ax"
    .balign 2048
    bench_vectors:
        .balign 2048
        .skip 0x200
        // Current EL, synchronous: steps over the instruction.
        mrs x9, elr_el1
        add x9, x9, #4
        msr elr_el1, x9
        eret
        // Current EL, interrupt.
        .balign 0x80
        b bench_upcall
        .balign 0x200
        // Lower EL, AArch64, synchronous: back at once, but for the last one.
        cbz x8, 1f
        eret
    1:  br x10
        .balign 2048
    "#
);

unsafe extern "C" {
    static bench_vectors: [u8; 2048];
}

/// Installs this file's vectors.
pub fn install() {
    // SAFETY: the vectors handle the exceptions that the measured loops raise; the usual ones come back after them.
    unsafe { asm!("msr vbar_el1, {}", "isb", in(reg) &raw const bench_vectors, options(nostack)) };
}

/// Runs `measure` with this file's vectors.
fn with_vectors(measure: impl FnOnce() -> u64) -> Result<u64, Errno> {
    install();
    let taken = measure();
    traps::install();
    Ok(taken)
}

/// Runs `measure` with the address of a user's page that holds the loop of system calls.
fn with_user_page<B: Below>(
    guest: &Guest<Kernel<B>>,
    measure: impl FnOnce(u64) -> u64,
) -> Result<u64, Errno> {
    let page = guest.zeroed_page().ok_or(Errno::ENOMEM)?;
    USER_LOOP.iter().enumerate().for_each(|(index, word)| guest.write(&page, index, *word));
    let ordinary = Kernel::<B>::leaf(guest.frame(&page), true);
    map(guest, &page, (ordinary | USER | READ_ONLY) & !USER_NO_EXECUTE)?;
    let result = with_vectors(|| measure(guest.address(&page)));
    map(guest, &page, ordinary)?;
    guest.pages.free(page);
    result
}

/// Maps `page` at its address by `entry`: by hypercall, or where there is no hypervisor by writing the table.
fn map<B: Below>(guest: &Guest<Kernel<B>>, page: &Page, entry: u64) -> Result<(), Errno> {
    let address = guest.address(page);
    if B::NATIVE {
        let step = guest.leaf(address).ok_or(Errno::EFAULT)?;
        Kernel::<B>::write_word(guest.linear_of_frame(step.table_frame) + step.index as u64 * 8, entry);
    } else {
        update_va_mapping::<Kernel<B>>(address, entry)?;
    }
    let operand = (address / PAGE_SIZE) & ((1 << 44) - 1);
    // SAFETY: maintenance; the instructions in the page are looked at anew, too.
    unsafe {
        asm!("dsb ish", "tlbi vaae1, {}", "dsb ish", "ic iallu", "dsb ish", "isb", in(reg) operand, options(nostack))
    };
    Ok(())
}

/// `count` system calls from EL0 and back.
fn system_calls<B: Below>(code: u64, count: u64) -> u64 {
    // With a count of zero, the first system call is the last one.
    let rounds = |count: u64| {
        let start = Kernel::<B>::counter();
        // SAFETY: EL0 runs the loop in its page and comes back by the vector at label 2 with the same stack.
        unsafe {
            asm!(
                "adr x10, 2f",
                "msr spsr_el1, {state}",
                "msr elr_el1, {code}",
                "eret",
                "2:",
                state = in(reg) USER_STATE,
                code = in(reg) code,
                inout("x8") count => _,
                out("x10") _,
                options(nostack)
            );
        }
        Kernel::<B>::counter().wrapping_sub(start)
    };
    // The loop's other two instructions are counted, too: both kernels have them.
    rounds(count).saturating_sub(rounds(0))
}

/// `count` loads from nowhere.
fn page_faults<B: Below>(count: u64) -> u64 {
    let start = Kernel::<B>::counter();
    // SAFETY: each load faults, and the handler steps over it; it changes x9 only.
    unsafe {
        asm!("2:", "ldr {x}, [{a}]", "subs {n}, {n}, #1", "b.ne 2b",
            x = out(reg) _, a = in(reg) NOWHERE, n = inout(reg) count => _, out("x9") _, options(nostack))
    };
    Kernel::<B>::counter().wrapping_sub(start)
}

/// `count` flushes of one page.
fn flushes_of_page<B: Below>(address: u64, count: u64) -> u64 {
    let operand = (address / PAGE_SIZE) & ((1 << 44) - 1);
    let start = Kernel::<B>::counter();
    // SAFETY: forgetting a translation changes nothing but time.
    unsafe {
        asm!("2:", "dsb ishst", "tlbi vaae1is, {a}", "dsb ish", "isb", "subs {n}, {n}, #1", "b.ne 2b",
            a = in(reg) operand, n = inout(reg) count => _, options(nostack))
    };
    Kernel::<B>::counter().wrapping_sub(start)
}

/// `count` flushes of everything.
fn flushes_of_all<B: Below>(count: u64) -> u64 {
    let start = Kernel::<B>::counter();
    // SAFETY: forgetting translations changes nothing but time.
    unsafe {
        asm!("2:", "dsb ishst", "tlbi vmalle1is", "dsb ish", "isb", "subs {n}, {n}, #1", "b.ne 2b",
            n = inout(reg) count => _, options(nostack))
    };
    Kernel::<B>::counter().wrapping_sub(start)
}
