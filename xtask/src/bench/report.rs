//! The figures as tables: text for a person, Markdown for docs/measurements.md, JSON for programs.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::boot::Fact;
use super::machines::{Measured, Reading, Readings};
use super::rows::{self, Row};
use crate::cli::Arch;
use crate::workspace;

/// One line of the table.
pub struct Line {
    row: &'static Row,
    penumbra: Option<Reading>,
    xen: Option<Reading>,
    bare: Option<Reading>,
}

/// One architecture's table.
pub struct Table {
    arch: Arch,
    lines: Vec<Line>,
}

impl Table {
    /// The rows of `arch` with what was measured.
    pub fn new(arch: Arch, measured: &Measured) -> Table {
        let get = |readings: &Readings, row: &Row| readings.get(row.name).cloned();
        let lines = rows::of(arch).iter().map(|row| Line {
            row,
            penumbra: get(&measured.penumbra, row),
            xen: measured
                .xen
                .as_ref()
                .filter(|_| !row.is_ours_alone())
                .and_then(|readings| get(readings, row)),
            bare: measured.bare.as_ref().filter(|_| row.is_native()).and_then(|readings| get(readings, row)),
        });
        Table { arch, lines: lines.collect() }
    }

    /// Names of the rows that miss their target.
    pub fn missed(&self) -> Vec<String> {
        let missed = self.lines.iter().filter(|line| line.misses());
        missed.map(|line| format!("{}/{}", self.arch, line.row.name)).collect()
    }
}

impl Line {
    fn ours(&self) -> Option<u64> {
        count(self.penumbra.as_ref())
    }

    /// What the kernel's own operation takes with nothing below it.
    fn bare(&self) -> Option<u64> {
        count(self.bare.as_ref())
    }

    /// What ours is compared with: Xen's figure, measured in this run or else quoted, or the bare machine's.
    fn theirs(&self) -> Option<u64> {
        count(self.xen.as_ref()).or(self.row.quoted).or(self.bare())
    }

    /// At most so many instructions: half of Xen's, and the row's own limit; not one more than on the bare machine, for what
    /// doesn't concern the hypervisor.
    fn target(&self) -> Option<u64> {
        if let Some(bare) = self.bare() {
            return Some(bare);
        }
        [self.theirs().map(|xen| xen / 2), self.row.limit].into_iter().flatten().min()
    }

    /// An operation that isn't there misses its target, too.
    fn misses(&self) -> bool {
        self.target().is_some_and(|target| self.ours().is_none_or(|ours| ours > target))
    }

    fn cells(&self) -> [String; 7] {
        let number = |value: Option<u64>| value.map(grouped).unwrap_or_default();
        let ratio =
            self.ours().zip(self.theirs()).map(|(ours, xen)| format!("{:.2}", ours as f64 / xen as f64));
        let xen = match (&self.xen, self.row.quoted) {
            _ if self.bare().is_some() => format!("{} (bare)", number(self.bare())),
            (Some(reading), _) => shown(Some(reading)),
            (None, Some(quoted)) => format!("{} (quoted)", grouped(quoted)),
            (None, None) => String::new(),
        };
        [
            self.row.what.to_owned(),
            shown(self.penumbra.as_ref()),
            xen,
            ratio.unwrap_or_default(),
            number(self.target()),
            if self.misses() { "missed".to_owned() } else { String::new() },
            number(self.row.quoted),
        ]
    }

    fn json(&self) -> Value {
        let text = |reading: &Option<Reading>| match reading {
            Some(Reading::Absent(error)) => Some(error.clone()),
            _ => None,
        };
        json!({
            "name": self.row.name, "what": self.row.what,
            "penumbra": self.ours(), "penumbra_absent": text(&self.penumbra),
            "xen": count(self.xen.as_ref()), "xen_absent": text(&self.xen), "xen_quoted": self.row.quoted,
            "bare": self.bare(),
            "ratio": self.ours().zip(self.theirs()).map(|(ours, xen)| ours as f64 / xen as f64),
            "target": self.target(), "missed": self.misses(),
        })
    }
}

fn count(reading: Option<&Reading>) -> Option<u64> {
    match reading {
        Some(Reading::Count(count)) => Some(*count),
        _ => None,
    }
}

fn shown(reading: Option<&Reading>) -> String {
    match reading {
        Some(Reading::Count(count)) => grouped(*count),
        Some(Reading::Absent(error)) => format!("absent ({error})"),
        None => "not measured".to_owned(),
    }
}

/// 1234567 as 1,234,567.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

const HEADINGS: [&str; 7] = ["instructions", "Penumbra", "Xen 4.17", "ratio", "target", "", "Xen, as quoted"];

/// Prints everything.
pub fn print(facts: &[Fact], tables: &[Table]) {
    println!();
    for fact in facts {
        let aim = if fact.aim.is_empty() { String::new() } else { format!("   ({})", fact.aim) };
        println!("{:<72} {:>12}{aim}", fact.what, grouped(fact.value));
    }
    for table in tables {
        println!("\n{}", table.arch);
        println!("{}", text_line(&HEADINGS.map(str::to_owned)));
        table.lines.iter().for_each(|line| println!("{}", text_line(&line.cells())));
        let missed = table.missed().len();
        println!("{missed} of {} rows miss their target", table.lines.len());
        if let Some(agreement) = agreement(table) {
            println!("{agreement}");
        }
    }
}

fn text_line([what, ours, xen, ratio, target, missed, quoted]: &[String; 7]) -> String {
    format!("{what:<48} {ours:>16} {xen:>14} {ratio:>6} {target:>8} {missed:<7} {quoted:>14}")
        .trim_end()
        .to_owned()
}

/// How far this benchmark's figures of Xen and the quoted ones are apart.
fn agreement(table: &Table) -> Option<String> {
    let pairs = table.lines.iter().filter_map(|line| count(line.xen.as_ref()).zip(line.row.quoted));
    let apart: Vec<f64> =
        pairs.map(|(measured, quoted)| (measured as f64 / quoted as f64 - 1.0).abs() * 100.0).collect();
    let worst = apart.iter().copied().reduce(f64::max)?;
    let near = apart.iter().filter(|apart| **apart <= 3.0).count();
    Some(format!(
        "Xen's figures, measured here and quoted: {near} of {} within 3 %, the farthest {worst:.1} % apart",
        apart.len()
    ))
}

/// Writes everything to `file`.
pub fn write_json(file: &Path, facts: &[Fact], tables: &[Table]) -> Result<()> {
    let facts: Vec<Value> =
        facts.iter().map(|fact| json!({"what": fact.what, "value": fact.value, "aim": fact.aim})).collect();
    let tables: Vec<Value> = tables
        .iter()
        .map(|table| {
            let rows: Vec<Value> = table.lines.iter().map(Line::json).collect();
            json!({"arch": table.arch.name(), "rows": rows})
        })
        .collect();
    write_file(file, &json!({"facts": facts, "tables": tables}))
}

/// Writes a value as text.
pub fn write_file(file: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
}

/// Puts the tables between their marks in docs/measurements.md.
pub fn write_docs(facts: &[Fact], tables: &[Table]) -> Result<()> {
    let mut parts = Vec::new();
    for table in tables {
        let own = facts.iter().filter(|fact| fact.arch.is_none_or(|arch| arch == table.arch));
        parts.push((format!("facts {}", table.arch), markdown_facts(own)));
        parts.push((format!("operations {}", table.arch), markdown(table)));
    }
    replace_in(DOCS, &parts)
}

/// Where the tables are.
pub const DOCS: &str = "docs/measurements.md";
/// Where one of them is, too.
pub const README: &str = "README.md";

/// Puts each text between the marks of its name in one of the project's files.
pub fn replace_in(name: &str, parts: &[(String, String)]) -> Result<()> {
    let file = workspace::root().join(name);
    let mut text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    for (mark, content) in parts {
        text = between_marks(&text, mark, content).with_context(|| format!("in {name}"))?;
    }
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    println!("written: {}", workspace::shown(&file));
    Ok(())
}

fn markdown_facts<'a>(facts: impl Iterator<Item = &'a Fact>) -> String {
    let mut text = "| | value | aim |\n|---|--:|---|\n".to_owned();
    for fact in facts {
        let _ = writeln!(text, "| {} | {} | {} |", fact.what, grouped(fact.value), fact.aim);
    }
    text
}

fn markdown(table: &Table) -> String {
    let mut text = format!("| {} |\n|---|--:|--:|--:|--:|---|--:|\n", HEADINGS.join(" | "));
    for line in &table.lines {
        let _ = writeln!(text, "| {} |", line.cells().join(" | "));
    }
    if let Some(agreement) = agreement(table) {
        let _ = write!(text, "\n{agreement}.\n");
    }
    text
}

/// `text` with what stands between `<!-- name -->` and `<!-- end -->` replaced.
fn between_marks(text: &str, name: &str, content: &str) -> Result<String> {
    let (mark, end) = (format!("<!-- {name} -->\n"), "<!-- end -->");
    let missing = || format!("there is no mark \"{}\"", mark.trim_end());
    let start = text.find(&mark).with_context(missing)? + mark.len();
    let length = text[start..].find(end).with_context(missing)?;
    Ok(format!("{}{content}{}", &text[..start], &text[start + length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(limit: Option<u64>, quoted: Option<u64>, ours: Option<u64>, xen: Option<u64>) -> Line {
        let row = Box::leak(Box::new(Row { name: "x", what: "x", limit, quoted }));
        Line { row, penumbra: ours.map(Reading::Count), xen: xen.map(Reading::Count), bare: None }
    }

    #[test]
    fn the_target_is_half_of_xen_and_the_limit() {
        assert_eq!(line(Some(110), None, None, Some(268)).target(), Some(110));
        assert_eq!(line(Some(150), None, None, Some(268)).target(), Some(134));
        assert_eq!(line(None, Some(400), None, Some(300)).target(), Some(150), "measured counts, not quoted");
        assert_eq!(line(None, Some(400), None, None).target(), Some(200));
        assert_eq!(line(None, None, Some(1), None).target(), None);
    }

    #[test]
    fn a_row_misses_by_one_instruction_or_by_not_being_there() {
        assert!(!line(Some(110), None, Some(110), None).misses());
        assert!(line(Some(110), None, Some(111), None).misses());
        assert!(line(Some(110), None, None, None).misses());
        assert!(!line(None, None, None, None).misses());
    }

    #[test]
    fn what_does_not_concern_the_hypervisor_costs_what_it_costs_without_one() {
        let native = |ours| Line { bare: Some(Reading::Count(9)), ..line(None, None, Some(ours), None) };
        assert!(!native(9).misses());
        assert!(native(10).misses());
    }

    #[test]
    fn numbers_are_grouped_by_three() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn only_what_stands_between_the_marks_changes() {
        let text = "a\n<!-- one -->\nold\n<!-- end -->\nb\n<!-- two -->\nkept\n<!-- end -->\n";
        let changed = between_marks(text, "one", "new\n").unwrap();
        assert_eq!(changed, text.replace("old", "new"));
        assert!(between_marks(text, "three", "").is_err());
    }
}
