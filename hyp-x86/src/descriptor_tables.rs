//! A guest's own segment descriptors: which frames hold them, and how they get there.
//!
//! The pages stay the guest's, as frames of type *descriptors*: every place is judged before the page becomes one ([`crate::segment`]), nobody
//! can write to it while it is one, and [`update`] judges what it writes. Each vCPU has pages of its own, in [`PageSlot`]s of its context; how
//! the processor comes to see them is the program's part (`guest_descriptors.rs`).
//!
//! What a vCPU's context says it holds is changed under its domain's table lock, since the audit counts it. What it held before is let go
//! only after the program has shown the processor the new ones (`show`): a page that the processor may read descriptors from is held.

use core::sync::atomic::{AtomicU64, Ordering};

use hyp_core::address::{GuestVirtual, MachineAddress, MachineFrame, PAGE_SIZE};
use hyp_core::frame::FrameType;
use hyp_core::frame::uses::Locked;
use hyp_core::hypercall::Call;
use hyp_core::machine::{Entry, Machine, PageTableFormat};
use hyp_core::paging::Budget;
use hyp_core::paging::walk::level_one_place;
use penumbra_abi::errno::Errno;
use penumbra_abi::x86_64::FIRST_RESERVED_GDT_ENTRY;

use crate::segment;

/// Pages of a guest's part of the global table, at most.
pub const GLOBAL_PAGES: usize = crate::layout::GUEST_DESCRIPTOR_PAGES as usize;
/// Pages of a guest's local table, at most.
pub const LOCAL_PAGES: usize = crate::layout::LOCAL_TABLE_PAGES as usize;
/// Descriptors on a page.
const ON_A_PAGE: usize = PAGE_SIZE / 8;
/// What it costs of the budget to hold a page in place of another: it may be looked up first, and is shown to the processor.
const PAGE_COST: u32 = 8;
/// What it costs to judge all descriptors of a page.
const JUDGED_COST: u32 = ON_A_PAGE as u32 / 2;

/// What a table of so many descriptors may cost, if all of them have to be judged: that can't be cut in pieces.
pub fn cost(entries: u64) -> u32 {
    (entries.min(MOST_LOCAL.into()) as u32).div_ceil(ON_A_PAGE as u32).saturating_mul(JUDGED_COST)
}

/// Most descriptors of a local table.
const MOST_LOCAL: u32 = 8192;

/// A frame or none; all zeros is none. It changes under the table lock.
#[repr(transparent)]
pub struct PageSlot(AtomicU64);

impl Default for PageSlot {
    fn default() -> Self {
        Self::new()
    }
}

impl PageSlot {
    /// None.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The frame.
    #[inline]
    pub fn get(&self) -> Option<MachineFrame> {
        // Relaxed, as below: the lock orders, and the CPU that runs the vCPU has changed it itself.
        MachineFrame::new(self.0.load(Ordering::Relaxed).checked_sub(1)?)
    }

    /// Puts another in its place.
    pub fn replace(&self, frame: Option<MachineFrame>) -> Option<MachineFrame> {
        let before = self.get();
        // Relaxed: under the table lock, which orders.
        self.0.store(frame.map_or(0, |frame| frame.number().saturating_add(1)), Ordering::Relaxed);
        before
    }
}

/// `set_gdt`: the frames of the guest's part of the global table, `entries` descriptors in all, which `slots` hold from now on; none takes it
/// away. `show` makes the processor use what `slots` hold.
///
/// # Errors
/// EINVAL: too many, or a page that can't be one of descriptors. EFAULT: the list can't be read. What was before stays then.
pub fn set_global<M: Machine>(
    call: &Call<'_, M>,
    list: u64,
    entries: u64,
    slots: &[PageSlot; GLOBAL_PAGES],
    show: impl FnOnce(),
) -> Result<(), Errno> {
    let count = global_count(entries)?;
    let mut pages = Pages::new(call);
    for index in 0..count {
        let number: u64 = call.read(list.wrapping_add(index as u64 * 8))?;
        pages.add(MachineFrame::new(number).ok_or(Errno::EINVAL)?)?;
    }
    pages.replace(slots, show);
    Ok(())
}

/// As [`set_global`], for a vCPU that doesn't run: the numbers of the frames stand in `list`. `may_run` is asked under the table lock, where
/// whoever starts a vCPU says so: the pages of one that may run are in use, and stay.
///
/// # Errors
/// EINVAL, as there; EEXIST: it may run.
pub fn start_global<M: Machine>(
    call: &Call<'_, M>,
    list: &[u64],
    entries: u64,
    slots: &[PageSlot; GLOBAL_PAGES],
    may_run: impl FnOnce() -> bool,
) -> Result<(), Errno> {
    let list = list.get(..global_count(entries)?).ok_or(Errno::EINVAL)?;
    let mut pages = Pages::new(call);
    for number in list {
        pages.add(MachineFrame::new(*number).ok_or(Errno::EINVAL)?)?;
    }
    if pages.replace_unless(may_run, slots) { Err(Errno::EEXIST) } else { Ok(()) }
}

/// Pages that so many descriptors of the guest's part of the global table take.
fn global_count(entries: u64) -> Result<usize, Errno> {
    if entries > u64::from(FIRST_RESERVED_GDT_ENTRY) {
        return Err(Errno::EINVAL);
    }
    Ok((entries as usize).div_ceil(ON_A_PAGE))
}

/// `MMUEXT_SET_LDT`: the local table lies at `base`, as the guest's tables map it now, `entries` descriptors, whose frames `slots` hold from now
/// on; no entries take it away. `show` makes the processor use what `slots` hold.
///
/// # Errors
/// EINVAL: too many, an address that is no page's, or a page that can't be one of descriptors. What was before stays then.
pub fn set_local<M: Machine>(
    call: &Call<'_, M>,
    base: GuestVirtual,
    entries: u32,
    slots: &[PageSlot; LOCAL_PAGES],
    show: impl FnOnce(),
) -> Result<(), Errno> {
    if entries > MOST_LOCAL || !base.bytes().is_multiple_of(PAGE_SIZE as u64) {
        return Err(Errno::EINVAL);
    }
    let count = (entries as usize).div_ceil(ON_A_PAGE);
    let mut pages = Pages::new(call);
    for index in 0..count {
        let address = base.bytes().wrapping_add((index * PAGE_SIZE) as u64);
        pages.add(frame_at(call, GuestVirtual::new(address)).ok_or(Errno::EINVAL)?)?;
    }
    pages.replace(slots, show);
    Ok(())
}

/// `update_descriptor`: writes one descriptor, at a machine address, to a page of descriptors or to any that the guest may write.
///
/// # Errors
/// EINVAL: the place isn't aligned, the descriptor isn't one that guests may have, or the page isn't the guest's.
pub fn update<M: Machine>(call: &Call<'_, M>, place: u64, descriptor: u64) -> Result<(), Errno> {
    let place =
        MachineAddress::new(place).filter(|place| place.bytes().is_multiple_of(8)).ok_or(Errno::EINVAL)?;
    let admitted = segment::admit(descriptor).ok_or(Errno::EINVAL)?;
    let frame = MachineFrame::containing(place);
    let (frames, machine) = (call.hypervisor.frames(), call.hypervisor.machine());
    let _tables = call.domain.tables.lock();
    let usage = frames.usage(frame);
    if usage.is_some_and(|usage| usage.uses > 0 && usage.kind == FrameType::Descriptors) {
        hold(call, frame)?;
        machine.write_entry(frame, place.offset_in_frame() / 8, admitted);
    } else {
        // An ordinary page: others may write to it at the same time.
        frames.get_writable(frame, call.domain.id(), machine).map_err(|_| Errno::EINVAL)?;
        machine.write_frame(frame, place.offset_in_frame(), &admitted.to_le_bytes());
    }
    frames.put_use(frame, machine);
    Ok(())
}

/// Pages that are to become a table's: held, until they take the place of others or are given up.
struct Pages<'a, M: Machine, const MOST: usize> {
    call: &'a Call<'a, M>,
    frames: [Option<MachineFrame>; MOST],
    count: usize,
}

impl<'a, M: Machine, const MOST: usize> Pages<'a, M, MOST> {
    const fn new(call: &'a Call<'a, M>) -> Self {
        Self { call, frames: [None; MOST], count: 0 }
    }

    fn add(&mut self, frame: MachineFrame) -> Result<(), Errno> {
        let slot = self.frames.get_mut(self.count).ok_or(Errno::EINVAL)?;
        self.call.budget.charge(PAGE_COST);
        let _tables = self.call.domain.tables.lock();
        hold(self.call, frame)?;
        *slot = Some(frame);
        self.count += 1;
        Ok(())
    }

    /// Puts them in the place of those that a table has, which go once the processor no longer uses them.
    fn replace(mut self, slots: &[PageSlot; MOST], show: impl FnOnce()) {
        self.exchange(|| false, slots);
        show();
    }

    /// The same, where no processor uses any, unless `reason` speaks against it under the table lock; whether it did.
    fn replace_unless(mut self, reason: impl FnOnce() -> bool, slots: &[PageSlot; MOST]) -> bool {
        self.exchange(reason, slots)
    }

    fn exchange(&mut self, reason: impl FnOnce() -> bool, slots: &[PageSlot; MOST]) -> bool {
        self.call.budget.charge(Budget::OPERATION);
        let _tables = self.call.domain.tables.lock();
        let refused = reason();
        if !refused {
            for (slot, frame) in slots.iter().zip(&mut self.frames) {
                *frame = slot.replace(*frame);
            }
        }
        refused
    }
}

impl<M: Machine, const MOST: usize> Drop for Pages<'_, M, MOST> {
    fn drop(&mut self) {
        for frame in self.frames.into_iter().flatten() {
            self.call.hypervisor.frames().put_use(frame, self.call.hypervisor.machine());
        }
    }
}

/// Counts a reference and a use as descriptors, after all of them were judged.
fn hold<M: Machine>(call: &Call<'_, M>, frame: MachineFrame) -> Result<(), Errno> {
    let (frames, machine) = (call.hypervisor.frames(), call.hypervisor.machine());
    match frames.lock_descriptors(frame, call.domain.id(), machine) {
        Err(_) => Err(Errno::EINVAL),
        Ok(Locked::Complete) => Ok(()),
        Ok(Locked::Incomplete) => {
            call.budget.charge(JUDGED_COST);
            if admit_page(machine, frame) {
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
fn admit_page<M: Machine>(machine: &M, frame: MachineFrame) -> bool {
    let Some(words) = machine.table(frame) else { return false };
    (0..ON_A_PAGE).all(|index| {
        let found = machine.read_in(words, index);
        let Some(admitted) = segment::admit(found) else { return false };
        if admitted != found {
            machine.write_in(words, index, admitted);
        }
        true
    })
}

/// The frame that the guest kernel's tables map at an address, in a page of its own.
fn frame_at<M: Machine>(call: &Call<'_, M>, address: GuestVirtual) -> Option<MachineFrame> {
    let _tables = call.domain.tables.lock();
    let machine = call.hypervisor.machine();
    // An address that no root translates is none, and the walk refuses those in the hypervisor's part.
    let root = M::root_of(address, call.vcpu.kernel_root(), call.vcpu.user_root())?;
    let place = level_one_place(machine, root, address)?;
    match M::Format::decode(place.level, machine.read_entry(place.table, place.index)) {
        Entry::Leaf(leaf) if leaf.level == 1 => Some(leaf.frame),
        _ => None,
    }
}
