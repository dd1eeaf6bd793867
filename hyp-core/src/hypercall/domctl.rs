//! `domctl`: the control domain deals with other domains (`domctl.h`).

use penumbra_abi::domctl::{self, DomainInfo, Domctl, GetMemoryList};
use penumbra_abi::errno::Errno;
use zerocopy::IntoBytes;

use super::batch::NotDone;
use super::{Arguments, Call, Failure, Outcome, values};
use crate::address::{DomainId, MachineFrame};
use crate::domain::vcpu::RunState;
use crate::domain::{Domain, Life};
use crate::machine::Machine;

/// Frame numbers written to the guest at a time.
const PIECE: usize = 64;
/// Frame records that cost as much as one entry of a table.
const RECORDS_AN_ENTRY: u64 = 4;
/// Marks the address of an operation that goes on after a preemption, by a bit that makes it no address on any machine: bits 62 and 63 of
/// an address are the same. The other arguments then say how far it is. (A guest that does this itself deceives only itself.)
const RESUMED: u64 = 1 << 62;

/// How far a list of frames is.
struct Progress {
    /// The next frame's number.
    next: u64,
    /// The domain's frames that were passed over at the start.
    passed: u64,
    /// Frame numbers written.
    written: u64,
}

/// Frame numbers to be written.
struct Piece {
    frames: [u64; PIECE],
    count: usize,
}

impl Piece {
    fn push(&mut self, number: u64) {
        if let Some(slot) = self.frames.get_mut(self.count) {
            *slot = number;
            self.count = self.count.saturating_add(1);
        }
    }

    fn is_full(&self) -> bool {
        self.count >= PIECE
    }
}

impl<M: Machine> Call<'_, M> {
    /// Argument: guest address of a [`Domctl`].
    #[inline(never)]
    pub(super) fn domctl(&self, arguments: &Arguments) -> Outcome {
        self.require_control()?;
        let (place, mut progress) = self.progress(arguments);
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
                match self.memory_list(domain, &list, &mut progress) {
                    Ok(()) => list.num_pfns = progress.written,
                    Err(NotDone::Errno(errno)) => return Err(errno.into()),
                    Err(NotDone::Preempted) => {
                        let Progress { next, passed, written } = progress;
                        return Err(Failure::Again([place ^ RESUMED, next, passed, written, 0, 0]));
                    }
                }
                operation.write_body(&list);
            }
            domctl::GETDOMAININFO => operation.write_body(&self.hypervisor.describe_domain(domain)),
            domctl::DESTROYDOMAIN => return self.destroy(domain),
            _ => return Err(Errno::ENOSYS.into()),
        }
        self.write(place, &operation)?;
        Ok(0)
    }

    /// Where the operation stands, and how far it is.
    fn progress(&self, arguments: &Arguments) -> (u64, Progress) {
        let [place, next, passed, written, ..] = values(arguments);
        if (place ^ (place << 1)) >> 63 != 0 {
            return (place ^ RESUMED, Progress { next, passed, written });
        }
        (place, Progress { next: self.hypervisor.frames.extent().0, passed: 0, written: 0 })
    }

    fn destroy(&self, domain: &Domain<M>) -> Outcome {
        if domain.is_control() {
            return Err(Errno::EINVAL.into());
        }
        log::info!("{:?} is destroyed by the control domain", domain.id());
        self.hypervisor.end_domain(domain);
        Ok(0)
    }

    /// Writes the machine frames that the domain has a claim to, in ascending order, from number `progress` on.
    fn memory_list(
        &self,
        domain: &Domain<M>,
        list: &GetMemoryList,
        progress: &mut Progress,
    ) -> Result<(), NotDone> {
        let frames = &self.hypervisor.frames;
        let end = frames.extent().1;
        let mut piece = Piece { frames: [0; PIECE], count: 0 };
        while progress.next < end && progress.written.saturating_add(piece.count as u64) < list.max_pfns {
            let frame = MachineFrame::new(progress.next);
            let hold = frame.and_then(|frame| frames.hold(frame));
            if hold.is_some_and(|hold| hold.allocated && hold.owner == Some(domain.id())) {
                if progress.passed < list.start_pfn {
                    progress.passed = progress.passed.saturating_add(1);
                } else {
                    piece.push(progress.next);
                }
            }
            progress.next = progress.next.saturating_add(1);
            // A record is looked at in a fraction of the time that an entry takes.
            let look_up = progress.next.is_multiple_of(RECORDS_AN_ENTRY);
            self.budget.charge(u32::from(look_up));
            if piece.is_full() || self.budget.is_spent() {
                self.write_piece(list, &mut piece, progress)?;
            }
            if self.budget.is_spent() {
                return Err(NotDone::Preempted);
            }
        }
        self.write_piece(list, &mut piece, progress)
    }

    fn write_piece(
        &self,
        list: &GetMemoryList,
        piece: &mut Piece,
        progress: &mut Progress,
    ) -> Result<(), NotDone> {
        let place = progress.written.checked_mul(8).and_then(|offset| list.buffer.checked_add(offset));
        let frames = piece.frames.get(..piece.count).unwrap_or(&[]);
        self.write_bytes(place.ok_or(Errno::EFAULT)?, frames.as_bytes())?;
        self.budget.charge(piece.count as u32);
        progress.written = progress.written.saturating_add(piece.count as u64);
        piece.count = 0;
        Ok(())
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
