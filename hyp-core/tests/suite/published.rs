//! What guests read of time by themselves, wherever their `vcpu_info` lies.

use std::sync::atomic::Ordering::Relaxed;

use crate::common::Rig;
use hyp_core::Vcpu;
use hyp_core::fake::Fake;
use hyp_core::machine::{Board, FrameMemory, Machine};
use penumbra_abi::shared_info::VcpuTimeInfo;
use penumbra_abi::vcpu::{RegisterVcpuInfo, VCPUOP_REGISTER_VCPU_INFO};
use zerocopy::{FromZeros, IntoBytes};

/// What the vCPU's `vcpu_info` says of time.
fn time(rig: &Rig, vcpu: &Vcpu<Fake>) -> VcpuTimeInfo {
    let first = Fake::VCPU_TIME.unwrap() / 8;
    let mut info = VcpuTimeInfo::new_zeroed();
    for (index, bytes) in info.as_mut_bytes().chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&rig.info(vcpu, first + index).load(Relaxed).to_le_bytes());
    }
    info
}

fn is_the_machines(rig: &Rig, info: VcpuTimeInfo) -> bool {
    let clock = rig.hv.machine().guest_clock().unwrap();
    let expected = [clock.start, 0, clock.scale.multiplier.into(), clock.scale.shift as u64];
    let found = [info.tsc_timestamp, info.system_time, info.tsc_to_system_mul.into(), info.tsc_shift as u64];
    // Even, and not as if nobody had ever written it.
    found == expected && info.version.is_multiple_of(2) && info.version != 0 && info.flags == 0
}

#[test]
fn the_clock_stands_in_each_vcpu_info_and_moves_with_it() {
    let rig = Rig::new(1);
    rig.domains[1].domain.set_vcpu_count(3);
    let vcpus = &rig.domains[1].domain.vcpus;
    for vcpu in &vcpus[..Fake::SHARED_INFO.vcpu_infos] {
        assert!(is_the_machines(&rig, time(&rig, vcpu)));
    }
    // One that had a place moves; one that had none gets its first.
    for vcpu in [1u64, 2] {
        let mfn = rig.free_up(1, vcpu).number();
        let request = RegisterVcpuInfo { mfn, offset: 64, rsvd: 0 };
        rig.vcpu_op(1, VCPUOP_REGISTER_VCPU_INFO, vcpu, request).unwrap();
        assert_eq!(vcpus[vcpu as usize].info_place().unwrap().0.number(), mfn);
        assert!(is_the_machines(&rig, time(&rig, &vcpus[vcpu as usize])));
    }
    rig.check();
}

#[test]
fn the_time_of_day_stands_in_the_shared_page() {
    let rig = Rig::new(1);
    let page = rig.domains[1].domain.shared_info().unwrap();
    let first = Fake::WALL_CLOCK.unwrap() / 8;
    let word = |index| rig.hv.machine().shared_word(page, first + index).unwrap().load(Relaxed);
    let seconds = rig.hv.machine().wall_clock().unwrap();
    let (version, low, nanoseconds, high) = (word(0) as u32, word(0) >> 32, word(1) as u32, word(1) >> 32);
    assert_eq!((version % 2, nanoseconds, high << 32 | low), (0, 0, seconds));
    assert_ne!(version, 0);
}
