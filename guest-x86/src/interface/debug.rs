//! Debug registers, by hypercall: a breakpoint on data of the kernel's own. And the flag by which the next floating-point instruction faults.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use guest_core::hypercalls::{address_of_mut, call};
use guest_core::tests::Check;
use penumbra_abi::Errno;
use penumbra_abi::hypercall::{FPU_TASKSWITCH, GET_DEBUGREG, SET_DEBUGREG, XEN_VERSION};
use penumbra_abi::version::{FeatureInfo, XENVER_GET_FEATURES};

use crate::assembly::leave_handler;
use crate::machine::X86;
use crate::traps;

/// Breakpoint 0, enabled, on writes of 8 bytes.
const WRITES_AT_0: u64 = 0x9_0001;
/// The task-switched flag of CR0.
const TASK_SWITCHED: u64 = 1 << 3;

/// How often the two exceptions came.
static DEBUG: AtomicU64 = AtomicU64::new(0);
static NO_FLOATING_POINT: AtomicU64 = AtomicU64::new(0);
/// What the breakpoint watches.
static WATCHED: AtomicU64 = AtomicU64::new(0);

global_asm!(
    r#"
    .section .text.traps, "ax"
    // Stack, lowest first: rcx, r11, rip, cs, rflags, rsp, ss.
    interface_debug:
        incq {debug}(%rip)
        jmp 1f
    interface_no_floating_point:
        incq {no_floating_point}(%rip)
    1:
    "#,
    leave_handler!(),
    debug = sym DEBUG,
    no_floating_point = sym NO_FLOATING_POINT,
    options(att_syntax)
);

unsafe extern "C" {
    fn interface_debug();
    fn interface_no_floating_point();
}

fn set(register: u64, value: u64) -> Result<u64, Errno> {
    call::<X86>(SET_DEBUGREG, &[register, value])
}

fn get(register: u64) -> Result<u64, Errno> {
    call::<X86>(GET_DEBUGREG, &[register])
}

pub fn run(check: &mut Check<X86>) {
    check.done("a handler for debug exceptions", traps::install_one(1, 0, interface_debug));
    check.done("one for floating point", traps::install_one(7, 0, interface_no_floating_point));
    values(check);
    breakpoint(check);
    floating_point(check);
}

fn values(check: &mut Check<X86>) {
    let own = WATCHED.as_ptr() as u64;
    check.that("an address of one's own", set(0, own) == Ok(0) && get(0) == Ok(own));
    check.refused("the hypervisor's", set(1, 0xffff_8300_0000_0000), &[Errno::EPERM]);
    check.refused("no address", set(1, 1 << 63), &[Errno::EPERM]);
    check.refused("general detect", set(7, 1 << 13), &[Errno::EPERM]);
    check.refused("a breakpoint on a port", set(7, 0x2_0001), &[Errno::EPERM]);
    check.refused("a ninth register", set(8, 0), &[Errno::ENODEV]);
    check.that("nor can it be read", get(8) == Err(Errno::ENODEV));
}

fn breakpoint(check: &mut Check<X86>) {
    let came = || DEBUG.swap(0, Ordering::Relaxed);
    came();
    check.that("no status", set(6, 0) == Ok(0) && get(6) == Ok(0xffff_0ff0));
    check.that("watch", set(7, WRITES_AT_0) == Ok(0));
    WATCHED.store(1, Ordering::Relaxed);
    check.that("a write comes to the handler", came() == 1);
    check.that("and the status says which", get(6).is_ok_and(|status| status & 0xf == 1));
    let _ = WATCHED.load(Ordering::Relaxed);
    check.that("a read doesn't", came() == 0);
    // The hypervisor writes there for us: that is nobody's debug exception.
    // SAFETY: the hypervisor writes the eight bytes of a static that is only used as an atomic.
    let features = unsafe { &mut *WATCHED.as_ptr().cast::<FeatureInfo>() };
    let written = call::<X86>(XEN_VERSION, &[XENVER_GET_FEATURES, address_of_mut(features)]);
    came();
    check.that("the hypervisor's own write is done", written == Ok(0) || written == Err(Errno::EINVAL));
    check.that("watch no more", set(7, 0) == Ok(0) && set(0, 0) == Ok(0));
    WATCHED.store(2, Ordering::Relaxed);
    check.that("and nothing comes", came() == 0);
}

fn floating_point(check: &mut Check<X86>) {
    let came = || NO_FLOATING_POINT.swap(0, Ordering::Relaxed);
    // SAFETY: this kernel doesn't use floating point; the instruction loads nothing.
    let use_it = || unsafe { asm!("fnop", options(nomem, nostack, preserves_flags)) };
    let is_set = || {
        let value: u64;
        // SAFETY: the hypervisor carries it out.
        unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
        value & TASK_SWITCHED != 0
    };
    use_it();
    check.that("floating point can be used", came() == 0 && !is_set());
    check.done("set the flag", call::<X86>(FPU_TASKSWITCH, &[1]));
    check.that("it shows", is_set());
    use_it();
    check.that("it faults once, and the flag is clear", came() == 1 && !is_set());
    use_it();
    check.that("and no more", came() == 0);
    check.done("set it again", call::<X86>(FPU_TASKSWITCH, &[1]));
    // SAFETY: the hypervisor carries it out.
    unsafe { asm!("clts", options(nomem, nostack, preserves_flags)) };
    use_it();
    check.that("clts clears it", came() == 0);
}
