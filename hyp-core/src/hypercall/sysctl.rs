//! `sysctl`: the control domain asks about the whole machine (`sysctl.h`).

use penumbra_abi::domctl::DomainInfo;
use penumbra_abi::errno::Errno;
use penumbra_abi::sysctl::{self, GetDomainInfoList, ReadConsole, Sysctl};

use super::{Arguments, Call, Outcome, values};
use crate::machine::Machine;
use crate::paging::Budget;

/// Bytes of the log copied at a time.
const PIECE: usize = 256;
/// What each piece costs of the budget: it is taken out of the log byte by byte.
const PIECE_COST: u32 = 64;

impl<M: Machine> Call<'_, M> {
    /// Argument: guest address of a [`Sysctl`].
    #[inline(never)]
    pub(super) fn sysctl(&self, arguments: &Arguments) -> Outcome {
        self.require_control()?;
        let [place, ..] = values(arguments);
        let mut operation: Sysctl = self.read(place)?;
        if operation.interface_version != sysctl::INTERFACE_VERSION {
            return Err(Errno::EACCES.into());
        }
        match operation.command {
            sysctl::READCONSOLE => {
                let request = operation.read_body().ok_or(Errno::EINVAL)?;
                operation.write_body(&self.read_log(request)?);
            }
            sysctl::GETDOMAININFOLIST => {
                let request = operation.read_body().ok_or(Errno::EINVAL)?;
                operation.write_body(&self.list_domains(request)?);
            }
            _ => return Err(Errno::ENOSYS.into()),
        }
        self.write(place, &operation)?;
        Ok(0)
    }

    /// Copies the hypervisor's log to the guest.
    fn read_log(&self, mut request: ReadConsole) -> Result<ReadConsole, Errno> {
        let log = &self.hypervisor.console.log;
        let start = log.lock().start();
        // The index has 32 bits and the log's numbers 64: it is meant as near the start as can be. One that is older than the
        // start, or nonsense, comes out far ahead of it.
        let ahead = u64::from(request.index.wrapping_sub(start as u32));
        let incremental = request.incremental != 0 && ahead <= u64::from(u32::MAX / 2);
        let mut at = if incremental { start.saturating_add(ahead) } else { start };
        let mut written = 0u32;
        let mut bytes = [0; PIECE];
        while written < request.count {
            self.budget.charge(PIECE_COST);
            let room = (request.count.saturating_sub(written) as usize).min(PIECE);
            let piece = bytes.get_mut(..room).ok_or(Errno::EINVAL)?;
            // The lock isn't held while the guest's memory is written: that may log something.
            let (count, next) = log.lock().read(at, piece);
            if count == 0 {
                break;
            }
            let place = request.buffer.checked_add(u64::from(written)).ok_or(Errno::EFAULT)?;
            self.write_bytes(place, piece.get(..count).ok_or(Errno::EINVAL)?)?;
            written = written.saturating_add(count as u32);
            at = next;
        }
        if request.clear != 0 {
            log.lock().clear();
        }
        request.index = at as u32;
        request.count = written;
        Ok(request)
    }

    /// Describes domains from number `first_domain` on.
    fn list_domains(&self, mut request: GetDomainInfoList) -> Result<GetDomainInfoList, Errno> {
        let first = usize::from(request.first_domain);
        let present = self.hypervisor.domains.iter().skip(first).filter(|domain| domain.is_present());
        request.num_domains = 0;
        let mut place = request.buffer;
        for domain in present.take(request.max_domains as usize) {
            self.budget.charge(Budget::OPERATION);
            self.write(place, &self.hypervisor.describe_domain(domain))?;
            place = place.checked_add(size_of::<DomainInfo>() as u64).ok_or(Errno::EFAULT)?;
            request.num_domains = request.num_domains.saturating_add(1);
        }
        Ok(request)
    }
}
