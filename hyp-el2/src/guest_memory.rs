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
use crate::memory::{are_words, copy_aligned, direct, write_data};
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

#[inline(always)]
fn current_domain() -> Result<DomainId, GuestFault> {
    Cpu::this().current().map(|vcpu| vcpu.domain_id()).ok_or(GuestFault)
}

/// Calls `piece` for each part of `length` bytes from `start` that lies within one page: address and range of the buffer. There is one
/// translation for each page; none is remembered beyond its copy, so there is none that a change of tables would have to end.
fn by_pages(
    start: GuestVirtual,
    length: usize,
    mut piece: impl FnMut(MachineAddress, core::ops::Range<usize>) -> Result<(), GuestFault>,
    write: bool,
) -> Result<(), GuestFault> {
    let mut done = 0;
    while done < length {
        let address = start.checked_add(done as u64).ok_or(GuestFault)?.bytes();
        let room = PAGE_SIZE - (address % PAGE_SIZE as u64) as usize;
        let end = done.saturating_add(room).min(length);
        piece(translate(address, write).ok_or(GuestFault)?, done..end)?;
        done = end;
    }
    Ok(())
}

/// Reads what doesn't go the quick way.
#[inline(never)]
fn read_by_pages(from: GuestVirtual, into: &mut [u8]) -> Result<(), GuestFault> {
    let (owner, length) = (current_domain()?, into.len());
    let read = |machine: MachineAddress, part| {
        let into = into.get_mut(part).unwrap_or_default();
        let frame = MachineFrame::containing(machine);
        let _held = HYPERVISOR.frames().hold_reference(frame, owner, &El2).map_err(|_| GuestFault)?;
        El2.read_frame(frame, machine.offset_in_frame(), into);
        Ok(())
    };
    by_pages(from, length, read, false)
}

/// Writes what doesn't go the quick way.
#[inline(never)]
fn write_by_pages(to: GuestVirtual, from: &[u8]) -> Result<(), GuestFault> {
    let owner = current_domain()?;
    let write = |machine: MachineAddress, part| {
        let from = from.get(part).unwrap_or_default();
        let frame = MachineFrame::containing(machine);
        let _held = HYPERVISOR.frames().hold_writable(frame, owner, &El2).map_err(|_| GuestFault)?;
        write_data(frame, machine.offset_in_frame(), from);
        Ok(())
    };
    by_pages(to, from.len(), write, true)
}

/// Whether nothing has to be told apart any more: words, all within one page, as nearly all structures are.
#[inline(always)]
fn is_quick(guest: GuestVirtual, ours: *const u8, length: usize) -> bool {
    let room = PAGE_SIZE - (guest.bytes() % PAGE_SIZE as u64) as usize;
    length.wrapping_sub(1) < room && are_words(guest.bytes(), ours.addr() as u64, length)
}

impl GuestMemory for El2 {
    fn read_guest(&self, from: GuestVirtual, into: &mut [u8]) -> Result<(), GuestFault> {
        if !is_quick(from, into.as_ptr(), into.len()) {
            return read_by_pages(from, into);
        }
        let owner = current_domain()?;
        let machine = translate(from.bytes(), false).ok_or(GuestFault)?;
        let frame = MachineFrame::containing(machine);
        let _held = HYPERVISOR.frames().hold_reference(frame, owner, &El2).map_err(|_| GuestFault)?;
        // SAFETY: `is_quick`: words, within the frame. It is held as a domain's, and domains are given frames of RAM, all of which is in the
        // direct map; `into` is ours and no guest's. A guest may write at the same time: any bytes may come out, and all of them are
        // judged as claims.
        unsafe { copy_aligned(direct(machine.bytes()), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write_guest(&self, to: GuestVirtual, from: &[u8]) -> Result<(), GuestFault> {
        if !is_quick(to, from.as_ptr(), from.len()) {
            return write_by_pages(to, from);
        }
        let owner = current_domain()?;
        let machine = translate(to.bytes(), true).ok_or(GuestFault)?;
        let frame = MachineFrame::containing(machine);
        let _held = HYPERVISOR.frames().hold_writable(frame, owner, &El2).map_err(|_| GuestFault)?;
        // SAFETY: as in `read_guest`, the other way round. The frame is the guest's, and writable, while this is done.
        unsafe { copy_aligned(from.as_ptr(), direct(machine.bytes()), from.len()) };
        Ok(())
    }

    #[inline(always)]
    fn word_place(&self, to: GuestVirtual) -> Option<(MachineFrame, usize)> {
        if !to.bytes().is_multiple_of(size_of::<u64>() as u64) {
            return None;
        }
        let machine = translate(to.bytes(), true)?;
        Some((MachineFrame::containing(machine), machine.offset_in_frame() / size_of::<u64>()))
    }
}
