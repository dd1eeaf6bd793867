//! Reading a machine's serial output.
//!
//! Each line begins with its speaker: `(PEN) ` for the hypervisor, `(d0) ` for the control domain, `(d1) ` and so on
//! for the others. A verdict counts only from the control domain: another domain could print anything.

/// The control domain's prefix.
pub const CONTROL: &str = "(d0) ";
/// The hypervisor's prefix.
pub const HYPERVISOR: &str = "(PEN) ";

/// With what the hypervisor's reports on itself begin: its panic and fault handlers write them, each on a line of its own.
const OWN_FAULTS: [&str; 2] = ["hypervisor panic", "hypervisor fault"];
/// With what the hypervisor's errors begin after which nothing more will come, and with what the others of them end.
const LAST_ERRORS: [&str; 2] = ["the first domain", "there is no boot module"];
const STOPS: [&str; 2] = ["; the machine stops", " has crashed: the machine stops"];

/// With what a Linux ramdisk's verdicts begin (`workloads/init`).
pub const LINUX: [&str; 2] = ["SELF-CHECK: ", "WORKLOADS: "];

/// What the tour, or another test that ends with a single line, found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Everything was as described.
    Pass,
    /// Something was not; its words.
    Fail(String),
}

/// The control domain's last verdict on the tour, if it gave one.
pub fn of_the_tour(text: &str) -> Option<Verdict> {
    lines_of(text, CONTROL).filter_map(|line| line.strip_prefix("TOUR: ")).map(read).last()
}

/// What the control domain's tests (`test=`) found: a failure if any of them failed.
pub fn of_the_tests(text: &str) -> Option<Verdict> {
    let lines: Vec<&str> = lines_of(text, CONTROL).filter(|line| line.starts_with("TEST ")).collect();
    let failed = lines.iter().find(|line| !line.ends_with(": PASS"));
    failed.map(|line| Verdict::Fail((*line).into())).or((!lines.is_empty()).then_some(Verdict::Pass))
}

/// The control domain's verdict on the soak (`soak=control`).
pub fn of_the_soak(text: &str) -> Option<Verdict> {
    lines_of(text, CONTROL).filter_map(|line| line.strip_prefix("SOAK: ")).map(read).last()
}

/// The first domain's verdict on itself, where it is a Linux with our ramdisk: a failure if any of its tests failed.
pub fn of_linux(text: &str) -> Option<Verdict> {
    linux(lines_of(text, CONTROL))
}

/// The same of a Linux whose words reach the serial line as they are: the only domain, with a UART of its own.
pub fn of_linux_alone(text: &str) -> Option<Verdict> {
    linux(text.lines().map(str::trim_end))
}

fn linux<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Verdict> {
    let verdict = |line: &'a str| LINUX.iter().find_map(|topic| line.strip_prefix(topic));
    let verdicts: Vec<Verdict> = lines.filter_map(verdict).map(read).collect();
    verdicts.iter().find(|verdict| **verdict != Verdict::Pass).or(verdicts.last()).cloned()
}

fn read(verdict: &str) -> Verdict {
    if verdict == "PASS" {
        Verdict::Pass
    } else {
        Verdict::Fail(verdict.trim_start_matches("FAIL").trim().into())
    }
}

/// The line with which the hypervisor gave up, if it did.
pub fn stopped(text: &str) -> Option<&str> {
    text.lines().find(|line| is_stop(line))
}

/// Whether this is a line with which the hypervisor says that nothing more will come. Where in the line the words stand matters too: it
/// names the guests' arguments in lines of its own.
pub fn is_stop(line: &str) -> bool {
    let Some(said) = line.strip_prefix(HYPERVISOR).map(str::trim_end) else { return false };
    match said.strip_prefix("error: ") {
        Some(error) => {
            LAST_ERRORS.iter().any(|first| error.starts_with(first))
                || STOPS.iter().any(|last| error.ends_with(last))
        }
        None => OWN_FAULTS.iter().any(|first| said.starts_with(first)),
    }
}

/// The lines of one speaker, without its prefix and without blanks at the end.
pub fn lines_of<'a>(text: &'a str, speaker: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| line.strip_prefix(speaker)).map(str::trim_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_control_domain_gives_the_verdict() {
        assert_eq!(of_the_tour("(d1) TOUR: PASS\n"), None);
        assert_eq!(of_the_tour("TOUR: PASS\n(d0) say TOUR: PASS\n"), None);
        assert_eq!(of_the_tour("(PEN) hello\n(d0) TOUR: PASS\n(d1) TOUR: FAIL 1\n"), Some(Verdict::Pass));
    }

    #[test]
    fn anything_but_pass_is_a_failure() {
        assert_eq!(of_the_tour("(d0) TOUR: FAIL 2 (first: x)"), Some(Verdict::Fail("2 (first: x)".into())));
        assert_eq!(of_the_tour("(d0) TOUR: PASSABLE"), Some(Verdict::Fail("PASSABLE".into())));
        assert_eq!(of_the_tour("(d0) TOUR: PASS\n(d0) TOUR: FAIL 1"), Some(Verdict::Fail("1".into())));
    }

    #[test]
    fn one_test_that_fails_is_a_failure() {
        assert_eq!(of_the_tests("(d1) TEST a: FAIL x\n(d0) TESTY\nTEST a: PASS\n"), None);
        assert_eq!(of_the_tests("(d0) TEST a: PASS\n(d1) TEST b: FAIL x\n"), Some(Verdict::Pass));
        let failed = Some(Verdict::Fail("TEST nosuch: FAIL there is no such test".into()));
        let text = "(d0) TEST nosuch: FAIL there is no such test\n(d0) TEST b: PASS\n";
        assert_eq!(of_the_tests(text), failed);
    }

    #[test]
    fn the_soak_has_a_verdict_of_its_own() {
        assert_eq!(of_the_soak("(d1) SOAK: PASS\n"), None);
        assert_eq!(of_the_soak("(d0) SOAK: PASS\n"), Some(Verdict::Pass));
        assert_eq!(of_the_soak("(d0) SOAK: FAIL\n"), Some(Verdict::Fail(String::new())));
    }

    #[test]
    fn a_linux_passes_if_none_of_its_tests_failed() {
        assert_eq!(of_linux("(d1) SELF-CHECK: PASS\nSELF-CHECK: PASS\n"), None);
        assert_eq!(of_linux("(d0) SELF-CHECK: PASS\n(d0) WORKLOADS: PASS\n"), Some(Verdict::Pass));
        assert_eq!(of_linux_alone("SELF-CHECK: PASS\r\n"), Some(Verdict::Pass));
        assert_eq!(of_linux_alone("(d0) SELF-CHECK: PASS\n(PEN) SELF-CHECK: PASS\n"), None);
        let failed = Some(Verdict::Fail("3 of 4".into()));
        assert_eq!(of_linux("(d0) SELF-CHECK: FAIL 3 of 4\n(d0) WORKLOADS: PASS\n"), failed);
    }

    #[test]
    fn a_stop_is_named_by_its_line() {
        let text = "(PEN) hello\n(PEN) error: the first domain can't start: it is no 64-bit ELF file\n";
        assert!(stopped(text).is_some_and(|line| line.ends_with("it is no 64-bit ELF file")));
        assert_eq!(stopped("(d0) the control domain is well\n"), None);
        for line in [
            "(PEN) error: multiboot information: a module doesn't lie in RAM; the machine stops",
            "(PEN) error: the first domain has crashed: the machine stops",
        ] {
            assert_eq!(stopped(line), Some(line));
        }
    }

    #[test]
    fn what_the_handlers_of_both_machines_write_is_a_stop() {
        for line in [
            "(PEN) hypervisor panic: panicked at hyp-el2/src/start.rs:1:1:",
            "(PEN) hypervisor fault: synchronous, syndrome 0x0, address 0x0",
            "(PEN) hypervisor fault page fault: the machine stops\r",
            "(PEN) hypervisor fault: panicked at hyp-x86/src/boot.rs:1:1:",
        ] {
            // A guest may have been in the middle of a line.
            let text = format!("(d0) prompt> \n{line}\n(PEN) more\n");
            assert_eq!(stopped(&text), Some(line.trim_end()), "{line}");
        }
    }

    #[test]
    fn no_guest_stops_the_machine_by_words() {
        for line in [
            "(d1) ; the machine stops",
            "(d0) guest kernel (x86-64): control domain, words: tour note=hypervisor panic",
            "(d1) (PEN) hypervisor fault page fault: the machine stops",
            "(d1) \r(PEN) error: the first domain has crashed: the machine stops",
            "hypervisor panic",
            "(PEN) module: kernel at 0x50000000, 9 bytes: tour note=hypervisor panic",
            "(PEN) d1 vcpu 0 said hypervisor fault",
        ] {
            assert_eq!(stopped(line), None, "{line}");
        }
    }
}
