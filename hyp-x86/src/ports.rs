//! Ports: no guest has a device behind any.
//!
//! A read finds all ones, as on a bus where nobody answers, and a write is lost. The kernel may try all it likes; its users may where it lets
//! them (`physdev_op`), and get a general-protection fault elsewhere, which is theirs to hear about.

use hyp_core::hypercall::Call;
use hyp_core::machine::GuestMemory;
use hyp_core::{Vcpu, address::GuestVirtual};
use hyp_x86::decode::{Port, StringAccess};
use hyp_x86::table_write::merged;
use penumbra_abi::errno::Errno;
use penumbra_abi::physdev as abi;
use x86_64::registers::model_specific::{FsBase, GsBase};

use crate::access::Hooked;
use crate::context::{Frame, GuestContext};
use crate::loaded;
use crate::machine::{HYPERVISOR, X86};

/// How many ports there are.
const PORTS: u32 = 65536;
/// The level at which every ring may access ports.
const ALL_RINGS: u8 = 3;

/// `physdev_op`, of a domain without devices.
///
/// # Errors
/// EPERM: what only a domain with devices may do. EINVAL, EFAULT, ENOSYS.
pub fn operation(
    call: &Call<'_, X86>,
    context: &GuestContext,
    operation: u64,
    place: u64,
) -> Result<(), Errno> {
    let ports = &context.ports;
    match operation {
        abi::PHYSDEVOP_SET_IOPL => {
            let level: u32 = call.read(place)?;
            ports
                .level
                .set(u8::try_from(level).ok().filter(|level| *level <= ALL_RINGS).ok_or(Errno::EINVAL)?);
            Ok(())
        }
        abi::PHYSDEVOP_SET_IOBITMAP => {
            let request: abi::SetIoBitmap = call.read(place)?;
            if request.nr_ports > PORTS {
                return Err(Errno::EINVAL);
            }
            ports.bitmap.set(request.bitmap);
            ports.ports.set(request.nr_ports);
            Ok(())
        }
        // There is no interrupt that could be meant.
        abi::PHYSDEVOP_IRQ_STATUS_QUERY | abi::PHYSDEVOP_EOI => Err(Errno::EINVAL),
        abi::PHYSDEVOP_APIC_READ
        | abi::PHYSDEVOP_APIC_WRITE
        | abi::PHYSDEVOP_MAP_PIRQ
        | abi::PHYSDEVOP_UNMAP_PIRQ
        | abi::PHYSDEVOP_PCI_MMCFG_RESERVED
        | abi::PHYSDEVOP_PCI_DEVICE_ADD
        | abi::PHYSDEVOP_PCI_DEVICE_REMOVE => Err(Errno::EPERM),
        _ => Err(Errno::ENOSYS),
    }
}

/// What an access came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accessed {
    /// The guest goes on behind the instruction.
    Done,
    /// It executes it once more.
    Again,
    /// It may not.
    Refused,
    /// It can't write to (or read from) this address of its own.
    Fault {
        /// Where.
        address: u64,
        /// Whether it was a write.
        write: bool,
    },
}

/// `in`
pub fn read(vcpu: &'static Vcpu<X86>, context: &GuestContext, port: Port, size: u8) -> Accessed {
    if !may_access(vcpu, context, port, size) {
        return Accessed::Refused;
    }
    let rax = &context.frame.rax;
    rax.set(merged(rax.get(), !0, size));
    Accessed::Done
}

/// `out`
pub fn write(vcpu: &'static Vcpu<X86>, context: &GuestContext, port: Port, size: u8) -> Accessed {
    if may_access(vcpu, context, port, size) { Accessed::Done } else { Accessed::Refused }
}

/// `ins` and `outs`: one access. A repeated one comes here each time, so that it can be interrupted in between, as the processor's own.
pub fn string(vcpu: &'static Vcpu<X86>, context: &GuestContext, access: StringAccess, _: Hooked) -> Accessed {
    if !may_access(vcpu, context, Port::Dx, access.size) {
        return Accessed::Refused;
    }
    let frame = &context.frame;
    let mask = if access.short_address { u64::from(u32::MAX) } else { !0 };
    if access.repeated && frame.rcx.get() & mask == 0 {
        return Accessed::Done;
    }
    let index = if access.input { frame.rdi() } else { frame.rsi() };
    let address = (index.get() & mask).wrapping_add(base(access.segment));
    if transfer(access, address).is_err() {
        return Accessed::Fault { address, write: access.input };
    }
    let step = u64::from(access.size);
    let next = match frame.rflags.get() & DIRECTION {
        0 => index.get().wrapping_add(step),
        _ => index.get().wrapping_sub(step),
    };
    index.set(next & mask);
    if !access.repeated {
        return Accessed::Done;
    }
    frame.rcx.set(frame.rcx.get().wrapping_sub(1) & mask);
    if frame.rcx.get() == 0 { Accessed::Done } else { Accessed::Again }
}

/// In the flags register: strings go downwards.
const DIRECTION: u64 = 1 << 10;

/// The base of a segment that has one.
fn base(segment: Option<u8>) -> u64 {
    match segment {
        Some(4) => FsBase::read().as_u64(),
        Some(_) => GsBase::read().as_u64(),
        None => 0,
    }
}

/// The guest's side of the access.
fn transfer(access: StringAccess, address: u64) -> Result<(), hyp_core::machine::GuestFault> {
    let mut bytes = [0xff; 4];
    let bytes = bytes.get_mut(..access.size.into()).unwrap_or_default();
    let address = GuestVirtual::new(address);
    match access.input {
        true => HYPERVISOR.machine().write_guest(address, bytes),
        false => HYPERVISOR.machine().read_guest(address, bytes),
    }
}

/// Whether the guest may access `size` ports from `port` on, in the mode in which it is.
#[inline(always)]
fn may_access(vcpu: &'static Vcpu<X86>, context: &GuestContext, port: Port, size: u8) -> bool {
    !context.user_mode.get() || context.ports.level.get() == ALL_RINGS || in_bitmap(vcpu, context, port, size)
}

/// Whether the bitmap lets users access them. It lies in the kernel's memory, which users' tables don't map.
#[cold]
#[inline(never)]
fn in_bitmap(vcpu: &'static Vcpu<X86>, context: &GuestContext, port: Port, size: u8) -> bool {
    let first = number(&context.frame, port);
    let end = first.saturating_add(size.into());
    if end > context.ports.ports.get() {
        return false;
    }
    let mut bytes = [0xff; 2];
    let place = context.ports.bitmap.get().wrapping_add(u64::from(first / 8));
    // One byte, or the next one too.
    let count = if (end - 1) / 8 == first / 8 { 1 } else { 2 };
    let read = loaded::as_kernel(vcpu, || {
        let bytes = bytes.get_mut(..count).unwrap_or_default();
        HYPERVISOR.machine().read_guest(GuestVirtual::new(place), bytes)
    });
    let forbidden = u16::from_le_bytes(bytes) >> (first % 8) & ((1 << size) - 1);
    read.is_ok() && forbidden == 0
}

fn number(frame: &Frame, port: Port) -> u32 {
    match port {
        Port::Number(number) => number.into(),
        Port::Dx => frame.rdx().get() as u32 & 0xffff,
    }
}
