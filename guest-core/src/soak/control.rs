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

/// Runs until no hostile domain is left, then prints `SOAK: PASS` or `SOAK: FAIL`.
pub fn run<A: Architecture>(guest: &Guest<A>) {
    let lifetime = guest.words().value("lifetime").and_then(crate::words::number).unwrap_or(LIFETIME);
    let (mut looks, mut findings, mut quiet) = (0u32, 0u64, 0u32);
    while quiet < AFTERMATH {
        (0..TURNS).for_each(|_| hypercalls::yield_cpu::<A>());
        findings += hypercalls::audit::<A>().unwrap_or(1);
        looks += 1;
        quiet = if others::<A>(lifetime) == 0 { quiet + 1 } else { 0 };
    }
    let mut domains = [DomainInfo::default(); DOMAINS];
    let well = hypercalls::domain_list::<A>(WITNESS, &mut domains)
        .is_ok_and(|count| domains.iter().take(count).any(|domain| is_alive(domain, WITNESS)));
    say!(A, "soak: {looks} audits, {findings} findings, witness alive: {well}");
    say!(A, "SOAK: {}", if findings == 0 && well { "PASS" } else { "FAIL" });
}

fn is_alive(domain: &DomainInfo, number: u16) -> bool {
    domain.domain == number && domain.flags & DOMINF_DYING == 0
}

/// How many domains there are besides the two good ones; those that have had their time are destroyed.
fn others<A: Architecture>(lifetime: u64) -> usize {
    let mut domains = [DomainInfo::default(); DOMAINS];
    let count = hypercalls::domain_list::<A>(WITNESS + 1, &mut domains).unwrap_or(0);
    let others = || domains.iter().take(count).filter(|domain| domain.domain > WITNESS);
    for old in others().filter(|domain| domain.cpu_time > lifetime && domain.flags & DOMINF_DYING == 0) {
        say!(A, "soak: domain {} has had its time", old.domain);
        let mut operation = Domctl::new(domctl::DESTROYDOMAIN, old.domain, &[]);
        let _ = hypercalls::call::<A>(number::DOMCTL, &[hypercalls::address_of_mut(&mut operation)]);
    }
    others().count()
}
