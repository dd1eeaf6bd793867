//! The first instructions without a hypervisor: from the boot loader's world (EL1, MMU off) to Rust at the kernel's own addresses.
//!
//! The flat image is loaded 1 MiB above the start of RAM (`text_offset`), so that pseudo-physical frame 0 is RAM's first frame,
//! and entered by the arm64 boot protocol (Linux, `booting.rst`) with the device tree's address in `x0`. The boot tables hold
//! blocks of 1 GiB: the one with the image, at `VIRT_BASE` and identically, and the first of the machine, where the devices are.

use core::arch::global_asm;

/// Where the first GiB of the machine (the devices of `virt`) is mapped.
pub const DEVICES: u64 = 0xffff_ff80_0000_0000;
/// `MAIR_EL1`: index 0 is Normal write-back memory, as under Penumbra; 1 is Device-nGnRnE.
const MAIR: u64 = 0x00ff;
/// `TCR_EL1`: 48 bits and 4 KiB granules in both halves, write-back inner-shareable walks, output addresses of 44 bits: as
/// under Penumbra.
const TCR: u64 = 0b100 << 32 | 0b10 << 30 | 0x3510 << 16 | 0x3510;
/// `SCTLR_EL1`, as under Penumbra.
const SCTLR: u64 = 0x30d5_d99d;
/// A 1 GiB block: valid, AF, inner shareable memory; or attribute index 1, not executable.
const MEMORY_BLOCK: u64 = 0x701;
/// See [`MEMORY_BLOCK`]; for [`DEVICES`].
pub const DEVICE_BLOCK: u64 = 0x405 | 1 << 53 | 1 << 54;

global_asm!(
    r#"
    .section .text.head, "ax"
    .globl _head
    _head:
        b bare_start
        nop
        .quad 0x100000
        .quad __image_size
        .quad 0b1010
        .quad 0, 0, 0
        .ascii "ARM\x64"
        .long 0

    .section .bss.bare_tables, "aw", @nobits
    .align 12
    bare_tables:
    .skip 4 * 4096

    .section .text.boot, "ax"
    bare_start:
        msr daifset, #15
        mov x20, x0
        mrs x1, CurrentEL
        cmp x1, #(1 << 2)
        b.ne bare_park
        adrp x1, __bss_start
        adrp x2, __image_end
    1:  stp xzr, xzr, [x1], #16
        cmp x1, x2
        b.lo 1b

        // Root of the kernel's half, its table of GiBs, and the same two for the identity mapping.
        adrp x21, bare_tables
        add x22, x21, #0x1000
        add x23, x21, #0x2000
        add x24, x21, #0x3000
        adrp x1, _head
        and x1, x1, #~((1 << 30) - 1)
        mov x25, x1
        mov x2, #{memory_block}
        orr x2, x1, x2
        str x2, [x22, #(256 * 8)]
        ubfx x3, x1, #30, #9
        str x2, [x24, x3, lsl #3]
        ldr x2, ={device_block}
        str x2, [x22]
        orr x2, x22, #3
        str x2, [x21, #(511 * 8)]
        orr x2, x24, #3
        str x2, [x23]

        ldr x1, ={mair}
        msr mair_el1, x1
        ldr x1, ={tcr}
        msr tcr_el1, x1
        msr ttbr0_el1, x23
        msr ttbr1_el1, x21
        msr mdscr_el1, xzr
        mov x1, #(3 << 20)
        msr cpacr_el1, x1
        dsb sy
        isb
        tlbi vmalle1
        ic iallu
        dsb sy
        isb
        ldr x1, ={sctlr}
        msr sctlr_el1, x1
        isb
        ldr x1, =2f
        br x1
    2:  ldr x1, =boot_stack_end
        mov sp, x1
        mov x29, xzr
        mov x30, xzr
        mov x1, x25
        mov x0, x20
        bl {main}
    bare_park:
        wfe
        b bare_park
        .ltorg
    "#,
    memory_block = const MEMORY_BLOCK,
    device_block = const DEVICE_BLOCK,
    mair = const MAIR,
    tcr = const TCR,
    sctlr = const SCTLR,
    main = sym crate::bare::bare_main,
);
