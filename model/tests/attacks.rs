//! Attacks on translations that are still cached, and on memory that caches and memory itself tell differently: scripted, on the modelled
//! machine, for every table format.
//!
//! Each has a *control experiment*: the attacker's stale translation is used before the hypervisor has any reason to flush it, and works.
//! So what is seen to fail afterwards fails because of a flush, and not because the attacker was clumsy.

use hyp_core::Hypervisor;
use hyp_core::address::{DomainId, GuestVirtual, MachineFrame};
use hyp_core::fake::{FakeFormat, place_on_cpu};
use hyp_core::frame::FrameType;
use hyp_core::paging::table_write::TableWrite;
use hyp_core::paging::walk::{Place, place_at_level};
use hyp_el2::format::VmsaStage1;
use hyp_x86::format::X86Format;
use model::bits::Bits;
use model::format::trimmed::Trimmed;
use model::format::{Hardware, Shape};
use model::guest::{self, Built, PAGES};
use model::hardware::content::{FRAMES, frame, number, slot};
use model::hardware::reach::TAGS;
use model::machine::{self, Flaws, Loaded, Model, Moment};
use penumbra_abi::errno::Errno;
use penumbra_abi::hypercall as call;
use penumbra_abi::memory::{self, MemoryReservation};
use penumbra_abi::mmu::{self, MmuUpdate, MmuextOp};
use zerocopy::IntoBytes;

/// `DOMID_SELF`.
const SELF: u64 = 0x7ff0;
/// Where hypercalls' arguments stand in the window, and their lists.
const ARGUMENT: usize = 64;
const LIST: usize = 1024;
/// What attackers write.
const EVIL: u64 = 0x6576_696c;

/// A machine with the control domain on CPU 0 and two guests on the others.
struct Stage<F: Hardware> {
    hv: &'static Hypervisor<Model<F>>,
    guests: Vec<Built>,
}

impl<F: Hardware> Stage<F> {
    fn new(flaws: Flaws) -> Self {
        let hv = machine::hypervisor::<F>(1, flaws);
        let guests = (0..3).map(|at| guest::build(hv, at == 0).expect("room")).collect();
        let stage = Self { hv, guests };
        (0..3).for_each(|who| stage.run(who, who));
        stage
    }

    fn machine(&self) -> &'static Model<F> {
        self.hv.machine()
    }

    fn loaded(&self, who: usize) -> Loaded {
        let vcpu = &self.hv.domain(DomainId::new(who as u16)).expect("a domain").vcpus[0];
        Loaded::of(vcpu).expect("a root")
    }

    /// A CPU goes on with a domain.
    fn run(&self, cpu: usize, who: usize) {
        place_on_cpu(&self.hv.domain(DomainId::new(who as u16)).expect("a domain").vcpus[0], true);
        self.machine().switch_to(cpu, Some(self.loaded(who)));
    }

    /// Frame of a domain's page, counted from the last: those that nothing needs.
    fn page(&self, who: usize, index: u64) -> MachineFrame {
        frame(self.guests[who].p2m[(PAGES - 1 - index) as usize])
    }

    /// Where it is mapped at the start.
    fn address(index: u64) -> u64 {
        F::address(PAGES - 1 - index)
    }

    fn place(&self, who: usize, address: u64, level: u8) -> Place {
        let root = F::root_of(GuestVirtual::new(address), Some(self.loaded(who).kernel), None);
        place_at_level(self.machine(), root.expect("the kernel's"), GuestVirtual::new(address), level)
            .expect("a table")
    }

    fn call(&self, who: usize, number: u64, mut arguments: [u64; 6]) -> Result<u64, Errno> {
        let vcpu = &self.hv.domain(DomainId::new(who as u16)).expect("a domain").vcpus[0];
        loop {
            vcpu.context().registers.take();
            self.hv.hypercall(vcpu, number, arguments);
            let registers = vcpu.context().registers.take();
            match registers.again {
                Some(again) => arguments = again,
                None => return Errno::from_return(registers.result.expect("an outcome")),
            }
        }
    }

    fn update_for(
        &self,
        who: usize,
        table: MachineFrame,
        index: usize,
        raw: u64,
        of: u64,
    ) -> Result<u64, Errno> {
        let update = MmuUpdate { pointer: table.start().bytes() + 8 * index as u64, value: raw };
        let at = self.machine().put(ARGUMENT, update.as_bytes());
        self.call(who, call::MMU_UPDATE, [at, 1, 0, of, 0, 0])
    }

    fn update(&self, who: usize, table: MachineFrame, index: usize, raw: u64) -> Result<u64, Errno> {
        self.update_for(who, table, index, raw, SELF)
    }

    /// Uses the page at `address`; empties an entry on the way there and fills it with `raw`, in one hypercall or two. Says what was wrong
    /// with that, and what the address gave while the entry was empty, or before.
    fn refill(
        &self,
        place: Place,
        address: u64,
        raw: u64,
        in_one_call: bool,
    ) -> (Option<String>, Option<u64>) {
        assert_eq!(self.access(1, address, Some(7)), Some(7), "{}", F::NAME);
        let pointer = place.table.start().bytes() + 8 * place.index as u64;
        let updates = [0, raw].map(|value| MmuUpdate { pointer, value });
        let put = |updates: &[MmuUpdate]| self.machine().put(ARGUMENT, updates.as_bytes());
        let update = |updates: &[MmuUpdate]| {
            let arguments = [put(updates), updates.len() as u64, 0, SELF, 0, 0];
            self.call(1, call::MMU_UPDATE, arguments).expect("entries of one's own");
        };
        let stale = if in_one_call {
            let stale = self.access(1, address, None);
            update(&updates);
            stale
        } else {
            update(&updates[..1]);
            let stale = self.access(1, address, None);
            update(&updates[1..]);
            stale
        };
        (self.machine().violation(), stale)
    }

    /// Changes what an address maps; nothing is flushed on request.
    fn remap(&self, who: usize, address: u64, raw: u64) -> Result<u64, Errno> {
        self.call(who, call::UPDATE_VA_MAPPING, [address, raw, 0, 0, 0, 0])
    }

    fn extended(&self, who: usize, command: u32, argument: u64) -> Result<u64, Errno> {
        let operation = MmuextOp { command, pad: 0, argument1: argument, argument2: 0 };
        let at = self.machine().put(ARGUMENT, operation.as_bytes());
        self.call(who, call::MMUEXT_OP, [at, 1, 0, SELF, 0, 0])
    }

    fn pin(&self, who: usize, table: MachineFrame, level: u32) -> Result<u64, Errno> {
        self.extended(who, level - 1, table.number())
    }

    fn memory(&self, who: usize, operation: u64, list: u64) -> (Result<u64, Errno>, u64) {
        let extent_start = self.machine().put(LIST, list.as_bytes());
        let request =
            MemoryReservation { extent_start, nr_extents: 1, domid: SELF as u16, ..Default::default() };
        let at = self.machine().put(ARGUMENT, request.as_bytes());
        (self.call(who, call::MEMORY_OP, [operation, at, 0, 0, 0, 0]), self.machine().word(LIST))
    }

    /// An entry as it stands when it has been admitted to a level-1 table.
    fn leaf(shape: Shape, page: MachineFrame) -> u64 {
        F::admit(1, F::compose(shape, page.number())).expect("a good entry").0
    }

    /// A page, mapped where it is at home. (The builder maps only those that a kernel needs to start.)
    fn mapped(&self, who: usize, index: u64) -> MachineFrame {
        let page = self.page(who, index);
        assert_eq!(self.remap(who, Self::address(index), Self::leaf(Shape::Writable, page)), Ok(0));
        page
    }

    /// A page that is mapped nowhere any more, and of which some TLB may know otherwise.
    fn unmapped(&self, who: usize, index: u64) -> MachineFrame {
        assert_eq!(self.remap(who, Self::address(index), 0), Ok(0));
        self.page(who, index)
    }

    /// An access of the domain that CPU `cpu` runs, through that CPU's TLB.
    fn access(&self, cpu: usize, address: u64, write: Option<u64>) -> Option<u64> {
        let who = self.machine().loaded(cpu).expect("a domain").tag;
        self.run(cpu, who);
        self.machine().access(address, write)
    }

    /// The books are right, and nothing that any CPU could have cached leads anywhere it must not.
    #[track_caller]
    fn check(&self) {
        let mut may = [Bits::EMPTY; TAGS];
        for at in 0..FRAMES {
            let owner = self.hv.frames().hold(frame(at)).and_then(|hold| hold.owner);
            if let Some(owner) = owner {
                may[0].insert(at);
                may[usize::from(owner.number())].insert(at);
            }
        }
        self.machine()
            .judge(self.hv.frames(), &may, &may)
            .unwrap_or_else(|what| panic!("{}: {what}", F::NAME));
        let report = self.hv.audit();
        assert_eq!(report.findings, 0, "{}: {report}", F::NAME);
    }
}

/// Runs a story on every format.
macro_rules! everywhere {
    ($story:ident) => {
        $story::<FakeFormat>();
        $story::<Trimmed<X86Format>>();
        $story::<X86Format>();
        $story::<Trimmed<VmsaStage1>>();
        $story::<VmsaStage1>();
    };
}

/// The control domain maps a page of domain 1's, uses it, and unmaps it without a flush. Returns the page and the address.
fn leave_a_stale_mapping<F: Hardware>(stage: &Stage<F>, index: u64) -> (MachineFrame, u64) {
    let page = stage.page(1, index);
    stage.run(0, 0);
    let at = Stage::<F>::address(index);
    let place = stage.place(0, at, 1);
    stage.update(0, place.table, place.index, 0).expect("an entry of one's own");
    stage.extended(0, mmu::MMUEXT_TLB_FLUSH_LOCAL, 0).expect("a flush");
    let raw = F::compose(Shape::Writable, page.number());
    stage.update_for(0, place.table, place.index, raw, 1).expect("a frame of d1's");
    assert_eq!(stage.access(0, at, Some(EVIL)), Some(EVIL));
    stage.update(0, place.table, place.index, 0).expect("an entry of one's own");
    // The control experiment: nobody has flushed anything, and it still works.
    assert_eq!(stage.access(0, at, Some(0)), Some(0), "{}", F::NAME);
    stage.check();
    (page, at)
}

fn a_flush_reaches_every_cpu<F: Hardware>() {
    let stage = Stage::<F>::new(Flaws::default());
    let (page, at) = leave_a_stale_mapping(&stage, 0);
    stage.run(1, 1);
    assert_eq!(stage.unmapped(1, 0), page);
    stage.pin(1, page, 1).expect("an empty table");
    stage.check();
    assert_eq!(stage.access(0, at, Some(EVIL)), None, "{}: a table is written", F::NAME);
    assert_eq!(stage.machine().content.read(slot(page.number()).expect("RAM"), 0), 0);
    // A page that changes hands.
    let (page, at) = leave_a_stale_mapping(&stage, 1);
    stage.run(1, 1);
    stage.unmapped(1, 1);
    assert_eq!(stage.memory(1, memory::XENMEM_DECREASE_RESERVATION, page.number()).0, Ok(1));
    stage.check();
    assert_eq!(stage.access(0, at, Some(EVIL)), None, "{}: somebody else's page is written", F::NAME);
    stage.check();
}

/// XSA-241: whether another CPU still had translations of a page was judged by a time stamp, which was stale: the flush was left out, and
/// the page became a page table, or somebody else's, while that CPU could still write to it.
///
/// The attacker is the control domain on another CPU (or whoever else shares the page): it has the page mapped, and a translation left
/// over. Whoever needs the page otherwise doesn't know of it.
#[test]
fn xsa_241_a_translation_on_another_cpu_ends_with_the_type() {
    everywhere!(a_flush_reaches_every_cpu);
}

fn a_walk_cache_ends_with_the_table<F: Hardware>() {
    let stage = Stage::<F>::new(Flaws::default());
    let secret = stage.page(2, 3);
    let own = stage.page(1, 5);
    stage.run(1, 1);
    // A level-1 table of the attacker's, below a level-2 table of its own, at an address that nothing else uses.
    let [one, two] = [0, 1].map(|index| stage.unmapped(1, index));
    stage.extended(1, mmu::MMUEXT_TLB_FLUSH_LOCAL, 0).expect("a flush");
    stage.update(1, one, 0, F::compose(Shape::Writable, own.number())).expect("data");
    stage.update(1, two, 0, F::compose(Shape::Table, one.number())).expect("data");
    let here = Stage::<F>::address(0);
    let three = stage.place(1, here, 3);
    let index = (three.index + 1) % F::entries(3);
    let shift: u32 = 12 + (1..3).map(F::index_bits).sum::<u32>();
    let base = (here >> shift) + 1;
    let below = base << shift;
    stage.update(1, three.table, index, F::compose(Shape::Table, two.number())).expect("a tree");
    assert_eq!(stage.access(1, below, Some(7)), Some(7));
    // It goes out of the tree; the walker has been told nothing.
    stage.update(1, three.table, index, 0).expect("an entry of one's own");
    assert_eq!(stage.access(1, below, Some(8)), Some(8), "{}: the control experiment", F::NAME);
    stage.check();
    // The frame is data now, and mapped writable: the guest writes what it likes.
    stage.remap(1, Stage::<F>::address(0), F::compose(Shape::Writable, one.number())).expect("data");
    let forged = F::compose(Shape::Writable, secret.number());
    assert_eq!(stage.access(1, Stage::<F>::address(0), Some(forged)), Some(forged));
    stage.check();
    for address in [below, below + 4096] {
        assert_eq!(stage.access(1, address, Some(EVIL)), None, "{}: through a forged entry", F::NAME);
    }
    assert_ne!(stage.machine().content.read(slot(secret.number()).expect("RAM"), 0), EVIL);
}

/// XSA-241, the other way round: a page was a page table, and some walker still goes on from there.
///
/// The attacker takes a table out of its tree without a flush, maps it writable, forges an entry that leads to another domain's page, and
/// uses the address that its walker remembers.
#[test]
fn xsa_241_a_walk_ends_with_the_table() {
    everywhere!(a_walk_cache_ends_with_the_table);
}

fn a_flush_reaches_every_tag<F: Hardware>() {
    for pinned in [false, true] {
        let stage = Stage::<F>::new(Flaws::default());
        stage.run(1, 1);
        stage.mapped(1, 0);
        let at = Stage::<F>::address(0);
        assert_eq!(stage.access(1, at, Some(1)), Some(1));
        // Another domain takes the CPU; what is cached under the first one's tag stays there, if there are tags.
        stage.run(1, 2);
        stage.run(2, 1);
        let page = stage.unmapped(1, 0);
        stage.update(1, page, 0, 0).expect("a word of data");
        stage.extended(1, mmu::MMUEXT_TLB_FLUSH_LOCAL, 0).expect("here, and nowhere else");
        if pinned {
            stage.pin(1, page, 1).expect("an empty table");
            stage.check();
        }
        stage.machine().switch_to(2, None);
        stage.run(1, 1);
        let written = stage.access(1, at, Some(EVIL));
        // The control experiment is the first round.
        let right = if F::TAGGED && !pinned { Some(EVIL) } else { None };
        assert_eq!(written, right, "{}, pinned: {pinned}", F::NAME);
        stage.check();
    }
}

/// XSA-292 and XSA-294: with address-space tags, a CPU keeps translations of what doesn't run at the moment; flushes that were done while
/// another tag was loaded, or by the switch itself, left them out.
///
/// The attacker leaves a writable translation under its tag on a CPU that somebody else uses now, and makes a table of the page on another.
/// When it comes back to the first CPU, the translation must be gone.
#[test]
fn xsa_292_and_294_a_flush_reaches_tags_that_are_not_loaded() {
    everywhere!(a_flush_reaches_every_tag);
}

fn a_change_of_root_ends_the_old_ones_translations<F: Hardware>() {
    let stage = Stage::<F>::new(Flaws::default());
    stage.run(1, 1);
    stage.mapped(1, 0);
    let at = Stage::<F>::address(0);
    assert_eq!(stage.access(1, at, Some(1)), Some(1));
    let other = stage.unmapped(1, 1);
    stage.extended(1, mmu::MMUEXT_NEW_BASEPTR, other.number()).expect("an empty root");
    assert_eq!(stage.machine().stale(stage.machine().current()), [], "{}", F::NAME);
    assert_eq!(stage.access(1, at, Some(EVIL)), None, "{}: under a root that maps nothing", F::NAME);
    stage.check();
}

/// XSA-294, the switch itself: a new root was loaded without its translations being flushed, since a bit of the register that held it
/// said so.
///
/// The attacker loads a root that maps nothing, and goes on with what the old one has mapped.
#[test]
fn xsa_294_a_new_root_begins_with_no_translations() {
    everywhere!(a_change_of_root_ends_the_old_ones_translations);
}

fn tables_are_found_by_what_stands_in_memory<F: Hardware>() {
    let stage = Stage::<F>::new(Flaws::default());
    stage.run(1, 1);
    let [old, new, two] = [0, 1, 2].map(|index| stage.unmapped(1, index));
    let [mine, other] = [5, 6].map(|index| Stage::<F>::leaf(Shape::Writable, stage.page(1, index)));
    let readable = |page: MachineFrame| F::compose(Shape::ReadOnly, page.number());
    stage.update(1, old, 0, mine).expect("data");
    stage.update(1, two, 0, F::compose(Shape::Table, old.number())).expect("data");
    let here = Stage::<F>::address(0);
    let three = stage.place(1, here, 3);
    let shift: u32 = 12 + (1..3).map(F::index_bits).sum::<u32>();
    let below = ((here >> shift) + 1) << shift;
    let index = (three.index + 1) % F::entries(3);
    stage.update(1, three.table, index, F::compose(Shape::Table, two.number())).expect("a tree");
    // Everybody who translates the address, or finds its entry, has been there.
    assert_eq!(stage.access(1, below, Some(3)), Some(3));
    stage.remap(1, below, mine).expect("the same again");
    stage.remap(1, here, readable(old)).expect("a mapping to read it");
    // The old table makes room for the new one, and is given up: its next owner would find in it what is written now.
    stage.update(1, two, 0, 0).expect("an entry of one's own");
    stage.update(1, two, 0, F::compose(Shape::Table, new.number())).expect("another table");
    stage.remap(1, here, readable(new)).expect("a mapping to read it");
    assert_eq!(stage.memory(1, memory::XENMEM_DECREASE_RESERVATION, old.number()).0, Ok(1));
    let word = |table: MachineFrame| stage.machine().content.read(slot(table.number()).expect("RAM"), 0);
    let read = |table: MachineFrame| word(table) & !F::used(true);
    let plain = |raw: u64| raw & !F::used(true);
    let left = read(old);
    assert_ne!(left, plain(other));
    assert_eq!(stage.remap(1, below, other), Ok(0), "{}", F::NAME);
    assert_eq!((read(old), read(new)), (left, plain(other)), "{}: written to where a table was", F::NAME);
    let vcpu = &stage.hv.domain(DomainId::new(1)).expect("d1").vcpus[0];
    let written = stage.hv.write_table(vcpu, GuestVirtual::new(here), |_| Some(mine));
    assert_eq!(written, TableWrite::Done, "{}", F::NAME);
    assert_eq!((read(old), read(new)), (left, plain(mine)), "{}: written to where a table was", F::NAME);
    assert_eq!(stage.hv.frames().usage(new).map(|usage| usage.kind), Some(FrameType::Table(1)));
    stage.check();
}

/// XSA-286: Xen found guests' level-1 entries through a linear mapping of the guest's own tables, whose translations weren't flushed when
/// an upper entry changed. So it went on writing entries to a page that wasn't a table any more.
///
/// The attacker has the hypervisor find an entry, exchanges the table above it, gives the old table away, and has the entry written
/// again: by `update_va_mapping` and by a store that is carried out on its behalf.
#[test]
fn xsa_286_entries_are_found_by_the_tables_as_they_are() {
    everywhere!(tables_are_found_by_what_stands_in_memory);
}

fn caches_and_memory_tell_the_same<F: Hardware>() {
    let stage = Stage::<F>::new(Flaws::default());
    stage.run(1, 1);
    let victim = stage.unmapped(1, 0);
    let good = Stage::<F>::leaf(Shape::ReadOnly, stage.page(1, 5));
    let evil = F::compose(Shape::Writable, stage.page(2, 5).number());
    stage.update(1, victim, 0, good).expect("data");
    // A second mapping, past the caches: by each way to make one.
    let alias = F::uncached(victim.number());
    let at = Stage::<F>::address(1);
    let place = stage.place(1, at, 1);
    let _ = stage.remap(1, at, alias);
    let _ = stage.update(1, place.table, place.index, alias);
    let whole = stage.unmapped(1, 2);
    stage.update(1, whole, 0, alias).expect("data");
    let pinned = stage.pin(1, whole, 1);
    stage.check();
    // If there is one, it is used: memory gets an entry that the caches don't show.
    if stage
        .machine()
        .translate(at, true)
        .is_some_and(|(target, uncached)| uncached && target == victim.number())
    {
        stage.access(1, at, Some(evil));
        let _ = stage.remap(1, at, 0);
    }
    let _ = stage.pin(1, victim, 1);
    // The line leaves the caches, as it may at any time.
    stage.machine().evict(slot(victim.number()).expect("RAM"));
    stage.check();
    assert_eq!(pinned, Err(Errno::EINVAL), "{}: a table with an uncached mapping", F::NAME);
    assert_eq!(
        stage.hv.frames().usage(victim).map(|usage| usage.complete),
        Some(true),
        "no alias, so a table"
    );
    assert_eq!(stage.machine().content.read(slot(victim.number()).expect("RAM"), 0), good);
}

/// XSA-402 (and XSA-154): a page had a second mapping of another memory type, by which the guest wrote past the caches. Validation read
/// what the caches held, and the walker, once the line was gone, what stood in memory.
///
/// The attacker tries to get such a mapping, by each call and in a table that is validated as a whole; with one it would forge the table's
/// entry in memory and wait for the line to be evicted.
#[test]
fn xsa_402_no_alias_shows_validation_other_bytes_than_the_walker() {
    everywhere!(caches_and_memory_tell_the_same);
}

fn a_frame_that_is_given_out_is_blank_past_the_caches<F: Hardware>() {
    let stage = Stage::<F>::new(Flaws::default());
    stage.run(1, 1);
    let page = stage.mapped(1, 0);
    let at = slot(page.number()).expect("RAM");
    for word in 0..8 {
        assert!(stage.access(1, Stage::<F>::address(0) + 8 * word, Some(EVIL)).is_some());
    }
    // It stands in memory itself, too.
    stage.machine().evict(at);
    assert_eq!(stage.machine().content.read_home(at, 0), EVIL);
    stage.unmapped(1, 0);
    assert_eq!(stage.memory(1, memory::XENMEM_DECREASE_RESERVATION, page.number()).0, Ok(1));
    stage.run(2, 2);
    // The next owner asks for as many as it gives up, until the frame is among them.
    let mut taken = Vec::new();
    for index in 0..16 {
        let back = stage.unmapped(2, index);
        assert_eq!(stage.memory(2, memory::XENMEM_DECREASE_RESERVATION, back.number()).0, Ok(1));
    }
    while !taken.contains(&page.number()) {
        let (done, mfn) = stage.memory(2, memory::XENMEM_INCREASE_RESERVATION, 0);
        assert_eq!(done, Ok(1), "{}: the frame is not among {taken:x?}", F::NAME);
        taken.push(mfn);
    }
    for mfn in taken {
        let at = slot(mfn).expect("RAM");
        // What `DC IVAC` does, if it could.
        stage.machine().content.invalidate(at);
        assert!(
            stage.machine().content.is_blank(at),
            "{}: mfn {:#x} shows another's bytes",
            F::NAME,
            number(at)
        );
    }
    stage.check();
}

/// `DC IVAC` on a frame that used to be someone else's: the zeros of the scrubbing are thrown away before they have gone home, and memory
/// shows what stood there before. Guests can't (TPC); and if one could, there is nothing to be seen: a frame is cleaned to the point of
/// coherency when it is given out.
#[test]
fn dc_ivac_shows_nothing_of_the_last_owners() {
    everywhere!(a_frame_that_is_given_out_is_blank_past_the_caches);
}

fn nobody_maps_a_frame_whose_type_is_locked<F: Hardware>() {
    let stage = Stage::<F>::new(Flaws::default());
    let (page, at) = leave_a_stale_mapping(&stage, 0);
    let place = stage.place(0, at, 1);
    stage.run(1, 1);
    stage.unmapped(1, 0);
    let (sender, receiver) = std::sync::mpsc::channel();
    let (hv, loaded) = (stage.hv, stage.loaded(0));
    stage.machine().meanwhile(Moment::Flushed, move || {
        let stage = Stage { hv, guests: Vec::new() };
        stage.machine().switch_to(0, Some(loaded));
        let raw = F::compose(Shape::Writable, page.number());
        let mapped = stage.update_for(0, place.table, place.index, raw, 1);
        let written = stage.machine().access(at, Some(EVIL));
        let unmapped = stage.update(0, place.table, place.index, 0);
        sender.send((mapped, written, unmapped)).expect("the test waits");
    });
    // As another hypercall's arguments stand in the window meanwhile, one that has been read already.
    let pinned = stage.pin(1, page, 1);
    let (mapped, written, unmapped) = receiver.try_recv().expect("there was a flush");
    assert_eq!((mapped, written, unmapped), (Err(Errno::EBUSY), None, Ok(0)), "{}", F::NAME);
    assert_eq!(pinned, Ok(0));
    stage.check();
    assert_eq!(stage.access(0, at, Some(EVIL)), None, "{}: a table is written", F::NAME);
}

/// XSA-401: the flush came before the type was locked. Between the two, another CPU mapped the page writable, wrote to it and unmapped
/// it, which left a translation behind that nobody flushed any more. XSA-408: the mend decided by the type that was to be.
///
/// The attacker's other CPU does just that, in the moment when the flush is done. It finds the page a table already.
#[test]
fn xsa_401_and_408_the_type_is_locked_before_the_flush() {
    everywhere!(nobody_maps_a_frame_whose_type_is_locked);
}

fn nobody_writes_what_a_snapshot_is_made_of<F: Hardware>() {
    let stage = Stage::<F>::new(Flaws::default());
    let secret = stage.page(2, 5);
    // The attacker's table: hung at one place, and mapped read-only where it can be unhooked.
    stage.run(1, 1);
    let [one, two] = [0, 1].map(|index| stage.unmapped(1, index));
    stage.update(1, one, 0, Stage::<F>::leaf(Shape::Writable, stage.page(1, 6))).expect("data");
    stage.update(1, two, 0, F::compose(Shape::Table, one.number())).expect("data");
    let here = Stage::<F>::address(0);
    let three = stage.place(1, here, 3);
    let shift: u32 = 12 + (1..3).map(F::index_bits).sum::<u32>();
    let below = ((here >> shift) + 1) << shift;
    let index = (three.index + 1) % F::entries(3);
    stage.update(1, three.table, index, F::compose(Shape::Table, two.number())).expect("a tree");
    stage.remap(1, here, F::compose(Shape::ReadOnly, one.number())).expect("a mapping to read it");
    assert_eq!(stage.access(1, below, Some(3)), Some(3), "{}: the tree leads there", F::NAME);
    // The other end: an address of the control domain's that maps nothing.
    stage.run(0, 0);
    let there = Stage::<F>::address(0);
    let place = stage.place(0, there, 1);
    stage.update(0, place.table, place.index, 0).expect("an entry of one's own");
    stage.run(1, 1);
    let forged = Stage::<F>::leaf(Shape::Writable, secret);
    let (sender, receiver) = std::sync::mpsc::channel();
    let (hv, loaded, at) = (stage.hv, stage.loaded(0), slot(one.number()).expect("RAM"));
    stage.machine().meanwhile(Moment::Reads(at), move || {
        let stage = Stage { hv, guests: Vec::new() };
        stage.machine().switch_to(0, Some(loaded));
        let raw = F::compose(Shape::Writable, one.number());
        let mapped = stage.update_for(0, place.table, place.index, raw, 1);
        let written = stage.machine().access(there, Some(forged));
        let unmapped = stage.update(0, place.table, place.index, 0);
        sender.send((mapped, written, unmapped)).expect("the test waits");
    });
    assert_eq!(stage.call(1, call::PENUMBRA, [call::PENUMBRA_UNHOOK, here, 0, 0, 0, 0]), Ok(0));
    let (mapped, written, unmapped) = receiver.try_recv().expect("the entries were copied");
    stage.check();
    // Back in its tree, by whatever came first.
    let _ = stage.call(1, call::PENUMBRA, [call::PENUMBRA_HOOK, call::PENUMBRA_HOOK_ALL, 0, 0, 0, 0]);
    stage.check();
    stage.access(1, below, Some(EVIL));
    assert_ne!(
        stage.machine().content.read(slot(secret.number()).expect("RAM"), 0),
        EVIL,
        "{}: through an entry that nobody has judged",
        F::NAME
    );
    assert_eq!((mapped, written, unmapped), (Err(Errno::EBUSY), None, Ok(0)), "{}", F::NAME);
}

/// To unhook a table, its entries are copied: what they hold is held by the copy. Whoever else can write to the page must not do so in
/// between, when it has ceased to be a table but is yet to be copied: its entry would count as judged.
///
/// The attacker's other CPU is the control domain's here (a domain that was granted the page can do the same): in the moment when the first entry is
/// copied, it maps the page, writes an entry that leads to another domain's page, and unmaps it.
#[test]
fn a_table_is_copied_before_anybody_can_write_to_it() {
    everywhere!(nobody_writes_what_a_snapshot_is_made_of);
}

/// An entry leads to one thing, is emptied, and leads to another at once, while a walker uses its table and nobody has asked for a flush.
fn refill<F: Hardware>(flaws: Flaws, in_one_call: bool) -> Option<String> {
    let stage = Stage::<F>::new(flaws);
    stage.run(1, 1);
    let page = stage.mapped(1, 0);
    let [one, other] = [1, 2].map(|index| stage.unmapped(1, index));
    let here = Stage::<F>::address(0);
    let leaf = stage.place(1, here, 1);
    let raw = F::compose(Shape::Writable, one.number());
    let (violation, stale) = stage.refill(leaf, here, raw, in_one_call);
    // The control experiment: what is refilled has been in use until now.
    assert_eq!(stale, Some(7), "{}", F::NAME);
    stage.remap(1, here, F::compose(Shape::Writable, page.number())).expect("back again");
    // The same of an entry that leads to a table.
    stage.pin(1, other, 1).expect("an empty table");
    let (upper, mapped) = (stage.place(1, here, 2), stage.machine());
    let raw = F::compose(Shape::Table, other.number());
    let stands = mapped.content.read(slot(upper.table.number()).expect("RAM"), upper.index);
    let (of_table, stale) = stage.refill(upper, here, raw, in_one_call);
    assert_eq!(stale, Some(7), "{}", F::NAME);
    stage.update(1, upper.table, upper.index, stands).expect("back again");
    let violation = violation.or(of_table);
    if violation.is_none() {
        stage.check();
    }
    violation
}

fn an_emptied_entry_is_forgotten_before_it_is_filled<F: Hardware>() {
    for in_one_call in [true, false] {
        assert_eq!(refill::<F>(Flaws::default(), in_one_call), None, "{}", F::NAME);
    }
}

/// Two meanings for one address, by way of an absent entry: an Arm processor that holds both may mix them (*amalgamation*), and reach a
/// frame that neither names. What the backend does where one present entry replaces another must be done for this, too.
#[test]
fn an_entry_that_is_filled_anew_has_one_meaning() {
    everywhere!(an_emptied_entry_is_forgotten_before_it_is_filled);
}

/// The stories above fail on a machine that is at fault, as they should.
#[test]
fn the_stories_can_fail() {
    let fails = |story: fn()| std::panic::catch_unwind(story).is_err();
    fn one_cpu() {
        let stage = Stage::<X86Format>::new(Flaws { flush_here_only: true, ..Flaws::default() });
        let (page, _) = leave_a_stale_mapping(&stage, 0);
        stage.run(1, 1);
        stage.unmapped(1, 0);
        stage.pin(1, page, 1).expect("an empty table");
        stage.check();
    }
    assert!(fails(one_cpu), "a flush that doesn't reach another CPU goes unseen");
    let forgetful = Flaws { no_memory: true, ..Flaws::default() };
    for in_one_call in [true, false] {
        let seen = refill::<Trimmed<VmsaStage1>>(forgetful, in_one_call).is_some();
        assert!(seen, "an entry that is filled while another is remembered goes unseen");
    }
}
