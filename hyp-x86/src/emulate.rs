//! Instructions that are carried out for a guest's kernel: see `hyp_x86::decode` for which.

use core::arch::x86_64::{__cpuid_count, CpuidResult};

use hyp_core::Vcpu;
use hyp_x86::decode::Instruction;
use hyp_x86::layout;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::{FsBase, GsBase};

use crate::context::GuestContext;
use crate::machine::X86;

/// First of the leaves that describe the hypervisor.
const XEN_LEAVES: u32 = 0x4000_0000;
/// "XenVMMXenVMM", as the signature of the first leaf.
const SIGNATURE: [u32; 3] = [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e];
/// The version that leaf 1 tells: 4.17, whose ABI this is.
const VERSION: u32 = 4 << 16 | 17;
/// Leaf 2: a number of hypercall pages, and the model-specific register that would fill them. There is no such page.
const NO_HYPERCALL_PAGES: u32 = 0;

const MSR_FS_BASE: u64 = 0xc000_0100;
const MSR_GS_BASE: u64 = 0xc000_0101;
const MSR_KERNEL_GS_BASE: u64 = 0xc000_0102;

/// CR0 as a guest sees it: paging, alignment mask, write protection, numeric errors, extension type, protection.
const GUEST_CR0: u64 = 0x8005_0033;
/// CR4 as a guest sees it: physical address extension, SSE.
const GUEST_CR4: u64 = 0x0620;

/// Carries an instruction out. `false`: it stays a fault of the guest's.
pub fn carry_out(vcpu: &Vcpu<X86>, context: &GuestContext, instruction: Instruction) -> bool {
    match instruction {
        Instruction::CpuId => cpuid(context),
        Instruction::WriteMsr => return write_msr(context),
        Instruction::ReadMsr => return read_msr(context),
        Instruction::ReadControl { control, general } => {
            let Some(value) = control_register(vcpu, control) else { return false };
            context.frame.general(general).set(value);
        }
        // The guest's interrupt mask is a word of shared memory; the flag means nothing in ring 3.
        Instruction::DisableInterrupts | Instruction::EnableInterrupts => {}
    }
    true
}

fn cpuid(context: &GuestContext) {
    let frame = &context.frame;
    let leaf = frame.rax.get() as u32;
    let result = match leaf {
        XEN_LEAVES..0x4001_0000 => xen_leaf(leaf),
        _ => masked(leaf, __cpuid_count(leaf, frame.rcx.get() as u32)),
    };
    frame.rax.set(result.eax.into());
    frame.rbx.set(result.ebx.into());
    frame.rcx.set(result.ecx.into());
    frame.rdx().set(result.edx.into());
}

fn xen_leaf(leaf: u32) -> CpuidResult {
    let [ebx, ecx, edx] = SIGNATURE;
    let nothing = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    match leaf - XEN_LEAVES {
        0 => CpuidResult { eax: XEN_LEAVES + 2, ebx, ecx, edx },
        1 => CpuidResult { eax: VERSION, ..nothing },
        2 => CpuidResult { eax: NO_HYPERCALL_PAGES, ..nothing },
        _ => nothing,
    }
}

/// Hides what a ring-3 kernel can't have: superpages, global pages, fast system entry, memory-type ranges, extended state and
/// its like, process-context identifiers, supervisor-mode protections (and the one against `sgdt`, which is on already), protection keys, five levels, virtualization.
fn masked(leaf: u32, mut result: CpuidResult) -> CpuidResult {
    match leaf {
        1 => {
            // pse, sep, mtrr, pge, pse36; vmx, pcid, x2apic, xsave, osxsave, avx, f16c
            result.edx &= !(1 << 3 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 17);
            result.ecx &= !(1 << 5 | 1 << 17 | 1 << 21 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29);
        }
        // fsgsbase, avx2, smep, invpcid, smap; umip, pku, la57
        7 => {
            result.ebx &= !(1 << 0 | 1 << 5 | 1 << 7 | 1 << 10 | 1 << 20);
            result.ecx &= !(1 << 2 | 1 << 3 | 1 << 4 | 1 << 16);
        }
        0xd => result = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 },
        // svm; pse, mtrr, pge, pse36, 1 GiB pages
        0x8000_0001 => {
            result.ecx &= !(1 << 2);
            result.edx &= !(1 << 3 | 1 << 12 | 1 << 13 | 1 << 17 | 1 << 26);
        }
        _ => {}
    }
    result
}

fn control_register(vcpu: &Vcpu<X86>, control: u8) -> Option<u64> {
    match control {
        0 => Some(GUEST_CR0),
        3 => vcpu.kernel_root().map(|root| root.start().bytes()),
        4 => Some(GUEST_CR4),
        _ => None,
    }
}

fn write_msr(context: &GuestContext) -> bool {
    let frame = &context.frame;
    let value = frame.rdx().get() << 32 | frame.rax.get() & 0xffff_ffff;
    set_base(context, frame.rcx.get() & 0xffff_ffff, value)
}

/// Sets one of the segment bases, by the number of its model-specific register.
fn set_base(context: &GuestContext, register: u64, value: u64) -> bool {
    if !layout::is_canonical(value) {
        return false;
    }
    let address = VirtAddr::new_truncate(value);
    match register {
        MSR_FS_BASE => FsBase::write(address),
        MSR_GS_BASE => GsBase::write(address),
        MSR_KERNEL_GS_BASE => context.segments.other_gs_base.set(value),
        _ => return false,
    }
    true
}

fn read_msr(context: &GuestContext) -> bool {
    let frame = &context.frame;
    let value = match frame.rcx.get() & 0xffff_ffff {
        MSR_FS_BASE => FsBase::read().as_u64(),
        MSR_GS_BASE => GsBase::read().as_u64(),
        MSR_KERNEL_GS_BASE => context.segments.other_gs_base.get(),
        _ => return false,
    };
    frame.rax.set(value & 0xffff_ffff);
    frame.rdx().set(value >> 32);
    true
}
