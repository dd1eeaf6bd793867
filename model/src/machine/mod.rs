//! The modelled machine: the core's fourth one, for every page-table format.
//!
//! It has a hundred and sixty frames and three CPUs, one of which executes at a time; what the others have cached or loaded stays in
//! force meanwhile. It watches the core while it works: a table that is read while some TLB could still write to it, an entry
//! that replaces another without a break, be it one that went long ago, a walk that leaves RAM are *violations*, which are remembered for the test to find. Other violations
//! depend on frame types; [`Model::judge`] looks for them, whenever a test asks.
//!
//! Hypercall arguments stand in a *window*, an address range that no guest's tables translate: a guest whose root maps
//! nothing useful can still make hypercalls. Any other address goes through the loaded root and the CPU's TLB.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hyp_core::address::MachineFrame;
use hyp_core::frame::{BootMemory, FrameRecord, Memory};
use hyp_core::{Hypervisor, Vcpu};
use hyp_el2::remembered::Remembered;

use crate::format::Hardware;
use crate::hardware::content::{self, Content, FIRST, FRAMES};
use crate::hardware::former::Former;
use crate::hardware::reach::{CPUS, Reach, TAGS};
use crate::hardware::tlb::Tlb;

mod access;
mod beneath;
mod context;
mod judge;
mod watch;

pub use context::ModelContext;

/// Where hypercall arguments stand, for every guest.
pub const WINDOW: u64 = 1 << 61;
/// Bytes of the window.
pub const WINDOW_BYTES: usize = 16384;

/// Some TLB may hold the frame writable.
const WRITABLE: u8 = 1;
/// Some walker may use the frame as a table.
const WALKED: u8 = 2;

/// What is loaded on a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loaded {
    /// Number of the domain.
    pub tag: usize,
    /// Which of its vCPUs.
    pub vcpu: usize,
    /// The kernel's root.
    pub kernel: MachineFrame,
    /// The user mode's root.
    pub user: Option<MachineFrame>,
}

impl Loaded {
    /// What a vCPU has to have loaded, if it can run at all.
    pub fn of<F: Hardware>(vcpu: &Vcpu<Model<F>>) -> Option<Self> {
        vcpu.kernel_root().map(|kernel| Self {
            tag: usize::from(vcpu.domain_id().number()),
            vcpu: usize::from(vcpu.index()),
            kernel,
            user: vcpu.user_root(),
        })
    }
}

#[derive(Default)]
struct Cpu {
    loaded: Option<Loaded>,
    /// Which vCPU of each domain it has run last.
    last: [Option<usize>; TAGS],
    reach: [Reach; TAGS],
    former: [Former; TAGS],
    tlb: Tlb,
}

struct Cpus {
    all: [Cpu; CPUS],
    current: usize,
    chance: fastrand::Rng,
}

/// Faults that a backend could have, to see that the model shows them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flaws {
    /// Scrubbed frames are left in the caches.
    pub dirty_scrub: bool,
    /// Entries are replaced at once.
    pub no_break: bool,
    /// Absent entries are filled at once, whatever TLBs may remember of them.
    pub no_memory: bool,
    /// Flushes of everything reach this CPU only.
    pub flush_here_only: bool,
}

/// What another CPU does meanwhile, and when.
pub struct Interlude {
    moment: Moment,
    act: Box<dyn FnOnce() + Send>,
}

/// A moment in the core's work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// Everything has just been flushed, and the core has yet to go on.
    Flushed,
    /// The core is about to read an entry of the table in this place.
    Reads(usize),
}

/// No place that a frame has.
const NOWHERE: usize = usize::MAX;

/// A machine.
pub struct Model<F: Hardware> {
    /// What frames hold.
    pub content: Content,
    watch: Vec<AtomicU8>,
    cpus: Mutex<Cpus>,
    window: Mutex<Box<[u8]>>,
    clock: AtomicU64,
    flushes: AtomicU64,
    violated: AtomicBool,
    violations: Mutex<Vec<String>>,
    interlude: Mutex<Option<Interlude>>,
    /// The table whose reading an interlude waits for, or [`NOWHERE`].
    awaited: AtomicUsize,
    told: Mutex<Vec<String>>,
    flaws: Flaws,
    /// The backend's own note of what TLBs may remember.
    remembered: Remembered,
    format: std::marker::PhantomData<F>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F: Hardware> Model<F> {
    /// A machine whose chance is ruled by `seed`.
    pub fn new(seed: u64, flaws: Flaws) -> Self {
        let cpus = Cpus { all: Default::default(), current: 0, chance: fastrand::Rng::with_seed(seed) };
        Self {
            content: Content::new(),
            watch: (0..FRAMES).map(|_| AtomicU8::new(0)).collect(),
            cpus: Mutex::new(cpus),
            window: Mutex::new(vec![0; WINDOW_BYTES].into_boxed_slice()),
            clock: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            violated: AtomicBool::new(false),
            violations: Mutex::new(Vec::new()),
            interlude: Mutex::new(None),
            awaited: AtomicUsize::new(NOWHERE),
            told: Mutex::new(Vec::new()),
            flaws,
            remembered: Remembered::new(),
            format: std::marker::PhantomData,
        }
    }

    /// The first thing that went wrong, if anything did.
    pub fn violation(&self) -> Option<String> {
        if !self.violated.load(Relaxed) {
            return None;
        }
        lock(&self.violations).first().cloned()
    }

    fn violate(&self, what: String) {
        self.violated.store(true, Relaxed);
        lock(&self.violations).push(what);
    }

    /// How often everything was flushed.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Relaxed)
    }

    /// What another CPU does the next time that such a moment comes.
    pub fn meanwhile(&self, moment: Moment, act: impl FnOnce() + Send + 'static) {
        self.arrange(Interlude { moment, act: Box::new(act) });
    }

    /// As [`Self::meanwhile`], of what [`Self::no_interlude`] has taken back.
    pub fn arrange(&self, interlude: Interlude) {
        let awaited = match interlude.moment {
            Moment::Flushed => NOWHERE,
            Moment::Reads(at) => at,
        };
        self.awaited.store(awaited, Relaxed);
        *lock(&self.interlude) = Some(interlude);
    }

    /// Takes back what [`Self::meanwhile`] was given, if its moment has not come.
    pub fn no_interlude(&self) -> Option<Interlude> {
        self.awaited.store(NOWHERE, Relaxed);
        lock(&self.interlude).take()
    }

    /// The moment has come: another CPU executes, if that was arranged.
    #[cold]
    fn moment(&self, moment: Moment) {
        let Some(interlude) = lock(&self.interlude).take_if(|one| one.moment == moment) else { return };
        self.awaited.store(NOWHERE, Relaxed);
        let current = self.current();
        (interlude.act)();
        lock(&self.cpus).current = current;
    }

    /// Remembers what was done where the session doesn't see it, for a failure to tell.
    pub fn tell(&self, what: String) {
        lock(&self.told).push(what);
    }

    /// What was told since the last time, which is forgotten.
    pub fn told(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.told))
    }

    /// Which CPU executes.
    pub fn current(&self) -> usize {
        lock(&self.cpus).current
    }

    /// From now on CPU `cpu` executes, with these roots, as a switch of vCPUs leaves it: what was cached under another tag stays, if there
    /// are tags; if there are none, loading a root makes the CPU forget.
    pub fn switch_to(&self, cpu: usize, loaded: Option<Loaded>) {
        let mut cpus = lock(&self.cpus);
        cpus.current = cpu;
        let before = cpus.all[cpu].loaded;
        if before == loaded {
            return;
        }
        let same = before.map(|before| before.tag) == loaded.map(|loaded| loaded.tag);
        cpus.all[cpu].loaded = loaded;
        let another = loaded.is_some_and(|next| {
            cpus.all[cpu].last[next.tag].replace(next.vcpu).is_some_and(|last| last != next.vcpu)
        });
        match (F::TAGGED, loaded.or(before)) {
            (false, _) => self.forget_all(&mut cpus, cpu),
            // Another vCPU of the same domain, or the end of it here: the tags don't tell them apart.
            (true, Some(loaded_or_left)) if same || another || loaded.is_none() => {
                self.forget(&mut cpus, cpu, loaded_or_left.tag);
            }
            (true, _) => {}
        }
        self.speculate_all(&mut cpus, cpu);
    }

    /// What a CPU has loaded.
    pub fn loaded(&self, cpu: usize) -> Option<Loaded> {
        lock(&self.cpus).all[cpu].loaded
    }
}

/// A hypervisor on such a machine, with all of its memory free, for as long as the process lives.
///
/// # Panics
/// When the host has no memory.
pub fn hypervisor<F: Hardware>(seed: u64, flaws: Flaws) -> &'static Hypervisor<Model<F>> {
    let extent = (content::END - FIRST) as usize;
    let zeros =
        |count: usize| -> &'static [AtomicU64] { Box::leak((0..count).map(|_| AtomicU64::new(0)).collect()) };
    let records: &'static [FrameRecord] = Box::leak((0..extent).map(|_| FrameRecord::new()).collect());
    // A static of a real machine; here it is made on a stack, which has to be larger than a test's.
    let make = move || -> &'static Hypervisor<Model<F>> {
        Box::leak(Box::new(Hypervisor::new(Model::new(seed, flaws))))
    };
    let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(make).expect("a thread");
    let hypervisor = thread.join().expect("a hypervisor");
    let mut boot = BootMemory::new();
    boot.add_ram(FIRST << 12, content::END << 12).expect("room for one range");
    let first = MachineFrame::new(FIRST).expect("a frame number");
    hypervisor.initialise(
        Memory {
            first,
            records,
            free_map: zeros(hyp_core::frame::allocator::words(extent)),
            m2p: zeros(extent),
        },
        &boot,
    );
    hypervisor
}
