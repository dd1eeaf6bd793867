//! `grant_table_op`: grants (`grant_table.h`; the model is in [`crate::grant`]).
//!
//! Most operations come in arrays. Each has a status of its own, written into its structure; the hypercall itself fails only
//! for what isn't an operation at all, or can't be read or written. Mapping is in `grant_map`, copying in `grant_copy`.

use penumbra_abi::errno::Errno;
use penumbra_abi::grant_table::{self as abi, GrantStatus, MapGrantRef, UnmapAndReplace, UnmapGrantRef};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Arguments, Call, Failure, Outcome, values};
use crate::address::{DomainId, MachineFrame};
use crate::domain::{Domain, Life};
use crate::grant::table::Place;
use crate::grant::{GrantTable, MAX_FRAMES, NotDone};
use crate::machine::Machine;
use crate::paging::Budget;

/// What it costs of the budget to tell the guest one frame of its table.
const TOLD_COST: u32 = 4;

impl<'a, M: Machine> Call<'a, M> {
    /// Arguments: the operation; guest address of an array of its structures; how many.
    #[inline(never)]
    pub(super) fn grant_table_op(&self, arguments: &Arguments) -> Outcome {
        let [operation, place, count, ..] = values(arguments);
        let (operation, count) = (operation as u32, count as u32);
        if count > i32::MAX as u32 || operation & !abi::GNTTABOP_COMMAND_MASK != 0 {
            return Err(Errno::EINVAL.into());
        }
        match operation {
            abi::GNTTABOP_MAP_GRANT_REF => self.each_grant(arguments, |map: &mut MapGrantRef| {
                let result = self.map_grant(map);
                settle(&mut map.status, result)
            }),
            abi::GNTTABOP_UNMAP_GRANT_REF => self.unmap_grants::<UnmapGrantRef>(arguments),
            abi::GNTTABOP_UNMAP_AND_REPLACE => self.unmap_grants::<UnmapAndReplace>(arguments),
            abi::GNTTABOP_COPY => self.each_grant(arguments, |copy: &mut abi::GrantCopy| {
                let result = self.copy_grant(copy).map_err(NotDone::from);
                settle(&mut copy.status, result)
            }),
            abi::GNTTABOP_SWAP_GRANT_REF => self.each_grant(arguments, |swap: &mut abi::SwapGrantRef| {
                let result =
                    self.domain.grants.table.lock().swap(&self.hypervisor.machine, swap.ref_a, swap.ref_b);
                settle(&mut swap.status, result.map_err(NotDone::from))
            }),
            abi::GNTTABOP_SETUP_TABLE => self.one_grant(place, count, Self::setup_grant_table),
            abi::GNTTABOP_QUERY_SIZE => self.one_grant(place, count, Self::query_grant_size),
            abi::GNTTABOP_GET_STATUS_FRAMES => self.one_grant(place, count, Self::grant_status_frames),
            abi::GNTTABOP_SET_VERSION => self.set_grant_version(place),
            abi::GNTTABOP_GET_VERSION => self.get_grant_version(place),
            // As Xen, started with gnttab=transfer=0.
            abi::GNTTABOP_TRANSFER => Err(Errno::EOPNOTSUPP.into()),
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    /// Does `one` for each structure of an array, and writes each back with its answer.
    fn each_grant<T: FromBytes + IntoBytes + Immutable>(
        &self,
        arguments: &Arguments,
        mut one: impl FnMut(&mut T) -> Result<(), Preempted>,
    ) -> Outcome {
        let [operation, mut next, count, ..] = values(arguments);
        let mut left = count & 0xffff_ffff;
        while left > 0 {
            let again = Failure::Again([operation, next, left, 0, 0, 0]);
            if self.budget.is_spent() {
                return Err(again);
            }
            self.budget.charge(Budget::GRANT);
            let mut structure: T = self.read(next)?;
            one(&mut structure).map_err(|Preempted| again)?;
            self.write(next, &structure)?;
            // An address that wraps around is refused when it is read.
            next = next.wrapping_add(size_of::<T>() as u64);
            left = left.saturating_sub(1);
        }
        Ok(0)
    }

    /// For an operation that has a single structure.
    fn one_grant<T: FromBytes + IntoBytes + Immutable>(
        &self,
        place: u64,
        count: u32,
        one: impl FnOnce(&Self, &mut T),
    ) -> Outcome {
        if count != 1 {
            return Err(Errno::EINVAL.into());
        }
        let mut structure: T = self.read(place)?;
        one(self, &mut structure);
        self.write(place, &structure)?;
        Ok(0)
    }

    /// The domain that lends, if it is alive.
    pub(super) fn lender(&self, id: u16) -> Result<&'a Domain<M>, GrantStatus> {
        let domain = self.hypervisor.domain(DomainId::new(id));
        domain.filter(|domain| domain.life() == Life::Alive).ok_or(GrantStatus::BAD_DOMAIN)
    }

    /// The domain whose table the caller asks for: its own, or for the control domain any.
    fn table_owner(&self, id: u16) -> Result<&'a Domain<M>, GrantStatus> {
        if DomainId::new(id) == DomainId::SELF {
            return Ok(self.domain);
        }
        let domain = self.lender(id)?;
        let allowed = domain.id() == self.domain.id() || self.domain.is_control();
        if allowed { Ok(domain) } else { Err(GrantStatus::PERMISSION_DENIED) }
    }

    /// What is needed to work on a domain's table.
    pub(super) fn grant_place(&self, lender: DomainId) -> Place<'a, M> {
        Place { machine: &self.hypervisor.machine, frames: &self.hypervisor.frames, lender }
    }

    fn setup_grant_table(&self, setup: &mut abi::SetupTable) {
        setup.status = match self.grant_frames(setup.dom, setup.nr_frames) {
            Ok(frames) => self.tell_frames(setup.frame_list, frames.into_iter().flatten()),
            Err(status) => status,
        };
    }

    /// The first `count` frames of a domain's table, which grows to that number if it has fewer.
    fn grant_frames(
        &self,
        owner: u16,
        count: u32,
    ) -> Result<[Option<MachineFrame>; MAX_FRAMES], GrantStatus> {
        let owner = self.table_owner(owner)?;
        let count = count as usize;
        if count > MAX_FRAMES {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let mut table = owner.grants.table.lock();
        // A domain that is being torn down has given its table back, or will when it gets this lock.
        if owner.life() != Life::Alive || !self.grow(owner, &mut table, count) {
            return Err(GrantStatus::GENERAL_ERROR);
        }
        let mut frames = [None; MAX_FRAMES];
        for (slot, frame) in frames.iter_mut().zip(table.shared().take(count)) {
            *slot = Some(frame);
        }
        Ok(frames)
    }

    /// Gives a table so many frames, and one at least; `false` when there is no memory. What it has got by then, it keeps.
    fn grow(&self, owner: &Domain<M>, table: &mut GrantTable, count: usize) -> bool {
        let hypervisor = self.hypervisor;
        let mut have = table.shared().count();
        while have < count.max(1) {
            self.budget.charge(Budget::FRAME);
            let Some(frame) = owner.hold_new_frame(&hypervisor.machine, &hypervisor.frames) else {
                return false;
            };
            // There is room: `count` is at most what the table can have.
            table.add_frame(frame);
            have = have.saturating_add(1);
            owner.grants.set_frames(have);
        }
        true
    }

    fn tell_frames(&self, list: u64, frames: impl Iterator<Item = MachineFrame>) -> GrantStatus {
        for (index, frame) in (0u64..).zip(frames) {
            self.budget.charge(TOLD_COST);
            let place = list.wrapping_add(index.wrapping_mul(8));
            if self.write(place, &frame.number()).is_err() {
                return GrantStatus::BAD_VIRT_ADDR;
            }
        }
        GrantStatus::OKAY
    }

    fn query_grant_size(&self, query: &mut abi::QuerySize) {
        query.status = match self.table_owner(query.dom) {
            Ok(owner) => {
                query.nr_frames = owner.grants.table.lock().size() as u32;
                query.max_nr_frames = MAX_FRAMES as u32;
                GrantStatus::OKAY
            }
            Err(status) => status,
        };
    }

    /// Entries of version 1 have no status frames.
    fn grant_status_frames(&self, request: &mut abi::GetStatusFrames) {
        request.status = match self.table_owner(request.dom) {
            Ok(_) if request.nr_frames == 0 => GrantStatus::OKAY,
            Ok(_) => GrantStatus::GENERAL_ERROR,
            Err(status) => status,
        };
    }

    /// There is version 1 only, as in Xen when it is started with `gnttab=max-ver:1`.
    fn set_grant_version(&self, place: u64) -> Outcome {
        let wanted: u32 = self.read(place)?;
        self.write(place, &1u32)?;
        match wanted {
            1 => Ok(0),
            2 => Err(Errno::ENOSYS.into()),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    fn get_grant_version(&self, place: u64) -> Outcome {
        let mut request: abi::GetVersion = self.read(place)?;
        match self.table_owner(request.dom) {
            Ok(_) => request.version = 1,
            Err(GrantStatus::BAD_DOMAIN) => return Err(Errno::ESRCH.into()),
            Err(_) => return Err(Errno::EPERM.into()),
        }
        self.write(place, &request)?;
        Ok(0)
    }
}

/// The operation has not been done yet.
struct Preempted;

/// Puts what an operation came to into its structure.
fn settle(place: &mut GrantStatus, result: Result<(), NotDone>) -> Result<(), Preempted> {
    *place = match result {
        Ok(()) => GrantStatus::OKAY,
        Err(NotDone::Refused(status)) => status,
        Err(NotDone::Preempted) => return Err(Preempted),
    };
    Ok(())
}
