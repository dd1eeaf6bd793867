//! Where the console goes, as Xen's command line says it: `console=com1 com1=115200,8n1`.
//!
//! Only COM1 exists here, so `console=` can name it or be wrong; what is wrong is handed back to be logged, and COM1 is
//! used all the same.

use core::fmt;

/// The serial line's settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Serial {
    /// Bits a second, one of the rates that a 16550 can be set to from 1.8432 MHz.
    pub baud: u32,
}

impl Default for Serial {
    fn default() -> Self {
        Self { baud: 115_200 }
    }
}

/// A word of the command line that makes no sense here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Complaint<'a> {
    /// The word.
    pub word: &'a str,
    /// Why it can't be used, and what is done instead.
    pub reason: &'static str,
}

impl fmt::Display for Complaint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "option {:?}: {}", self.word, self.reason)
    }
}

/// Reads the serial settings; calls `complain` for each word that is about the console and can't be used.
pub fn serial<'a>(command_line: &'a str, mut complain: impl FnMut(Complaint<'a>)) -> Serial {
    let mut serial = Serial::default();
    for word in command_line.split_ascii_whitespace() {
        let outcome = match word.split_once('=') {
            Some(("console", devices)) => check_console(devices),
            Some(("com1", settings)) => read_settings(settings).map(|found| serial = found),
            _ => Ok(()),
        };
        if let Err(reason) = outcome {
            complain(Complaint { word, reason });
        }
    }
    serial
}

fn check_console(devices: &str) -> Result<(), &'static str> {
    if devices.split(',').any(|device| device == "com1") {
        Ok(())
    } else {
        Err("only com1 exists, com1 is used")
    }
}

/// `baud[/base][,DPS[,port[,irq]]]`: `auto` leaves the rate, the rest is accepted as the one setting there is.
fn read_settings(settings: &str) -> Result<Serial, &'static str> {
    let mut parts = settings.split(',');
    let rate = parts.next().unwrap_or("");
    let rate = rate.split('/').next().unwrap_or(rate);
    let serial = match rate {
        "auto" | "" => Serial::default(),
        digits => {
            Serial { baud: digits.parse().ok().filter(possible).ok_or("no rate of a 16550, 115200 is used")? }
        }
    };
    match parts.next() {
        None | Some("" | "8n1") => Ok(serial),
        Some(_) => Err("only 8n1 can be set, 8n1 is used"),
    }
}

fn possible(baud: &u32) -> bool {
    *baud > 0 && 115_200 % *baud == 0 && 115_200 / *baud <= 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> (u32, usize) {
        let mut complaints = 0;
        (serial(line, |_| complaints += 1).baud, complaints)
    }

    #[test]
    fn accepts_what_xen_accepts() {
        assert_eq!(read("console=com1 com1=115200 dom0_mem=256M"), (115_200, 0));
        assert_eq!(read("com1=9600,8n1,0x3f8,4 console=vga,com1"), (9600, 0));
        assert_eq!(read("com1=auto"), (115_200, 0));
        assert_eq!(read("com1=38400/1843200"), (38_400, 0));
        assert_eq!(read(""), (115_200, 0));
    }

    #[test]
    fn complains_and_goes_on() {
        assert_eq!(read("com1=lots"), (115_200, 1));
        assert_eq!(read("com1=0 console=tape"), (115_200, 2));
        assert_eq!(read("com1=115201"), (115_200, 1));
        assert_eq!(read("com1=115200,7e2"), (115_200, 1));
    }
}
