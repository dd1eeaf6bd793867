//! Model-specific registers, as a guest's kernel finds them.
//!
//! The bases of `fs` and `gs` are the guest's own. Of the rest, what kernels ask for that expect a whole PC is answered as by Xen 4.17: with
//! what can't be changed, or with what means "nothing there"; writes that would change something are lost, or refused. Every other register
//! is a general-protection fault.

use core::arch::asm;
use core::arch::x86_64::__cpuid;

use hyp_core::Vcpu;
use hyp_core::address::{MachineAddress, MachineFrame};
use hyp_core::machine::Machine;
use hyp_x86::{cpuid, layout};
use x86_64::VirtAddr;
use x86_64::registers::model_specific::{Efer, EferFlags, FsBase, GsBase};

use crate::machine::{HYPERVISOR, X86};
use crate::{clock, loaded, processor};

const TIME_STAMP_COUNTER: u32 = 0x10;
const PLATFORM_ID: u32 = 0x17;
const APIC_BASE: u32 = 0x1b;
const FEATURE_CONTROL: u32 = 0x3a;
const MICROCODE_REVISION: u32 = 0x8b;
const MACHINE_CHECK_CAPABILITY: u32 = 0x179;
const MACHINE_CHECK_STATUS: u32 = 0x17a;
const MISCELLANEOUS_ENABLE: u32 = 0x1a0;
const PAGE_ATTRIBUTES: u32 = 0x277;
/// Four registers for each bank of machine checks: control, status, address, more.
const MACHINE_CHECK_BANKS: u32 = 0x400;
const MACHINE_CHECK_BANKS_END: u32 = MACHINE_CHECK_BANKS + 4 * BANKS;
const EXTENDED_FEATURES: u32 = 0xc000_0080;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const OTHER_GS_BASE: u32 = 0xc000_0102;
/// AMD's: event selectors and counters, hardware configuration, interrupt pending, decode configuration.
const AMD_COUNTERS: u32 = 0xc001_0000;
const AMD_COUNTERS_END: u32 = 0xc001_0008;
const AMD_HARDWARE_CONFIGURATION: u32 = 0xc001_0015;
const AMD_INTERRUPT_PENDING: u32 = 0xc001_0055;
const AMD_DECODE_CONFIGURATION: u32 = 0xc001_1029;

/// Banks of machine checks.
const BANKS: u32 = 2;
/// [`APIC_BASE`]: enabled, at the usual address; on the first vCPU also that it is that one.
const APIC_ENABLED: u64 = 0xfee0_0800;
const APIC_FIRST: u64 = 1 << 8;
/// [`MISCELLANEOUS_ENABLE`]: fast strings; no branch trace and no event-based sampling.
const MISCELLANEOUS: u64 = 1 << 0 | 1 << 11 | 1 << 12;
/// [`FEATURE_CONTROL`]: locked, with nothing enabled.
const LOCKED: u64 = 1;
/// [`AMD_DECODE_CONFIGURATION`]: `lfence` waits for what stands before it.
const FENCE_SERIALIZES: u64 = 1 << 1;

/// Whose processor it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    Amd,
    Other,
}

fn vendor() -> Vendor {
    // The first letters of "GenuineIntel", "AuthenticAMD" and "HygonGenuine".
    match &__cpuid(0).ebx.to_le_bytes() {
        b"Genu" => Vendor::Intel,
        b"Auth" | b"Hygo" => Vendor::Amd,
        _ => Vendor::Other,
    }
}

/// What a guest's kernel reads. `None`: it gets a fault.
pub fn read(vcpu: &Vcpu<X86>, register: u32) -> Option<u64> {
    Some(match register {
        FS_BASE => FsBase::read().as_u64(),
        GS_BASE => GsBase::read().as_u64(),
        OTHER_GS_BASE => loaded::other_gs_base(),
        TIME_STAMP_COUNTER => clock::counter(),
        APIC_BASE => APIC_ENABLED | if vcpu.index() == 0 { APIC_FIRST } else { 0 },
        MICROCODE_REVISION => read_if_there(register)?,
        MACHINE_CHECK_CAPABILITY => BANKS.into(),
        MACHINE_CHECK_STATUS => 0,
        // All errors are reported, and there is none.
        MACHINE_CHECK_BANKS..MACHINE_CHECK_BANKS_END => {
            if register.is_multiple_of(4) {
                !0
            } else {
                0
            }
        }
        PAGE_ATTRIBUTES => processor::GUEST_PAGE_ATTRIBUTES,
        EXTENDED_FEATURES => (Efer::read() - EferFlags::SECURE_VIRTUAL_MACHINE_ENABLE).bits(),
        _ => return read_of_vendor(register),
    })
}

fn read_of_vendor(register: u32) -> Option<u64> {
    match (vendor(), register) {
        (Vendor::Intel, PLATFORM_ID) => read_if_there(register),
        (Vendor::Intel, FEATURE_CONTROL) => Some(LOCKED),
        (Vendor::Intel, MISCELLANEOUS_ENABLE) => Some(MISCELLANEOUS),
        (Vendor::Amd, AMD_COUNTERS..AMD_COUNTERS_END)
        | (Vendor::Amd, AMD_HARDWARE_CONFIGURATION | AMD_INTERRUPT_PENDING) => Some(0),
        (Vendor::Amd, AMD_DECODE_CONFIGURATION) => Some(FENCE_SERIALIZES),
        _ => None,
    }
}

/// What a guest's kernel writes. `None`: it gets a fault.
pub fn write(vcpu: &Vcpu<X86>, register: u32, value: u64) -> Option<()> {
    match register {
        FS_BASE => FsBase::write(base(value)?),
        GS_BASE => GsBase::write(base(value)?),
        OTHER_GS_BASE => loaded::set_other_gs_base(base(value)?.as_u64()),
        cpuid::XEN_LEAVES => fill_hypercall_page(vcpu, value)?,
        MICROCODE_REVISION | MACHINE_CHECK_STATUS | MACHINE_CHECK_BANKS..MACHINE_CHECK_BANKS_END => {}
        AMD_COUNTERS..AMD_COUNTERS_END | AMD_HARDWARE_CONFIGURATION | AMD_DECODE_CONFIGURATION
            if vendor() == Vendor::Amd => {}
        // What changes nothing is no harm.
        APIC_BASE | PAGE_ATTRIBUTES | EXTENDED_FEATURES => {
            read(vcpu, register).filter(|is| *is == value)?;
        }
        _ => return None,
    }
    Some(())
}

fn base(value: u64) -> Option<VirtAddr> {
    layout::is_canonical(value).then(|| VirtAddr::new_truncate(value))
}

/// The register that cpuid names fills a page of the guest's, by its machine address, with calls of all hypercalls.
fn fill_hypercall_page(vcpu: &Vcpu<X86>, value: u64) -> Option<()> {
    let frame: MachineFrame = MachineAddress::new(value)
        .filter(|page| page.offset_in_frame() == 0)
        .map(MachineFrame::containing)?;
    let (frames, machine) = (HYPERVISOR.frames(), HYPERVISOR.machine());
    frames.get_writable(frame, vcpu.domain_id(), machine).ok()?;
    machine.write_hypercall_page(frame);
    frames.put_use(frame, machine);
    Some(())
}

/// Reads a register that the processor may not have. For those whose reading changes nothing.
pub fn read_if_there(register: u32) -> Option<u64> {
    let (low, high, there): (u32, u32, u32);
    // SAFETY: reading the three registers that this is called for changes nothing; on a processor without one, the fault goes on at label 4.
    unsafe {
        asm!(
            "movl $1, {there:e}",
            "2: rdmsr",
            "3:",
            ".pushsection .text.unlikely, \"ax\", @progbits",
            "4: xorl {there:e}, {there:e}", "jmp 3b",
            ".popsection",
            ".pushsection .fixups, \"a\", @progbits",
            ".quad 2b, 3b, 4b",
            ".popsection",
            there = out(reg) there,
            in("ecx") register,
            lateout("eax") low,
            lateout("edx") high,
            options(att_syntax, nostack)
        );
    }
    (there != 0).then(|| u64::from(high) << 32 | u64::from(low))
}
