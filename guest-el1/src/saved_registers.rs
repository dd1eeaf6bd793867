//! The registers that a handler in Rust may change (AAPCS64, 6.1.1), put on the stack and taken from it again: for stubs in assembly.

/// Makes room for so many bytes on the stack, at least 160, and puts x0 to x18 and x29 at its lower end. x30 is the caller's to keep,
/// with what else it needs.
macro_rules! save_registers {
    ($bytes:literal) => {
        concat!(
            "sub sp, sp, #",
            $bytes,
            "\n",
            "stp x0, x1, [sp]\n",
            "stp x2, x3, [sp, #16]\n",
            "stp x4, x5, [sp, #32]\n",
            "stp x6, x7, [sp, #48]\n",
            "stp x8, x9, [sp, #64]\n",
            "stp x10, x11, [sp, #80]\n",
            "stp x12, x13, [sp, #96]\n",
            "stp x14, x15, [sp, #112]\n",
            "stp x16, x17, [sp, #128]\n",
            "stp x18, x29, [sp, #144]\n",
        )
    };
}

/// Undoes [`save_registers`].
macro_rules! restore_registers {
    ($bytes:literal) => {
        concat!(
            "ldp x18, x29, [sp, #144]\n",
            "ldp x16, x17, [sp, #128]\n",
            "ldp x14, x15, [sp, #112]\n",
            "ldp x12, x13, [sp, #96]\n",
            "ldp x10, x11, [sp, #80]\n",
            "ldp x8, x9, [sp, #64]\n",
            "ldp x6, x7, [sp, #48]\n",
            "ldp x4, x5, [sp, #32]\n",
            "ldp x2, x3, [sp, #16]\n",
            "ldp x0, x1, [sp]\n",
            "add sp, sp, #",
            $bytes,
            "\n",
        )
    };
}

pub(crate) use {restore_registers, save_registers};
