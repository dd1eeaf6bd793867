//! `domctl`: the control domain deals with other domains (`domctl.h`).

use penumbra_abi::domctl::{self, DomainInfo, Domctl, GetMemoryList};
use penumbra_abi::errno::Errno;
use zerocopy::IntoBytes;

use super::{Arguments, Call, Outcome};
use crate::address::{DomainId, MachineFrame};
use crate::domain::vcpu::RunState;
use crate::domain::{Domain, Life};
use crate::machine::Machine;

/// Frame numbers written to the guest at a time.
const PIECE: usize = 64;

impl<M: Machine> Call<'_, M> {
    /// Argument: guest address of a [`Domctl`].
    pub(super) fn domctl(&self, arguments: Arguments) -> Outcome {
        self.require_control()?;
        let [place, ..] = arguments;
        let mut operation: Domctl = self.read(place)?;
        if operation.interface_version != domctl::INTERFACE_VERSION {
            return Err(Errno::EACCES.into());
        }
        let id = DomainId::new(operation.domain);
        let domain = if id == DomainId::SELF { Some(self.domain) } else { self.hypervisor.domain(id) };
        let domain = domain.ok_or(Errno::ESRCH)?;
        match operation.command {
            domctl::GETMEMLIST => {
                let mut list: GetMemoryList = operation.read_body().ok_or(Errno::EINVAL)?;
                list.num_pfns = self.memory_list(domain, &list)?;
                operation.write_body(&list);
            }
            domctl::GETDOMAININFO => operation.write_body(&self.hypervisor.describe_domain(domain)),
            domctl::DESTROYDOMAIN => return self.destroy(domain),
            _ => return Err(Errno::ENOSYS.into()),
        }
        self.write(place, &operation)?;
        Ok(0)
    }

    fn destroy(&self, domain: &Domain<M>) -> Outcome {
        if domain.is_control() {
            return Err(Errno::EINVAL.into());
        }
        log::info!("{:?} is destroyed by the control domain", domain.id());
        self.hypervisor.end_domain(domain);
        Ok(0)
    }

    /// Writes the machine frames that the domain has a claim to, in ascending order; returns how many. Looks at every frame of the
    /// machine in one go: its length is the machine's, not a guest's choice.
    fn memory_list(&self, domain: &Domain<M>, list: &GetMemoryList) -> Result<u64, Errno> {
        let frames = &self.hypervisor.frames;
        let (first, end) = frames.extent();
        let has_claim = |frame: &MachineFrame| {
            frames.hold(*frame).is_some_and(|hold| hold.allocated && hold.owner == Some(domain.id()))
        };
        let skip = usize::try_from(list.start_pfn).map_err(|_| Errno::EINVAL)?;
        let limit = usize::try_from(list.max_pfns).map_err(|_| Errno::EINVAL)?;
        let mut owned = (first..end).filter_map(MachineFrame::new).filter(has_claim).skip(skip).take(limit);
        let mut written = 0u64;
        let mut piece = [0u64; PIECE];
        loop {
            let count = piece.iter_mut().zip(&mut owned).map(|(slot, frame)| *slot = frame.number()).count();
            let place = written.checked_mul(8).and_then(|offset| list.buffer.checked_add(offset));
            self.write_bytes(place.ok_or(Errno::EFAULT)?, piece.get(..count).unwrap_or(&[]).as_bytes())?;
            written = written.saturating_add(count as u64);
            if count < PIECE {
                return Ok(written);
            }
        }
    }
}

impl<M: Machine> crate::hypervisor::Hypervisor<M> {
    /// A domain as the control domain sees it.
    pub(super) fn describe_domain(&self, domain: &Domain<M>) -> DomainInfo {
        let blocked = domain.online_vcpus().all(|vcpu| vcpu.state() == RunState::Blocked);
        let flags = match domain.life() {
            Life::Dying | Life::Vacant => domctl::DOMINF_DYING,
            Life::Building => domctl::DOMINF_PAUSED,
            Life::Alive if blocked => domctl::DOMINF_BLOCKED,
            Life::Alive => domctl::DOMINF_RUNNING,
        };
        let online = domain.online_vcpus().count() as u32;
        DomainInfo {
            domain: domain.id().number(),
            flags,
            tot_pages: domain.pages(&self.frames),
            max_pages: domain.max_pages(),
            shared_info_frame: domain.shared_info().map_or(0, MachineFrame::number),
            cpu_time: domain.cpu_time(),
            nr_online_vcpus: online,
            max_vcpu_id: online.saturating_sub(1),
            ..DomainInfo::default()
        }
    }
}
