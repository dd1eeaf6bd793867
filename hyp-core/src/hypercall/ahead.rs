//! What hypercalls that carry an array of operations have in common: the array is read a few operations at a time, and what an
//! operation causes elsewhere is charged to the hypercall.

use penumbra_abi::errno::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::Call;
use crate::machine::Machine;

/// Operations that are read from the guest at once: what it changes of them meanwhile, it changes too late.
pub(super) const AHEAD: usize = 8;

impl<M: Machine> Call<'_, M> {
    /// Reads operations from `from` on, of which `left` are to come: as many as `into` holds, or only one, if not all of them can be
    /// read. Returns those that were read.
    ///
    /// # Errors
    /// EFAULT: not even the first can be read.
    #[inline(always)]
    pub(super) fn read_ahead<'into, T: FromBytes + IntoBytes>(
        &self,
        from: u64,
        left: u64,
        into: &'into mut [T],
    ) -> Result<&'into mut [T], Errno> {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(into.len());
        let read = match self.read_operations(from, into.get_mut(..wanted)) {
            Ok(()) => wanted,
            Err(_) => self.read_operations(from, into.get_mut(..1)).map(|()| 1)?,
        };
        Ok(into.get_mut(..read).unwrap_or_default())
    }

    fn read_operations<T: FromBytes + IntoBytes>(
        &self,
        from: u64,
        into: Option<&mut [T]>,
    ) -> Result<(), Errno> {
        self.read_bytes(from, into.ok_or(Errno::EFAULT)?.as_mut_bytes())
    }

    /// Frames that have changed their type since this was last called have cost a flush each.
    #[inline(always)]
    pub(super) fn charge_flushes(&self) {
        self.budget.charge_flushes(self.hypervisor.frames.type_flushes());
    }
}
