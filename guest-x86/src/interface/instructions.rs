//! Privileged instructions that are carried out for a kernel in ring 3.

use core::arch::asm;

use guest_core::tests::Check;

use crate::machine::X86;
use crate::traps::faults;

/// A port behind which no PC has a device.
const NOBODY: u16 = 0x390;
const GS_BASE: u32 = 0xc000_0101;
const PAGE_ATTRIBUTES: u32 = 0x277;
const APIC_BASE: u32 = 0x1b;
/// The page-attribute table of all PV guests.
const GUEST_PAGE_ATTRIBUTES: u64 = 0x0000_0501_0007_0406;
/// CR0: paging, protection; CR4: physical address extension.
const PAGING_AND_PROTECTION: u64 = 1 << 31 | 1;
const PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
/// CR0: the flag for alignment checks counts in ring 3.
const ALIGNMENT_MASK: u64 = 1 << 18;

pub fn run(check: &mut Check<X86>) {
    ports(check);
    strings(check);
    control_registers(check);
    model_specific_registers(check);
    check.that("cli and sti do nothing", !faults!("cli", "sti"; options(nostack)));
    check.that("wbinvd is passed over", !faults!("wbinvd"; options(nostack)));
    check.that("invlpg faults", faults!("invlpg [{x}]"; x = in(reg) 0u64, options(nostack)));
}

fn ports(check: &mut Check<X86>) {
    let (byte, word, long, fixed): (u64, u64, u64, u64);
    let failed = faults!("in al, dx"; inout("rax") 0x1122_3344_5566_7788u64 => byte, in("dx") NOBODY, options(nostack));
    check.that("in of a byte changes al alone", !failed && byte == 0x1122_3344_5566_77ff);
    let failed = faults!("in ax, dx"; inout("rax") 0x1122_3344_5566_7788u64 => word, in("dx") NOBODY, options(nostack));
    check.that("in of a word changes ax alone", !failed && word == 0x1122_3344_5566_ffff);
    let failed = faults!("in eax, dx"; inout("rax") 0x1122_3344_5566_7788u64 => long, in("dx") NOBODY, options(nostack));
    check.that("in of a long word changes rax", !failed && long == 0xffff_ffff);
    // The port of the bus's diagnostics, which may be read by anybody.
    let failed = faults!("in al, 0x84"; inout("rax") 0x1100u64 => fixed, options(nostack));
    check.that("a port named in the instruction", !failed && fixed & !0xff == 0x1100);
    let writes = [
        faults!("out dx, al"; in("al") 1u8, in("dx") NOBODY, options(nostack)),
        faults!("out dx, ax"; in("ax") 1u16, in("dx") NOBODY, options(nostack)),
        faults!("out dx, eax"; in("eax") 1u32, in("dx") NOBODY, options(nostack)),
    ];
    check.that("writes are lost", writes == [false; 3]);
}

fn strings(check: &mut Check<X86>) {
    let mut buffer = [0x11u8; 16];
    let (mut to, mut left) = (buffer.as_mut_ptr() as u64, 3u64);
    let start = to;
    let failed = faults!("rep insw"; inout("rdi") to, inout("rcx") left, in("dx") NOBODY, options(nostack));
    let filled = buffer[..6] == [0xff; 6] && buffer[6..] == [0x11; 10];
    check.that("rep ins fills memory", !failed && filled && (to - start, left) == (6, 0));
    let (mut from, mut left) = (start + 3, 2u64);
    let failed = faults!(
        "std", "rep outsb", "cld"; inout("rsi") from, inout("rcx") left, in("dx") NOBODY, options(nostack)
    );
    check.that("rep outs goes downwards, too", !failed && (from, left) == (start + 1, 0));
    let failed = faults!("rep insb"; inout("rdi") 0x1000u64 => _, inout("rcx") 1u64 => _, in("dx") NOBODY, options(nostack));
    check.that("ins to nowhere faults", failed);
}

fn control_registers(check: &mut Check<X86>) {
    let (mut zero, mut four) = (0u64, 0u64);
    let failed = faults!("mov {x}, cr0"; x = inout(reg) zero, options(nostack));
    check.that("cr0", !failed && zero & PAGING_AND_PROTECTION == PAGING_AND_PROTECTION);
    // `smsw` asks the processor itself, where it doesn't forbid that in ring 3.
    let mut word = 0u64;
    let failed = faults!("smsw {x}"; x = inout(reg) word, options(nostack));
    check.that("alignment is checked if cr0 says so", failed || (word ^ zero) & ALIGNMENT_MASK == 0);
    check.that("cr0 as it is", !faults!("mov cr0, {x}"; x = in(reg) zero, options(nostack)));
    check
        .that("cr0 without paging", faults!("mov cr0, {x}"; x = in(reg) zero & !(1 << 31), options(nostack)));
    let failed = faults!("mov {x}, cr4"; x = inout(reg) four, options(nostack));
    check.that("cr4", !failed && four & PHYSICAL_ADDRESS_EXTENSION != 0);
    check.that("cr4 as it is", !faults!("mov cr4, {x}"; x = in(reg) four, options(nostack)));
    let mut root = 0u64;
    let failed = faults!("mov {x}, cr3"; x = inout(reg) root, options(nostack));
    check.that("cr3", !failed && root != 0);
    check.that("the root that is loaded", !faults!("mov cr3, {x}"; x = in(reg) root, options(nostack)));
    let mut status = 0u64;
    let failed = faults!("mov {x}, dr6"; x = inout(reg) status, options(nostack));
    check.that("dr6", !failed && status & 0xffff_0ff0 == 0xffff_0ff0);
}

/// Reads a register; `None`: that faults.
pub fn read(register: u32) -> Option<u64> {
    let (low, high): (u64, u64);
    let failed = faults!(
        "rdmsr"; in("ecx") register, inout("rax") 0u64 => low, inout("rdx") 0u64 => high, options(nostack)
    );
    (!failed).then_some(high << 32 | low)
}

fn write(register: u32, value: u64) -> bool {
    !faults!("wrmsr"; in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack))
}

fn model_specific_registers(check: &mut Check<X86>) {
    check.that("the page-attribute table", read(PAGE_ATTRIBUTES) == Some(GUEST_PAGE_ATTRIBUTES));
    check.that("it can't be changed", !write(PAGE_ATTRIBUTES, 0));
    check.that("the local APIC's base", read(APIC_BASE).is_some_and(|base| base & 0xfffff000 == 0xfee0_0000));
    let base = read(GS_BASE);
    check.that("the base of gs can be read and written", base.is_some_and(|base| write(GS_BASE, base)));
    check.that("but not to what is no address", !write(GS_BASE, 1 << 63));
    check.that("machine checks have banks", read(0x179).is_some_and(|capability| capability & 0xff > 0));
    check.that("and no error", read(0x17a) == Some(0) && read(0x401) == Some(0));
    check.that("control of a bank", write(0x400, !0) && read(0x400).is_some());
    // AMD's processors have event counters, which nobody is given.
    let vendor: u32;
    // SAFETY: tells what processor it is.
    unsafe {
        asm!("push rbx", "cpuid", "mov {v:e}, ebx", "pop rbx", v = out(reg) vendor, inout("eax") 0 => _, out("ecx") _, out("edx") _)
    };
    if vendor == u32::from_le_bytes(*b"Auth") {
        check.that("event counters count nothing", write(0xc001_0007, 1) && read(0xc001_0007) == Some(0));
        check.that("hardware configuration", read(0xc001_0015).is_some());
    }
    check.that("a register that there isn't", read(0x1234_5678).is_none() && !write(0x1234_5678, 0));
    check.that("the entry of syscall", !write(0xc000_0082, 0));
}
