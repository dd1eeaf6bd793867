//! How the processor comes to see a guest's own segment descriptors.
//!
//! Which frames hold them is `hyp_x86::descriptor_tables`' part. They are mapped, for the hypervisor alone and read-only, into a window that
//! the processor's table registers point at: first the guest's 14 pages of the global table, then the hypervisor's own page, then the local
//! table's 16.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hyp_core::Vcpu;
use hyp_core::address::{GuestVirtual, MachineAddress, MachineFrame};
use hyp_core::hypercall::Call;
use hyp_x86::descriptor_tables::{self, GLOBAL_PAGES, LOCAL_PAGES, PageSlot};
use hyp_x86::layout;
use penumbra_abi::errno::Errno;
use penumbra_abi::vcpu::X86GuestContext;
use x86_64::instructions::tlb;

use crate::context::GuestContext;
use crate::machine::X86;
use crate::{descriptors, memory, tables};

/// The level-1 table in which the window's pages stand (machine address), from its first entry on.
static WINDOW: AtomicU64 = AtomicU64::new(0);
/// Whether the window shows any page of a guest's.
static SHOWS: AtomicBool = AtomicBool::new(false);

/// Says which table of the hypervisor's own maps the window.
pub fn set_window(table: MachineFrame) {
    // Relaxed, as all here: written once before there are guests; what changes later does so on the one CPU that has the window.
    WINDOW.store(table.start().bytes(), Ordering::Relaxed);
}

/// `set_gdt`
///
/// # Errors
/// As [`descriptor_tables::set_global`].
pub fn set_global(call: &Call<'_, X86>, list: u64, entries: u64) -> Result<(), Errno> {
    let context = call.vcpu.context();
    descriptor_tables::set_global(call, list, entries, &context.global_pages, || show(context))
}

/// The global table with which a vCPU that doesn't run is to start.
///
/// # Errors
/// As [`descriptor_tables::start_global`].
pub fn start(call: &Call<'_, X86>, vcpu: &Vcpu<X86>, start: &X86GuestContext) -> Result<(), Errno> {
    let slots = &vcpu.context().global_pages;
    let may_run = || vcpu.is_initialised();
    descriptor_tables::start_global(call, &start.gdt_frames, start.gdt_ents, slots, may_run)
}

/// `MMUEXT_SET_LDT`
///
/// # Errors
/// As [`descriptor_tables::set_local`].
pub fn set_local(call: &Call<'_, X86>, base: GuestVirtual, entries: u32) -> Result<(), Errno> {
    let context = call.vcpu.context();
    descriptor_tables::set_local(call, base, entries, &context.local_pages, || {
        context.local_entries.set(entries);
        show(context);
    })
}

/// Makes the window show a vCPU's pages, and the processor use them.
pub fn show(context: &GuestContext) {
    let any = context.global_pages.iter().chain(&context.local_pages).any(|slot| slot.get().is_some());
    // Relaxed: this CPU's alone.
    if SHOWS.swap(any, Ordering::Relaxed) || any {
        let global = context.global_pages.iter().map(PageSlot::get);
        let local = context.local_pages.iter().map(PageSlot::get);
        fill(global, local);
        descriptors::load_local_table(u64::from(context.local_entries.get()) * 8);
    }
}

/// Makes the window show nobody's pages.
pub fn hide() {
    // Relaxed: this CPU's alone.
    if SHOWS.swap(false, Ordering::Relaxed) {
        fill(core::iter::repeat_n(None, GLOBAL_PAGES), core::iter::repeat_n(None, LOCAL_PAGES));
        descriptors::load_local_table(0);
    }
}

fn fill(
    global: impl Iterator<Item = Option<MachineFrame>>,
    local: impl Iterator<Item = Option<MachineFrame>>,
) {
    // Relaxed: see `set_window`.
    let Some(window) = MachineAddress::new(WINDOW.load(Ordering::Relaxed)).map(MachineFrame::containing)
    else {
        return;
    };
    let write = |index: u64, frame: Option<MachineFrame>, otherwise: u64| {
        let raw = frame.map_or(otherwise, |frame| frame.start().bytes() | tables::READ_ONLY.bits());
        if let Some(entry) = memory::entry(window, index as usize) {
            // Relaxed: the processor's walker finds it by the flush below, at the latest; no other CPU has this window.
            entry.store(raw, Ordering::Relaxed);
        }
    };
    let nothing = descriptors::nothing_entry();
    global.zip(0..).for_each(|(frame, index)| write(index, frame, nothing));
    local.zip(layout::LOCAL_TABLE_PAGE..).for_each(|(frame, index)| write(index, frame, 0));
    tlb::flush_all();
}
