//! The clock with a battery (MC146818), which every PC has: what time of day it is.
//!
//! Source: the Motorola MC146818 data sheet; the century isn't read, so years are 2000 to 2099.

use x86_64::instructions::port::Port;

/// Registers.
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_B: u8 = 0x0b;

/// In [`STATUS_B`]: numbers are binary, hours count to 24.
const BINARY: u8 = 1 << 2;
const HOURS_24: u8 = 1 << 1;
/// In the hours: past noon, where they count to 12.
const AFTERNOON: u8 = 1 << 7;

/// How often the clock is read, at most, until it says the same twice: it may be read in the middle of a change.
const TRIES: u32 = 8;

/// What the clock's registers hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Reading {
    seconds: u8,
    minutes: u8,
    hours: u8,
    day: u8,
    month: u8,
    year: u8,
    status: u8,
}

impl Reading {
    fn number(self, register: u8) -> u64 {
        match self.status & BINARY {
            0 => u64::from(register >> 4) * 10 + u64::from(register & 15),
            _ => register.into(),
        }
    }

    fn hour(self) -> u64 {
        if self.status & HOURS_24 != 0 {
            return self.number(self.hours);
        }
        let hour = self.number(self.hours & !AFTERNOON) % 12;
        if self.hours & AFTERNOON == 0 { hour } else { hour + 12 }
    }

    /// Seconds since 1970; `None` if that is no time.
    fn since_1970(self) -> Option<u64> {
        let [second, minute, day, month, year] =
            [self.seconds, self.minutes, self.day, self.month, self.year]
                .map(|register| self.number(register));
        let hour = self.hour();
        let is_time =
            second < 60 && minute < 60 && hour < 24 && (1..=31).contains(&day) && (1..=12).contains(&month);
        (is_time && year < 100)
            .then(|| ((days_before(2000 + year, month) + day - 1) * 24 + hour) * 3600 + minute * 60 + second)
    }
}

/// Days from 1970 to the first of a month, in years 2000 to 2099, of which every fourth is a leap year.
fn days_before(year: u64, month: u64) -> u64 {
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    const BEFORE_2000: u64 = 10957;
    let years = year - 2000;
    let leap_day = u64::from(year.is_multiple_of(4) && month > 2);
    let in_year = BEFORE.get(month as usize - 1).copied().unwrap_or(0);
    BEFORE_2000 + years * 365 + years.div_ceil(4) + in_year + leap_day
}

/// # Safety
/// As for [`seconds`].
unsafe fn read() -> Reading {
    let register = |number: u8| {
        // SAFETY: selecting a register and reading it changes nothing, and the caller says that nobody else selects one meanwhile.
        unsafe {
            Port::<u8>::new(0x70).write(number);
            Port::<u8>::new(0x71).read()
        }
    };
    Reading {
        seconds: register(SECONDS),
        minutes: register(MINUTES),
        hours: register(HOURS),
        day: register(DAY),
        month: register(MONTH),
        year: register(YEAR),
        status: register(STATUS_B),
    }
}

/// Seconds since 1970, as the clock says in universal time; `None` if what it says is no time.
///
/// # Safety
/// Nobody else uses the clock's ports (0x70, 0x71) meanwhile.
pub unsafe fn seconds() -> Option<u64> {
    // SAFETY: the caller's promise, here and below.
    let mut last = unsafe { read() };
    for _ in 0..TRIES {
        // SAFETY: as above.
        let again = unsafe { read() };
        if again == last {
            return last.since_1970();
        }
        last = again;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const BINARY_24: u8 = BINARY | HOURS_24;

    const fn at(year: u8, month: u8, day: u8, hours: u8, minutes: u8, seconds: u8, status: u8) -> Reading {
        Reading { seconds, minutes, hours, day, month, year, status }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        // From `date -u -d ... +%s`.
        assert_eq!(at(0, 1, 1, 0, 0, 0, BINARY_24).since_1970(), Some(946_684_800));
        assert_eq!(at(24, 2, 29, 23, 59, 59, BINARY_24).since_1970(), Some(1_709_251_199));
        assert_eq!(at(24, 3, 1, 0, 0, 0, BINARY_24).since_1970(), Some(1_709_251_200));
        assert_eq!(at(26, 11, 23, 17, 5, 30, BINARY_24).since_1970(), Some(1_795_453_530));
        assert_eq!(at(99, 12, 31, 23, 59, 59, BINARY_24).since_1970(), Some(4_102_444_799));
    }

    #[test]
    fn decimal_digits_and_twelve_hours() {
        let binary = at(26, 11, 23, 17, 5, 30, BINARY_24).since_1970();
        assert_eq!(at(0x26, 0x11, 0x23, 0x17, 0x05, 0x30, HOURS_24).since_1970(), binary);
        assert_eq!(at(0x26, 0x11, 0x23, 0x05 | AFTERNOON, 0x05, 0x30, 0).since_1970(), binary);
        let midnight = at(26, 11, 23, 0, 0, 0, BINARY_24).since_1970();
        assert_eq!(at(26, 11, 23, 12, 0, 0, BINARY).since_1970(), midnight);
        let noon = at(26, 11, 23, 12, 0, 0, BINARY_24).since_1970();
        assert_eq!(at(26, 11, 23, 12 | AFTERNOON, 0, 0, BINARY).since_1970(), noon);
    }

    #[test]
    fn what_is_no_time_is_refused() {
        // An empty battery, or no clock at all.
        assert_eq!(Reading::default().since_1970(), None);
        assert_eq!(at(0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff).since_1970(), None);
    }
}
