//! Extents of more than one frame: more memory, less, and some for other.
//!
//! How many extents are done is the core's to say. What a domain is given must have been nobody's, and be blank, in caches and in memory; an
//! exchange leaves it as many frames as it had.

use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as call;
use penumbra_abi::memory::{self, MemoryExchange, MemoryReservation};
use zerocopy::IntoBytes;

use super::{Check, LIST, RESERVATION, Session};
use crate::format::Hardware;
use crate::hardware::content::slot;
use crate::operation::{Extents, Operation};
use crate::spec::NOBODY;

/// Where the list of an exchange's new extents stands.
const OUTPUT: usize = LIST + 256;
/// Where an exchange stands.
const EXCHANGE: usize = LIST + 512;

impl<F: Hardware> Session<F> {
    pub(super) fn extents(&mut self, domain: usize, operation: &Operation, extents: &Extents) -> Check {
        let owner = self.known.owner;
        let pages = self.known.pages(domain);
        let lenient = self.is_unforeseeable(domain);
        let answer = self.insist(domain, operation)?;
        self.learn();
        let exchange = extents.command == memory::XENMEM_EXCHANGE;
        let given = match (answer, extents.command) {
            (Ok(count), memory::XENMEM_INCREASE_RESERVATION | memory::XENMEM_POPULATE_PHYSMAP) => {
                count as usize
            }
            (Ok(_), memory::XENMEM_EXCHANGE) => extents.output.len(),
            (Ok(_), _) => 0,
            (Err(Errno::EPERM | Errno::EINVAL | Errno::ENOMEM | Errno::EBUSY | Errno::EFAULT), _)
                if exchange =>
            {
                0
            }
            (Err(errno), _) => return Err(format!("{extents:x?}: {}", errno.name())),
        };
        let list = if exchange { OUTPUT } else { LIST };
        let order = if exchange { extents.output_order } else { extents.order };
        for place in 0..given {
            let first = self.machine().word(list + place * 8);
            for number in first..first + (1 << order) {
                let at = slot(number).ok_or_else(|| format!("mfn {number:#x} was given, which isn't RAM"))?;
                let fresh = owner[at] == NOBODY || exchange || lenient;
                if !fresh
                    || usize::from(self.known.owner[at]) != domain
                    || !self.machine().content.is_blank(at)
                {
                    return Err(format!(
                        "mfn {number:#x} was given: {owner:?}, or with something in it",
                        owner = owner[at]
                    ));
                }
            }
        }
        self.refresh()?;
        if exchange && !lenient && !self.is_unfinished() && self.known.pages(domain) != pages {
            return Err(format!("{extents:x?}: {pages} frames became {}", self.known.pages(domain)));
        }
        Ok(())
    }

    /// An operation on extents as a hypercall.
    pub(super) fn encode_extents(&self, extents: &Extents) -> (u64, [u64; 6]) {
        let reservation = |place: usize, list: &[u64], order: u32| MemoryReservation {
            extent_start: self.machine().put(place, list.as_bytes()),
            nr_extents: list.len() as u64,
            extent_order: order,
            domid: 0x7ff0,
            ..MemoryReservation::default()
        };
        let input = reservation(LIST, &extents.list, extents.order);
        let at = match extents.command {
            memory::XENMEM_EXCHANGE => {
                let output = reservation(OUTPUT, &extents.output, extents.output_order);
                let exchange = MemoryExchange { input, output, nr_exchanged: 0 };
                self.machine().put(EXCHANGE, exchange.as_bytes())
            }
            _ => self.machine().put(RESERVATION, input.as_bytes()),
        };
        (call::MEMORY_OP, [extents.command, at, 0, 0, 0, 0])
    }
}
