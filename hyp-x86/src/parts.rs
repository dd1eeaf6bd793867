//! Parts of a virtual CPU's registers, and of what its guest has asked for: handlers, callbacks, segments, floating point, ports.

use core::cell::{Cell, UnsafeCell};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU8, AtomicU64};

/// Where the guest wants its exceptions.
#[repr(C)]
pub struct TrapHandler {
    /// The handler; 0 is none, and then there are no flags either: `short.s` asks for one of them alone.
    pub address: Cell<u64>,
    /// As in the ABI's `trap_info`: bit 2 masks events on entry.
    pub flags: Cell<u8>,
}

impl TrapHandler {
    /// Registers a handler; at 0, takes it away.
    pub fn set(&self, address: u64, flags: u8) {
        self.address.set(address);
        self.flags.set(if address == 0 { 0 } else { flags });
    }
}

/// The segment registers, which the hypervisor leaves as the guest has them until another vCPU runs.
#[repr(C)]
pub struct Segments {
    pub ds: Cell<u16>,
    pub es: Cell<u16>,
    pub fs: Cell<u16>,
    pub gs: Cell<u16>,
    pub fs_base: Cell<u64>,
    /// Base of `gs` in the mode in which the vCPU is.
    pub gs_base: Cell<u64>,
    /// Base of `gs` in the other mode: the user's while the kernel runs.
    pub other_gs_base: Cell<u64>,
}

impl Segments {
    /// ds, es, fs and gs.
    pub fn selectors(&self) -> [u16; 4] {
        [&self.ds, &self.es, &self.fs, &self.gs].map(Cell::get)
    }
}

/// The floating-point and vector registers, as `fxsave` lays them out.
#[repr(C, align(16))]
pub struct FloatingPoint(UnsafeCell<[u8; 512]>);

impl FloatingPoint {
    /// For `fxsave` and `fxrstor`.
    pub fn area(&self) -> *mut u8 {
        self.0.get().cast()
    }
}

/// Entry points that a guest registers by `set_callbacks` and `callback_op`.
#[repr(C)]
pub struct Callbacks {
    pub event: Cell<u64>,
    pub failsafe: Cell<u64>,
    pub syscall: Cell<u64>,
    /// For `syscall` in 32-bit code.
    pub syscall32: Cell<u64>,
    /// Kept, and never called: `sysenter` faults.
    pub sysenter: Cell<u64>,
    /// Whether events are masked when the callback is entered (the event callback's always are).
    pub failsafe_masks: Cell<bool>,
    pub syscall_masks: Cell<bool>,
    pub syscall32_masks: Cell<bool>,
}

impl Callbacks {
    /// No callbacks.
    pub fn clear(&self) {
        for callback in [&self.event, &self.failsafe, &self.syscall, &self.syscall32, &self.sysenter] {
            callback.set(0);
        }
        for masks in [&self.failsafe_masks, &self.syscall_masks, &self.syscall32_masks] {
            masks.set(false);
        }
    }
}

/// Which ports the guest lets its own users access. (Behind none of them is any device.)
#[repr(C)]
pub struct PortRights {
    /// Users may access all of them at 3.
    pub level: Cell<u8>,
    /// How many ports have a bit in the bitmap.
    pub ports: Cell<u32>,
    /// The bitmap's address in the kernel's memory: a port whose bit is clear may be accessed.
    pub bitmap: Cell<u64>,
}

/// The first part of a vCPU's `vcpu_info` (`penumbra_abi::shared_info::X86VcpuInfo`). The guest writes there, too, at any time.
#[repr(C)]
pub struct VcpuInfo {
    /// Not zero: an event is pending.
    pub pending: AtomicU8,
    /// Not zero: no upcalls.
    pub mask: AtomicU8,
    padding: [u8; 6],
    selector: AtomicU64,
    /// Where the last page fault was.
    pub cr2: AtomicU64,
}

const _: () = {
    use penumbra_abi::shared_info::X86VcpuInfo;
    assert!(offset_of!(VcpuInfo, pending) == offset_of!(X86VcpuInfo, evtchn_upcall_pending));
    assert!(offset_of!(VcpuInfo, mask) == offset_of!(X86VcpuInfo, evtchn_upcall_mask));
    assert!(offset_of!(VcpuInfo, cr2) == offset_of!(X86VcpuInfo, cr2));
};
