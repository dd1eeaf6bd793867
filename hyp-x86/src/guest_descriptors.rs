//! A guest's own segment descriptors: its part of the global table, and its local table.
//!
//! The pages stay the guest's, as frames of type *descriptors*: every place is judged before the page becomes one
//! (`hyp_x86::segment`), nobody can write to it while it is one, and `update_descriptor` judges what it writes. Each vCPU has its own; they
//! are mapped, for the hypervisor alone and read-only, into a window that the processor's table registers point at: first
//! the guest's 14 pages of the global table, then the hypervisor's own page, then the local table's 16.
//!
//! What a vCPU's context says it holds is changed under its domain's table lock, since the audit counts it.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hyp_core::address::{GuestVirtual, MachineAddress, MachineFrame, PAGE_SIZE};
use hyp_core::frame::FrameType;
use hyp_core::frame::uses::Locked;
use hyp_core::hypercall::Call;
use hyp_core::machine::{Entry, Mmu, PageTableFormat};
use hyp_core::paging::Budget;
use hyp_core::paging::walk::level_one_place;
use hyp_x86::format::X86Format;
use hyp_x86::{layout, segment};
use penumbra_abi::errno::Errno;
use penumbra_abi::x86_64::FIRST_RESERVED_GDT_ENTRY;
use x86_64::instructions::tlb;

use crate::context::{GLOBAL_PAGES, GuestContext, LOCAL_PAGES, PageSlot};
use crate::machine::X86;
use crate::{descriptors, memory, tables};

/// Descriptors on a page.
const ON_A_PAGE: usize = PAGE_SIZE / 8;
/// Most descriptors of a local table.
const MOST_LOCAL: u32 = 8192;

/// The level-1 table in which the window's pages stand (machine address), from its first entry on.
static WINDOW: AtomicU64 = AtomicU64::new(0);
/// Whether the window shows any page of a guest's.
static SHOWS: AtomicBool = AtomicBool::new(false);

/// Says which table of the hypervisor's own maps the window.
pub fn set_window(table: MachineFrame) {
    WINDOW.store(table.start().bytes(), Ordering::Relaxed);
}

/// `set_gdt`: the frames of the guest's part of the global table, `entries` descriptors in all; none takes it away.
///
/// # Errors
/// EINVAL: too many, or a page that can't be one of descriptors. EFAULT: the list can't be read. What was before stays then.
pub fn set_global(call: &Call<'_, X86>, list: u64, entries: u64) -> Result<(), Errno> {
    if entries > u64::from(FIRST_RESERVED_GDT_ENTRY) {
        return Err(Errno::EINVAL);
    }
    let count = (entries as usize).div_ceil(ON_A_PAGE);
    let mut pages = Pages::<GLOBAL_PAGES>::new(call);
    for index in 0..count {
        let number: u64 = call.read(list.wrapping_add(index as u64 * 8))?;
        pages.add(MachineFrame::new(number).ok_or(Errno::EINVAL)?)?;
    }
    pages.replace(&call.vcpu.context().global_pages);
    show(call.vcpu.context());
    Ok(())
}

/// `MMUEXT_SET_LDT`: the local table lies at `base`, as the guest's tables map it now; no entries take it away.
///
/// # Errors
/// EINVAL: too many, an address that is no page's, or a page that can't be one of descriptors. What was before stays then.
pub fn set_local(call: &Call<'_, X86>, base: GuestVirtual, entries: u32) -> Result<(), Errno> {
    if entries > MOST_LOCAL || !base.bytes().is_multiple_of(PAGE_SIZE as u64) {
        return Err(Errno::EINVAL);
    }
    let count = (entries as usize).div_ceil(ON_A_PAGE);
    let mut pages = Pages::<LOCAL_PAGES>::new(call);
    for index in 0..count {
        let address = base.bytes().wrapping_add((index * PAGE_SIZE) as u64);
        pages.add(frame_at(call, GuestVirtual::new(address)).ok_or(Errno::EINVAL)?)?;
    }
    let context = call.vcpu.context();
    pages.replace(&context.local_pages);
    context.local_entries.set(entries);
    show(context);
    Ok(())
}

/// `update_descriptor`: writes one descriptor, at a machine address, to a page of descriptors or to any that the guest may write.
///
/// # Errors
/// EINVAL: the place isn't aligned, the descriptor isn't one that guests may have, or the page isn't the guest's.
pub fn update(call: &Call<'_, X86>, place: u64, descriptor: u64) -> Result<(), Errno> {
    let place =
        MachineAddress::new(place).filter(|place| place.bytes().is_multiple_of(8)).ok_or(Errno::EINVAL)?;
    let admitted = segment::admit(descriptor).ok_or(Errno::EINVAL)?;
    let frame = MachineFrame::containing(place);
    let (frames, machine) = (call.hypervisor.frames(), call.hypervisor.machine());
    let _tables = call.domain.tables.lock();
    let in_use =
        frames.usage(frame).is_some_and(|usage| usage.uses > 0 && usage.kind == FrameType::Descriptors);
    if in_use {
        hold(call, frame)?;
    } else {
        frames.get_writable(frame, call.domain.id(), machine).map_err(|_| Errno::EINVAL)?;
    }
    machine.write_entry(frame, place.offset_in_frame() / 8, admitted);
    frames.put_use(frame, machine);
    Ok(())
}

/// Pages that are to become a table's: held, until they take the place of others or are given up.
struct Pages<'a, const MOST: usize> {
    call: &'a Call<'a, X86>,
    frames: [Option<MachineFrame>; MOST],
    count: usize,
}

impl<'a, const MOST: usize> Pages<'a, MOST> {
    const fn new(call: &'a Call<'a, X86>) -> Self {
        Self { call, frames: [None; MOST], count: 0 }
    }

    fn add(&mut self, frame: MachineFrame) -> Result<(), Errno> {
        let slot = self.frames.get_mut(self.count).ok_or(Errno::EINVAL)?;
        let _tables = self.call.domain.tables.lock();
        hold(self.call, frame)?;
        *slot = Some(frame);
        self.count += 1;
        Ok(())
    }

    /// Puts them in the place of those that a table has, which go when this is dropped.
    fn replace(&mut self, slots: &[PageSlot; MOST]) {
        let _tables = self.call.domain.tables.lock();
        for (slot, frame) in slots.iter().zip(&mut self.frames) {
            *frame = slot.replace(*frame);
        }
    }
}

impl<const MOST: usize> Drop for Pages<'_, MOST> {
    fn drop(&mut self) {
        for frame in self.frames.into_iter().flatten() {
            self.call.hypervisor.frames().put_use(frame, self.call.hypervisor.machine());
        }
    }
}

/// Counts a reference and a use as descriptors, after all of them were judged.
fn hold(call: &Call<'_, X86>, frame: MachineFrame) -> Result<(), Errno> {
    let (frames, machine) = (call.hypervisor.frames(), call.hypervisor.machine());
    match frames.lock_descriptors(frame, call.domain.id(), machine) {
        Err(_) => Err(Errno::EINVAL),
        Ok(Locked::Complete) => Ok(()),
        Ok(Locked::Incomplete) => {
            call.budget.charge(Budget::FRAME);
            if admit_page(frame) {
                frames.complete(frame);
                Ok(())
            } else {
                frames.put_use(frame, machine);
                Err(Errno::EINVAL)
            }
        }
    }
}

/// Judges a page whose type is locked: nobody writes to it meanwhile.
fn admit_page(frame: MachineFrame) -> bool {
    (0..ON_A_PAGE).all(|index| {
        let Some(place) = memory::entry(frame, index) else { return false };
        let found = place.load(Ordering::Relaxed);
        let Some(admitted) = segment::admit(found) else { return false };
        if admitted != found {
            place.store(admitted, Ordering::Relaxed);
        }
        true
    })
}

/// The frame that the guest kernel's tables map at an address, in a page of its own.
fn frame_at(call: &Call<'_, X86>, address: GuestVirtual) -> Option<MachineFrame> {
    if !layout::is_guest_range(address.bytes(), PAGE_SIZE as u64) {
        return None;
    }
    let _tables = call.domain.tables.lock();
    let machine = call.hypervisor.machine();
    let place = level_one_place(machine, call.vcpu.kernel_root()?, address)?;
    match X86Format::decode(place.level, machine.read_entry(place.table, place.index)) {
        Entry::Leaf(leaf) if leaf.level == 1 => Some(leaf.frame),
        _ => None,
    }
}

/// Makes the window show a vCPU's pages, and the processor use them.
pub fn show(context: &GuestContext) {
    let any = context.global_pages.iter().chain(&context.local_pages).any(|slot| slot.get().is_some());
    if SHOWS.swap(any, Ordering::Relaxed) || any {
        let global = context.global_pages.iter().map(PageSlot::get);
        let local = context.local_pages.iter().map(PageSlot::get);
        fill(global, local);
        descriptors::load_local_table(u64::from(context.local_entries.get()) * 8);
    }
}

/// Makes the window show nobody's pages.
pub fn hide() {
    if SHOWS.swap(false, Ordering::Relaxed) {
        fill(core::iter::repeat_n(None, GLOBAL_PAGES), core::iter::repeat_n(None, LOCAL_PAGES));
        descriptors::load_local_table(0);
    }
}

fn fill(
    global: impl Iterator<Item = Option<MachineFrame>>,
    local: impl Iterator<Item = Option<MachineFrame>>,
) {
    let Some(window) = MachineAddress::new(WINDOW.load(Ordering::Relaxed)).map(MachineFrame::containing)
    else {
        return;
    };
    let write = |index: u64, frame: Option<MachineFrame>, otherwise: u64| {
        let raw = frame.map_or(otherwise, |frame| frame.start().bytes() | tables::READ_ONLY.bits());
        if let Some(entry) = memory::entry(window, index as usize) {
            entry.store(raw, Ordering::Relaxed);
        }
    };
    let nothing = descriptors::nothing_entry();
    global.zip(0..).for_each(|(frame, index)| write(index, frame, nothing));
    local.zip(layout::LOCAL_TABLE_PAGE..).for_each(|(frame, index)| write(index, frame, 0));
    tlb::flush_all();
}
