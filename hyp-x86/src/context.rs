//! A virtual CPU's registers.
//!
//! The first part, [`GuestContext`]'s frame, is where a guest's registers land when it enters the hypervisor: the
//! processor itself pushes the last five there (the task-state segment's stack for ring 0 is the frame's end), and
//! `entry.s` pushes the rest. So nothing is ever copied on entry, and a vCPU that doesn't run is already saved, but for
//! what the hypervisor itself doesn't use: segments and the floating-point unit, which `cpu.rs` saves on a switch.
//!
//! Fields are cells: assembly and the CPU that runs the vCPU are the only ones that change them, never at once.

use core::cell::Cell;
use core::fmt;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use hyp_core::address::{MachineAddress, MachineFrame, PAGE_SIZE};
use hyp_core::machine::{Context, Roots, StartOfDay};
use hyp_x86::debug_registers::DebugRegisters;
use hyp_x86::descriptor_tables::{GLOBAL_PAGES, LOCAL_PAGES, PageSlot};
use hyp_x86::layout;
use penumbra_abi::errno::Errno;
use penumbra_abi::shared_info::X86VcpuInfo;
use penumbra_abi::vcpu::{
    VGCF_FAILSAFE_DISABLES_EVENTS, VGCF_I387_VALID, VGCF_IN_KERNEL, VGCF_SYSCALL_DISABLES_EVENTS,
    X86GuestContext, X86UserRegs,
};
use penumbra_abi::x86_64::{FLAT_RING3_CS64, FLAT_RING3_SS64};

pub use crate::frame::Frame;
use crate::non_maskable::NonMaskable;
pub use crate::parts::{Callbacks, FloatingPoint, PortRights, Segments, TrapHandler, VcpuInfo};
use crate::{dump, memory};

/// In [`GuestContext::vector`]: `sysret` may restore the registers, which leaves rip in rcx and the flags in r11, and makes the
/// segments the flat ones. So it is after a `syscall`, and on the way to a handler, whose frame holds rcx and r11 as they were.
pub const BY_SYSCALL: u64 = 0x100;
/// The guest came by `syscall` from 32-bit code.
pub const BY_COMPATIBILITY_SYSCALL: u64 = 0x101;
/// The registers were changed so that only `iretq` restores them.
pub const BY_IRET: u64 = 0x102;
/// Added to an exception that is to be handed on, with nothing looked at: one with which the processor refused to go on with the guest (it hasn't
/// come for any reason of its own then, and no instruction of its has been executed), or the single step over what was carried out for it.
pub const TO_HAND_ON: u64 = 0x200;

/// Interrupts enabled: on whenever a guest runs.
pub const FLAG_INTERRUPT: u64 = 1 << 9;
/// Flags that a guest may have: arithmetic, trap, direction, nested task, resume, alignment check, identification; and the always-one bit.
pub const GUEST_FLAGS: u64 = 0x0025_4dd7;
/// The bit of the flags register that always reads as one.
const FLAG_ONE: u64 = 1 << 1;
/// In the flags register: the lowest ring that may access ports.
const IO_LEVEL_SHIFT: u32 = 12;
/// In the flags register: a debug exception after each instruction; none by a breakpoint at the next one.
pub const FLAG_TRAP: u64 = 1 << 8;
pub const FLAG_RESUME: u64 = 1 << 16;
/// Bytes of `syscall`, which a hypercall that is issued again goes back by.
const SYSCALL_BYTES: u64 = 2;

/// A virtual CPU's registers.
#[repr(C, align(64))]
pub struct GuestContext {
    /// Must come first: see the module's text.
    pub frame: Frame,
    /// The stack of the CPU that runs the vCPU.
    pub host_stack: Cell<u64>,
    /// Whether the guest is in its user mode (both modes are ring 3).
    pub user_mode: Cell<bool>,
    /// Non-maskable interrupts. Whether one is handled stands next to the mode, so that `short.s` asks for both at once.
    pub non_maskable: NonMaskable,
    /// Whether it has come for something that waits to be dealt with (`cpu::later`).
    pub waits: Cell<bool>,
    /// Whether a segment register couldn't be loaded again with what it held, and the guest hasn't been told.
    pub lost_segment: Cell<bool>,
    /// Whether the guest has set the task-switched flag: the next use of floating point is to fault.
    pub task_switched: Cell<bool>,
    /// Whether the guest forbids its users to read the time-stamp counter.
    pub counter_forbidden: Cell<bool>,
    pub ports: PortRights,
    pub debug: DebugRegisters,
    /// Where the page fault was that has been the guest's end, for the log; and whether it was one.
    fault_address: Cell<u64>,
    fault_was: Cell<bool>,
    /// The kernel's stack for exceptions in user mode.
    pub kernel_stack: Cell<u64>,
    pub segments: Segments,
    pub callbacks: Callbacks,
    /// The vCPU's part of shared memory; null before it has one.
    info: Cell<*const VcpuInfo>,
    /// The guest's segment descriptors, each page with a hold (`hyp_x86::descriptor_tables`).
    pub global_pages: [PageSlot; GLOBAL_PAGES],
    pub local_pages: [PageSlot; LOCAL_PAGES],
    /// Descriptors of the local table.
    pub local_entries: Cell<u32>,
    pub traps: [TrapHandler; 256],
    pub floating_point: FloatingPoint,
}

/// Offset of [`GuestContext::host_stack`], for `entry.s`.
pub const HOST_STACK_OFFSET: usize = offset_of!(GuestContext, host_stack);
/// The same for `short.s`.
pub const USER_MODE_OFFSET: usize = offset_of!(GuestContext, user_mode);
pub const KERNEL_STACK_OFFSET: usize = offset_of!(GuestContext, kernel_stack);
pub const INFO_OFFSET: usize = offset_of!(GuestContext, info);
const _: () = assert!(offset_of!(GuestContext, non_maskable) + NonMaskable::HANDLED == USER_MODE_OFFSET + 1);
/// Of the page fault's handler.
pub const FAULT_HANDLER_OFFSET: usize = offset_of!(GuestContext, traps) + 14 * size_of::<TrapHandler>();
/// Bytes of the frame: its end is the stack that the processor uses when a guest is interrupted. The processor aligns that
/// stack to 16 bytes before it pushes, so this must be a multiple.
pub const FRAME_BYTES: usize = size_of::<Frame>();
const _: () = assert!(FRAME_BYTES.is_multiple_of(16) && offset_of!(GuestContext, frame) == 0);

// SAFETY: only the CPU that runs the vCPU, or the one that has it stopped, changes it (`Context`'s contract). What `info` points
// to is shared by all CPUs, and is made of atomics.
unsafe impl Sync for GuestContext {}
// SAFETY: as above; nothing in it belongs to a CPU.
unsafe impl Send for GuestContext {}

/// The x87 control word and SSE control word after a reset: all exceptions masked.
const FLOATING_POINT_CONTROL: u16 = 0x37f;
const VECTOR_CONTROL: u32 = 0x1f80;
/// The bits of the SSE control word that every processor has (Intel SDM volume 1, 11.6.6).
const VECTOR_CONTROL_MASK: u32 = 0xffbf;

impl GuestContext {
    /// The vCPU's part of shared memory; `None` before the core has said where it is.
    #[inline(always)]
    pub fn info(&self) -> Option<&VcpuInfo> {
        // SAFETY: `set_vcpu_info` has put in what lies in RAM, aligned, through the direct map, which never goes away; the
        // core keeps the frame for as long as the vCPU can run. Atomics, since the guest writes there as well.
        unsafe { self.info.get().as_ref() }
    }

    /// Whether an event is pending and not masked. The guest itself may have made it pending (Linux does, when it unmasks a channel), so
    /// this looks at what is shared with it.
    #[inline(always)]
    pub fn upcall_due(&self) -> bool {
        self.info().is_some_and(|info| {
            // Relaxed, both: who sends an event orders what comes before it, and has this CPU look again; the mask is the guest's own.
            info.pending.load(Ordering::Relaxed) != 0 && info.mask.load(Ordering::Relaxed) == 0
        })
    }

    /// Where the page fault was that has been the guest's end.
    pub fn fault_address(&self) -> Option<u64> {
        self.fault_was.get().then(|| self.fault_address.get())
    }

    /// Says where it is.
    pub fn set_fault_address(&self, address: Option<u64>) {
        self.fault_was.set(address.is_some());
        self.fault_address.set(address.unwrap_or(0));
    }

    /// The first byte beyond the frame.
    pub fn frame_end(&self) -> u64 {
        &raw const self.frame as u64 + FRAME_BYTES as u64
    }

    fn clear_floating_point(&self) {
        let area = self.floating_point.area();
        // SAFETY: the area is ours, 512 bytes long, and the vCPU doesn't run; the words lie at offsets 0 and 24 of it
        // (Intel SDM volume 1, 10.5.1).
        unsafe {
            area.write_bytes(0, 512);
            area.cast::<u16>().write(FLOATING_POINT_CONTROL);
            area.add(24).cast::<u32>().write(VECTOR_CONTROL);
        }
    }

    /// Takes a guest's floating-point state, but for bits of the SSE control word that would make `fxrstor` fault.
    fn set_floating_point(&self, state: &[u8; 512]) {
        let area = self.floating_point.area();
        // SAFETY: as above.
        unsafe {
            area.copy_from_nonoverlapping(state.as_ptr(), 512);
            let control = area.add(24).cast::<u32>();
            control.write(control.read() & VECTOR_CONTROL_MASK);
        }
    }
}

impl Context for GuestContext {
    const EMPTY: Self = {
        // SAFETY: every field is a cell of an integer, a `bool` or a pointer, or an array of them, and may be zero.
        unsafe { core::mem::zeroed() }
    };

    fn reset(&self, start: &StartOfDay) {
        self.clear();
        self.frame.rip.set(start.entry.bytes());
        self.frame.rsp.set(start.stack.bytes());
        self.frame.rsi().set(start.start_info.bytes());
        self.frame.cs.set(FLAT_RING3_CS64.into());
        self.frame.ss.set(FLAT_RING3_SS64.into());
        self.frame.rflags.set(FLAG_INTERRUPT | FLAG_ONE);
        self.kernel_stack.set(start.stack.bytes());
    }

    /// The mask stands in `vcpu_info`, where the core clears it.
    fn unmask_events(&self) {}

    fn are_events_masked(&self) -> bool {
        false
    }

    const NON_MASKABLE: bool = true;

    fn interrupt_unmaskably(&self) {
        self.non_maskable.send();
    }

    type GuestStart = X86GuestContext;

    /// Any ring-3 state is a guest's to have; what the processor would refuse on the way there is refused here. The global table of segment
    /// descriptors is judged by [`crate::guest_descriptors::start`]; a local one can't be had this way.
    fn judge_start(start: &X86GuestContext) -> Result<Roots, Errno> {
        let registers = &start.user_regs;
        let handlers = start.trap_ctxt.iter().map(|trap| trap.address);
        let addresses = [
            registers.rip,
            start.kernel_sp,
            start.event_callback_eip,
            start.failsafe_callback_eip,
            start.syscall_callback_eip,
            start.fs_base,
            start.gs_base_kernel,
            start.gs_base_user,
        ];
        let canonical = addresses.into_iter().chain(handlers).all(layout::is_canonical);
        let kernel = start.flags & VGCF_IN_KERNEL != 0;
        let debug = DebugRegisters::new();
        let debug_allowed = set_debug_registers(&debug, start).is_ok();
        if !canonical || !kernel || !debug_allowed || start.ldt_ents != 0 {
            return Err(Errno::EINVAL);
        }
        let [_, user, _, kernel, ..] = start.ctrlreg;
        Ok(Roots { kernel: root(kernel)?, user: if user == 0 { None } else { Some(root(user)?) } })
    }

    fn start(&self, start: &X86GuestContext) {
        let registers = &start.user_regs;
        self.clear();
        self.set_general(registers);
        let frame = &self.frame;
        frame.rip.set(registers.rip);
        // Whatever the segments are, they are ring 3's: a wrong selector then faults on the way out.
        frame.cs.set(registers.cs & 0xffff | 3);
        frame.ss.set(registers.ss & 0xffff | 3);
        frame.rflags.set(registers.rflags & GUEST_FLAGS | FLAG_INTERRUPT | FLAG_ONE);
        self.kernel_stack.set(start.kernel_sp);
        self.segments.fs_base.set(start.fs_base);
        self.segments.gs_base.set(start.gs_base_kernel);
        self.segments.other_gs_base.set(start.gs_base_user);
        for (register, selector) in [
            (&self.segments.ds, registers.ds),
            (&self.segments.es, registers.es),
            (&self.segments.fs, registers.fs),
            (&self.segments.gs, registers.gs),
        ] {
            register.set(selector as u16);
        }
        if start.flags & VGCF_I387_VALID != 0 {
            self.set_floating_point(&start.fpu_ctxt);
        }
        // As in Xen, the handlers stand in the order of their vectors, whatever number they name.
        for (handler, trap) in self.traps.iter().zip(&start.trap_ctxt) {
            handler.set(trap.address, trap.flags);
        }
        self.callbacks.event.set(start.event_callback_eip);
        self.callbacks.failsafe.set(start.failsafe_callback_eip);
        self.callbacks.syscall.set(start.syscall_callback_eip);
        self.callbacks.failsafe_masks.set(start.flags & VGCF_FAILSAFE_DISABLES_EVENTS != 0);
        self.callbacks.syscall_masks.set(start.flags & VGCF_SYSCALL_DISABLES_EVENTS != 0);
        self.ports.level.set((registers.rflags >> IO_LEVEL_SHIFT & 0b11) as u8);
        // They were judged.
        let _ = set_debug_registers(&self.debug, start);
    }

    #[inline]
    fn set_result(&self, value: u64) {
        self.frame.rax.set(value);
    }

    fn restart_hypercall(&self, arguments: [u64; 6]) {
        for (register, argument) in self.frame.arguments.iter().zip(arguments) {
            register.set(argument);
        }
        self.frame.rip.set(self.frame.rip.get().wrapping_sub(SYSCALL_BYTES));
    }

    fn set_vcpu_info(&self, frame: MachineFrame, offset: usize) {
        let fits = offset.is_multiple_of(8) && offset <= PAGE_SIZE - size_of::<X86VcpuInfo>();
        // What can't be one changes nothing: `short.s` relies on there being one as soon as there has been one.
        if let Some(page) = memory::page(frame).filter(|_| fits) {
            self.info.set(page.wrapping_add(offset).cast_const().cast());
        }
    }

    fn for_each_descriptor_page(&self, visit: &mut dyn FnMut(MachineFrame)) {
        self.global_pages.iter().chain(&self.local_pages).filter_map(PageSlot::get).for_each(visit);
    }

    fn forget_descriptor_pages(&self) {
        for slot in self.global_pages.iter().chain(&self.local_pages) {
            slot.replace(None);
        }
        self.local_entries.set(0);
    }

    fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "in {} mode", if self.user_mode.get() { "user" } else { "kernel" })?;
        self.frame.describe(out)?;
        dump::describe(self, out)
    }
}

/// Sets those debug registers that a guest names.
fn set_debug_registers(registers: &DebugRegisters, start: &X86GuestContext) -> Result<(), Errno> {
    (0..).zip(start.debugreg).try_for_each(|(number, value)| match number {
        4 | 5 => Ok(()),
        _ => registers.set(number, value),
    })
}

/// The frame of a root that a guest names by its machine address.
fn root(address: u64) -> Result<MachineFrame, Errno> {
    let address = MachineAddress::new(address).filter(|address| address.offset_in_frame() == 0);
    address.map(MachineFrame::containing).ok_or(Errno::EINVAL)
}

impl GuestContext {
    /// Every register zero, but for `vcpu_info`'s place: the guest's kernel, to be entered by `iretq`.
    fn clear(&self) {
        for register in 0..16 {
            self.frame.general(register).set(0);
        }
        self.frame.vector.set(BY_IRET);
        self.user_mode.set(false);
        self.waits.set(false);
        self.lost_segment.set(false);
        self.set_fault_address(None);
        self.task_switched.set(false);
        self.counter_forbidden.set(false);
        self.non_maskable.clear();
        self.ports.level.set(0);
        self.ports.ports.set(0);
        self.debug.clear();
        self.clear_segments();
        self.clear_handlers();
        self.clear_floating_point();
    }

    fn set_general(&self, registers: &X86UserRegs) {
        let r = registers;
        let values = [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
            r.r14, r.r15,
        ];
        for (number, value) in (0..).zip(values) {
            self.frame.general(number).set(value);
        }
    }

    fn clear_segments(&self) {
        let segments = &self.segments;
        for selector in [&segments.ds, &segments.es, &segments.fs, &segments.gs] {
            selector.set(0);
        }
        for base in [&segments.fs_base, &segments.gs_base, &segments.other_gs_base] {
            base.set(0);
        }
    }

    fn clear_handlers(&self) {
        for trap in &self.traps {
            trap.set(0, 0);
        }
        self.callbacks.clear();
    }
}
