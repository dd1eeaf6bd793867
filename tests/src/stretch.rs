//! The longest stretch without a preemption point, held against a bound.
//!
//! The control domain has the hypervisor measure the longest operations that a guest can ask for, and the end of a domain
//! (`guest-core`, `bench/stretches.rs`). Instructions are counted, so a figure is the same on every computer.

use crate::case::{Board, Case};
use crate::verdict;

/// No stretch may be longer, in instructions.
pub const LONGEST: u64 = 600_000;
/// What is measured.
const OPERATIONS: [&str; 15] = [
    "mmu-update-100000",
    "multicall-30000",
    "tree-of-64-tables",
    "root-of-64-tables",
    "balloon-512",
    "exchange-512",
    "hook-4-emptied-tables",
    "hook-4-rewritten-tables",
    "multicall-poll-128",
    "multicall-reset",
    "multicall-initialise-vcpu",
    "grants-500",
    "pins-then-superpage",
    "exchange-then-superpage",
    "destroy-domain",
];
/// What is measured besides on x86-64: there guests have trap handlers and segments, and a trap needs all tables hooked in before it can
/// come.
const X86_OPERATIONS: [&str; 8] = [
    "multicall-trap-table",
    "multicall-set-gdt",
    "multicall-set-gdt-anew",
    "multicall-set-ldt-anew",
    "set-gdt-then-superpage",
    "set-ldt-then-superpage",
    "breakpoint-4-emptied-tables",
    "page-fault-4-emptied-tables",
];

/// The bound, on one machine. The domain that ends has only 256 MiB: `cargo xtask bench` measures it with 4 GiB.
pub fn cases(board: Board) -> Vec<Case> {
    let case = Case::new(board, "preemption/longest-stretches", "stretches then=poweroff");
    let case = Case {
        icount: true,
        // On a PC, as much as takes RAM on both sides of the hole below 4 GiB.
        memory: if board == Board::Q35 { 5120 } else { 1024 },
        // The large tree maps 128 MiB of the control domain's memory.
        words: "dom0_mem=256M",
        limit: 300,
        finding: Some(if board == Board::Q35 { every_x86_stretch_is_short } else { every_stretch_is_short }),
        ..case
    };
    vec![case.domain("domain=victim memory=256M").says(&["(d0) STRETCH end"])]
}

/// Operations and their longest stretches, as the control domain says them: `STRETCH name instructions`.
pub fn stretches(text: &str) -> impl Iterator<Item = (&str, u64)> {
    verdict::lines_of(text, verdict::CONTROL).filter_map(|line| {
        let (name, longest) = line.strip_prefix("STRETCH ")?.split_once(' ')?;
        Some((name, longest.parse().ok()?))
    })
}

/// Whether all operations were done, however long they went on: for a hypervisor that judges each access besides.
pub fn every_operation_was_measured(text: &str) -> Result<(), String> {
    let is_missing = |operation: &&&str| !stretches(text).any(|(name, _)| name == **operation);
    match OPERATIONS.iter().find(is_missing) {
        Some(operation) => Err(format!("{operation} was not measured")),
        None => Ok(()),
    }
}

fn every_stretch_is_short(text: &str) -> Result<(), String> {
    are_short(text, &OPERATIONS)?;
    roots_have_one_budget(text)
}

/// A tree is validated in the same pieces whether it is pinned or loaded. Who tries first whether it can be loaded at once, and spends a budget
/// of its own on it, makes pieces of twice the length, which would still be below the bound.
fn roots_have_one_budget(text: &str) -> Result<(), String> {
    let of = |wanted| stretches(text).find_map(|(name, longest)| (name == wanted).then_some(longest));
    match (of("tree-of-64-tables"), of("root-of-64-tables")) {
        (Some(pinned), Some(loaded)) if loaded <= pinned + pinned / 2 => Ok(()),
        (pinned, loaded) => {
            Err(format!("a tree that is pinned and one that is loaded: {pinned:?}, {loaded:?}"))
        }
    }
}

fn every_x86_stretch_is_short(text: &str) -> Result<(), String> {
    every_stretch_is_short(text).and_then(|()| are_short(text, &X86_OPERATIONS))
}

fn are_short(text: &str, operations: &[&str]) -> Result<(), String> {
    for operation in operations {
        match stretches(text).find(|(name, _)| name == operation) {
            Some((_, 1..=LONGEST)) => {}
            Some((_, longest)) => {
                return Err(format!("{operation} goes on for {longest} instructions, not 1 to {LONGEST}"));
            }
            None => return Err(format!("{operation} was not measured")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(last: &str) -> String {
        let others = OPERATIONS[..14].iter().map(|name| format!("(d0) STRETCH {name} 12\n"));
        others.chain([format!("(d0) STRETCH destroy-domain {last}\n(d0) STRETCH end\n")]).collect()
    }

    #[test]
    fn one_instruction_too_many_is_noticed() {
        assert_eq!(every_stretch_is_short(&text("600000")), Ok(()));
        assert!(every_stretch_is_short(&text("600001")).is_err());
    }

    #[test]
    fn a_root_that_takes_longer_than_its_tree_is_noticed() {
        let longer = |by: &str| text("1").replace("root-of-64-tables 12", &format!("root-of-64-tables {by}"));
        assert_eq!(every_stretch_is_short(&longer("18")), Ok(()));
        assert!(every_stretch_is_short(&longer("19")).is_err());
    }

    #[test]
    fn a_trap_counts_where_it_needs_the_tables() {
        let traps = |names: &[&str]| -> String {
            names.iter().map(|name| format!("(d0) STRETCH {name} 600000\n")).chain([text("1")]).collect()
        };
        assert!(every_x86_stretch_is_short(&text("1")).is_err());
        assert!(every_x86_stretch_is_short(&traps(&X86_OPERATIONS[..7])).is_err());
        let all = traps(&X86_OPERATIONS);
        assert_eq!(every_x86_stretch_is_short(&all), Ok(()));
        assert!(every_x86_stretch_is_short(&all.replacen("600000", "600001", 1)).is_err());
    }

    #[test]
    fn what_was_not_measured_is_not_short() {
        for last in ["0", "failed ETIMEDOUT", ""] {
            assert!(every_stretch_is_short(&text(last)).is_err(), "{last}");
        }
    }
}
