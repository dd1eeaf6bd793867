//! The interrupt controller, v2 or v3, as far as a hypervisor with two interrupt sources needs it.

use core::ptr::NonNull;

use arm_gic::gicv2::GicV2;
use arm_gic::gicv3::{GicCpuInterface, GicV3};
use arm_gic::{IntId, InterruptGroup, Trigger, UniqueMmioPointer};
use spin::Mutex;

/// How many redistributors the driver may touch: only the boot CPU's, whatever the device tree says about CPUs. The others' CPUs
/// are off, and the region named by the tree may be too small for all of them.
const USED_CPUS: usize = 1;

/// Where the registers of a GIC are mapped.
pub enum Registers {
    /// GICv2: distributor and CPU interface.
    V2(NonNull<u8>, NonNull<u8>),
    /// GICv3: distributor and first redistributor.
    V3(NonNull<u8>, NonNull<u8>),
}

/// Why the interrupt controller can't be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GicError {
    /// The redistributors' registers make no sense.
    Redistributor,
    /// An interrupt with this INTID can't be enabled.
    Interrupt(u32),
}

enum Driver {
    /// With the distributor's registers, for the one that the driver crate has no function for.
    V2(GicV2<'static>, NonNull<u8>),
    V3(GicV3<'static>),
}

// SAFETY: the drivers hold pointers to registers that only they use, and those can be used from any CPU.
unsafe impl Send for Driver {}

/// The interrupt controller. All interrupts are off until they are enabled one by one.
pub struct InterruptController {
    driver: Mutex<Option<Driver>>,
}

/// An interrupt that has been taken and must be ended.
#[must_use]
pub struct Taken(IntId);

impl Taken {
    /// Its INTID.
    pub fn number(&self) -> u32 {
        self.0.into()
    }
}

impl InterruptController {
    /// A controller without hardware.
    pub const fn new() -> Self {
        Self { driver: Mutex::new(None) }
    }

    /// Sets the hardware up, for this CPU too: every interrupt off, and all priorities let through.
    ///
    /// # Errors
    /// [`GicError::Redistributor`].
    ///
    /// # Safety
    /// The pointers must be those of the GIC's registers, as many bytes as [`super::Gic`]'s parser has made sure of, mapped as device memory for ever, page-aligned, and used by nothing else.
    pub unsafe fn attach(&self, registers: Registers) -> Result<(), GicError> {
        let driver = match registers {
            Registers::V2(distributor, cpu_interface) => {
                // SAFETY: the caller promises that these are a GICv2's registers, ours alone.
                let mut gic =
                    unsafe { GicV2::new(distributor.as_ptr().cast(), cpu_interface.as_ptr().cast()) };
                gic.enable_all_interrupts(false);
                gic.setup();
                Driver::V2(gic, distributor)
            }
            Registers::V3(distributor, redistributors) => {
                // SAFETY: the caller promises that this is a GICv3's distributor, ours alone.
                let distributor = unsafe { UniqueMmioPointer::new(distributor.cast()) };
                // SAFETY: the caller promises that these are the redistributors, ours alone.
                let gic = unsafe { GicV3::new(distributor, redistributors.cast(), USED_CPUS) };
                let mut gic = gic.map_err(|_| GicError::Redistributor)?;
                // System registers for us (SRE); EL1 stays out of ICC_SRE_EL1 (Enable clear).
                GicCpuInterface::enable_system_register_el2(false);
                gic.setup(0);
                GicCpuInterface::set_priority_mask(0xff);
                Driver::V3(gic)
            }
        };
        *self.driver.lock() = Some(driver);
        Ok(())
    }

    /// Lets a level-triggered interrupt through to the boot CPU.
    ///
    /// # Errors
    /// [`GicError::Interrupt`] when there is no such interrupt.
    pub fn enable(&self, number: u32) -> Result<(), GicError> {
        let refused = GicError::Interrupt(number);
        let id = IntId::try_from(number).map_err(|_| refused)?;
        match self.driver.lock().as_mut() {
            Some(Driver::V2(gic, distributor)) => {
                gic.set_interrupt_priority(id, 0x80);
                if !id.is_private() {
                    gic.set_trigger(id, Trigger::Level);
                    target_boot_cpu(*distributor, number);
                }
                gic.enable_interrupt(id, true).map_err(|_| refused)
            }
            Some(Driver::V3(gic)) => {
                gic.set_interrupt_priority(id, Some(0), 0x80).map_err(|_| refused)?;
                gic.set_trigger(id, Some(0), Trigger::Level).map_err(|_| refused)?;
                gic.enable_interrupt(id, Some(0), true).map_err(|_| refused)
            }
            None => Err(refused),
        }
    }

    /// Takes the pending interrupt of highest priority, if there is one.
    pub fn take(&self) -> Option<Taken> {
        match self.driver.lock().as_mut()? {
            // Which of a v2's two groups we see as group 0 depends on its security state; the common register serves both.
            Driver::V2(gic, _) => gic.get_and_acknowledge_interrupt(InterruptGroup::Group0),
            Driver::V3(_) => GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1),
        }
        .filter(|id| u32::from(*id) < 1020)
        .map(Taken)
    }

    /// Tells the controller that the interrupt has been dealt with.
    pub fn end(&self, interrupt: Taken) {
        match self.driver.lock().as_mut() {
            Some(Driver::V2(gic, _)) => gic.end_interrupt(interrupt.0, InterruptGroup::Group0),
            Some(Driver::V3(_)) => GicCpuInterface::end_interrupt(interrupt.0, InterruptGroup::Group1),
            None => {}
        }
    }
}

/// Sends a shared interrupt of a GICv2 to the first CPU (`GICD_ITARGETSRn`, IHI 0048B 4.3.12: a byte for each interrupt).
fn target_boot_cpu(distributor: NonNull<u8>, number: u32) {
    // INTIDs are below 1020, so this stays within the register block; a v2's distributor takes byte accesses there.
    let register = distributor.as_ptr().wrapping_add(0x800 + (number & 0x3ff) as usize);
    // SAFETY: `attach`'s caller promised that these are the distributor's registers; the lock of the driver is held.
    unsafe { register.write_volatile(1) };
}

impl Default for InterruptController {
    fn default() -> Self {
        Self::new()
    }
}
