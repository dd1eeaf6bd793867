//! A static program, `answer`, started two hundred times: each time all of a process's memory is replaced.

use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, Result};
use nix::unistd::execv;

use crate::processes::{child, expect};
use crate::{Fate, Spoil, status};

/// Times that the program is started.
const TIMES: u32 = 200;
/// The program's name; it lies beside this one.
const ANSWER: &str = "answer";

pub fn run(spoil: Spoil) -> Result<Fate> {
    let program = Program::find()?;
    for number in 0..TIMES {
        program.answers(number, spoil.only(number == TIMES / 2))?;
    }
    Ok(Fate::Passed(format!("{TIMES} programs")))
}

/// The program's path, as the kernel wants it.
pub struct Program(CString);

impl Program {
    /// Finds it.
    pub fn find() -> Result<Program> {
        let path = std::env::current_exe().context("this program's own path")?.with_file_name(ANSWER);
        Ok(Program(CString::new(path.into_os_string().into_vec())?))
    }

    /// Has it answer `number` in a child, and checks the answer.
    pub fn answers(&self, number: u32, spoil: Spoil) -> Result<()> {
        // Its words are ready before the fork: the child does nothing but become the program.
        let words = [self.0.as_c_str(), &CString::new(number.to_string())?];
        let child =
            child(|| match execv(words[0], &words).with_context(|| format!("starting {:?}", self.0))? {})?;
        expect(child, spoil.status(i32::from(status::of(number))))
    }
}
