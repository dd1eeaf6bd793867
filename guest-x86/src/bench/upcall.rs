//! An event that the kernel sends to itself: the hypercall, the upcall that it causes, and the way back.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_core::architecture::{Architecture, PAGE_SHIFT};
use guest_core::guest::Guest;
use guest_core::hypercalls::{address_of, address_of_mut, call, update_va_mapping};
use penumbra_abi::Errno;
use penumbra_abi::event_channel::{BindIpi, EVTCHNOP_BIND_IPI, EVTCHNOP_CLOSE, EVTCHNOP_SEND, Port};
use penumbra_abi::hypercall as number;

use crate::machine::X86;

/// `callback_op`: register, and the kind of callback that is called for events (`callback.h`). It can't be taken away again, but
/// events are masked but for the measurement.
const REGISTER: u64 = 0;
const EVENT: u64 = 0;

/// Where the shared-info page is mapped, and how many upcalls came.
static SHARED_INFO: AtomicU64 = AtomicU64::new(0);
static UPCALLS: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
    .section .text.traps, "ax"
    // Stack, lowest first: rcx, r11, rip, cs, rflags, rsp, ss; events are masked. All ports are of the first word of them.
    bench_upcall:
        movq {shared_info}(%rip), %rcx
        movb $0, (%rcx)
        movq $0, 8(%rcx)
        movq $0, 2048(%rcx)
        incq {upcalls}(%rip)
        movb $0, 1(%rcx)
        popq %rcx
        popq %r11
        orq $3, 8(%rsp)
        iretq
    "#,
    shared_info = sym SHARED_INFO,
    upcalls = sym UPCALLS,
    options(att_syntax)
);

unsafe extern "C" {
    fn bench_upcall();
}

/// Sends `count` events; each must have come before the next one is sent.
pub fn send_to_itself(guest: &Guest<X86>, count: u64) -> Result<u64, Errno> {
    let window = guest.pages.allocate().ok_or(Errno::ENOMEM)?;
    let address = guest.address(&window);
    update_va_mapping::<X86>(address, X86::leaf(guest.info.shared_info >> PAGE_SHIFT, true))?;
    SHARED_INFO.store(address, Ordering::Relaxed);
    let result = with_port(address, count);
    update_va_mapping::<X86>(address, X86::leaf(guest.frame(&window), true))?;
    guest.pages.free(window);
    result
}

fn with_port(shared_info: u64, count: u64) -> Result<u64, Errno> {
    let mut bind = BindIpi::default();
    call::<X86>(number::EVENT_CHANNEL_OP, &[EVTCHNOP_BIND_IPI, address_of_mut(&mut bind)])?;
    let port = Port { port: core::hint::black_box(bind).port };
    register()?;
    set_mask(shared_info, false);
    let result = send(&port, count);
    set_mask(shared_info, true);
    call::<X86>(number::EVENT_CHANNEL_OP, &[EVTCHNOP_CLOSE, address_of(&port)])?;
    result
}

/// Registers the upcall's handler.
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

fn send(port: &Port, count: u64) -> Result<u64, Errno> {
    let arguments = [EVTCHNOP_SEND, address_of(port), 0, 0, 0, 0];
    UPCALLS.store(0, Ordering::Relaxed);
    let with = loop_of(X86::hypercall, arguments, count)?;
    // Fewer upcalls than events would be another operation.
    if UPCALLS.load(Ordering::Relaxed) != count {
        return Err(Errno::EAGAIN);
    }
    Ok(with.saturating_sub(loop_of(X86::no_hypercall, arguments, count)?))
}

#[inline(never)]
fn loop_of(issue: fn(u64, [u64; 6]) -> u64, arguments: [u64; 6], count: u64) -> Result<u64, Errno> {
    let issue = core::hint::black_box(issue);
    let mut last = 0;
    let start = X86::counter();
    for _ in 0..count {
        last = issue(number::EVENT_CHANNEL_OP, arguments);
    }
    let taken = X86::counter().wrapping_sub(start);
    Errno::from_return(last).map(|_| taken)
}
