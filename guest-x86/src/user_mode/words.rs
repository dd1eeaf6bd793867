//! The words by which a kernel goes to its user, and those that it finds when the user faults.
//!
//! The hypervisor has short ways for both, which a kernel takes whose handler masks events; they have to come to the same as the full ones.
//! So everything here is tried with both kinds of handler. A user faults at its first instruction, or behind one that has loaded its flags;
//! the handler notes what it finds, and that is the end of the user.

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_core::events::{self, Events};
use guest_core::guest::Guest;
use guest_core::hypercalls::call;
use guest_core::tests::Check;
use penumbra_abi::hypercall as number;
use penumbra_abi::shared_info::X86VcpuInfo;
use penumbra_abi::x86_64::{FLAT_RING3_CS64, FLAT_RING3_SS64};

use crate::machine::X86;
use crate::user::{KERNEL_STACK, USER_CODE, User};
use crate::user_mode::USER;
use crate::user_mode::came::{MASKS_EVENTS, PAGE_FAULT};
use crate::{late_traps, traps};

const CODE: u64 = FLAT_RING3_CS64 as u64;
const STACK: u64 = FLAT_RING3_SS64 as u64;
/// The lowest two bits of a selector: the ring.
const RING: u64 = 3;
/// In the frame's word for it: the code segment, and whether events were masked.
const CS_AND_MASK: u64 = 0xff_0000_ffff;

/// Flags: interrupts, or what the guest sees there, that events aren't masked; the direction of string instructions; overflow.
const INTERRUPTS: u64 = 1 << 9;
const DIRECTION: u64 = 1 << 10;
const OVERFLOW: u64 = 1 << 11;
/// Who may access ports; nested task; virtual-8086 mode.
const PORTS: u64 = 3 << 12;
const NESTED: u64 = 1 << 14;
const VIRTUAL: u64 = 1 << 17;
/// A trap after each instruction; resume; alignment check.
const TRAP: u64 = 1 << 8;
const RESUME: u64 = 1 << 16;
const ALIGNMENT: u64 = 1 << 18;
/// The bit that is always set.
const ONE: u64 = 1 << 1;

/// `mov rax, [0x5000]`, where nothing is.
const FAULTING: &[u64] = &[0x0000_5000_2504_8b48];
/// `mov esp, USER_CODE + 16; popfq`, and then the same.
const LOADING: [u64; 2] = [
    u64::from_le_bytes([0xbc, 0x10, 0x10, 0, 0, 0x9d, 0x48, 0x8b]),
    u64::from_le_bytes([0x04, 0x25, 0, 0x50, 0, 0, 0x90, 0x90]),
];
const _: () = assert!(USER_CODE == 0x1000);

/// What the handler finds, in the order of the frame, without rcx and r11.
#[derive(Clone, Copy)]
#[repr(C)]
struct Found {
    error: u64,
    rip: u64,
    cs: u64,
    flags: u64,
    rsp: u64,
    ss: u64,
    /// The handler's own flags, and its stack pointer.
    own_flags: u64,
    bottom: u64,
    /// Whether events are masked then.
    masked: u64,
}

const WORDS: usize = size_of::<Found>() / 8;
/// Where the handler notes it, and where it finds the mask.
static FOUND: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
static MASK: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
    .section .text.traps, "ax"
    // Stack, lowest first: rcx, r11, error code, rip, cs, rflags, rsp, ss.
    user_words_fault:
        movq %rsp, {found} + {bottom}(%rip)
        pushfq
        popq {found} + {own_flags}(%rip)
        cld
        addq $16, %rsp
        .set user_words_offset, 0
        .rept 6
        popq {found} + user_words_offset(%rip)
        .set user_words_offset, user_words_offset + 8
        .endr
        movq {mask}(%rip), %rax
        movzbl (%rax), %eax
        movq %rax, {found} + {masked}(%rip)
        movq {kernel_stack}(%rip), %rsp
        ret
    "#,
    found = sym FOUND,
    bottom = const offset_of!(Found, bottom),
    own_flags = const offset_of!(Found, own_flags),
    masked = const offset_of!(Found, masked),
    mask = sym MASK,
    kernel_stack = sym KERNEL_STACK,
    options(att_syntax)
);

unsafe extern "C" {
    fn user_words_fault();
}

/// How a user is begun.
#[derive(Clone, Copy)]
struct Begin<'a> {
    code: &'a [u64],
    /// Of the handler.
    handler: u8,
    flags: u64,
    ss: u64,
    /// Bytes by which the kernel's stack ends before its page does.
    below: u64,
}

const USUAL: Begin<'static> =
    Begin { code: FAULTING, handler: MASKS_EVENTS, flags: INTERRUPTS | ONE, ss: STACK, below: 0 };

impl Begin<'_> {
    /// Has the user fault: what the handler finds, and where the kernel's stack was said to end.
    fn fault(&self, guest: &Guest<X86>) -> Option<(Found, u64)> {
        traps::install_one(PAGE_FAULT as u8, self.handler, user_words_fault).ok()?;
        FOUND.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let user = User::new(guest, self.code).ok()?;
        let stack = user.stack_end() - self.below;
        call::<X86>(number::STACK_SWITCH, &[STACK, stack]).ok()?;
        user.run_by(CODE, self.flags, self.ss, 0);
        user.end().ok()?;
        Some((found(), stack))
    }

    /// Whether that is what is found, whatever the handler does with events.
    fn finds(&self, guest: &Guest<X86>, what: impl Fn(&Found, u64) -> bool) -> bool {
        [MASKS_EVENTS, 0].into_iter().all(|handler| {
            let found = Begin { handler, ..*self }.fault(guest);
            found.is_some_and(|(found, stack)| found.error == USER && what(&found, stack))
        })
    }
}

fn found() -> Found {
    let [error, rip, cs, flags, rsp, ss, own_flags, bottom, masked] =
        [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|index: usize| FOUND[index].load(Ordering::Relaxed));
    Found { error, rip, cs, flags, rsp, ss, own_flags, bottom, masked }
}

/// Runs the chapter of the test `user-mode`. It leaves another handler for page faults than it has found.
pub fn run(guest: &Guest<X86>, events: &Events<X86>, check: &mut Check<X86>) {
    MASK.store(events.address() + offset_of!(X86VcpuInfo, evtchn_upcall_mask) as u64, Ordering::Relaxed);
    masks(guest, check);
    stacks(guest, check);
    flags(guest, check);
    rings(guest, check);
    pending(guest, events, check);
}

/// Who masks events: the words of `iret` by the interrupt flag, and a handler by its own flags. The frame says what the words said.
fn masks(guest: &Guest<X86>, check: &mut Check<X86>) {
    for (name, masked) in [("events let through by iret", 0), ("events masked by iret", 1)] {
        let flags = if masked == 0 { INTERRUPTS | ONE } else { ONE };
        for (handler, masked_then) in [(0, masked), (MASKS_EVENTS, 1)] {
            let found = Begin { handler, flags, ..USUAL }.fault(guest);
            let good = found.is_some_and(|(found, _)| {
                found.cs & CS_AND_MASK == CODE | masked << 32
                    && found.flags & INTERRUPTS == flags & INTERRUPTS
                    && found.masked == masked_then
            });
            check.that(name, good);
        }
    }
}

/// The frame is aligned, wherever the kernel's stack ends.
fn stacks(guest: &Guest<X86>, check: &mut Check<X86>) {
    for below in [0, 1, 8, 15, 24] {
        let aligned = |found: &Found, stack: u64| found.bottom == (stack & !15) - 8 * 8;
        check.that("an aligned frame", Begin { below, ..USUAL }.finds(guest, aligned));
    }
}

/// The handler has none of a user's flags that would get into its way, and the user none that it must not have, whatever the words say.
fn flags(guest: &Guest<X86>, check: &mut Check<X86>) {
    for of_user in [NESTED | ALIGNMENT, NESTED | ALIGNMENT | TRAP] {
        let code = [LOADING[0], LOADING[1], INTERRUPTS | ONE | of_user];
        let good = |found: &Found, _| {
            found.rip == USER_CODE + 6
                && found.rsp == USER_CODE + 24
                && found.flags & of_user == of_user
                && found.own_flags & (TRAP | NESTED | RESUME | ALIGNMENT | VIRTUAL) == 0
        };
        check.that("flags that a user has loaded", Begin { code: &code, ..USUAL }.finds(guest, good));
    }
    // Users could have nested tasks by themselves, too.
    let kept = DIRECTION | OVERFLOW | ALIGNMENT | TRAP | NESTED;
    let refused = PORTS | VIRTUAL;
    let good = |found: &Found, _| {
        found.rip == USER_CODE
            && found.flags & (kept | refused) == kept
            && found.own_flags & (PORTS | VIRTUAL) == 0
    };
    let begin = Begin { flags: INTERRUPTS | ONE | kept | refused, ..USUAL };
    check.that("flags in the words of iret", begin.finds(guest, good));
}

/// A user's stack segment is ring 3's; a code segment of another ring is the kernel's own, even where there is a user.
fn rings(guest: &Guest<X86>, check: &mut Check<X86>) {
    for ring in 0..RING {
        let begin = Begin { ss: STACK & !RING | ring, ..USUAL };
        let good = |found: &Found, _| found.ss == STACK && found.rip == USER_CODE;
        check.that("a stack segment of another ring", begin.finds(guest, good));
    }
    let Some(user) = check.done("a user", User::new(guest, FAULTING)) else { return };
    for ring in 0..RING {
        check.that("iret to the kernel, with a user there", late_traps::iret(CODE & !RING | ring));
    }
    check.done("no user", user.end());
}

/// An event that waits comes before the user executes anything, if the words let it; its fault's handler masks events, and would keep it
/// away for longer.
fn pending(guest: &Guest<X86>, events: &Events<X86>, check: &mut Check<X86>) {
    let Some(port) = check.done("a port", events::bind_ipi::<X86>(0)) else { return };
    check.done("it is unmasked", events::unmask::<X86>(port));
    for (flags, coming) in [(INTERRUPTS | ONE, 1), (ONE, 0)] {
        events.mask(true);
        check.done("an event", events::send::<X86>(port));
        let before = events.count(port);
        let faulted = Begin { flags, ..USUAL }.fault(guest).is_some();
        check.that("an event that waits for a user", faulted && events.count(port) == before + coming);
        events.mask(false);
        check.that("it comes once", events.count(port) == before + 1);
    }
    check.done("close the port", events::close::<X86>(port));
}
