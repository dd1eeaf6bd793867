# Short ways for what Linux does most: a page fault of a user's goes to the kernel's handler, and the kernel goes back by `iret`.
#
# They do what `bounce.rs` and `iret.rs` do, in the order in which these do it, where nothing else is to be done: a vCPU is entered that has
# its `vcpu_info` (`cpu::ENTERED`), and no stretch is measured; no table of the domain is unhooked, there is a handler which masks events
# (`TrapHandler`: none masks them that isn't there), the stack is the guest's, the other root is there, no event is pending. Whatever isn't so is found before anything has changed, and then registers are as the guest
# left them, and the full way is gone (`entry_common`, `entry_syscall_fully`). A fault at the guest's stack leads there as well.
# Nobody else can have become due: who makes a vCPU due is on the way out then, which is the full one.
#
# Only the registers that are needed here are saved, in their places in the context. The guest's stack is never the CPU's while it is
# used: a fault there would be pushed on it.

.set FRAME_ERROR, 128

.text
# A page fault. Stack, lowest first: vector, error code, rip, cs, rflags, rsp, ss.
.balign 16
entry_page_fault:
    testb $3, 24(%rsp)
    jz entry_common
    # The kernel's own go the full way without having paid for this one.
    cmpb $0, {user_mode} - FRAME_VECTOR(%rsp)
    je entry_common
    movq %rax, FRAME_RAX - FRAME_VECTOR(%rsp)
    movq %rcx, FRAME_RCX - FRAME_VECTOR(%rsp)
    movq %rdx, FRAME_RDX - FRAME_VECTOR(%rsp)
    movq %rdi, FRAME_RDI - FRAME_VECTOR(%rsp)
    movq %r11, FRAME_R11 - FRAME_VECTOR(%rsp)
    movq {entered}(%rip), %r11
    testq %r11, %r11
    jz 9f
    leaq -FRAME_VECTOR(%rsp), %rdx
    movq {cpu} + {cpu_unhooked}(%rip), %rax
    cmpl $0, (%rax)
    jne 9f
    movq {info}(%rdx), %rdi
    cmpb $0, {mask}(%rdi)
    jne 9f
    testb ${mask_events}, {handler_flags}(%rdx)
    jz 9f
    # Eight words below the kernel's stack, which is aligned first.
    movq {kernel_stack}(%rdx), %rcx
    andq $-16, %rcx
    subq $64, %rcx
    movabsq ${below_guests}, %rax
    addq %rcx, %rax
    cmpq fault_frames(%rip), %rax
    ja 9f
    movq {handler}(%rdx), %rax
    movq {kernel_root}(%r11), %r11
    subq $1, %r11
    jb 9f
    shlq $12, %r11
    movq {host_stack}(%rdx), %rsp
    movq %r11, %cr3
    movq %cr2, %r11
    movq %r11, {cr2}(%rdi)
2:  movq FRAME_RCX(%rdx), %r11
    movq %r11, (%rcx)
    movq FRAME_R11(%rdx), %r11
    movq %r11, 8(%rcx)
    movq FRAME_ERROR(%rdx), %r11
    movq %r11, 16(%rcx)
    movq FRAME_RIP(%rdx), %r11
    movq %r11, 24(%rcx)
    # Of a user, and events weren't masked.
    movzwl FRAME_CS(%rdx), %r11d
    movq %r11, 32(%rcx)
    movq FRAME_RSP(%rdx), %r11
    movq %r11, 48(%rcx)
    movq FRAME_SS(%rdx), %r11
    movq %r11, 56(%rcx)
    movq FRAME_RFLAGS(%rdx), %r11
    movq %r11, 40(%rcx)
3:  movb $1, {mask}(%rdi)
    movb $0, {user_mode}(%rdx)
    swapgs
    andq $~{cleared_in_handler}, %r11
    movq %rcx, %rsp
    # The handler's address was canonical when it was registered.
    movq %rax, %rcx
    movq FRAME_RAX(%rdx), %rax
    movq FRAME_RDI(%rdx), %rdi
    movq FRAME_RDX(%rdx), %rdx
    sysretq
    # A fault at the kernel's stack: what it has done to CR2 is undone. Its root is loaded, and will be loaded again.
8:  movq {cr2}(%rdi), %r11
    movq %r11, %cr2
    leaq FRAME_VECTOR(%rdx), %rsp
9:  movq FRAME_RAX - FRAME_VECTOR(%rsp), %rax
    movq FRAME_RCX - FRAME_VECTOR(%rsp), %rcx
    movq FRAME_RDX - FRAME_VECTOR(%rsp), %rdx
    movq FRAME_RDI - FRAME_VECTOR(%rsp), %rdi
    movq FRAME_R11 - FRAME_VECTOR(%rsp), %r11
    jmp entry_common
.pushsection .fixups, "a", @progbits
.quad 2b, 3b, 8b
.popsection

# The `iret` hypercall, to user mode. The words on the kernel's stack, lowest first: rax, r11, rcx, flags of the hypercall's own, rip, cs,
# rflags, rsp, ss. Always by iretq: so rcx and r11 are what the words say, even where `sysret` would do.
.balign 16
entry_iret:
    movq {cpu} + {cpu_context}(%rip), %rax
    movq %rcx, FRAME_RIP(%rax)
    movq %r11, FRAME_RFLAGS(%rax)
    movq {entered}(%rip), %r11
    testq %r11, %r11
    jz 9f
    # Not in user mode, nor while a non-maskable interrupt is handled, which this would end.
    cmpw $0, {user_mode}(%rax)
    jne 9f
    movq {cpu} + {cpu_unhooked}(%rip), %rcx
    cmpl $0, (%rcx)
    jne 9f
    movabsq ${below_guests}, %rcx
    addq %rsp, %rcx
    cmpq iret_frames(%rip), %rcx
    ja 9f
    movq {info}(%rax), %rcx
    cmpb $0, {pending}(%rcx)
    jne 9f
    movq {user_root}(%r11), %r11
    subq $1, %r11
    jb 9f
    shlq $12, %r11
    movq %rdx, FRAME_RDX(%rax)
    movq %rsp, %rdx
    movq {host_stack}(%rax), %rsp
    # Whatever the segments are, they are ring 3's: a wrong selector then faults at iretq.
2:  movzwl 64(%rdx), %ecx
    orl $3, %ecx
    pushq %rcx
    pushq 56(%rdx)
    movl 48(%rdx), %ecx
    testl ${flag_interrupt}, %ecx
    jz 8f
    andl ${kept_flags}, %ecx
    pushq %rcx
    movzwl 40(%rdx), %ecx
    pushq %rcx
    notl %ecx
    testb $3, %cl
    jnz 8f
    pushq 32(%rdx)
    pushq 8(%rdx)
    movq 16(%rdx), %rcx
    movq (%rdx), %rdx
3:  movq %r11, %cr3
    swapgs
    movq {info}(%rax), %r11
    movb $0, {mask}(%r11)
    movb $1, {user_mode}(%rax)
    popq %r11
    xchgq %rdx, %rax
    movq FRAME_RDX(%rdx), %rdx
.global exit_iret_shortly
exit_iret_shortly:
    iretq
8:  movq %rdx, %rsp
    movq FRAME_RDX(%rax), %rdx
9:  movq FRAME_RIP(%rax), %rcx
    movq FRAME_RFLAGS(%rax), %r11
    movl ${iret}, %eax
    jmp entry_syscall_fully
.pushsection .fixups, "a", @progbits
.quad 2b, 3b, 8b
.popsection

# The highest distances from the first address behind the hypervisor's at which so many words can stand.
.section .rodata
.balign 8
fault_frames:
    .quad {fault_frames}
iret_frames:
    .quad {iret_frames}
.text
