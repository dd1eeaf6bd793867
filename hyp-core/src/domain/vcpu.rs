//! A virtual CPU: registers that the backend keeps, the roots it uses, and whether it can run.

use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use spin::Mutex;

use crate::address::{DomainId, MachineFrame};
use crate::event::upcall::InfoSlot;
use crate::machine::{Context, Machine};
use crate::sched::account::Account;
use crate::time::Timers;

/// Whether a vCPU can run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RunState {
    /// Never started, or its domain is dying.
    Offline = 0,
    /// Waits for a CPU.
    Runnable = 1,
    /// Has a CPU.
    Running = 2,
    /// Waits for an event.
    Blocked = 3,
}

impl RunState {
    const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Runnable,
            2 => Self::Running,
            3 => Self::Blocked,
            _ => Self::Offline,
        }
    }
}

/// A frame or none, in one atomic word: its number plus one. Zero is none, so that a vCPU that was never used is all zeros. A backend's assembly
/// reads the word as such ([`Vcpu::KERNEL_ROOT_OFFSET`]).
#[repr(transparent)]
pub(crate) struct FrameSlot(AtomicU64);

impl FrameSlot {
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    pub fn get(&self) -> Option<MachineFrame> {
        // Acquire and release: who reads the slot sees the tables as they were when the root was validated.
        MachineFrame::new(self.0.load(Ordering::Acquire).checked_sub(1)?)
    }

    pub fn replace(&self, frame: Option<MachineFrame>) -> Option<MachineFrame> {
        let word = frame.map_or(0, |frame| frame.number().saturating_add(1));
        MachineFrame::new(self.0.swap(word, Ordering::AcqRel).checked_sub(1)?)
    }
}

/// A virtual CPU.
pub struct Vcpu<M: Machine> {
    domain: AtomicU16,
    index: AtomicU16,
    state: AtomicU8,
    /// Whether some CPU may still have its roots loaded.
    on_cpu: AtomicBool,
    kernel_root: FrameSlot,
    user_root: FrameSlot,
    info: InfoSlot,
    /// See [`crate::event::upcall`].
    upcall_wanted: AtomicBool,
    /// Whether it has been given its first registers.
    initialised: AtomicBool,
    /// The frame that the domain has registered for its `vcpu_info`, held as *writable*.
    registered_info: FrameSlot,
    /// Which port a poll waits for; see [`crate::sched::wait`].
    pub(crate) poll: AtomicU32,
    pub(crate) timers: Timers,
    pub(crate) account: Mutex<Account>,
    /// Guest address at which the account is kept up to date; 0 is none.
    runstate_area: AtomicU64,
    context: M::Context,
}

impl<M: Machine> Vcpu<M> {
    /// Where a backend's assembly finds the kernel's root: a word that is its frame's number plus one, or 0.
    pub const KERNEL_ROOT_OFFSET: usize = offset_of!(Self, kernel_root);
    /// As [`Self::KERNEL_ROOT_OFFSET`], of the users' root.
    pub const USER_ROOT_OFFSET: usize = offset_of!(Self, user_root);

    pub(super) const fn new() -> Self {
        Self {
            domain: AtomicU16::new(0),
            index: AtomicU16::new(0),
            state: AtomicU8::new(0),
            on_cpu: AtomicBool::new(false),
            kernel_root: FrameSlot::new(),
            user_root: FrameSlot::new(),
            info: InfoSlot::new(),
            upcall_wanted: AtomicBool::new(false),
            initialised: AtomicBool::new(false),
            registered_info: FrameSlot::new(),
            poll: AtomicU32::new(0),
            timers: Timers::new(),
            account: Mutex::new(Account::new()),
            runstate_area: AtomicU64::new(0),
            context: <M::Context as Context>::EMPTY,
        }
    }

    /// A new life begins.
    pub(super) fn begin(&self, domain: DomainId, index: u16) {
        // Relaxed, with their loads: nobody looks at a vCPU before its domain's life says so, or its state, and these order.
        self.domain.store(domain.number(), Ordering::Relaxed);
        self.index.store(index, Ordering::Relaxed);
        self.initialised.store(false, Ordering::Relaxed);
        self.runstate_area.store(0, Ordering::Relaxed);
        self.poll.store(0, Ordering::Relaxed);
        self.timers.stop();
        *self.account.lock() = Account::new();
    }

    /// The domain it belongs to.
    pub fn domain_id(&self) -> DomainId {
        DomainId::new(self.domain.load(Ordering::Relaxed))
    }

    /// Its number within the domain.
    pub fn index(&self) -> u16 {
        self.index.load(Ordering::Relaxed)
    }

    /// Its registers.
    pub fn context(&self) -> &M::Context {
        &self.context
    }

    /// Whether the hypervisor has made an event pending that the guest may not have taken: a hint, for a backend's way out.
    /// If so, [`crate::Hypervisor::upcall_due`] knows for sure. What the guest itself writes into its `vcpu_info` isn't heard of here.
    #[inline]
    pub fn upcall_wanted(&self) -> bool {
        // Relaxed: on the CPU that runs the vCPU, whatever was set before it came here is seen; and who sets it from another CPU
        // sees to it that this one comes here.
        self.upcall_wanted.load(Ordering::Relaxed)
    }

    pub(crate) fn set_upcall_wanted(&self, wanted: bool) {
        // SeqCst, with the bits of the event: see `upcall_due`.
        self.upcall_wanted.store(wanted, Ordering::SeqCst);
    }

    /// Where its `vcpu_info` lies: the frame, and the offset in bytes.
    pub fn info_place(&self) -> Option<(MachineFrame, usize)> {
        self.info.get()
    }

    /// Says where its `vcpu_info` lies, in a frame that is held as *writable*.
    pub(crate) fn set_info_place(&self, place: Option<(MachineFrame, usize)>) {
        self.info.set(place);
        if let Some((frame, offset)) = place {
            self.context.set_vcpu_info(frame, offset);
        }
    }

    /// Whether it has been given its first registers.
    pub fn is_initialised(&self) -> bool {
        // Acquire and release: who finds it so sees the registers.
        self.initialised.load(Ordering::Acquire)
    }

    /// Says that it has.
    pub(crate) fn set_initialised(&self) {
        self.initialised.store(true, Ordering::Release);
    }

    /// The frame that the domain has registered for its `vcpu_info`, if it has.
    pub fn registered_info(&self) -> Option<MachineFrame> {
        self.registered_info.get()
    }

    /// Takes a frame, held as *writable*, for its `vcpu_info`, which lies `offset` bytes into it.
    pub(crate) fn register_info(&self, frame: MachineFrame, offset: usize) {
        self.registered_info.replace(Some(frame));
        self.set_info_place(Some((frame, offset)));
    }

    /// Gives the registered frame back, with its hold.
    pub(super) fn forget_info(&self) -> Option<MachineFrame> {
        self.set_info_place(None);
        self.set_upcall_wanted(false);
        self.registered_info.replace(None)
    }

    /// Where in the guest's memory its account of time is kept up to date, if anywhere.
    pub(crate) fn runstate_area(&self) -> Option<u64> {
        // Relaxed, here and below: an address, which says nothing of what is there.
        Some(self.runstate_area.load(Ordering::Relaxed)).filter(|area| *area != 0)
    }

    /// Says where; 0 is nowhere.
    pub(crate) fn set_runstate_area(&self, area: u64) {
        self.runstate_area.store(area, Ordering::Relaxed);
    }

    /// The root that the guest's kernel uses.
    pub fn kernel_root(&self) -> Option<MachineFrame> {
        self.kernel_root.get()
    }

    /// The root that the guest's user mode uses, if the guest has set one.
    pub fn user_root(&self) -> Option<MachineFrame> {
        self.user_root.get()
    }

    /// Sets the kernel's root, whose hold the vCPU takes over; returns the old one, with its hold.
    pub(crate) fn replace_kernel_root(&self, root: Option<MachineFrame>) -> Option<MachineFrame> {
        self.kernel_root.replace(root)
    }

    /// Sets the user mode's root, as [`Self::replace_kernel_root`].
    pub(crate) fn replace_user_root(&self, root: Option<MachineFrame>) -> Option<MachineFrame> {
        self.user_root.replace(root)
    }

    /// Whether it can run.
    pub fn state(&self) -> RunState {
        // Acquire, with the release of whoever changes it: who takes a vCPU to run it sees what it left behind on another CPU.
        RunState::from_number(self.state.load(Ordering::Acquire))
    }

    pub(crate) fn set_state(&self, state: RunState) {
        // Release: see above; so in the next function, which takes the vCPU, too.
        self.state.store(state as u8, Ordering::Release);
    }

    /// Changes the state if it is still `from`. [`crate::Hypervisor`]'s `change_state` keeps the account of time, too.
    pub(crate) fn change_state(&self, from: RunState, to: RunState) -> bool {
        self.state.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(crate) fn set_on_cpu(&self, on_cpu: bool) {
        // Release, with the acquire below: who finds that no CPU has it sees its roots unloaded.
        self.on_cpu.store(on_cpu, Ordering::Release);
    }

    /// Whether some CPU may still have its roots loaded.
    pub fn is_on_cpu(&self) -> bool {
        self.on_cpu.load(Ordering::Acquire)
    }
}
