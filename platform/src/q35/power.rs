//! Switching q35 off and starting it anew.
//!
//! The power management block lies where QEMU's own firmware puts it on this board (PMBASE 0x600), and the sleep type of
//! state S5 is 0 there. Reading both from ACPI would take an interpreter for the DSDT, so this is kept here, in the
//! one file that knows the board.

use x86_64::instructions::port::Port;

/// PM1a control register, in QEMU's ICH9.
const PM1A_CONTROL: u16 = 0x604;
/// Sleep enable, with sleep type 0 (S5 on QEMU).
const SLEEP_S5: u16 = 1 << 13;
/// Reset control register of PCI chipsets.
const RESET_CONTROL: u16 = 0xcf9;
/// Command port of the keyboard controller.
const KEYBOARD_COMMAND: u16 = 0x64;

/// Switches the machine off. Returns when the board doesn't do so.
///
/// # Safety
/// Everything that must outlive the machine has been written.
pub unsafe fn off() {
    // SAFETY: on q35 this register does just that; on another board the port is nobody's.
    unsafe { Port::<u16>::new(PM1A_CONTROL).write(SLEEP_S5) };
}

/// Starts the machine anew, by the chipset and then by the keyboard controller. Returns when neither does it.
///
/// # Safety
/// As for [`off`].
pub unsafe fn reset() {
    // SAFETY: these are the documented ways to reset a PC: a hard reset in two steps, and the pulse on line 0.
    unsafe {
        Port::<u8>::new(RESET_CONTROL).write(0x02);
        Port::<u8>::new(RESET_CONTROL).write(0x06);
        Port::<u8>::new(KEYBOARD_COMMAND).write(0xfe);
    }
}
