//! What the tests share: a machine with a few domains, hypercalls made as a guest makes them, and an observer
//! that trusts nobody.
//!
//! A [`Rig`] is a fake machine with a control domain and guests, all of them built by the domain builder. A guest's
//! arguments are written into its own memory, at [`SCRATCH`], and read from there by the hypervisor. [`observe`]
//! is the independent judge: it walks from every loaded root, with its own reading of the fake format's bits, and shares no
//! code with the auditor.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(missing_docs, reason = "tests")]

pub mod events;
pub mod observe;

use hyp_core::Hypervisor;
use hyp_core::Vcpu;
use hyp_core::address::{DomainId, GuestVirtual, MachineFrame, PAGE_SIZE};
use hyp_core::domain::Domain;
use hyp_core::domain::builder::Plan;
use hyp_core::fake::format::{self, READ_ONLY};
use hyp_core::fake::{self, Fake, FakeFormat, kernel};
use hyp_core::machine::{GuestMemory, Level, Mmu, PageTableFormat};
use hyp_core::paging::{Budget, TableSpace};
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as number;
use penumbra_abi::memory::MemoryReservation;
use penumbra_abi::mmu::{MmuUpdate, MmuextOp};
use zerocopy::IntoBytes;

/// Pseudo-physical frame in which guests prepare arguments; four pages.
pub const SCRATCH: u64 = 900;
/// Where in the scratch memory [`Rig::reserve`] puts its list: the second page.
pub const LIST: u64 = 4096;
/// First of the frames that tests play with; mapped writable by the builder like all others.
pub const POOL: u64 = 960;
/// `DOMID_SELF`.
pub const SELF: u64 = 0x7ff0;
/// Frames of the machine, the first of which is [`fake::FIRST_FRAME`].
pub const MACHINE: usize = 4096;
/// A table of a root holds this many entries, and so on downwards.
pub const ENTRIES: [usize; 4] = [0, 16, 8, 32];

/// A machine with domains.
pub struct Rig {
    pub hv: &'static Hypervisor<Fake>,
    pub domains: Vec<Guest>,
}

/// One domain, as the test sees it.
pub struct Guest {
    pub domain: &'static Domain<Fake>,
    /// The builder's root.
    pub root: MachineFrame,
    /// Pseudo-physical to machine.
    pub p2m: Vec<MachineFrame>,
}

pub fn frame(number: u64) -> MachineFrame {
    MachineFrame::new(number).expect("a frame number")
}

/// A read-only leaf or a writable one.
pub fn leaf(frame: MachineFrame, writable: bool) -> u64 {
    format::leaf(frame, writable)
}

pub fn table(frame: MachineFrame) -> u64 {
    format::table(frame)
}

/// A leaf that says read-only, but lets hardware lift that.
pub fn lifted(frame: MachineFrame) -> u64 {
    format::leaf(frame, false) | format::LIFT
}

/// The machine address of entry `index` of a table.
pub fn place(table: MachineFrame, index: usize) -> u64 {
    table.start().bytes() + 8 * index as u64
}

/// Where pseudo-physical frames are mapped at the start.
pub fn address(pfn: u64) -> u64 {
    kernel::VIRT_BASE + pfn * PAGE_SIZE as u64
}

impl Guest {
    /// A guest's view of what was just built.
    pub fn new(hv: &'static Hypervisor<Fake>, control: bool) -> Self {
        let file = kernel::image(PAGE_SIZE);
        let plan =
            Plan { kernel: &file, ramdisk: b"", arguments: "", pages: kernel::MINIMUM_FRAMES, control };
        let domain = hv.build_domain(&plan).expect("a domain");
        let mut p2m = vec![frame(0); kernel::MINIMUM_FRAMES as usize];
        let (first, end) = hv.frames().extent();
        for mfn in (first..end).map(frame) {
            let owner = hv.frames().hold(mfn).and_then(|hold| hold.owner);
            let name = hv.frames().m2p().and_then(|m2p| m2p.get(mfn));
            if let Some(pfn) = name.filter(|_| owner == Some(domain.id())) {
                p2m[pfn.number() as usize] = mfn;
            }
        }
        Self { domain, root: domain.vcpus[0].kernel_root().expect("a root"), p2m }
    }

    pub fn id(&self) -> DomainId {
        self.domain.id()
    }

    pub fn vcpu(&self) -> &'static Vcpu<Fake> {
        &self.domain.vcpus[0]
    }
}

impl Rig {
    /// A machine with a control domain (number 0) and so many guests.
    pub fn new(guests: usize) -> Self {
        // A hundred frames more than three guests need, if there are more.
        let needed = (guests + 1) * (kernel::MINIMUM_FRAMES as usize + 100);
        let hv = fake::hypervisor(MACHINE.max(needed));
        let domains = (0..=guests).map(|index| Guest::new(hv, index == 0)).collect();
        Self { hv, domains }
    }

    /// Frame number `index` of the pool of domain `who`.
    pub fn pool(&self, who: usize, index: u64) -> MachineFrame {
        self.domains[who].p2m[(POOL + index) as usize]
    }

    /// Issues a hypercall once: its result, or the arguments with which it wants to be issued again.
    pub fn call_once(&self, who: usize, number: u64, arguments: [u64; 6]) -> Result<u64, [u64; 6]> {
        self.hv.machine().set_root(self.domains[who].root);
        let vcpu = self.domains[who].vcpu();
        vcpu.context().take();
        self.hv.hypercall(vcpu, number, arguments);
        let registers = vcpu.context().take();
        match (registers.result, registers.again) {
            (Some(result), None) => Ok(result),
            (None, Some(again)) => Err(again),
            other => panic!("a hypercall has one outcome, not {other:?}"),
        }
    }

    /// Issues a hypercall until it is done, as a guest would, unknowingly.
    pub fn call(&self, who: usize, number: u64, mut arguments: [u64; 6]) -> Result<u64, Errno> {
        for _ in 0..10_000 {
            match self.call_once(who, number, arguments) {
                Ok(result) => return Errno::from_return(result),
                Err(again) => arguments = again,
            }
        }
        panic!("hypercall {number} does not end");
    }

    /// Writes bytes into a guest's scratch memory; returns their address.
    pub fn give(&self, who: usize, offset: u64, bytes: &[u8]) -> u64 {
        self.hv.machine().set_root(self.domains[who].root);
        let at = address(SCRATCH) + offset;
        self.hv.machine().write_guest(GuestVirtual::new(at), bytes).expect("scratch memory");
        at
    }

    /// Reads a word of a guest's scratch memory.
    pub fn word(&self, who: usize, offset: u64) -> u64 {
        self.hv.machine().set_root(self.domains[who].root);
        let mut bytes = [0; 8];
        let at = GuestVirtual::new(address(SCRATCH) + offset);
        self.hv.machine().read_guest(at, &mut bytes).expect("scratch memory");
        u64::from_le_bytes(bytes)
    }

    /// `mmu_update` of one's own tables and frames.
    pub fn update(&self, who: usize, updates: &[(u64, u64)]) -> Result<u64, Errno> {
        self.update_for(who, updates, SELF)
    }

    /// `mmu_update` with its domain argument. How many were done is left at the scratch memory's first word.
    pub fn update_for(&self, who: usize, updates: &[(u64, u64)], foreign: u64) -> Result<u64, Errno> {
        let batch: Vec<_> = updates.iter().map(|&(pointer, value)| MmuUpdate { pointer, value }).collect();
        let done = self.give(who, 0, &0u64.to_le_bytes());
        let at = self.give(who, 16, batch.as_bytes());
        self.call(who, number::MMU_UPDATE, [at, batch.len() as u64, done, foreign, 0, 0])
    }

    /// One operation of `mmuext_op` on one's own tables.
    pub fn extended(&self, who: usize, command: u32, argument: u64) -> Result<u64, Errno> {
        self.extended_for(who, command, argument, SELF)
    }

    /// One operation of `mmuext_op`, on a domain's tables.
    pub fn extended_for(&self, who: usize, command: u32, argument: u64, owner: u64) -> Result<u64, Errno> {
        let operation = MmuextOp { command, pad: 0, argument1: argument, argument2: 0 };
        let at = self.give(who, 16, operation.as_bytes());
        self.call(who, number::MMUEXT_OP, [at, 1, 0, owner, 0, 0])
    }

    pub fn pin(&self, who: usize, table: MachineFrame, level: u32) -> Result<u64, Errno> {
        self.extended(who, level - 1, table.number())
    }

    pub fn unpin(&self, who: usize, table: MachineFrame) -> Result<u64, Errno> {
        self.extended(who, penumbra_abi::mmu::MMUEXT_UNPIN_TABLE, table.number())
    }

    pub fn new_root(&self, who: usize, root: MachineFrame) -> Result<u64, Errno> {
        self.extended(who, penumbra_abi::mmu::MMUEXT_NEW_BASEPTR, root.number())
    }

    /// `update_va_mapping` of an address of the builder's tables.
    pub fn remap(&self, who: usize, pfn: u64, raw: u64) -> Result<u64, Errno> {
        self.call(who, number::UPDATE_VA_MAPPING, [address(pfn), raw, 0, 0, 0, 0])
    }

    /// Takes away a pool frame's first mapping, and empties the frame.
    pub fn free_up(&self, who: usize, index: u64) -> MachineFrame {
        let mfn = self.pool(who, index);
        self.remap(who, POOL + index, 0).expect("unmapping one's own frame");
        for at in 0..32 {
            self.update(who, &[(place(mfn, at), 0)]).expect("a write to one's own frame");
        }
        mfn
    }

    /// A frame of the pool, not mapped, with these entries in it.
    pub fn prepare(&self, who: usize, index: u64, entries: &[(usize, u64)]) -> MachineFrame {
        let mfn = self.free_up(who, index);
        for &(at, raw) in entries {
            self.update(who, &[(place(mfn, at), raw)]).expect("a write to one's own frame");
        }
        mfn
    }

    /// `memory_op` on one list of frames.
    pub fn memory(&self, who: usize, operation: u64, domain: u64, list: &[u64]) -> Result<u64, Errno> {
        let list_at = self.give(who, 64, list.as_bytes());
        let reservation = MemoryReservation {
            extent_start: list_at,
            nr_extents: list.len() as u64,
            domid: domain as u16,
            ..MemoryReservation::default()
        };
        let at = self.give(who, 16, reservation.as_bytes());
        self.call(who, number::MEMORY_OP, [operation, at, 0, 0, 0, 0])
    }

    /// Takes away the first mapping of `count` pages from pseudo-physical frame `pfn` on; their machine frames.
    pub fn unmap(&self, who: usize, pfn: u64, count: u64) -> Vec<u64> {
        let pages = pfn..pfn + count;
        pages.clone().for_each(|pfn| assert_eq!(self.remap(who, pfn, 0), Ok(0)));
        pages.map(|pfn| self.domains[who].p2m[pfn as usize].number()).collect()
    }

    /// `memory_op` on a reservation whose list is put into the guest's scratch memory. What the list holds then is read by
    /// [`Self::list`].
    pub fn reserve(
        &self,
        who: usize,
        operation: u64,
        list: &[u64],
        reservation: MemoryReservation,
    ) -> Result<u64, Errno> {
        let extent_start = self.give(who, LIST, list.as_bytes());
        let nr_extents = list.len() as u64;
        let reservation = MemoryReservation { extent_start, nr_extents, ..reservation };
        let at = self.give(who, 16, reservation.as_bytes());
        self.call(who, number::MEMORY_OP, [operation, at, 0, 0, 0, 0])
    }

    /// The first `count` words of the list in a guest's scratch memory.
    pub fn list(&self, who: usize, count: usize) -> Vec<u64> {
        (0..count as u64).map(|index| self.word(who, LIST + 8 * index)).collect()
    }

    /// A domain's tables, to be worked on directly, within a budget.
    pub fn space<'a>(&self, who: usize, budget: &'a Budget) -> TableSpace<'a, Fake> {
        self.domains[who].domain.table_space(self.hv.machine(), self.hv.frames(), budget)
    }

    /// What an entry holds.
    pub fn entry(&self, table: MachineFrame, index: usize) -> u64 {
        self.hv.machine().read_entry(table, index)
    }

    /// The uses of a frame by its current type.
    pub fn uses(&self, frame: MachineFrame) -> u32 {
        self.hv.frames().usage(frame).expect("memory").uses
    }

    /// The books are right, and nothing is reachable that must not be.
    #[track_caller]
    pub fn check(&self) {
        let report = self.hv.audit();
        assert_eq!(report.findings, 0, "{report}");
        if let Err(problem) = observe::observe(self.hv).problem() {
            panic!("{problem}");
        }
    }

    /// The entry of the builder's tables that maps `pfn`: level-1 table and index.
    pub fn builder_entry(&self, who: usize, pfn: u64) -> (MachineFrame, usize) {
        let at = GuestVirtual::new(address(pfn));
        let mut table = self.domains[who].root;
        for level in [3, 2] {
            let raw = self.entry(table, FakeFormat::index(at, level as Level));
            table = frame((raw >> 20) & 0x3fff_ffff);
        }
        (table, FakeFormat::index(at, 1))
    }

    /// Ends a domain the hard way, and takes it apart completely, checking each step.
    pub fn bury(&self, who: usize) {
        self.hv.kill(self.domains[who].vcpu(), format_args!("a test"));
        while self.hv.background() {
            self.check();
        }
    }
}

/// Whether a raw level-1 entry says read-only.
pub fn is_read_only(raw: u64) -> bool {
    raw & READ_ONLY != 0
}
