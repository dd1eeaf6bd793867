//! From the loader to the first guest.
//!
//! `boot.s` enters [`main`] in long mode on temporary tables that show the first 4 GiB at the direct map. From there: read what
//! the loader says, take the console, build and load the hypervisor's own tables, set up exceptions and the tick, give the core
//! its memory, let it build the domains, and go to the first of them. Whatever can't be used ends in one line and a stop.

use core::arch::global_asm;
use core::fmt;
use core::sync::atomic::AtomicU64;

use hyp_core::address::{MachineAddress, MachineFrame, PAGE_SIZE};
use hyp_core::frame::{BootMemory, FrameRecord, Memory, allocator};
use hyp_core::machine::Board;
use hyp_core::{BootInformation, Module, ModuleKind};
use hyp_x86::control::CR0;
use hyp_x86::layout;
use hyp_x86::ram::RamMap;
use platform::q35::apic::Apic;
use platform::q35::list::List;
use platform::q35::multiboot::{self, Information, MAXIMUM_MODULES, PhysicalMemory};
use platform::q35::options;
use unpack::begins_like_a_kernel;

use crate::machine::HYPERVISOR;
use crate::tables::{Census, Tables, image, image_physical};
use crate::unpacker::Opener;
use crate::{clock, console, cpu, descriptors, entry, interrupts, machine_check, memory, processor, stack};

/// What the temporary tables show at the direct map.
const FIRST_4_GIB: u64 = 4 << 30;
/// Frames are counted from a multiple of this.
const FRAME_GROUP: u64 = 512;

/// What `boot.s` leaves.
#[repr(C)]
struct Record {
    counter: u64,
    magic: u32,
    information: u32,
}

static mut RECORD: Record = Record { counter: 0, magic: 0, information: 0 };

global_asm!(
    include_str!("boot.s"),
    cr0 = const CR0,
    offset = const layout::IMAGE_OFFSET,
    image_slot3 = const (layout::IMAGE_OFFSET >> 30) & 511,
    image_slot4 = const layout::root_slot(layout::IMAGE_OFFSET),
    direct_slot4 = const layout::root_slot(layout::DIRECT_MAP),
    stack = sym stack::CPU,
    stack_bytes = const stack::GUARD_BYTES + stack::CPU_STACK_BYTES,
    record = sym RECORD,
    main = sym main,
    options(att_syntax)
);

/// Why the machine can't be set going. Shown as the one line before it stops.
enum Stop {
    Loader(multiboot::Malformed),
    TooManyRanges,
    NotRam(&'static str),
    NoMemory(&'static str),
    Clock(&'static str),
    Domains(hyp_core::BootError),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loader(malformed) => malformed.fmt(f),
            Self::TooManyRanges => f.write_str("the memory map has more ranges than can be kept"),
            Self::NotRam(what) => write!(
                f,
                "multiboot information: {what} doesn't lie in RAM, of which there may be too little"
            ),
            Self::NoMemory(what) => write!(f, "there is no memory for {what}"),
            Self::Clock(reason) => write!(f, "the local APIC can't be used: {reason}"),
            Self::Domains(error) => error.fmt(f),
        }
    }
}

extern "C" fn main() -> ! {
    // SAFETY: `boot.s` wrote it before this function, and nobody does afterwards.
    let record = unsafe { (&raw const RECORD).read() };
    clock::set_start(record.counter);
    let information = multiboot::read(&LoaderMemory, record.magic, record.information);
    start_console(information.as_ref().map_or("", |information| information.command_line));
    let stopped = match information {
        Ok(information) => start(&information),
        Err(malformed) => Stop::Loader(malformed),
    };
    log::error!("{stopped}; the machine stops");
    HYPERVISOR.machine().power_off()
}

/// The memory that the loader's addresses may lead to: where no PC has devices, but for the hypervisor's image.
struct LoaderMemory;

impl PhysicalMemory<'static> for LoaderMemory {
    fn bytes(&self, start: u64, length: u64) -> Option<&'static [u8]> {
        let end = start.checked_add(length)?;
        let [from, _, _, to] = image().map(image_physical);
        let apart = end <= from || to <= start;
        // SAFETY: the temporary tables show these addresses at the direct map. There is no device among them, and nothing of
        // the hypervisor's, so what is read is memory that nobody writes to until it is released, or nothing (all ones). What
        // is read later lies in RAM, which the final tables show at the same place: `check_ram` makes sure before they are loaded.
        (apart && layout::is_without_devices(start, end))
            .then(|| unsafe { core::slice::from_raw_parts(memory::direct(start), length as usize) })
    }
}

fn start_console(command_line: &str) {
    let mut complaints: List<Option<options::Complaint<'_>>, 4> = List::default();
    let serial = options::serial(command_line, |complaint| {
        // More than these few won't be missed.
        let _ = complaints.push(Some(complaint));
    });
    console::start(serial);
    hyp_core::console::init_logger(&HYPERVISOR);
    log::info!("Penumbra {} for x86-64, ABI of Xen 4.17", env!("CARGO_PKG_VERSION"));
    for complaint in complaints.iter().flatten() {
        log::warn!("{complaint}");
    }
}

/// Goes all the way to the first guest; comes back only with the reason why that can't be.
fn start(information: &Information<'static>) -> Stop {
    match prepare(information) {
        Err(stop) => stop,
        Ok(()) => {
            let context = cpu::next();
            report_boot();
            // SAFETY: `next` has switched this CPU to the context's vCPU.
            unsafe { entry::enter_guest(context) }
        }
    }
}

fn prepare(information: &Information<'static>) -> Result<(), Stop> {
    let ram = RamMap::new(
        information.memory.iter().map(|region| (region.start, region.end)),
        layout::DIRECT_MAP_BYTES,
    )
    .ok_or(Stop::TooManyRanges)?;
    check_ram(information, &ram)?;
    log::info!("{} MiB of RAM, {} modules", ram.frames().div_ceil(256), information.modules.len());
    let mut boot = BootMemory::new();
    reserve(&mut boot, information).map_err(|_| Stop::TooManyRanges)?;
    add_ram(&mut boot, &ram, 0..FIRST_4_GIB).map_err(|_| Stop::TooManyRanges)?;
    load_own_tables(&mut boot, &ram)?;
    add_ram(&mut boot, &ram, FIRST_4_GIB..u64::MAX).map_err(|_| Stop::TooManyRanges)?;
    let end = ram.end();
    memory::set_ram(ram);
    // SAFETY: once, with interrupts off, on the hypervisor's own tables.
    unsafe { descriptors::load() };
    // SAFETY: once; the exception has got its gate and its stack just now.
    unsafe { machine_check::enable() };
    processor::set_features();
    processor::judge(end * PAGE_SIZE as u64);
    processor::let_cpuid_fault();
    give_memory(&mut boot, end)?;
    // SAFETY: once, with interrupts off; the tables map the registers there.
    unsafe { interrupts::start(layout::APIC_REGISTERS) }.map_err(Stop::Clock)?;
    // SAFETY: nobody else uses the clock.
    unsafe { clock::read_time_of_day() };
    start_domains(information)
}

/// Everything that is read after the final tables are loaded must lie in RAM, since these show nothing else.
fn check_ram(information: &Information<'_>, ram: &RamMap) -> Result<(), Stop> {
    let modules = usable(information).map(|module| (module.place, "a module"));
    let others = information.occupied.iter().map(|region| (*region, "the block or one of its strings"));
    for (region, what) in modules.chain(others) {
        if !ram.holds_bytes(region.start, region.end) {
            return Err(Stop::NotRam(what));
        }
    }
    let [start, .., end] = image().map(image_physical);
    if ram.holds_bytes(start, end) { Ok(()) } else { Err(Stop::NotRam("the hypervisor's image")) }
}

fn reserve(
    boot: &mut BootMemory,
    information: &Information<'_>,
) -> Result<(), hyp_core::frame::boot_memory::TooManyRanges> {
    boot.reserve(0, layout::FIRST_MIB)?;
    let [start, .., end] = image().map(image_physical);
    boot.reserve(start, end)?;
    let modules = usable(information).map(|module| module.place);
    // What lies in the first MiB is reserved already.
    let others = information.occupied.iter().copied().filter(|region| region.end > layout::FIRST_MIB);
    modules.chain(others).try_for_each(|region| boot.reserve(region.start, region.end))
}

fn add_ram(
    boot: &mut BootMemory,
    ram: &RamMap,
    within: core::ops::Range<u64>,
) -> Result<(), hyp_core::frame::boot_memory::TooManyRanges> {
    let page = PAGE_SIZE as u64;
    ram.stretches().iter().try_for_each(|stretch| {
        let start = (stretch.first * page).max(within.start);
        let end = (stretch.end * page).min(within.end);
        if start < end { boot.add_ram(start, end) } else { Ok(()) }
    })
}

/// Builds the final tables, in memory that the temporary ones show, loads them, and judges them by a walk.
fn load_own_tables(boot: &mut BootMemory, ram: &RamMap) -> Result<(), Stop> {
    // SAFETY: this is ring 0.
    let registers = unsafe { Apic::registers() };
    let mut allocate = || boot.allocate(PAGE_SIZE as u64, PAGE_SIZE as u64).map(MachineFrame::containing);
    let root = build(&mut allocate, ram, registers).map_err(|_| Stop::NoMemory("page tables"))?;
    // SAFETY: the tables map the image, the stack in use and all RAM at the same addresses as the temporary ones.
    unsafe { cpu::load_root(root) };
    cpu::set_own_root(root);
    let census = Census::take(root);
    if census.is_sound() {
        log::info!(
            "own tables: {} text, {} read-only, {} writable pages; none writable and executable, stacks guarded",
            census.text,
            census.read_only,
            census.writable
        );
    } else {
        log::error!("own tables are NOT as they should be: {census:?}");
    }
    Ok(())
}

fn build(
    allocate: &mut dyn FnMut() -> Option<MachineFrame>,
    ram: &RamMap,
    registers: u64,
) -> Result<MachineFrame, crate::tables::NoMemory> {
    let mut tables = Tables::new(allocate)?;
    tables.fill_slots()?;
    tables.map_image()?;
    tables.map_ram(ram)?;
    tables.map_device(layout::APIC_REGISTERS, registers)?;
    Ok(tables.root())
}

/// Allocates the core's arrays, one item for each frame up to the last of RAM, and hands them over.
fn give_memory(boot: &mut BootMemory, end: u64) -> Result<(), Stop> {
    let frames = end.next_multiple_of(FRAME_GROUP);
    let m2p_bytes = frames * 8;
    let records = array(boot, frames).ok_or(Stop::NoMemory("the frame table"))?;
    let free_map = array(boot, allocator::words(frames as usize) as u64)
        .ok_or(Stop::NoMemory("the map of free frames"))?;
    let (m2p, m2p_start) = array_at(boot, frames).ok_or(Stop::NoMemory("the machine-to-physical table"))?;
    let root = cpu::own_root().ok_or(Stop::NoMemory("page tables"))?;
    let mut allocate = || boot.allocate(PAGE_SIZE as u64, PAGE_SIZE as u64).map(MachineFrame::containing);
    Tables::existing(root, &mut allocate)
        .map_m2p(0, m2p_start.bytes(), m2p_bytes.next_multiple_of(PAGE_SIZE as u64))
        .map_err(|_| Stop::NoMemory("page tables"))?;
    let first = MachineFrame::new(0).ok_or(Stop::NoMemory("frame 0"))?;
    HYPERVISOR.initialise(Memory { first, records, free_map, m2p }, boot);
    Ok(())
}

/// Types that may be all zeros and that threads may share.
///
/// # Safety
/// All zeros must be a value.
unsafe trait ZeroShared: Sync + 'static {}
// SAFETY: an atomic integer may be zero.
unsafe impl ZeroShared for AtomicU64 {}
// SAFETY: `FrameRecord::new` is all zeros: the core asks for a zeroed array of them.
unsafe impl ZeroShared for FrameRecord {}

fn array<T: ZeroShared>(boot: &mut BootMemory, count: u64) -> Option<&'static [T]> {
    array_at(boot, count).map(|(items, _)| items)
}

/// A zeroed array of RAM that lasts for ever, and its machine address; aligned to what a leaf of level 2 maps, if it is that large.
fn array_at<T: ZeroShared>(boot: &mut BootMemory, count: u64) -> Option<(&'static [T], MachineAddress)> {
    const LARGE: u64 = 2 << 20;
    let bytes =
        count.checked_mul(size_of::<T>() as u64)?.checked_next_multiple_of(memory::ZERO_WORDS as u64 * 8)?;
    let align = if bytes >= LARGE { LARGE } else { PAGE_SIZE as u64 };
    let at = boot.allocate(bytes, align)?;
    let start = memory::direct(at.bytes());
    // SAFETY: the memory was just allocated and nobody else's, the direct map shows all RAM, and zeros are values of T.
    let items = unsafe {
        memory::zero(start, (bytes / 8) as usize);
        core::slice::from_raw_parts(start.cast::<T>(), count as usize)
    };
    Some((items, at))
}

fn start_domains(information: &Information<'static>) -> Result<(), Stop> {
    let mut modules = [Module { content: &[], arguments: "", kind: ModuleKind::Kernel }; MAXIMUM_MODULES];
    for (index, (slot, module)) in modules.iter_mut().zip(information.modules.iter()).enumerate() {
        let kind = kind(index, module);
        *slot = Module { content: module.content, arguments: module.arguments, kind };
    }
    let modules = modules.get(..information.modules.len()).unwrap_or(&[]);
    let boot = BootInformation { command_line: information.command_line, modules };
    HYPERVISOR.start_domains_from(&boot, &mut Opener::default()).map_err(Stop::Domains)?;
    for module in usable(information) {
        let free = layout::released(module.place.start, module.place.end);
        HYPERVISOR.release_boot_memory(free.start, free.end);
    }
    Ok(())
}

/// What a module is, which no loader says. A kernel whose word was forgotten isn't taken for the ramdisk of the one before.
fn kind(index: usize, module: &multiboot::Module<'_>) -> ModuleKind {
    let is_named = || module.arguments.split_ascii_whitespace().any(|word| word.starts_with("domain="));
    match module.fault {
        Some(fault) => {
            log::error!("{fault}");
            ModuleKind::Unusable
        }
        None if index == 0 || is_named() || begins_like_a_kernel(module.content) => ModuleKind::Kernel,
        None => ModuleKind::Ramdisk,
    }
}

/// The modules but for those that can't be used, which have no place.
fn usable<'i, 'm>(
    information: &'i Information<'m>,
) -> impl Iterator<Item = &'i multiboot::Module<'m>> + use<'i, 'm> {
    information.modules.iter().filter(|module| module.fault.is_none())
}

fn report_boot() {
    let (total, scrubbing) = (clock::since_start(), HYPERVISOR.scrub_ticks());
    let unit = clock::unit();
    let own = total.saturating_sub(scrubbing);
    log::info!("boot: {own} {unit} from entry to the first domain (scrubbing apart: {scrubbing})");
}
