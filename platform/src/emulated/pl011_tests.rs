//! The UART, register by register (DDI 0183G, chapter 3).

use proptest::prelude::*;

use super::*;

fn begun() -> Pl011 {
    let mut uart = Pl011::new();
    uart.begin();
    uart
}

fn read(uart: &mut Pl011, offset: u64) -> u64 {
    uart.read(offset, Width::Word).expect("there is such a register")
}

fn write(uart: &mut Pl011, offset: u64, value: u64) -> Option<u8> {
    uart.write(offset, Width::Word, value).expect("there is such a register")
}

fn with_fifo() -> Pl011 {
    let mut uart = begun();
    write(&mut uart, register::LINE, 0x70);
    uart
}

#[test]
fn reset_is_as_the_manual_has_it() {
    let mut uart = begun();
    let expected = [
        (register::STATUS, 0),
        (register::FLAGS, 0x90),
        (register::LOW_POWER, 0),
        (register::RATE, 0),
        (register::RATE_FRACTION, 0),
        (register::LINE, 0),
        (register::CONTROL, 0x300),
        (register::LEVELS, 0x12),
        (register::MASK, 0),
        (register::RAW, 0),
        (register::MASKED, 0),
        (register::DMA, 0),
    ];
    for (offset, value) in expected {
        assert_eq!(read(&mut uart, offset), value, "register {offset:#x}");
    }
    assert!(!uart.interrupt());
}

#[test]
fn it_identifies_itself() {
    let mut uart = begun();
    let bytes: Vec<u64> = (0xfe0..0x1000).step_by(4).map(|offset| read(&mut uart, offset)).collect();
    assert_eq!(bytes, [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn registers_keep_the_bits_that_they_have() {
    let mut uart = begun();
    for (offset, bits) in [
        (register::LOW_POWER, 0xff),
        (register::RATE, 0xffff),
        (register::RATE_FRACTION, 0x3f),
        (register::LINE, 0xff),
        (register::CONTROL, 0xff87),
        (register::LEVELS, 0x3f),
        (register::MASK, 0x7ff),
        (register::DMA, 7),
    ] {
        assert_eq!(write(&mut uart, offset, 0xffff_ffff), None);
        assert_eq!(read(&mut uart, offset), bits, "register {offset:#x}");
    }
}

#[test]
fn a_character_leaves_at_once_whatever_is_enabled_and_however_it_is_stored() {
    let mut uart = begun();
    write(&mut uart, register::CONTROL, 0);
    for (width, value) in
        [(Width::Byte, 0x41), (Width::Half, 0x4141), (Width::Word, 0xffff_ff41), (Width::Double, 0x41)]
    {
        assert_eq!(uart.write(register::DATA, width, value), Ok(Some(0x41)), "{width:?}");
    }
    assert_eq!(read(&mut uart, register::FLAGS), 0x90, "nothing waits to be sent");
}

#[test]
fn the_transmitter_asks_for_more_after_each_character() {
    let mut uart = begun();
    write(&mut uart, register::MASK, cause::TRANSMIT.into());
    assert!(!uart.interrupt(), "nothing has been sent yet");
    write(&mut uart, register::DATA, 0x41);
    assert!(uart.interrupt());
    assert_eq!(read(&mut uart, register::MASKED), 0x20);
    write(&mut uart, register::CLEAR, 0x20);
    assert!(!uart.interrupt());
    write(&mut uart, register::DATA, 0x42);
    assert!(uart.interrupt());
    write(&mut uart, register::MASK, 0);
    assert!(!uart.interrupt());
    assert_eq!((read(&mut uart, register::RAW), read(&mut uart, register::MASKED)), (0x20, 0));
}

#[test]
fn without_fifos_one_character_waits_and_none_is_lost() {
    let mut uart = begun();
    write(&mut uart, register::MASK, cause::RECEIVE.into());
    assert_eq!(uart.room(), 1);
    assert!(uart.receive(b'a'));
    assert_eq!((uart.room(), uart.interrupt()), (0, true));
    assert_eq!(read(&mut uart, register::FLAGS), 0xc0, "full, and not empty");
    assert!(!uart.receive(b'b'), "the caller keeps it");
    assert_eq!(read(&mut uart, register::DATA), b'a'.into());
    assert_eq!((uart.room(), uart.interrupt()), (1, false));
    assert_eq!(read(&mut uart, register::FLAGS), 0x90);
    assert!(uart.receive(b'b'));
    assert_eq!(read(&mut uart, register::DATA), b'b'.into());
}

#[test]
fn sixteen_characters_wait_in_order_and_ask_from_the_first_to_the_last() {
    let mut uart = with_fifo();
    write(&mut uart, register::MASK, u64::from(cause::RECEIVE | cause::RECEIVE_TIMEOUT));
    // Twice, so that the second time goes round the end.
    for start in [0, 100] {
        assert_eq!(uart.room(), 16);
        for byte in start..start + 10 {
            assert!(uart.receive(byte));
            assert!(uart.interrupt());
        }
        assert_eq!(read(&mut uart, register::FLAGS), 0x80, "neither empty nor full");
        for byte in start + 10..start + 16 {
            assert!(uart.receive(byte));
        }
        assert!(!uart.receive(0xff));
        assert_eq!(read(&mut uart, register::FLAGS), 0xc0);
        for byte in start..start + 16 {
            assert_eq!(read(&mut uart, register::MASKED), 0x50);
            assert_eq!(read(&mut uart, register::DATA), byte.into());
        }
        assert!(!uart.interrupt());
        // Moves where the next one stands.
        assert!(uart.receive(1));
        assert_eq!(read(&mut uart, register::DATA), 1);
    }
}

#[test]
fn a_cleared_receive_interrupt_is_back_with_the_next_character() {
    let mut uart = with_fifo();
    write(&mut uart, register::MASK, cause::RECEIVE.into());
    assert!(uart.receive(b'a'));
    write(&mut uart, register::CLEAR, 0x7ff);
    assert!(!uart.interrupt());
    assert!(uart.receive(b'b'));
    assert!(uart.interrupt());
    assert_eq!(read(&mut uart, register::DATA), b'a'.into());
    assert!(uart.interrupt(), "one is left");
}

#[test]
fn switching_the_fifos_empties_them() {
    let mut uart = with_fifo();
    assert!(uart.receive(b'a'));
    write(&mut uart, register::LINE, 0x70);
    assert_eq!(uart.room(), 15, "nothing has changed");
    write(&mut uart, register::LINE, 0x60);
    assert_eq!((uart.room(), read(&mut uart, register::RAW)), (1, 0));
    assert_eq!(read(&mut uart, register::FLAGS), 0x90);
}

#[test]
fn loopback_feeds_what_is_sent_back_and_keeps_the_line_out() {
    let mut uart = with_fifo();
    write(&mut uart, register::CONTROL, 0x381);
    assert_eq!((uart.room(), uart.receive(b'x')), (0, false));
    for byte in 0..16 {
        assert_eq!(write(&mut uart, register::DATA, byte), Some(byte as u8));
    }
    assert_eq!(read(&mut uart, register::STATUS), 0);
    write(&mut uart, register::DATA, 0xee);
    assert_eq!(read(&mut uart, register::STATUS), 8, "an overrun");
    assert_eq!(read(&mut uart, register::RAW), 0x470);
    assert_eq!(read(&mut uart, register::DATA), 0x800);
    for byte in 1..16 {
        assert_eq!(read(&mut uart, register::DATA), byte);
    }
    write(&mut uart, register::DATA, 0xee);
    write(&mut uart, register::DATA, 0xef);
    assert_eq!(read(&mut uart, register::DATA), 0xee);
    write(&mut uart, register::CONTROL, 0x301);
    assert_eq!(uart.room(), 15);
}

#[test]
fn an_overrun_stays_in_the_status_until_it_is_written() {
    let mut uart = begun();
    write(&mut uart, register::CONTROL, 0x80);
    write(&mut uart, register::DATA, 1);
    write(&mut uart, register::DATA, 2);
    assert_eq!(read(&mut uart, register::STATUS), 8);
    write(&mut uart, register::STATUS, 0);
    assert_eq!(read(&mut uart, register::STATUS), 0);
    write(&mut uart, register::CLEAR, cause::OVERRUN.into());
    assert_eq!(read(&mut uart, register::RAW) & u64::from(cause::OVERRUN), 0);
}

#[test]
fn in_loopback_the_modem_is_its_own_other_end() {
    let mut uart = begun();
    for (output, line, cause) in [(1 << 11, 1, 2), (1 << 10, 2, 8), (1 << 12, 4, 4), (1 << 13, 1 << 8, 1)] {
        write(&mut uart, register::CONTROL, output);
        assert_eq!(read(&mut uart, register::FLAGS), 0x90, "no modem");
        write(&mut uart, register::CONTROL, output | 0x80);
        assert_eq!(read(&mut uart, register::FLAGS), 0x90 | line);
        assert_eq!(read(&mut uart, register::RAW), cause);
        write(&mut uart, register::CLEAR, cause);
        write(&mut uart, register::CONTROL, 0x80);
        assert_eq!(read(&mut uart, register::RAW), cause, "the line has fallen");
        write(&mut uart, register::CLEAR, cause);
    }
}

#[test]
fn narrow_accesses_move_a_register_s_low_bytes_and_wide_ones_two_registers() {
    let mut uart = begun();
    assert_eq!(uart.write(register::LOW_POWER, Width::Double, 0x1234_0000_0000), Ok(None));
    assert_eq!(uart.read(register::RATE, Width::Word), Ok(0x1234));
    assert_eq!(uart.read(register::LOW_POWER, Width::Double), Ok(0x1234_0000_0000));
    assert_eq!(uart.read(register::RATE, Width::Byte), Ok(0x34));
    assert_eq!(uart.read(register::RATE + 1, Width::Byte), Ok(0x34), "the byte's place doesn't count");
    assert_eq!(uart.write(register::RATE, Width::Byte, 0x99), Ok(None));
    assert_eq!(uart.read(register::RATE, Width::Word), Ok(0x99));
}

#[test]
fn crooked_and_far_accesses_are_refused() {
    let mut uart = begun();
    for (offset, width) in [
        (1, Width::Half),
        (2, Width::Word),
        (4, Width::Double),
        (0x1000, Width::Byte),
        (u64::MAX, Width::Byte),
    ] {
        assert_eq!(uart.read(offset, width), Err(NoSuchAccess), "{offset:#x} {width:?}");
        assert_eq!(uart.write(offset, width, 0x41), Err(NoSuchAccess), "{offset:#x} {width:?}");
    }
    assert_eq!((uart.read(0x80, Width::Word), uart.write(0x80, Width::Word, 1)), (Ok(0), Ok(None)));
}

#[test]
fn before_reset_it_is_harmless() {
    let mut uart = Pl011::new();
    assert_eq!(read(&mut uart, register::FLAGS), 0x90);
    assert!(uart.receive(1) && !uart.receive(2) && !uart.interrupt());
}

/// What a guest, or the line, may do.
#[derive(Clone, Debug)]
enum Step {
    Read(u64),
    Write(u64, u64),
    Receive(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let register = (0_u64..20).prop_map(|index| index * 4);
    let step = prop_oneof![
        register.clone().prop_map(Step::Read),
        (register, any::<u64>()).prop_map(|(offset, value)| Step::Write(offset, value)),
        any::<u8>().prop_map(Step::Receive),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn whatever_is_done_the_flags_tell_the_truth(steps in steps()) {
        let mut uart = begun();
        for step in steps {
            match step {
                Step::Read(offset) => drop(uart.read(offset, Width::Word)),
                Step::Write(offset, value) => drop(uart.write(offset, Width::Word, value)),
                Step::Receive(byte) => {
                    let room = uart.room();
                    prop_assert_eq!(uart.receive(byte), room > 0);
                    prop_assert_eq!(uart.room(), room.saturating_sub(1));
                }
            }
            let flags = uart.flags();
            prop_assert_eq!(flags & 0x10 != 0, uart.waiting == 0);
            prop_assert_eq!(flags & 0x40 != 0, uart.waiting == uart.depth());
            prop_assert!(uart.waiting <= uart.depth());
            prop_assert!(uart.waiting > 0 || uart.raw & 0x50 == 0, "nothing to receive, nothing asked");
        }
    }
}
