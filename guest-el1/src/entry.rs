//! The first instructions, and the ELF notes by which the builder finds them.
//!
//! Start of day: EL1 with its own stack pointer, the MMU on, TTBR1 loaded with the tables that the builder made, all
//! interrupts masked, start info in `x0`, a boot stack of one page. The kernel takes a larger stack of its own at once.

use core::arch::global_asm;

global_asm!(
    r#"
    .macro XEN_NOTE type, directive:req, value:vararg
        .align 2
        .long 4
        .long 2f - 1f
        .long \type
        .asciz "Xen"
    1:  \directive \value
    2:  .align 2
    .endm

    .section .note.Xen, "a", @note
    XEN_NOTE {note_entry}, .quad, _start
    XEN_NOTE {note_virt_base}, .quad, {virt_base}
    XEN_NOTE {note_paddr_offset}, .quad, 0
    XEN_NOTE {note_xen_version}, .asciz, "xen-3.0"
    XEN_NOTE {note_guest_os}, .asciz, "penumbra-guest"
    XEN_NOTE {note_loader}, .asciz, "generic"
    XEN_NOTE {note_features}, .asciz, "!writable_page_tables|pae_pgdir_above_4gb"
    XEN_NOTE {note_hv_start_low}, .quad, 0xffff800000000000
    // Bit 11: the kernel can be the first domain.
    XEN_NOTE {note_supported_features}, .long, 0x801

    .section .bss.boot_stack, "aw", @nobits
    .align 12
    boot_stack:
    .skip 65536
    .globl boot_stack_end
    boot_stack_end:

    .section .text.boot, "ax"
    .globl _start
    _start:
        adrp x1, boot_stack_end
        add x1, x1, :lo12:boot_stack_end
        mov sp, x1
        mov x29, xzr
        mov x30, xzr
        bl {main}
        brk #0
    "#,
    note_entry = const penumbra_abi::elfnote::ENTRY,
    note_virt_base = const penumbra_abi::elfnote::VIRT_BASE,
    note_paddr_offset = const penumbra_abi::elfnote::PADDR_OFFSET,
    note_xen_version = const penumbra_abi::elfnote::XEN_VERSION,
    note_guest_os = const penumbra_abi::elfnote::GUEST_OS,
    note_loader = const penumbra_abi::elfnote::LOADER,
    note_features = const penumbra_abi::elfnote::FEATURES,
    note_hv_start_low = const penumbra_abi::elfnote::HV_START_LOW,
    note_supported_features = const penumbra_abi::elfnote::SUPPORTED_FEATURES,
    virt_base = const crate::machine::VIRT_BASE,
    main = sym crate::rust_main,
);
