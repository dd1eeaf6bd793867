//! How this kernel can come to its end besides: by what its user comes with, and by going to user mode.
//!
//! A user's page fault needs a handler and a stack of the kernel's, and `iret` needs nine words and a root for the user. The hypervisor has
//! short ways for both, on which it is as particular as on the full ones: wherever a stack is that the kernel could not use itself, the
//! hypervisor doesn't use it either, and its own memory least of all.

use core::arch::global_asm;

use guest_core::architecture::{Architecture, Death, PAGE_SHIFT, PAGE_SIZE};
use guest_core::guest::Guest;
use guest_core::hypercalls::{self, call, mmuext, update_va_mapping};
use guest_core::pages::Page;
use guest_core::say;
use penumbra_abi::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::mmu::MMUEXT_NEW_USER_BASEPTR;
use penumbra_abi::sched::SHUTDOWN_POWEROFF;
use penumbra_abi::x86_64::{FLAT_RING3_CS64, FLAT_RING3_SS64, HYPERVISOR_VIRT_END, IretContext};

use crate::assembly::{keep_registers, load_kept_registers};
use crate::machine::X86;
use crate::traps;
use crate::user::{KERNEL_STACK, USER_CODE, User};
use crate::user_mode::HYPERVISOR;
use crate::user_mode::came::{MASKS_EVENTS, PAGE_FAULT};

/// `mov rax, [0x5000]`, where nothing is: not at 0, at which a kernel would fault that is entered where no handler is.
const FAULTING: u64 = 0x0000_5000_2504_8b48;
/// `xor ebx, ebx; syscall`: a user that ends at once.
const ENDING: u64 = 0x050f_db31;
/// Flags with which a user runs: interrupts on.
const FLAGS: u64 = 0x202;
/// Bytes of a page that are on this side of an edge, when a frame lies across it: fewer than any frame has.
const ACROSS: u64 = 32;
/// Nothing is mapped there.
const NOWHERE: u64 = 0x1000;

/// The ways to die that need user mode.
pub const DEATHS: &[Death<X86>] = &[
    ("user-fault", fault_of_a_user),
    ("stack-in-the-direct-map", |guest| {
        fault_with_stack(guest, |there| direct_map(there, &there.pages[0]) + PAGE_SIZE);
    }),
    ("stack-below-the-guests", |guest| fault_with_stack(guest, |_| HYPERVISOR_VIRT_END)),
    ("stack-across-the-guests-first", |guest| fault_with_stack(guest, |_| HYPERVISOR_VIRT_END + ACROSS)),
    ("stack-that-ends-in-a-hole", |guest| fault_with_stack(guest, |there| there.hole() + ACROSS)),
    ("stack-that-begins-in-a-hole", |guest| {
        fault_with_stack(guest, |there| there.hole() + PAGE_SIZE + ACROSS);
    }),
    ("stack-nowhere", |guest| fault_with_stack(guest, |_| NOWHERE + PAGE_SIZE)),
    ("iret-in-the-direct-map", |guest| iret_with_stack(guest, |there| direct_map(there, &there.pages[0]))),
    ("iret-below-the-guests", |guest| iret_with_stack(guest, |_| HYPERVISOR_VIRT_END - 8)),
    ("iret-across-a-hole", |guest| iret_with_stack(guest, |there| there.hole() - ACROSS)),
    ("iret-round-the-end", |guest| iret_with_stack(guest, |_| ACROSS.wrapping_neg())),
    ("iret-without-a-user", iret_without_a_user),
];

fn fault_of_a_user(guest: &Guest<X86>) {
    let Ok(user) = faulting(guest) else { return };
    X86::remove_traps();
    user.run(0);
    survived("after the user");
}

/// A user that faults, and its handler.
fn faulting<'a>(guest: &'a Guest<X86>) -> Result<User<'a>, Errno> {
    say!(X86, "going to user mode, to fault there with no handler, or with no stack");
    let user = User::new(guest, &[FAULTING])?;
    traps::install_one(PAGE_FAULT as u8, MASKS_EVENTS, faulted)?;
    Ok(user)
}

global_asm!(
    r#"
    .section .text.traps, "ax"
    // Whatever stack it gets is not to be used.
    death_faulted:
        movq {kernel_stack}(%rip), %rsp
        andq $-16, %rsp
        call {said}
        ud2

    // Has the hypervisor take the words for iret from rdi. A user's end leads to behind it.
    death_iret:
    "#,
    keep_registers!(),
    r#"
        call 1f
    "#,
    load_kept_registers!(),
    r#"
        ret
    1:  movq %rsp, {kernel_stack}(%rip)
        movq %rdi, %rsp
        movl ${iret}, %eax
        syscall
        movq {kernel_stack}(%rip), %rsp
        ret
    "#,
    kernel_stack = sym KERNEL_STACK,
    said = sym said,
    iret = const number::IRET,
    options(att_syntax)
);

unsafe extern "C" {
    #[link_name = "death_faulted"]
    fn faulted();
    #[link_name = "death_iret"]
    fn iret_from(words: u64);
}

extern "C" fn said() -> ! {
    survived("in the handler")
}

/// What must not be.
fn survived(place: &str) -> ! {
    say!(X86, "still alive {place}");
    hypercalls::shutdown::<X86>(SHUTDOWN_POWEROFF)
}

/// Where a stack may be.
struct There<'a> {
    guest: &'a Guest<X86>,
    /// Three pages in a row, the middle one of which isn't mapped.
    pages: [Page; 3],
}

impl<'a> There<'a> {
    fn new(guest: &'a Guest<X86>) -> Option<Self> {
        let pages = [guest.zeroed_page()?, guest.zeroed_page()?, guest.zeroed_page()?];
        let there = Self { guest, pages };
        let in_a_row = there.pages.windows(2).all(|pair| pair[0].pfn() + 1 == pair[1].pfn());
        (in_a_row && update_va_mapping::<X86>(there.hole(), 0).is_ok()).then_some(there)
    }

    fn hole(&self) -> u64 {
        self.guest.address(&self.pages[1])
    }
}

/// Where the hypervisor sees the page, and this kernel doesn't.
fn direct_map(there: &There<'_>, page: &Page) -> u64 {
    HYPERVISOR + (there.guest.frame(page) << PAGE_SHIFT)
}

fn fault_with_stack(guest: &Guest<X86>, stack: impl FnOnce(&There<'_>) -> u64) {
    let (Some(there), Ok(user)) = (There::new(guest), faulting(guest)) else { return };
    let stack = stack(&there);
    say!(X86, "the stack ends at {stack:#x}");
    if call::<X86>(number::STACK_SWITCH, &[FLAT_RING3_SS64.into(), stack]).is_ok() {
        user.run(0);
        survived("after the user");
    }
}

/// The words themselves would do, wherever they can be at all: in the first page from its beginning, and up to the hole.
fn iret_with_stack(guest: &Guest<X86>, stack: impl FnOnce(&There<'_>) -> u64) {
    let Some(there) = There::new(guest) else { return };
    let Ok(_user) = User::new(guest, &[ENDING]) else { return };
    write_words(&there, 0);
    write_words(&there, (PAGE_SIZE - ACROSS) / 8);
    let stack = stack(&there);
    say!(X86, "iret with its words at {stack:#x}");
    // SAFETY: it returns if a user came of it; else the domain is at its end.
    unsafe { iret_from(stack) };
    survived("after iret");
}

fn iret_without_a_user(guest: &Guest<X86>) {
    let Some(there) = There::new(guest) else { return };
    let Ok(_user) = User::new(guest, &[ENDING]) else { return };
    if mmuext::<X86>(MMUEXT_NEW_USER_BASEPTR, 0, 0).is_err() {
        return;
    }
    write_words(&there, 0);
    say!(X86, "iret to user mode with no root for that");
    // SAFETY: as above.
    unsafe { iret_from(guest.address(&there.pages[0])) };
    survived("after iret");
}

/// Writes what `iret` takes into the first page, as far as it has room for that.
fn write_words(there: &There<'_>, index: u64) {
    let words = IretContext {
        rip: USER_CODE,
        cs: FLAT_RING3_CS64.into(),
        rflags: FLAGS,
        ss: FLAT_RING3_SS64.into(),
        ..IretContext::default()
    };
    let words = [
        words.rax,
        words.r11,
        words.rcx,
        words.flags,
        words.rip,
        words.cs,
        words.rflags,
        words.rsp,
        words.ss,
    ];
    for (index, word) in (index..PAGE_SIZE / 8).zip(words) {
        there.guest.write(&there.pages[0], index as usize, word);
    }
}
