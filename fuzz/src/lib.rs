//! What the targets share: a machine with three domains, and claims that bytes are turned into.
//!
//! A claim names things as a guest would (a frame of a domain's, a place in a table, a piece of scratch memory) and becomes a number
//! only in the machine at hand, so that a changed byte of the input stays a sensible guest.

#[path = "../../hyp-core/tests/common/mod.rs"]
pub mod common;

use std::cell::RefCell;

use arbitrary::Arbitrary;
use common::{POOL, Rig, SCRATCH, SELF, address, leaf, lifted, place, table};
use hyp_core::address::{GuestVirtual, MachineFrame};
use hyp_core::domain::Life;
use penumbra_abi::hypercall as number;
use penumbra_abi::{domctl, sched};

/// Domains: the control domain and two guests.
pub const DOMAINS: usize = 3;
/// Frames of each domain that are played with: few, so that they meet.
pub const FEW: u64 = 8;

/// A frame, by name.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Frame {
    /// One of the few of the domain itself.
    Own(u8),
    /// One of the few of a domain.
    Of(u8, u8),
    /// The table of the builder's, by level, that maps the few.
    First(u8),
    /// Any number.
    Number(u16),
    /// Any number at all.
    Any(u64),
}

/// An argument, or a word in memory.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Claim {
    Small(u8),
    Scratch(u16),
    Frame(Frame),
    Place(Frame, u8),
    Leaf(Frame, bool),
    Lifted(Frame),
    Table(Frame),
    /// Any of the former entries with a bit changed.
    Odd(Frame, bool, u8),
    PoolAddress(u8),
    Myself,
    Domain(u8),
    Pair(u32, u32),
    Any(u64),
}

impl Frame {
    /// The frame in the machine at hand, for domain `who`.
    pub fn find(self, rig: &Rig, who: usize) -> MachineFrame {
        match self {
            Frame::Own(index) => rig.pool(who, u64::from(index) % FEW),
            Frame::Of(other, index) => rig.pool(usize::from(other) % DOMAINS, u64::from(index) % FEW),
            Frame::First(level) => first_table(rig, who, level % 3 + 1),
            Frame::Number(number) => common::frame(u64::from(number)),
            Frame::Any(number) => common::frame(number >> 24),
        }
    }
}

/// The builder's table of `level` that leads to the pool.
fn first_table(rig: &Rig, who: usize, level: u8) -> MachineFrame {
    if level == 3 { rig.domains[who].root } else { rig.builder_entry(who, POOL).0 }
}

impl Claim {
    /// The number in the machine at hand, for domain `who`.
    pub fn number(self, rig: &Rig, who: usize) -> u64 {
        match self {
            Claim::Small(number) => u64::from(number),
            Claim::Scratch(offset) => address(SCRATCH) + u64::from(offset) % 0x4000,
            Claim::Frame(frame) => frame.find(rig, who).number(),
            Claim::Place(frame, index) => place(frame.find(rig, who), usize::from(index) % 40),
            Claim::Leaf(frame, writable) => leaf(frame.find(rig, who), writable),
            Claim::Lifted(frame) => lifted(frame.find(rig, who)),
            Claim::Table(frame) => table(frame.find(rig, who)),
            Claim::Odd(frame, as_table, bit) => {
                let frame = frame.find(rig, who);
                (if as_table { table(frame) } else { leaf(frame, true) }) ^ 1 << (bit % 64)
            }
            Claim::PoolAddress(index) => address(POOL + u64::from(index) % FEW),
            Claim::Myself => SELF,
            Claim::Domain(number) => u64::from(number),
            Claim::Pair(low, high) => u64::from(low) | u64::from(high) << 32,
            Claim::Any(number) => number,
        }
    }
}

/// What a domain does.
#[derive(Arbitrary, Debug)]
pub enum Step {
    /// Writes words into its scratch memory, from a word on.
    Write(u8, u16, Vec<Claim>),
    /// Issues any hypercall.
    Call(u8, u8, [Claim; 6]),
    /// `mmu_update` with these requests.
    Update(u8, Vec<(Claim, Claim)>, Claim),
    /// `update_va_mapping`.
    Remap(u8, Claim, Claim, u8),
    /// `mmuext_op` with these operations.
    Extended(u8, Vec<(u8, Claim, Claim)>, Claim),
    /// `memory_op` with a list.
    Memory(u8, u8, Vec<Claim>, Claim),
    /// `multicall` with these calls.
    Several(u8, Vec<(u8, [Claim; 6])>),
    /// A hypercall with a structure at its second argument.
    Structured(u8, u8, u8, Vec<Claim>),
    /// Work that is left to do without anybody's asking.
    Background(u8),
    /// The end of a guest.
    Kill(bool),
}

/// Longest list that is made of a step's.
const LONGEST: usize = 24;
/// Times that a preempted hypercall is issued again.
const AGAIN: usize = 40;

impl Step {
    /// Does it.
    pub fn take(&self, rig: &Rig) {
        let by = |who: &u8| Caller { rig, who: usize::from(*who) % DOMAINS };
        match self {
            Step::Write(who, offset, words) => {
                let caller = by(who);
                caller.give(u64::from(*offset) % 0x3000, &caller.numbers(words));
            }
            Step::Call(who, call, claims) => {
                let caller = by(who);
                caller.issue(u64::from(*call) % 72, claims.map(|claim| caller.number(&claim)));
            }
            Step::Update(who, requests, foreign) => by(who).update(requests, foreign),
            Step::Remap(who, place, entry, flags) => by(who).remap(place, entry, *flags),
            Step::Extended(who, operations, foreign) => by(who).extended(operations, foreign),
            Step::Memory(who, operation, list, domain) => by(who).memory(*operation, list, domain),
            Step::Several(who, calls) => by(who).several(calls),
            Step::Structured(who, call, operation, words) => {
                let caller = by(who);
                let place = caller.give(64, &caller.numbers(words));
                let arguments = [u64::from(*operation) % 40, place, 1, 0, 0, 0];
                caller.issue(u64::from(*call) % 72, arguments);
            }
            Step::Background(times) => (0..times % 8).for_each(|_| _ = rig.hv.background()),
            Step::Kill(which) => {
                rig.hv.kill(rig.domains[1 + usize::from(*which)].vcpu(), format_args!("a fuzzer"));
            }
        }
    }
}

/// The domain whose step it is.
struct Caller<'a> {
    rig: &'a Rig,
    who: usize,
}

impl Caller<'_> {
    fn number(&self, claim: &Claim) -> u64 {
        claim.number(self.rig, self.who)
    }

    fn numbers(&self, claims: &[Claim]) -> Vec<u64> {
        claims.iter().take(LONGEST).map(|claim| self.number(claim)).collect()
    }

    fn give(&self, offset: u64, words: &[u64]) -> u64 {
        give(self.rig, self.who, offset, words)
    }

    fn issue(&self, call: u64, arguments: [u64; 6]) {
        issue(self.rig, self.who, call, arguments);
    }

    fn update(&self, requests: &[(Claim, Claim)], foreign: &Claim) {
        let requests = requests.iter().take(LONGEST);
        let words: Vec<u64> =
            requests.flat_map(|(place, entry)| [self.number(place), self.number(entry)]).collect();
        let list = self.give(64, &words);
        let arguments = [list, words.len() as u64 / 2, list - 32, self.number(foreign), 0, 0];
        self.issue(number::MMU_UPDATE, arguments);
    }

    fn remap(&self, place: &Claim, entry: &Claim, flags: u8) {
        let arguments = [self.number(place), self.number(entry), u64::from(flags), SELF, 0, 0];
        let others = flags & 0x80 != 0;
        let call = if others { number::UPDATE_VA_MAPPING_OTHERDOMAIN } else { number::UPDATE_VA_MAPPING };
        self.issue(call, arguments);
    }

    fn extended(&self, operations: &[(u8, Claim, Claim)], foreign: &Claim) {
        let operations = operations.iter().take(LONGEST);
        let words: Vec<u64> = operations
            .flat_map(|(command, a, b)| [u64::from(*command % 24), self.number(a), self.number(b)])
            .collect();
        let list = self.give(64, &words);
        let arguments = [list, words.len() as u64 / 3, 0, self.number(foreign), 0, 0];
        self.issue(number::MMUEXT_OP, arguments);
    }

    fn memory(&self, operation: u8, list: &[Claim], domain: &Claim) {
        let words = self.numbers(list);
        let list = self.give(0x400, &words);
        let (order, domain) = (u64::from(operation >> 6) * 9, self.number(domain));
        let place = self.give(64, &[list, words.len() as u64, order, domain, 1, 0, list, SELF]);
        self.issue(number::MEMORY_OP, [u64::from(operation) & 63, place, 0, 0, 0, 0]);
    }

    fn several(&self, calls: &[(u8, [Claim; 6])]) {
        let words: Vec<u64> = calls
            .iter()
            .take(8)
            .flat_map(|(call, claims)| {
                let arguments = claims.map(|claim| self.number(&claim));
                [u64::from(*call) % 72, 0].into_iter().chain(arguments)
            })
            .collect();
        let list = self.give(64, &words);
        self.issue(number::MULTICALL, [list, words.len() as u64 / 8, 0, 0, 0, 0]);
    }
}

/// Writes words into a domain's scratch memory, as far as it is still mapped; returns where.
fn give(rig: &Rig, who: usize, offset: u64, words: &[u64]) -> u64 {
    use hyp_core::machine::GuestMemory;
    use zerocopy::IntoBytes;
    let place = address(SCRATCH) + (offset & !7);
    load(rig, who);
    let _ = rig.hv.machine().write_guest(GuestVirtual::new(place), words.as_bytes());
    place
}

/// Makes the domain's present root the one that its accesses use.
fn load(rig: &Rig, who: usize) {
    if let Some(root) = rig.domains[who].vcpu().kernel_root() {
        rig.hv.machine().set_root(root);
    }
}

/// Issues a hypercall until it is done or has been preempted often enough.
fn issue(rig: &Rig, who: usize, call: u64, mut arguments: [u64; 6]) {
    if rig.domains[who].domain.life() != Life::Alive || ends_the_machine(rig, who, call, &arguments) {
        return;
    }
    load(rig, who);
    let vcpu = rig.domains[who].vcpu();
    for _ in 0..AGAIN {
        vcpu.context().take();
        rig.hv.hypercall(vcpu, call, arguments);
        match vcpu.context().take().again {
            Some(again) => arguments = again,
            None => return,
        }
    }
}

/// The control domain's own end stops the machine, which the fake one can't do gracefully.
fn ends_the_machine(rig: &Rig, who: usize, call: u64, arguments: &[u64; 6]) -> bool {
    use hyp_core::machine::GuestMemory;
    if who != 0 {
        return false;
    }
    let mut bytes = [0; 0x400];
    load(rig, who);
    let _ = rig.hv.machine().read_guest(GuestVirtual::new(address(SCRATCH)), &mut bytes);
    let holds = |word: u64| bytes.windows(8).any(|window| window == word.to_le_bytes());
    match call {
        number::SCHED_OP => arguments[0] != sched::SCHEDOP_YIELD,
        number::DOMCTL => bytes.windows(4).any(|window| window == domctl::DESTROYDOMAIN.to_le_bytes()),
        number::MULTICALL => holds(number::SCHED_OP) || holds(number::DOMCTL) || holds(number::MULTICALL),
        _ => false,
    }
}

thread_local! {
    static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
}

/// Machines cost more than inputs: one serves until a domain of it is gone or has lost its scratch memory, or it has served
/// so many inputs that what they left behind could hide something.
const INPUTS: u32 = 200;

/// Runs `steps`, has everything recounted after each, and looks with other eyes at the end.
pub fn run(steps: &[Step]) {
    with_rig(|rig| {
        for step in steps {
            step.take(rig);
            let report = rig.hv.audit();
            assert_eq!(report.findings, 0, "{report} after {step:?}");
        }
        rig.check();
    });
}

/// Runs something with a machine.
pub fn with_rig(action: impl FnOnce(&Rig)) {
    thread_local!(static SERVED: RefCell<u32> = const { RefCell::new(0) });
    let fresh = SERVED.with(|served| {
        let count = *served.borrow();
        *served.borrow_mut() = if count >= INPUTS { 0 } else { count + 1 };
        count == 0
    });
    let rig =
        RIG.with(RefCell::take).filter(|_| !fresh).filter(usable).unwrap_or_else(|| Rig::new(DOMAINS - 1));
    action(&rig);
    RIG.with(|slot| slot.replace(Some(rig)));
}

fn usable(rig: &Rig) -> bool {
    (0..DOMAINS).all(|who| {
        load(rig, who);
        let pages = (0..4).map(|page| GuestVirtual::new(address(SCRATCH + page)));
        let mut mapped = pages.map(|page| rig.hv.machine().translate(page, true));
        rig.domains[who].domain.life() == Life::Alive && mapped.all(|frame| frame.is_some())
    })
}
