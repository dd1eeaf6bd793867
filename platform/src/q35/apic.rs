//! The local APIC: the tick's timer and the end of interrupts. The two legacy controllers are masked.

use pic8259::ChainedPics;
use x2apic::lapic::{LocalApic, LocalApicBuilder, TimerDivide, TimerMode, xapic_base};

/// Which interrupt vectors the local APIC uses.
#[derive(Clone, Copy, Debug)]
pub struct Vectors {
    /// The timer.
    pub timer: u8,
    /// Errors inside the APIC.
    pub error: u8,
    /// An interrupt that went away before it was taken. Its low four bits must be ones.
    pub spurious: u8,
}

/// The local APIC of the CPU on which it was made.
pub struct Apic {
    local: LocalApic,
}

impl Apic {
    /// Physical address of the register page, for whoever maps it.
    ///
    /// # Safety
    /// Runs in ring 0.
    pub unsafe fn registers() -> u64 {
        // SAFETY: the caller runs in ring 0; the register exists wherever there is long mode.
        unsafe { xapic_base() }
    }

    /// Masks the legacy controllers and switches the local APIC on, its timer stopped.
    ///
    /// # Errors
    /// A line for the log when the processor's APIC can't be driven.
    ///
    /// # Safety
    /// `registers` is a mapping of [`Self::registers`], uncached, for as long as this lives; interrupts are off;
    /// the vectors lead to handlers.
    pub unsafe fn start(registers: u64, vectors: Vectors) -> Result<Self, &'static str> {
        // SAFETY: the legacy controllers' ports are these on every PC. Their vectors are moved away from the
        // exceptions before they are masked, so that a spurious one can't be taken for an exception.
        unsafe {
            let mut legacy = ChainedPics::new(0x20, 0x28);
            legacy.initialize();
            legacy.disable();
        }
        let mut local = LocalApicBuilder::new()
            .timer_vector(vectors.timer.into())
            .error_vector(vectors.error.into())
            .spurious_vector(vectors.spurious.into())
            .timer_mode(TimerMode::OneShot)
            .timer_divide(TimerDivide::Div1)
            .timer_initial(u32::MAX)
            .set_xapic_base(registers)
            .build()?;
        // SAFETY: the caller has mapped the registers, and no interrupt can arrive yet.
        unsafe {
            local.enable();
            local.disable_timer();
        }
        Ok(Self { local })
    }

    /// How far the timer has counted down from its start: counts up, wraps at 32 bits.
    pub fn elapsed(&self) -> u64 {
        // SAFETY: the registers stay mapped, as promised to `start`.
        u64::from(u32::MAX - unsafe { self.local.timer_current() })
    }

    /// Lets the timer interrupt.
    pub fn enable_timer(&mut self) {
        // SAFETY: the registers stay mapped; the timer's vector leads to a handler, as promised to `start`.
        unsafe { self.local.enable_timer() };
    }

    /// Makes the timer interrupt once, after so many counts of its clock (0: never), and not when it was to before.
    #[inline]
    pub fn interrupt_after(&mut self, counts: u32) {
        // SAFETY: the registers stay mapped.
        unsafe { self.local.set_timer_initial(counts) };
    }

    /// Tells the APIC that the interrupt in service has been handled.
    pub fn end_of_interrupt(&mut self) {
        // SAFETY: the registers stay mapped.
        unsafe { self.local.end_of_interrupt() }
    }
}
