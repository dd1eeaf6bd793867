//! Grants: what a domain lends, and what another does with it.
//!
//! Whether an operation is refused is the core's to say. A mapping that is made must be one that the lender's entry allows, or one of a
//! grant that the same borrower has in use already; the counts, and what could be cached, are judged as ever.

use penumbra_abi::errno::Errno;
use penumbra_abi::grant_table::{
    self as abi, CopyEnd, GTF_PERMIT_ACCESS, GTF_READONLY, GTF_TYPE_MASK, GrantCopy, GrantEntry, GrantStatus,
    MapGrantRef, SetupTable, UnmapAndReplace, UnmapGrantRef,
};
use penumbra_abi::hypercall as call;
use zerocopy::{FromBytes, IntoBytes};

use super::{Check, LIST, Session};
use crate::format::Hardware;
use crate::hardware::content::{number, slot};
use crate::operation::{Grant, Operation};
use crate::spec::{Borrowed, DOMAINS};

impl<F: Hardware> Session<F> {
    /// What each domain has borrowed, and the frames of grant tables.
    pub(super) fn follow_the_grants(&mut self) {
        self.known.borrowed.clear();
        self.known.tables.clear();
        for number in 0..DOMAINS {
            let Some(core) = self.domain(number) else { continue };
            let maps = core.grants.maps.lock();
            let lent = (0..).filter_map(|handle| Some((handle, maps.get(handle)?)));
            for (handle, lent) in lent.take(maps.iter().count()) {
                let Some(frame) = slot(lent.frame.number()) else { continue };
                let lender = usize::from(lent.lender.number());
                let (reference, writable, host) = (lent.reference, lent.writable, lent.host);
                self.known.kept.push((frame, writable));
                let borrowed =
                    Borrowed { borrower: number, handle, lender, reference, frame, writable, host };
                self.known.borrowed.push(borrowed);
            }
            drop(maps);
            for frame in core.grants.table.lock().shared().filter_map(|frame| slot(frame.number())) {
                self.known.kept.push((frame, true));
                self.known.tables.push((number, frame));
            }
        }
    }

    pub(super) fn grant(&mut self, domain: usize, operation: &Operation, grant: &Grant) -> Check {
        if let Grant::Offer { reference, word } = grant {
            // As by a mapping of its table that a guest has.
            if let Some((_, table)) = self.known.tables.iter().find(|table| table.0 == domain) {
                self.machine().write_word(*table, *reference, *word);
            }
            return Ok(());
        }
        let before = self.known.borrowed.clone();
        let offers = match grant {
            Grant::Map { lender, reference, .. } => self.offer(usize::from(*lender), *reference as usize),
            _ => None,
        };
        let answer = self.insist(domain, operation)?;
        self.learn();
        if let Err(errno) = answer
            && !matches!(errno, Errno::EINVAL | Errno::EFAULT)
        {
            return Err(format!("{grant:x?}: {}", errno.name()));
        }
        match grant {
            Grant::Map { .. } => self.check_mapped(domain, grant, &before, offers),
            _ => Ok(()),
        }
    }

    /// An entry of a domain's grant table.
    fn offer(&self, lender: usize, reference: usize) -> Option<GrantEntry> {
        let (_, table) = self.known.tables.iter().find(|table| table.0 == lender)?;
        Some(GrantEntry::from_word(self.machine().content.read(*table, reference)))
    }

    /// What was mapped was offered.
    fn check_mapped(
        &mut self,
        domain: usize,
        grant: &Grant,
        before: &[Borrowed],
        offer: Option<GrantEntry>,
    ) -> Check {
        let bytes = self.machine().bytes(LIST, size_of::<MapGrantRef>());
        let map = MapGrantRef::read_from_bytes(&bytes).map_err(|_| "the answer's size")?;
        if map.status != GrantStatus::OKAY {
            return Ok(());
        }
        self.tally.granted += 1;
        let mine = |one: &&Borrowed| one.borrower == domain && one.handle == map.handle;
        let Some(made) = self.known.borrowed.iter().find(mine) else {
            return Err(format!("{grant:x?} was mapped, and isn't"));
        };
        let same = |one: &&Borrowed| (one.lender, one.reference) == (made.lender, made.reference);
        let allowed = |entry: &GrantEntry| {
            entry.flags & GTF_TYPE_MASK == GTF_PERMIT_ACCESS
                && usize::from(entry.domid) == domain
                && u64::from(entry.frame) == number(made.frame)
        };
        let may_write = |entry: &GrantEntry| entry.flags & GTF_READONLY == 0;
        let fine = match before.iter().find(same) {
            // In use already: it leads to what was pinned then, whatever the entry says by now.
            Some(first) => first.borrower == domain && first.frame == made.frame,
            None => offer.as_ref().is_some_and(allowed),
        };
        let writers = before.iter().filter(same).any(|one| one.writable);
        let rights = !made.writable || writers || offer.as_ref().is_some_and(may_write);
        match fine && rights && usize::from(self.known.owner[made.frame]) == made.lender {
            true => Ok(()),
            false => Err(format!("{made:x?} was mapped; the entry was {offer:x?}")),
        }
    }

    /// An operation on grants as a hypercall.
    pub(super) fn encode_grant(&self, grant: &Grant) -> (u64, [u64; 6]) {
        let put = |bytes: &[u8]| self.put(LIST, bytes);
        let (operation, at) = match *grant {
            Grant::Setup => {
                let list = self.put(LIST + 512, &[0; 8]);
                let setup =
                    SetupTable { dom: 0x7ff0, nr_frames: 1, frame_list: list, ..SetupTable::default() };
                (abi::GNTTABOP_SETUP_TABLE, put(setup.as_bytes()))
            }
            Grant::Map { lender, reference, flags, address } => {
                let map = MapGrantRef {
                    host_addr: address,
                    flags,
                    reference,
                    dom: lender,
                    ..MapGrantRef::default()
                };
                (abi::GNTTABOP_MAP_GRANT_REF, put(map.as_bytes()))
            }
            Grant::Unmap { handle, address } => {
                let unmap = UnmapGrantRef { host_addr: address, handle, ..UnmapGrantRef::default() };
                (abi::GNTTABOP_UNMAP_GRANT_REF, put(unmap.as_bytes()))
            }
            Grant::Replace { handle, address, new } => {
                let unmap = UnmapAndReplace {
                    host_addr: address,
                    new_addr: new,
                    handle,
                    ..UnmapAndReplace::default()
                };
                (abi::GNTTABOP_UNMAP_AND_REPLACE, put(unmap.as_bytes()))
            }
            Grant::Copy { lender, reference, frame, back } => {
                let theirs =
                    CopyEnd { reference_or_frame: u64::from(reference), domid: lender, ..CopyEnd::default() };
                let mine = CopyEnd { reference_or_frame: frame, domid: 0x7ff0, ..CopyEnd::default() };
                let copy = match back {
                    false => GrantCopy {
                        source: theirs,
                        dest: mine,
                        flags: abi::GNTCOPY_SOURCE_GREF,
                        ..GrantCopy::default()
                    },
                    true => GrantCopy {
                        source: mine,
                        dest: theirs,
                        flags: abi::GNTCOPY_DEST_GREF,
                        ..GrantCopy::default()
                    },
                };
                (abi::GNTTABOP_COPY, put(GrantCopy { len: 256, ..copy }.as_bytes()))
            }
            Grant::Offer { .. } => unreachable!("no hypercall"),
        };
        (call::GRANT_TABLE_OP, [u64::from(operation), at, 1, 0, 0, 0])
    }
}
