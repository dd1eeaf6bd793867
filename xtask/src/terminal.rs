//! The person's terminal in raw mode, so that every key, CTRL-a among them, reaches the machine's serial line.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// How the terminal was before it was made raw.
static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// Whether a person sits at both ends.
pub fn interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Raw mode for as long as this value lives.
pub struct Raw;

impl Raw {
    /// Makes the terminal raw: no echo, no line editing, no signals from keys. Output keeps its line ends.
    pub fn enter() -> Result<Raw> {
        let stdin = std::io::stdin();
        let original = tcgetattr(&stdin).context("cannot read the terminal's settings")?;
        let mut raw = original.clone();
        raw.make_raw();
        raw.output_modes = original.output_modes;
        *ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(original);
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("cannot make the terminal raw")?;
        Ok(Raw)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was found.
pub fn restore() {
    if let Some(original) = ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Nothing is left to try if the terminal has gone away.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &original);
    }
}
