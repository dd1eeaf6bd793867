# Entry from a multiboot loader, version 1 or 2, up to the first Rust function.
#
# The loader leaves 32-bit protected mode without paging: eax = magic, ebx = physical address of the multiboot
# information. This code builds temporary tables (2 MiB pages over the first 4 GiB, three times: identity, direct map,
# image), switches to long mode and jumps to the image's own addresses. `tables.rs` replaces the tables later.
# All memory that is named here before paging is named by its physical address: symbol - {offset}.

.section .boot.header, "a"
.balign 8
    .set MAGIC, 0x1badb002
    .set WANTED, 0x3                    # modules on page boundaries; memory information
    .long MAGIC
    .long WANTED
    .long -(MAGIC + WANTED)

# Multiboot 2: the machine is entered in the same state, with another magic number and another form of the information.
.balign 8
boot_header2:
    .set MAGIC2, 0xe85250d6
    .set LENGTH2, boot_header2_end - boot_header2
    .long MAGIC2
    .long 0                             # 32-bit protected mode of i386
    .long LENGTH2
    .long -(MAGIC2 + LENGTH2)
    .short 6                            # modules on page boundaries
    .short 0
    .long 8
    .short 0                            # the end
    .short 0
    .long 8
boot_header2_end:

.section .boot.text, "ax"
.code32
.global boot_entry
boot_entry:
    cli
    cld
    movl %eax, %esi
    rdtsc
    movl %eax, ({record} - {offset})
    movl %edx, ({record} - {offset} + 4)
    movl %esi, ({record} - {offset} + 8)
    movl %ebx, ({record} - {offset} + 12)

    # Long mode and no-execute (CPUID 0x80000001, edx bits 29 and 20) are what everything below rests on.
    movl $0x80000000, %eax
    cpuid
    cmpl $0x80000001, %eax
    jb 9f
    movl $0x80000001, %eax
    cpuid
    andl $0x20100000, %edx
    cmpl $0x20100000, %edx
    jne 9f

    # Level 2: 4 tables of 512 entries, 2 MiB each.
    movl $(boot_level2 - {offset}), %edi
    movl $0x83, %eax
    movl $2048, %ecx
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 1b

    # Level 3: the first 4 GiB (shared by identity and direct map), and the image's gigabyte.
    movl $(boot_level3 - {offset}), %edi
    movl $(boot_level2 - {offset} + 3), %eax
    movl %eax, (%edi)
    movl %eax, (boot_level3_image - {offset} + 8 * {image_slot3})
    addl $0x1000, %eax
    movl %eax, 8(%edi)
    addl $0x1000, %eax
    movl %eax, 16(%edi)
    addl $0x1000, %eax
    movl %eax, 24(%edi)

    # Level 4.
    movl $(boot_level3 - {offset} + 3), %eax
    movl %eax, (boot_level4 - {offset})
    movl %eax, (boot_level4 - {offset} + 8 * {direct_slot4})
    movl $(boot_level3_image - {offset} + 3), %eax
    movl %eax, (boot_level4 - {offset} + 8 * {image_slot4})

    movl $(boot_level4 - {offset}), %eax
    movl %eax, %cr3
    movl $0x620, %eax                   # CR4: PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $0xc0000080, %ecx              # EFER: SYSCALL, long mode, no-execute
    rdmsr
    orl $0x901, %eax
    wrmsr
    movl ${cr0}, %eax
    movl %eax, %cr0
    lgdt (boot_gdt_pointer - {offset})
    ljmp $0x8, $(2f - {offset})

.code64
2:  movabsq $3f, %rax
    jmpq *%rax
3:  xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    leaq {stack} + {stack_bytes}(%rip), %rsp
    xorl %ebp, %ebp
    callq {main}
    ud2

# The processor can't run the hypervisor: say so on COM1, as far as it listens, and stop.
.code32
9:  movl $(boot_unfit - {offset}), %esi
    movw $0x3f8, %dx
8:  movb (%esi), %al
    testb %al, %al
    jz 7f
    outb %al, %dx
    incl %esi
    jmp 8b
7:  hlt
    jmp 7b
.code64

.section .rodata.boot, "a"
.balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff            # 64-bit code, present, accessed
boot_gdt_pointer:
    .word 15
    .long boot_gdt - {offset}
boot_unfit:
    .asciz "Penumbra: this processor has no long mode or no no-execute bit: stopped\r\n"

.section .bss.boot, "aw", @nobits
.balign 4096
boot_level4: .skip 4096
boot_level3: .skip 4096
boot_level3_image: .skip 4096
boot_level2: .skip 4 * 4096
