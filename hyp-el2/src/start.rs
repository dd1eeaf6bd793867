//! The boot sequence, from the end of `boot.s` to the first guest.

use core::fmt;
use core::ptr::{self, NonNull};

use aarch64_cpu::registers::{CNTFRQ_EL0, Readable};
use hyp_core::frame::BootMemory;
use hyp_core::machine::Board as _;
use hyp_core::{BootError, BootInformation, Module, ModuleKind};
use hyp_el2::layout::{BLOCK, BOOT_WINDOW};
use hyp_el2::mapper::MapError;
use platform::virt::gic::{GicError, Registers};
use platform::virt::{self, Board, DeviceTree, DeviceTreeError, Gic, Range, Ranges, Uart};

use crate::board::{self, CONSOLE, INTERRUPTS};
use crate::cpu::{self, Cpu};
use crate::frame_arrays::{self, NoRoom};
use crate::machine::El2;
use crate::own_tables::{self, Builder};
use crate::{HYPERVISOR, control, memory, oracle, run};

unsafe extern "C" {
    /// `vectors.s`: runs the guest whose context this is.
    fn enter_guest(context: *const crate::context::GuestContext) -> !;
}

/// Boot modules that are passed on.
const MAX_MODULES: usize = 16;

/// Why the machine stops before there is a guest.
enum Stop {
    DeviceTree(DeviceTreeError),
    NoUart,
    Tables(MapError),
    Interrupts(GicError),
    TooManyRanges,
    NoRoom,
    Domains(BootError),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceTree(error) => error.fmt(f),
            Self::NoUart => write!(f, "device tree: no PL011 UART"),
            Self::Tables(error) => write!(f, "own tables can't be built: {error:?}"),
            Self::Interrupts(error) => write!(f, "interrupt controller: {error:?}"),
            Self::TooManyRanges => write!(f, "device tree: too many ranges of memory"),
            Self::NoRoom => write!(f, "not enough memory for the frame table"),
            Self::Domains(error) => error.fmt(f),
        }
    }
}

impl From<DeviceTreeError> for Stop {
    fn from(error: DeviceTreeError) -> Self {
        Self::DeviceTree(error)
    }
}

impl From<MapError> for Stop {
    fn from(error: MapError) -> Self {
        Self::Tables(error)
    }
}

impl From<GicError> for Stop {
    fn from(error: GicError) -> Self {
        Self::Interrupts(error)
    }
}

impl From<NoRoom> for Stop {
    fn from(_: NoRoom) -> Self {
        Self::NoRoom
    }
}

/// Called by `boot.s`: machine addresses of device tree and image, and the counter at entry.
#[unsafe(no_mangle)]
extern "C" fn boot_main(device_tree: u64, load: u64, entered: u64) -> ! {
    board::set_boot_time(entered);
    let cpu = cpu::initialise(own_tables::stack_top());
    hyp_core::console::init_logger(&HYPERVISOR);
    match prepare(device_tree, load) {
        Ok(()) => enter_first_guest(cpu),
        Err(stop) => {
            log::error!("{stop}");
            log::error!("the machine stops");
            El2.power_off()
        }
    }
}

/// Everything up to domains that could run.
fn prepare(device_tree: u64, load: u64) -> Result<(), Stop> {
    let tree = device_tree_memory(device_tree).and_then(DeviceTree::new).inspect_err(|_| {
        attach_uart_early(virt::LAST_RESORT_UART);
    })?;
    board::set_firmware(tree.firmware());
    let uart = tree.console().ok_or(Stop::NoUart).inspect_err(|_| {
        attach_uart_early(virt::LAST_RESORT_UART);
    })?;
    attach_uart_early(uart.registers.start);
    log::info!("Penumbra {} on aarch64, at EL2", env!("CARGO_PKG_VERSION"));
    let board = tree.board()?;
    let own = Range::new(load, own_tables::image_size()).ok_or(Stop::NoRoom)?;
    let blob = Range::new(device_tree, tree.size() as u64).ok_or(Stop::NoRoom)?;
    let ram = own_tables::usable_ram(&board.memory);

    let tables = take_over(&board, &uart, &ram, load, blob)?;
    describe(&board, &uart, &ram);
    tables.report();
    control::confine_guests();
    oracle::initialise(load);
    let mut boot = boot_memory(&board, &ram, [own, blob])?;
    let arrays = frame_arrays::allocate(&mut boot, load)?;
    HYPERVISOR.initialise(arrays, &boot);
    start_domains(&board, &ram)?;
    release_modules(&board, &ram, [own, blob]);
    Ok(())
}

/// The device tree's blob in the boot window, exactly as long as its header says: what follows may be no memory at all, when the blob
/// lies at the end of RAM.
fn device_tree_memory(device_tree: u64) -> Result<&'static [u8], DeviceTreeError> {
    if device_tree == 0 || !device_tree.is_multiple_of(8) {
        return Err(DeviceTreeError::NoBlob);
    }
    let start = ptr::with_exposed_provenance::<u8>((BOOT_WINDOW + device_tree % BLOCK) as usize);
    // SAFETY: boot.s has mapped two blocks, read-only, from the one that holds the blob; the header's first bytes don't cross a
    // page, being aligned to 8. The boot loader leaves them alone.
    let prefix = unsafe { core::slice::from_raw_parts(start, DeviceTree::SIZE_PREFIX) };
    let size = DeviceTree::claimed_size(prefix)?;
    // SAFETY: the size is at most one block, so the blob ends within the two; nobody writes there, and our own tables keep mapping
    // that much at the same place.
    Ok(unsafe { core::slice::from_raw_parts(start, size) })
}

const _: () = assert!(virt::MAX_BLOB_SIZE as u64 <= BLOCK && DeviceTree::SIZE_PREFIX <= 8);

fn attach_uart_early(machine: u64) {
    let address = own_tables::map_uart_early(machine);
    attach_uart(address);
}

fn attach_uart(address: u64) {
    if let Some(registers) = pointer(address) {
        // SAFETY: the address was just mapped as device memory, and only the console uses it.
        unsafe { CONSOLE.attach(registers) };
    }
}

fn pointer(address: u64) -> Option<NonNull<u8>> {
    NonNull::new(ptr::with_exposed_provenance_mut(address as usize))
}

/// Builds and activates our own tables, and moves to the devices as they map them.
fn take_over(
    board: &Board<'_>,
    uart: &Uart,
    ram: &Ranges,
    load: u64,
    blob: Range,
) -> Result<own_tables::OwnTables, Stop> {
    let mut builder = Builder::new(load)?;
    builder.map_ram(ram)?;
    builder.map_image()?;
    builder.map_device_tree(blob.start, blob.size())?;
    let uart_address = builder.map_device(uart.registers)?;
    let (first, second) = match board.gic {
        Gic::V2 { distributor, cpu_interface } => (distributor, cpu_interface),
        Gic::V3 { distributor, redistributors } => (distributor, redistributors),
    };
    let (first, second) = (builder.map_device(first)?, builder.map_device(second)?);
    let tables = builder.activate();
    memory::set_ram(ram.clone());
    attach_uart(uart_address);
    set_up_interrupts(board, uart, first, second)?;
    Ok(tables)
}

fn set_up_interrupts(board: &Board<'_>, uart: &Uart, first: u64, second: u64) -> Result<(), Stop> {
    let (Some(first), Some(second)) = (pointer(first), pointer(second)) else { return Ok(()) };
    let registers = match board.gic {
        Gic::V2 { .. } => Registers::V2(first, second),
        Gic::V3 { .. } => Registers::V3(first, second),
    };
    // SAFETY: both were just mapped as device memory, for ever, and only the controller's driver uses them.
    unsafe { INTERRUPTS.attach(registers)? };
    INTERRUPTS.enable(board.timer_interrupt)?;
    if let Some(interrupt) = uart.interrupt {
        CONSOLE.enable_receive_interrupt();
        INTERRUPTS.enable(interrupt)?;
    }
    run::set_interrupts(board.timer_interrupt, uart.interrupt);
    Ok(())
}

/// What the board is, in a few lines.
fn describe(board: &Board<'_>, uart: &Uart, ram: &Ranges) {
    for range in ram.iter() {
        log::info!("memory: {:#x}..{:#x}, {} MiB", range.start, range.end, range.size() >> 20);
    }
    if board.memory.overflowed() || board.reserved.overflowed() {
        log::warn!("device tree: more memory ranges than can be kept; the rest is not used");
    }
    let version = if matches!(board.gic, Gic::V2 { .. }) { 2 } else { 3 };
    let timer = board.timer_interrupt;
    let frequency = CNTFRQ_EL0.get();
    log::info!(
        "GIC v{version}; timer at {frequency} Hz, interrupt {timer}; UART at {:#x}",
        uart.registers.start
    );
    for module in board.modules.iter() {
        let kind = match module.kind {
            virt::ModuleKind::Kernel => "kernel",
            virt::ModuleKind::Ramdisk => "ramdisk",
        };
        let (start, arguments) = (module.place, module.arguments);
        match module.content {
            Some(content) => {
                log::info!("module: {kind} at {start:#x}, {} bytes: {arguments}", content.size())
            }
            None => log::error!("module: {kind} near {start:#x} without a usable `reg`: {arguments}"),
        }
    }
    if board.modules.left_out() > 0 {
        log::warn!("device tree: {} boot modules can't be used", board.modules.left_out());
    }
}

/// RAM, and all that is in use already.
fn boot_memory(board: &Board<'_>, ram: &Ranges, own: [Range; 2]) -> Result<BootMemory, Stop> {
    let mut boot = BootMemory::new();
    for range in ram.iter() {
        boot.add_ram(range.start, range.end).map_err(|_| Stop::TooManyRanges)?;
    }
    if board.reserved.overflowed() {
        return Err(Stop::TooManyRanges);
    }
    let modules = board.modules.iter().filter_map(|module| module.content);
    for range in own.into_iter().chain(modules).chain(board.reserved.iter()) {
        boot.reserve(range.start, range.end).map_err(|_| Stop::TooManyRanges)?;
    }
    Ok(boot)
}

/// Hands the modules to the core. One that isn't there is handed over empty, so that it fails in its own role, and nobody else
/// gets that role.
fn start_domains(board: &Board<'_>, ram: &Ranges) -> Result<(), Stop> {
    let nothing = Module { content: &[], arguments: "", kind: ModuleKind::Kernel };
    let mut modules = [nothing; MAX_MODULES];
    let mut count = 0;
    for module in board.modules.iter() {
        let content = module.content.and_then(|range| {
            let content = module_content(range, ram);
            if content.is_none() {
                log::error!("module at {:#x}: not within memory", range.start);
            }
            content
        });
        let content = content.unwrap_or_default();
        let kind = match module.kind {
            virt::ModuleKind::Kernel => ModuleKind::Kernel,
            virt::ModuleKind::Ramdisk => ModuleKind::Ramdisk,
        };
        if let Some(slot) = modules.get_mut(count) {
            *slot = Module { content, arguments: module.arguments, kind };
            count += 1;
        }
    }
    let modules = modules.get(..count).unwrap_or_default();
    HYPERVISOR
        .start_domains(&BootInformation { command_line: board.command_line, modules })
        .map_err(Stop::Domains)
}

/// Makes the modules' memory free, apart from modules that aren't where modules should be: outside RAM, or across something else
/// that is in use.
fn release_modules(board: &Board<'_>, ram: &Ranges, own: [Range; 2]) {
    let overlap = |a: Range, b: Range| a.start < b.end && b.start < a.end;
    for module in board.modules.iter().filter_map(|module| module.content) {
        // Pages count, not bytes.
        let pages = Range { start: module.start & !0xfff, end: module.end.next_multiple_of(0x1000) };
        let in_use = own.into_iter().chain(board.reserved.iter()).any(|range| overlap(range, pages));
        if module_content(module, ram).is_some() && !in_use {
            HYPERVISOR.release_boot_memory(module.start, module.end);
        }
    }
}

/// The module's bytes in the direct map, if it lies within one range of RAM.
fn module_content(range: Range, ram: &Ranges) -> Option<&'static [u8]> {
    ram.iter().find(|ram| ram.start <= range.start && range.end <= ram.end)?;
    let size = usize::try_from(range.size()).ok()?;
    // SAFETY: within RAM in the direct map, and reserved until the core has copied what it wants; nobody writes there.
    Some(unsafe { core::slice::from_raw_parts(memory::direct(range.start), size) })
}

/// Starts the tick, and the first guest with it.
fn enter_first_guest(cpu: &'static Cpu) -> ! {
    board::arm_tick();
    let context = run::next(cpu);
    let scrubbing = board::nanoseconds(HYPERVISOR.scrub_ticks());
    let total = board::nanoseconds(board::elapsed()).saturating_sub(scrubbing);
    let unit = if board::counter_counts_instructions() { "instructions" } else { "ns" };
    log::info!("boot: {total} {unit} from entry to the first domain (scrubbing apart: {scrubbing})");
    // SAFETY: the context is that of the vCPU whose registers and roots were just loaded, and lives for ever.
    unsafe { enter_guest(context) }
}
