//! A vCPU's registers on the modelled machine: the fake machine's, and x86-64's pages of segment descriptors, whatever the table format.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use hyp_core::address::{GuestVirtual, MachineFrame};
use hyp_core::fake::{FakeContext, FakeStart};
use hyp_core::frame::FrameType;
use hyp_core::hypercall::{Arguments, Call, Outcome, values};
use hyp_core::machine::{Context, Roots, StartOfDay};
use hyp_x86::descriptor_tables::{self, GLOBAL_PAGES, LOCAL_PAGES, PageSlot};
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;

use super::Model;
use crate::format::Hardware;

/// A vCPU's registers.
pub struct ModelContext {
    /// Those of the fake machine.
    pub registers: FakeContext,
    global: [PageSlot; GLOBAL_PAGES],
    local: [PageSlot; LOCAL_PAGES],
    /// The pages that the processor was last shown: where it reads descriptors.
    shown: [PageSlot; GLOBAL_PAGES + LOCAL_PAGES],
    /// Whether it may hold any, so that who recounts a hundred thousand times a second need not look at all of them.
    some: AtomicBool,
}

impl ModelContext {
    /// The pages of segment descriptors that it holds, and whether each is in the local table.
    pub fn pages(&self) -> impl Iterator<Item = (bool, MachineFrame)> {
        let all = self.slots().enumerate();
        all.filter_map(|(index, slot)| Some((index >= GLOBAL_PAGES, slot.get()?)))
    }

    /// Shows the processor the pages that it holds, in the place of those that it was shown before: which must still be pages of
    /// descriptors, or the processor could have read anything there.
    fn show<F: Hardware>(&self, call: &Call<'_, Model<F>>) {
        for (shown, slot) in self.shown.iter().zip(self.global.iter().chain(&self.local)) {
            if let Some(before) = shown.replace(slot.get()) {
                let usage = call.hypervisor.frames().usage(before);
                let held = usage.is_some_and(|usage| usage.uses > 0 && usage.kind == FrameType::Descriptors);
                if !held {
                    let frame = before.number();
                    let machine = call.hypervisor.machine();
                    machine.violate(format!(
                        "mfn {frame:#x} was let go while it was in a descriptor table that is loaded"
                    ));
                }
            }
        }
    }

    fn slots(&self) -> impl Iterator<Item = &PageSlot> {
        let some = self.some.load(Relaxed);
        self.global.iter().chain(&self.local).take(if some { GLOBAL_PAGES + LOCAL_PAGES } else { 0 })
    }
}

/// `set_gdt`, `update_descriptor`: hypercalls that are x86-64's.
pub(super) fn hypercall<F: Hardware>(
    call: &Call<'_, Model<F>>,
    number: u64,
    arguments: &Arguments,
) -> Outcome {
    let [first, second, ..] = values(arguments);
    match number {
        number::SET_GDT => {
            let context = call.vcpu.context();
            context.some.store(true, Relaxed);
            descriptor_tables::set_global(call, first, second, &context.global, || context.show(call))?;
        }
        number::UPDATE_DESCRIPTOR => descriptor_tables::update(call, first, second)?,
        _ => return Err(Errno::ENOSYS.into()),
    }
    Ok(0)
}

/// `MMUEXT_SET_LDT`
pub(super) fn set_local<F: Hardware>(
    call: &Call<'_, Model<F>>,
    base: GuestVirtual,
    entries: u32,
) -> Result<(), Errno> {
    let context = call.vcpu.context();
    context.some.store(true, Relaxed);
    descriptor_tables::set_local(call, base, entries, &context.local, || context.show(call))
}

impl Context for ModelContext {
    const EMPTY: Self = Self {
        registers: FakeContext::EMPTY,
        global: [const { PageSlot::new() }; GLOBAL_PAGES],
        local: [const { PageSlot::new() }; LOCAL_PAGES],
        shown: [const { PageSlot::new() }; GLOBAL_PAGES + LOCAL_PAGES],
        some: AtomicBool::new(false),
    };

    fn reset(&self, start: &StartOfDay) {
        self.registers.reset(start);
    }

    fn set_vcpu_info(&self, frame: MachineFrame, offset: usize) {
        self.registers.set_vcpu_info(frame, offset);
    }

    fn unmask_events(&self) {
        self.registers.unmask_events();
    }

    fn are_events_masked(&self) -> bool {
        self.registers.are_events_masked()
    }

    type GuestStart = FakeStart;

    fn judge_start(start: &FakeStart) -> Result<Roots, Errno> {
        FakeContext::judge_start(start)
    }

    fn start(&self, start: &FakeStart) {
        self.registers.start(start);
    }

    fn for_each_descriptor_page(&self, visit: &mut dyn FnMut(MachineFrame)) {
        self.slots().filter_map(PageSlot::get).for_each(visit);
    }

    fn forget_descriptor_pages(&self) {
        // It doesn't run any more.
        for slot in self.slots().chain(&self.shown) {
            slot.replace(None);
        }
        self.some.store(false, Relaxed);
    }

    fn set_result(&self, value: u64) {
        self.registers.set_result(value);
    }

    fn restart_hypercall(&self, arguments: [u64; 6]) {
        self.registers.restart_hypercall(arguments);
    }

    fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.registers.describe(out)
    }
}
