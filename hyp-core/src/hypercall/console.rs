//! `console_io`: bytes to and from the serial line (`xen.h`).

use penumbra_abi::console;
use penumbra_abi::errno::Errno;

use super::{Arguments, Call, Failure, Outcome, values};
use crate::console::guest::BYTE_COST;
use crate::machine::Machine;

/// Bytes copied at a time.
const PIECE: usize = 128;

impl<M: Machine> Call<'_, M> {
    /// Arguments: write or read; how many bytes; guest address of the buffer.
    #[inline(never)]
    pub(super) fn console_io(&self, arguments: &Arguments) -> Outcome {
        let [operation, count, buffer, ..] = values(arguments);
        // An int in Xen's interface: the upper half says nothing.
        let count = count & 0xffff_ffff;
        match operation {
            console::CONSOLEIO_WRITE => self.console_write(count, buffer),
            console::CONSOLEIO_READ => self.console_read(count, buffer),
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    fn console_write(&self, mut count: u64, mut buffer: u64) -> Outcome {
        let mut bytes = [0; PIECE];
        while count > 0 {
            if self.budget.is_spent() {
                return Err(Failure::Again([console::CONSOLEIO_WRITE, count, buffer, 0, 0, 0]));
            }
            let length = count.min(PIECE as u64);
            let piece = bytes.get_mut(..length as usize).ok_or(Errno::EINVAL)?;
            self.read_bytes(buffer, piece)?;
            self.hypervisor.domain_output(self.domain, piece);
            self.budget.charge(BYTE_COST.saturating_mul(length as u32));
            count = count.saturating_sub(length);
            buffer = buffer.wrapping_add(length);
        }
        Ok(0)
    }

    /// Only the first domain reads, whether it is the control domain or not: what was typed for it, as far as that isn't in its console page.
    fn console_read(&self, count: u64, buffer: u64) -> Outcome {
        if !self.domain.is_first() {
            return Err(Errno::EPERM.into());
        }
        let mut bytes = [0; PIECE];
        let limit = count.min(PIECE as u64) as usize;
        let piece = bytes.get_mut(..limit).ok_or(Errno::EINVAL)?;
        let read = self.domain.console.read_typed(piece);
        self.write_bytes(buffer, piece.get(..read).ok_or(Errno::EINVAL)?)?;
        Ok(read as u64)
    }
}
