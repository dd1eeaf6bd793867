//! The hypervisor's own page tables.
//!
//! Built once at boot, in memory that stays: text may be executed and not written, read-only data neither, everything else
//! written and not executed; the guards below the stacks aren't mapped. The direct map holds all RAM with the largest pages
//! that fit, writable, except where it shows the image's text and read-only data again. Slots 256 to 271 of the root are what
//! every guest's root gets a copy of, so whatever is to be seen under a guest's root has to be there before the
//! first guest: the tables of level 3 at least.

use hyp_core::address::{MachineFrame, PAGE_SIZE};
use hyp_x86::format::Bits;
use hyp_x86::layout;
use hyp_x86::ram::RamMap;

use crate::{descriptors, guest_descriptors, memory, stack};

const PAGE: u64 = PAGE_SIZE as u64;
/// Bytes that a leaf of level 2 and of level 3 maps.
const LARGE: u64 = 2 << 20;
const HUGE: u64 = 1 << 30;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Rights of the hypervisor's pages: accessed and dirty are set at once, so that the processor needn't.
const COMMON: Bits = Bits::PRESENT.union(Bits::ACCESSED).union(Bits::DIRTY);
const TEXT: Bits = COMMON;
pub const READ_ONLY: Bits = COMMON.union(Bits::NO_EXECUTE);
const WRITABLE: Bits = READ_ONLY.union(Bits::WRITABLE);
const DEVICE: Bits = WRITABLE.union(Bits::CACHE_DISABLE).union(Bits::WRITE_THROUGH);
const GUEST_READABLE: Bits = READ_ONLY.union(Bits::USER);
/// Entries that lead to tables allow everything: leaves decide.
const TO_TABLE: Bits = COMMON.union(Bits::WRITABLE);

/// There is no memory for a table.
#[derive(Debug)]
pub struct NoMemory;

unsafe extern "C" {
    safe static image_start: u8;
    safe static image_text_end: u8;
    safe static image_rodata_end: u8;
    safe static image_end: u8;
}

/// The image: addresses where it starts, where its text and its read-only data end, and where it ends.
pub fn image() -> [u64; 4] {
    [&image_start, &image_text_end, &image_rodata_end, &image_end].map(|label| &raw const *label as u64)
}

/// The machine address of something in the image.
pub const fn image_physical(address: u64) -> u64 {
    address - layout::IMAGE_OFFSET
}

/// Tables under construction.
pub struct Tables<'a> {
    root: MachineFrame,
    allocate: &'a mut dyn FnMut() -> Option<MachineFrame>,
    huge_pages: bool,
}

impl<'a> Tables<'a> {
    /// Empty tables; further ones come from `allocate`: frames that the direct map shows, and that nobody else uses.
    pub fn new(allocate: &'a mut dyn FnMut() -> Option<MachineFrame>) -> Result<Self, NoMemory> {
        let root = table(allocate)?;
        // CPUID 0x80000001, edx bit 26: pages of 1 GiB.
        let huge_pages = core::arch::x86_64::__cpuid(0x8000_0001).edx >> 26 & 1 != 0;
        Ok(Self { root, allocate, huge_pages })
    }

    /// Tables that exist already, to add to.
    pub fn existing(root: MachineFrame, allocate: &'a mut dyn FnMut() -> Option<MachineFrame>) -> Self {
        Self { root, allocate, huge_pages: false }
    }

    /// The root.
    pub fn root(&self) -> MachineFrame {
        self.root
    }

    /// Maps the image, with the rights of each of its parts, and the segment table.
    pub fn map_image(&mut self) -> Result<(), NoMemory> {
        let [start, text_end, rodata_end, end] = image();
        let guards = stack::guards();
        for address in (start..end).step_by(PAGE_SIZE) {
            let rights = match address {
                _ if address < text_end => TEXT,
                _ if address < rodata_end => READ_ONLY,
                _ => WRITABLE,
            };
            if !guards.contains(&address) {
                self.map(address, image_physical(address), 1, rights)?;
            }
        }
        for (index, (own, page)) in descriptors::segment_pages().enumerate() {
            let address = layout::DESCRIPTOR_TABLE + index as u64 * PAGE;
            self.map(address, image_physical(page), 1, if own { WRITABLE } else { READ_ONLY })?;
        }
        let window = (2..=4).rev().try_fold(self.root, |table, level| {
            self.below(table, index(layout::DESCRIPTOR_TABLE, level), TO_TABLE)
        })?;
        guest_descriptors::set_window(window);
        Ok(())
    }

    /// Maps all RAM at the direct map.
    pub fn map_ram(&mut self, ram: &RamMap) -> Result<(), NoMemory> {
        for stretch in ram.stretches() {
            let (mut at, end) = (stretch.first * PAGE, stretch.end * PAGE);
            while at < end {
                let (bytes, level) = self.largest(at, end);
                self.map(layout::DIRECT_MAP + at, at, level, direct_rights(at))?;
                at += bytes;
            }
        }
        Ok(())
    }

    /// The largest leaf that maps `at` and nothing from `end` on, and has the same rights all over.
    fn largest(&self, at: u64, end: u64) -> (u64, u8) {
        let fits =
            |bytes: u64| at.is_multiple_of(bytes) && end - at >= bytes && !shows_constants(at, at + bytes);
        match () {
            () if self.huge_pages && fits(HUGE) => (HUGE, 3),
            () if fits(LARGE) => (LARGE, 2),
            () => (PAGE, 1),
        }
    }

    /// Maps a page of device registers.
    pub fn map_device(&mut self, address: u64, registers: u64) -> Result<(), NoMemory> {
        self.map(address, registers & ADDRESS, 1, DEVICE)
    }

    /// Maps `bytes` bytes from machine address `start` on where guests read the machine-to-physical table, `offset` bytes into
    /// the window.
    pub fn map_m2p(&mut self, offset: u64, start: u64, bytes: u64) -> Result<(), NoMemory> {
        let mut done = 0;
        while done < bytes {
            let (address, from) = (layout::M2P_WINDOW + offset + done, start + done);
            let large = address.is_multiple_of(LARGE) && from.is_multiple_of(LARGE) && bytes - done >= LARGE;
            self.map(address, from, if large { 2 } else { 1 }, GUEST_READABLE)?;
            done += if large { LARGE } else { PAGE };
        }
        Ok(())
    }

    /// Makes sure that each reserved slot of the root leads to a table, so that what is mapped there later, if anything, is
    /// seen under every root that was made before.
    pub fn fill_slots(&mut self) -> Result<(), NoMemory> {
        for slot in layout::RESERVED_SLOTS {
            let above =
                if slot == layout::root_slot(layout::M2P_WINDOW) { TO_TABLE | Bits::USER } else { TO_TABLE };
            self.below(self.root, slot, above)?;
        }
        Ok(())
    }

    fn map(&mut self, address: u64, to: u64, level: u8, rights: Bits) -> Result<(), NoMemory> {
        let above = TO_TABLE | rights & Bits::USER;
        let mut table = self.root;
        for step in (level + 1..=4).rev() {
            table = self.below(table, index(address, step), above)?;
        }
        let large = if level > 1 { Bits::LARGE } else { Bits::empty() };
        let entry = memory_entry(table, index(address, level));
        // Relaxed, as all here: one CPU builds the tables, and loading a root orders what the walker finds.
        entry.store(to | (rights | large).bits(), core::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    /// The table to which an entry leads, made if there is none.
    fn below(&mut self, above: MachineFrame, index: usize, rights: Bits) -> Result<MachineFrame, NoMemory> {
        let entry = memory_entry(above, index);
        // Relaxed: as above.
        if let Some(found) = lower(entry.load(core::sync::atomic::Ordering::Relaxed)) {
            return Ok(found);
        }
        let made = table(self.allocate)?;
        // Relaxed: as above.
        entry.store(made.start().bytes() | rights.bits(), core::sync::atomic::Ordering::Relaxed);
        Ok(made)
    }
}

/// An empty table.
fn table(allocate: &mut dyn FnMut() -> Option<MachineFrame>) -> Result<MachineFrame, NoMemory> {
    let frame = allocate().ok_or(NoMemory)?;
    // SAFETY: `allocate` gives frames that the direct map shows and that nobody else uses.
    unsafe { memory::zero(memory::direct(frame.start().bytes()), PAGE_SIZE / 8) };
    Ok(frame)
}

fn memory_entry(table: MachineFrame, index: usize) -> &'static core::sync::atomic::AtomicU64 {
    let words = memory::direct(table.start().bytes()).cast::<core::sync::atomic::AtomicU64>();
    // SAFETY: the tables of this module are frames of the direct map that are never given back; an index has 9 bits.
    unsafe { &*words.add(index & 511) }
}

/// The table to which a present entry leads.
fn lower(raw: u64) -> Option<MachineFrame> {
    let bits = Bits::from_bits_retain(raw);
    let leads_on = bits.contains(Bits::PRESENT) && !bits.contains(Bits::LARGE);
    leads_on.then(|| MachineFrame::new((raw & ADDRESS) >> 12)).flatten()
}

const fn index(address: u64, level: u8) -> usize {
    (address >> (12 + 9 * (level as u32 - 1))) as usize & 511
}

/// Whether machine memory from `start` to `end` shows the image's text or read-only data.
fn shows_constants(start: u64, end: u64) -> bool {
    let [from, _, to, _] = image().map(image_physical);
    start < to && from < end
}

fn direct_rights(at: u64) -> Bits {
    if shows_constants(at, at + PAGE) { READ_ONLY } else { WRITABLE }
}

/// What a walk of the real tables has found, in pages of 4 KiB.
#[derive(Default, Debug)]
pub struct Census {
    /// Executable.
    pub text: u64,
    /// Neither writable nor executable.
    pub read_only: u64,
    /// Writable.
    pub writable: u64,
    /// Writable and executable: there must be none.
    pub both: u64,
    /// Guards that are mapped: there must be none.
    pub open_guards: u64,
    /// Pages that guests can write, or read outside the machine-to-physical window: there must be none.
    pub exposed: u64,
}

impl Census {
    /// Walks everything that `root` maps.
    pub fn take(root: MachineFrame) -> Self {
        let mut census = Self::default();
        census.walk(root, 4, 0, TO_TABLE | Bits::USER);
        census
    }

    /// Whether nothing was found that must not be.
    pub fn is_sound(&self) -> bool {
        self.both == 0 && self.open_guards == 0 && self.exposed == 0 && self.text > 0
    }

    /// Rights add up on the way down: writable and user only if every level says so, no-execute if any does.
    fn walk(&mut self, table: MachineFrame, level: u8, from: u64, above: Bits) {
        for index in 0..512u64 {
            // Relaxed: as above.
            let raw = memory_entry(table, index as usize).load(core::sync::atomic::Ordering::Relaxed);
            let bits = Bits::from_bits_retain(raw & !ADDRESS);
            if !bits.contains(Bits::PRESENT) {
                continue;
            }
            let narrowing = Bits::WRITABLE | Bits::USER;
            let rights = (above & bits & narrowing) | ((above | bits) & Bits::NO_EXECUTE);
            let address = from | index << (12 + 9 * (u32::from(level) - 1));
            match lower(raw).filter(|_| level > 1) {
                Some(below) => self.walk(below, level - 1, address, rights),
                None => self.count(address, 1 << (9 * (u32::from(level) - 1)), rights),
            }
        }
    }

    fn count(&mut self, address: u64, pages: u64, rights: Bits) {
        let writable = rights.contains(Bits::WRITABLE);
        let executable = !rights.contains(Bits::NO_EXECUTE);
        *match (writable, executable) {
            (true, true) => &mut self.both,
            (true, false) => &mut self.writable,
            (false, true) => &mut self.text,
            (false, false) => &mut self.read_only,
        } += pages;
        let canonical = if address >> 47 == 0 { address } else { address | 0xffff_0000_0000_0000 };
        let window = layout::M2P_WINDOW..layout::M2P_WINDOW + layout::M2P_WINDOW_BYTES;
        if rights.contains(Bits::USER) && (writable || !window.contains(&canonical)) {
            self.exposed += pages;
        }
        let end = canonical.wrapping_add(pages * PAGE);
        self.open_guards +=
            stack::guards().iter().filter(|guard| canonical <= **guard && **guard < end).count() as u64;
    }
}
