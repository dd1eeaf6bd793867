//! The control domain's part: the same frame as the hypervisor lists it, the log, and the verdict.

use super::attempts;
use super::domain::{line, show};
use super::published::{Stage, Word};
use super::subject::Subject;
use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::{hypercalls, say, shell};
use penumbra_abi::Errno;

/// Checks that were made, and the first that failed.
#[derive(Default)]
struct Verdict {
    failures: u64,
    first: Option<&'static str>,
}

impl Verdict {
    /// Enters a check; the word for its line.
    fn check(&mut self, good: bool, what: &'static str) -> &'static str {
        if !good {
            self.failures += 1;
            self.first.get_or_insert(what);
        }
        if good { "yes" } else { "NO" }
    }
}

/// Runs the control domain's part of the tour and prints the verdict.
pub fn control<A: Architecture>(guest: &Guest<A>) {
    if !guest.on_penumbra {
        return on_xen(guest);
    }
    let mut verdict = Verdict::default();
    match Subject::find(guest) {
        Ok(subject) => {
            conduct(&subject, &mut verdict);
            subject.close();
        }
        Err(what) => drop(verdict.check(false, what)),
    }
    match verdict.first {
        None => say!(A, "TOUR: PASS"),
        Some(first) => say!(A, "TOUR: FAIL {} (first: not so: {first})", verdict.failures),
    }
}

/// On Xen there is one domain and no GETMEMLIST: the first half of the tour, in the first domain itself.
fn on_xen<A: Architecture>(guest: &Guest<A>) {
    say!(A, "This hypervisor has no Penumbra call: domain 1's part of the tour, in the first domain itself");
    let Some(page) = guest.zeroed_page() else { return say!(A, "XEN: FAIL (no page)") };
    let specimen = show(guest, &page);
    let agree = specimen.is_some_and(|s| s.pfn == page.pfn() && guest.p2m(s.pfn) == Some(s.mfn));
    let tally = attempts::run(guest, &page);
    match hypercalls::memory_list::<A>(0, 0, &mut [0]) {
        Err(error) => say!(A, "  GETMEMLIST is left out: this hypervisor answers {error}"),
        Ok(_) => say!(A, "  GETMEMLIST is answered here"),
    }
    if agree && tally.failures == 0 && tally.attempts > 0 {
        say!(A, "XEN: PASS");
    } else {
        say!(A, "XEN: FAIL {} (P2M and M2P agree: {agree})", tally.failures);
    }
}

fn conduct<A: Architecture>(subject: &Subject<'_, A>, verdict: &mut Verdict) {
    if let Err(error) = look_up(subject, verdict) {
        say!(A, "  refused: {error}");
        verdict.check(false, "the control domain may look at domain 1");
    }
    if let Err(error) = subject.write(Word::Acknowledged, Stage::Shown as u64) {
        say!(A, "  (domain 1's page can't be written from here: {error})");
    }
    verdict.check(subject.wait_for(Stage::Tried), "domain 1 made its attempts");
    say!(A);
    say!(A, "==== The hypervisor's log, as the control domain reads it: xm dmesg ====");
    verdict.check(shell::print_log::<A>().is_ok_and(|bytes| bytes > 0), "the log can be read");
    judge(subject, verdict);
}

/// Looks for domain 1's numbers in what the hypervisor says about it.
fn look_up<A: Architecture>(subject: &Subject<'_, A>, verdict: &mut Verdict) -> Result<(), Errno> {
    let (mfn, pfn) = (subject.word(Word::MachineFrame), subject.word(Word::PseudoFrame));
    let frames = Subject::<A>::count()?;
    let is_listed = |number: u64| Subject::<A>::find_in_list(|frame| frame == number).map(|f| f.is_some());
    let (mfn_listed, pfn_listed) = (is_listed(mfn)?, is_listed(pfn)?);
    say!(A);
    say!(A, "==== The same frame, as the control domain sees it ====");
    line::<A>("GETMEMLIST of domain 1", frames, "machine frames in all");
    line::<A>("MFN", mfn, if mfn_listed { "in the list" } else { "NOT in the list" });
    verdict.check(mfn_listed, "the MFN is in the list");
    let by_chance = match pfn_listed {
        false => "not in the list: domain 1 has no machine frame of this number",
        true => "in the list, by chance: another page of domain 1 has this machine frame",
    };
    line::<A>("PFN", pfn, by_chance);
    verdict.check(!pfn_listed || pfn != mfn, "the PFN isn't in the list, or only by chance");
    let p2m = subject.p2m(pfn)?;
    line::<A>("P2M[PFN]", p2m, "read from domain 1's own list, through a foreign mapping");
    verdict.check(p2m == mfn, "P2M[PFN] is the MFN");
    let content = subject.foreign_word(mfn, 0)?;
    line::<A>("first word of the frame", content, "as domain 1 wrote it at its virtual address");
    verdict.check(content == subject.word(Word::Content), "the frame holds what domain 1 wrote");
    Ok(())
}

fn judge<A: Architecture>(subject: &Subject<'_, A>, verdict: &mut Verdict) {
    let (attempts, failures) = (subject.word(Word::Attempts), subject.word(Word::Failures));
    say!(A);
    say!(A, "==== Verdict ====");
    let refused = verdict.check(attempts > 0 && failures == 0, "every attempt was refused");
    say!(A, "  all of domain 1's {attempts} attempts refused: {refused}");
    let findings = hypercalls::audit::<A>();
    let clean = verdict.check(findings == Ok(0), "the audit finds nothing");
    match findings {
        Ok(count) => say!(A, "  audit of every reference and type: {count} findings, clean: {clean}"),
        Err(error) => say!(A, "  audit of every reference and type: {error}"),
    }
}
