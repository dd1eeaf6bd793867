//! Consoles: who gets what is typed, the hypervisor's own keys, the log, and a domain's console page.

use crate::case::{Board, Case};
use crate::table::{NEIGHBOUR, PROMPT};
use crate::verdict;

/// CTRL-a three times: the input goes to the next who takes some.
pub(crate) const SWITCH: &str = "\x01\x01\x01";

/// CTRL-a three times, and the keys of the hypervisor's prompt.
pub fn cases(board: Board) -> Vec<Case> {
    let prompt = Case::new(board, "console/switch-and-keys", "then=shell").domain(NEIGHBOUR).types(&[
        // Twice isn't three times, and once more after another key isn't either: all of this is the control domain's.
        (PROMPT, "\x01\x01he\x01lp\r"),
        ("poweroff, reboot", ""),
        (PROMPT, SWITCH),
        ("input goes to the hypervisor", "?"),
        ("keys: ", "q"),
        ("(PEN) d1: guest, Alive", "m"),
        ("(PEN) memory: ", "a"),
        ("(PEN) audit: ", SWITCH),
        ("input goes to the control domain", "xm list\r"),
        ("CPU time", "poweroff\r"),
    ]);
    let mut prompt = prompt.says(&[
        "(d0)   poweroff, reboot",
        "input goes to the hypervisor",
        "keys: ? this help, q domains, m memory, a audit, r reboot",
        ": clean",
        "(d0)   1 ",
    ]);
    prompt.finding = Some(the_input_switched_twice);
    let reboot = Case::new(board, "console/reboot-key", "then=shell")
        .types(&[(PROMPT, SWITCH), ("input goes to the hypervisor", "r")])
        .says(&["(PEN) reboot, as asked on the console"]);
    let log = Case::new(board, "console/log-ring", "then=shell")
        .types(&[(PROMPT, "xm dmesg\r"), (PROMPT, "poweroff\r")])
        .says(&["xm dmesg", "(d0) d0: control, Alive"]);
    vec![prompt, reboot, log, console_ring(board)]
}

/// A domain's console page: it writes there, gets the input, and reads what is typed, while the control domain has its own.
fn console_ring(board: Board) -> Case {
    let mut case = Case::new(board, "console/ring-of-a-second-domain", "then=shell")
        .domain("domain=ringer memory=16M test=console-ring")
        .domain(NEIGHBOUR)
        .types(&[
            ("(d1) ring: type a line here", SWITCH),
            ("input goes to d1", "what was typed\r"),
            ("(d1) TEST console-ring: PASS", SWITCH),
            ("input goes to the hypervisor", "a"),
            ("(PEN) audit: ", SWITCH),
            ("input goes to the control domain", "\rpoweroff\r"),
        ])
        .says(&[
            "(d1) ring: hello through the ring",
            "(d1) ring: line 99 of a hundred",
            "(d1) ring: and it still works",
            "(d1) ring: typed: what was typed",
            "(d1) TEST console-ring: PASS",
            ": clean",
        ]);
    // The neighbour doesn't use its console, and so takes no part in the round.
    case.forbidden.push("input goes to d2");
    case.finding = Some(a_hundred_lines_whole);
    case
}

fn a_hundred_lines_whole(text: &str) -> Result<(), String> {
    let lines: Vec<&str> =
        text.lines().filter_map(|line| line.trim_end().strip_prefix("(d1) ring: line ")).collect();
    let expected = (0..100)
        .map(|number| format!("{number:02} of a hundred, which together are longer than the ring is"));
    match expected.eq(lines.iter().map(ToString::to_string)) {
        true => Ok(()),
        false => Err(format!(
            "a hundred lines in their order went through the ring, and these came out: {lines:?}"
        )),
    }
}

/// There and back, and never else.
fn the_input_switched_twice(text: &str) -> Result<(), String> {
    let switches =
        verdict::lines_of(text, verdict::HYPERVISOR).filter(|line| line.starts_with("input goes to "));
    match switches.count() {
        2 => Ok(()),
        count => Err(format!("the input switched {count} times, not twice")),
    }
}
