//! `vm_assist`: switches that a domain has for itself.

use crate::common::{self, Rig};
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::vm_assist::{
    VMASST_CMD_DISABLE as OFF, VMASST_CMD_ENABLE as ON, VMASST_TYPE_M2P_STRICT as HIGH,
    VMASST_TYPE_WRITABLE_PAGETABLES as TABLES,
};

fn assist(rig: &Rig, who: usize, command: u32, kind: u64) -> Result<u64, Errno> {
    rig.call(who, number::VM_ASSIST, [u64::from(command), kind, 0, 0, 0, 0])
}

#[test]
fn a_switch_is_the_domains_own_and_off_at_first() {
    let rig = Rig::new(1);
    let state = || rig.domains.iter().map(|guest| guest.domain.assists(TABLES)).collect::<Vec<_>>();
    assert_eq!(state(), [false, false]);
    assist(&rig, 1, ON, u64::from(TABLES)).unwrap();
    assist(&rig, 1, ON, u64::from(HIGH)).unwrap();
    assert_eq!(state(), [false, true]);
    assist(&rig, 1, OFF, u64::from(TABLES)).unwrap();
    assert_eq!(state(), [false, false]);
    assert!(rig.domains[1].domain.assists(HIGH), "the other switch went with it");
}

#[test]
fn unknown_kinds_and_commands_change_nothing() {
    let rig = Rig::new(0);
    for kind in [0, 1, 31, 33, 63, 64, 65, 0xffff_ffff] {
        assert_eq!(assist(&rig, 0, ON, kind), Err(Errno::EINVAL), "kind {kind}");
        assert_eq!(assist(&rig, 0, 7, kind), Err(Errno::EINVAL), "the kind is judged first");
    }
    for command in [2, u32::MAX] {
        assert_eq!(assist(&rig, 0, command, u64::from(TABLES)), Err(Errno::ENOSYS));
    }
    assert!((0..64).all(|kind| !rig.domains[0].domain.assists(kind)));
    // The upper halves of the arguments say nothing.
    assist(&rig, 0, ON, 1 << 32 | u64::from(TABLES)).unwrap();
    assert!(rig.domains[0].domain.assists(TABLES));
    assert!(!rig.domains[0].domain.assists(64), "there is no such bit");
}

/// The next domain in the same place starts afresh.
#[test]
fn switches_die_with_their_domain() {
    let rig = Rig::new(1);
    assist(&rig, 1, ON, u64::from(TABLES)).unwrap();
    rig.bury(1);
    let heir = common::Guest::new(rig.hv, false);
    assert_eq!(heir.id(), rig.domains[1].id());
    assert!(!heir.domain.assists(TABLES));
}
