//! `vm_assist`: assistance that a domain switches on or off for itself (`xen.h`).
//!
//! One bit for each kind, kept with the domain, off when it starts. Which kinds there are is the machine's to say
//! ([`Machine::ASSISTS`]); whoever gives the assistance asks [`crate::domain::Domain::assists`].

use penumbra_abi::errno::Errno;
use penumbra_abi::vm_assist;

use super::{Arguments, Call, Outcome, values};
use crate::machine::Machine;

impl<M: Machine> Call<'_, M> {
    /// Arguments: on or off; which kind. Both are 32-bit numbers in Xen's interface. As in Xen, the kind is judged first.
    #[inline(never)]
    pub(super) fn vm_assist(&self, arguments: &Arguments) -> Outcome {
        let [command, kind, ..] = values(arguments).map(|argument| argument as u32);
        let on = match 1u64.checked_shl(kind) {
            Some(bit) if bit & M::ASSISTS != 0 => match command {
                vm_assist::VMASST_CMD_ENABLE => true,
                vm_assist::VMASST_CMD_DISABLE => false,
                _ => return Err(Errno::ENOSYS.into()),
            },
            _ => return Err(Errno::EINVAL.into()),
        };
        self.domain.set_assist(kind, on);
        Ok(0)
    }
}
