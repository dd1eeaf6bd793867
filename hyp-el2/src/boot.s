// The first instructions: from the boot loader's world to Rust with the MMU on.
//
// Entry, by the arm64 boot protocol (Linux, Documentation/arch/arm64/booting.rst): EL2, MMU and data cache off,
// x0 = machine address of the device tree. The image may be at any 2 MiB boundary: until the MMU is on, all is
// PC-relative. Kept in registers on the way: x19 = time of entry, x20 = device tree, x21 = load address.

.equ BLOCK_SHIFT, 21
.equ VALID_BLOCK, 0x741                 // valid, block, AP[1] (RES1 at EL2), inner shareable, AF, attribute index 0
.equ VALID_TABLE, 0x3
.equ READ_ONLY, 1 << 7
.equ EXECUTE_NEVER, 1 << 54
.equ IMAGE_ROOT_SLOT, 0x400000000000 >> 39

// The 64-byte header. `b` is the first instruction; text_offset 0; flags: little-endian, 4 KiB pages, anywhere in memory.
.section .head, "ax"
.global _head
_head:
    b       start
    nop
    .quad   0
    .quad   __image_size
    .quad   0b1010
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

start:
    mrs     x19, cntpct_el0
    msr     daifset, #0xf
    mov     x20, x0
    adrp    x21, _head
    mrs     x1, CurrentEL
    cmp     x1, #(2 << 2)
    b.ne    park
    tst     x21, #((1 << BLOCK_SHIFT) - 1)
    b.ne    park
    lsr     x1, x21, #46                // the identity mapping must not meet the image's own address
    cbnz    x1, park

    // The boot tables, six pages: root, two for the image, one for the boot window, two for the identity mapping. Old cache
    // lines over them must not come back once the cache is on.
    adrp    x22, __boot_tables
    adrp    x1, __boot_tables_end
    mov     x0, x22
1:  dc      ivac, x0
    stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    cmp     x0, x1
    b.lo    1b

    mov     x9, #VALID_TABLE
    mov     x10, #VALID_BLOCK
    // x23: level 3 for image and window; x24: level 2 for the image; x25: level 2 for the window; x26, x27: identity.
    add     x23, x22, #0x1000
    add     x24, x22, #0x2000
    add     x25, x22, #0x3000
    add     x26, x22, #0x4000
    add     x27, x22, #0x5000
    orr     x1, x23, x9
    str     x1, [x22, #(IMAGE_ROOT_SLOT * 8)]
    orr     x1, x24, x9
    str     x1, [x23]
    orr     x1, x25, x9
    str     x1, [x23, #8]

    // Identity: the one block that holds this code.
    ubfx    x2, x21, #39, #9
    orr     x1, x26, x9
    str     x1, [x22, x2, lsl #3]
    ubfx    x2, x21, #30, #9
    orr     x1, x27, x9
    str     x1, [x26, x2, lsl #3]
    ubfx    x2, x21, #21, #9
    orr     x1, x21, x10
    str     x1, [x27, x2, lsl #3]

    // The image, as many blocks as it takes.
    adrp    x3, __image_end
    mov     x1, x21
    mov     x2, x24
2:  orr     x4, x1, x10
    str     x4, [x2], #8
    add     x1, x1, #(1 << BLOCK_SHIFT)
    cmp     x1, x3
    b.lo    2b

    // The device tree: two blocks, since it is at most 2 MiB but may lie across a boundary.
    mov     x4, #READ_ONLY
    movk    x4, #(EXECUTE_NEVER >> 48), lsl #48
    orr     x4, x4, x10
    bic     x1, x20, #((1 << BLOCK_SHIFT) - 1)
    ubfx    x1, x1, #0, #48
    orr     x5, x1, x4
    str     x5, [x25]
    add     x1, x1, #(1 << BLOCK_SHIFT)
    ubfx    x1, x1, #0, #48
    orr     x5, x1, x4
    str     x5, [x25, #8]

    // Translation: 48 bits, 4 KiB, cacheable walks; the physical address range is what the CPU has, up to 48 bits.
    ldr     x1, =0x80803510             // RES1, SH0 inner, ORGN0/IRGN0 write-back, T0SZ 16
    mrs     x2, id_aa64mmfr0_el1
    and     x2, x2, #0xf
    mov     x3, #5
    cmp     x2, x3
    csel    x2, x2, x3, lo
    orr     x1, x1, x2, lsl #16
    msr     tcr_el2, x1
    mov     x1, #0x04ff                 // hyp_el2::mapper::MAIR_EL2
    msr     mair_el2, x1
    msr     ttbr0_el2, x22
    mov     x1, #(1 << 31)              // HCR_EL2: EL1 is AArch64, nothing else for now
    msr     hcr_el2, x1
    dsb     sy
    isb
    tlbi    alle2
    ic      iallu
    dsb     sy
    isb
    ldr     x1, =0x30c5183d             // RES1, I, SA, C, M
    msr     sctlr_el2, x1
    isb
    ldr     x1, =at_link_address
    br      x1

at_link_address:
    adrp    x0, __bss_start
    adrp    x1, __bss_end
    add     x0, x0, :lo12:__bss_start
3:  stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    cmp     x0, x1
    b.lo    3b

    ldr     x1, =__stack_top
    mov     sp, x1
    ldr     x1, =vectors
    msr     vbar_el2, x1
    isb
    mov     x0, x20
    mov     x1, x21
    mov     x2, x19
    mov     x29, xzr
    mov     x30, xzr
    bl      boot_main

park:
    wfe
    b       park

.ltorg

// switch_tables(root: x0, sctlr: x1, offset: x2): replaces the tables of EL2 while the MMU is off, so that no TLB ever holds
// entries of both. `offset` is virtual minus machine address of the image. This page is mapped identically in both trees;
// no data is touched on the way.
.section .head.switch, "ax"
.global switch_tables
switch_tables:
    adr     x3, 1f
    sub     x3, x3, x2
    br      x3
1:  mrs     x4, sctlr_el2
    bic     x4, x4, #1
    msr     sctlr_el2, x4
    isb
    msr     ttbr0_el2, x0
    isb
    tlbi    alle2
    ic      iallu
    dsb     sy
    isb
    msr     sctlr_el2, x1
    isb
    ret
