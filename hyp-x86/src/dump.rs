//! What the log tells of a guest that has crashed, besides its registers: the code at which it stood, and how the address that it
//! stumbled over is translated.

use core::fmt::{Result, Write};

use hyp_core::address::{GuestVirtual, MachineAddress, MachineFrame};
use hyp_core::machine::{Entry, PageTableFormat};
use hyp_x86::format::X86Format;
use x86_64::registers::control::Cr3;

use crate::access::{self, Hooked};
use crate::context::GuestContext;
use crate::{code, cpu, memory};

/// Bytes of code that are shown before the instruction, and from there on.
const BEFORE: usize = 16;
const CODE: usize = 32;

/// Writes both, if the guest is the one that runs: its tables are loaded then.
pub fn describe(context: &GuestContext, out: &mut dyn Write) -> Result {
    if !cpu::current().is_some_and(|vcpu| core::ptr::eq(vcpu.context(), context)) {
        return Ok(());
    }
    // Through unhooked tables nothing may be read.
    if Hooked::now().is_some() {
        code(context, out)?;
    }
    match context.fault_address() {
        Some(address) => walk(address, out),
        None => Ok(()),
    }
}

/// The bytes around the instruction, which stands in angle brackets; `--` for what can't be read.
fn code(context: &GuestContext, out: &mut dyn Write) -> Result {
    write!(out, "\ncode:")?;
    let place = code::place(context).map_or(context.frame.rip.get(), |code| code.address);
    let start = place.wrapping_sub(BEFORE as u64);
    for index in 0..CODE {
        let mut byte = [0];
        let read = access::read(start.wrapping_add(index as u64), &mut byte);
        match (read, index == BEFORE) {
            (Err(_), _) => write!(out, " --")?,
            (Ok(()), true) => write!(out, " <{:02x}>", byte[0])?,
            (Ok(()), false) => write!(out, " {:02x}", byte[0])?,
        }
    }
    Ok(())
}

/// The entries that the processor finds on its way, from the root that is loaded down.
fn walk(address: u64, out: &mut dyn Write) -> Result {
    write!(out, "\npage-table walk of {address:#018x}:")?;
    let root = Cr3::read().0.start_address().as_u64();
    let mut table = MachineAddress::new(root).map(MachineFrame::containing);
    let mut level = X86Format::LEVELS;
    while let Some(frame) = table.filter(|_| level > 0) {
        let index = X86Format::index(GuestVirtual::new(address), level);
        // Relaxed: what is shown may be old by the time it is read.
        let raw =
            memory::entry(frame, index).map_or(0, |entry| entry.load(core::sync::atomic::Ordering::Relaxed));
        write!(out, "\n  L{level}[{index:#05x}] = {raw:#018x}")?;
        table = match X86Format::decode(level, raw) {
            Entry::Table(next) => Some(next),
            Entry::Absent | Entry::Leaf(_) => None,
        };
        level -= 1;
    }
    Ok(())
}
