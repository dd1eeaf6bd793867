//! The handler of an event that the kernel sends to itself: see [`guest_core::bench::upcall`].

use core::arch::global_asm;

use guest_core::architecture::Architecture;
use guest_core::bench::upcall::{Handler, SHARED_INFO, UPCALLS};
use guest_core::hypercalls::{address_of, call};
use penumbra_abi::Errno;
use penumbra_abi::hypercall as number;

use crate::assembly::leave_handler;
use crate::machine::X86;

/// `callback_op`: register, and the kind of callback that is called for events (`callback.h`). It can't be taken away again, but
/// events are masked but for the measurement.
const REGISTER: u64 = 0;
const EVENT: u64 = 0;

global_asm!(
    r#"
    .section .text.traps, "ax"
    // Stack, lowest first: rcx, r11, rip, cs, rflags, rsp, ss; events are masked.
    bench_upcall:
        movq {shared_info}(%rip), %rcx
        movb $0, (%rcx)
        movq $0, 8(%rcx)
        movq $0, 2048(%rcx)
        incq {upcalls}(%rip)
        movb $0, 1(%rcx)
    "#,
    leave_handler!(),
    shared_info = sym SHARED_INFO,
    upcalls = sym UPCALLS,
    options(att_syntax)
);

unsafe extern "C" {
    fn bench_upcall();
}

/// The handler, which stays until another one is registered.
pub const HANDLER: Handler = Handler { install: register, mask: set_mask, remove: || () };

fn register() -> Result<(), Errno> {
    // struct callback_register: type and flags, padding, address.
    let argument = [EVENT, bench_upcall as *const () as u64];
    call::<X86>(number::CALLBACK_OP, &[REGISTER, address_of(&argument)]).map(drop)
}

/// Writes the event mask: the second byte of the first vCPU's part, whose other bytes nobody writes just now.
fn set_mask(shared_info: u64, masked: bool) {
    let word = X86::read_word(shared_info) & !0xff00;
    X86::write_word(shared_info, word | u64::from(masked) << 8);
}
