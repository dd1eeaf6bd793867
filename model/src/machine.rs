//! The modelled machine: the core's fourth one, for every page-table format.
//!
//! It has a hundred and sixty frames and three CPUs, one of which executes at a time; what the others have cached or loaded stays in
//! force meanwhile. It watches the core while it works: a table that is read while some TLB could still write to it, an entry
//! that replaces another without a break, a walk that leaves RAM are *violations*, which are remembered for the test to find. Other violations
//! depend on frame types; [`Model::judge`] looks for them, whenever a test asks.
//!
//! Hypercall arguments stand in a *window*, an address range that no guest's tables translate: a guest whose root maps
//! nothing useful can still make hypercalls. Any other address goes through the loaded root and the CPU's TLB.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hyp_core::Hypervisor;
use hyp_core::address::{GuestVirtual, MachineFrame, PAGE_SIZE};
use hyp_core::fake::FakeContext;
use hyp_core::frame::{BootMemory, FrameRecord, FrameTable, FrameType, Memory};
use hyp_core::machine::{
    Board, FlushScope, FrameMemory, GuestFault, GuestMemory, Machine, Mmu, SharedInfoLayout,
};

use crate::bits::Bits;
use crate::format::Hardware;
use crate::hardware::content::{self, Content, FIRST, FRAMES, slot};
use crate::hardware::reach::{Astray, CPUS, Reach, TAGS};
use crate::hardware::tlb::{Cached, Tlb};

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
    /// The kernel's root.
    pub kernel: MachineFrame,
    /// The user mode's root.
    pub user: Option<MachineFrame>,
}

#[derive(Default)]
struct Cpu {
    loaded: Option<Loaded>,
    reach: [Reach; TAGS],
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
    /// Flushes of everything reach this CPU only.
    pub flush_here_only: bool,
}

type Interlude = Box<dyn FnOnce() + Send>;

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
    flaws: Flaws,
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
            flaws,
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

    /// What another CPU does the next time that everything has just been flushed, before the core goes on.
    pub fn at_next_flush(&self, interlude: impl FnOnce() + Send + 'static) {
        *lock(&self.interlude) = Some(Box::new(interlude));
    }

    /// Takes back what [`Self::at_next_flush`] was given, if there was no flush.
    pub fn no_interlude(&self) {
        drop(lock(&self.interlude).take());
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
        match (F::TAGGED, loaded.or(before)) {
            (false, _) => self.forget_all(&mut cpus, cpu),
            // Another vCPU of the same domain, or the end of it here: the tags don't tell them apart.
            (true, Some(loaded_or_left)) if same || loaded.is_none() => {
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

    fn forget_all(&self, cpus: &mut Cpus, cpu: usize) {
        cpus.all[cpu].reach = [Reach::default(); TAGS];
        cpus.all[cpu].tlb.clear();
    }

    fn forget(&self, cpus: &mut Cpus, cpu: usize, tag: usize) {
        cpus.all[cpu].reach[tag] = Reach::default();
        cpus.all[cpu].tlb.forget(tag);
    }

    /// Everything that the loaded roots lead to is in the caches at once.
    fn speculate_all(&self, cpus: &mut Cpus, cpu: usize) {
        let Some(loaded) = cpus.all[cpu].loaded else { return };
        let reach = &mut cpus.all[cpu].reach[loaded.tag];
        for root in [Some(loaded.kernel), loaded.user].into_iter().flatten() {
            let Some(root) = slot(root.number()) else { continue };
            let met = reach.meet::<F>(&self.content, root, F::LEVELS, false);
            self.account(cpu, loaded.tag, met);
        }
        self.mark(&cpus.all[cpu].reach[loaded.tag]);
    }

    fn account(&self, cpu: usize, tag: usize, met: Result<(), Astray>) {
        if let Err(Astray { table, raw }) = met {
            let table = content::number(table);
            self.violate(format!("CPU {cpu} walks out of RAM for d{tag}: {raw:#x} in mfn {table:#x}"));
        }
    }

    fn mark(&self, reach: &Reach) {
        let tables = reach.tables.iter().flatten().fold(Bits::EMPTY, |all, some| all.union(some));
        for (at, watch) in self.watch.iter().enumerate() {
            let bits = (u8::from(reach.writable.has(at)) * WRITABLE) | (u8::from(tables.has(at)) * WALKED);
            if bits != 0 {
                watch.fetch_or(bits, Relaxed);
            }
        }
    }

    /// Something was written to a frame: if walkers use it as a table, they meet it.
    #[inline]
    fn noticed(&self, at: usize, index: usize, raw: u64) {
        if self.watch[at].load(Relaxed) & WALKED != 0 {
            self.meet_written(at, index, raw);
        }
    }

    fn meet_written(&self, at: usize, index: usize, raw: u64) {
        let mut cpus = lock(&self.cpus);
        for cpu in 0..CPUS {
            for tag in 0..TAGS {
                let reach = &mut cpus.all[cpu].reach[tag];
                let before = (reach.readable, reach.writable, reach.tables);
                let met = reach.written::<F>(&self.content, at, index, raw);
                let changed = before != (reach.readable, reach.writable, reach.tables);
                self.account(cpu, tag, met);
                if changed {
                    self.mark(&cpus.all[cpu].reach[tag]);
                }
            }
        }
    }

    /// A store to an entry as hardware sees it.
    fn store(&self, at: usize, index: usize, raw: u64) {
        if F::BREAKS && self.watch[at].load(Relaxed) & WALKED != 0 {
            self.check_break(at, index, raw);
        }
        self.content.write(at, index, raw);
        self.noticed(at, index, raw);
    }

    /// A walker that uses the table must not meet one present entry in place of another.
    fn check_break(&self, at: usize, index: usize, raw: u64) {
        let old = self.content.read(at, index);
        let cpus = lock(&self.cpus);
        let rows = || cpus.all.iter().flat_map(|cpu| &cpu.reach);
        let walked =
            |level: u8| rows().any(|reach| reach.tables[usize::from(level)].iter().any(|set| set.has(at)));
        for level in (1..=F::LEVELS).filter(|level| index < F::entries(*level)) {
            let reserved = level == F::LEVELS && F::reserved_root_slots().contains(&index);
            if !reserved && F::conflict(level, old, raw) && walked(level) {
                self.violate(format!(
                    "no break before {raw:#x} replaces {old:#x} in mfn {:#x}",
                    content::number(at)
                ));
            }
        }
    }

    /// The core looks at a table, or writes to it: nobody else may be able to.
    #[inline]
    fn guard(&self, at: usize, index: usize, what: &str) {
        if self.watch[at].load(Relaxed) & WRITABLE != 0 {
            let cpus = lock(&self.cpus);
            let held = cpus.all.iter().flat_map(|cpu| &cpu.reach).any(|reach| reach.writable.has(at));
            drop(cpus);
            if held {
                let frame = content::number(at);
                self.violate(format!(
                    "entry {index} of mfn {frame:#x} is {what} while a TLB may still let it be written"
                ));
            }
        }
        if self.content.is_split(at, index) {
            let frame = content::number(at);
            self.violate(format!(
                "entry {index} of mfn {frame:#x} is {what}, and memory holds another than the cache"
            ));
        }
    }

    /// Translates for the vCPU that runs on the current CPU, through its TLB.
    pub fn translate(&self, address: u64, write: bool) -> Option<(u64, bool)> {
        let mut cpus = lock(&self.cpus);
        let Cpus { all, current, chance } = &mut *cpus;
        let cpu = &mut all[*current];
        let loaded = cpu.loaded?;
        let root = F::root_of(GuestVirtual::new(address), Some(loaded.kernel), loaded.user)?;
        let root = slot(root.number())?;
        let hit = cpu.tlb.look_up::<F>(loaded.tag, address).filter(|entry| entry.writable || !write);
        let mut used = [(0, 0); 6];
        let mut count = 0;
        let entry = hit.or_else(|| {
            cpu.tlb.walk::<F>(&self.content, (loaded.tag, root, address), chance, |table, _, index| {
                used[count] = (table, index);
                count += 1;
            })
        })?;
        if !entry.writable && write {
            return None;
        }
        drop(cpus);
        for (at, &(table, index)) in used[..count].iter().enumerate() {
            let leaf = at + 1 == count;
            let raw = self.content.read(table, index);
            let marked = raw | F::used(leaf && write);
            if marked != raw {
                self.content.write(table, index, marked);
                self.noticed(table, index, marked);
            }
        }
        Some((entry.target::<F>(address), entry.uncached))
    }

    /// A guest's own access of one word, through the TLB and whatever memory type the entry says. `None`: it takes a fault.
    pub fn access(&self, address: u64, write: Option<u64>) -> Option<u64> {
        let (frame, uncached) = self.translate(address, write.is_some())?;
        let (at, index) = (slot(frame)?, (address % 4096 / 8) as usize);
        match (write, uncached) {
            (None, false) => Some(self.content.read(at, index)),
            (None, true) => Some(self.content.read_home(at, index)),
            (Some(value), true) => {
                self.content.write_home(at, index, value);
                Some(value)
            }
            (Some(value), false) => {
                self.content.write(at, index, value);
                self.noticed(at, index, value);
                Some(value)
            }
        }
    }

    /// A line of a frame leaves the caches, as it may at any time; walkers then see what memory holds.
    pub fn evict(&self, at: usize) {
        self.content.clean(at);
        if self.watch[at].load(Relaxed) & WALKED != 0 {
            for index in 0..content::WORDS {
                self.noticed(at, index, self.content.read(at, index));
            }
        }
    }

    /// Translations of the running guest that its CPU has cached and that the tables, walked anew, don't give.
    pub fn stale(&self) -> Vec<(u64, Cached)> {
        let mut cpus = lock(&self.cpus);
        let Cpus { all, current, chance } = &mut *cpus;
        let cpu = &all[*current];
        let Some(loaded) = cpu.loaded else { return Vec::new() };
        let mut stale = Vec::new();
        for entry in cpu.tlb.of(loaded.tag) {
            // What the prefix has lost at the top was sign, which a walk doesn't need.
            let address = Tlb::address::<F>(&entry);
            let root = F::root_of(GuestVirtual::new(address), Some(loaded.kernel), loaded.user);
            let root = root.and_then(|root| slot(root.number()));
            let now = root.and_then(|root| {
                Tlb::default().walk::<F>(&self.content, (loaded.tag, root, address), chance, |_, _, _| {})
            });
            if now != Some(entry) {
                stale.push((address, entry));
            }
        }
        stale
    }

    /// Holds all that could be cached against the frame types. `may` says which frames a domain may reach at all.
    ///
    /// # Errors
    /// The first thing that must not be.
    pub fn judge(&self, frames: &FrameTable, may: &[Bits; TAGS]) -> Result<(), String> {
        if let Some(violation) = self.violation() {
            return Err(violation);
        }
        let types = Types::of(frames, F::LEVELS);
        let cpus = lock(&self.cpus);
        for (number, cpu) in cpus.all.iter().enumerate() {
            for (tag, reach) in cpu.reach.iter().enumerate() {
                types.judge(reach, &may[tag]).map_err(|what| format!("CPU {number}, d{tag}: {what}"))?;
            }
        }
        Ok(())
    }
}

/// Frames by their types.
struct Types {
    writable: Bits,
    tables: [Bits; 6],
}

impl Types {
    fn of(frames: &FrameTable, levels: u8) -> Self {
        let mut types = Self { writable: Bits::EMPTY, tables: [Bits::EMPTY; 6] };
        for at in 0..FRAMES {
            match frames.usage(content::frame(at)).map(|usage| usage.kind) {
                Some(FrameType::Writable) => drop(types.writable.insert(at)),
                // A table can be walked at a lower level too, through a linear entry; see `judge`.
                Some(FrameType::Table(level)) if level <= levels => {
                    types.tables[usize::from(level)].insert(at);
                }
                _ => {}
            }
        }
        types
    }

    fn judge(&self, reach: &Reach, may: &Bits) -> Result<(), String> {
        let at = |slot: usize| content::number(slot);
        if let Some(frame) = reach.readable.first_outside(may) {
            return Err(format!(
                "a cached translation leads to mfn {:#x}, which it may not reach",
                at(frame)
            ));
        }
        if let Some(frame) = reach.writable.first_outside(&self.writable) {
            return Err(format!(
                "a cached translation lets mfn {:#x} be written, which isn't of type writable",
                at(frame)
            ));
        }
        let mut above = Bits::EMPTY;
        for level in (1..6).rev() {
            above = above.union(&self.tables[level]);
            // On special ways only: a linear entry makes tables of higher levels appear below the root. What could be written by that was
            // judged above.
            for (set, fine) in [(0, self.tables[level]), (1, above)] {
                if let Some(frame) = reach.tables[level][set].first_outside(&fine) {
                    return Err(format!(
                        "a walk cache leads to mfn {:#x} as a level-{level} table, which it isn't",
                        at(frame)
                    ));
                }
            }
        }
        Ok(())
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

impl<F: Hardware> Machine for Model<F> {
    type Format = F;
    type Context = FakeContext;
    const M2P_WINDOW: GuestVirtual = GuestVirtual::new(0);
    const PLATFORM: &'static str = "x86_64";
    const ASSISTS: u64 = 1 << 2;
    const START_SLACK: u64 = 10 << 12;
    const START_ALIGNMENT: u64 = 1 << 12;
    const SHARED_INFO: SharedInfoLayout = SharedInfoLayout {
        vcpu_infos: 4,
        vcpu_info_bytes: 64,
        has_upcall_mask: true,
        pending: 2048,
        mask: 2560,
    };

    fn root_of(
        address: GuestVirtual,
        kernel: Option<MachineFrame>,
        user: Option<MachineFrame>,
    ) -> Option<MachineFrame> {
        F::root_of(address, kernel, user)
    }
}

impl<F: Hardware> Mmu for Model<F> {
    type Table = MachineFrame;

    fn table(&self, table: MachineFrame) -> Option<MachineFrame> {
        Some(table)
    }

    fn read_in(&self, table: MachineFrame, index: usize) -> u64 {
        self.read_entry(table, index)
    }

    fn write_in(&self, table: MachineFrame, index: usize, raw: u64) {
        self.write_entry(table, index, raw);
    }

    #[inline]
    fn read_entry(&self, table: MachineFrame, index: usize) -> u64 {
        let Some(at) = slot(table.number()) else { return 0 };
        self.guard(at, index, "read");
        self.content.read(at, index)
    }

    fn write_entry(&self, table: MachineFrame, index: usize, raw: u64) {
        let Some(at) = slot(table.number()) else { return };
        self.guard(at, index, "written");
        if !self.flaws.no_break && F::backend_breaks(self.content.read(at, index), raw) {
            self.store(at, index, 0);
            self.flush(FlushScope::Everything);
        }
        self.store(at, index, raw);
    }

    fn exchange_entry(&self, table: MachineFrame, index: usize, current: u64, new: u64) -> Result<(), u64> {
        let Some(at) = slot(table.number()) else { return Ok(()) };
        self.guard(at, index, "written");
        let now = self.content.read(at, index);
        let hardware = F::used(true);
        // Now and then a walker has just used the entry.
        if hardware != 0 && now & hardware != hardware && lock(&self.cpus).chance.u8(..8) == 0 {
            let present = F::walk(1, now) != crate::format::Walk::Fault;
            if present {
                self.store(at, index, now | hardware);
            }
        }
        let mut current = current;
        if !self.flaws.no_break && F::backend_breaks(current, new) {
            self.content.exchange(at, index, current, 0)?;
            self.noticed(at, index, 0);
            self.flush(FlushScope::Everything);
            current = 0;
        }
        if F::BREAKS && self.watch[at].load(Relaxed) & WALKED != 0 {
            self.check_break(at, index, new);
        }
        self.content.exchange(at, index, current, new)?;
        self.noticed(at, index, new);
        Ok(())
    }

    fn reserved_entry(&self, slot: usize) -> u64 {
        // What the hypervisor has there is not for guests: to their walkers, wherever they meet it, it is absent.
        0x5a00_0000_0000_0000 | (slot as u64) << 1
    }

    fn load_roots(&self, kernel: MachineFrame, user: Option<MachineFrame>) {
        let mut cpus = lock(&self.cpus);
        let cpu = cpus.current;
        let Some(loaded) = cpus.all[cpu].loaded else { return };
        cpus.all[cpu].loaded = Some(Loaded { kernel, user, ..loaded });
        self.forget(&mut cpus, cpu, loaded.tag);
        self.speculate_all(&mut cpus, cpu);
    }

    fn flush(&self, scope: FlushScope) {
        let mut cpus = lock(&self.cpus);
        let current = cpus.current;
        let tag = cpus.all[current].loaded.map(|loaded| loaded.tag);
        match (scope, tag) {
            (FlushScope::Page(address), Some(tag)) => {
                cpus.all[current].tlb.forget_page::<F>(tag, address.bytes());
            }
            (FlushScope::Local, Some(tag)) => {
                self.forget(&mut cpus, current, tag);
                self.speculate_all(&mut cpus, current);
            }
            (FlushScope::Page(_) | FlushScope::Local, None) => {}
            (FlushScope::Everything, _) => {
                self.flushes.fetch_add(1, Relaxed);
                self.watch.iter().for_each(|watch| watch.store(0, Relaxed));
                for cpu in 0..CPUS {
                    if cpu == current || !self.flaws.flush_here_only {
                        self.forget_all(&mut cpus, cpu);
                        self.speculate_all(&mut cpus, cpu);
                    } else {
                        for tag in 0..TAGS {
                            self.mark(&cpus.all[cpu].reach[tag]);
                        }
                    }
                }
                drop(cpus);
                let interlude = lock(&self.interlude).take();
                if let Some(interlude) = interlude {
                    interlude();
                    lock(&self.cpus).current = current;
                }
            }
        }
    }
}

impl<F: Hardware> FrameMemory for Model<F> {
    fn read_frame(&self, frame: MachineFrame, offset: usize, into: &mut [u8]) {
        into.fill(0);
        let Some(at) = slot(frame.number()) else { return };
        for (place, byte) in (offset..PAGE_SIZE).zip(into) {
            *byte = self.content.read(at, place / 8).to_le_bytes()[place % 8];
        }
    }

    fn write_frame(&self, frame: MachineFrame, offset: usize, from: &[u8]) {
        let Some(at) = slot(frame.number()) else { return };
        let end = (offset + from.len()).min(PAGE_SIZE);
        let mut place = offset;
        while place < end {
            let (index, first) = (place / 8, place % 8);
            let count = (8 - first).min(end - place);
            let mut bytes = self.content.read(at, index).to_le_bytes();
            bytes[first..first + count].copy_from_slice(&from[place - offset..place - offset + count]);
            let word = u64::from_le_bytes(bytes);
            self.content.write(at, index, word);
            self.noticed(at, index, word);
            place += count;
        }
    }

    fn scrub_frame(&self, frame: MachineFrame) {
        if let Some(at) = slot(frame.number()) {
            self.content.scrub(at, !self.flaws.dirty_scrub);
        }
    }

    fn read_word(&self, frame: MachineFrame, index: usize) -> u64 {
        slot(frame.number()).map_or(0, |at| self.content.read(at, index))
    }

    fn exchange_word(&self, frame: MachineFrame, index: usize, current: u64, new: u64) -> Result<(), u64> {
        let at = slot(frame.number()).ok_or(0u64)?;
        self.content.exchange(at, index, current, new)?;
        self.noticed(at, index, new);
        Ok(())
    }

    fn shared_word(&self, frame: MachineFrame, index: usize) -> Option<&AtomicU64> {
        slot(frame.number()).map(|at| self.content.word(at, index))
    }

    fn copy_frame(&self, from: MachineFrame, to: MachineFrame) {
        let (Some(from), Some(to)) = (slot(from.number()), slot(to.number())) else { return };
        for index in 0..content::WORDS {
            let word = self.content.read(from, index);
            self.content.write(to, index, word);
            self.noticed(to, index, word);
        }
    }
}

impl<F: Hardware> Model<F> {
    /// Does `piece` for each part of a range that lies in one page: the frame, the offset in it, the part of the buffer.
    fn by_pages(
        &self,
        start: GuestVirtual,
        length: usize,
        write: bool,
        mut piece: impl FnMut(MachineFrame, usize, std::ops::Range<usize>),
    ) -> Result<(), GuestFault> {
        let mut done = 0;
        while done < length {
            let address = start.checked_add(done as u64).ok_or(GuestFault)?.bytes();
            let offset = (address % PAGE_SIZE as u64) as usize;
            let end = (done + PAGE_SIZE - offset).min(length);
            let (frame, _) = self.translate(address, write).ok_or(GuestFault)?;
            piece(MachineFrame::new(frame).ok_or(GuestFault)?, offset, done..end);
            done = end;
        }
        Ok(())
    }

    /// The part of the window that a range of addresses names, if it is in the window.
    fn in_window(start: GuestVirtual, length: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(start.bytes().checked_sub(WINDOW)?).ok()?;
        let end = start.checked_add(length)?;
        (end <= WINDOW_BYTES).then_some(start..end)
    }

    /// Writes into the window.
    pub fn put(&self, offset: usize, bytes: &[u8]) -> u64 {
        lock(&self.window)[offset..offset + bytes.len()].copy_from_slice(bytes);
        WINDOW + offset as u64
    }

    /// Reads bytes from the window.
    pub fn bytes(&self, offset: usize, length: usize) -> Vec<u8> {
        lock(&self.window)[offset..offset + length].to_vec()
    }

    /// Reads a word from the window.
    pub fn word(&self, offset: usize) -> u64 {
        let mut word = [0; 8];
        word.copy_from_slice(&lock(&self.window)[offset..offset + 8]);
        u64::from_le_bytes(word)
    }
}

impl<F: Hardware> GuestMemory for Model<F> {
    fn read_guest(&self, from: GuestVirtual, into: &mut [u8]) -> Result<(), GuestFault> {
        if let Some(part) = Self::in_window(from, into.len()) {
            into.copy_from_slice(&lock(&self.window)[part]);
            return Ok(());
        }
        self.by_pages(from, into.len(), false, |frame, offset, part| {
            self.read_frame(frame, offset, &mut into[part]);
        })
    }

    fn write_guest(&self, to: GuestVirtual, from: &[u8]) -> Result<(), GuestFault> {
        if let Some(part) = Self::in_window(to, from.len()) {
            lock(&self.window)[part].copy_from_slice(from);
            return Ok(());
        }
        self.by_pages(to, from.len(), true, |frame, offset, part| {
            self.write_frame(frame, offset, &from[part]);
        })
    }
}

impl<F: Hardware> Board for Model<F> {
    fn console_write(&self, _: &[u8]) {}

    fn now(&self) -> u64 {
        self.ticks()
    }

    fn ticks(&self) -> u64 {
        self.clock.fetch_add(1, Relaxed)
    }

    fn power_off(&self) -> ! {
        panic!("the modelled machine was switched off")
    }

    fn reboot(&self) -> ! {
        panic!("the modelled machine was rebooted")
    }
}
