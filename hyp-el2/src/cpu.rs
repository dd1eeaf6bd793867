//! What each CPU has for itself. `TPIDR_EL2` points to it.

use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use aarch64_cpu::registers::{HCR_EL2, ReadWriteable, TPIDR_EL2, Writeable};
use hyp_core::Vcpu;
use hyp_core::domain::Domain;

use crate::HYPERVISOR;
use crate::machine::El2;

/// A CPU's own data.
#[repr(C)]
pub struct Cpu {
    /// Top of the stack on which traps are handled. First, for `vectors.s`.
    stack_top: AtomicU64,
    /// The vCPU whose registers are in the CPU, or null.
    current: AtomicPtr<Vcpu<El2>>,
    /// The same for the ways in of guests; null also while stretches are measured, which costs them nothing so.
    entered: AtomicPtr<Vcpu<El2>>,
    /// Its domain, or null.
    domain: AtomicPtr<Domain<El2>>,
    /// Whether the guest is shown an interrupt (`HCR_EL2.VI`).
    virtual_interrupt: AtomicBool,
}

static BOOT_CPU: Cpu = Cpu {
    stack_top: AtomicU64::new(0),
    current: AtomicPtr::new(ptr::null_mut()),
    entered: AtomicPtr::new(ptr::null_mut()),
    domain: AtomicPtr::new(ptr::null_mut()),
    virtual_interrupt: AtomicBool::new(false),
};

/// Sets the boot CPU's data up; `stack_top` is a virtual address.
pub fn initialise(stack_top: u64) -> &'static Cpu {
    // Relaxed: this CPU itself reads it, at its next trap.
    BOOT_CPU.stack_top.store(stack_top, Ordering::Relaxed);
    TPIDR_EL2.set(ptr::from_ref(&BOOT_CPU).addr() as u64);
    &BOOT_CPU
}

impl Cpu {
    /// The CPU that executes this: there is only the boot CPU so far.
    pub fn this() -> &'static Self {
        &BOOT_CPU
    }

    /// The vCPU whose registers are in this CPU.
    pub fn current(&self) -> Option<&'static Vcpu<El2>> {
        // Relaxed: only this CPU writes it.
        let pointer = self.current.load(Ordering::Relaxed);
        // SAFETY: it is null, or was made from a `&'static Vcpu` by `set_current`.
        unsafe { pointer.as_ref() }
    }

    /// The vCPU that a guest's way in is for; `None`: there is none, or there is more to do than deal with it.
    pub fn entered(&self) -> Option<&'static Vcpu<El2>> {
        // Relaxed: only this CPU writes it.
        let pointer = self.entered.load(Ordering::Relaxed);
        // SAFETY: it is null, or was copied from `current` by `set_entered`.
        unsafe { pointer.as_ref() }
    }

    /// The domain of that vCPU.
    #[inline(always)]
    pub fn domain(&self) -> Option<&'static Domain<El2>> {
        // Relaxed: only this CPU writes it.
        let pointer = self.domain.load(Ordering::Relaxed);
        // SAFETY: it is null, or was made from a `&'static Domain` by `set_current`.
        unsafe { pointer.as_ref() }
    }

    /// Whether the guest is shown an interrupt.
    pub fn virtual_interrupt(&self) -> bool {
        // Relaxed: only this CPU writes it.
        self.virtual_interrupt.load(Ordering::Relaxed)
    }

    /// Shows the guest an interrupt, or none any more: it takes it when its PSTATE.I is clear. The return to the guest makes it
    /// visible.
    pub fn show_virtual_interrupt(&self, on: bool) {
        // Relaxed, and no exchange: only this CPU writes it.
        if self.virtual_interrupt() != on {
            self.virtual_interrupt.store(on, Ordering::Relaxed);
            HCR_EL2.modify(HCR_EL2::VI.val(u64::from(on)));
        }
    }

    /// Says whose registers are in this CPU.
    pub fn set_current(&self, vcpu: Option<&'static Vcpu<El2>>) {
        let pointer = vcpu.map_or(ptr::null_mut(), |vcpu| ptr::from_ref(vcpu).cast_mut());
        // Relaxed, here and below: only this CPU reads it.
        self.current.store(pointer, Ordering::Relaxed);
        let domain = vcpu.and_then(|vcpu| HYPERVISOR.domain(vcpu.domain_id()));
        let pointer = domain.map_or(ptr::null_mut(), |domain| ptr::from_ref(domain).cast_mut());
        self.domain.store(pointer, Ordering::Relaxed);
        self.set_entered();
    }

    /// Nobody begins to measure stretches without asking for a new choice of who runs.
    pub fn set_entered(&self) {
        let measures = HYPERVISOR.measures_stretches();
        // Relaxed: only this CPU reads and writes them.
        let pointer = if measures { ptr::null_mut() } else { self.current.load(Ordering::Relaxed) };
        self.entered.store(pointer, Ordering::Relaxed);
    }
}
