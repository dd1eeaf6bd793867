//! The hypervisor's command line: words as Xen's users write them.
//!
//! An unknown word, or a value that makes no sense, is noted in the log and passed over: a machine has to boot.

use crate::address::PAGE_SHIFT;
use crate::domain::MAX_VCPUS;

/// Options that only the backends or later steps look at, accepted without a word.
const ACCEPTED: [&str; 11] = [
    "console",
    "com1",
    "dtuart",
    "noreboot",
    "loglvl",
    "guest_loglvl",
    "sync_console",
    "console_to_ring",
    "spec-ctrl",
    "no-real-mode",
    "edd",
];

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Options {
    /// `dom0_mem=`: memory of the control domain, in frames.
    pub control_memory: Option<u64>,
    /// `dom0_max_vcpus=`: vCPUs of the control domain.
    pub control_vcpus: Option<u8>,
    /// `dom0=control` or `dom0=plain`: whether the first domain controls the others.
    pub first_is_control: Option<bool>,
}

impl Options {
    /// Reads a command line; `complain` is told of each word that is passed over.
    pub fn parse(line: &str, mut complain: impl FnMut(core::fmt::Arguments<'_>)) -> Self {
        let mut options = Self::default();
        for word in line.split_ascii_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name {
                "dom0_mem" => match parse_size(value, 10) {
                    Some(bytes) if bytes >> PAGE_SHIFT > 0 => {
                        options.control_memory = Some(bytes >> PAGE_SHIFT);
                    }
                    _ => complain(format_args!(
                        "dom0_mem={value}: not a size, such as 100000 (KiB), 512M or 1G"
                    )),
                },
                "dom0_max_vcpus" => match parse_vcpus(value) {
                    Some(count) => options.control_vcpus = Some(count),
                    None => {
                        complain(format_args!("dom0_max_vcpus={value}: not a number from 1 to {MAX_VCPUS}"))
                    }
                },
                "dom0" => options.set_first(value, &mut complain),
                _ if ACCEPTED.contains(&name) => {}
                _ => complain(format_args!("unknown option {word:?} is ignored")),
            }
        }
        options
    }

    /// `dom0=` has a list, as in Xen, whose own `pv` says what is so anyway.
    fn set_first(&mut self, list: &str, complain: &mut impl FnMut(core::fmt::Arguments<'_>)) {
        for role in list.split(',') {
            match role {
                "control" => self.first_is_control = Some(true),
                "plain" => self.first_is_control = Some(false),
                "pv" => {}
                _ => complain(format_args!("dom0={role}: neither control nor plain, ignored")),
            }
        }
    }
}

/// Reads a number of vCPUs that a domain can have.
pub fn parse_vcpus(text: &str) -> Option<u8> {
    text.parse().ok().filter(|count| (1..=MAX_VCPUS).contains(&usize::from(*count)))
}

/// Reads a size in bytes: decimal digits (or `0x`), then perhaps B, K, M, G or T; without a letter, units of `1 <<
/// default_shift` bytes. `None` if it is anything else, or more than 64 bits. A list such as `512M,max:1G`
/// is read up to its comma.
pub fn parse_size(text: &str, default_shift: u32) -> Option<u64> {
    let text = text.split(',').next()?;
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'b' | 'B') if !text.starts_with("0x") => (text.get(..at)?, 0),
        (at, 'k' | 'K') => (text.get(..at)?, 10),
        (at, 'm' | 'M') => (text.get(..at)?, 20),
        (at, 'g' | 'G') => (text.get(..at)?, 30),
        (at, 't' | 'T') => (text.get(..at)?, 40),
        _ => (text, default_shift),
    };
    let number = match digits.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16),
        None => digits.parse(),
    };
    number.ok()?.checked_mul(1u64.checked_shl(shift)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn complaints(line: &str) -> (Options, Vec<String>) {
        let mut said = Vec::new();
        let options = Options::parse(line, |text| said.push(text.to_string()));
        (options, said)
    }

    #[test]
    fn dom0_mem_counts_in_kib_unless_told_otherwise() {
        assert_eq!(parse_size("100000", 10), Some(102_400_000));
        assert_eq!(parse_size("512M", 10), Some(512 << 20));
        assert_eq!(parse_size("1g,max:2G", 10), Some(1 << 30));
        assert_eq!(parse_size("0x10k", 10), Some(0x4000));
        assert_eq!(complaints("dom0_mem=100000").0.control_memory, Some(25_000));
        assert_eq!(complaints("console=com1 com1=115200 dom0_mem=64M").0.control_memory, Some(16384));
    }

    #[test]
    fn nonsense_is_named_and_passed_over() {
        let (options, said) = complaints("dom0_mem=lots frobnicate dom0_mem=0");
        assert_eq!(options.control_memory, None);
        assert_eq!(
            complaints("dom0_max_vcpus=4"),
            (Options { control_vcpus: Some(4), ..Options::default() }, vec![])
        );
        assert_eq!(complaints("dom0_max_vcpus=0 dom0_max_vcpus=9 dom0_max_vcpus=x").1.len(), 3);
        assert_eq!(said.len(), 3);
        assert!(said[0].contains("dom0_mem=lots") && said[1].contains("frobnicate"), "{said:?}");
        assert_eq!(complaints("dom0=plain").0.first_is_control, Some(false));
        assert_eq!(
            complaints("dom0=pv,control"),
            (Options { first_is_control: Some(true), ..Options::default() }, vec![])
        );
        let (options, said) = complaints("dom0=pvh,shadow");
        assert_eq!((options.first_is_control, said.len()), (None, 2), "{said:?}");
        assert_eq!(parse_size("99999999999999999999G", 10), None);
        assert_eq!(parse_size("18446744073709551615T", 10), None);
        assert_eq!(parse_size("", 10), None);
    }

    proptest! {
        #[test]
        fn any_command_line_is_survived(line in ".*") {
            let _ = complaints(&line);
            let _ = parse_size(&line, 10);
        }
    }
}
