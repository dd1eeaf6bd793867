//! The control domain's part: audits, and the verdict.

use crate::architecture::Architecture;
use crate::guest::Guest;
use crate::{hypercalls, say};
use penumbra_abi::domctl::{self, DOMINF_DYING, DomainInfo, Domctl};
use penumbra_abi::hypercall as number;

/// The domain that must lose nothing.
const WITNESS: u16 = 1;
/// Domains looked at.
const DOMAINS: usize = 32;
/// Turns given away between two looks.
const TURNS: u32 = 40;
/// Looks after the last hostile domain is gone: the witness still has to be well then.
const AFTERMATH: u32 = 4;
/// CPU time (nanoseconds) after which a hostile domain has to go: it may have lost its way.
const LIFETIME: u64 = 3_000_000_000;
/// Looks between which a hostile domain has used no CPU time, after which it has to go: being reckless, it may have gone to sleep for good.
const STILL: u32 = 10;

/// Runs until no hostile domain is left, then prints `SOAK: PASS` or `SOAK: FAIL`.
pub fn run<A: Architecture>(guest: &Guest<A>) {
    let lifetime = guest.words().value("lifetime").and_then(crate::words::number).unwrap_or(LIFETIME);
    let (mut looks, mut findings, mut quiet) = (0u32, 0u64, 0u32);
    let mut watch = Watch::new(lifetime);
    while quiet < AFTERMATH {
        (0..TURNS).for_each(|_| hypercalls::yield_cpu::<A>());
        findings += hypercalls::audit::<A>().unwrap_or(1);
        looks += 1;
        quiet = if others::<A>(&mut watch) == 0 { quiet + 1 } else { 0 };
    }
    let mut domains = [DomainInfo::default(); DOMAINS];
    let well = hypercalls::domain_list::<A>(WITNESS, &mut domains)
        .is_ok_and(|count| domains.iter().take(count).any(|domain| is_alive(domain, WITNESS)));
    say!(A, "soak: {looks} audits, {findings} findings, witness alive: {well}");
    say!(A, "SOAK: {}", if findings == 0 && well { "PASS" } else { "FAIL" });
}

/// How long each domain has been at it, by its number.
struct Watch {
    lifetime: u64,
    cpu_times: [u64; DOMAINS],
    still: [u32; DOMAINS],
}

impl Watch {
    fn new(lifetime: u64) -> Self {
        Self { lifetime, cpu_times: [0; DOMAINS], still: [0; DOMAINS] }
    }

    /// Whether a domain has had its time, or nothing has been heard of it for a while. Asked once a look.
    fn is_due(&mut self, domain: &DomainInfo) -> bool {
        let place = usize::from(domain.domain) % DOMAINS;
        let moved = domain.cpu_time != self.cpu_times[place];
        self.cpu_times[place] = domain.cpu_time;
        self.still[place] = if moved { 0 } else { self.still[place] + 1 };
        domain.cpu_time > self.lifetime || self.still[place] >= STILL
    }
}

fn is_alive(domain: &DomainInfo, number: u16) -> bool {
    domain.domain == number && domain.flags & DOMINF_DYING == 0
}

/// How many domains there are besides the two good ones; those that have had their time are destroyed.
fn others<A: Architecture>(watch: &mut Watch) -> usize {
    let mut domains = [DomainInfo::default(); DOMAINS];
    let count = hypercalls::domain_list::<A>(WITNESS + 1, &mut domains).unwrap_or(0);
    let others = || domains.iter().take(count).filter(|domain| domain.domain > WITNESS);
    for old in others().filter(|domain| domain.flags & DOMINF_DYING == 0 && watch.is_due(domain)) {
        say!(A, "soak: domain {} has had its time", old.domain);
        let mut operation = Domctl::new(domctl::DESTROYDOMAIN, old.domain, &[]);
        let _ = hypercalls::call::<A>(number::DOMCTL, &[hypercalls::address_of_mut(&mut operation)]);
    }
    others().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_due_after_its_time_or_when_it_sleeps_for_good() {
        let mut watch = Watch::new(1000);
        let mut after = |cpu_time| watch.is_due(&DomainInfo { domain: 3, cpu_time, ..DomainInfo::default() });
        assert!(!after(1));
        assert!((1..STILL).all(|_| !after(1)), "it may be waiting");
        assert!(after(1));
        assert!(!after(2), "it was awake");
        assert!(after(1001));
    }
}
