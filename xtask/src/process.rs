//! Running other programs, and never leaving one behind.
//!
//! Every child's process number is kept in a list while it runs. When the person presses Ctrl-C (or the process is
//! asked to end), exactly these are killed, by number.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::progress::Step;
use crate::terminal;

static RUNNING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

fn running() -> MutexGuard<'static, BTreeSet<u32>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Exit status after an interrupt, as shells report it.
const INTERRUPTED: i32 = 130;

/// From now on Ctrl-C, SIGTERM and SIGHUP kill the children, mend the terminal and end this process.
pub fn end_children_on_interrupt() -> Result<()> {
    ctrlc::set_handler(|| {
        end_children();
        terminal::restore();
        eprintln!("\ninterrupted");
        std::process::exit(INTERRUPTED);
    })
    .context("cannot install the handler for Ctrl-C")
}

/// Kills every child that still runs.
pub fn end_children() {
    for number in running().iter() {
        kill(*number);
    }
}

fn kill(number: u32) {
    if let Some(pid) = i32::try_from(number).ok().and_then(Pid::from_raw) {
        // It may have ended by itself just now: then there is nothing to do.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// A command for a program that ends when this process does, however that happens: where util-linux is there, the kernel
/// sees to it (`PR_SET_PDEATHSIG`). `setpriv` becomes the program, so that it is the same child.
pub fn bound(program: &str) -> Command {
    match which::which("setpriv") {
        Ok(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", program]);
            command
        }
        Err(_) => Command::new(program),
    }
}

/// A child that is in the list for as long as this value lives, and does not outlive it.
pub struct Supervised {
    child: Child,
    reaped: bool,
}

impl Supervised {
    /// Starts the program.
    pub fn start(command: &mut Command) -> Result<Supervised> {
        let program = command.get_program().to_string_lossy().into_owned();
        // The list is locked across the start, so that an interrupt cannot fall between start and entry.
        let mut list = running();
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        list.insert(child.id());
        Ok(Supervised { child, reaped: false })
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for the end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let status = self.child.wait().context("cannot wait for a child process")?;
        self.forget();
        Ok(status)
    }

    /// Kills it and waits until it is gone.
    pub fn stop(&mut self) {
        if !self.reaped {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.forget();
        }
    }

    fn forget(&mut self) {
        self.reaped = true;
        running().remove(&self.child.id());
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a program to its end and returns what it wrote; its standard input is empty.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Supervised::start(command)?;
    let errors = running.child().stderr.take().map(|pipe| thread::spawn(move || read_all(pipe)));
    let stdout = running.child().stdout.take().map(read_all).unwrap_or_default();
    let stderr = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
    Ok(Output { status: running.wait()?, stdout, stderr })
}

fn read_all(mut pipe: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What could be read before an error is still worth showing.
    let _ = pipe.read_to_end(&mut bytes);
    bytes
}

/// Runs a program as a step: the latest line it writes stands beside the spinner, and everything it wrote is
/// shown if it fails.
pub fn step(what: &str, command: &mut Command) -> Result<()> {
    Step::around(what, |step| {
        let (status, text) = followed(command, |line| step.note(line))?;
        if status.success() {
            return Ok(());
        }
        bail!("{what} failed\n{}", text.trim_end())
    })
}

/// Runs a program and hands on each line as it comes; returns all of them.
fn followed(command: &mut Command, mut each: impl FnMut(&str)) -> Result<(ExitStatus, String)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Supervised::start(command)?;
    let output = running.child().stdout.take().map(|pipe| thread::spawn(move || read_all(pipe)));
    let mut text = String::new();
    if let Some(pipe) = running.child().stderr.take() {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            each(line.trim());
            if !is_progress(&line) {
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
    }
    let rest = output.and_then(|thread| thread.join().ok()).unwrap_or_default();
    text.push_str(&String::from_utf8_lossy(&rest));
    Ok((running.wait()?, text))
}

/// Whether a line of cargo's only says that all goes well.
pub fn is_progress(line: &str) -> bool {
    ["Compiling", "Checking", "Downloading", "Downloaded", "Finished", "Updating", "Locking", "Adding"]
        .iter()
        .any(|word| line.trim_start().strip_prefix(word).is_some_and(|rest| rest.starts_with(' ')))
}
