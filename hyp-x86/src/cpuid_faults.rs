//! How a processor is told to let `cpuid` fault outside ring 0, so that guests hear of it what [`crate::cpuid`] says, with the prefix or without.
//!
//! Intel's and AMD's processors do it by a register each, and each says in its own way whether it can. QEMU's emulated ones, up to 7.2 at least,
//! can't.
//!
//! Source: Intel, "Virtualization Technology FlexMigration Application Note" (CPUID faulting), SDM volume 4, MSRs 0xce and 0x140; AMD APM volume 2,
//! 3.1 "CPUID faulting" and volume 3, CPUID 0x8000_0021.

/// `cpuid` leaf 0: ebx, edx, ecx.
pub type Vendor = [u32; 3];

/// "AuthenticAMD" and "HygonGenuine", as `cpuid` says them.
const AMD: Vendor = [0x6874_7541, 0x6974_6e65, 0x444d_4163];
const HYGON: Vendor = [0x6f67_7948, 0x6e65_476e, 0x656e_6975];

/// Intel's register that says what the platform can do (`MSR_PLATFORM_INFO`).
pub const PLATFORM: u32 = 0xce;
/// [`PLATFORM`]: `cpuid` can fault.
const PLATFORM_CAN: u64 = 1 << 31;
/// AMD's `cpuid` leaf with further features.
pub const FEATURES_LEAF: u32 = 0x8000_0021;
/// [`FEATURES_LEAF`], eax: `cpuid` can be disabled for users.
const FEATURES_CAN: u32 = 1 << 17;

/// A register of which a bit has to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Switch {
    /// Its number (`MSR_MISC_FEATURES_ENABLES`, or AMD's `HWCR`).
    pub register: u32,
    /// The bit, as a mask.
    pub bit: u64,
}

/// What to set on a processor. `features`: eax of [`FEATURES_LEAF`], 0 if there is no such leaf; `platform` reads [`PLATFORM`], if there is that
/// register, and is asked of Intel's processors only. `None`: it can't.
pub fn switch(vendor: Vendor, features: u32, platform: impl FnOnce() -> Option<u64>) -> Option<Switch> {
    match vendor {
        crate::l1tf::INTEL => {
            let can = platform()? & PLATFORM_CAN != 0;
            can.then_some(Switch { register: 0x140, bit: 1 })
        }
        AMD | HYGON => {
            (features & FEATURES_CAN != 0).then_some(Switch { register: 0xc001_0015, bit: 1 << 35 })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vendor(name: &[u8; 12]) -> Vendor {
        let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        [word(0), word(4), word(8)]
    }

    #[test]
    fn each_vendor_says_so_in_its_own_way() {
        let intel = Switch { register: 0x140, bit: 1 };
        let amd = Switch { register: 0xc001_0015, bit: 1 << 35 };
        assert_eq!(switch(vendor(b"GenuineIntel"), 0, || Some(1 << 31 | 5)), Some(intel));
        for name in [b"AuthenticAMD", b"HygonGenuine"] {
            assert_eq!(switch(vendor(name), 1 << 17, || panic!("not its register")), Some(amd));
        }
    }

    #[test]
    fn who_cannot_is_left_alone() {
        assert_eq!(switch(vendor(b"GenuineIntel"), !0, || Some(!(1 << 31))), None);
        assert_eq!(switch(vendor(b"GenuineIntel"), !0, || None), None, "no such register");
        assert_eq!(switch(vendor(b"AuthenticAMD"), !(1 << 17), || Some(!0)), None);
        assert_eq!(switch(vendor(b"CentaurHauls"), !0, || Some(!0)), None);
    }
}
