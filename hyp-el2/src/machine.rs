//! The machine as the core sees it.

use core::mem::offset_of;

use hyp_core::address::{GuestVirtual, MachineFrame};
use hyp_core::machine::{Machine, SharedInfoLayout};
use hyp_el2::format::VmsaStage1;
use penumbra_abi::shared_info::{ArmSharedInfo, ArmVcpuInfo};

use crate::context::GuestContext;

/// AArch64 at EL2. The traits are implemented in the files that have the means: [`crate::memory`], [`crate::roots`],
/// [`crate::guest_memory`], [`crate::board`].
#[derive(Clone, Copy, Debug)]
pub struct El2;

impl Machine for El2 {
    type Format = VmsaStage1;
    type Context = GuestContext;

    const M2P_WINDOW: GuestVirtual = GuestVirtual::new(0xffff_8000_0000_0000);
    const PLATFORM: &'static str = "aarch64";
    // EM_AARCH64.
    const ELF_MACHINE: u16 = 183;
    /// Direct writes to tables aren't among them: the guest's own handler unhooks a table before it writes.
    const ASSISTS: u64 = 1 << penumbra_abi::vm_assist::VMASST_TYPE_RUNSTATE_UPDATE_FLAG;
    const SHARED_INFO: SharedInfoLayout = SharedInfoLayout {
        vcpu_infos: 1,
        vcpu_info_bytes: size_of::<ArmVcpuInfo>(),
        has_upcall_mask: false,
        pending: offset_of!(ArmSharedInfo, evtchn_pending),
        mask: offset_of!(ArmSharedInfo, evtchn_mask),
    };

    fn root_of(
        address: GuestVirtual,
        kernel: Option<MachineFrame>,
        user: Option<MachineFrame>,
    ) -> Option<MachineFrame> {
        // The top 16 bits choose between TTBR1 and TTBR0 (no top-byte-ignore).
        match address.bytes() >> 48 {
            0xffff => kernel,
            0 => user,
            _ => None,
        }
    }
}
