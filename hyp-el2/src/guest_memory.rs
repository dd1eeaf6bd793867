//! Copies from and to the running guest's virtual memory.
//!
//! The hardware translates (`at s1e1r`, `at s1e1w`: under the rights of the guest's kernel, whatever its PSTATE.PAN), since the guest's
//! roots are loaded. The answer may be stale by the time it is used, when another CPU changes the tables; so the frame
//! is held by a reference (for writing, by a *writable* use too) while it is copied.
//!
//! Since the frame has to be held in the running domain's name, a buffer in a frame of another domain is a fault, even if the
//! control domain has that frame mapped. (On x86-64 the copy goes through the guest's own mapping, under the hardware's checks, and
//! such a buffer works.) Xen's guests keep their hypercall buffers in memory of their own.

use core::arch::asm;

use hyp_core::address::{DomainId, GuestVirtual, MachineAddress, MachineFrame, PAGE_SIZE};
use hyp_core::machine::{FrameMemory, GuestFault, GuestMemory};

use crate::HYPERVISOR;
use crate::cpu::Cpu;
use crate::machine::El2;
use crate::memory::write_data;
use crate::oracle;

/// Addresses in machine memory that a translation gave, 48 bits.
const ADDRESS: u64 = ((1 << 48) - 1) & !0xfff;

/// Translates for reading or for writing. The guest's own `PAR_EL1` is kept.
#[inline]
pub fn translate(address: u64, write: bool) -> Option<MachineAddress> {
    let result = oracle::translated(|| ask_the_mmu(address, write));
    let translated = result & 1 == 0;
    MachineAddress::new(result & ADDRESS | address & 0xfff).filter(|_| translated)
}

/// What `PAR_EL1` says of an address: bit 0 set, that it can't be used so; otherwise, the machine address of its page.
fn ask_the_mmu(address: u64, write: bool) -> u64 {
    let result: u64;
    // SAFETY: an address translation has no effect but on PAR_EL1, which is put back.
    unsafe {
        let kept: u64;
        asm!("mrs {}, par_el1", out(reg) kept, options(nomem, nostack));
        if write {
            asm!("at s1e1w, {}", "isb", in(reg) address, options(nostack));
        } else {
            asm!("at s1e1r, {}", "isb", in(reg) address, options(nostack));
        }
        asm!("mrs {}, par_el1", out(reg) result, options(nostack));
        asm!("msr par_el1, {}", in(reg) kept, options(nomem, nostack));
    }
    result
}

fn current_domain() -> Result<DomainId, GuestFault> {
    Cpu::this().current().map(|vcpu| vcpu.domain_id()).ok_or(GuestFault)
}

/// Calls `piece` for each part of `length` bytes from `start` that lies within one page: address and range of the buffer. There is one
/// translation for each page; none is remembered beyond its copy, so there is none that a change of tables would have to end.
#[inline(never)]
fn by_pages(
    start: GuestVirtual,
    length: usize,
    mut piece: impl FnMut(u64, core::ops::Range<usize>) -> Result<(), GuestFault>,
) -> Result<(), GuestFault> {
    let mut done = 0;
    while done < length {
        let address = start.checked_add(done as u64).ok_or(GuestFault)?.bytes();
        let room = PAGE_SIZE - (address % PAGE_SIZE as u64) as usize;
        let end = done.saturating_add(room).min(length);
        piece(address, done..end)?;
        done = end;
    }
    Ok(())
}

/// Reads within one page.
#[inline]
fn read_piece(owner: DomainId, address: u64, into: &mut [u8]) -> Result<(), GuestFault> {
    let machine = translate(address, false).ok_or(GuestFault)?;
    let frame = MachineFrame::containing(machine);
    HYPERVISOR.frames().get(frame, owner).map_err(|_| GuestFault)?;
    El2.read_frame(frame, machine.offset_in_frame(), into);
    HYPERVISOR.frames().put(frame, &El2);
    Ok(())
}

/// Writes within one page.
#[inline]
fn write_piece(owner: DomainId, address: u64, from: &[u8]) -> Result<(), GuestFault> {
    let machine = translate(address, true).ok_or(GuestFault)?;
    let frame = MachineFrame::containing(machine);
    HYPERVISOR.frames().get_writable(frame, owner, &El2).map_err(|_| GuestFault)?;
    write_data(frame, machine.offset_in_frame(), from);
    HYPERVISOR.frames().put_use(frame, &El2);
    Ok(())
}

/// Whether so many bytes from `start` lie within one page, as nearly all structures do.
#[inline(always)]
const fn is_within_a_page(start: GuestVirtual, length: usize) -> bool {
    let offset = (start.bytes() % PAGE_SIZE as u64) as usize;
    length <= PAGE_SIZE - offset
}

impl GuestMemory for El2 {
    fn read_guest(&self, from: GuestVirtual, into: &mut [u8]) -> Result<(), GuestFault> {
        let owner = current_domain()?;
        if is_within_a_page(from, into.len()) && !into.is_empty() {
            return read_piece(owner, from.bytes(), into);
        }
        by_pages(from, into.len(), |address, part| {
            read_piece(owner, address, into.get_mut(part).unwrap_or_default())
        })
    }

    fn write_guest(&self, to: GuestVirtual, from: &[u8]) -> Result<(), GuestFault> {
        let owner = current_domain()?;
        if is_within_a_page(to, from.len()) && !from.is_empty() {
            return write_piece(owner, to.bytes(), from);
        }
        by_pages(to, from.len(), |address, part| {
            write_piece(owner, address, from.get(part).unwrap_or_default())
        })
    }
}
