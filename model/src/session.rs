//! A session: one machine, several domains, and random operations held against the specification.
//!
//! Before each operation the specification says what it must come to; then it goes through the real hypercall entrance, within a
//! random budget, issued again as often as it is preempted, other domains and other CPUs having their turn in between. After every step:
//! nothing that any CPU could have cached leads anywhere it must not; the frame records say what the specification counts, to the
//! digit; the auditor is content.

use std::collections::VecDeque;
use std::fmt::Write as _;

use hyp_core::Hypervisor;
use hyp_core::address::DomainId;
use hyp_core::domain::{Domain, Life as CoreLife};
use hyp_core::fake::place_on_cpu;
use hyp_core::frame::FrameType;
use hyp_core::paging::Budget;
use penumbra_abi::domctl::{self, Domctl};
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as call;
use penumbra_abi::memory::{self, MemoryReservation};
use penumbra_abi::mmu::{MmuUpdate, MmuextOp};
use penumbra_abi::multicall::MulticallEntry;
use zerocopy::{FromZeros, IntoBytes};

use crate::bits::Bits;
use crate::format::{Hardware, Shape, Walk};
use crate::guest::{self, PAGES};
use crate::hardware::content::{FRAMES, frame, number, slot};
use crate::hardware::reach::{CPUS, TAGS};
use crate::machine::{self, Flaws, Loaded, Model, WINDOW};
use crate::operation::{Author, Operation};
use crate::spec::errors::Errors;
use crate::spec::operations::Foreseen;
use crate::spec::world::{View, World};
use crate::spec::{DOMAINS, Domain as Known, Knowledge, Life, NO_NAME, NOBODY, Pin};

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
/// Times that an operation is issued again before it counts as endless.
const PATIENCE: usize = 4000;

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
}

impl Tally {
    /// Adds another's numbers.
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.steps += other.steps;
        self.succeeded += other.succeeded;
        self.preempted += other.preempted;
        self.flushes += other.flushes;
    }
}

/// A session in progress.
pub struct Session<F: Hardware> {
    hypervisor: &'static Hypervisor<Model<F>>,
    chance: fastrand::Rng,
    known: Knowledge,
    world: World,
    /// On which CPU each domain's vCPU has its roots loaded.
    cpu_of: [Option<usize>; DOMAINS],
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
        let world = Foreseen::new(&known, &hypervisor.machine().content).world::<F>();
        let chance = fastrand::Rng::with_seed(plan.seed);
        let mut session = Self {
            hypervisor,
            chance,
            known,
            world,
            cpu_of: [None; DOMAINS],
            recent: VecDeque::new(),
            tally: Tally::default(),
            plan,
        };
        session.machine().put(OTHER, &1u64.to_le_bytes());
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
            self.refresh()?;
        }
        self.perform(domain, 0)?;
        self.check(number)
    }

    /// Makes up one operation and carries it out.
    fn perform(&mut self, domain: usize, depth: u32) -> Check {
        let content = &self.machine().content;
        let (known, world) = (self.known.clone(), self.world);
        let mut author = Author { chance: &mut self.chance, known: &known, world: &world, content, domain };
        let operation = author.operation::<F>();
        self.remember(format!("{}d{domain}: {operation:x?}", if depth > 0 { "  meanwhile " } else { "" }));
        self.run_on_some_cpu(domain);
        match &operation {
            Operation::Access(address, write) => self.access(domain, *address, *write),
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

    /// A CPU takes the domain's vCPU over, unless it has it.
    fn run_on_some_cpu(&mut self, domain: usize) {
        let cpu = match self.cpu_of[domain] {
            Some(cpu) if self.chance.u8(..8) != 0 => cpu,
            _ => self.chance.usize(..CPUS),
        };
        self.run_on(cpu, domain);
    }

    fn run_on(&mut self, cpu: usize, domain: usize) {
        if let Some(old) = self.cpu_of[domain].filter(|old| *old != cpu) {
            self.machine().switch_to(old, None);
        }
        for other in 0..DOMAINS {
            if other != domain && self.cpu_of[other] == Some(cpu) {
                self.cpu_of[other] = None;
                if let Some(other) = self.domain(other) {
                    place_on_cpu(&other.vcpus[0], false);
                }
            }
        }
        let Some(core) = self.domain(domain) else { return };
        let vcpu = &core.vcpus[0];
        self.cpu_of[domain] = Some(cpu);
        place_on_cpu(vcpu, true);
        let loaded = vcpu.kernel_root().map(|kernel| Loaded { tag: domain, kernel, user: vcpu.user_root() });
        self.machine().switch_to(cpu, loaded);
    }

    /// No CPU has the domain's roots loaded any more.
    fn leave(&mut self, domain: usize) {
        if let Some(cpu) = self.cpu_of[domain].take() {
            self.machine().switch_to(cpu, None);
        }
        if let Some(core) = self.domain(domain) {
            place_on_cpu(&core.vcpus[0], false);
        }
    }

    fn access(&mut self, domain: usize, address: u64, write: Option<u64>) -> Check {
        self.tally.operations += 1;
        if let Some(value) = write {
            if let Some((target, _)) = self.machine().translate(address, true) {
                let at = slot(target)
                    .ok_or_else(|| format!("d{domain} writes to mfn {target:#x}, which isn't RAM"))?;
                let kind = self.hypervisor.frames().usage(frame(at)).map(|usage| usage.kind);
                if kind != Some(FrameType::Writable) {
                    return Err(format!("d{domain} writes to mfn {target:#x}, which is {kind:?}"));
                }
                self.tally.succeeded += 1;
            }
            self.machine().access(address, Some(value));
        } else if self.machine().access(address, None).is_some() {
            self.tally.succeeded += 1;
        }
        Ok(())
    }

    fn crash(&mut self, domain: usize) -> Check {
        let Some(core) = self.domain(domain) else { return Ok(()) };
        self.hypervisor.kill(&core.vcpus[0], format_args!("a test"));
        self.bury(domain);
        Ok(())
    }

    fn bury(&mut self, domain: usize) {
        self.known.domains[domain].life = Life::Dying;
        self.leave(domain);
    }

    fn destroy(&mut self, domain: usize, other: u16) -> Check {
        let mut request = Domctl::new_zeroed();
        request.command = domctl::DESTROYDOMAIN;
        request.interface_version = domctl::INTERFACE_VERSION;
        request.domain = other;
        let at = self.machine().put(LIST, request.as_bytes());
        let answer = self.issue(domain, call::DOMCTL, [at, 0, 0, 0, 0, 0], &Budget::new(Budget::HYPERCALL));
        let answer = answer.map_err(|_| "domctl was preempted")?;
        let named = usize::from(other);
        let expected = match () {
            _ if domain != 0 => Err(Errno::EPERM),
            _ if !self.known.is_present(named) => Err(Errno::ESRCH),
            _ if named == 0 => Err(Errno::EINVAL),
            _ => Ok(0),
        };
        if answer != expected {
            return Err(format!("destroying d{other}: {answer:?}, not {expected:?}"));
        }
        if answer.is_ok() && self.known.domains[named].life == Life::Alive {
            self.bury(named);
        }
        Ok(())
    }

    fn build(&mut self) -> Check {
        let free = self.known.owner.iter().filter(|owner| **owner == NOBODY).count();
        let vacant = self.known.domains.iter().position(|domain| domain.life == Life::Vacant);
        // A frame that somebody else has mapped still counts as the dead owner's.
        let Some(expected) = vacant.filter(|_| free > PAGES as usize) else { return Ok(()) };
        let Some(built) = guest::build(self.hypervisor, expected == 0) else {
            return Err(format!("no domain could be built, with {free} frames free"));
        };
        if built.number != expected {
            return Err(format!("d{} was built, not d{expected}", built.number));
        }
        for (name, at) in built.p2m.iter().enumerate() {
            self.claim(built.number, *at)?;
            self.known.name[*at] = name as u64;
        }
        self.known.owner[built.shared] = built.number as u8;
        self.known.pins.push(Pin { domain: built.number, table: built.root, level: F::LEVELS });
        self.known.domains[built.number] = Known {
            life: Life::Alive,
            kernel: Some(built.root),
            user: None,
            shared: Some(built.shared),
            limit: PAGES as usize,
        };
        Ok(())
    }

    /// A frame becomes a domain's.
    fn claim(&mut self, domain: usize, at: usize) -> Check {
        if self.known.owner[at] != NOBODY {
            let owner = self.known.owner[at];
            return Err(format!("mfn {:#x} of d{owner} was given to d{domain}", number(at)));
        }
        self.known.owner[at] = domain as u8;
        self.known.claimed.insert(at);
        Ok(())
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

    fn is_unfinished(&self) -> bool {
        let domains = (0..DOMAINS).filter_map(|number| self.domain(number));
        domains.into_iter().any(|domain| domain.tables.lock().unfinished.is_some())
    }

    /// Issues a hypercall once: its result, or the arguments with which it wants to be issued again.
    fn issue(
        &self,
        domain: usize,
        number: u64,
        arguments: [u64; 6],
        budget: &Budget,
    ) -> Result<Result<u64, Errno>, [u64; 6]> {
        let core = self.domain(domain).expect("a domain that lives");
        let vcpu = &core.vcpus[0];
        vcpu.context().take();
        self.hypervisor.hypercall_within(vcpu, number, arguments, budget);
        let registers = vcpu.context().take();
        match (registers.result, registers.again) {
            (Some(result), None) => Ok(Errno::from_return(result)),
            (None, Some(again)) => Err(again),
            other => panic!("a hypercall has one outcome, not {other:?}"),
        }
    }

    fn budget(&mut self) -> Budget {
        match self.chance.u8(..6) {
            0 => Budget::new(self.chance.u32(..4)),
            1 => Budget::new(self.chance.u32(4..80)),
            _ => Budget::new(Budget::HYPERCALL),
        }
    }

    /// Carries a hypercall through to its end, and holds its outcome against the specification.
    fn hypercall(&mut self, domain: usize, operation: &Operation, depth: u32) -> Check {
        if matches!(operation, Operation::Multicall(_)) {
            self.tidy();
            self.refresh()?;
        }
        let (hypercall, mut arguments) = self.encode(operation);
        if domain != 0 && depth == 0 && self.chance.u8(..12) == 0 {
            self.arrange_interlude(domain);
        }
        let mut begun = 0;
        let mut foreseen = self.predict(domain, operation, begun);
        for _ in 0..PATIENCE {
            let lenient = self.is_unfinished();
            let budget = self.budget();
            match self.issue(domain, hypercall, arguments, &budget) {
                Ok(answer) => {
                    self.machine().no_interlude();
                    return self.settle_up(domain, operation, &foreseen, begun, answer, lenient);
                }
                Err(again) => {
                    self.tally.preempted += 1;
                    arguments = again;
                    if operation.is_batch() {
                        let done = self.machine().word(DONE) as usize;
                        self.commit(&foreseen, begun, done)?;
                        begun = done;
                        self.between(domain, depth)?;
                        if self.known.domains[domain].life != Life::Alive {
                            return Ok(());
                        }
                        foreseen = self.predict(domain, operation, begun);
                    } else if matches!(operation, Operation::Remap(..)) {
                        self.between(domain, depth)?;
                        if self.known.domains[domain].life != Life::Alive {
                            return Ok(());
                        }
                        foreseen = self.predict(domain, operation, begun);
                    } else {
                        self.judge()?;
                    }
                }
            }
        }
        Err(format!("{operation:x?} does not end"))
    }

    /// Between two pieces of a hypercall anything may happen.
    fn between(&mut self, domain: usize, depth: u32) -> Check {
        self.refresh()?;
        self.judge()?;
        if depth > 0 || self.chance.u8(..4) != 0 {
            return Ok(());
        }
        let others: Vec<_> =
            (0..DOMAINS).filter(|at| *at != domain && self.known.domains[*at].life == Life::Alive).collect();
        if others.is_empty() {
            return Ok(());
        }
        // Arguments stand in a window that everybody uses.
        let window = self.machine().bytes(0, OTHER);
        let other = others[self.chance.usize(..others.len())];
        self.perform(other, 1)?;
        self.refresh()?;
        self.judge()?;
        self.machine().put(0, &window);
        if self.known.domains[domain].life == Life::Alive {
            self.run_on_some_cpu(domain);
        }
        Ok(())
    }

    /// While the core flushes for this domain, the control domain, on another CPU, maps one of its frames, uses it, and unmaps it again.
    fn arrange_interlude(&mut self, domain: usize) {
        if self.known.domains[0].life != Life::Alive {
            return;
        }
        let Some(core) = self.domain(0) else { return };
        let start = self.chance.usize(..FRAMES);
        let mine = |at: &usize| usize::from(self.known.owner[*at]) == domain;
        let Some(target) = (start..FRAMES).chain(0..start).find(mine) else { return };
        let cpu = self.machine().current();
        let other = (cpu + 1) % CPUS;
        self.run_on(other, 0);
        self.run_on(cpu, domain);
        let address = F::address(PAGES + 3);
        let raw = F::compose(Shape::Writable, number(target));
        let hypervisor = self.hypervisor;
        let entry = self.place_of(0, address);
        let machine = self.machine();
        machine.at_next_flush(move || {
            let vcpu = &core.vcpus[0];
            let Some((table, index)) = entry else { return };
            // Only where nothing is mapped; and nothing that the outer operation waits for may have been changed.
            if F::walk(1, machine.content.read(table, index)) != Walk::Fault {
                return;
            }
            let kernel = vcpu.kernel_root();
            machine.switch_to(other, kernel.map(|kernel| Loaded { tag: 0, kernel, user: vcpu.user_root() }));
            let old = machine.content.read(table, index);
            for raw in [raw, old] {
                let arguments = [address, raw, 0, domain as u64, 0, 0];
                hypervisor.hypercall(vcpu, call::UPDATE_VA_MAPPING_OTHERDOMAIN, arguments);
                machine.access(address, Some(0x1234_5678));
                vcpu.context().take();
            }
        });
    }

    /// The level-1 entry that translates an address for a domain.
    fn place_of(&self, domain: usize, address: u64) -> Option<(usize, usize)> {
        let root = frame(self.known.domains[domain].kernel?);
        let at = hyp_core::address::GuestVirtual::new(address);
        let mut table = slot(F::root_of(at, Some(root), None)?.number())?;
        for level in (2..=F::LEVELS).rev() {
            match F::walk(level, self.machine().content.read(table, F::index(at, level))) {
                Walk::Table { frame, .. } => table = slot(frame)?,
                _ => return None,
            }
        }
        Some((table, F::index(at, 1)))
    }

    /// Writes an operation's arguments into the window.
    fn encode(&self, operation: &Operation) -> (u64, [u64; 6]) {
        let machine = self.machine();
        let done = machine.put(DONE, &0u64.to_le_bytes());
        match operation {
            Operation::Updates(domains, list) => {
                let list: Vec<_> =
                    list.iter().map(|one| MmuUpdate { pointer: one.pointer, value: one.value }).collect();
                let at = machine.put(LIST, list.as_bytes());
                (call::MMU_UPDATE, [at, list.len() as u64, done, *domains, 0, 0])
            }
            Operation::Extended(of, list) => {
                let one = |one: &crate::spec::operations::Extended| MmuextOp {
                    command: one.command,
                    pad: 0,
                    argument1: one.argument,
                    argument2: one.second,
                };
                let list: Vec<_> = list.iter().map(one).collect();
                let at = machine.put(LIST, list.as_bytes());
                (call::MMUEXT_OP, [at, list.len() as u64, done, u64::from(*of), 0, 0])
            }
            Operation::Remap(address, raw, flags, None) => {
                (call::UPDATE_VA_MAPPING, [*address, *raw, *flags, 0, 0, 0])
            }
            Operation::Remap(address, raw, flags, Some(of)) => {
                (call::UPDATE_VA_MAPPING_OTHERDOMAIN, [*address, *raw, *flags, u64::from(*of), 0, 0])
            }
            Operation::Increase(count) => {
                self.encode_memory(memory::XENMEM_INCREASE_RESERVATION, &vec![0; *count])
            }
            Operation::Populate(list) => self.encode_memory(memory::XENMEM_POPULATE_PHYSMAP, list),
            Operation::Decrease(list) => self.encode_memory(memory::XENMEM_DECREASE_RESERVATION, list),
            Operation::Multicall(list) => self.encode_multicall(list),
            other => unreachable!("{other:?} is no hypercall"),
        }
    }

    fn encode_memory(&self, command: u64, list: &[u64]) -> (u64, [u64; 6]) {
        let at = self.machine().put(LIST, list.as_bytes());
        let reservation = MemoryReservation {
            extent_start: at,
            nr_extents: list.len() as u64,
            domid: 0x7ff0,
            ..MemoryReservation::default()
        };
        let at = self.machine().put(RESERVATION, reservation.as_bytes());
        (call::MEMORY_OP, [command, at, 0, 0, 0, 0])
    }

    /// Each entry's own arguments stand one after another behind the list.
    fn encode_multicall(&self, list: &[Operation]) -> (u64, [u64; 6]) {
        let mut entries = Vec::new();
        let mut pieces = Vec::new();
        for (index, operation) in list.iter().enumerate() {
            let (number, mut arguments) = self.encode(operation);
            if matches!(operation, Operation::Updates(..) | Operation::Extended(..)) {
                let piece = self.machine().bytes(LIST, 512);
                let at = 1024 + index * 1024;
                pieces.push((at, piece));
                arguments[0] = WINDOW + at as u64;
                arguments[2] = WINDOW + (at + 1016) as u64;
            }
            entries.push(MulticallEntry { operation: number, result: 0x5555, arguments });
        }
        for (at, piece) in pieces {
            self.machine().put(at, &piece);
            self.machine().put(at + 1016, &0u64.to_le_bytes());
        }
        let at = self.machine().put(LIST, entries.as_bytes());
        (call::MULTICALL, [at, list.len() as u64, 0, 0, 0, 0])
    }

    /// What the rest of an operation must come to, from element `begun` on.
    fn predict(&self, domain: usize, operation: &Operation, begun: usize) -> Prediction {
        let mut foreseen = Foreseen::new(&self.known, &self.machine().content);
        let mut prediction = Prediction::default();
        prediction.add::<F>(&mut foreseen, domain, operation, begun);
        prediction.writes = foreseen.writes;
        prediction
    }

    /// Elements up to `done` have been done, as was foreseen from element `begun` on.
    fn commit(&mut self, foreseen: &Prediction, begun: usize, done: usize) -> Check {
        let count = done.checked_sub(begun).filter(|count| *count < foreseen.known.len());
        let count = count.ok_or_else(|| {
            format!(
                "{done} elements were done, {begun} before, {} foreseen; then {:?}",
                foreseen.known.len() - 1,
                foreseen.refusal
            )
        })?;
        self.known = foreseen.known[count].clone();
        self.tally.operations += count as u64;
        self.tally.succeeded += count as u64;
        Ok(())
    }

    /// The end of a hypercall.
    fn settle_up(
        &mut self,
        domain: usize,
        operation: &Operation,
        foreseen: &Prediction,
        begun: usize,
        answer: Result<u64, Errno>,
        lenient: bool,
    ) -> Check {
        match operation {
            Operation::Updates(..) | Operation::Extended(..) => {
                let done = if foreseen.known.is_empty() { begun } else { self.machine().word(DONE) as usize };
                self.compare(foreseen, answer, (begun, done), lenient)?;
            }
            Operation::Remap(..) => {
                self.compare(foreseen, answer, (0, usize::from(answer.is_ok())), lenient)?;
            }
            Operation::Increase(count) => {
                return self.compare_increase(domain, *count, None, answer, lenient);
            }
            Operation::Populate(names) => {
                return self.compare_increase(domain, names.len(), Some(names), answer, lenient);
            }
            Operation::Decrease(_) => {
                let done =
                    answer.map_err(|errno| format!("decrease_reservation: {}", errno.name()))? as usize;
                self.compare(
                    foreseen,
                    if done + 1 == foreseen.known.len() { foreseen.answer() } else { Ok(0) },
                    (0, done),
                    lenient,
                )?;
            }
            Operation::Multicall(list) => return self.compare_multicall(list, foreseen, answer),
            other => unreachable!("{other:?} is no hypercall"),
        }
        if answer.is_ok() {
            self.check_promise(operation)?;
        }
        Ok(())
    }

    fn compare(
        &mut self,
        foreseen: &Prediction,
        answer: Result<u64, Errno>,
        (begun, done): (usize, usize),
        lenient: bool,
    ) -> Check {
        self.tally.operations += u64::from(answer.is_err());
        let whole = done - begun + 1 == foreseen.known.len();
        match (answer, foreseen.refusal) {
            (Ok(_), None) if whole => {
                self.commit(foreseen, begun, done)?;
                self.check_written(foreseen)
            }
            (Err(errno), Some(errors)) if whole && errors.has(errno) => self.commit(foreseen, begun, done),
            // Somebody's unfinished business may be in the way for a while.
            (Err(Errno::EBUSY | Errno::EINVAL), _) if lenient => self.commit(foreseen, begun, done),
            (Err(errno), Some(errors)) if foreseen.known.is_empty() && errors.has(errno) => Ok(()),
            _ => Err(format!(
                "{answer:?} after {done} elements; foreseen: {} elements, then {:?}",
                begun + foreseen.known.len().max(1) - 1,
                foreseen.refusal
            )),
        }
    }

    /// What was to be written stands there.
    fn check_written(&self, foreseen: &Prediction) -> Check {
        let hardware = F::hardware_bits(1);
        for (place, write) in foreseen.writes.iter().enumerate() {
            let later =
                foreseen.writes[place + 1..].iter().any(|other| (other.0, other.1) == (write.0, write.1));
            let stands = self.machine().content.read(write.0, write.1);
            let held = self.hypervisor.frames().hold(frame(write.0)).is_some_and(|hold| hold.owner.is_some());
            // A frame that becomes a table in the same batch is validated, and its entries brought into the form that is admitted.
            let forced = || {
                (1..=F::LEVELS).any(|level| {
                    F::admit(level, write.2).is_ok_and(|(raw, _)| (raw ^ stands) & !hardware == 0)
                })
            };
            if !later && held && (stands ^ write.2) & !hardware != 0 && !forced() {
                let at = number(write.0);
                return Err(format!(
                    "entry {} of mfn {at:#x} holds {stands:#x}, not {:#x}",
                    write.1, write.2
                ));
            }
        }
        Ok(())
    }

    /// What was promised to be flushed is not cached any more on this CPU.
    fn check_promise(&self, operation: &Operation) -> Check {
        use penumbra_abi::mmu::*;
        let (all, page) = match operation {
            Operation::Remap(address, _, flags, _) => match flags & UVMF_FLUSHTYPE_MASK {
                UVMF_TLB_FLUSH => (true, 0),
                UVMF_INVLPG => (false, *address),
                _ => return Ok(()),
            },
            Operation::Extended(_, list) => match list.last().map(|last| (last.command, last.argument)) {
                Some((MMUEXT_TLB_FLUSH_LOCAL | MMUEXT_TLB_FLUSH_ALL | MMUEXT_TLB_FLUSH_MULTI, _)) => {
                    (true, 0)
                }
                Some((MMUEXT_INVLPG_LOCAL | MMUEXT_INVLPG_ALL | MMUEXT_INVLPG_MULTI, address)) => {
                    (false, address)
                }
                Some((MMUEXT_NEW_BASEPTR, _)) => (true, 0),
                _ => return Ok(()),
            },
            _ => return Ok(()),
        };
        match self.machine().stale().into_iter().find(|(address, _)| all || address >> 12 == page >> 12) {
            Some((address, entry)) => {
                Err(format!("{address:#x} is still cached as {entry:?}, after a flush that was promised"))
            }
            None => Ok(()),
        }
    }

    /// Frames that a domain was given.
    fn compare_increase(
        &mut self,
        domain: usize,
        asked: usize,
        names: Option<&Vec<u64>>,
        answer: Result<u64, Errno>,
        lenient: bool,
    ) -> Check {
        let given = answer.map_err(|errno| format!("reservation: {}", errno.name()))? as usize;
        let room = self.known.domains[domain].limit.saturating_sub(self.known.pages(domain));
        let free = self.known.owner.iter().filter(|owner| **owner == NOBODY).count();
        let expected = asked.min(room).min(free);
        if given != expected && !lenient {
            return Err(format!("{given} frames were given, not {expected}"));
        }
        self.tally.operations += asked as u64;
        self.tally.succeeded += given as u64;
        for place in 0..given {
            let told = self.machine().word(LIST + place * 8);
            let at = slot(told).ok_or_else(|| format!("mfn {told:#x} was given, which isn't RAM"))?;
            self.claim(domain, at)?;
            self.known.name[at] = names.and_then(|names| names.get(place)).copied().unwrap_or(NO_NAME);
            if !self.machine().content.is_blank(at) {
                return Err(format!("mfn {told:#x} was given with something in it, or in a cache"));
            }
        }
        Ok(())
    }

    fn compare_multicall(
        &mut self,
        list: &[Operation],
        foreseen: &Prediction,
        answer: Result<u64, Errno>,
    ) -> Check {
        if answer != Ok(0) {
            return Err(format!("multicall: {answer:?}"));
        }
        for (place, verdict) in foreseen.entries.iter().enumerate() {
            let result = Errno::from_return(self.machine().word(LIST + place * 64 + 8));
            let fine = match result {
                Ok(value) => value == 0 && verdict.is_none(),
                Err(errno) => verdict.is_some_and(|errors| errors.has(errno)),
            };
            if !fine {
                return Err(format!("entry {place} of a multicall: {result:?}, foreseen {verdict:?}"));
            }
            self.tally.operations += 1;
            self.tally.succeeded += u64::from(result.is_ok());
        }
        if foreseen.entries.len() != list.len() {
            return Err("a multicall's entries were not foreseen".into());
        }
        if let Some(known) = foreseen.known.last() {
            self.known = known.clone();
        }
        Ok(())
    }

    /// Dying domains are taken apart by and by: what they still hold is learnt from the core.
    fn follow_the_dying(&mut self) {
        for number in
            (0..DOMAINS).filter(|at| self.known.domains[*at].life == Life::Dying).collect::<Vec<_>>()
        {
            let Some(core) = self.domain(number).filter(|core| core.life() != CoreLife::Vacant) else {
                self.known.domains[number] = Known::default();
                self.known.pins.retain(|pin| pin.domain != number);
                continue;
            };
            let place =
                |root: Option<hyp_core::address::MachineFrame>| root.and_then(|root| slot(root.number()));
            self.known.domains[number].kernel = place(core.vcpus[0].kernel_root());
            self.known.domains[number].user = place(core.vcpus[0].user_root());
            self.known.domains[number].shared = place(core.shared_info());
            let frames = self.hypervisor.frames();
            self.known.pins.retain(|pin| {
                pin.domain != number || frames.usage(frame(pin.table)).is_some_and(|usage| usage.pinned)
            });
            for at in
                (0..FRAMES).filter(|at| usize::from(self.known.owner[*at]) == number).collect::<Vec<_>>()
            {
                if !frames.hold(frame(at)).is_some_and(|hold| hold.allocated) {
                    self.known.claimed.remove(at);
                }
            }
        }
    }

    /// Counts the world anew, and forgets whose the frames were that nobody holds any more.
    fn refresh(&mut self) -> Check {
        if self.is_unfinished() {
            return Ok(());
        }
        let view = View { content: &self.machine().content, writes: &[] };
        self.world = World::count::<F>(&self.known, &view)
            .map_err(|errors| format!("the world contradicts itself: {errors:?}"))?;
        for at in 0..FRAMES {
            if self.world.references[at] == 0 && self.known.owner[at] != NOBODY {
                self.known.owner[at] = NOBODY;
                self.known.name[at] = NO_NAME;
            }
        }
        Ok(())
    }

    /// Everything that has to hold after every step.
    fn check(&mut self, step: u64) -> Check {
        self.follow_the_dying();
        self.refresh()?;
        self.judge()?;
        if !self.is_unfinished() {
            self.compare_records()?;
        }
        if step.is_multiple_of(self.plan.audit_every) {
            let report = self.hypervisor.audit();
            if report.findings != 0 {
                return Err(format!("{report}"));
            }
        }
        Ok(())
    }

    /// Nothing that could be cached leads anywhere it must not.
    fn judge(&self) -> Check {
        let mut may = [Bits::EMPTY; TAGS];
        for at in 0..FRAMES {
            let Some(owner) = self.hypervisor.frames().hold(frame(at)).and_then(|hold| hold.owner) else {
                continue;
            };
            may[0].insert(at);
            if let Some(may) = may.get_mut(usize::from(owner.number())) {
                may.insert(at);
            }
        }
        self.machine().judge(self.hypervisor.frames(), &may)
    }

    /// The core's records are what was counted, to the digit.
    fn compare_records(&self) -> Check {
        let frames = self.hypervisor.frames();
        for at in 0..FRAMES {
            let (Some(hold), Some(usage)) = (frames.hold(frame(at)), frames.usage(frame(at))) else {
                continue;
            };
            let owner = hold.owner.map_or(NOBODY, |owner| owner.number() as u8);
            let world = &self.world;
            let uses = world.writable[at] + world.table[at];
            let kind = match (world.writable[at], world.table[at]) {
                (0, 0) => usage.kind,
                (_, 0) => FrameType::Writable,
                _ => FrameType::Table(world.level[at]),
            };
            let counted = (self.known.owner[at], u32::from(world.references[at]), u32::from(uses), kind);
            let recorded = (owner, hold.references, usage.uses, usage.kind);
            let name = frames.m2p().and_then(|m2p| m2p.get(frame(at))).map_or(NO_NAME, |name| name.number());
            if counted != recorded || name != self.known.name[at] {
                let mfn = number(at);
                return Err(format!(
                    "mfn {mfn:#x}: recorded {recorded:?} {name:#x}, counted {counted:?} {:#x}",
                    self.known.name[at]
                ));
            }
        }
        Ok(())
    }
}

/// What an operation must come to.
#[derive(Default)]
struct Prediction {
    /// What is known after so many elements; empty if not even the first is looked at.
    known: Vec<Knowledge>,
    /// Why the element after those is refused, if there is one.
    refusal: Option<Errors>,
    /// What will stand in memory.
    writes: Vec<(usize, usize, u64)>,
    /// Of a multicall: why each entry is refused, if it is.
    entries: Vec<Option<Errors>>,
}

impl Prediction {
    fn answer(&self) -> Result<u64, Errno> {
        match self.refusal {
            None => Ok(0),
            Some(errors) if errors.has(Errno::EINVAL) => Err(Errno::EINVAL),
            Some(_) => Err(Errno::EBUSY),
        }
    }

    fn add<F: Hardware>(
        &mut self,
        foreseen: &mut Foreseen<'_>,
        domain: usize,
        operation: &Operation,
        begun: usize,
    ) {
        self.refusal = self.elements::<F>(foreseen, domain, operation, begun).err();
    }

    fn elements<F: Hardware>(
        &mut self,
        foreseen: &mut Foreseen<'_>,
        domain: usize,
        operation: &Operation,
        begun: usize,
    ) -> Result<(), Errors> {
        match operation {
            Operation::Updates(domains, list) => {
                let (tables, frames) = penumbra_abi::mmu::decode_foreign_domain(*domains);
                let owner = foreseen.named(domain, tables.unwrap_or(0x7ff0))?;
                let target = foreseen.named(domain, frames)?;
                self.known.push(foreseen.known.clone());
                for update in &list[begun..] {
                    foreseen.update::<F>(owner, target, *update)?;
                    self.known.push(foreseen.known.clone());
                }
            }
            Operation::Extended(of, list) => {
                let owner = foreseen.named(domain, *of)?;
                self.known.push(foreseen.known.clone());
                for one in &list[begun..] {
                    foreseen.extended::<F>(domain, owner, *one)?;
                    self.known.push(foreseen.known.clone());
                }
            }
            Operation::Remap(address, raw, _, of) => {
                self.known.push(foreseen.known.clone());
                let target = of.map_or(Ok(domain), |of| foreseen.named(domain, of))?;
                foreseen.remap::<F>(domain, *address, *raw, target)?;
                self.known.push(foreseen.known.clone());
            }
            Operation::Decrease(list) => {
                self.known.push(foreseen.known.clone());
                for frame in list {
                    foreseen.decrease::<F>(domain, *frame)?;
                    self.known.push(foreseen.known.clone());
                }
            }
            Operation::Multicall(list) => {
                for entry in list {
                    let mut inner = Self::default();
                    inner.add::<F>(foreseen, domain, entry, 0);
                    self.entries.push(inner.refusal);
                }
                self.known.push(foreseen.known.clone());
            }
            _ => {}
        }
        Ok(())
    }
}
