//! What is typed at a machine in place of a person: each step waits for texts and then types something.
//!
//! Usually a step's text has to come after the one that the step before waited for. Where two speak at once, the hypervisor and a domain for
//! instance, neither's line is sure to come first: steps that are [`Step::overtaken`] look for each of their texts from where that very text was
//! found last, whatever else has been said meanwhile.

use std::collections::{HashMap, VecDeque};

use anyhow::{Context, Result};
use machine_tests::case::Deed;

use crate::debugger::Debugger;

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// All of these have to appear.
    pub after: Vec<String>,
    /// Then this is done to the machine.
    pub deeds: Vec<Deed>,
    /// Then this is typed.
    pub typed: Vec<u8>,
    /// Their order among each other and with those of neighbouring steps of this kind doesn't matter.
    pub overtaken: bool,
}

/// The steps that are left.
#[derive(Default)]
pub struct Script {
    steps: VecDeque<Step>,
    /// How much of the text has been waited for.
    read: usize,
    /// During steps whose texts may overtake each other: how much had been waited for before the first of them, and where each text was
    /// found last.
    before: Option<usize>,
    found: HashMap<String, usize>,
    /// Who does what is to be done to the machine.
    debugger: Option<Debugger>,
}

impl Script {
    /// The same, for a machine with this debugger.
    pub fn with_debugger(self, debugger: Debugger) -> Script {
        Script { debugger: Some(debugger), ..self }
    }

    /// Does all of this to the machine.
    pub fn carry_out(&self, deeds: &[Deed]) -> Result<()> {
        if deeds.is_empty() {
            return Ok(());
        }
        self.debugger.as_ref().context("the machine has no debugger")?.carry_out(deeds)
    }

    /// What to do and to type now that the machine has said `text` (all of it since it was switched on); to be asked until there is nothing.
    pub fn due(&mut self, text: &str) -> Option<(Vec<Deed>, Vec<u8>)> {
        let step = self.steps.front()?;
        let before = self.before.filter(|_| step.overtaken).unwrap_or(self.read);
        let start =
            |wanted: &String| self.found.get(wanted).filter(|_| step.overtaken).copied().unwrap_or(before);
        let find = |wanted: &String| {
            let from = start(wanted);
            text[from..].find(wanted.as_str()).map(|at| from + at + wanted.len())
        };
        let ends: Vec<usize> = step.after.iter().map(find).collect::<Option<_>>()?;
        self.read = ends.iter().copied().max().unwrap_or(0).max(self.read);
        let step = self.steps.pop_front()?;
        if step.overtaken {
            self.before = Some(before);
            self.found.extend(step.after.into_iter().zip(ends));
        } else {
            self.before = None;
            self.found.clear();
        }
        Some((step.deeds, step.typed))
    }
}

impl FromIterator<Step> for Script {
    fn from_iter<I: IntoIterator<Item = Step>>(steps: I) -> Script {
        Script { steps: steps.into_iter().collect(), ..Script::default() }
    }
}

impl Step {
    /// A step that waits for one text, behind what was waited for before.
    pub fn after(text: impl Into<String>, typed: impl Into<Vec<u8>>) -> Step {
        Step { after: vec![text.into()], deeds: Vec::new(), typed: typed.into(), overtaken: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(after: &[&str], typed: &str) -> Step {
        let after = after.iter().map(|text| (*text).to_owned()).collect();
        Step { after, deeds: Vec::new(), typed: typed.into(), overtaken: true }
    }

    /// What is typed, all in all, at a machine that says these lines one by one.
    fn typed(steps: &[Step], lines: &[&str]) -> String {
        let (mut script, mut text, mut typed) =
            (steps.iter().cloned().collect::<Script>(), String::new(), Vec::new());
        for line in lines {
            text.push_str(line);
            while let Some((_, keys)) = script.due(&text) {
                typed.extend(keys);
            }
        }
        String::from_utf8(typed).unwrap()
    }

    #[test]
    fn a_step_waits_for_its_text_behind_the_one_before() {
        let steps = [Step::after("one", "1"), Step::after("two", "2"), Step::after("one", "3")];
        assert_eq!(typed(&steps, &["two one ", "one"]), "1");
        assert_eq!(typed(&steps, &["one two"]), "12");
        assert_eq!(typed(&steps, &["o", "ne two ", "one"]), "123");
    }

    #[test]
    fn texts_may_overtake_each_other_where_that_is_allowed() {
        let steps = [
            Step::after("go", "0"),
            any(&["clean", "a ok"], "1"),
            any(&["clean"], "2"),
            any(&["clean", "b ok"], "3"),
        ];
        let clean = "clean ";
        assert_eq!(typed(&steps, &["go ", clean, "a ok ", clean, clean, "b ok "]), "0123");
        assert_eq!(typed(&steps, &["go ", "a ok ", "b ok ", clean, clean, clean]), "0123");
        assert_eq!(typed(&steps, &["go ", "a ok ", clean, "b ok ", clean, clean]), "0123");
        assert_eq!(typed(&steps, &["go ", "a ok ", clean, "b ok ", clean]), "012", "each counts once");
        assert_eq!(typed(&steps, &["a ok clean go ", clean]), "0", "what was said before doesn't count");
    }

    #[test]
    fn afterwards_only_what_comes_later_counts() {
        let steps = [any(&["x", "y"], "1"), Step::after("z", "2"), any(&["x"], "3")];
        assert_eq!(typed(&steps, &["z y x "]), "1");
        assert_eq!(typed(&steps, &["y x z "]), "12");
        assert_eq!(typed(&steps, &["y x x z "]), "12");
        assert_eq!(typed(&steps, &["y x z x"]), "123");
    }
}
