//! The rules of the house, as checks that a person can read.
//!
//! They look at the text of the sources; what the compiler and clippy can hold (documentation of public items, safety
//! comments, arithmetic in the core) is their business. A rule returns the places that break it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::attacks;
use crate::workspace;

/// A rule: its name, and how to find what breaks it.
pub struct Rule {
    pub name: &'static str,
    pub broken: fn() -> Result<Vec<String>>,
}

/// All of them.
pub const RULES: [Rule; 10] = [
    Rule { name: "files-are-short", broken: || sources(long_file) },
    Rule { name: "files-begin-with-their-idea", broken: || sources(no_module_doc) },
    Rule { name: "functions-are-short", broken: || sources(long_functions) },
    Rule { name: "unsafe-only-in-backends", broken: || sources(misplaced_unsafe) },
    Rule { name: "unsafe-blocks-have-their-reason", broken: || sources(unexplained_unsafe) },
    Rule { name: "architectures-only-in-backends", broken: || sources(misplaced_architecture) },
    Rule { name: "orderings-have-their-reason", broken: || sources(unexplained_orderings) },
    Rule { name: "core-cannot-panic-in-words", broken: || sources(panics_in_the_core) },
    Rule { name: "arrows-point-one-way", broken: wrong_arrows },
    Rule { name: "attacks-name-their-tests", broken: attacks::without_a_test },
];

/// Lines of a file without its tests.
const FILE_LIMIT: usize = 400;
/// Lines of a function; more only where a comment above it says `Long because`.
const FUNCTION_LIMIT: usize = 60;
/// Crates that may hold unsafe code.
const UNSAFE: [&str; 6] = ["hyp-el2", "hyp-x86", "platform", "guest-el1", "guest-x86", "workloads"];
/// Roots of crates that must forbid unsafe code.
const SAFE: [&str; 8] = [
    "abi/src/lib.rs",
    "hyp-core/src/lib.rs",
    "guest-core/src/lib.rs",
    "unpack/src/lib.rs",
    "model/src/lib.rs",
    "model/src/main.rs",
    "tests/src/lib.rs",
    "xtask/src/main.rs",
];
/// Which packages of ours a package may use.
const ARROWS: [(&str, &[&str]); 13] = [
    ("penumbra-abi", &[]),
    ("unpack", &[]),
    ("hyp-core", &["penumbra-abi", "unpack"]),
    ("platform", &[]),
    ("hyp-el2", &["penumbra-abi", "hyp-core", "platform"]),
    ("hyp-x86", &["penumbra-abi", "hyp-core", "platform", "unpack"]),
    ("guest-core", &["penumbra-abi"]),
    ("guest-el1", &["penumbra-abi", "guest-core"]),
    ("guest-x86", &["penumbra-abi", "guest-core"]),
    ("machine-tests", &[]),
    // Programs of a Linux guest, which know nothing of what is below.
    ("workloads", &[]),
    // It is a machine of its own, with the page-table formats of both others.
    ("model", &["penumbra-abi", "hyp-core", "hyp-el2", "hyp-x86"]),
    // It measures the frame table, runs the table of tests, and packs kernels for them.
    ("xtask", &["machine-tests", "hyp-core", "unpack"]),
];

/// A source file.
struct Source {
    /// Relative to the workspace, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// The crate's folder.
    fn room(&self) -> &str {
        self.path.split('/').next().unwrap_or_default()
    }

    /// Whether the file is nothing but tests.
    fn is_tests(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.split('/').nth(1) == Some("tests")
    }

    /// The lines before the tests at the end, with their numbers from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let all = if self.is_tests() { "" } else { before_tests(&self.text) };
        all.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    fn place(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

/// A file up to its `#[cfg(test)] mod tests { ... }`.
fn before_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod ").map_or(text, |at| {
        let opens_here = text[at..].lines().nth(2).is_some_and(|line| line.ends_with('{'));
        if opens_here { &text[..=at] } else { text }
    })
}

/// A line without its comment; good enough where no string holds two slashes and code after them.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

/// Applies a rule to every source file of the workspace.
fn sources(rule: fn(&Source) -> Vec<String>) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for member in fs::read_dir(workspace::root()).context("cannot read the workspace")?.flatten() {
        if member.path().join("Cargo.toml").exists() {
            for folder in ["src", "tests"].map(|folder| member.path().join(folder)) {
                if folder.is_dir() {
                    visit(folder, rule, &mut broken)?;
                }
            }
        }
    }
    broken.sort();
    Ok(broken)
}

fn visit(folder: PathBuf, rule: fn(&Source) -> Vec<String>, broken: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?.flatten()
    {
        let path = entry.path();
        if path.is_dir() {
            visit(path, rule, broken)?;
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            broken.extend(rule(&Source { path: workspace::shown(&path), text }));
        }
    }
    Ok(())
}

fn long_file(source: &Source) -> Vec<String> {
    let length = source.lines().count();
    let complaint = format!("{}: {length} lines without its tests; at most {FILE_LIMIT}", source.path);
    if length > FILE_LIMIT { vec![complaint] } else { Vec::new() }
}

fn no_module_doc(source: &Source) -> Vec<String> {
    if source.text.starts_with("//!") {
        Vec::new()
    } else {
        vec![source.place(1, "no //! that says the idea")]
    }
}

/// Of tests as well: what a test shows must be seen at a glance.
fn long_functions(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let starts = lines.iter().enumerate().filter(|(_, line)| is_function(line));
    let long = starts
        .filter(|(at, _)| function_length(&lines[*at..]) > FUNCTION_LIMIT && !gives_reason(&lines[..*at]));
    long.map(|(at, line)| source.place(at + 1, line.trim())).collect()
}

fn is_function(line: &str) -> bool {
    let words = code(line).split_whitespace();
    let mut qualifiers = words.skip_while(|word| {
        word.starts_with("pub")
            || word.ends_with(')')
            || ["const", "unsafe", "extern", "\"C\""].contains(word)
    });
    qualifiers.next() == Some("fn")
}

/// Lines from the function's first to its closing brace, which rustfmt puts below the first line's beginning.
fn function_length(lines: &[&str]) -> usize {
    let indentation = |line: &str| line.len() - line.trim_start().len();
    let own = lines.first().map_or(0, |line| indentation(line));
    // A trait's function may end without a body.
    let ends =
        |line: &&str| indentation(line) == own && (line.trim_start().starts_with('}') || line.ends_with(';'));
    let one_line = lines.first().is_some_and(|line| line.trim_end().ends_with(['}', ';']));
    if one_line { 1 } else { lines.iter().position(ends).map_or(0, |end| end + 1) }
}

fn gives_reason(above: &[&str]) -> bool {
    let comments =
        above.iter().rev().map(|line| line.trim_start()).take_while(|line| line.starts_with(['/', '#']));
    comments.into_iter().any(|line| line.contains("Long because"))
}

fn is_unsafe(line: &str) -> bool {
    code(line).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe")
}

fn misplaced_unsafe(source: &Source) -> Vec<String> {
    let mut broken = Vec::new();
    if SAFE.contains(&source.path.as_str()) && !source.text.contains("#![forbid(unsafe_code)]") {
        broken.push(source.place(1, "this crate must say #![forbid(unsafe_code)]"));
    }
    // Where it is forbidden, the compiler sees to it, and doesn't mind what is said of it in strings.
    let forbidden = SAFE.iter().any(|root| root.split('/').next() == Some(source.room()));
    if !UNSAFE.contains(&source.room()) && !forbidden {
        broken.extend(
            source
                .lines()
                .filter(|(_, line)| is_unsafe(line))
                .map(|(at, line)| source.place(at, line.trim())),
        );
    }
    broken
}

/// How far above an unsafe block, within one statement, its comment may end.
const STATEMENT: usize = 4;

fn unexplained_unsafe(source: &Source) -> Vec<String> {
    if !UNSAFE.contains(&source.room()) {
        return Vec::new();
    }
    let lines: Vec<&str> = source.lines().map(|(_, line)| line).collect();
    let blocks = lines.iter().enumerate().filter(|(_, line)| {
        let code = code(line);
        code.contains("unsafe {") || code.contains("unsafe impl")
    });
    let silent = blocks.filter(|(at, _)| !is_explained(&lines[..*at]));
    silent.map(|(at, line)| source.place(at + 1, line.trim())).collect()
}

fn is_explained(above: &[&str]) -> bool {
    let is_comment = |line: &&str| line.trim_start().starts_with("//");
    let mut upwards = above.iter().rev().enumerate().skip_while(|(_, line)| !is_comment(line)).peekable();
    if upwards.peek().is_none_or(|(distance, _)| *distance > STATEMENT) {
        return false;
    }
    upwards.map(|(_, line)| line).take_while(|line| is_comment(line)).any(|line| line.contains("SAFETY:"))
}

fn misplaced_architecture(source: &Source) -> Vec<String> {
    if UNSAFE.contains(&source.room()) || source.room() == "xtask" {
        return Vec::new();
    }
    // The fake machine goes by one's name, since its guests are told one.
    let core = source.room() == "hyp-core" && !source.path.starts_with("hyp-core/src/fake");
    let named = source.lines().filter(|(_, line)| {
        let code = code(line).to_lowercase();
        code.contains("target_arch") || (core && ["aarch64", "x86_64"].iter().any(|name| code.contains(name)))
    });
    named.map(|(at, line)| source.place(at, line.trim())).collect()
}

/// Each kind of ordering that a file of the hypervisor's uses is spoken of in one of its comments at least: one reason may serve for many places.
fn unexplained_orderings(source: &Source) -> Vec<String> {
    let fake = source.path.starts_with("hyp-core/src/fake");
    if !["hyp-core", "hyp-el2", "hyp-x86", "platform"].contains(&source.room()) || fake {
        return Vec::new();
    }
    let comments: String = source
        .lines()
        .filter_map(|(_, line)| line.split_once("//"))
        .map(|(_, text)| text.to_lowercase())
        .collect();
    let silent = |name: &str| !comments.contains(&name.to_lowercase());
    let mut broken = Vec::new();
    for name in ["Relaxed", "Acquire", "Release", "SeqCst"] {
        let used = |line: &str| !line.starts_with("use ") && code(line).contains(name);
        if let Some((at, line)) = source.lines().find(|(_, line)| used(line)).filter(|_| silent(name)) {
            broken.push(
                source.place(at, &format!("no comment in this file speaks of {name}: {}", line.trim())),
            );
        }
    }
    broken
}

/// Ways to panic that clippy's restriction lints name too; said here so that nobody allows them in passing.
const PANICS: [&str; 8] = [
    ".unwrap()",
    ".expect(",
    "panic!(",
    "unreachable!(",
    "clippy::unwrap_used",
    "clippy::expect_used",
    "clippy::panic",
    "clippy::indexing_slicing",
];

fn panics_in_the_core(source: &Source) -> Vec<String> {
    // The crate's root is where the lints are denied; the fake machine is part of the tests.
    let apart = source.path.ends_with("/lib.rs") || source.path.starts_with("hyp-core/src/fake");
    if source.room() != "hyp-core" || apart {
        return Vec::new();
    }
    let lines = source.lines().filter(|(_, line)| PANICS.iter().any(|word| code(line).contains(word)));
    lines.map(|(at, line)| source.place(at, line.trim())).collect()
}

/// `abi <- hyp-core <- hyp-el2 | hyp-x86`, `platform` beside them, `abi <- guest-core <- guest-el1 | guest-x86`.
fn wrong_arrows() -> Result<Vec<String>> {
    let metadata = MetadataCommand::new().current_dir(workspace::root()).no_deps().exec()?;
    let mut broken = Vec::new();
    for package in metadata.workspace_packages() {
        let allowed = ARROWS.iter().find(|(name, _)| *name == package.name.as_str()).map(|(_, uses)| *uses);
        let Some(allowed) = allowed else {
            broken.push(format!("{}: no place in the house is given to it", package.name));
            continue;
        };
        let ours = package
            .dependencies
            .iter()
            .filter(|use_| use_.path.is_some() && use_.kind != DependencyKind::Development);
        let wrong = ours.filter(|use_| !allowed.contains(&use_.name.as_str()));
        broken.extend(wrong.map(|use_| format!("{} must not use {}", package.name, use_.name)));
    }
    Ok(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    #[test]
    fn tests_do_not_count() {
        let tests = format!("\n#[cfg(test)]\nmod tests {{\n{}}}\n", "    x();\n".repeat(500));
        assert!(long_file(&source("abi/src/a.rs", &tests)).is_empty());
        assert_eq!(long_file(&source("abi/src/a.rs", &"x\n".repeat(401))).len(), 1);
        // A module of tests in another file does not hide what follows.
        let elsewhere = format!("\n#[cfg(test)]\nmod tests;\n{}", "x\n".repeat(401));
        assert_eq!(long_file(&source("abi/src/a.rs", &elsewhere)).len(), 1);
    }

    #[test]
    fn a_long_function_needs_its_reason() {
        let body = format!("pub(crate) fn f() {{\n{}}}\n", "    x();\n".repeat(60));
        assert_eq!(long_functions(&source("a/src/a.rs", &body)).len(), 1);
        assert!(
            long_functions(&source("a/src/a.rs", &format!("/// Long because.\n#[inline]\n{body}")))
                .is_empty()
        );
        assert!(long_functions(&source("a/src/a.rs", &"fn f() {\n}\n".repeat(100))).is_empty());
        let in_tests = format!("#[cfg(test)]\nmod tests {{\n{body}}}\n");
        assert_eq!(long_functions(&source("a/src/a.rs", &in_tests)).len(), 1);
        assert_eq!(long_functions(&source("a/tests/suite/a.rs", &body)).len(), 1);
        let declared = format!("    fn f(\n        x: u8,\n    ) -> u8;\n{}", "    x();\n".repeat(100));
        assert!(long_functions(&source("a/src/a.rs", &declared)).is_empty());
    }

    #[test]
    fn unsafe_needs_a_place_and_a_reason() {
        let block = "fn f() {\n    unsafe { x() }\n}\n";
        assert_eq!(misplaced_unsafe(&source("races/src/a.rs", block)).len(), 1);
        assert_eq!(unexplained_unsafe(&source("hyp-x86/src/a.rs", block)).len(), 1);
        let reason = "fn f() {\n    // SAFETY: it is\n    // so.\n    let y =\n        unsafe { x() };\n}\n";
        assert!(unexplained_unsafe(&source("hyp-x86/src/a.rs", reason)).is_empty());
        assert_eq!(misplaced_unsafe(&source("hyp-core/src/lib.rs", "//! x\n")).len(), 1);
        assert_eq!(misplaced_unsafe(&source("xtask/src/main.rs", "//! x\n")).len(), 1);
    }

    #[test]
    fn an_ordering_needs_its_reason() {
        let load = "use x::Ordering::Relaxed;\nfn f() {\n    x.load(Relaxed);\n}\n";
        assert_eq!(unexplained_orderings(&source("hyp-el2/src/a.rs", load)).len(), 1);
        assert!(unexplained_orderings(&source("guest-core/src/a.rs", load)).is_empty());
        for (reason, left) in [("// Relaxed: a hint.\n", 0), ("// Acquire: it isn't.\n", 1)] {
            assert_eq!(
                unexplained_orderings(&source("hyp-core/src/a.rs", &format!("{reason}{load}"))).len(),
                left
            );
        }
    }

    #[test]
    fn the_core_names_no_architecture_and_does_not_panic() {
        assert_eq!(
            misplaced_architecture(&source("hyp-core/src/a.rs", "#[cfg(target_arch = \"x86_64\")]\n")).len(),
            1
        );
        let by_name = "let machine = if platform == \"aarch64\" { 183 } else { 62 };\n";
        assert_eq!(misplaced_architecture(&source("hyp-core/src/a.rs", by_name)).len(), 1);
        assert!(misplaced_architecture(&source("guest-core/src/a.rs", by_name)).is_empty());
        assert_eq!(panics_in_the_core(&source("hyp-core/src/a.rs", "x.unwrap();\n")).len(), 1);
        assert!(panics_in_the_core(&source("hyp-core/src/a.rs", "// never .unwrap()\n")).is_empty());
        let in_tests = "x();\n#[cfg(test)]\nmod tests {\n    x.unwrap();\n}\n";
        assert!(panics_in_the_core(&source("hyp-core/src/a.rs", in_tests)).is_empty());
    }
}
