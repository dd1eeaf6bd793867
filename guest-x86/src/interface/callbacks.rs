//! Where the hypervisor enters the kernel: callbacks of all kinds, `int`, 32-bit system calls, and what becomes of a state that can't be
//! loaded. And the selector of `gs`.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use guest_core::events;
use guest_core::guest::Guest;
use guest_core::hypercalls::{address_of, call};
use guest_core::tests::Check;
use penumbra_abi::Errno;
use penumbra_abi::callback::*;
use penumbra_abi::hypercall::{
    CALLBACK_OP, IRET, SET_CALLBACKS, SET_GDT, SET_SEGMENT_BASE, UPDATE_DESCRIPTOR,
};
use penumbra_abi::x86_64::{
    FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64, SEGBASE_GS_KERNEL, SEGBASE_GS_USER_SEL,
};

use crate::assembly::{keep_registers, leave_handler, load_kept_registers};
use crate::machine::X86;
use crate::traps;
use crate::user::User;

/// What a handler found on its stack, lowest first. The failsafe callback: rcx, r11, ds, es, fs, gs, rip, cs, rflags, rsp, ss. That of
/// general-protection faults: rcx, r11, error code, rip, cs, rflags, rsp, ss, and what lies beyond.
static FOUND: [AtomicU64; 11] = [const { AtomicU64::new(0) }; 11];
const DS: usize = 2;
/// How often each came, and `int` in the kernel.
static FAILURES: AtomicU64 = AtomicU64::new(0);
static FAULTS: AtomicU64 = AtomicU64::new(0);
static INTERRUPTS: AtomicU64 = AtomicU64::new(0);
/// The code segment that a 32-bit system call came from.
static CAME_FROM: AtomicU64 = AtomicU64::new(0);
/// Where [`bad_return`] goes on.
static RESUME: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
    .section .text.traps, "ax"
    interface_failsafe:
        incq {failures}(%rip)
        pushq %rdi
        pushq %rsi
        leaq {found}(%rip), %rdi
        leaq 16(%rsp), %rsi
        movl $11, %ecx
        cld
        rep movsq
        popq %rsi
        popq %rdi
        popq %rcx
        popq %r11
        addq $32, %rsp
        orq $3, 8(%rsp)
        iretq

    interface_bad_segment:
        incq {faults}(%rip)
        leaq {found}(%rip), %rdi
        movq %rsp, %rsi
        movl $8, %ecx
        cld
        rep movsq
        movq {resume}(%rip), %rsp
    "#,
    load_kept_registers!(),
    r#"
        ret

    // Tells the hypervisor to go on with the frame at rdi, which it can't.
    interface_bad_return:
    "#,
    keep_registers!(),
    r#"
        movq %rsp, {resume}(%rip)
        movq %rdi, %rsp
        movl ${iret}, %eax
        syscall
        ud2

    // Nobody gets here.
    interface_nowhere:
        rep insb
    interface_undefined:
        ud2

    // Stack, lowest first: rcx, r11, rip, cs, rflags, rsp, ss.
    interface_interrupt:
        incq {interrupts}(%rip)
    "#,
    leave_handler!(),
    r#"

    interface_system_call_32:
        movq 24(%rsp), %rcx
        movq %rcx, {came_from}(%rip)
        movq {kernel_stack}(%rip), %rsp
        ret
    "#,
    failures = sym FAILURES,
    found = sym FOUND,
    faults = sym FAULTS,
    resume = sym RESUME,
    interrupts = sym INTERRUPTS,
    came_from = sym CAME_FROM,
    kernel_stack = sym crate::user::KERNEL_STACK,
    iret = const IRET,
    options(att_syntax)
);

unsafe extern "C" {
    fn interface_failsafe();
    fn interface_bad_segment();
    fn interface_bad_return(frame: *const u64);
    fn interface_interrupt();
    fn interface_nowhere();
    fn interface_undefined();
    fn interface_system_call_32();
}

pub fn register(kind: u16, flags: u16, address: u64) -> Result<(), Errno> {
    let request = CallbackRegister { kind, flags, pad: 0, address };
    call::<X86>(CALLBACK_OP, &[CALLBACKOP_REGISTER, address_of(&request)]).map(drop)
}

pub fn unregister(kind: u16) -> Result<(), Errno> {
    let request = CallbackRegister { kind, ..CallbackRegister::default() };
    call::<X86>(CALLBACK_OP, &[CALLBACKOP_UNREGISTER, address_of(&request)]).map(drop)
}

pub fn run(guest: &Guest<X86>, check: &mut Check<X86>) {
    registration(check);
    bad_returns(guest, check);
    // The handler for faults that are tried.
    check.that("handlers", traps::install());
    interrupts(check);
    segments(guest, check);
    system_call_32(guest, check);
    check.done("no callbacks", call::<X86>(SET_CALLBACKS, &[0, 0, 0]).map(drop));
}

fn registration(check: &mut Check<X86>) {
    let place = interface_failsafe as *const () as u64;
    for kind in [CALLBACKTYPE_FAILSAFE, CALLBACKTYPE_SYSCALL, CALLBACKTYPE_SYSENTER, CALLBACKTYPE_SYSCALL32] {
        check.done("a callback of each kind", register(kind, CALLBACKF_MASK_EVENTS, place));
        check.refused("it can't be taken away", unregister(kind), &[Errno::EINVAL]);
        check.refused("not at what is no address", register(kind, 0, 1 << 63), &[Errno::EINVAL]);
    }
    // Xen says nothing of an address that it doesn't take, and takes the others.
    check.done(
        "all three, one of them no address",
        call::<X86>(SET_CALLBACKS, &[0, 1 << 63, place]).map(drop),
    );
    check.refused("a kind that there isn't", register(6, 0, place), &[Errno::ENOSYS]);
    check.refused("nor can it be taken away", unregister(6), &[Errno::ENOSYS]);
    let neither = call::<X86>(CALLBACK_OP, &[2, address_of(&CallbackRegister::default())]);
    check.refused("neither register nor unregister", neither, &[Errno::ENOSYS]);
}

/// `iret` to segments that there aren't: a general-protection fault at the place to which it was to go.
fn bad_returns(guest: &Guest<X86>, check: &mut Check<X86>) {
    check.done("a handler", traps::install_one(13, 0, interface_bad_segment));
    // Ring 0 in the selector: the kernel's own, and not its user mode.
    const NO_SEGMENT: u64 = 0x1230;
    let (code, stack) = (u64::from(FLAT_RING3_CS64) & !3, u64::from(FLAT_RING3_SS64));
    bad_return(check, NO_SEGMENT, stack, NO_SEGMENT, 0x1234_5000);
    // The null selector's error code is that of instructions which are carried out, and none of these is, wherever it was to go: Xen carries
    // them out, one after the other.
    let nowhere =
        if guest.on_penumbra { interface_nowhere as *const () } else { interface_undefined as *const () };
    let nowhere = nowhere as u64;
    bad_return(check, 0, stack, 0, nowhere);
    bad_return(check, code, 0, 0, nowhere);
}

/// The code and stack segments, and what the fault's error code should be.
fn bad_return(check: &mut Check<X86>, code: u64, stack_segment: u64, error_code: u64, place: u64) {
    FAULTS.store(0, Ordering::Relaxed);
    let stack = [0u64; 64];
    let top = address_of(&stack) + size_of_val(&stack) as u64;
    let frame = [0, 11, 22, 0, place, code, 0x202, top, stack_segment];
    // SAFETY: the frame can't be returned to, and the handler resumes here with all registers that must be kept. Its frame goes to the stack
    // that ours names, which is ours, too.
    unsafe { interface_bad_return(frame.as_ptr()) };
    let found = FOUND.each_ref().map(|word| word.load(Ordering::Relaxed));
    let [rcx, r11, error, rip, cs, _, rsp, _, ..] = found;
    check.that("it faults", FAULTS.load(Ordering::Relaxed) == 1 && error == error_code);
    check.that("with the state that was to be", [rip, cs & 0xfffc, rsp] == [place, code, top]);
    check.that("and its registers", [rcx, r11] == [22, 11]);
    check.that("as the kernel's own", cs & 3 == 0);
    core::hint::black_box(&stack);
}

fn data_segment() -> u64 {
    let selector: u64;
    // SAFETY: reading a selector changes nothing.
    unsafe { asm!("mov {:e}, ds", out(reg) selector, options(nomem, nostack, preserves_flags)) };
    selector
}

/// `int` to handlers of the kernel's.
fn interrupts(check: &mut Check<X86>) {
    let came = || INTERRUPTS.swap(0, Ordering::Relaxed);
    check.done("a handler for int", traps::install_one(0x80, 0, interface_interrupt));
    // SAFETY: the handler counts, and goes back behind the instruction.
    unsafe { asm!("int 0x80", options(nostack)) };
    check.that("the kernel's int reaches it", came() == 1);
}

/// Data, writable, for ring 0, whose base is 0x12345000.
const DATA_WITH_BASE: u64 = 0x12cf_9234_5000_ffff;

fn segments(guest: &Guest<X86>, check: &mut Check<X86>) {
    let Some(page) = guest.zeroed_page() else { return check.that("a page for segments", false) };
    guest.write(&page, 2, DATA_WITH_BASE);
    check.done("make it read-only", guest.set_writable(&page, false));
    let frame = guest.frame(&page);
    check.done("take it as table", call::<X86>(SET_GDT, &[address_of(&[frame]), 512]));
    let number = AtomicU64::new(0x77);
    check.done(
        "gs of the kernel",
        call::<X86>(SET_SEGMENT_BASE, &[SEGBASE_GS_KERNEL, number.as_ptr() as u64]),
    );
    check.done("gs of its users", call::<X86>(SET_SEGMENT_BASE, &[SEGBASE_GS_USER_SEL, 2 * 8]));
    let (selector, through): (u64, u64);
    // SAFETY: the base of `gs` is the address of an integer.
    unsafe {
        asm!("mov {s:e}, gs", "mov {t}, gs:[0]", s = out(reg) selector, t = out(reg) through, options(nostack, readonly))
    };
    check.that("the selector is the users'", selector == 2 * 8 + 3);
    check.that("the base the kernel's", through == 0x77);
    check.that(
        "and behind it is the segment's own",
        super::instructions::read(0xc000_0102) == Some(0x1234_5000),
    );
    let absent = call::<X86>(SET_SEGMENT_BASE, &[SEGBASE_GS_USER_SEL, 5 * 8 + 3]);
    check.done("a selector that can't be loaded is no error", absent);
    lost_segment(guest, check, frame);
    // SAFETY: the null selector; the base is set anew.
    unsafe { asm!("mov gs, {:x}", in(reg) 0u16, options(nomem, nostack, preserves_flags)) };
    check.done("no segment", call::<X86>(SET_SEGMENT_BASE, &[SEGBASE_GS_USER_SEL, 0]));
    check.done("take the table away", call::<X86>(SET_GDT, &[0, 0]));
    check.done("give the page back", guest.release(page));
}

/// A descriptor that is gone when the vCPU gets the CPU again. (Xen doesn't load segments anew where only its own idle vCPU ran meanwhile.)
fn lost_segment(guest: &Guest<X86>, check: &mut Check<X86>, table: u64) {
    // SAFETY: the hypervisor's segments and this one lead to the same memory; data is never reached through `ds` in 64-bit code.
    unsafe { asm!("mov ds, {:x}", in(reg) 2 * 8 + 3u16, options(nomem, nostack, preserves_flags)) };
    check.done("its descriptor goes", call::<X86>(UPDATE_DESCRIPTOR, &[(table << 12) | (2 * 8), 0]));
    let place = interface_failsafe as *const () as u64;
    check.done("the failsafe callback", register(CALLBACKTYPE_FAILSAFE, 0, place));
    FAILURES.store(0, Ordering::Relaxed);
    let _ = events::poll::<X86>(&[], events::now::<X86>() + 20_000_000);
    let came = FAILURES.load(Ordering::Relaxed);
    check.that("the kernel goes on", came <= 1);
    if guest.on_penumbra {
        let meant = FOUND[DS].load(Ordering::Relaxed) & 0xffff;
        check
            .that("after its failsafe callback, which learns what was lost", came == 1 && meant == 2 * 8 + 3);
        check.that("there is none in its place", data_segment() & !3 == 0);
    }
    // SAFETY: as above.
    unsafe { asm!("mov ds, {:x}", in(reg) 0u16, options(nomem, nostack, preserves_flags)) };
}

/// A user's 32-bit code: `xor ebx, ebx; syscall`.
const SYSTEM_CALL: [u64; 1] = [u64::from_le_bytes([0x31, 0xdb, 0x0f, 0x05, 0x0f, 0x0b, 0x0f, 0x0b])];

fn system_call_32(guest: &Guest<X86>, check: &mut Check<X86>) {
    let place = interface_system_call_32 as *const () as u64;
    let Some(user) = check.done("a user", User::new(guest, &SYSTEM_CALL)) else { return };
    check.done("its callback", register(CALLBACKTYPE_SYSCALL32, CALLBACKF_MASK_EVENTS, place));
    CAME_FROM.store(0, Ordering::Relaxed);
    user.run_in(FLAT_RING3_CS32.into(), 0);
    let came_from = CAME_FROM.load(Ordering::Relaxed) & 0xffff;
    check.that("its 32-bit system call comes to that", came_from == FLAT_RING3_CS32.into());
    user.run_in(FLAT_RING3_CS64.into(), 0);
    check.done("the user ends", user.end());
}
