//! EL2's own address space: built from what the board has, then checked by walking it.
//!
//! Table pages come from a pool in .bss, so nothing has to be found for them. See [`hyp_el2::layout`] for what goes where.

use core::arch::asm;
use core::ptr;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hyp_el2::layout::{BLOCK, BOOT_WINDOW, BOOT_WINDOW_UART, DEVICES, DIRECT_MAP, IMAGE, MACHINE_LIMIT};
use hyp_el2::mapper::{self, Attributes, MapError, TableStore};
use platform::virt::{Range, Ranges};

const PAGE: u64 = 4096;
/// Tables for 32 ranges of RAM, the image, devices, and the guests' view of the M2P.
const POOL_PAGES: usize = 96;
/// `SCTLR_EL2`: RES1, WXN, I, SA, C, M.
const SCTLR: u64 = 0x30c5_183d | 1 << 19;

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

static POOL: [Table; POOL_PAGES] = [const { Table([const { AtomicU64::new(0) }; 512]) }; POOL_PAGES];
static USED: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    static __text_end: u8;
    static __rodata_end: u8;
    static __data_end: u8;
    static __stack_guard: u8;
    static __stack_bottom: u8;
    static __stack_top: u8;
    static __emergency_guard: u8;
    static __emergency_bottom: u8;
    static __emergency_top: u8;
    static __boot_tables: u8;
    static __image_end: u8;

    fn switch_tables(root: u64, sctlr: u64, offset: u64);
}

/// The address of a symbol of the linker script.
macro_rules! address_of {
    ($symbol:ident) => {
        ptr::addr_of!($symbol).addr() as u64
    };
}

/// The pool of table pages. Knows where the image is: virtual minus machine address.
#[derive(Clone, Copy)]
pub struct Pool {
    offset: u64,
}

impl Pool {
    /// For an image that was loaded at the machine address `load`.
    pub fn new(load: u64) -> Self {
        Self { offset: IMAGE.wrapping_sub(load) }
    }

    fn entry(&self, table: u64, index: usize) -> Option<&'static AtomicU64> {
        let start = ptr::from_ref(&POOL).addr() as u64;
        let page = table.wrapping_add(self.offset).wrapping_sub(start) / PAGE;
        POOL.get(usize::try_from(page).ok()?)?.0.get(index)
    }
}

impl TableStore for Pool {
    fn allocate(&mut self) -> Option<u64> {
        // Relaxed: each taker gets a number of its own, and that is all that is asked of it.
        let page = POOL.get(USED.fetch_add(1, Ordering::Relaxed))?;
        Some((ptr::from_ref(page).addr() as u64).wrapping_sub(self.offset))
    }

    fn read(&self, table: u64, index: usize) -> u64 {
        // Relaxed: one CPU builds these tables.
        self.entry(table, index).map_or(0, |entry| entry.load(Ordering::Relaxed))
    }

    fn write(&mut self, table: u64, index: usize, raw: u64) {
        if let Some(entry) = self.entry(table, index) {
            // Relaxed: walkers are told by barriers, when the tables are complete.
            entry.store(raw, Ordering::Relaxed);
        }
    }
}

/// Size of the image in memory, stacks included (bytes).
pub fn image_size() -> u64 {
    address_of!(__image_end) - IMAGE
}

/// Whether the frame at this machine address is one of the table pages, in an image loaded at `load`.
#[cfg(feature = "oracle")]
pub fn is_own_table(address: u64, load: u64) -> bool {
    let start = (ptr::from_ref(&POOL).addr() as u64).wrapping_sub(IMAGE.wrapping_sub(load));
    address.wrapping_sub(start) < size_of_val(&POOL) as u64
}

/// Top of the boot CPU's stack.
pub fn stack_top() -> u64 {
    address_of!(__stack_top)
}

/// Makes the UART at `machine` usable while the boot tables are still in use; returns its virtual address.
pub fn map_uart_early(machine: u64) -> u64 {
    const DEVICE_BLOCK: u64 = 0x445 | 1 << 54; // attribute index 1, AP[1], AF, XN
    let slot = (BOOT_WINDOW_UART - BOOT_WINDOW) / BLOCK;
    let entry = address_of!(__boot_tables) + 3 * PAGE + slot * 8;
    let block = machine & !(BLOCK - 1);
    // SAFETY: the fourth boot table is the boot window's (boot.s); its third entry is ours to fill, once, from absent to valid.
    unsafe {
        ptr::with_exposed_provenance_mut::<u64>(entry as usize).write_volatile(block | DEVICE_BLOCK);
        asm!("dsb ish", "isb", options(nostack));
    }
    BOOT_WINDOW_UART + machine % BLOCK
}

/// Builds the tables.
pub struct Builder {
    pool: Pool,
    root: u64,
    next_device: u64,
}

impl Builder {
    /// An empty address space.
    pub fn new(load: u64) -> Result<Self, MapError> {
        let mut pool = Pool::new(load);
        let root = pool.allocate().ok_or(MapError::NoTables)?;
        Ok(Self { pool, root, next_device: DEVICES })
    }

    fn map(&mut self, address: u64, machine: u64, size: u64, attributes: Attributes) -> Result<(), MapError> {
        mapper::map(&mut self.pool, self.root, address, machine, size, attributes)
    }

    /// The direct map of RAM. `ram` is whole pages.
    pub fn map_ram(&mut self, ram: &Ranges) -> Result<(), MapError> {
        for range in ram.iter() {
            self.map(DIRECT_MAP + range.start, range.start, range.size(), Attributes::DATA)?;
        }
        // What can't be written through the image's own mapping can't be written through this one either.
        let load = IMAGE.wrapping_sub(self.pool.offset);
        let constant = address_of!(__rodata_end) - IMAGE;
        self.map(DIRECT_MAP + load, load, constant, Attributes::READ_ONLY)
    }

    /// The image, each part with its own rights, and the one page that is also mapped identically.
    pub fn map_image(&mut self) -> Result<(), MapError> {
        let (text, rodata) = (address_of!(__text_end), address_of!(__rodata_end));
        self.map_part(IMAGE, text, Attributes::TEXT)?;
        self.map_part(text, rodata, Attributes::READ_ONLY)?;
        self.map_part(rodata, address_of!(__data_end), Attributes::DATA)?;
        self.map_part(address_of!(__stack_bottom), address_of!(__stack_top), Attributes::DATA)?;
        self.map_part(address_of!(__emergency_bottom), address_of!(__emergency_top), Attributes::DATA)?;
        let load = IMAGE.wrapping_sub(self.pool.offset);
        self.map(load, load, PAGE, Attributes::TEXT)
    }

    fn map_part(&mut self, start: u64, end: u64, attributes: Attributes) -> Result<(), MapError> {
        self.map(start, start.wrapping_sub(self.pool.offset), end - start, attributes)
    }

    /// The device tree, where the boot tables have it, so that references to it stay good.
    pub fn map_device_tree(&mut self, machine: u64, size: u64) -> Result<(), MapError> {
        let start = machine & !(PAGE - 1);
        let end = (machine + size).next_multiple_of(PAGE);
        self.map(BOOT_WINDOW + start % BLOCK, start, end - start, Attributes::READ_ONLY)
    }

    /// A device's registers; returns their virtual address.
    pub fn map_device(&mut self, registers: Range) -> Result<u64, MapError> {
        let address = self.next_device;
        let size = registers.size().next_multiple_of(PAGE);
        self.map(address, registers.start, size, Attributes::DEVICE)?;
        self.next_device += size.next_multiple_of(BLOCK);
        Ok(address)
    }

    /// Uses these tables from now on.
    pub fn activate(self) -> OwnTables {
        // SAFETY: the tables map the image, the stack in use and the page of `switch_tables` itself, as `map_image` has seen to.
        unsafe { switch_tables(self.root, SCTLR, self.pool.offset) };
        OwnTables { pool: self.pool, root: self.root }
    }
}

/// RAM in whole pages, within what the direct map can hold.
pub fn usable_ram(ram: &Ranges) -> Ranges {
    let mut usable = Ranges::default();
    for range in ram.iter() {
        let start = range.start.next_multiple_of(PAGE);
        let end = range.end.min(MACHINE_LIMIT) & !(PAGE - 1);
        if let Some(range) = end.checked_sub(start).and_then(|size| Range::new(start, size)) {
            usable.push(range);
        }
    }
    usable
}

/// The tables in use.
pub struct OwnTables {
    pool: Pool,
    root: u64,
}

impl OwnTables {
    /// Walks the tables and says what they are like; loudly, if they aren't as they should be.
    pub fn report(&self) {
        let survey = mapper::survey(&self.pool, self.root);
        let unmapped = |address: u64| mapper::translate(&self.pool, self.root, address).is_none();
        let guarded = unmapped(address_of!(__stack_guard)) && unmapped(address_of!(__emergency_guard));
        if survey.writable_and_executable != 0 {
            log::error!("own tables: {} pages are writable AND executable", survey.writable_and_executable);
        }
        if !guarded {
            log::error!("own tables: the stacks are NOT guarded");
        }
        if survey.writable_and_executable == 0 && guarded {
            log::info!(
                "own tables: {} text, {} read-only, {} writable pages; none writable and executable, stacks guarded",
                survey.text,
                survey.read_only,
                survey.writable
            );
        }
    }
}
