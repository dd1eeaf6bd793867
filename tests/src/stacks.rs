//! Domains that go to user mode, or come from there, by a stack that the hypervisor must not use, or can't (x86-64).
//!
//! Each dies alone, and says nothing more; a dozen of them die in one machine. Afterwards every frame has come back, and domain 1 and the
//! control domain are well enough for the whole tour.

use crate::case::{Board, Case};
use crate::verdict;

/// What each domain dies of, from domain 2 on: its words (`guest-x86`, `death.rs`).
const DEATHS: [&str; 11] = [
    "domain=dying memory=16M die=stack-in-the-direct-map",
    "domain=dying memory=16M die=stack-below-the-guests",
    "domain=dying memory=16M die=stack-across-the-guests-first",
    "domain=dying memory=16M die=stack-that-ends-in-a-hole",
    "domain=dying memory=16M die=stack-that-begins-in-a-hole",
    "domain=dying memory=16M die=stack-nowhere",
    "domain=dying memory=16M die=iret-in-the-direct-map",
    "domain=dying memory=16M die=iret-below-the-guests",
    "domain=dying memory=16M die=iret-across-a-hole",
    "domain=dying memory=16M die=iret-round-the-end",
    "domain=dying memory=16M die=iret-without-a-user",
];
/// Frames of each: 16 MiB.
const FRAMES: u64 = 16 << 8;
/// Those which have no stack for the page fault come first, then those without words for `iret`; the last has no user.
const WITHOUT_STACK: usize = 6;
const WITHOUT_WORDS: usize = 10;
const GONE: &str = " is gone; ";
/// The case, in which domain 1 is a tourist with these words.
pub(crate) fn case(board: Board, tourist: &'static str) -> Case {
    let case = Case::new(board, "domain-end/bad-stacks-for-user-mode", "then=shell").domain(tourist);
    let case = DEATHS.into_iter().fold(case, Case::domain);
    let mut case = case
        .types(&[(GONE, ""); DEATHS.len() - 1])
        .types(&[(GONE, "\r"), ("penumbra# ", "xm audit\r"), (": clean", "tour\r"), ("TOUR: ", "poweroff\r")])
        .says(&[GONE, "audit: 0 findings", "(d0) TOUR: PASS"]);
    case.forbidden.push("still alive");
    Case { finding: Some(each_dies_of_its_own), ..case }
}

fn each_dies_of_its_own(text: &str) -> Result<(), String> {
    for (index, words) in DEATHS.into_iter().enumerate() {
        let domain = index + 2;
        let reason = reason(text, index, domain)?;
        let line = format!("error: d{domain} vcpu 0 crashed: {reason}");
        let died = verdict::lines_of(text, verdict::HYPERVISOR).filter(|said| said.trim_end() == line);
        if died.count() != 1 {
            return Err(format!("it should have said once {line:?}, of {words:?}"));
        }
    }
    every_frame_comes_back(text)
}

/// Of what a domain must have died: the log names the place that the domain says it has.
fn reason(text: &str, index: usize, domain: usize) -> Result<String, String> {
    match index {
        0..WITHOUT_STACK => {
            Ok(format!("no stack for exception 14 at {}", said_by(text, domain, "the stack ends at ")?))
        }
        WITHOUT_STACK..WITHOUT_WORDS => {
            let words = said_by(text, domain, "iret with its words at ")?;
            Ok(format!("iret without a context that could be used at {words}"))
        }
        _ => Ok("iret to user mode without a root for it".into()),
    }
}

/// What the domain says behind these words.
fn said_by<'a>(text: &'a str, domain: usize, words: &str) -> Result<&'a str, String> {
    let speaker = format!("(d{domain}) ");
    let mut said =
        text.lines().filter_map(|line| line.trim_end().strip_prefix(&speaker)?.strip_prefix(words));
    said.next().ok_or_else(|| format!("domain {domain} doesn't say {words:?}"))
}

/// Of each that is gone, there are so many more free frames.
fn every_frame_comes_back(text: &str) -> Result<(), String> {
    let free = verdict::lines_of(text, verdict::HYPERVISOR)
        .filter_map(|line| line.split_once(GONE)?.1.split(' ').next()?.parse().ok());
    let free: Vec<u64> = free.collect();
    let all_back = free.windows(2).all(|pair| pair[0].checked_add(FRAMES).is_some_and(|all| pair[1] >= all));
    if free.len() == DEATHS.len() && all_back {
        Ok(())
    } else {
        Err(format!("domains of {FRAMES} frames each are gone, but these were free: {free:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The story with the reasons that there are, but for one domain's.
    fn story(other: usize, reason_of_other: &str) -> String {
        let lines = (0..DEATHS.len()).map(|index| {
            let (domain, free) = (index + 2, 1000 + index as u64 * FRAMES);
            let place = format!("0x{domain}000");
            let (said, reason) = match index {
                0..6 => ("the stack ends at", format!("no stack for exception 14 at {place}")),
                6..10 => (
                    "iret with its words at",
                    format!("iret without a context that could be used at {place}"),
                ),
                _ => ("", "iret to user mode without a root for it".to_owned()),
            };
            let reason = if index == other { reason_of_other.to_owned() } else { reason };
            let died = format!("(PEN) error: d{domain} vcpu 0 crashed: {reason}\n");
            format!("(d{domain}) {said} {place}\n{died}(PEN) d{domain} is gone; {free} frames are free\n")
        });
        lines.collect()
    }

    const NONE: usize = DEATHS.len();

    #[test]
    fn a_death_of_something_else_is_noticed() {
        assert_eq!(each_dies_of_its_own(&story(NONE, "")), Ok(()));
        let other = |index, reason| each_dies_of_its_own(&story(index, reason));
        assert!(other(3, "page fault").is_err());
        assert!(other(3, "no stack for exception 14 at 0x0").is_err());
        assert!(other(7, "iret without a context that could be used at 0x0").is_err());
        assert!(other(10, "iret without a context that could be used at 0x12000").is_err());
        assert!(each_dies_of_its_own("").is_err());
    }

    #[test]
    fn a_frame_that_stays_away_is_noticed() {
        let last = 1000 + 10 * FRAMES;
        let lost = story(NONE, "").replace(&format!("{last} frames"), &format!("{} frames", last - 1));
        assert!(each_dies_of_its_own(&lost).is_err());
    }
}
