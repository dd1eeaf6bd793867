//! A session: one machine, several domains, and random operations held against the specification.
//!
//! Before each operation the specification says what it must come to; then it goes through the real hypercall entrance, within a
//! random budget, issued again as often as it is preempted, other domains and other CPUs having their turn in between. After every step:
//! nothing that any CPU could have cached leads anywhere it must not; the frame records say what the specification counts, to the
//! digit; the auditor is content.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt::Write as _;

use hyp_core::Hypervisor;
use hyp_core::address::DomainId;
use hyp_core::domain::Domain;
use hyp_core::paging::Budget;

use crate::author::Author;
use crate::format::Hardware;
use crate::machine::{self, Flaws, Model};
use crate::operation::{MASK_COUNT, Operation};
use crate::spec::events::Ports;
use crate::spec::operations::Foreseen;
use crate::spec::world::World;
use crate::spec::{DOMAINS, Knowledge, Life};

mod check;
mod compare;
mod cpus;
mod encode;
mod events;
mod extents;
mod grants;
mod life;
mod prediction;
mod promise;
mod through;
mod writable;

/// Where the done count of a batch stands in the window.
const DONE: usize = 0;
/// Where lists begin.
const LIST: usize = 64;
/// Where a reservation stands.
const RESERVATION: usize = 16;
/// What another CPU uses while an operation is in progress.
const OTHER: usize = 8192;
/// Steps that a failure tells.
const REMEMBERED: usize = 12;

/// What a session is given.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Rules all chance.
    pub seed: u64,
    /// Steps.
    pub steps: u64,
    /// The auditor looks at every so many steps.
    pub audit_every: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Operations: elements of batches count one each, and so do accesses.
    pub operations: u64,
    /// Steps.
    pub steps: u64,
    /// Operations that succeeded.
    pub succeeded: u64,
    /// Times that a hypercall was preempted.
    pub preempted: u64,
    /// Flushes of everything.
    pub flushes: u64,
    /// Emulated writes to tables that were done.
    pub emulated: u64,
    /// Tables that were unhooked.
    pub unhooked: u64,
    /// Grants that were mapped.
    pub granted: u64,
}

impl Tally {
    /// Adds another's numbers.
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.steps += other.steps;
        self.succeeded += other.succeeded;
        self.preempted += other.preempted;
        self.flushes += other.flushes;
        self.emulated += other.emulated;
        self.unhooked += other.unhooked;
        self.granted += other.granted;
    }
}

/// A session in progress.
pub struct Session<F: Hardware> {
    hypervisor: &'static Hypervisor<Model<F>>,
    chance: fastrand::Rng,
    known: Knowledge,
    world: World,
    ports: Ports,
    /// The same, if nothing has happened since it was counted.
    counted: Option<World>,
    /// On which CPU each vCPU has its roots loaded.
    cpu_of: cpus::Places,
    /// Tables that were unhooked, with their domains, and whether they were pinned then, as far as that is known.
    pinned_before: Vec<(usize, usize, bool)>,
    /// Where in the window an operation's arguments begin: behind those of others within a multicall.
    base: Cell<usize>,
    recent: VecDeque<String>,
    tally: Tally,
    plan: Plan,
}

type Check = Result<(), String>;

/// Runs a session.
///
/// # Errors
/// What went wrong, with the last steps.
pub fn run<F: Hardware>(plan: Plan, progress: impl Fn(u64)) -> Result<Tally, String> {
    let mut session = Session::<F>::new(plan).map_err(|what| format!("at the start: {what}"))?;
    for step in 0..plan.steps {
        let before = session.tally.operations;
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| session.step(step)));
        let outcome = outcome.unwrap_or_else(|panic| Err(message(&*panic)));
        if let Err(what) = outcome {
            return Err(session.explain(step, &what));
        }
        progress(session.tally.operations - before);
    }
    session.tally.flushes = session.machine().flushes();
    Ok(session.tally)
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic".into())
}

impl<F: Hardware> Session<F> {
    fn new(plan: Plan) -> Result<Self, String> {
        let hypervisor = machine::hypervisor::<F>(plan.seed, Flaws::default());
        let known = Knowledge::default();
        let world = Foreseen::new(&known, &hypervisor.machine().content, None).world::<F>();
        let chance = fastrand::Rng::with_seed(plan.seed);
        let mut session = Self {
            hypervisor,
            chance,
            known,
            world,
            ports: Ports::default(),
            counted: None,
            cpu_of: Default::default(),
            pinned_before: Vec::new(),
            base: Cell::new(0),
            recent: VecDeque::new(),
            tally: Tally::default(),
            plan,
        };
        for mask in 0..MASK_COUNT {
            session.machine().put(OTHER + 8 * mask as usize, &mask.to_le_bytes());
        }
        for _ in 0..3 {
            session.build()?;
        }
        session.check(0)?;
        Ok(session)
    }

    fn machine(&self) -> &'static Model<F> {
        self.hypervisor.machine()
    }

    fn domain(&self, number: usize) -> Option<&'static Domain<Model<F>>> {
        self.hypervisor.domain(DomainId::new(number as u16))
    }

    fn explain(&self, step: u64, what: &str) -> String {
        let mut text = format!("{}: seed {}, step {step}: {what}\n", F::NAME, self.plan.seed);
        for recent in &self.recent {
            let _ = writeln!(text, "    {recent}");
        }
        for told in self.machine().told() {
            let _ = writeln!(text, "    {told}");
        }
        text
    }

    fn remember(&mut self, what: String) {
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(what);
    }

    fn step(&mut self, number: u64) -> Check {
        self.tally.steps += 1;
        let alive: Vec<_> = (0..DOMAINS).filter(|at| self.known.domains[*at].life == Life::Alive).collect();
        let domain = alive[self.chance.usize(..alive.len())];
        if self.chance.u8(..4) != 0 {
            self.tidy();
        }
        if self.chance.u8(..12) == 0 {
            self.hook_all()?;
        }
        self.refresh()?;
        self.machine().told();
        self.perform(domain, 0)?;
        self.check(number)
    }

    /// Makes up one operation and carries it out.
    fn perform(&mut self, domain: usize, depth: u32) -> Check {
        self.take_turn(domain);
        let content = &self.machine().content;
        let (known, world) = (self.known.clone(), self.world);
        let ports = &self.ports;
        let mut author =
            Author { chance: &mut self.chance, known: &known, ports, world: &world, content, domain };
        let operation = author.operation::<F>();
        self.remember(format!(
            "{}d{domain}v{}: {operation:x?}",
            if depth > 0 { "  meanwhile " } else { "" },
            known.domains[domain].turn
        ));
        self.run_on_some_cpu(domain);
        if !operation.is_foreseen() {
            self.counted = None;
        }
        match &operation {
            Operation::Access(address, write) => self.access(domain, *address, *write),
            Operation::TableWrites(page, writes) => self.table_writes(domain, *page, writes),
            Operation::Unhook(address) => self.unhook(domain, &operation, *address),
            Operation::Hook(_) => self.hook(domain, &operation),
            Operation::Grant(grant) => self.grant(domain, &operation, grant),
            Operation::Multicall(list) if !operation.is_foreseen() => self.mixed(domain, &operation, list),
            Operation::Extents(extents) => self.extents(domain, &operation, extents),
            Operation::Event(event) => self.event(domain, &operation, *event),
            Operation::Crash => self.crash(domain),
            Operation::Destroy(other) => self.destroy(domain, *other),
            Operation::Background(steps) => {
                for _ in 0..*steps {
                    self.hypervisor.background();
                }
                self.follow_the_dying();
                Ok(())
            }
            Operation::Build => self.build(),
            Operation::Evict(at) => {
                self.machine().evict(*at);
                Ok(())
            }
            _ => self.hypercall(domain, &operation, depth),
        }
    }

    /// What an interrupted or refused operation has left is finished.
    fn tidy(&self) {
        for domain in (0..DOMAINS).filter_map(|number| self.domain(number)) {
            if domain.tables.lock().unfinished.is_none() {
                continue;
            }
            loop {
                let budget = Budget::new(64);
                let mut space = domain.table_space(self.machine(), self.hypervisor.frames(), &budget);
                if space.settle(None).is_ok() {
                    break;
                }
            }
        }
    }

    /// Whether what a domain asks for may come to something else than was foreseen: something unfinished is in the way, or an unhooked table
    /// returns first.
    fn is_unforeseeable(&self, domain: usize) -> bool {
        let others = domain == 0 && !self.known.unhooked.is_empty();
        others || self.known.has_unhooked(domain) || self.is_unfinished()
    }

    fn is_unfinished(&self) -> bool {
        let domains = (0..DOMAINS).filter_map(|number| self.domain(number));
        domains.into_iter().any(|domain| domain.tables.lock().unfinished.is_some())
    }
}
