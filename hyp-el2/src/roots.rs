//! Loading a guest's table roots, and making cached translations disappear.
//!
//! Each domain has a VMID of its own, its number plus one, although stage 2 is off: TLB entries carry it all the same. All
//! guests use ASID 0, so a change of the user root is followed by a flush.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU16, Ordering};

use aarch64_cpu::registers::{Readable, TCR_EL1, TPIDR_EL2, TTBR0_EL1, TTBR1_EL1, Writeable};
use hyp_core::Vcpu;
use hyp_core::address::MachineFrame;
use hyp_core::domain::MAX_DOMAINS;
use hyp_core::machine::FlushScope;
use hyp_el2::confinement::{NO_KERNEL_WALKS, NO_USER_WALKS, vmid};
use hyp_el2::remembered::Remembered;

use crate::machine::El2;
use crate::memory::forget_instructions;
use crate::oracle;

fn barrier() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack)) };
}

/// Both roots at once, and `meanwhile` while no walk can be begun: so that none mixes old and new.
#[inline(always)]
fn write_roots(kernel: Option<MachineFrame>, user: Option<MachineFrame>, meanwhile: impl FnOnce()) {
    let on = TCR_EL1.get() & !(NO_USER_WALKS | NO_KERNEL_WALKS);
    TCR_EL1.set(on | NO_USER_WALKS | NO_KERNEL_WALKS);
    barrier();
    let address = |root: Option<MachineFrame>| root.map_or(0, |root| root.start().bytes());
    TTBR1_EL1.set(address(kernel));
    TTBR0_EL1.set(address(user));
    meanwhile();
    barrier();
    let off = |root: Option<MachineFrame>, bit: u64| if root.is_some() { 0 } else { bit };
    TCR_EL1.set(on | off(kernel, NO_KERNEL_WALKS) | off(user, NO_USER_WALKS));
    barrier();
}

/// Loads the running vCPU's new roots. What the TLBs hold of the old ones goes before there can be anything of the new ones: two
/// entries for one address might be amalgamated (docs/decisions/break-before-make.md).
pub fn load(kernel: MachineFrame, user: Option<MachineFrame>) {
    write_roots(Some(kernel), user, || flush(FlushScope::Local));
}

/// Loads the roots of `next`, which takes this CPU over.
pub fn switch_to(next: &Vcpu<El2>) {
    let tag = vmid(next.domain_id()) << 48 | oracle::root();
    let previous: u64;
    // SAFETY: reads the VMID in use.
    unsafe { asm!("mrs {}, vttbr_el2", out(reg) previous, options(nomem, nostack)) };
    write_roots(None, None, || ());
    // SAFETY: sets the VMID while walks are off; stage 2 is off too, so nothing else in the register matters (under the oracle, its root).
    unsafe { asm!("msr vttbr_el2, {}", in(reg) tag, options(nostack)) };
    // Another vCPU of the same domain, or this one with other roots: the tags don't tell them apart, so what is left of the old
    // roots goes before there can be anything of the new ones, as in `load`.
    let is_tagged_alike = another_ran_last(next) || previous == tag;
    write_roots(next.kernel_root(), next.user_root(), || {
        if is_tagged_alike { flush(FlushScope::Local) } else { oracle::forget() }
    });
}

/// The vCPU of each domain that this CPU ran last, its number plus one: its translations may still be there, under the tag that all of
/// the domain's vCPUs share (so that one's maintenance reaches all).
static LAST: [AtomicU16; MAX_DOMAINS] = [const { AtomicU16::new(0) }; MAX_DOMAINS];

/// Remembers that `next` runs; whether the last of its domain was another one.
fn another_ran_last(next: &Vcpu<El2>) -> bool {
    let number = next.index().saturating_add(1);
    let Some(last) = LAST.get(usize::from(next.domain_id().number())) else { return true };
    // Relaxed: only this CPU uses it.
    let last = last.swap(number, Ordering::Relaxed);
    last != 0 && last != number
}

/// Loads no root at all.
pub fn leave() {
    write_roots(None, None, || ());
    flush(FlushScope::Local);
}

/// See [`hyp_core::machine::Mmu::flush`].
#[inline]
pub fn flush(scope: FlushScope) {
    // SAFETY: forgetting translations of EL1 and EL0 is always allowed; barriers before and after, so that earlier writes to tables
    // are seen by later walks, and no old entry remains when this returns.
    unsafe {
        match scope {
            FlushScope::Page(address) => {
                let page = address.bytes() >> 12 & ((1 << 44) - 1);
                asm!("dsb ishst", "tlbi vaae1is, {}", "dsb ish", "isb", in(reg) page, options(nostack));
            }
            FlushScope::Local => asm!("dsb nshst", "tlbi vmalle1", "dsb nsh", "isb", options(nostack)),
            // Frames change hands after this: what the CPUs have kept of a frame's instructions must not outlive its mappings either,
            // since the next owner could execute it. Nobody can fetch from there again, with no mapping left that is executable.
            FlushScope::Everything => {
                forget_translations();
                forget_instructions();
            }
        }
    }
}

/// What TLBs may remember of entries that were made absent.
pub static REMEMBERED: Remembered = Remembered::new();

/// Makes all that any guest's TLB entries and walk caches hold disappear, on every CPU.
#[inline(always)]
pub fn forget_translations() {
    // SAFETY: the function returns, and keeps every register but the link register and the flags; it uses the stack, as asm may.
    unsafe { asm!("bl {}", sym forget_and_keep_registers, out("x30") _) };
}

/// As [`forget_now`], for callers that nearly always do without it: these keep what they have in registers.
#[unsafe(naked)]
extern "C" fn forget_and_keep_registers() {
    naked_asm!(
        "stp x29, x30, [sp, #-176]!",
        "mov x29, sp",
        "stp x0, x1, [sp, #16]",
        "stp x2, x3, [sp, #32]",
        "stp x4, x5, [sp, #48]",
        "stp x6, x7, [sp, #64]",
        "stp x8, x9, [sp, #80]",
        "stp x10, x11, [sp, #96]",
        "stp x12, x13, [sp, #112]",
        "stp x14, x15, [sp, #128]",
        "stp x16, x17, [sp, #144]",
        "str x18, [sp, #160]",
        "bl {forget_now}",
        "ldp x0, x1, [sp, #16]",
        "ldp x2, x3, [sp, #32]",
        "ldp x4, x5, [sp, #48]",
        "ldp x6, x7, [sp, #64]",
        "ldp x8, x9, [sp, #80]",
        "ldp x10, x11, [sp, #96]",
        "ldp x12, x13, [sp, #112]",
        "ldp x14, x15, [sp, #128]",
        "ldp x16, x17, [sp, #144]",
        "ldr x18, [sp, #160]",
        "ldp x29, x30, [sp], #176",
        "ret",
        forget_now = sym forget_now,
    )
}

extern "C" fn forget_now() {
    oracle::forget();
    // SAFETY: as in `flush`.
    let flush = || unsafe { asm!("dsb ishst", "tlbi alle1is", "dsb ish", "isb", options(nostack)) };
    // Where a CPU's own data lies is a number that no other CPU has.
    REMEMBERED.forget(TPIDR_EL2.get(), flush);
}
