//! `xen_version`, all of it, for the control domain and for others.

use crate::common::Rig;
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::version::*;
use zerocopy::IntoBytes;

/// Where answers go: each fits between here and the end of the page.
const AT: u64 = 1024;

fn version(rig: &Rig, who: usize, operation: u64) -> Result<u64, Errno> {
    let at = rig.give(who, AT, &[0xa5; 1200]);
    rig.call(who, number::XEN_VERSION, [operation, at, 0, 0, 0, 0])
}

/// The answer's text, and how many bytes of the buffer were written at least.
fn text(rig: &Rig, who: usize, operation: u64) -> String {
    assert_eq!(version(rig, who, operation), Ok(0), "{operation}");
    let bytes: [u8; 1200] = rig.take(who, AT);
    bytes.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect()
}

#[test]
fn every_operation_has_an_answer() {
    let rig = Rig::new(1);
    for who in [0, 1] {
        assert_eq!(version(&rig, who, XENVER_VERSION), Ok(0x0004_0011));
        assert_eq!(version(&rig, who, XENVER_PAGESIZE), Ok(4096));
        assert!(text(&rig, who, XENVER_EXTRAVERSION).starts_with(".penumbra"));
        assert!(text(&rig, who, XENVER_CAPABILITIES).starts_with("xen-3.0-"));
        assert_eq!(text(&rig, who, XENVER_CHANGESET), "unavailable");
        assert_eq!(text(&rig, who, XENVER_COMPILE_INFO), "rustc");
        assert_eq!(version(&rig, who, XENVER_PLATFORM_PARAMETERS), Ok(0));
        assert_eq!(version(&rig, who, 11), Err(Errno::ENOSYS));
        assert_eq!(version(&rig, who, 1 << 32), Err(Errno::ENOSYS));
    }
}

#[test]
fn buffers_are_as_long_as_the_abi_says() {
    let rig = Rig::new(1);
    let lengths = [
        (XENVER_EXTRAVERSION, XEN_EXTRAVERSION_LEN),
        (XENVER_COMPILE_INFO, size_of::<CompileInfo>()),
        (XENVER_CAPABILITIES, XEN_CAPABILITIES_INFO_LEN),
        (XENVER_CHANGESET, XEN_CHANGESET_INFO_LEN),
        (XENVER_PLATFORM_PARAMETERS, 8),
        (XENVER_GUEST_HANDLE, 16),
        (XENVER_COMMANDLINE, XEN_COMMANDLINE_LEN),
    ];
    for (operation, length) in lengths {
        assert_eq!(version(&rig, 1, operation), Ok(0));
        let bytes: [u8; 1200] = rig.take(1, AT);
        assert_eq!(bytes.iter().rposition(|byte| *byte != 0xa5), Some(length - 1), "{operation}");
    }
}

#[test]
fn what_is_the_control_domains_is_told_to_it_alone() {
    let rig = Rig::new(1);
    assert_eq!(text(&rig, 1, XENVER_COMMANDLINE), "<denied>");
    assert_eq!(text(&rig, 0, XENVER_COMMANDLINE), "");
    assert_eq!(version(&rig, 1, XENVER_BUILD_ID), Err(Errno::EPERM));
    assert_eq!(version(&rig, 0, XENVER_BUILD_ID), Err(Errno::ENODATA));
}

#[test]
fn domains_have_handles_of_their_own() {
    let rig = Rig::new(2);
    let handle = |who| {
        version(&rig, who, XENVER_GUEST_HANDLE).unwrap();
        rig.take::<[u8; 16]>(who, AT)
    };
    assert_eq!(handle(0), [0; 16]);
    assert!(handle(1) != handle(2) && handle(1) != [0; 16]);
}

#[test]
fn features_are_those_that_pv_guests_have() {
    let rig = Rig::new(1);
    let features = |who| {
        let at = rig.give(who, AT, FeatureInfo::default().as_bytes());
        rig.call(who, number::XEN_VERSION, [XENVER_GET_FEATURES, at, 0, 0, 0, 0]).unwrap();
        rig.take::<FeatureInfo>(who, AT).submap
    };
    // Xen's are 0x220f0: there are no virtual nodes here (bit 13).
    assert_eq!(features(1), 0x2_00f0);
    assert_eq!(features(0), 0x2_08f0);
}
