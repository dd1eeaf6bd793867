//! What a kernel in direct mode does without any hypervisor: system calls, page faults, TLB maintenance.
//!
//! Each is done in a loop whose instructions can be counted by reading it. Under an emulator in which an instruction takes a
//! nanosecond, the virtual counter must say just that: one entry into EL2 would be a hundred more.

use core::arch::{asm, global_asm};
use guest_core::architecture::Unseen;

/// Executes instructions so many times; the counter's units for all.
macro_rules! counted {
    ($times:expr, $($line:literal),+; $($operands:tt)*) => {{
        let taken: u64;
        // SAFETY: the instructions change nothing that matters.
        unsafe {
            asm!(
                "mrs {start}, cntvct_el0",
                "2:",
                $($line,)+
                "subs {times}, {times}, #1",
                "b.ne 2b",
                "mrs {taken}, cntvct_el0",
                "sub {taken}, {taken}, {start}",
                start = out(reg) _,
                taken = out(reg) taken,
                times = inout(reg) $times => _,
                $($operands)*
            );
        }
        taken
    }};
}

/// Names, how many instructions one operation takes, and a function that does it so many times: the counter's units for all.
pub const UNSEEN: &[Unseen] = &[
    ("system calls", 5, |page, times| system_calls(page, times)),
    ("page faults", 7, |page, times| page_faults(page, times)),
    ("TLB maintenance", 10, |page, times| tlb_maintenance(page, times)),
    ("masks and own registers", 9, |page, times| own_registers(page, times)),
];

/// Names, the least that one takes if it traps, and a function that does it so many times. An instruction that doesn't trap takes one, and a
/// loop around it two more; the way to EL2 and back is about a hundred.
pub const SEEN: &[Unseen] = &[
    // HCR_EL2.TPCP.
    ("dc ivac is the hypervisor's", 30, |page, times| counted!(times, "dc ivac, {x}"; x = in(reg) page)),
    ("dc civac is the hypervisor's", 30, |page, times| counted!(times, "dc civac, {x}"; x = in(reg) page)),
    ("dc cvac is the hypervisor's", 30, |page, times| counted!(times, "dc cvac, {x}"; x = in(reg) page)),
    // TID1, TID3.
    ("revidr_el1 is the hypervisor's", 30, |_, times| counted!(times, "mrs {x}, revidr_el1"; x = out(reg) _)),
    ("aidr_el1 is the hypervisor's", 30, |_, times| counted!(times, "mrs {x}, aidr_el1"; x = out(reg) _)),
    (
        "id_aa64pfr0_el1 is the hypervisor's",
        30,
        |_, times| counted!(times, "mrs {x}, id_aa64pfr0_el1"; x = out(reg) _),
    ),
    (
        "id_pfr0_el1 is the hypervisor's",
        30,
        |_, times| counted!(times, "mrs {x}, id_pfr0_el1"; x = out(reg) _),
    ),
    // TVM, where what is written is what is there.
    (
        "sctlr_el1 is the hypervisor's",
        30,
        |_, times| counted!(times, "mrs {x}, sctlr_el1", "msr sctlr_el1, {x}"; x = out(reg) _),
    ),
    (
        "contextidr_el1 is the hypervisor's",
        30,
        |_, times| counted!(times, "msr contextidr_el1, {x}"; x = in(reg) 0u64),
    ),
    // CNTHCTL_EL2.EL1PCTEN.
    ("cntpct_el0 is the hypervisor's", 30, |_, times| counted!(times, "mrs {x}, cntpct_el0"; x = out(reg) _)),
];

/// What user mode executes: `svc` as often as x0 says, and once more. Starts a page.
pub const USER_CODE: [u64; 2] = [
    // svc #0; subs x0, x0, #1
    0xf100_0400_d400_0001,
    // b.ne -8; svc #1
    0xd400_0021_54ff_ffc1,
];

global_asm!(
    r#"
    .section .text.traps, "ax"
    .balign 2048
    unseen_vectors:
        .rept 4
        .balign 128
        b trap_fatal
        .endr
        // A fault of ours: go on after the instruction.
        .balign 128
        mrs x2, elr_el1
        add x2, x2, #4
        msr elr_el1, x2
        eret
        .rept 3
        .balign 128
        b trap_fatal
        .endr
        // User mode: back, until it has counted down.
        .balign 128
        cbz x0, unseen_user_done
        eret
        .rept 7
        .balign 128
        b trap_fatal
        .endr

    // unseen_system_calls(x0: how many, x1: address of the user's code): the counter's units.
    .globl unseen_system_calls
    unseen_system_calls:
        dc cvau, x1
        dsb ish
        ic ivau, x1
        dsb ish
        adr x9, unseen_vectors
        mrs x10, vbar_el1
        msr vbar_el1, x9
        msr elr_el1, x1
        mov x9, #0x3c0
        msr spsr_el1, x9
        isb
        mrs x11, cntvct_el0
        eret
    unseen_user_done:
        mrs x12, cntvct_el0
        msr vbar_el1, x10
        isb
        sub x0, x12, x11
        ret

    // unseen_page_faults(x0: how many, x1: an address that isn't mapped).
    .globl unseen_page_faults
    unseen_page_faults:
        adr x9, unseen_vectors
        mrs x10, vbar_el1
        msr vbar_el1, x9
        isb
        mrs x11, cntvct_el0
    1:  ldr x3, [x1]
        subs x0, x0, #1
        b.ne 1b
        mrs x12, cntvct_el0
        msr vbar_el1, x10
        isb
        sub x0, x12, x11
        ret
    "#
);

unsafe extern "C" {
    fn unseen_system_calls(times: u64, code: u64) -> u64;
    fn unseen_page_faults(times: u64, address: u64) -> u64;
}

/// `page` holds [`USER_CODE`], executable for the user.
fn system_calls(page: u64, times: u64) -> u64 {
    // SAFETY: the user's code is four instructions that end in the kernel; only registers that any function may use change, and the vectors are
    // put back.
    unsafe { unseen_system_calls(times, page) }
}

fn page_faults(_page: u64, times: u64) -> u64 {
    const NOWHERE: u64 = 0x1000;
    // SAFETY: the lower half has no tables, so each load faults, and goes on after itself.
    unsafe { unseen_page_faults(times, NOWHERE) }
}

fn tlb_maintenance(page: u64, times: u64) -> u64 {
    counted!(
        times,
        "dsb ishst",
        "tlbi vae1, {page}",
        "tlbi vaale1is, {page}",
        "tlbi aside1is, xzr",
        "tlbi vmalle1",
        "tlbi vmalle1is",
        "dsb ish",
        "isb";
        page = in(reg) page >> 12 & ((1 << 44) - 1)
    )
}

/// Writes back what was read.
fn own_registers(_page: u64, times: u64) -> u64 {
    counted!(
        times,
        "mrs {value}, tpidr_el1",
        "msr tpidr_el1, {value}",
        "mrs {value}, vbar_el1",
        "msr vbar_el1, {value}",
        "mrs {value}, cpacr_el1",
        "msr cpacr_el1, {value}",
        "msr daifset, #15";
        value = out(reg) _
    )
}
