//! Non-maskable interrupts, which a kernel sends to its own vCPUs.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_core::architecture::Architecture;
use guest_core::events::Events;
use guest_core::guest::Guest;
use guest_core::hypercalls::{address_of, call};
use guest_core::tests::Check;
use penumbra_abi::Errno;
use penumbra_abi::callback::{CALLBACKTYPE_NMI, XENNMI_REGISTER_CALLBACK, XENNMI_UNREGISTER_CALLBACK};
use penumbra_abi::hypercall::{IRET, NMI_OP, VCPU_OP};
use penumbra_abi::vcpu::VCPUOP_SEND_NMI;

use super::callbacks::{register, unregister};
use crate::assembly::{leave_by_hypercall, leave_handler};
use crate::machine::X86;
use crate::user::User;

/// How often the handler was entered, and of these, how often while it was not yet left.
static CAME: AtomicU64 = AtomicU64::new(0);
static WITHIN: AtomicU64 = AtomicU64::new(0);
static DEPTH: AtomicU64 = AtomicU64::new(0);
/// In how many of its calls, from the first on, it sends another.
static RESENT: AtomicU64 = AtomicU64::new(0);
/// Whether it is left without the hypervisor.
static UNENDED: AtomicU64 = AtomicU64::new(0);
/// The code segment and the flags with which it was entered last.
static SEGMENT: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
    .section .text.traps, "ax"
    // Stack, lowest first: rcx, r11, rip, cs, rflags, rsp, ss. It is left by the hypercall, which ends the interrupt, unless told otherwise.
    interface_non_maskable:
        pushq %rax
        pushq %rdi
        pushq %rsi
        pushq %rdx
        // Behind the four, rcx, r11 and rip.
        movq 56(%rsp), %rax
        movq %rax, {segment}(%rip)
        incq {came}(%rip)
        incq {depth}(%rip)
        cmpq $1, {depth}(%rip)
        je 1f
        incq {within}(%rip)
    1:  movq {came}(%rip), %rax
        cmpq {resent}(%rip), %rax
        ja 2f
        movl ${vcpu_op}, %eax
        movl ${send}, %edi
        xorl %esi, %esi
        xorl %edx, %edx
        syscall
    2:  decq {depth}(%rip)
        popq %rdx
        popq %rsi
        popq %rdi
        popq %rax
        cmpq $0, {unended}(%rip)
        jne 3f
        popq %rcx
        popq %r11
    "#,
    leave_by_hypercall!(),
    r#"
    3:
    "#,
    leave_handler!(),
    unended = sym UNENDED,
    came = sym CAME,
    depth = sym DEPTH,
    within = sym WITHIN,
    resent = sym RESENT,
    segment = sym SEGMENT,
    vcpu_op = const VCPU_OP,
    send = const VCPUOP_SEND_NMI,
    iret = const IRET,
    options(att_syntax)
);

unsafe extern "C" {
    fn interface_non_maskable();
}

fn send(vcpu: u64, argument: u64) -> Result<(), Errno> {
    call::<X86>(VCPU_OP, &[VCPUOP_SEND_NMI, vcpu, argument]).map(drop)
}

/// How often the handler has come since this was asked last.
fn came() -> u64 {
    CAME.swap(0, Ordering::Relaxed)
}

pub fn run(guest: &Guest<X86>, check: &mut Check<X86>) {
    check.refused("it has no argument", send(0, address_of(&SEGMENT)), &[Errno::EINVAL]);
    check.refused("no such vCPU", send(u64::from(u32::MAX), 0), &[Errno::ENOENT]);
    check.done("one without a handler", send(0, 0));
    check.done("a handler", register(CALLBACKTYPE_NMI, 0, interface_non_maskable as *const () as u64));
    check.that("what came before it is lost", came() == 0);
    check.done("one", send(0, 0));
    check.that("it comes", came() == 1);
    let segment = SEGMENT.load(Ordering::Relaxed);
    check.that("to the kernel", segment & 3 == 0);
    RESENT.store(2, Ordering::Relaxed);
    check.done("one that sends another, which sends a third", send(0, 0));
    check.that("all come", came() == 3);
    check.that("each when the one before is done with", WITHIN.load(Ordering::Relaxed) == 0);
    RESENT.store(0, Ordering::Relaxed);
    check.done("and one more", send(0, 0));
    check.that("comes as well", came() == 1);
    masked(guest, check);
    user(guest, check);
    check.done("the handler goes", unregister(CALLBACKTYPE_NMI));
    check.done("one without a handler again", send(0, 0));
    check.that("doesn't come", came() == 0);
    by_the_old_hypercall(check);
}

/// The handler can also be set by a hypercall of its own, with an address and a word of padding.
fn by_the_old_hypercall(check: &mut Check<X86>) {
    let operation = |number: u32, handler: u64| {
        let argument = [handler, 0];
        call::<X86>(NMI_OP, &[number.into(), address_of(&argument)]).map(drop)
    };
    let handler = interface_non_maskable as *const () as u64;
    check.done("a handler", operation(XENNMI_REGISTER_CALLBACK, handler));
    check.done("one", send(0, 0));
    check.that("it comes", came() == 1);
    check.refused(
        "not at what is no address",
        operation(XENNMI_REGISTER_CALLBACK, 1 << 63),
        &[Errno::EINVAL],
    );
    check.refused("no such operation", operation(2, handler), &[Errno::ENOSYS]);
    let nowhere = call::<X86>(NMI_OP, &[XENNMI_REGISTER_CALLBACK.into(), 1 << 63]).map(drop);
    check.refused("an argument that can't be read", nowhere, &[Errno::EFAULT]);
    check.done("the handler goes", operation(XENNMI_UNREGISTER_CALLBACK, 0));
    check.done("one without it", send(0, 0));
    check.that("doesn't come", came() == 0);
}

/// A user's `xor ebx, ebx; syscall`.
const SYSTEM_CALL: [u64; 1] = [u64::from_le_bytes([0x31, 0xdb, 0x0f, 0x05, 0x0f, 0x0b, 0x0f, 0x0b])];

/// One that waits until the one before it is ended, by the kernel's going to its users: it comes there.
fn user(guest: &Guest<X86>, check: &mut Check<X86>) {
    let Some(user) = check.done("a user", User::new(guest, &SYSTEM_CALL)) else { return };
    UNENDED.store(1, Ordering::Relaxed);
    check.done("one whose handler doesn't end it", send(0, 0));
    UNENDED.store(0, Ordering::Relaxed);
    check.done("and one behind it", send(0, 0));
    check.that("which waits", came() == 1);
    user.run(0);
    check.that("until the user runs", came() == 1 && SEGMENT.load(Ordering::Relaxed) & 3 == 3);
    user.run(0);
    check.that("no other has come", came() == 0);
    check.done("one in the kernel", send(0, 0));
    check.that("comes there", came() == 1 && SEGMENT.load(Ordering::Relaxed) & 3 == 0);
    check.done("the user ends", user.end());
}

/// That events are masked is nothing to it, and remains so.
fn masked(guest: &Guest<X86>, check: &mut Check<X86>) {
    let Some(events) = check.done("events", Events::open(guest).ok_or(Errno::ENOMEM)) else { return };
    let mask = || X86::read_word(events.address()) >> 8 & 0xff;
    events.mask(true);
    check.done("one while events are masked", send(0, 0));
    check.that("comes", came() == 1);
    check.that("with the mask as it was", SEGMENT.load(Ordering::Relaxed) >> 32 & 0xff == 1);
    check.that("which it is again", mask() == 1);
    events.mask(false);
    check.done("one while they aren't", send(0, 0));
    check.that("comes, too", came() == 1 && SEGMENT.load(Ordering::Relaxed) >> 32 & 0xff == 0);
    check.that("and they aren't afterwards", mask() == 0);
    check.done("give the page back", events.close());
}
