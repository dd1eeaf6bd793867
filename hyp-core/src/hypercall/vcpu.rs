//! `vcpu_op`: a domain's virtual CPUs, started and stopped by the domain itself (`vcpu.h`).

use penumbra_abi::errno::Errno;
use penumbra_abi::vcpu::{self as abi, RegisterVcpuInfo, RunstateInfo, SetSingleshotTimer};

use super::{Arguments, Call, Failure, Outcome, values};
use crate::address::{MachineFrame, PAGE_SIZE};
use crate::domain::vcpu::{RunState, Vcpu};
use crate::event::upcall;
use crate::machine::{Context, GuestStart, Machine, PageTableFormat, Roots};
use crate::paging::Stop;

/// The shortest period of a timer: 1 ms.
const SHORTEST_PERIOD: u64 = 1_000_000;
/// The longest: about 292 years would be the end of a signed count of nanoseconds; Xen stops at a third of it.
const LONGEST_PERIOD: u64 = i64::MAX as u64 / 3;

/// What the first registers of a vCPU cost of the budget, on the machine with most of them: they are read before it shows that there are some.
const START_COST: u32 = 128;

impl<M: Machine> Call<'_, M> {
    /// Arguments: the operation; the vCPU's number; guest address of the operation's structure.
    #[inline(never)]
    pub(super) fn vcpu_op(&self, arguments: &Arguments) -> Outcome {
        let [operation, number, place, ..] = values(arguments);
        let vcpu = self.domain.vcpu(number).ok_or(Errno::ENOENT)?;
        match operation {
            abi::VCPUOP_INITIALISE => {
                let outcome = self.initialise_vcpu(vcpu, arguments);
                // Only now, so that the reading never uses up what the validation of the roots needs to get on.
                self.budget.charge(START_COST);
                return outcome;
            }
            abi::VCPUOP_UP => self.vcpu_up(vcpu)?,
            abi::VCPUOP_DOWN => self.vcpu_down(vcpu)?,
            abi::VCPUOP_IS_UP => return Ok(u64::from(vcpu.state() != RunState::Offline)),
            abi::VCPUOP_GET_RUNSTATE_INFO => self.write(place, &self.hypervisor.runstate(vcpu))?,
            abi::VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA => self.register_runstate_area(vcpu, place)?,
            abi::VCPUOP_SET_PERIODIC_TIMER => self.set_periodic_timer(vcpu, place)?,
            abi::VCPUOP_STOP_PERIODIC_TIMER => vcpu.timers.stop_periodic(),
            abi::VCPUOP_SET_SINGLESHOT_TIMER => self.set_singleshot_timer(vcpu, place)?,
            abi::VCPUOP_STOP_SINGLESHOT_TIMER => {
                self.require_own(vcpu)?;
                vcpu.timers.singleshot.clear();
            }
            abi::VCPUOP_REGISTER_VCPU_INFO => self.register_vcpu_info(vcpu, place)?,
            abi::VCPUOP_SEND_NMI if M::Context::NON_MASKABLE => self.send_non_maskable(vcpu, place)?,
            _ => return Err(Errno::ENOSYS.into()),
        }
        Ok(0)
    }

    /// Some operations are only for the vCPU that asks.
    fn require_own(&self, vcpu: &Vcpu<M>) -> Result<(), Errno> {
        if vcpu.index() == self.vcpu.index() { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// Gives a vCPU that was never started its first registers. Its roots are validated and held like any other.
    fn initialise_vcpu(&self, vcpu: &Vcpu<M>, arguments: &Arguments) -> Outcome {
        let [_, _, place, ..] = values(arguments);
        if vcpu.info_place().is_none() {
            return Err(Errno::EINVAL.into());
        }
        let start: GuestStart<M> = self.read(place)?;
        if vcpu.is_initialised() {
            return Err(Errno::EEXIST.into());
        }
        let Roots { kernel, user } = M::Context::judge_start(&start)?;
        let again = || Failure::Again(values(arguments));
        if self.budget.lacks(M::start_cost(&start)) {
            return Err(again());
        }
        M::start_descriptors(self, vcpu, &start)?;
        // The table lock is what two vCPUs that start the same third one at once meet at.
        let mut space = self.tables(self.domain, self.domain.id()).map_err(|_| again())?;
        if vcpu.is_initialised() {
            return Err(Errno::EEXIST.into());
        }
        // A root that is held already stays with the vCPU, so that a preempted validation of the other one goes on there.
        let held =
            hold_root(&mut space, vcpu.kernel_root(), Some(kernel), |root| vcpu.replace_kernel_root(root))
                .and_then(|()| {
                    hold_root(&mut space, vcpu.user_root(), user, |root| vcpu.replace_user_root(root))
                });
        match held {
            Ok(()) => {
                vcpu.context().start(&start);
                vcpu.set_initialised();
                Ok(0)
            }
            Err(Stop::Preempted) => Err(again()),
            // Xen says so of every root that it can't use.
            Err(Stop::Refused(_)) => Err(Errno::EINVAL.into()),
        }
    }

    fn vcpu_up(&self, vcpu: &Vcpu<M>) -> Result<(), Errno> {
        if !vcpu.is_initialised() {
            return Err(Errno::EINVAL);
        }
        if self.hypervisor.change_state(vcpu, RunState::Offline, RunState::Runnable) {
            self.hypervisor.scheduler.want();
        }
        Ok(())
    }

    /// Stops a vCPU. Without its last one, the domain is at its end.
    fn vcpu_down(&self, vcpu: &Vcpu<M>) -> Result<(), Errno> {
        let others = self.domain.online_vcpus().filter(|other| other.index() != vcpu.index()).count();
        if others == 0 {
            return self.shutdown(penumbra_abi::sched::SHUTDOWN_POWEROFF);
        }
        for state in [RunState::Running, RunState::Runnable, RunState::Blocked] {
            if self.hypervisor.change_state(vcpu, state, RunState::Offline) {
                self.hypervisor.scheduler.want();
            }
        }
        Ok(())
    }

    /// There is no structure to it.
    fn send_non_maskable(&self, vcpu: &Vcpu<M>, place: u64) -> Result<(), Errno> {
        if place != 0 {
            return Err(Errno::EINVAL);
        }
        vcpu.context().interrupt_unmaskably();
        self.hypervisor.wake_vcpu(vcpu);
        self.hypervisor.scheduler.want();
        Ok(())
    }

    fn register_runstate_area(&self, vcpu: &Vcpu<M>, place: u64) -> Result<(), Errno> {
        let area: u64 = self.read(place)?;
        vcpu.set_runstate_area(area);
        // Whether it can be written shows each time; nobody is told.
        let _ = self.write::<RunstateInfo>(area, &self.hypervisor.runstate(vcpu));
        Ok(())
    }

    fn set_periodic_timer(&self, vcpu: &Vcpu<M>, place: u64) -> Result<(), Errno> {
        let period: u64 = self.read(place)?;
        if !(SHORTEST_PERIOD..=LONGEST_PERIOD).contains(&period) {
            return Err(Errno::EINVAL);
        }
        self.hypervisor.set_periodic(vcpu, period);
        Ok(())
    }

    fn set_singleshot_timer(&self, vcpu: &Vcpu<M>, place: u64) -> Result<(), Errno> {
        self.require_own(vcpu)?;
        let timer: SetSingleshotTimer = self.read(place)?;
        let passed = timer.timeout_abs_ns < self.hypervisor.machine.now();
        if timer.flags & abi::VCPU_SSHOTTMR_FUTURE != 0 && passed {
            return Err(Errno::ETIME);
        }
        self.hypervisor.set_singleshot(self.domain, vcpu, timer.timeout_abs_ns);
        Ok(())
    }

    /// Moves a vCPU's `vcpu_info` to a page of the domain's own, once. The page is held as *writable* for as long as the domain
    /// lives, so it never becomes a table.
    fn register_vcpu_info(&self, vcpu: &Vcpu<M>, place: u64) -> Result<(), Errno> {
        let request: RegisterVcpuInfo = self.read(place)?;
        let offset = request.offset as usize;
        let last = PAGE_SIZE.saturating_sub(M::SHARED_INFO.vcpu_info_bytes);
        if offset > last {
            // Xen's own word for it.
            return Err(Errno::ENXIO);
        }
        let frame = MachineFrame::new(request.mfn).ok_or(Errno::EINVAL)?;
        let others = vcpu.index() != self.vcpu.index() && vcpu.state() != RunState::Offline;
        if !offset.is_multiple_of(8) || others {
            return Err(Errno::EINVAL);
        }
        let _guard = self.domain.events.lock.lock();
        if vcpu.registered_info().is_some() {
            return Err(Errno::EINVAL);
        }
        let hypervisor = self.hypervisor;
        hypervisor
            .frames
            .get_writable(frame, self.domain.id(), &hypervisor.machine)
            .map_err(|_| Errno::EINVAL)?;
        self.copy_info(vcpu, frame, offset);
        vcpu.register_info(frame, offset);
        hypervisor.publish_time(vcpu);
        hypervisor.select_all(vcpu);
        Ok(())
    }

    /// Writes what stands in the vCPU's `vcpu_info` now to its new place; at first, that events are masked.
    fn copy_info(&self, vcpu: &Vcpu<M>, frame: MachineFrame, offset: usize) {
        use core::sync::atomic::Ordering::Relaxed;
        let first = if M::SHARED_INFO.has_upcall_mask { upcall::MASK_ONE } else { 0 };
        for index in 0..M::SHARED_INFO.vcpu_info_bytes / 8 {
            let fresh = if index == 0 { first } else { 0 };
            let old = match vcpu.info_place() {
                None => fresh,
                Some(_) => self.hypervisor.info_word(vcpu, index).map_or(0, |word| word.load(Relaxed)),
            };
            let word = self.hypervisor.machine.shared_word(frame, (offset / 8).saturating_add(index));
            // Relaxed: the place becomes known afterwards, with its own ordering.
            if let Some(word) = word {
                word.store(old, Relaxed);
            }
        }
    }
}

/// Makes `wanted` the root that a vCPU which doesn't run holds, in place of `held`.
fn hold_root<M: Machine>(
    space: &mut crate::paging::TableSpace<'_, M>,
    held: Option<MachineFrame>,
    wanted: Option<MachineFrame>,
    replace: impl FnOnce(Option<MachineFrame>) -> Option<MachineFrame>,
) -> Result<(), Stop> {
    if held == wanted {
        return Ok(());
    }
    match wanted {
        Some(root) => space.hold(root, M::Format::LEVELS)?,
        None => drop(space.settle(None)?),
    }
    if let Some(old) = replace(wanted) {
        space.let_go(old, M::Format::LEVELS);
    }
    Ok(())
}
