# The ways into the hypervisor and out of it.
#
# From a guest, registers are pushed straight into the running vCPU's context (`context.rs`): the processor uses the
# frame's end as the stack for ring 0, and `entry_syscall` loads the same address itself, since `syscall` changes no stack.
# Then the CPU's own stack is taken from the context. Interrupts stay off in the hypervisor (but for idling), so only
# NMI, double fault and machine check can come between; they have stacks of their own.
#
# The direction flag is the guest's until we clear it: an exception leaves it as it is, `syscall` clears it by the mask that
# `descriptors.rs` sets. Compiled code and the copies at the end of this file rely on its being clear.
#
# Debug exceptions have a stack of their own as well, since a guest can have one come at the first instruction of `entry_syscall`; one
# from ring 3 is moved to the context at once.
#
# From the hypervisor itself, an exception or (when idle) an interrupt pushes the same frame on the CPU's stack.

.set FRAME_R11, 48
.set FRAME_RAX, 56
.set FRAME_RCX, 64
.set FRAME_RDI, 72
.set FRAME_RSI, 80
.set FRAME_RDX, 88
.set FRAME_R10, 96
.set FRAME_R8, 104
.set FRAME_R9, 112
.set FRAME_VECTOR, 120
.set FRAME_RIP, 136
.set FRAME_CS, 144
.set FRAME_RFLAGS, 152
.set FRAME_RSP, 160
.set FRAME_SS, 168

.macro push_registers
    pushq %r9
    pushq %r8
    pushq %r10
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rcx
    pushq %rax
    pushq %r11
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
.endm

.macro pop_registers
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    popq %r11
    popq %rax
    popq %rcx
    popq %rdi
    popq %rsi
    popq %rdx
    popq %r10
    popq %r8
    popq %r9
.endm

.macro enter_by_syscall how, code_segment
    movq %rsp, {cpu} + {cpu_guest_stack}(%rip)
    movq {cpu} + {cpu_frame_end}(%rip), %rsp
    pushq ${flat_ss}
    pushq {cpu} + {cpu_guest_stack}(%rip)
    pushq %r11
    pushq $\code_segment
    pushq %rcx
    pushq $0
    pushq $\how
    push_registers
    movq %rsp, %rdi
    movq {host_stack}(%rdi), %rsp
.endm

.text
.balign 64
.global entry_syscall
entry_syscall:
    cmpq ${iret}, %rax
    je entry_iret
entry_syscall_fully:
    enter_by_syscall {by_syscall}, {flat_cs}
    callq {syscall}
    # Falls through.

# The way out after a handler. rax = 0: the guest that came goes on, and of the registers that a function must preserve (rbx, rbp,
# r12 to r15) none was changed in its context, so they are the guest's as they stand. Else rax = the context that goes on.
leave:
    testq %rax, %rax
    jnz exit_to_guest
    movq {cpu} + {cpu_context}(%rip), %rax
exit_to_same_guest:
    cmpl ${by_syscall}, FRAME_VECTOR(%rax)
    jne exit_by_iret
    # A non-canonical address makes sysret fault in ring 0 on Intel's processors, on the guest's stack. There is one that can
    # stand here, that after a syscall in the last bytes of the lower half; it is made canonical, and faults in ring 3.
    movq FRAME_RIP(%rax), %rcx
    shlq $16, %rcx
    sarq $16, %rcx
    movq FRAME_RFLAGS(%rax), %r11
    movq FRAME_RDI(%rax), %rdi
    movq FRAME_RSI(%rax), %rsi
    movq FRAME_RDX(%rax), %rdx
    movq FRAME_R10(%rax), %r10
    movq FRAME_R8(%rax), %r8
    movq FRAME_R9(%rax), %r9
    movq FRAME_RSP(%rax), %rsp
    movq FRAME_RAX(%rax), %rax
    sysretq

    # From the CPU's stack: if it faults (a selector or an address that the guest chose badly), the fault's frame must not land
    # in the context.
exit_by_iret:
    movq {host_stack}(%rax), %rsp
    pushq FRAME_SS(%rax)
    pushq FRAME_RSP(%rax)
    pushq FRAME_RFLAGS(%rax)
    pushq FRAME_CS(%rax)
    pushq FRAME_RIP(%rax)
    movq FRAME_R11(%rax), %r11
    movq FRAME_RCX(%rax), %rcx
    movq FRAME_RDI(%rax), %rdi
    movq FRAME_RSI(%rax), %rsi
    movq FRAME_RDX(%rax), %rdx
    movq FRAME_R10(%rax), %r10
    movq FRAME_R8(%rax), %r8
    movq FRAME_R9(%rax), %r9
    movq FRAME_RAX(%rax), %rax
.global exit_iret
exit_iret:
    iretq

# Leaves for the guest whose context rax holds, whoever ran before.
exit_to_guest:
    movq 0(%rax), %r15
    movq 8(%rax), %r14
    movq 16(%rax), %r13
    movq 24(%rax), %r12
    movq 32(%rax), %rbp
    movq 40(%rax), %rbx
    jmp exit_to_same_guest

# The first way out: rdi = the context. Doesn't return.
.global enter_guest
enter_guest:
    movq %rdi, %rax
    jmp exit_to_guest

.balign 16
.global entry_compatibility_syscall
entry_compatibility_syscall:
    enter_by_syscall {by_compatibility_syscall}, {flat_cs32}
    callq {trap}
    jmp leave

# All exceptions and interrupts, but for those with stacks of their own.
.balign 16
entry_common:
    cld
    push_registers
    movq %rsp, %rdi
    testb $3, FRAME_CS(%rdi)
    jz 1f
    movq {host_stack}(%rdi), %rsp
    callq {trap}
    jmp leave
    # From the hypervisor: a context in rax means that the guest goes on in place of what was interrupted.
1:  callq {own_trap}
    testq %rax, %rax
    jnz exit_to_guest
    pop_registers
    addq $16, %rsp
    iretq

# Debug: stack, lowest first: vector, error code, rip, cs, rflags, rsp, ss.
entry_debug:
    testb $3, 24(%rsp)
    jz entry_critical
    pushq %rax
    pushq %rcx
    movq {cpu} + {cpu_frame_end}(%rip), %rax
    .set word, 0
    .rept 7
    movq 16 + word(%rsp), %rcx
    movq %rcx, word - 56(%rax)
    .set word, word + 8
    .endr
    popq %rcx
    subq $56, %rax
    xchgq %rax, (%rsp)
    popq %rsp
    jmp entry_common

# NMI, double fault, machine check; and debug exceptions in the hypervisor.
entry_critical:
    cld
    push_registers
    movq %rsp, %rdi
    callq {critical}
    pop_registers
    addq $16, %rsp
    iretq

# A stub for each vector, 16 bytes apart. With some exceptions comes an error code; the others get a zero in its place.
.balign 16
.global entry_stubs
entry_stubs:
.set vector, 0
.rept 256
    .balign 16
    .if (vector >= 32)
        pushq $0
    .else
        .if ((({with_error_code} >> vector) & 1) == 0)
            pushq $0
        .endif
    .endif
    pushq $vector
    .if (vector == 2) || (vector == 8) || (vector == 18)
        jmp entry_critical
    .elseif (vector == 1)
        jmp entry_debug
    .elseif (vector == 14)
        jmp entry_page_fault
    .else
        jmp entry_common
    .endif
    .set vector, vector + 1
.endr

# Copies rdx bytes from rsi to rdi, one side of which is a guest's. Returns in rax how many are left: a fault on the guest's
# side ends the copy (see `access.rs`).
.balign 16
.global copy_guest
copy_guest:
    movq %rdx, %rcx
    shrq $3, %rcx
    andl $7, %edx
1:  rep movsq
    movl %edx, %ecx
    rep movsb
2:
    # At a fault in the first loop rcx counts quads; any value but 0 says that something is left.
    movq %rcx, %rax
    retq
.pushsection .fixups, "a", @progbits
.quad 1b, 2b, 2b
.popsection
