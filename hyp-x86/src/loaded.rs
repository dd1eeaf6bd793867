//! What of a vCPU's registers is loaded in the processor, beside those that come and go with each entry: segments, floating point, debug
//! registers, and the right to read the time-stamp counter. It is saved and restored when another vCPU takes the CPU.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, Ordering};

use hyp_core::domain::vcpu::Vcpu;
use hyp_x86::selector;
use x86_64::VirtAddr;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::model_specific::{FsBase, GsBase, KernelGsBase};

use crate::context::{GuestContext, Segments};
use crate::machine::X86;
use crate::{cpu, guest_descriptors};

/// Loads a data segment register. The descriptor may have changed since the guest loaded it: then the null selector takes its place.
macro_rules! load_segment {
    ($register:literal, $selector:expr) => {
        // SAFETY: the selector is null or ring 3's, by `selector::restorable`, so only a segment for ring 3 can be loaded; a fault goes on
        // at label 4. The hypervisor itself addresses nothing through these segments.
        unsafe {
            let loaded: u64;
            asm!(
                concat!("2: movw {selector:x}, %", $register),
                "3:",
                ".pushsection .text.unlikely, \"ax\", @progbits",
                "4: xorl {selector:e}, {selector:e}", "xorl {loaded:e}, {loaded:e}", "jmp 2b",
                ".popsection",
                ".pushsection .fixups, \"a\", @progbits",
                ".quad 2b, 3b, 4b",
                ".popsection",
                selector = inout(reg) u64::from($selector) => _,
                loaded = inout(reg) 1u64 => loaded,
                options(att_syntax, nostack)
            );
            loaded != 0
        }
    };
}

/// Saves what the processor holds of a vCPU.
pub fn save(context: &GuestContext) {
    if context.task_switched.get() {
        write_task_switched(false);
    }
    // SAFETY: the area is 512 bytes, aligned, and the context's vCPU is the one that this CPU ran.
    unsafe {
        asm!("fxsave64 [{}]", in(reg) context.floating_point.area(), options(nostack, preserves_flags))
    };
    let segments = &context.segments;
    segments.fs_base.set(FsBase::read().as_u64());
    segments.gs_base.set(GsBase::read().as_u64());
    segments.other_gs_base.set(other_gs_base());
    let [ds, es, fs, gs] = selectors();
    segments.ds.set(ds);
    segments.es.set(es);
    segments.fs.set(fs);
    segments.gs.set(gs);
}

/// What the segment registers hold: ds, es, fs, gs.
#[inline(always)]
pub fn selectors() -> [u16; 4] {
    let (ds, es, fs, gs): (u16, u16, u16, u16);
    // SAFETY: reading selectors has no effect.
    unsafe {
        asm!("mov {:x}, ds", "mov {:x}, es", "mov {:x}, fs", "mov {:x}, gs",
             out(reg) ds, out(reg) es, out(reg) fs, out(reg) gs, options(nomem, nostack, preserves_flags));
    }
    [ds, es, fs, gs]
}

/// Loads what [`save`] has saved.
pub fn restore(context: &GuestContext) {
    guest_descriptors::show(context);
    forget_floating_point_pointers();
    // SAFETY: the area is aligned and holds what `fxsave` or `reset` wrote. A guest can't write there, so no reserved bit of
    // the control word makes this fault.
    unsafe {
        asm!("fxrstor64 [{}]", in(reg) context.floating_point.area(), options(nostack, preserves_flags))
    };
    if context.task_switched.get() {
        write_task_switched(true);
    }
    // Relaxed: this CPU's alone, as the register of which it tells.
    if context.debug.are_active() || DEBUG_LOADED.load(Ordering::Relaxed) {
        load_debug_registers(context);
    }
    load_counter_right(context);
    if !restore_segments(&context.segments) && context.callbacks.failsafe.get() != 0 {
        context.lost_segment.set(true);
    }
}

/// Whether breakpoints of a guest's are loaded.
static DEBUG_LOADED: AtomicBool = AtomicBool::new(false);
/// Whether ring 3 can't read the time-stamp counter.
static COUNTER_FORBIDDEN: AtomicBool = AtomicBool::new(false);

/// Makes the next use of floating point fault, or not, for the vCPU that runs.
pub fn set_task_switched(context: &GuestContext, on: bool) {
    context.task_switched.set(on);
    write_task_switched(on);
}

/// The hypervisor itself uses floating point only to save and restore a vCPU's, with the flag cleared.
fn write_task_switched(on: bool) {
    // SAFETY: the flag concerns instructions of floating point alone.
    unsafe { Cr0::update(|flags| flags.set(Cr0Flags::TASK_SWITCHED, on)) };
}

/// Lets the processor forbid ring 3 to read the time-stamp counter if the running guest wants that for its users.
pub fn load_counter_right(context: &GuestContext) {
    let forbidden = context.counter_forbidden.get();
    // Relaxed: this CPU's alone, as the register of which it tells.
    if COUNTER_FORBIDDEN.swap(forbidden, Ordering::Relaxed) != forbidden {
        // SAFETY: the flag concerns ring 3 alone.
        unsafe { Cr4::update(|flags| flags.set(Cr4Flags::TIMESTAMP_DISABLE, forbidden)) };
    }
}

/// Loads the debug registers of the vCPU that runs, if any breakpoint is set in them. Where none is, no address of another guest's stays: the
/// status register may tell of breakpoints that are disabled, too.
pub fn load_debug_registers(context: &GuestContext) {
    let registers = &context.debug;
    let active = registers.are_active();
    let [first, second, third, fourth] = if active { registers.addresses() } else { [0; 4] };
    // Relaxed: this CPU's alone, as the registers of which it tells.
    if !DEBUG_LOADED.swap(active, Ordering::Relaxed) && !active {
        return;
    }
    // SAFETY: what `DebugRegisters` gives has no bit that faults. Breakpoints are at addresses of the guest's; where the hypervisor
    // touches one, `fault::critical` passes over it. The control register comes last.
    unsafe {
        asm!("mov dr7, {}", in(reg) NO_BREAKPOINT, options(nomem, nostack, preserves_flags));
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}",
             in(reg) first, in(reg) second, in(reg) third, in(reg) fourth,
             options(nomem, nostack, preserves_flags));
        if active {
            asm!("mov dr7, {}", in(reg) registers.control(), options(nomem, nostack, preserves_flags));
        }
    }
}

/// In the control register of the debug registers: nothing but the bit that is always set.
const NO_BREAKPOINT: u64 = 1 << 10;
/// In their status register: nothing has happened.
const NO_STATUS: u64 = 0xffff_0ff0;

/// What a debug exception was for, which the processor forgets.
pub fn take_debug_status() -> u64 {
    let status: u64;
    // SAFETY: the register only tells.
    unsafe {
        asm!("mov {}, dr6", out(reg) status, options(nomem, nostack, preserves_flags));
        asm!("mov dr6, {}", in(reg) NO_STATUS, options(nomem, nostack, preserves_flags));
    }
    status
}

/// Does `work` with the kernel's tables, whatever mode the vCPU that runs is in.
pub fn as_kernel<R>(vcpu: &Vcpu<X86>, work: impl FnOnce() -> R) -> R {
    let user = vcpu.context().user_mode.replace(false);
    cpu::load_roots_of(vcpu);
    let result = work();
    vcpu.context().user_mode.set(user);
    cpu::load_roots_of(vcpu);
    result
}

/// Loads `gs` for the user mode of the vCPU that runs, whose kernel runs now: the selector is the register's from now on, the base that of
/// its descriptor once user mode is entered. A selector that can't be loaded becomes the null selector.
pub fn load_user_gs(selector: u16) {
    let kernel = gs_base();
    let _ = load_segment!("gs", selector::restorable(selector));
    // What a null selector leaves there differs between processors.
    let base = if selector & !3 == 0 { 0 } else { gs_base() };
    set_other_gs_base(base);
    set_gs_base(kernel);
}

/// The base of `gs`, as it is loaded.
#[inline(always)]
pub fn gs_base() -> u64 {
    // SAFETY: reading it has no effect.
    unsafe { GsBase::MSR.read() }
}

/// Loads the base of `gs`, a canonical address: the guest's, as the hypervisor itself uses no segment.
#[inline(always)]
pub fn set_gs_base(base: u64) {
    GsBase::write(VirtAddr::new_truncate(base));
}

/// As [`set_gs_base`], of `fs`.
#[inline(always)]
pub fn set_fs_base(base: u64) {
    FsBase::write(VirtAddr::new_truncate(base));
}

/// The base of `gs` in the mode in which the vCPU that runs is not: there where `swapgs` finds it. The hypervisor itself uses no `gs`.
pub fn other_gs_base() -> u64 {
    KernelGsBase::read().as_u64()
}

/// Sets it. An address that isn't canonical is cut.
pub fn set_other_gs_base(base: u64) {
    KernelGsBase::write(VirtAddr::new_truncate(base));
}

/// Exchanges the bases of `gs` of the guest's two modes.
#[inline(always)]
pub fn swap_gs_bases() {
    // SAFETY: the hypervisor addresses nothing by `gs`.
    unsafe { asm!("swapgs", options(nomem, nostack, preserves_flags)) };
}

/// Makes the x87 unit forget where the last guest's last instruction and operand were (XSA-52): AMD's processors neither save
/// nor restore these pointers while no exception is pending, so the next guest would see them. An instruction of the
/// hypervisor's own takes their place.
fn forget_floating_point_pointers() {
    static OPERAND: u64 = 0;
    // SAFETY: the registers that change are those that are loaded next; without a pending exception, and with room on the
    // register stack, the load can't fault.
    unsafe {
        asm!("fnclex", "ffree st(7)", "fild qword ptr [{}]", in(reg) &OPERAND, options(nostack, preserves_flags))
    };
}

/// Selectors first: loading one changes the base. Whether all could be loaded.
fn restore_segments(segments: &Segments) -> bool {
    let [ds, es, fs, gs] =
        [&segments.ds, &segments.es, &segments.fs, &segments.gs].map(|cell| selector::restorable(cell.get()));
    let loaded =
        [load_segment!("ds", ds), load_segment!("es", es), load_segment!("fs", fs), load_segment!("gs", gs)];
    FsBase::write(VirtAddr::new_truncate(segments.fs_base.get()));
    GsBase::write(VirtAddr::new_truncate(segments.gs_base.get()));
    set_other_gs_base(segments.other_gs_base.get());
    loaded == [true; 4]
}
