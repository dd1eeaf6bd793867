//! What the core asks of a virtual CPU's registers, which each backend keeps in its own way.

use core::fmt;

use penumbra_abi::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::address::{GuestVirtual, MachineFrame};
use crate::machine::Machine;

/// Where a new virtual CPU starts.
#[derive(Clone, Copy, Debug)]
pub struct StartOfDay {
    /// First instruction.
    pub entry: GuestVirtual,
    /// Top of the boot stack.
    pub stack: GuestVirtual,
    /// The start-info page, in the register that the ABI says (x0; rsi).
    pub start_info: GuestVirtual,
}

/// The roots with which a vCPU starts, as a guest names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Roots {
    /// For the guest's kernel.
    pub kernel: MachineFrame,
    /// For its user mode.
    pub user: Option<MachineFrame>,
}

/// What a guest of machine `M` gives a vCPU to start with.
pub type GuestStart<M> = <<M as Machine>::Context as Context>::GuestStart;

/// A virtual CPU's registers, as the backend keeps them while the vCPU doesn't run.
///
/// Shared by reference; the backend sees to it that only the CPU that runs the vCPU, or the one that has it stopped,
/// changes it. [`Self::EMPTY`] should be all zeros, so that thousands of them cost nothing in the image.
pub trait Context: Send + Sync + 'static {
    /// A context that has never been started.
    const EMPTY: Self;

    /// Makes the vCPU ready for its first instruction: everything else zero, interrupts masked, MMU on.
    fn reset(&self, start: &StartOfDay);
    /// Says where the vCPU's `vcpu_info` lies: `offset` bytes into `frame`, which the core holds as *writable* until the vCPU never
    /// runs again, or the next call. [`Self::reset`] leaves it as it is.
    fn set_vcpu_info(&self, frame: MachineFrame, offset: usize);
    /// Lets events reach the guest, where it is a flag of its processor that keeps them away (the guest has asked to wait for
    /// them). Only for the vCPU that runs, or one that is stopped. The core asks for a new choice of who runs afterwards, so a backend
    /// may rely on that way to load what this has changed.
    fn unmask_events(&self);
    /// Whether a flag of the guest's processor keeps events away. (Where the mask stands in `vcpu_info`, no.)
    fn are_events_masked(&self) -> bool;

    /// Whether guests can send each other's vCPUs non-maskable interrupts.
    const NON_MASKABLE: bool = false;
    /// Has one come to the vCPU, whatever it does, when it goes on next. The core wakes it, and asks for a new choice of who runs.
    fn interrupt_unmaskably(&self) {}

    /// What a guest gives a vCPU to start with (`struct vcpu_guest_context`).
    type GuestStart: FromBytes + IntoBytes;
    /// Judges it, apart from the roots that it names: these are returned, as claims.
    ///
    /// # Errors
    /// EINVAL: the vCPU would start in a state that guests must not have.
    fn judge_start(start: &Self::GuestStart) -> Result<Roots, Errno>;
    /// Makes a vCPU that has never run ready for its first instruction, as a guest has said, which [`Self::judge_start`] has judged.
    fn start(&self, start: &Self::GuestStart);

    /// Calls `visit` with each frame of segment descriptors that the vCPU holds (a use of each), once for each hold.
    fn for_each_descriptor_page(&self, visit: &mut dyn FnMut(MachineFrame)) {
        let _ = visit;
    }
    /// Forgets those frames; the caller has their holds to give back. Only for a vCPU that no CPU runs.
    fn forget_descriptor_pages(&self) {}
    /// Sets what the hypercall in progress returns to the guest.
    fn set_result(&self, value: u64);
    /// Arranges for the guest to issue the hypercall in progress again, with these arguments, when it runs next.
    fn restart_hypercall(&self, arguments: [u64; 6]);
    /// Writes the registers, for the log, when a domain has died.
    fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result;
}
