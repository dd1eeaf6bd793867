//! The real-time clock, register by register (DDI 0224C, chapter 3).

use super::*;

const NOW: u64 = 1_700_000_000;

fn begun() -> Pl031 {
    let mut clock = Pl031::new();
    clock.begin();
    clock
}

fn read(clock: &mut Pl031, offset: u64, now: u64) -> u64 {
    clock.read(offset, Width::Word, now).expect("there is such a register")
}

fn write(clock: &mut Pl031, offset: u64, value: u64, now: u64) {
    clock.write(offset, Width::Word, value, now).expect("there is such a register");
}

#[test]
fn it_counts_seconds_from_reset_on_and_asks_for_nothing() {
    let mut clock = begun();
    assert_eq!(read(&mut clock, register::DATA, NOW), NOW);
    assert_eq!(read(&mut clock, register::DATA, NOW + 5), NOW + 5);
    assert_eq!(read(&mut clock, register::CONTROL, NOW), 1, "it runs");
    for offset in [register::MATCH, register::LOAD, register::MASK, register::RAW, register::MASKED] {
        assert_eq!(read(&mut clock, offset, NOW), 0, "register {offset:#x}");
    }
    write(&mut clock, register::MASK, 1, NOW);
    assert_eq!((clock.deadline(), clock.interrupt(u64::MAX)), (None, false));
}

#[test]
fn it_identifies_itself() {
    let mut clock = begun();
    let bytes: Vec<u64> = (0xfe0..0x1000).step_by(4).map(|offset| read(&mut clock, offset, NOW)).collect();
    assert_eq!(bytes, [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn loading_sets_the_counter_and_only_that() {
    let mut clock = begun();
    write(&mut clock, register::LOAD, 100, NOW);
    assert_eq!(read(&mut clock, register::LOAD, NOW + 3), 100);
    assert_eq!(read(&mut clock, register::DATA, NOW + 3), 103);
    write(&mut clock, register::DATA, 7, NOW + 3);
    write(&mut clock, register::CONTROL, 0, NOW + 3);
    assert_eq!(read(&mut clock, register::DATA, NOW + 4), 104, "neither can be written");
    write(&mut clock, register::LOAD, 0xffff_ffff, NOW);
    assert_eq!(read(&mut clock, register::DATA, NOW + 2), 1, "32 bits");
}

#[test]
fn the_alarm_goes_off_in_the_second_that_matches_and_stays_until_cleared() {
    let mut clock = begun();
    write(&mut clock, register::MASK, 1, NOW);
    write(&mut clock, register::MATCH, NOW + 10, NOW);
    assert_eq!(read(&mut clock, register::MATCH, NOW), NOW + 10);
    assert_eq!(clock.deadline(), Some(NOW + 10));
    assert!(!clock.interrupt(NOW + 9));
    assert!(clock.interrupt(NOW + 10));
    assert_eq!(read(&mut clock, register::RAW, NOW + 9), 0);
    assert_eq!(read(&mut clock, register::MASKED, NOW + 10), 1);
    assert_eq!(clock.deadline(), None, "it has come");
    assert!(clock.interrupt(NOW + 60));
    write(&mut clock, register::CLEAR, 0, NOW + 60);
    assert!(clock.interrupt(NOW + 60));
    write(&mut clock, register::CLEAR, 1, NOW + 60);
    assert!(!clock.interrupt(NOW + 60));
    assert_eq!(clock.deadline(), Some(NOW + 10 + (1 << 32)), "when the counter has been round");
}

#[test]
fn a_masked_alarm_is_only_seen_in_the_raw_status() {
    let mut clock = begun();
    write(&mut clock, register::MATCH, NOW + 1, NOW);
    assert_eq!((clock.deadline(), clock.interrupt(NOW + 2)), (None, false));
    assert_eq!(read(&mut clock, register::RAW, NOW + 2), 1);
    assert_eq!(read(&mut clock, register::MASKED, NOW + 2), 0);
    write(&mut clock, register::MASK, 0xff, NOW + 2);
    assert_eq!(read(&mut clock, register::MASK, NOW + 2), 1);
    assert!(clock.interrupt(NOW + 2));
}

#[test]
fn a_match_with_this_second_counts_and_loading_moves_the_alarm() {
    let mut clock = begun();
    write(&mut clock, register::MASK, 1, NOW);
    write(&mut clock, register::MATCH, NOW, NOW);
    assert!(clock.interrupt(NOW));
    write(&mut clock, register::CLEAR, 1, NOW);
    write(&mut clock, register::LOAD, NOW - 20, NOW);
    assert_eq!(clock.deadline(), Some(NOW + 20));
    write(&mut clock, register::LOAD, NOW, NOW);
    assert!(clock.interrupt(NOW));
}

#[test]
fn accesses_that_no_register_begins_with_meet_nothing() {
    let mut clock = begun();
    write(&mut clock, register::MATCH, 0x1234_5678, NOW);
    assert_eq!(clock.read(register::MATCH, Width::Half, NOW), Ok(0x5678));
    assert_eq!(clock.read(register::MATCH + 2, Width::Half, NOW), Ok(0));
    assert_eq!(clock.write(register::MATCH + 1, Width::Byte, 1, NOW), Ok(()));
    assert_eq!(clock.read(register::DATA, Width::Double, NOW), Ok(NOW | 0x1234_5678 << 32));
    for (offset, width) in [
        (1, Width::Half),
        (2, Width::Word),
        (4, Width::Double),
        (0x1000, Width::Byte),
        (u64::MAX, Width::Byte),
    ] {
        assert_eq!(clock.read(offset, width, NOW), Err(NoSuchAccess));
        assert_eq!(clock.write(offset, width, 0, NOW), Err(NoSuchAccess));
    }
}

#[test]
fn no_time_is_too_late() {
    let mut clock = begun();
    for now in [u64::MAX - 1, u64::MAX, 0] {
        for value in [0, 1, u64::from(u32::MAX)] {
            write(&mut clock, register::MATCH, value, now);
            write(&mut clock, register::LOAD, value, now);
            assert_eq!(read(&mut clock, register::DATA, now), value);
        }
    }
}
