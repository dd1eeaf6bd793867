//! The board's devices, and the core's view of them.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTHP_CTL_EL2, CNTPCT_EL0, Readable, Writeable};

use hyp_core::machine::Board;
use platform::virt::Conduit;
use platform::virt::gic::InterruptController;
use platform::virt::uart::Console;
use smccc::psci;

use crate::machine::El2;

/// The serial line.
pub static CONSOLE: Console = Console::new();
/// The interrupt controller.
pub static INTERRUPTS: InterruptController = InterruptController::new();

/// Time between two ticks.
const TICKS_PER_SECOND: u64 = 100;

/// The counter at entry.
static BOOT_TIME: AtomicU64 = AtomicU64::new(0);
/// 0: firmware can't be called; 1: by `smc`; 2: by `hvc`.
static FIRMWARE: AtomicU8 = AtomicU8::new(0);

/// Remembers when the machine was entered, in counter ticks.
pub fn set_boot_time(ticks: u64) {
    // Relaxed: there are no other CPUs or guests yet. So is what reads it.
    BOOT_TIME.store(ticks, Ordering::Relaxed);
}

/// Remembers how firmware is called.
pub fn set_firmware(conduit: Option<Conduit>) {
    let number = match conduit {
        None => 0,
        Some(Conduit::Smc) => 1,
        Some(Conduit::Hvc) => 2,
    };
    // Relaxed: as above; it is a number, and nothing is reached by it.
    FIRMWARE.store(number, Ordering::Relaxed);
}

/// Counter ticks as nanoseconds.
pub fn nanoseconds(ticks: u64) -> u64 {
    let frequency = CNTFRQ_EL0.get().max(1);
    (u128::from(ticks) * 1_000_000_000 / u128::from(frequency)) as u64
}

/// Counter ticks since entry.
pub fn elapsed() -> u64 {
    CNTPCT_EL0.get().wrapping_sub(BOOT_TIME.load(Ordering::Relaxed))
}

/// Whether a nanosecond is an instruction, as in an emulator that counts (QEMU's `-icount shift=0`): then two loops of known length
/// take exactly as long as they have instructions, to the tick.
pub fn counter_counts_instructions() -> bool {
    let exact = |rounds: u64| {
        let taken = nanoseconds(time_of_loop(rounds));
        let tick = nanoseconds(1).max(1);
        taken.abs_diff(2 * rounds) <= 2 * tick
    };
    exact(1_000) && exact(8_000)
}

/// Counter ticks that a loop of two instructions takes.
fn time_of_loop(rounds: u64) -> u64 {
    let (start, end): (u64, u64);
    // SAFETY: counts a register down between two reads of the counter.
    unsafe {
        asm!(
            "isb",
            "mrs {start}, cntpct_el0",
            "2: subs {rounds}, {rounds}, #1",
            "b.ne 2b",
            "mrs {end}, cntpct_el0",
            start = out(reg) start,
            end = out(reg) end,
            rounds = inout(reg) rounds => _,
            options(nomem, nostack)
        );
    }
    end.wrapping_sub(start)
}

/// Arranges for the next tick.
pub fn arm_tick() {
    let interval = CNTFRQ_EL0.get() / TICKS_PER_SECOND;
    // SAFETY: the EL2 physical timer is ours; it raises an interrupt that `run` expects.
    unsafe { asm!("msr cnthp_tval_el2, {}", in(reg) interval, options(nomem, nostack)) };
    CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::ENABLE::SET);
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: waits; with all interrupts masked, nothing else happens on this CPU.
        unsafe { asm!("wfi", options(nomem, nostack)) };
    }
}

/// Waits until an interrupt is pending. Interrupts stay masked: the caller asks the controller.
pub fn wait_for_interrupt() {
    // SAFETY: waits.
    unsafe { asm!("dsb sy", "wfi", options(nomem, nostack)) };
}

impl Board for El2 {
    fn console_write(&self, bytes: &[u8]) {
        CONSOLE.write(bytes);
    }

    fn now(&self) -> u64 {
        nanoseconds(elapsed())
    }

    fn ticks(&self) -> u64 {
        CNTPCT_EL0.get()
    }

    fn power_off(&self) -> ! {
        crate::oracle::summarise();
        // Both calls return only when there is no such firmware.
        let _ = match FIRMWARE.load(Ordering::Relaxed) {
            1 => psci::system_off::<smccc::Smc>(),
            2 => psci::system_off::<smccc::Hvc>(),
            _ => Ok(()),
        };
        halt()
    }

    fn reboot(&self) -> ! {
        crate::oracle::summarise();
        let _ = match FIRMWARE.load(Ordering::Relaxed) {
            1 => psci::system_reset::<smccc::Smc>(),
            2 => psci::system_reset::<smccc::Hvc>(),
            _ => Ok(()),
        };
        halt()
    }
}
