//! Copying bytes between pages, each the caller's own or granted to it.
//!
//! Both pages are held, as if they were mapped, for as long as it takes: the lender sees the flags in its entry.

use penumbra_abi::grant_table::{self as abi, CopyEnd, GrantCopy, GrantStatus};

use super::Call;
use crate::address::{DomainId, MachineFrame, PAGE_SIZE};
use crate::domain::{Domain, Life};
use crate::grant::table::hold;
use crate::machine::Machine;
use crate::paging::Budget;

/// Bytes copied at a time.
const PIECE: usize = 256;

/// A page that is held.
struct Claimed<'a, M: Machine> {
    domain: &'a Domain<M>,
    frame: MachineFrame,
    /// The grant by which it is held; `None` for one's own.
    reference: Option<u32>,
    writable: bool,
}

impl<'a, M: Machine> Call<'a, M> {
    /// Does one copy.
    ///
    /// # Errors
    /// As Xen answers, in Xen's order: the domains, the source, the destination, the bounds.
    pub(super) fn copy_grant(&self, copy: &GrantCopy) -> Result<(), GrantStatus> {
        if copy.len == 0 {
            return Ok(());
        }
        self.charge_copy(usize::from(copy.len));
        let from_grant = copy.flags & abi::GNTCOPY_SOURCE_GREF != 0;
        let to_grant = copy.flags & abi::GNTCOPY_DEST_GREF != 0;
        let (from, to) = (self.copied(&copy.source, from_grant)?, self.copied(&copy.dest, to_grant)?);
        let source = self.claim_page(from, &copy.source, from_grant, false)?;
        let result = self.claim_page(to, &copy.dest, to_grant, true).and_then(|dest| {
            let result = self.copy_bytes(copy, source.frame, dest.frame);
            self.release_page(&dest);
            result
        });
        self.release_page(&source);
        result
    }

    /// Whose page is meant. Frames by their number can only be one's own.
    fn copied(&self, end: &CopyEnd, by_grant: bool) -> Result<&'a Domain<M>, GrantStatus> {
        let is_self = DomainId::new(end.domid) == DomainId::SELF;
        match (is_self, by_grant) {
            (true, _) => Ok(self.domain),
            (false, true) => self.lender(end.domid),
            (false, false) => Err(GrantStatus::PERMISSION_DENIED),
        }
    }

    fn claim_page(
        &self,
        domain: &'a Domain<M>,
        end: &CopyEnd,
        by_grant: bool,
        writable: bool,
    ) -> Result<Claimed<'a, M>, GrantStatus> {
        let place = self.grant_place(domain.id());
        if !by_grant {
            let frame = MachineFrame::new(end.reference_or_frame).ok_or(GrantStatus::BAD_PAGE)?;
            hold(&place, frame, writable)?;
            return Ok(Claimed { domain, frame, reference: None, writable });
        }
        let reference = end.reference_or_frame as u32;
        let mut table = domain.grants.table.lock();
        if domain.life() != Life::Alive {
            return Err(GrantStatus::BAD_DOMAIN);
        }
        let frame = table.pin(&place, reference, self.domain.id(), writable)?;
        Ok(Claimed { domain, frame, reference: Some(reference), writable })
    }

    fn release_page(&self, page: &Claimed<'_, M>) {
        let place = self.grant_place(page.domain.id());
        let freed = match (page.reference, page.writable) {
            (Some(reference), writable) => page.domain.grants.table.lock().unpin(&place, reference, writable),
            (None, true) => place.frames.put_use(page.frame, place.machine),
            (None, false) => place.frames.put(page.frame, place.machine),
        };
        if freed {
            self.budget.charge(Budget::FRAME);
        }
    }

    fn copy_bytes(&self, copy: &GrantCopy, from: MachineFrame, to: MachineFrame) -> Result<(), GrantStatus> {
        let (mut source, mut dest) = (usize::from(copy.source.offset), usize::from(copy.dest.offset));
        let mut left = usize::from(copy.len);
        let leaves = |offset: usize| offset.saturating_add(left) > PAGE_SIZE;
        if leaves(source) || leaves(dest) {
            return Err(GrantStatus::BAD_COPY_ARG);
        }
        let machine = &self.hypervisor.machine;
        let mut bytes = [0; PIECE];
        while let Some(piece) = bytes.get_mut(..left.min(PIECE)).filter(|piece| !piece.is_empty()) {
            machine.read_frame(from, source, piece);
            machine.write_frame(to, dest, piece);
            (source, dest) = (source.saturating_add(piece.len()), dest.saturating_add(piece.len()));
            left = left.saturating_sub(piece.len());
        }
        Ok(())
    }
}
