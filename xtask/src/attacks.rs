//! docs/attacks.md says of each attack which tests try it; a rule of the house sees to it that these exist.
//!
//! A test is named between backquotes, as `cargo xtask test` names it: `aarch64/...` or `x86_64/...` for a machine's (`*/...` for
//! both; `*/guest-test/CHAPTER/NAME` stands for one line of a chapter's test), `loom/NAME`, `fuzz/TARGET`, `host/...` for cargo's own, of which the last part is the function's name. A name may be
//! cut short: `host/paging` stands for nothing, `aarch64/guest-test` for all that begin so.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use machine_tests::case::Board;
use machine_tests::table;

use crate::apart;
use crate::workspace;

/// The page.
const PAGE: &str = "docs/attacks.md";
/// Folders with cargo's own tests.
const HOST: [&str; 9] =
    ["hyp-core", "hyp-el2", "hyp-x86", "platform", "guest-core", "model", "tests", "unpack", "xtask"];

/// Each name on the page that no test has.
pub fn without_a_test() -> Result<Vec<String>> {
    let page = workspace::root().join(PAGE);
    if !page.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(&page).with_context(|| format!("cannot read {PAGE}"))?;
    let mut host = String::new();
    HOST.iter().for_each(|folder| gather(&workspace::root().join(folder), &mut host));
    let mut loom = String::new();
    gather(&workspace::root().join("races/tests"), &mut loom);
    let missing = names(&text).filter(|name| !exists(name, &host, &loom));
    Ok(missing.map(|name| format!("{PAGE}: there is no test {name}")).collect())
}

/// What stands between backquotes and begins as a test's name does.
fn names(text: &str) -> impl Iterator<Item = &str> {
    const KINDS: [&str; 6] = ["aarch64/", "x86_64/", "*/", "host/", "loom/", "fuzz/"];
    let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    quoted.filter(|name| KINDS.iter().any(|kind| name.starts_with(kind)))
}

fn exists(name: &str, host: &str, loom: &str) -> bool {
    let Some((kind, rest)) = name.split_once('/') else { return false };
    let function =
        |text: &str| rest.rsplit([':', '/']).next().is_some_and(|last| text.contains(&format!("fn {last}(")));
    let machine = |board| {
        let whole = format!("{}/{rest}", machine_tests::case::architecture(board));
        let line = format!("TEST {}: PASS", rest.trim_start_matches("guest-test/"));
        let tells = |text: &&'static str| text.ends_with(&line);
        table::cases(board).iter().any(|case| case.name.starts_with(&whole) || case.story.iter().any(tells))
    };
    match kind {
        "host" => function(host),
        "loom" => function(loom),
        "fuzz" => apart::TARGETS.contains(&rest),
        "aarch64" => machine(Board::Virt),
        "x86_64" => machine(Board::Q35),
        _ => machine(Board::Virt) && machine(Board::Q35),
    }
}

/// The text of every Rust file below a folder; what can't be read has no tests.
pub fn gather(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            gather(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_between_backquotes() {
        let text = "| XSA-401 | `loom/a` and `host/b::c`, not `code` |\nno ` here";
        assert_eq!(names(text).collect::<Vec<_>>(), ["loom/a", "host/b::c"]);
    }

    #[test]
    fn a_name_without_a_test_is_seen() {
        let (host, loom) = ("fn c() {", "fn a() {");
        for name in [
            "host/b::c",
            "loom/a",
            "fuzz/tables",
            "aarch64/guest-test/pin",
            "*/soak",
            "*/guest-test/attacks/xsa-148",
        ] {
            assert!(exists(name, host, loom), "{name}");
        }
        for name in [
            "host/b::d",
            "loom/c",
            "fuzz/table",
            "aarch64/guest-test/nothing",
            "*/abi",
            "*/guest-test/attacks/xsa-9",
        ] {
            assert!(!exists(name, host, loom), "{name}");
        }
    }

    #[test]
    fn the_page_names_only_tests_that_exist() {
        assert_eq!(without_a_test().expect("the page"), Vec::<String>::new());
    }
}
