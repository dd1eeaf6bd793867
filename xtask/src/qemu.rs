//! Running a machine: its serial output is shown, logged and watched; its keyboard is the person's or a script's.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use machine_tests::verdict;

use crate::process::{Supervised, end_children};
use crate::script::Script;
use crate::terminal;

/// Who types.
pub enum Keyboard {
    /// Nobody.
    Closed,
    /// The person at the terminal. Any of these bytes ends the machine, the others are for it.
    Person(&'static [u8]),
    /// A script.
    Script(Script),
}

/// How a machine is run.
pub struct Session {
    /// The machine is stopped after this time.
    pub limit: Option<Duration>,
    /// Everything the machine says goes here.
    pub log: PathBuf,
    /// Whether it is shown as well.
    pub echo: bool,
    pub keyboard: Keyboard,
    /// The machine is stopped when one of its lines contains one of these, or when the hypervisor says that it stops.
    pub until: Vec<String>,
}

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The machine was switched off or reset from inside.
    Off(ExitStatus),
    /// One of the awaited lines came.
    Awaited,
    /// The time was up.
    TimedOut,
}

/// What a machine said, and how it ended.
pub struct Outcome {
    /// The serial output and the emulator's own messages; carriage returns are left out.
    pub text: String,
    pub ending: Ending,
    pub log: PathBuf,
}

impl Outcome {
    /// The last lines, for a person who wants to know where it stopped.
    pub fn last_lines(&self, count: usize) -> String {
        let lines: Vec<&str> = self.text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

/// How long a machine that has said an awaited line may go on: what follows it belongs to the story.
const AFTERMATH: Duration = Duration::from_millis(300);

/// Runs the machine to its end.
pub fn run(command: &mut Command, session: Session) -> Result<Outcome> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let log =
        File::create(&session.log).with_context(|| format!("cannot write {}", session.log.display()))?;
    let raw = matches!(session.keyboard, Keyboard::Person(_)).then(terminal::Raw::enter).transpose()?;
    let mut emulator = Supervised::start(command)?;
    let (sender, receiver) = channel();
    let child = emulator.child();
    let keys = child.stdin.take().context("no way to the machine's keyboard")?;
    forward(child.stdout.take(), sender.clone());
    forward(child.stderr.take(), sender);
    let mut watch = Watch::new(session, log, keys);
    let ending = watch.follow(&mut emulator, &receiver)?;
    emulator.stop();
    drop(raw);
    watch.text.push_str(&String::from_utf8_lossy(&watch.unread));
    Ok(Outcome { text: watch.text.replace('\r', ""), ending, log: watch.session.log })
}

/// Hands on what comes out of a pipe, until it closes.
fn forward(pipe: Option<impl Read + Send + 'static>, sender: Sender<Vec<u8>>) {
    let Some(mut pipe) = pipe else { return };
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
}

/// Hands the person's keys to the machine, but for those that end it.
fn forward_keys(mut keys: ChildStdin, last: &'static [u8]) {
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
            let typed = &buffer[..length];
            if typed.iter().any(|byte| last.contains(byte)) {
                end_children();
                return;
            }
            if keys.write_all(typed).and_then(|()| keys.flush()).is_err() {
                return;
            }
        }
    });
}

/// The watcher's state while a machine runs.
struct Watch {
    session: Session,
    log: File,
    /// For a script; the person's keys go another way.
    keys: Option<ChildStdin>,
    text: String,
    /// The beginning of a character whose other bytes are still to come.
    unread: Vec<u8>,
    /// How much of the text has been searched for awaited lines.
    searched: usize,
    deadline: Option<Instant>,
    awaited: bool,
}

impl Watch {
    fn new(session: Session, log: File, keys: ChildStdin) -> Watch {
        let deadline = session.limit.map(|limit| Instant::now() + limit);
        // A closed pipe would be an end of file to the emulator: the script's side stays open while it runs.
        let keys = match session.keyboard {
            Keyboard::Person(last) => {
                forward_keys(keys, last);
                None
            }
            Keyboard::Closed | Keyboard::Script(_) => Some(keys),
        };
        let (text, unread) = (String::new(), Vec::new());
        Watch { session, log, keys, text, unread, searched: 0, deadline, awaited: false }
    }

    /// Takes in what the machine says until it ends, one way or another.
    fn follow(&mut self, emulator: &mut Supervised, receiver: &Receiver<Vec<u8>>) -> Result<Ending> {
        loop {
            match receiver.recv_timeout(self.patience()) {
                Ok(bytes) => self.take(&bytes)?,
                // Both pipes are closed: the emulator has ended, or is about to.
                Err(RecvTimeoutError::Disconnected) => return Ok(Ending::Off(emulator.wait()?)),
                Err(RecvTimeoutError::Timeout) if self.awaited => return Ok(Ending::Awaited),
                Err(RecvTimeoutError::Timeout) => return Ok(Ending::TimedOut),
            }
        }
    }

    /// How long to wait for the machine's next word.
    fn patience(&self) -> Duration {
        const FOREVER: Duration = Duration::from_secs(1 << 30);
        self.deadline.map_or(FOREVER, |deadline| deadline.saturating_duration_since(Instant::now()))
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.log.write_all(bytes).context("cannot write the log")?;
        if self.session.echo {
            let mut stdout = std::io::stdout();
            // Whoever read our output may have gone away; the machine's verdict counts all the same.
            let _ = stdout.write_all(bytes).and_then(|()| stdout.flush());
        }
        self.unread.extend_from_slice(bytes);
        self.text.push_str(&decoded(&mut self.unread));
        self.do_what_is_due();
        self.look_for_awaited_lines();
        Ok(())
    }

    fn do_what_is_due(&mut self) {
        let (Keyboard::Script(script), Some(keys)) = (&mut self.session.keyboard, &mut self.keys) else {
            return;
        };
        while let Some((deeds, typed)) = script.due(&self.text) {
            if let Err(error) = script.carry_out(&deeds) {
                // The machine may have ended by it; whether that was to be, its text tells.
                self.text.push_str(&format!("\nnot done: {error:#}\n"));
            }
            // A machine that has ended takes no keys; its text tells the rest.
            let _ = keys.write_all(&typed).and_then(|()| keys.flush());
        }
    }

    fn look_for_awaited_lines(&mut self) {
        let Some(end) = self.text.rfind('\n') else { return };
        let fresh = &self.text[self.searched..=end.max(self.searched)];
        if !self.awaited && fresh.lines().any(|line| is_last(line, &self.session.until)) {
            self.awaited = true;
            self.deadline = Some(Instant::now() + AFTERMATH);
        }
        self.searched = end + 1;
    }
}

/// The text of these bytes; what may be the beginning of a character at their end is left for the next time.
fn decoded(bytes: &mut Vec<u8>) -> String {
    let begun = bytes.utf8_chunks().last().map_or(0, |chunk| match std::str::from_utf8(chunk.invalid()) {
        Err(error) if error.error_len().is_none() => chunk.invalid().len(),
        _ => 0,
    });
    let rest = bytes.split_off(bytes.len() - begun);
    let text = String::from_utf8_lossy(bytes).into_owned();
    *bytes = rest;
    text
}

/// Whether nothing more is to be waited for after this line. A boot loader may have left a carriage return before it.
fn is_last(line: &str, until: &[String]) -> bool {
    verdict::is_stop(line.trim_start_matches('\r')) || until.iter().any(|text| line.contains(text.as_str()))
}

/// A log file's place among the artefacts.
pub fn log_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::tests::scratch;

    /// Runs a shell's script as if it were a machine.
    fn machine(name: &str, script: &str, until: &str) -> Outcome {
        let session = Session {
            limit: Some(Duration::from_secs(60)),
            log: scratch(name).join("machine.log"),
            echo: false,
            keyboard: Keyboard::Closed,
            until: vec![until.into()],
        };
        run(Command::new("sh").args(["-c", script]), session).unwrap()
    }

    #[test]
    fn the_hypervisors_words_end_the_machine_and_nobody_elses_do() {
        let guest = machine("guests-words", "echo '(d1) ; the machine stops'; sleep 1; echo more", "END");
        assert!(matches!(guest.ending, Ending::Off(_)), "{:?}", guest.ending);
        assert!(guest.text.ends_with("more\n"));
        for last in ["(PEN) error: no RAM; the machine stops", "\r(PEN) hypervisor panic", "(d0) END"] {
            let outcome = machine("last-words", &format!("echo '{last}'; exec sleep 60"), "END");
            assert_eq!(outcome.ending, Ending::Awaited, "{last}");
        }
    }

    #[test]
    fn a_character_that_comes_in_two_pieces_is_one() {
        let outcome = machine("characters", r"printf 'a\303'; sleep 1; printf '\251b\303'", "END");
        assert_eq!(outcome.text, "a\u{e9}b\u{fffd}");
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_such_at_once() {
        let mut bytes = b"\xe2\x82a\xff\xe2\x82".to_vec();
        assert_eq!(decoded(&mut bytes), "\u{fffd}a\u{fffd}");
        assert_eq!(bytes, b"\xe2\x82");
        bytes.push(0xac);
        assert_eq!(decoded(&mut bytes), "\u{20ac}");
        assert_eq!(bytes, b"");
    }
}
