//! Hypercalls: what guests ask for.
//!
//! [`Hypervisor::hypercall`] is the one entrance. A hypercall number leads to a function of the group's file; it gets the
//! [`Call`], reads its arguments (claims, all of them), and gives back a value, an error code, or the news that it was
//! preempted. A preempted hypercall is issued again by the guest itself, unknowingly: its registers are set so that it
//! goes on where it stopped, and whatever waits (interrupts, the end of its turn) comes first.

mod ahead;
mod at_once;
mod batch;
mod console;
mod domctl;
mod event_channel;
mod grant_copy;
mod grant_map;
mod grant_table;
mod memory;
mod mmu_update;
mod mmuext;
mod multicall;
mod penumbra;
mod roots;
mod sched;
mod sysctl;
mod timer;
mod va_mapping;
mod vcpu;
mod version;
mod vm_assist;

pub(crate) use memory::exchange::Chunk;
pub(crate) use memory::maps::StoredMap;
pub use roots::RootWrite;

use core::cell::Cell;

use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::address::{DomainId, GuestVirtual, MachineFrame};
use crate::domain::vcpu::Vcpu;
use crate::domain::{Domain, Life};
use crate::hypervisor::Hypervisor;
use crate::machine::{Context, Machine};
use crate::paging::{Budget, Stop, TableSpace};

/// A hypercall's arguments where they stand: in the registers that the guest came with, or in a multicall's entry. A hypercall takes out
/// those that it has ([`values`]), and no other is touched.
pub type Arguments = [Cell<u64>; 6];

/// What the arguments hold. Cells hold still: nobody but the CPU that carries out the hypercall changes them.
#[inline(always)]
pub fn values(arguments: &Arguments) -> [u64; 6] {
    arguments.each_ref().map(Cell::get)
}

/// Why a hypercall has no value to return.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The guest's fault.
    Errno(Errno),
    /// Nobody's: it goes on with these arguments.
    Again([u64; 6]),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// Bytes copied to or from the guest that cost as much as one entry of a table.
const BYTES_AN_ENTRY: usize = 64;

/// What a hypercall comes to.
pub type Outcome = Result<u64, Failure>;

/// A hypercall in progress: who asks, and how much may be done before the next preemption point.
pub struct Call<'a, M: Machine> {
    /// The hypervisor.
    pub hypervisor: &'a Hypervisor<M>,
    /// The vCPU that asks.
    pub vcpu: &'a Vcpu<M>,
    /// Its domain.
    pub domain: &'a Domain<M>,
    /// The budget of this hypercall.
    pub budget: &'a Budget,
}

/// The answer to a hypercall that is the same whoever asks, by its number and first argument: a backend may give it at once. It is
/// the one (`xen_version`, the version) that guests issue for nothing but the way through the hypervisor, on which pending events
/// are delivered.
#[inline(always)]
pub const fn immediate(number: u64, first: u64) -> Option<u64> {
    match (number, first) {
        (number::XEN_VERSION, penumbra_abi::version::XENVER_VERSION) => Some(version::VERSION),
        _ => None,
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Carries out the hypercall that `vcpu` has issued. The result goes into the vCPU's registers.
    pub fn hypercall(&self, vcpu: &Vcpu<M>, number: u64, arguments: [u64; 6]) {
        if let Some(domain) = self.domain(vcpu.domain_id()) {
            self.hypercall_for(domain, vcpu, number, arguments, &Budget::new(Budget::HYPERCALL));
        }
    }

    /// As [`Self::hypercall`], for who knows the vCPU's domain already, and what isn't done [`Self::at_once`]. (A backend that doesn't ask
    /// for that has it done here.)
    #[inline(always)]
    pub fn hypercall_of(&self, domain: &Domain<M>, vcpu: &Vcpu<M>, number: u64, arguments: &Arguments) {
        self.carry_out(domain, vcpu, number, arguments, &Budget::new(Budget::HYPERCALL));
    }

    /// As [`Self::hypercall`], with another budget: tests want preemption points in every place.
    pub fn hypercall_within(&self, vcpu: &Vcpu<M>, number: u64, arguments: [u64; 6], budget: &Budget) {
        if let Some(domain) = self.domain(vcpu.domain_id()) {
            self.hypercall_for(domain, vcpu, number, arguments, budget);
        }
    }

    fn hypercall_for(
        &self,
        domain: &Domain<M>,
        vcpu: &Vcpu<M>,
        number: u64,
        arguments: [u64; 6],
        budget: &Budget,
    ) {
        let arguments = arguments.map(Cell::new);
        if !self.at_once(domain, vcpu, number, &arguments, budget) {
            self.carry_out(domain, vcpu, number, &arguments, budget);
        }
    }

    #[inline(always)]
    fn carry_out(
        &self,
        domain: &Domain<M>,
        vcpu: &Vcpu<M>,
        number: u64,
        arguments: &Arguments,
        budget: &Budget,
    ) {
        let call = Call { hypervisor: self, vcpu, domain, budget };
        let outcome = if domain.has_unhooked() {
            call.dispatch_hooked(number, arguments)
        } else {
            call.dispatch(number, arguments)
        };
        match outcome {
            Ok(value) => vcpu.context().set_result(value),
            Err(Failure::Errno(errno)) => vcpu.context().set_result(errno.to_return()),
            Err(Failure::Again(arguments)) => again(vcpu, arguments),
        }
    }
}

/// Has the guest issue the hypercall once more.
#[cold]
#[inline(never)]
fn again<M: Machine>(vcpu: &Vcpu<M>, arguments: [u64; 6]) {
    vcpu.context().restart_hypercall(arguments);
}

impl<'a, M: Machine> Call<'a, M> {
    /// As [`Self::dispatch`], of a domain with unhooked tables: they meet no hypercall but Penumbra's own (`paging::writable`).
    #[cold]
    #[inline(never)]
    fn dispatch_hooked(&self, number: u64, arguments: &Arguments) -> Outcome {
        if number != number::PENUMBRA {
            self.hook_in(self.domain, arguments)?;
        }
        self.dispatch(number, arguments)
    }

    /// Puts a domain's unhooked tables back into its trees, one of them at least; preempted, the hypercall is issued again as it is.
    #[cold]
    #[inline(never)]
    fn hook_in(&self, domain: &Domain<M>, arguments: &Arguments) -> Result<(), Failure> {
        let (machine, frames) = (&self.hypervisor.machine, &self.hypervisor.frames);
        let mut space = domain.table_space(machine, frames, self.budget);
        hook_all(&mut space).map_err(|_| Failure::Again(values(arguments)))
    }

    /// Finds the hypercall's function by its number. These functions are never inlined: what each of them needs of the stack and of registers
    /// would be paid for by all.
    fn dispatch(&self, number: u64, arguments: &Arguments) -> Outcome {
        match number {
            number::MMU_UPDATE => self.mmu_update(arguments),
            number::MMUEXT_OP => self.mmuext_op(arguments),
            number::UPDATE_VA_MAPPING => self.update_va_mapping(arguments),
            number::UPDATE_VA_MAPPING_OTHERDOMAIN => self.update_va_mapping_other_domain(arguments),
            number::MULTICALL => self.multicall(arguments),
            number::MEMORY_OP => self.memory_op(arguments),
            number::GRANT_TABLE_OP => self.grant_table_op(arguments),
            number::CONSOLE_IO => self.console_io(arguments),
            number::SCHED_OP => self.sched_op(arguments),
            number::EVENT_CHANNEL_OP => self.event_channel_op(arguments),
            number::SET_TIMER_OP => self.set_timer_op(arguments),
            number::VCPU_OP => self.vcpu_op(arguments),
            number::VM_ASSIST => self.vm_assist(arguments),
            number::XEN_VERSION => self.xen_version(arguments),
            number::DOMCTL => self.domctl(arguments),
            number::SYSCTL => self.sysctl(arguments),
            number::PENUMBRA => self.penumbra_op(arguments),
            _ => M::hypercall(self, number, arguments),
        }
    }

    /// Reads a structure from the guest.
    ///
    /// # Errors
    /// EFAULT when the guest itself couldn't read all of it.
    pub fn read<T: FromBytes + IntoBytes>(&self, from: u64) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.read_bytes(from, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Reads a structure from the guest to where it is needed: a large one would be copied on its way through a result.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_into<T: FromBytes + IntoBytes>(&self, from: u64, into: &mut T) -> Result<(), Errno> {
        self.read_bytes(from, into.as_mut_bytes())
    }

    /// Reads bytes from the guest.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_bytes(&self, from: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.hypervisor.machine.read_guest(GuestVirtual::new(from), into).map_err(|_| Errno::EFAULT)
    }

    /// Writes a structure to the guest.
    ///
    /// # Errors
    /// EFAULT when the guest itself couldn't write all of it.
    pub fn write<T: IntoBytes + Immutable>(&self, to: u64, value: &T) -> Result<(), Errno> {
        self.write_bytes(to, value.as_bytes())
    }

    /// Writes bytes to the guest.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_bytes(&self, to: u64, from: &[u8]) -> Result<(), Errno> {
        self.hypervisor.machine.write_guest(GuestVirtual::new(to), from).map_err(|_| Errno::EFAULT)
    }

    /// Charges the budget for a copy of so many bytes. For large structures: a small one is part of what its operation costs.
    fn charge_copy(&self, bytes: usize) {
        self.budget.charge(u32::try_from(bytes / BYTES_AN_ENTRY).unwrap_or(u32::MAX));
    }

    /// The domain that the guest names, if the guest may deal with it: itself always, others only for the control domain.
    fn named_domain(&self, id: u16) -> Result<&'a Domain<M>, Errno> {
        let id = DomainId::new(id);
        if id == DomainId::SELF || id == self.domain.id() {
            return Ok(self.domain);
        }
        if !self.domain.is_control() {
            return Err(Errno::EPERM);
        }
        self.hypervisor.domain(id).filter(|domain| domain.life() == Life::Alive).ok_or(Errno::ESRCH)
    }

    /// Fails unless the control domain asks.
    fn require_control(&self) -> Result<(), Errno> {
        if self.domain.is_control() { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// Locks the tables of `owner`, to map frames of `target`: for who keeps them locked over several operations.
    ///
    /// # Errors
    /// Preempted, and nothing else: by what has been unhooked since the hypercall began.
    fn tables(&self, owner: &'a Domain<M>, target: DomainId) -> Result<TableSpace<'a, M>, Stop> {
        let mut space = self.locked_tables(owner);
        self.in_tree(owner, target, &mut space)?;
        Ok(space)
    }

    /// Does `work` with the tables of `owner` locked, to map frames of `target`. They aren't moved about for it, as out of [`Self::tables`].
    ///
    /// # Errors
    /// As [`Self::tables`], and those of `work`.
    #[inline(always)]
    fn with_tables<R, E: From<Stop>>(
        &self,
        owner: &'a Domain<M>,
        target: DomainId,
        work: impl FnOnce(&mut TableSpace<'a, M>) -> Result<R, E>,
    ) -> Result<R, E> {
        let mut space = self.locked_tables(owner);
        self.in_tree(owner, target, &mut space)?;
        work(&mut space)
    }

    #[inline(always)]
    fn locked_tables(&self, owner: &'a Domain<M>) -> TableSpace<'a, M> {
        owner.table_space(&self.hypervisor.machine, &self.hypervisor.frames, self.budget)
    }

    /// Has all of the owner's tables in their trees before any is used.
    #[inline(always)]
    fn in_tree(
        &self,
        owner: &Domain<M>,
        target: DomainId,
        space: &mut TableSpace<'_, M>,
    ) -> Result<(), Stop> {
        // Before the target is set: what the domain has written there by itself may lead to its own frames only.
        if owner.has_unhooked() {
            hook_rest(space)?;
        }
        space.target = target;
        Ok(())
    }

    /// The root under which the guest's addresses like this one are translated now.
    #[inline(always)]
    fn root_at(&self, address: GuestVirtual) -> Option<MachineFrame> {
        M::root_of(address, self.vcpu.kernel_root(), self.vcpu.user_root())
    }
}

/// Hooks in what another vCPU, or an earlier entry of a multicall, has unhooked since the hypercall began: under the lock, so that nobody
/// can unhook it again before it is used, and no more than there is budget left for. Whoever is preempted here is issued again, and
/// then [`Call::hook_in`] gets further whatever the budget.
#[cold]
#[inline(never)]
fn hook_rest<M: Machine>(space: &mut TableSpace<'_, M>) -> Result<(), Stop> {
    if space.budget.is_spent() { Err(Stop::Preempted) } else { hook_all(space) }
}

/// Hooks in all that is unhooked. Preempted also if that has spent the budget: a table that the guest has emptied costs as much as most
/// operations, which do a piece of their work whatever is left.
fn hook_all<M: Machine>(space: &mut TableSpace<'_, M>) -> Result<(), Stop> {
    // A table that is refused is no table any more.
    let preempted = space.hook_all() == Err(Stop::Preempted) || space.budget.is_spent();
    if preempted { Err(Stop::Preempted) } else { Ok(()) }
}

/// What a guest hears of a table operation that can't be cut in pieces: preempted, it is issued again as it is.
fn finish(result: Result<(), Stop>, arguments: &Arguments) -> Outcome {
    result.map(|()| 0).map_err(|stop| failure(stop, arguments))
}

/// As [`finish`], of one that wasn't done.
#[cold]
#[inline(never)]
fn failure(stop: Stop, arguments: &Arguments) -> Failure {
    match stop {
        Stop::Refused(refusal) => refusal.errno().into(),
        Stop::Preempted => Failure::Again(values(arguments)),
    }
}
