//! Telling the person what goes on: a spinner on a terminal, plain lines otherwise.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A step that takes a while. It is announced when made and closed with [`Step::done`] or [`Step::failed`].
pub struct Step {
    what: String,
    spinner: Option<ProgressBar>,
}

impl Step {
    /// Announces the step.
    pub fn begin(what: impl Into<String>) -> Step {
        let what = what.into();
        let spinner = std::io::stderr().is_terminal().then(|| spinner(&what));
        if spinner.is_none() {
            eprintln!("{what} ...");
        }
        Step { what, spinner }
    }

    /// Replaces what is shown beside the spinner; a plain log does not repeat itself.
    pub fn note(&self, text: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(format!("{}: {text}", self.what));
        }
    }

    /// The step is over. A terminal keeps one line of it.
    pub fn done(self) {
        if let Some(spinner) = self.spinner {
            spinner.finish_and_clear();
            eprintln!("{}: done", self.what);
        }
    }

    /// The step failed; the error that follows says why.
    pub fn failed(self) {
        if let Some(spinner) = self.spinner {
            spinner.finish_and_clear();
        }
        eprintln!("{}: failed", self.what);
    }

    /// Runs `work` as a step.
    pub fn around<T>(
        what: impl Into<String>,
        work: impl FnOnce(&Step) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let step = Step::begin(what);
        let result = work(&step);
        match &result {
            Ok(_) => step.done(),
            Err(_) => step.failed(),
        }
        result
    }
}

fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
        spinner.set_style(style);
    }
    spinner.set_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}
