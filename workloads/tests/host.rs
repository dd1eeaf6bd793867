//! The workloads on this computer: each passes, and each notices what is falsified.

use std::process::{Command, Output};

fn workload(words: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, .. } =
        Command::new(env!("CARGO_BIN_EXE_workload")).args(words).output().expect("the program starts");
    (status.code(), String::from_utf8_lossy(&stdout).into_owned())
}

fn names() -> Vec<String> {
    workload(&["list"]).1.lines().map(str::to_owned).collect()
}

/// What this computer, which isn't ours alone and no Xen domain, can't try.
const ELSEWHERE: [&str; 2] = ["balloon", "memory-pressure"];

#[test]
fn each_passes_and_says_so() {
    for name in names() {
        let (status, said) = workload(&[&name]);
        if ELSEWHERE.contains(&name.as_str()) && status == Some(3) {
            assert!(said.starts_with(&format!("WORKLOAD {name} skipped: ")), "{said}");
        } else {
            assert_eq!(status, Some(0), "{said}");
            assert!(said.starts_with(&format!("WORKLOAD {name} ok: ")), "{said}");
        }
    }
}

#[test]
fn each_notices_what_is_falsified() {
    for name in names().iter().filter(|name| !ELSEWHERE.contains(&name.as_str())) {
        let (status, said) = workload(&[name, "spoil"]);
        assert_eq!(status, Some(1), "{name}: {said}");
        assert!(said.contains(&format!("WORKLOAD {name} FAILED: ")), "{said}");
    }
}

#[test]
fn other_words_are_refused() {
    for words in [&["frobnicate"][..], &[], &["exec", "please"]] {
        assert_eq!(workload(words).0, Some(2), "{words:?}");
    }
}
