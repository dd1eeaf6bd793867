//! Whatever guests do, once more under the oracle: a second stage of translation that knows nothing of page tables, only of frames.
//! What the validator lets through by mistake, it stops (docs/aarch64-confinement.md).

use crate::case::{Board, Case, End, Hypervisor};
use crate::stretch;

/// Those of `all` that show guests at work.
pub fn judged(board: Board, all: &[Case]) -> Vec<Case> {
    const CHAPTERS: [&str; 8] =
        ["tour", "guest-test/", "domain-end/", "boot/", "bad-input/", "console/", "preemption/", "soak/"];
    if board != Board::Virt {
        return Vec::new();
    }
    let chosen = all.iter().filter(|case| {
        let name = case.name.trim_start_matches("aarch64/");
        CHAPTERS.iter().any(|chapter| name.starts_with(chapter))
    });
    let judged = chosen.map(|case| {
        let mut case = Case { hypervisor: Hypervisor::PenumbraWithOracle, ..case.clone() };
        case.name = case.name.replacen("aarch64/", "aarch64/oracle/", 1);
        // It is switched on when the hypervisor has its own tables.
        let at = usize::from(case.story.first().is_some_and(|text| text.contains("own tables: ")));
        case.story.insert(at, "(PEN) oracle: every frame that a guest reaches is judged");
        if case.end == End::Off {
            case.story.push("first accesses were judged");
        }
        if case.name.contains("/preemption/") {
            // What it judges counts as the operations' own: how long they go on is no figure then.
            case.finding = Some(stretch::every_operation_was_measured);
        }
        case.limit *= 3;
        case
    });
    judged.collect()
}
