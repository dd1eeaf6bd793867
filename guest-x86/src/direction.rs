//! Entering the hypervisor with the direction flag set.
//!
//! The flag makes string instructions run downwards. It is the guest's business alone: whatever the hypervisor copies for
//! the guest must come out the same, and the guest must get its flag back.

use core::arch::asm;

use guest_core::hypercalls;
use penumbra_abi::hypercall::XEN_VERSION;
use penumbra_abi::version::{XEN_EXTRAVERSION_LEN, XENVER_EXTRAVERSION};

use crate::machine::X86;
use crate::traps::FIXUP;

/// The flag's bit in the flags register.
const DIRECTION: u64 = 1 << 10;
/// The first of the leaves that describe the hypervisor, and the start of its signature ("XenV").
const XEN_LEAVES: u64 = 0x4000_0000;
const SIGNATURE: u64 = 0x566e_6558;

/// A fault, its frame on this kernel's stack, and the way back: true when the flag is still set afterwards.
pub fn fault() -> bool {
    let (flags, failed): (u64, u64);
    // SAFETY: the undefined instruction faults, and goes on at label 2 by the fix-up; the flag is clear again at the end.
    unsafe {
        asm!(
            "lea {flags}, [rip + 2f]",
            "mov [{fixup}], {flags}",
            "mov {failed:e}, 1",
            "std",
            "ud2",
            "xor {failed:e}, {failed:e}",
            "2:",
            "pushfq",
            "pop {flags}",
            "cld",
            "mov qword ptr [{fixup}], 0",
            fixup = in(reg) FIXUP.as_ptr(),
            flags = out(reg) flags,
            failed = out(reg) failed,
        );
    }
    failed != 0 && flags & DIRECTION != 0
}

/// An instruction that the hypervisor reads from this kernel's memory and carries out.
pub fn cpuid() -> bool {
    let (flags, signature): (u64, u64);
    // SAFETY: the forced-emulation prefix and `cpuid` change these four registers only; the flag is clear again at the end.
    unsafe {
        asm!(
            "mov {saved}, rbx",
            "std",
            "ud2",
            ".ascii \"xen\"",
            "cpuid",
            "pushfq",
            "pop {flags}",
            "cld",
            "xchg {saved}, rbx",
            saved = out(reg) signature,
            flags = out(reg) flags,
            inout("rax") XEN_LEAVES => _,
            inout("rcx") 0u64 => _,
            out("rdx") _,
        );
    }
    signature == SIGNATURE && flags & DIRECTION != 0
}

/// A hypercall that writes a string to this kernel's memory.
pub fn hypercall() -> bool {
    let mut expected = [0xffu8; XEN_EXTRAVERSION_LEN];
    let mut found = [0xffu8; XEN_EXTRAVERSION_LEN];
    let address = hypercalls::address_of_mut(&mut expected);
    let known = hypercalls::call::<X86>(XEN_VERSION, &[XENVER_EXTRAVERSION, address]);
    let (flags, result): (u64, u64);
    // SAFETY: the hypercall changes rax, rcx, r11 and the buffer; the flag is clear again at the end.
    unsafe {
        asm!(
            "std",
            "syscall",
            "pushfq",
            "pop {flags}",
            "cld",
            flags = out(reg) flags,
            inout("rax") XEN_VERSION => result,
            in("rdi") XENVER_EXTRAVERSION,
            in("rsi") found.as_mut_ptr(),
            out("rcx") _,
            out("r11") _,
        );
    }
    known == Ok(result) && found == expected && flags & DIRECTION != 0
}
