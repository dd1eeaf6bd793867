//! What a CPU is doing: which vCPU it runs, and how it goes from one to another.
//!
//! **What has to wait.** The hypervisor can't use a guest's addresses while one of its tables is unhooked (`access.rs`), and hooking
//! them in can take long, with a preemption point after each. A page fault doesn't wait for that: the guest executes the
//! instruction again, and faults again. An event stays pending by itself. But a trap after an instruction comes only once, and a
//! system call has happened: so whatever else a guest comes for is left as it came ([`later`]). All that it was is in the context's
//! frame, so it is enough to remember that it waits; when the tables are in, it is dealt with as if it had just come. Meanwhile
//! interrupts come in, and other vCPUs get their turns. Nobody can have a vCPU wait for ever but its own domain's other vCPUs, by
//! unhooking all the time; and only tables that they have filled and emptied take so long that a whole turn isn't enough for all.
//!
//! One CPU is started for now. What belongs to a CPU is kept in this file alone, and `entry.s` reaches it by addresses
//! relative to its own, so that more CPUs mean a copy of the entry code and of this block for each, and no more.

use core::mem::offset_of;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use hyp_core::address::{MachineAddress, MachineFrame};
use hyp_core::domain::Domain;
use hyp_core::domain::vcpu::Vcpu;
use hyp_core::sched::Next;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::PhysFrame;

use crate::context::GuestContext;
use crate::machine::{HYPERVISOR, X86};
use crate::{deliver, descriptors, guest_descriptors, loaded, stack, trap};

/// What `entry_syscall` needs before it has a register to spare.
#[repr(C)]
pub struct Entry {
    guest_stack: AtomicU64,
    frame_end: AtomicU64,
    context: AtomicU64,
    /// Where the domain counts its unhooked tables; never null.
    unhooked: AtomicPtr<AtomicU32>,
}

/// This CPU's.
pub static ENTRY: Entry = Entry {
    guest_stack: AtomicU64::new(0),
    frame_end: AtomicU64::new(0),
    context: AtomicU64::new(0),
    unhooked: AtomicPtr::new((&raw const NONE_UNHOOKED).cast_mut()),
};
/// What stands for a domain's count where there is no domain.
static NONE_UNHOOKED: AtomicU32 = AtomicU32::new(0);
/// Where `entry.s` keeps the guest's stack pointer for a moment.
pub const GUEST_STACK_OFFSET: usize = offset_of!(Entry, guest_stack);
/// Where `entry.s` finds the end of the running context's frame.
pub const FRAME_END_OFFSET: usize = offset_of!(Entry, frame_end);
/// Where `entry.s` finds the running context.
pub const CONTEXT_OFFSET: usize = offset_of!(Entry, context);
/// Where `short.s` finds the count of unhooked tables.
pub const UNHOOKED_OFFSET: usize = offset_of!(Entry, unhooked);

/// The vCPU whose registers this CPU holds; null while idle.
static CURRENT: AtomicPtr<Vcpu<X86>> = AtomicPtr::new(ptr::null_mut());
/// The same for the ways in of guests (`trap.rs`, `short.s`); null also while stretches are measured, and for a vCPU that had no
/// `vcpu_info` yet when it was chosen, which costs the others nothing so.
pub static ENTERED: AtomicPtr<Vcpu<X86>> = AtomicPtr::new(ptr::null_mut());
/// Whether this CPU deals with what has waited, and goes on in [`settle`] afterwards.
static SETTLING: AtomicBool = AtomicBool::new(false);
/// Its domain.
static DOMAIN: AtomicPtr<Domain<X86>> = AtomicPtr::new(ptr::null_mut());
/// The root that maps the hypervisor and no guest (machine address).
static OWN_ROOT: AtomicU64 = AtomicU64::new(0);

/// The vCPU that this CPU runs.
#[inline]
pub fn current() -> Option<&'static Vcpu<X86>> {
    // Relaxed: this CPU writes and reads it, nobody else; so it is with all of this CPU's words below.
    // SAFETY: only `set_current` writes it, and only with references that last for ever.
    unsafe { CURRENT.load(Ordering::Relaxed).as_ref() }
}

/// The vCPU that a guest's way in is for; `None`: there is none, or there is more to do than deal with it.
#[inline(always)]
pub fn entered() -> Option<&'static Vcpu<X86>> {
    // Relaxed: this CPU's alone.
    // SAFETY: as above.
    unsafe { ENTERED.load(Ordering::Relaxed).as_ref() }
}

/// The domain of the vCPU that this CPU runs.
#[inline(always)]
pub fn domain() -> Option<&'static Domain<X86>> {
    // Relaxed: this CPU's alone.
    // SAFETY: as above.
    unsafe { DOMAIN.load(Ordering::Relaxed).as_ref() }
}

/// Whether a table of the running domain is out of its tree. The processor can still walk through it in ring 0, where *user* counts for
/// nothing, and nobody has validated what the guest writes there now: no guest address may be used by the hypervisor then.
#[inline(always)]
pub fn has_unhooked() -> bool {
    // Relaxed: this CPU's alone.
    // SAFETY: only `set_current` writes it, and only with references that last for ever, as that is with which it begins.
    let count = unsafe { &*ENTRY.unhooked.load(Ordering::Relaxed) };
    // Relaxed: as in `Domain::has_unhooked`.
    count.load(Ordering::Relaxed) != 0
}

fn set_current(vcpu: Option<&'static Vcpu<X86>>) {
    let domain = vcpu.and_then(|vcpu| HYPERVISOR.domain(vcpu.domain_id()));
    // Relaxed, all: this CPU's alone.
    DOMAIN
        .store(domain.map_or(ptr::null_mut(), |domain| ptr::from_ref(domain).cast_mut()), Ordering::Relaxed);
    let unhooked = domain.map_or(&NONE_UNHOOKED, Domain::unhooked);
    ENTRY.unhooked.store(ptr::from_ref(unhooked).cast_mut(), Ordering::Relaxed);
    let pointer = vcpu.map_or(ptr::null_mut(), |vcpu| ptr::from_ref(vcpu).cast_mut());
    CURRENT.store(pointer, Ordering::Relaxed);
    set_entered();
}

/// Nobody begins to measure stretches without asking for a new choice of who runs; and a vCPU that has its `vcpu_info` keeps it for as long
/// as it can run.
fn set_entered() {
    let shortly = |vcpu: &&Vcpu<X86>| !HYPERVISOR.measures_stretches() && vcpu.context().info().is_some();
    let entered = current().filter(shortly);
    // Relaxed: this CPU's alone.
    ENTERED.store(entered.map_or(ptr::null_mut(), |vcpu| ptr::from_ref(vcpu).cast_mut()), Ordering::Relaxed);
}

/// Says which root maps the hypervisor alone.
pub fn set_own_root(root: MachineFrame) {
    // Relaxed: written once, before other CPUs start.
    OWN_ROOT.store(root.start().bytes(), Ordering::Relaxed);
}

/// The root that maps the hypervisor alone; `None` before [`set_own_root`].
pub fn own_root() -> Option<MachineFrame> {
    // Relaxed: as above.
    match OWN_ROOT.load(Ordering::Relaxed) {
        0 => None,
        address => MachineAddress::new(address).map(MachineFrame::containing),
    }
}

/// Loads a root, which drops every cached translation: there are no global ones.
///
/// # Safety
/// The root maps the hypervisor as its own root does, and is a table that may be used.
#[inline]
pub unsafe fn load_root(root: MachineFrame) {
    let frame = PhysFrame::containing_address(x86_64::PhysAddr::new_truncate(root.start().bytes()));
    // SAFETY: the caller promises that the hypervisor stays mapped.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
}

/// The long way out: another vCPU may be due, or an event of the one that goes on. Returns the context of whoever goes on.
#[cold]
pub fn next() -> *const GuestContext {
    // Relaxed: this CPU's alone.
    if SETTLING.load(Ordering::Relaxed) {
        // It is on its way out already.
        return ptr::null();
    }
    loop {
        let Some(vcpu) = current().filter(|_| !HYPERVISOR.reschedule_wanted()) else {
            // Nothing of the one that is chosen waits any more, unless another choice is wanted.
            choose();
            continue;
        };
        let context = vcpu.context();
        // What may come before an event: its handler may mask events.
        let first = match () {
            () if context.lost_segment.get() => Some(deliver::failsafe(vcpu)),
            () if context.non_maskable.is_due() => Some(deliver::non_maskable(vcpu)),
            () => None,
        };
        if first == Some(true) {
            continue;
        }
        if first.is_some() || context.upcall_due() && !deliver::upcall(vcpu) {
            hook_some(vcpu);
            continue;
        }
        // The upcall may have been the domain's end.
        if !HYPERVISOR.reschedule_wanted() {
            return vcpu.context();
        }
    }
}

/// The vCPU has come for something for which its domain's tables have to be hooked in first: leaves it for later. Returns who goes on.
#[cold]
#[inline(never)]
pub fn later(context: &GuestContext) -> *const GuestContext {
    context.waits.set(true);
    settle();
    next()
}

/// Deals with what has waited of the vCPU that runs, unless somebody else is due: then when it has its next turn.
fn settle() {
    while let Some(vcpu) = current().filter(|vcpu| vcpu.context().waits.get()) {
        if HYPERVISOR.reschedule_wanted() {
            return;
        }
        if has_unhooked() {
            hook_some(vcpu);
            continue;
        }
        vcpu.context().waits.set(false);
        // Relaxed, both: this CPU's alone.
        SETTLING.store(true, Ordering::Relaxed);
        // Whoever goes on does so from here, with every register from the context.
        let _ = trap::again(vcpu, vcpu.context());
        SETTLING.store(false, Ordering::Relaxed);
    }
}

/// Hooks in some of the tables of the vCPU's domain, between two preemption points.
fn hook_some(vcpu: &Vcpu<X86>) {
    let_interrupts_in();
    if !HYPERVISOR.reschedule_wanted() {
        HYPERVISOR.hook_some(vcpu);
        let_interrupts_in();
    }
}

/// A preemption point: the interrupts that wait come here. No lock may be held.
fn let_interrupts_in() {
    HYPERVISOR.preemption_point(|| {
        x86_64::instructions::interrupts::enable();
        // They come after the instruction that follows.
        x86_64::instructions::nop();
        x86_64::instructions::interrupts::disable();
    });
}

/// Chooses who runs next, and switches. Waits here while nobody can run.
fn choose() {
    loop {
        match HYPERVISOR.schedule() {
            Next::Run(vcpu) => {
                switch_to(vcpu);
                HYPERVISOR.switched();
                settle();
                return;
            }
            Next::Idle => {
                leave();
                HYPERVISOR.switched();
                idle();
            }
        }
    }
}

/// Background work, then waits for interrupts until somebody may be able to run. Before each piece of that work they come in, too: it
/// may go on for long, and a timer may be due.
fn idle() {
    loop {
        let_interrupts_in();
        if HYPERVISOR.reschedule_wanted() {
            return;
        }
        if !HYPERVISOR.background() {
            HYPERVISOR.preemption_point(|| {
                x86_64::instructions::interrupts::enable_and_hlt();
                x86_64::instructions::interrupts::disable();
            });
        }
    }
}

/// Takes this CPU from whatever vCPU it runs: saves its registers, and loads the hypervisor's own root.
fn leave() {
    if let Some(previous) = current() {
        loaded::save(previous.context());
    }
    set_current(None);
    guest_descriptors::hide();
    if let Some(root) = own_root() {
        // SAFETY: it is the hypervisor's own.
        unsafe { load_root(root) };
    }
}

/// Gives this CPU to a vCPU.
fn switch_to(vcpu: &'static Vcpu<X86>) {
    let same = current().is_some_and(|previous| ptr::eq(previous, vcpu));
    if !same {
        if let Some(previous) = current() {
            loaded::save(previous.context());
        }
        enter_by(vcpu.context());
        loaded::restore(vcpu.context());
        set_current(Some(vcpu));
    }
    set_entered();
    load_roots_of(vcpu);
}

/// Loads the root for the mode in which the vCPU is. A vCPU without a root has a dead domain, and won't run.
pub fn load_roots_of(vcpu: &Vcpu<X86>) {
    let root = if vcpu.context().user_mode.get() { vcpu.user_root() } else { vcpu.kernel_root() };
    if let Some(root) = root.or_else(own_root) {
        // SAFETY: the core holds a reference to a validated root of the vCPU's, whose reserved slots it has filled.
        unsafe { load_root(root) };
    }
}

/// Has this CPU's ways in lead to the context.
fn enter_by(context: &GuestContext) {
    context.host_stack.set(stack::CPU.top());
    // Relaxed, both: only this CPU reads them.
    ENTRY.frame_end.store(context.frame_end(), Ordering::Relaxed);
    ENTRY.context.store(ptr::from_ref(context) as u64, Ordering::Relaxed);
    descriptors::set_ring0_stack(context.frame_end());
}
