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

/// The same by the hypercall, whose number is the operand `iret`, and with rcx and r11 in their registers.
macro_rules! leave_by_hypercall {
    () => {
        r#"
        pushq $0
        pushq %rcx
        pushq %r11
        pushq %rax
        movl ${iret}, %eax
        syscall
        ud2
        "#
    };
}

pub(crate) use {keep_registers, leave_by_hypercall, leave_handler, load_kept_registers};
