//! Lines of assembly that several handlers share, as text for `global_asm!` in AT&T syntax.

/// Keeps the registers on the stack that a function's caller expects back.
macro_rules! keep_registers {
    () => {
        r#"
        pushq %rbx
        pushq %rbp
        pushq %r12
        pushq %r13
        pushq %r14
        pushq %r15
        "#
    };
}

/// Loads what [`keep_registers`] kept.
macro_rules! load_kept_registers {
    () => {
        r#"
        popq %r15
        popq %r14
        popq %r13
        popq %r12
        popq %rbp
        popq %rbx
        "#
    };
}

/// Goes on where an exception or an event came, in ring 3. Stack, lowest first: rcx, r11, rip, cs, rflags, rsp, ss.
macro_rules! leave_handler {
    () => {
        r#"
        popq %rcx
        popq %r11
        orq $3, 8(%rsp)
        iretq
        "#
    };
}

pub(crate) use {keep_registers, leave_handler, load_kept_registers};
