// EL2's vectors, and the way into and out of a guest.
//
// While a guest runs, SP_EL2 points at the running vCPU's context (see context.rs for the offsets), and TPIDR_EL2 at
// this CPU's own data, whose first word is the top of its stack. So a trap saves the registers where they belong, at
// once, and nothing is copied.

.equ CONTEXT_LR, 240
.equ CONTEXT_PC, 248
.equ CONTEXT_PSTATE, 256
.equ FAULT_DYING, 256                   // within fault.rs's FaultRecord

.macro save_registers
    stp     x0, x1, [sp]
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x1, elr_el2
    mrs     x2, spsr_el2
    stp     x30, x1, [sp, #CONTEXT_LR]
    str     x2, [sp, #CONTEXT_PSTATE]
.endm

.macro from_guest handler
    .balign 0x80
    save_registers
    mrs     x1, tpidr_el2
    mov     x0, sp
    ldr     x2, [x1]
    mov     sp, x2
    adr     x30, enter_guest
    b       \handler
.endm

// The same for synchronous exceptions, most of which are hypercalls: those have a short way back. `guest_hypercall` returns null if
// the same vCPU goes on; then x20 to x29 still hold what the guest had there, as the procedure call standard (AAPCS64) has
// it. Exactly the 32 instructions that fit.
.macro from_guest_synchronous
    .balign 0x80
    save_registers
    mrs     x3, esr_el2
    mrs     x1, tpidr_el2
    mov     w4, #0x0ea1                 // hyp_el2::syndrome::XEN_HYPERCALL
    movk    w4, #0x5a00, lsl #16
    ldr     x2, [x1]
    mov     x0, sp
    mov     x19, sp
    mov     sp, x2
    cmp     x3, x4
    b.ne    other_synchronous
    bl      guest_hypercall
    cbz     x0, return_from_hypercall
    b       enter_guest
.endm

// A fault of the hypervisor itself. Nothing of the guest matters any more, so two of its registers hold x0 and x1 while a
// stack is found that can be trusted.
.macro from_hypervisor kind
    .balign 0x80
    msr     tpidr_el1, x0
    msr     tpidrro_el0, x1
    mov     x0, #\kind
    b       hypervisor_fault
.endm

.section .vectors, "ax"
.balign 2048
.global vectors
vectors:
    from_hypervisor 0                   // current EL, SP_EL0: never in use
    from_hypervisor 1
    from_hypervisor 2
    from_hypervisor 3
    from_hypervisor 4                   // current EL, SP_EL2: synchronous, IRQ, FIQ, SError
    from_hypervisor 5
    from_hypervisor 6
    from_hypervisor 7
    from_guest_synchronous              // EL1 and EL0 in AArch64
    from_guest guest_interrupt
    from_guest guest_interrupt
    from_guest guest_system_error
    from_guest guest_aarch32            // EL1 in AArch32: never (EL0 in AArch32 comes through the four above)
    from_guest guest_aarch32
    from_guest guest_aarch32
    from_guest guest_aarch32

other_synchronous:
    adr     x30, enter_guest
    b       guest_synchronous

// The context is at x19. The address to go on at may have changed (a preempted hypercall is issued again), and PSTATE (who waits for
// events wants them unmasked).
return_from_hypercall:
    mov     sp, x19
    ldp     x1, x2, [sp, #CONTEXT_PC]
    msr     elr_el2, x1
    msr     spsr_el2, x2
    ldr     x30, [sp, #CONTEXT_LR]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x0, x1, [sp]
    eret
    dsb     nsh                         // no speculation beyond the return
    isb

// enter_guest(context: x0): runs the guest. The handlers above return here with the context of the vCPU to run.
.global enter_guest
enter_guest:
    mov     sp, x0
    ldp     x30, x1, [sp, #CONTEXT_LR]
    ldr     x2, [sp, #CONTEXT_PSTATE]
    msr     elr_el2, x1
    msr     spsr_el2, x2
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldp     x0, x1, [sp]
    eret
    dsb     nsh                         // no speculation beyond the return
    isb

// All registers into `fault_record`, then Rust on the emergency stack. x0 = which vector. A fault while a fault is being reported
// would begin anew on the same stack, for ever: it just stops.
hypervisor_fault:
    adrp    x1, fault_record
    add     x1, x1, :lo12:fault_record
    stp     x2, x3, [x1, #16]
    ldr     x2, [x1, #FAULT_DYING]
    cbnz    x2, 4f
    str     x1, [x1, #FAULT_DYING]
    stp     x4, x5, [x1, #32]
    stp     x6, x7, [x1, #48]
    stp     x8, x9, [x1, #64]
    stp     x10, x11, [x1, #80]
    stp     x12, x13, [x1, #96]
    stp     x14, x15, [x1, #112]
    stp     x16, x17, [x1, #128]
    stp     x18, x19, [x1, #144]
    stp     x20, x21, [x1, #160]
    stp     x22, x23, [x1, #176]
    stp     x24, x25, [x1, #192]
    stp     x26, x27, [x1, #208]
    stp     x28, x29, [x1, #224]
    mov     x3, sp
    stp     x30, x3, [x1, #240]
    mrs     x2, tpidr_el1
    mrs     x3, tpidrro_el0
    stp     x2, x3, [x1]
    ldr     x2, =__emergency_top
    mov     sp, x2
    mov     x29, xzr
    bl      hypervisor_fault_report
4:  wfe
    b       4b

// save_vectors(x0) and load_vectors(x0): the 32 SIMD registers, FPCR and FPSR. The hypervisor itself uses none of them.
.arch_extension fp
.arch_extension simd
.global save_vectors
save_vectors:
    stp     q0, q1, [x0]
    stp     q2, q3, [x0, #32]
    stp     q4, q5, [x0, #64]
    stp     q6, q7, [x0, #96]
    stp     q8, q9, [x0, #128]
    stp     q10, q11, [x0, #160]
    stp     q12, q13, [x0, #192]
    stp     q14, q15, [x0, #224]
    stp     q16, q17, [x0, #256]
    stp     q18, q19, [x0, #288]
    stp     q20, q21, [x0, #320]
    stp     q22, q23, [x0, #352]
    stp     q24, q25, [x0, #384]
    stp     q26, q27, [x0, #416]
    stp     q28, q29, [x0, #448]
    stp     q30, q31, [x0, #480]
    mrs     x1, fpcr
    mrs     x2, fpsr
    str     x1, [x0, #512]
    str     x2, [x0, #520]
    ret

.global load_vectors
load_vectors:
    ldp     q0, q1, [x0]
    ldp     q2, q3, [x0, #32]
    ldp     q4, q5, [x0, #64]
    ldp     q6, q7, [x0, #96]
    ldp     q8, q9, [x0, #128]
    ldp     q10, q11, [x0, #160]
    ldp     q12, q13, [x0, #192]
    ldp     q14, q15, [x0, #224]
    ldp     q16, q17, [x0, #256]
    ldp     q18, q19, [x0, #288]
    ldp     q20, q21, [x0, #320]
    ldp     q22, q23, [x0, #352]
    ldp     q24, q25, [x0, #384]
    ldp     q26, q27, [x0, #416]
    ldp     q28, q29, [x0, #448]
    ldp     q30, q31, [x0, #480]
    ldr     x1, [x0, #512]
    ldr     x2, [x0, #520]
    msr     fpcr, x1
    msr     fpsr, x2
    ret
.ltorg
