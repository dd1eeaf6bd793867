//! Penumbra's own hypercall: what Xen has no number for.

use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;

use super::{Arguments, Call, Outcome};
use crate::machine::Machine;

impl<M: Machine> Call<'_, M> {
    /// Argument: the operation. Audit (control domain only): recounts every reference of the machine, logs the report, returns how
    /// many things are wrong.
    pub(super) fn penumbra_op(&self, arguments: Arguments) -> Outcome {
        let [operation, ..] = arguments;
        match operation {
            number::PENUMBRA_AUDIT => {
                self.require_control()?;
                let report = self.hypervisor.audit();
                log::info!("{report}");
                Ok(report.findings)
            }
            _ => Err(Errno::ENOSYS.into()),
        }
    }
}
