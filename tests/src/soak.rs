//! The soak: hostile domains at full tilt, beside one that looks after its memory.
//!
//! Instructions are counted, so that one seed is one run, to the last instruction: what a seed has found, it finds again.

use crate::case::{Board, Case, architecture};
use crate::verdict;

/// Operations of each hostile domain when a person asks for minutes: a run takes about one.
pub const OPERATIONS: u64 = 20_000;
/// The seed of the run that belongs to every test run.
const SEED: u64 = 7;
/// Operations of each hostile domain in a test run.
pub const OPERATIONS_IN_TESTS: u64 = 12_000;
/// Seconds after which a run is stopped. Its end is a matter of instructions: this is only for machines that stand still.
const LIMIT: u64 = 600;
/// Hostile domains that begin at once, and as many again that begin later.
const AT_ONCE: u64 = 2;
const TURNS_TO_WAIT: [u64; 2] = [0, 400];
/// How the witness speaks.
const WITNESS: &str = "(d1) ";

/// The soak with one seed.
pub fn case(board: Board, seed: u64, operations: u64) -> Case {
    let hostile = TURNS_TO_WAIT.into_iter().flat_map(|wait| (0..AT_ONCE).map(move |number| (wait, number)));
    let mut case = Case {
        name: format!("{}/soak/seed-{seed:#x}", architecture(board)),
        icount: true,
        limit: LIMIT,
        finding: Some(the_witness_lost_nothing),
        ..Case::new(board, "soak", "soak=control then=poweroff")
    }
    .domain("domain=witness memory=8M soak=witness")
    .says(&["(d1) witness: round 1,", "(d0) SOAK: PASS"]);
    for (wait, number) in hostile {
        let seed = seed.wrapping_mul(0x1_0001).wrapping_add(wait + number);
        let words = format!(
            "domain=hostile memory=8M soak=hostile seed={seed:#x} operations={operations} wait={wait}"
        );
        // A person's run makes a few of these in an hour; they may stay.
        case = case.domain(words.leak());
    }
    // A hostile domain may say that it panicked: that is its own affair.
    case.forbidden.retain(|word| *word != "panic");
    case.forbidden.extend(["hypervisor panic", "witness: LOST"]);
    case
}

/// The soak that belongs to every test run.
pub fn cases(board: Board) -> Vec<Case> {
    vec![case(board, SEED, OPERATIONS_IN_TESTS)]
}

/// The seeds after that one, which a test run goes on with for as long as it is told to.
pub fn further(board: Board) -> impl Iterator<Item = (u64, Case)> {
    (SEED + 1..).map(move |seed| (seed, case(board, seed, OPERATIONS_IN_TESTS)))
}

/// The witness's lines are whole, in order, and each has the right sum.
fn the_witness_lost_nothing(text: &str) -> Result<(), String> {
    let lines = verdict::lines_of(text, WITNESS).skip_while(|line| !line.starts_with("witness: "));
    for (line, round) in lines.zip(1u64..) {
        let (end, sum) = (format!(", sum {:#x}", mix(round)), format!("witness: round {round}, "));
        if !line.starts_with(&sum) || !line.ends_with(&end) {
            return Err(format!("the witness's line {round} is {line:?}"));
        }
    }
    Ok(())
}

/// The witness's own function (`guest-core`, `soak/random.rs`), written a second time.
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rounds: &[u64]) -> String {
        rounds
            .iter()
            .map(|round| format!("(d1) witness: round {round}, 9 pages, sum {:#x}\n", mix(*round)))
            .collect()
    }

    #[test]
    fn the_witness_must_be_heard_in_order_and_whole() {
        assert_eq!(the_witness_lost_nothing(&lines(&[1, 2, 3])), Ok(()));
        assert!(the_witness_lost_nothing(&lines(&[1, 3])).is_err());
        assert!(the_witness_lost_nothing("(d1) witness: round 1, 9 pages, sum 0x1\n").is_err());
        assert!(the_witness_lost_nothing("(d1) witness: LOST a word\n").is_err());
    }

    #[test]
    fn further_seeds_are_others() {
        let names: Vec<String> = further(Board::Q35).take(2).map(|(_, case)| case.name).collect();
        assert_eq!(names, ["x86_64/soak/seed-0x8", "x86_64/soak/seed-0x9"]);
    }

    #[test]
    fn one_seed_is_one_run() {
        let words = |seed| case(Board::Virt, seed, 5).modules;
        assert_eq!(words(1), words(1));
        assert_ne!(words(1), words(2));
    }
}
