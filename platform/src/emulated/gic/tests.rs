//! Tests of the whole: a guest's accesses, a fake set of list registers.

use super::*;

mod naive;

/// List registers in memory, and the guest's side of them.
struct Fake {
    registers: Vec<ListRegister>,
}

impl Fake {
    fn new(count: usize) -> Self {
        Self { registers: vec![ListRegister::FREE; count] }
    }

    /// The guest acknowledges the most urgent.
    fn acknowledge(&mut self) -> Option<u16> {
        let best = self
            .registers
            .iter_mut()
            .filter(|one| one.pending && !one.active)
            .min_by_key(|one| one.priority)?;
        best.pending = false;
        best.active = true;
        Some(best.intid)
    }

    /// The guest ends one; whether a maintenance interrupt comes of it.
    fn end(&mut self, intid: u16) -> bool {
        let one =
            self.registers.iter_mut().find(|one| one.active && one.intid == intid).expect("it is active");
        one.active = false;
        one.wants_eoi && !one.pending
    }
}

impl ListRegisters for Fake {
    fn count(&self) -> usize {
        self.registers.len()
    }
    fn free(&self) -> u32 {
        let free = |(index, one): (usize, &ListRegister)| u32::from(!one.pending && !one.active) << index;
        self.registers.iter().enumerate().map(free).sum()
    }
    fn read(&self, index: usize) -> ListRegister {
        self.registers[index]
    }
    fn write(&mut self, index: usize, value: ListRegister) {
        self.registers[index] = value;
    }
}

fn enabled_3(vcpus: usize) -> Box<VirtualGic> {
    let mut gic = Box::new(VirtualGic::new());
    gic.begin(Version::V3, vcpus);
    gic.distributor_write(0, 0, Width::Word, 2).unwrap();
    for vcpu in 0..vcpus {
        gic.redistributor_write(vcpu, 0x1_0080, Width::Word, u64::MAX).unwrap();
        gic.redistributor_write(vcpu, 0x1_0100, Width::Word, u64::MAX).unwrap();
    }
    for word in 1..9 {
        gic.distributor_write(0, 0x80 + 4 * word, Width::Word, u64::MAX).unwrap();
        gic.distributor_write(0, 0x100 + 4 * word, Width::Word, u64::MAX).unwrap();
    }
    gic
}

#[test]
fn a_model_is_small() {
    assert!(size_of::<VirtualGic>() <= 8192, "{}", size_of::<VirtualGic>());
}

#[test]
fn an_sgi_to_oneself_goes_the_short_way_again_and_again() {
    let (mut gic, mut lists) = (enabled_3(2), Fake::new(4));
    for _ in 0..20 {
        gic.send_sgi(0, 1 | 5 << 24);
        assert_eq!(gic.take_changed(), 1);
        assert!(gic.try_one(0, 5, &mut lists));
        assert_eq!(lists.acknowledge(), Some(5));
        assert!(!lists.end(5));
    }
    gic.take_back(0, &mut lists);
    assert!(!gic.wanted(0));
}

#[test]
fn more_than_fit_come_by_priority() {
    let (mut gic, mut lists) = (enabled_3(1), Fake::new(4));
    for intid in 40..52 {
        gic.distributor_write(0, 0x400 + u64::from(intid), Width::Byte, u64::from(255 - 8 * (intid - 40)))
            .unwrap();
        gic.pulse(0, intid);
    }
    let mut got = vec![];
    for _ in 0..12 {
        gic.hand_out(0, &mut lists);
        let intid = lists.acknowledge().unwrap();
        got.push(intid);
        lists.end(intid);
        gic.take_back(0, &mut lists);
    }
    assert_eq!(got, (40..52).rev().collect::<Vec<u16>>());
    assert!(!gic.hand_out(0, &mut lists));
    assert_eq!(lists.acknowledge(), None);
}

#[test]
fn a_level_is_pending_again_when_it_ends_while_its_line_is_up() {
    let (mut gic, mut lists) = (enabled_3(1), Fake::new(4));
    gic.set_level(0, 33, true);
    assert!(gic.try_one(0, 33, &mut lists));
    assert_eq!(lists.acknowledge(), Some(33));
    assert!(lists.end(33), "a maintenance interrupt");
    gic.hand_out(0, &mut lists);
    assert_eq!(lists.acknowledge(), Some(33));
    gic.set_level(0, 33, false);
    lists.end(33);
    gic.hand_out(0, &mut lists);
    assert_eq!(lists.acknowledge(), None);
}

#[test]
fn what_is_disabled_or_falls_is_withdrawn() {
    let (mut gic, mut lists) = (enabled_3(1), Fake::new(4));
    gic.set_level(0, 33, true);
    gic.pulse(0, 40);
    gic.hand_out(0, &mut lists);
    gic.take_back(0, &mut lists);
    gic.set_level(0, 33, false);
    gic.distributor_write(0, 0x184, Width::Word, 1 << 8).unwrap();
    assert!(!gic.wanted(0));
    gic.hand_out(0, &mut lists);
    assert_eq!(lists.acknowledge(), None);
    gic.distributor_write(0, 0x104, Width::Word, 1 << 8).unwrap();
    gic.hand_out(0, &mut lists);
    assert_eq!(lists.acknowledge(), Some(40));
}

#[test]
fn a_tied_interrupt_names_its_physical_one_until_it_ends() {
    let (mut gic, mut lists) = (enabled_3(1), Fake::new(4));
    gic.set_physical(27, 27);
    gic.pulse(0, 27);
    assert!(gic.holds_physical(0, 27) && gic.try_one(0, 27, &mut lists));
    assert_eq!(lists.registers[0].physical, Some(27));
    assert_eq!(lists.acknowledge(), Some(27));
    gic.take_back(0, &mut lists);
    assert!(gic.holds_physical(0, 27));
    gic.hand_out(0, &mut lists);
    lists.end(27);
    gic.take_back(0, &mut lists);
    assert!(!gic.holds_physical(0, 27));
}

#[test]
fn an_edge_while_it_is_active_is_another_interrupt() {
    let (mut gic, mut lists) = (enabled_3(1), Fake::new(4));
    gic.send_sgi(0, 1);
    assert!(gic.try_one(0, 0, &mut lists));
    assert_eq!(lists.acknowledge(), Some(0));
    gic.send_sgi(0, 1);
    assert!(!gic.try_one(0, 0, &mut lists), "the long way");
    gic.hand_out(0, &mut lists);
    assert_eq!(lists.acknowledge(), None);
    lists.end(0);
    assert_eq!(lists.acknowledge(), Some(0));
}

#[test]
fn version_2_keeps_every_sender_of_an_sgi() {
    let mut gic = Box::new(VirtualGic::new());
    gic.begin(Version::V2, 4);
    let mut lists = Fake::new(4);
    gic.distributor_write(0, 0, Width::Word, 1).unwrap();
    for from in 1..4 {
        gic.distributor_write(from, 0xf00, Width::Word, 1 << 16 | 3).unwrap();
    }
    assert_eq!(gic.distributor_read(0, 0xf20, Width::Word), Ok(0xe00_0000));
    for sender in 1..4 {
        gic.hand_out(0, &mut lists);
        assert_eq!(lists.registers[0].cpu, sender);
        assert_eq!(lists.acknowledge(), Some(3));
        assert_eq!(lists.end(3), sender < 3);
    }
    gic.hand_out(0, &mut lists);
    assert_eq!(lists.acknowledge(), None);
}

#[test]
fn list_registers_survive_their_encodings() {
    let plain = ListRegister {
        intid: 287,
        pending: true,
        priority: 0xa8,
        group: 1,
        wants_eoi: true,
        ..ListRegister::FREE
    };
    let tied =
        ListRegister { intid: 27, active: true, priority: 8, physical: Some(27), ..ListRegister::FREE };
    for one in [plain, tied] {
        assert_eq!(ListRegister::decode_v3(one.encode_v3()), one);
        assert_eq!(ListRegister::decode_v2(one.encode_v2()), one);
    }
    assert_eq!(plain.encode_v3(), 0x50a8_0200_0000_011f);
    assert_eq!(tied.encode_v2(), 0xa080_6c1b);
}

#[test]
fn the_registers_that_say_what_it_is() {
    let mut gic = enabled_3(3);
    assert_eq!(gic.distributor_read(0, 0, Width::Word), Ok(0x52));
    assert_eq!(gic.distributor_read(0, 4, Width::Word).unwrap() & 0x1f, 8);
    assert_eq!(gic.distributor_read(0, 8, Width::Word), Ok(0x43b));
    assert_eq!(gic.distributor_read(0, 0xffe8, Width::Word), Ok(0x3b));
    assert_eq!(gic.redistributor_read(1, 0xffe8, Width::Word), Ok(0x3b));
    assert_eq!(gic.redistributor_read(1, 8, Width::Double), Ok(1 << 32 | 1 << 24 | 1 << 8));
    assert_eq!(gic.redistributor_read(2, 8, Width::Word), Ok(1 << 24 | 2 << 8 | 1 << 4));
    assert_eq!(gic.redistributor_read(0, 0x14, Width::Word), Ok(6));
    gic.redistributor_write(0, 0x14, Width::Word, 0).unwrap();
    assert_eq!(gic.redistributor_read(0, 0x14, Width::Word), Ok(0));
    assert_eq!(gic.redistributor_read(0, 0x1_0c00, Width::Word), Ok(0xaaaa_aaaa));
    assert_eq!(gic.distributor_read(0, 0x100, Width::Word), Ok(0), "private ones are the redistributors'");
}

#[test]
fn a_route_moves_a_shared_interrupt() {
    let mut gic = enabled_3(3);
    gic.distributor_write(0, 0x6108, Width::Double, 2).unwrap();
    assert_eq!(gic.distributor_read(1, 0x6108, Width::Word), Ok(2));
    gic.take_changed();
    gic.pulse(0, 33);
    assert_eq!(gic.take_changed(), 1 << 2);
    gic.distributor_write(0, 0x6108, Width::Word, 7).unwrap();
    assert!(!gic.wanted(2), "to nobody");
}

#[test]
fn any_access_is_survived() {
    for version in [Version::V2, Version::V3] {
        let mut gic = Box::new(VirtualGic::new());
        gic.begin(version, 8);
        for offset in 0..0x2_0010 {
            for width in [Width::Byte, Width::Half, Width::Word, Width::Double] {
                let _ = gic.distributor_write(7, offset, width, u64::MAX);
                let _ = gic.distributor_read(7, offset, width);
                let _ = gic.redistributor_write(7, offset, width, u64::MAX);
                let _ = gic.redistributor_read(7, offset, width);
            }
        }
        let mut lists = Fake::new(4);
        gic.hand_out(7, &mut lists);
        gic.take_back(7, &mut lists);
    }
}
