//! A guest's interrupt controller: whatever it is asked, whatever lines do, however its list registers empty.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use platform::emulated::Width;
use platform::emulated::gic::{ListRegister, ListRegisters, Version, VirtualGic};

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Offset {
    Near(u16),
    Any(u64),
}

impl Offset {
    fn value(self) -> u64 {
        match self {
            Self::Near(offset) => offset.into(),
            Self::Any(offset) => offset,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Read(u8, Offset, u8),
    Write(u8, Offset, u8, u64),
    /// A redistributor's second frame.
    ReadPrivate(u8, Offset, u8),
    WritePrivate(u8, Offset, u8, u64),
    Send(u8, u64),
    SendGroup0(u8, u64),
    Level(u8, u32, bool),
    Pulse(u8, u16),
    Tie(u32, u32),
    TryOne(u8, u16),
    HandOut(u8),
    TakeBack(u8),
    Acknowledge(u8, u8),
    End(u8, u8),
}

struct Lists(Vec<ListRegister>);

impl ListRegisters for Lists {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn free(&self) -> u32 {
        let free = |(index, one): (usize, &ListRegister)| u32::from(!one.pending && !one.active) << index;
        self.0.iter().enumerate().map(free).sum()
    }

    fn read(&self, index: usize) -> ListRegister {
        self.0[index]
    }

    fn write(&mut self, index: usize, value: ListRegister) {
        assert_eq!(ListRegister::decode_v3(value.encode_v3()), ListRegister { cpu: 0, ..value });
        assert!(value.physical.is_none() || !(value.wants_eoi || value.pending && value.active), "{value:?}");
        let coarse = ListRegister { priority: value.priority & 0xf8, ..value };
        let narrow = ListRegister::decode_v2(value.encode_v2());
        assert!(narrow == coarse || value.physical.is_some(), "{value:?}");
        self.0[index] = value;
    }
}

fn width(choice: u8) -> Width {
    [Width::Byte, Width::Half, Width::Word, Width::Double][usize::from(choice % 4)]
}

fuzz_target!(|input: (bool, u8, u8, Vec<Step>)| {
    let (second, vcpus, count, steps) = input;
    let mut gic = Box::new(VirtualGic::new());
    gic.begin(if second { Version::V2 } else { Version::V3 }, vcpus.into());
    // What a kernel does first; a guest may take it back.
    let _ = gic.distributor_write(0, 0, Width::Word, 3);
    for vcpu in 0..8 {
        let _ = gic.redistributor_write(vcpu, 0x1_0100, Width::Word, u64::MAX);
        for offset in (0x100..0x124).step_by(4) {
            let _ = gic.distributor_write(vcpu, offset, Width::Word, u64::MAX);
        }
    }
    let mut lists: Vec<Lists> =
        (0..256).map(|_| Lists(vec![ListRegister::FREE; (count % 17).into()])).collect();
    for step in steps {
        one(&mut gic, &mut lists, step);
        for lists in lists.iter().take(8) {
            let used = || lists.0.iter().filter(|one| one.pending || one.active).map(|one| one.intid);
            assert!(used().all(|intid| used().filter(|other| *other == intid).count() == 1), "{:?}", lists.0);
        }
    }
});

fn one(gic: &mut VirtualGic, lists: &mut [Lists], step: Step) {
    let fits = |value: u64, width: Width| assert_eq!(value & !width.mask(), 0);
    match step {
        Step::Read(vcpu, offset, choice) => {
            let value = gic.distributor_read(vcpu.into(), offset.value(), width(choice));
            fits(value.unwrap_or(0), width(choice));
        }
        Step::Write(vcpu, offset, choice, value) => {
            let _ = gic.distributor_write(vcpu.into(), offset.value(), width(choice), value);
        }
        Step::ReadPrivate(of, offset, choice) => {
            let value = gic.redistributor_read(of.into(), offset.value() ^ 0x1_0000, width(choice));
            fits(value.unwrap_or(0), width(choice));
        }
        Step::WritePrivate(of, offset, choice, value) => {
            let _ = gic.redistributor_write(of.into(), offset.value() ^ 0x1_0000, width(choice), value);
        }
        Step::Send(from, value) => gic.send_sgi(from.into(), value),
        Step::SendGroup0(from, value) => gic.send_sgi_group_0(from.into(), value),
        Step::Level(vcpu, intid, level) => gic.set_level(vcpu.into(), intid % 300, level),
        Step::Pulse(vcpu, intid) => gic.pulse(vcpu.into(), (intid % 300).into()),
        Step::Tie(intid, physical) => gic.set_physical(intid, physical % 1020),
        Step::TryOne(vcpu, intid) => {
            let _ = gic.try_one(vcpu.into(), (intid % 300).into(), &mut lists[usize::from(vcpu)]);
        }
        Step::HandOut(vcpu) => {
            let lists = &mut lists[usize::from(vcpu)];
            gic.take_back(vcpu.into(), lists);
            let wanted = gic.wanted(vcpu.into());
            let more = gic.hand_out(vcpu.into(), lists);
            let any = lists.0.iter().any(|one| one.pending && !one.active);
            // With a single one, what is active has it.
            assert!(
                !wanted || any || more && lists.0.len() < 2,
                "something waits, and nothing is handed out"
            );
            assert!(!more || lists.free() == 0, "more than fit, and yet there is room");
        }
        Step::TakeBack(vcpu) => {
            gic.take_back(vcpu.into(), &mut lists[usize::from(vcpu)]);
            assert_eq!(
                lists[usize::from(vcpu)].free().count_ones() as usize,
                lists[usize::from(vcpu)].count()
            );
        }
        Step::Acknowledge(vcpu, index) => {
            if let Some(one) = lists[usize::from(vcpu)].0.get_mut(usize::from(index))
                && one.pending
                && !one.active
            {
                (one.pending, one.active) = (false, true);
            }
        }
        Step::End(vcpu, index) => {
            if let Some(one) = lists[usize::from(vcpu)].0.get_mut(usize::from(index)) {
                one.active = false;
            }
        }
    }
}
