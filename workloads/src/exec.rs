//! A static program (this one) started two hundred times: each time all of a process's memory is replaced.

use std::ffi::CString;
use std::process::ExitCode;

use anyhow::{Context, Result};
use nix::unistd::execv;

use crate::processes::{child, expect};
use crate::{Fate, Spoil};

/// Times that the program is started.
const TIMES: u32 = 200;
/// The word at which the program answers with a status worked out from the number after it.
pub const ANSWER: &str = "answer";
/// This executable, whatever it is called.
const SELF: &str = "/proc/self/exe";

pub fn run(spoil: Spoil) -> Result<Fate> {
    for number in 0..TIMES {
        let started = child(|| start(number))?;
        expect(started, spoil.only(number == TIMES / 2).status(i32::from(status(number))))?;
    }
    Ok(Fate::Passed(format!("{TIMES} programs")))
}

/// Becomes the program that answers `number`.
pub fn start(number: u32) -> Result<i32> {
    let words = [SELF, ANSWER, &number.to_string()].map(CString::new);
    let words: Vec<CString> = words.into_iter().collect::<Result<_, _>>()?;
    match execv(&words[0], &words).context("execv")? {}
}

/// What the started program does.
pub fn answer(number: &str) -> ExitCode {
    number.parse().map_or(ExitCode::FAILURE, |number| ExitCode::from(status(number)))
}

/// The status that tells `number`.
pub fn status(number: u32) -> u8 {
    (number * 7 % 89) as u8
}
