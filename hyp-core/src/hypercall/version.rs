//! `xen_version`: what this hypervisor is and can do (`version.h`, `features.h`).

use penumbra_abi::errno::Errno;
use penumbra_abi::version::{self, CompileInfo, FeatureInfo};
use zerocopy::FromZeros;

use super::{Arguments, Call, Outcome, values};
use crate::machine::Machine;

/// The version of Xen's interface that we speak: 4.17.
pub(super) const VERSION: u64 = (4 << 16) | 17;
/// What makes us another hypervisor than Xen.
const EXTRA_VERSION: &str = concat!(".penumbra-", env!("CARGO_PKG_VERSION"));

/// What compiled it.
const COMPILER: &str = "rustc";

/// What we have and Xen hasn't.
const PENUMBRA_FEATURES: u32 = 1 << version::PENUMBRA_FEATURE_SUPERPAGES;

impl<M: Machine> Call<'_, M> {
    /// Arguments: the operation; guest address of its buffer.
    #[inline(never)]
    pub(super) fn xen_version(&self, arguments: &Arguments) -> Outcome {
        let [operation, buffer, ..] = values(arguments);
        match operation {
            version::XENVER_VERSION => Ok(VERSION),
            version::XENVER_PAGESIZE => Ok(crate::address::PAGE_BYTES),
            _ => self.version_into(operation, buffer),
        }
    }

    /// The operations that fill a buffer: apart from those that are issued often and need none, nor room for a text on the stack.
    #[inline(never)]
    fn version_into(&self, operation: u64, buffer: u64) -> Outcome {
        match operation {
            version::XENVER_EXTRAVERSION => {
                self.write_text::<{ version::XEN_EXTRAVERSION_LEN }>(buffer, &[EXTRA_VERSION])
            }
            version::XENVER_CAPABILITIES => self.write_text::<{ version::XEN_CAPABILITIES_INFO_LEN }>(
                buffer,
                &["xen-3.0-", M::PLATFORM, " "],
            ),
            version::XENVER_PLATFORM_PARAMETERS => {
                self.write(buffer, &M::M2P_WINDOW.bytes())?;
                Ok(0)
            }
            version::XENVER_GET_FEATURES => self.features(buffer),
            version::XENVER_COMPILE_INFO => self.compile_info(buffer),
            version::XENVER_CHANGESET => {
                self.write_text::<{ version::XEN_CHANGESET_INFO_LEN }>(buffer, &["unavailable"])
            }
            version::XENVER_GUEST_HANDLE => self.guest_handle(buffer),
            version::XENVER_COMMANDLINE => self.command_line(buffer),
            // For the control domain alone, as in Xen; there is none.
            version::XENVER_BUILD_ID => {
                self.require_control()?;
                Err(Errno::ENODATA.into())
            }
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    /// The hypervisor's own command line, which only the control domain is told.
    fn command_line(&self, buffer: u64) -> Outcome {
        if !self.domain.is_control() {
            return self.write_text::<{ version::XEN_COMMANDLINE_LEN }>(buffer, &["<denied>"]);
        }
        self.charge_copy(version::XEN_COMMANDLINE_LEN);
        let line = *self.hypervisor.command_line.lock();
        self.write(buffer, &line)?;
        Ok(0)
    }

    /// The compiler; who compiled it, where and when isn't told.
    fn compile_info(&self, buffer: u64) -> Outcome {
        let mut info = CompileInfo::new_zeroed();
        for (slot, byte) in info.compiler.iter_mut().zip(COMPILER.bytes()) {
            *slot = byte;
        }
        self.charge_copy(size_of::<CompileInfo>());
        self.write(buffer, &info)?;
        Ok(0)
    }

    /// The domain's unique number: no two domains that live at the same time have the same.
    fn guest_handle(&self, buffer: u64) -> Outcome {
        let mut handle = [0u8; 16];
        let [high, low] = self.domain.id().number().to_be_bytes();
        let [.., before_last, last] = &mut handle;
        (*before_last, *last) = (high, low);
        self.write(buffer, &handle)?;
        Ok(0)
    }

    fn features(&self, buffer: u64) -> Outcome {
        let mut info: FeatureInfo = self.read(buffer)?;
        info.submap = match info.submap_idx {
            0 => self.xen_features(),
            version::PENUMBRA_FEATURE_SUBMAP => PENUMBRA_FEATURES,
            _ => return Err(Errno::EINVAL.into()),
        };
        self.write(buffer, &info)?;
        Ok(0)
    }

    fn xen_features(&self) -> u32 {
        let all = 1 << version::XENFEAT_PAE_PGDIR_ABOVE_4GB
            | 1 << version::XENFEAT_MMU_PT_UPDATE_PRESERVE_AD
            | 1 << version::XENFEAT_HIGHMEM_ASSIST
            | 1 << version::XENFEAT_GNTTAB_MAP_AVAIL_BITS
            | 1 << version::XENFEAT_DIRECT_MAPPED;
        if self.domain.is_control() { all | 1 << version::XENFEAT_DOM0 } else { all }
    }

    /// Writes a string, ended and filled with zero bytes, into a buffer of `SIZE` bytes.
    fn write_text<const SIZE: usize>(&self, buffer: u64, parts: &[&str]) -> Outcome {
        self.charge_copy(SIZE);
        let mut text = [0u8; SIZE];
        let bytes = parts.iter().flat_map(|part| part.bytes());
        for (slot, byte) in text.iter_mut().take(SIZE.saturating_sub(1)).zip(bytes) {
            *slot = byte;
        }
        self.write(buffer, &text)?;
        Ok(0)
    }
}
