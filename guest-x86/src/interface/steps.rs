//! Single steps over instructions that are carried out for a kernel: the debug exception comes right behind them, as behind any other.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_core::architecture::Architecture;
use guest_core::guest::Guest;
use guest_core::hypercalls::{call, mmuext};
use guest_core::tests::Check;
use penumbra_abi::hypercall::{GET_DEBUGREG, SET_DEBUGREG, VM_ASSIST};
use penumbra_abi::mmu::MMUEXT_TLB_FLUSH_LOCAL;
use penumbra_abi::vm_assist::{VMASST_CMD_DISABLE, VMASST_CMD_ENABLE, VMASST_TYPE_WRITABLE_PAGETABLES};

use crate::assembly::leave_handler;
use crate::machine::X86;
use crate::traps;

const DEBUG: u8 = 1;
/// In the debug registers' status: it was a single step.
const SINGLE_STEP: u64 = 1 << 14;
/// An entry's right to write.
const WRITABLE: u64 = 1 << 1;

/// How often a step came, and behind which instruction the first one did.
static STEPS: AtomicU64 = AtomicU64::new(0);
static FIRST: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
    .section .text.traps, "ax"
    // The stack, lowest first: rcx, r11, rip, cs, rflags, rsp, ss. The trap flag is taken away.
    interface_step:
        andl $~0x100, 32(%rsp)
        incq {steps}(%rip)
        cmpq $1, {steps}(%rip)
        jne 1f
        movq 16(%rsp), %rcx
        movq %rcx, {first}(%rip)
    1:
    "#,
    leave_handler!(),
    steps = sym STEPS,
    first = sym FIRST,
    options(att_syntax)
);

unsafe extern "C" {
    fn interface_step();
}

/// Executes one instruction, which may change rbx, with the trap flag set; whether the step came right behind it, and no other one.
macro_rules! steps {
    ($line:literal; $($operands:tt)*) => {{
        let behind: u64;
        STEPS.store(0, Ordering::Relaxed);
        // SAFETY: the instruction is one that the caller may execute; the handler of debug exceptions takes the flag away.
        unsafe {
            core::arch::asm!(
                "lea {behind}, [rip + 2f]",
                "mov {kept}, rbx",
                "pushfq",
                "or dword ptr [rsp], 0x100",
                "popfq",
                $line,
                "2: nop",
                "nop",
                "mov rbx, {kept}",
                behind = out(reg) behind,
                kept = out(reg) _,
                $($operands)*
            );
        }
        STEPS.load(Ordering::Relaxed) == 1 && FIRST.load(Ordering::Relaxed) == behind
    }};
}

/// Whether the status says that there was a step, which it doesn't afterwards.
fn status_says_so() -> bool {
    let said = call::<X86>(GET_DEBUGREG, &[6]).is_ok_and(|status| status & SINGLE_STEP != 0);
    said && call::<X86>(SET_DEBUGREG, &[6, 0]).is_ok()
}

pub fn run(guest: &Guest<X86>, check: &mut Check<X86>) {
    check.done("a handler for single steps", traps::install_one(DEBUG, 0, interface_step));
    check.done("no status", call::<X86>(SET_DEBUGREG, &[6, 0]));
    check.that("a step over an instruction of one's own", steps!("xor {x:e}, {x:e}"; x = out(reg) _));
    check.that("the status says so", status_says_so());
    // `ud2`, the letters "xen" and `cpuid`.
    let stepped = steps!(
        ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2";
        inout("rax") 0x4000_0000u64 => _, inout("rcx") 0u64 => _, out("rdx") _
    );
    check.that("a step over cpuid", stepped);
    check.that("the status says so", status_says_so());
    let stepped = steps!("mov {x}, cr0"; x = out(reg) _);
    check.that("a step over a privileged instruction", stepped);
    check.that("the status says so", status_says_so());
    table_writes(guest, check);
}

/// The same over writes to a table of one's own; and over so many in a row that the table is taken out of its tree.
fn table_writes(guest: &Guest<X86>, check: &mut Check<X86>) {
    let Some(page) = guest.zeroed_page() else { return check.that("there is a page for the test", false) };
    let Some(leaf) = guest.leaf(guest.address(&page)) else { return check.that("it is mapped", false) };
    let place = guest.linear_of_frame(leaf.table_frame) + leaf.index as u64 * 8;
    let entry = X86::leaf(guest.frame(&page), true);
    let assist =
        |command: u32| call::<X86>(VM_ASSIST, &[command.into(), VMASST_TYPE_WRITABLE_PAGETABLES.into()]);
    check.done("switch the assistance on", assist(VMASST_CMD_ENABLE));
    let each = (0..64).all(|round| {
        let entry = if round % 2 == 0 { entry & !WRITABLE } else { entry };
        // Xen 4.17 leaves the status as it is.
        let stepped = steps!("mov [{p}], {v}"; p = in(reg) place, v = in(reg) entry);
        stepped && (status_says_so() || !guest.on_penumbra)
    });
    check.that("a step over each of 64 writes to a table", each);
    let stepped = steps!("lock and byte ptr [{p}], 0xfd"; p = in(reg) place);
    check.that("over a write that makes something of what is there", stepped);
    // What the processor remembers of the entry is this kernel's own business.
    check.done("a flush", mmuext::<X86>(MMUEXT_TLB_FLUSH_LOCAL, 0, 0));
    check.that("the page is as the entry says", !X86::try_write_word(guest.address(&page), 1));
    check.that("and over the way back", steps!("lock or qword ptr [{p}], 2"; p = in(reg) place));
    check.done("switch the assistance off", assist(VMASST_CMD_DISABLE));
    guest.pages.free(page);
}
