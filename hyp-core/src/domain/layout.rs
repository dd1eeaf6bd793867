//! Where a new domain's first things lie, in its pseudo-physical and virtual memory.
//!
//! Xen's layout for paravirtual kernels (`xen.h`, "Domain building"): frames are mapped one to one from `VIRT_BASE`, in this order: what
//! lies below the kernel, the kernel, the ramdisk, the P2M, the start-info page, the store and console pages (not for the
//! control domain), the page tables with the root first, the boot stack; then free memory, at least 512 KiB of it,
//! up to a multiple of 4 MiB. That is the *main region*.
//!
//! A kernel may ask by its notes for two of these things elsewhere. With `INIT_P2M` the P2M is mapped at an address of its own, the
//! *P2M region*, and with `MOD_START_PFN` the ramdisk isn't mapped at all. The frames of both then follow the main region's. The
//! tables of both regions stand together with the root, level by level, so that whoever gives them back later finds all of them there.

use core::ops::RangeInclusive;

use crate::address::{GuestVirtual, PAGE_BYTES, PAGE_SHIFT};
use crate::machine::{Level, PageTableFormat};

/// Levels that any format has, at most.
const MAX_LEVELS: usize = 5;

/// A stretch of frames that is mapped in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Region {
    /// Its first byte, guest-virtual.
    pub start: u64,
    /// The first pseudo-physical frame.
    pub first: u64,
    /// How many frames; a region without any isn't there.
    pub frames: u64,
}

impl Region {
    /// The last byte; `None` if it would lie beyond all addresses, or there is none.
    fn last(&self) -> Option<u64> {
        let bytes = self.frames.checked_mul(PAGE_BYTES)?;
        self.start.checked_add(bytes.checked_sub(1)?)
    }

    /// The pieces of `1 << shift` bytes that it touches, by their numbers.
    fn spans(&self, shift: u32) -> Option<RangeInclusive<u64>> {
        Some(self.start >> shift..=self.last()? >> shift)
    }

    /// The pages: guest-virtual address, and the pseudo-physical frame there.
    pub fn pages(&self) -> impl Iterator<Item = (GuestVirtual, u64)> + use<> {
        let Self { start, first, frames } = *self;
        (0..frames).map(move |page| {
            let address = GuestVirtual::new(start.wrapping_add(page << PAGE_SHIFT));
            (address, first.saturating_add(page))
        })
    }
}

/// A domain's first layout. Frame numbers are pseudo-physical, counts are frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What is mapped from `VIRT_BASE` on: pseudo-physical frame 0 and its successors.
    pub main: Region,
    /// The P2M, where it has an address of its own; empty otherwise.
    pub p2m_region: Region,
    /// First frame of the ramdisk.
    pub ramdisk: u64,
    /// Whether the ramdisk is one of the things that are mapped.
    pub ramdisk_is_mapped: bool,
    /// First frame of the P2M.
    pub p2m: u64,
    /// Frames of the P2M.
    pub p2m_frames: u64,
    /// The start-info page.
    pub start_info: u64,
    /// The store and the console page, if the domain has them.
    pub store_and_console: Option<(u64, u64)>,
    /// First frame of the tables, the root.
    pub tables: u64,
    /// Tables of each level: the root's count (1) is at `LEVELS - 1`.
    pub tables_of_level: [u64; MAX_LEVELS],
    /// The boot stack, one page.
    pub stack: u64,
    /// One past the last frame that is used for anything, or mapped.
    pub end: u64,
}

/// What has to be laid out.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Where pseudo-physical frame 0 is mapped, guest-virtual.
    pub virt_base: u64,
    /// Where the P2M is mapped, if the kernel wants it elsewhere than behind itself.
    pub p2m_base: Option<u64>,
    /// One past the kernel's last pseudo-physical byte.
    pub kernel_end: u64,
    /// Bytes of the ramdisk.
    pub ramdisk: u64,
    /// Whether the ramdisk has to be mapped.
    pub map_ramdisk: bool,
    /// Frames of the whole domain.
    pub pages: u64,
    /// Whether there are a store and a console page.
    pub store_and_console: bool,
    /// Bytes of free memory that are mapped after the boot stack, at least.
    pub slack: u64,
    /// What the end of the mapped region is rounded up to: bytes.
    pub alignment: u64,
}

fn frames_of(bytes: u64) -> Option<u64> {
    Some(bytes.checked_next_multiple_of(PAGE_BYTES)? >> PAGE_SHIFT)
}

/// Gives out frames, one thing after another.
struct Frames(u64);

impl Frames {
    fn take(&mut self, count: u64) -> Option<u64> {
        let first = self.0;
        self.0 = first.checked_add(count)?;
        Some(first)
    }
}

impl Layout {
    /// Lays a domain out; `None` if an address would wrap around, the regions would meet, or the tables would need tables without end.
    pub fn plan<F: PageTableFormat>(needs: Needs) -> Option<Self> {
        let (ramdisk_frames, p2m_frames) =
            (frames_of(needs.ramdisk)?, frames_of(needs.pages.checked_mul(8)?)?);
        let mut next = Frames(frames_of(needs.kernel_end)?);
        let mut ramdisk = next.take(if needs.map_ramdisk { ramdisk_frames } else { 0 })?;
        let mut p2m = next.take(if needs.p2m_base.is_none() { p2m_frames } else { 0 })?;
        let start_info = next.take(1)?;
        let store_and_console = match needs.store_and_console {
            true => Some((next.take(1)?, next.take(1)?)),
            false => None,
        };
        let mut layout = Self {
            main: Region { start: needs.virt_base, ..Region::default() },
            p2m_region: Region::default(),
            ramdisk,
            ramdisk_is_mapped: needs.map_ramdisk,
            p2m,
            p2m_frames,
            start_info,
            store_and_console,
            tables: next.0,
            tables_of_level: [0; MAX_LEVELS],
            stack: 0,
            end: 0,
        };
        if let Some(start) = needs.p2m_base {
            layout.p2m_region = Region { start, first: 0, frames: p2m_frames };
        }
        layout.plan_tables::<F>(&needs)?;
        let mut next = Frames(layout.main.frames);
        if needs.p2m_base.is_some() {
            p2m = next.take(p2m_frames)?;
        }
        if !needs.map_ramdisk {
            ramdisk = next.take(ramdisk_frames)?;
        }
        layout.p2m_region.first = p2m;
        Some(Self { p2m, ramdisk, end: next.0, ..layout })
    }

    /// The tables map themselves, so their number depends on itself: it grows until it is enough.
    fn plan_tables<F: PageTableFormat>(&mut self, needs: &Needs) -> Option<()> {
        loop {
            let before = self.table_count();
            self.stack = self.tables.checked_add(before)?;
            let used = self.stack.checked_add(1)?.checked_mul(PAGE_BYTES)?;
            let end = used.checked_add(needs.slack)?.checked_next_multiple_of(needs.alignment)?;
            self.main.frames = end >> PAGE_SHIFT;
            self.check_regions::<F>()?;
            for level in 1..=F::LEVELS {
                let count = self.count_tables::<F>(level)?;
                *self.tables_of_level.get_mut(usize::from(level).checked_sub(1)?)? = count;
            }
            if self.table_count() == before {
                return Some(());
            }
        }
    }

    /// The regions lie apart, and each within what one root translates.
    fn check_regions<F: PageTableFormat>(&self) -> Option<()> {
        let (main, p2m) = (self.main, self.p2m_region);
        let apart = p2m.frames == 0 || p2m.last()? < main.start || main.last()? < p2m.start;
        let shift = span_shift::<F>(F::LEVELS);
        let one_root =
            |region: &Region| region.spans(shift).is_some_and(|spans| spans.start() == spans.end());
        (apart && self.regions().all(one_root)).then_some(())
    }

    /// The regions that there are.
    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        [&self.main, &self.p2m_region].into_iter().filter(|region| region.frames > 0)
    }

    fn count_tables<F: PageTableFormat>(&self, level: Level) -> Option<u64> {
        if level == F::LEVELS {
            return Some(1);
        }
        let shift = span_shift::<F>(level);
        let main = length(&self.main.spans(shift)?)?;
        let Some(p2m) = self.p2m_region.spans(shift) else { return Some(main) };
        main.checked_add(length(&p2m)?)?.checked_sub(self.shared_below::<F>(level, u64::MAX))
    }

    /// How many tables of `level` both regions have in common, of those that translate what lies below the span number `below`.
    fn shared_below<F: PageTableFormat>(&self, level: Level, below: u64) -> u64 {
        let shift = span_shift::<F>(level);
        let (Some(main), Some(p2m)) = (self.main.spans(shift), self.p2m_region.spans(shift)) else {
            return 0;
        };
        let first = *main.start().max(p2m.start());
        let end = main.end().min(p2m.end()).saturating_add(1).min(below);
        end.saturating_sub(first)
    }

    /// The frame of the table of `level` that translates `address`, which lies in one of the regions: the main region's tables stand
    /// first, in the order of their addresses, and then those that are the P2M region's alone.
    pub fn table<F: PageTableFormat>(&self, level: Level, address: GuestVirtual) -> Option<u64> {
        let first = self.first_table(level);
        if level == F::LEVELS {
            return Some(first);
        }
        let shift = span_shift::<F>(level);
        let (span, main) = (address.bytes() >> shift, self.main.spans(shift)?);
        if main.contains(&span) {
            return first.checked_add(span.checked_sub(*main.start())?);
        }
        let number = span.checked_sub(*self.p2m_region.spans(shift)?.start())?;
        let number = number.checked_sub(self.shared_below::<F>(level, span))?;
        first.checked_add(length(&main)?)?.checked_add(number)
    }

    /// One address for each table of `level`, within what it translates; tables that both regions need come twice.
    pub fn addresses<F: PageTableFormat>(&self, level: Level) -> impl Iterator<Item = GuestVirtual> {
        let shift = span_shift::<F>(level);
        self.regions().flat_map(move |region| {
            let start = region.start;
            let spans = region.spans(shift).into_iter().flatten();
            spans.map(move |span| GuestVirtual::new((span << shift).max(start)))
        })
    }

    /// Frames of all tables.
    pub fn table_count(&self) -> u64 {
        self.tables_of_level.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// First frame of the tables of `level`: the root comes first, those of level 1 last.
    fn first_table(&self, level: Level) -> u64 {
        let above = self.tables_of_level.iter().skip(usize::from(level));
        above.fold(self.tables, |sum, count| sum.saturating_add(*count))
    }

    /// Whether a frame is one of the tables, and so mapped read-only.
    pub fn is_table(&self, frame: u64) -> bool {
        (self.tables..self.tables.saturating_add(self.table_count())).contains(&frame)
    }

    /// Where a frame of the main region is mapped.
    pub fn address(&self, frame: u64) -> GuestVirtual {
        GuestVirtual::new(self.main.start.wrapping_add(frame << PAGE_SHIFT))
    }

    /// Where the P2M is mapped.
    pub fn p2m_address(&self) -> GuestVirtual {
        match self.p2m_region.frames {
            0 => self.address(self.p2m),
            _ => GuestVirtual::new(self.p2m_region.start),
        }
    }
}

fn length(spans: &RangeInclusive<u64>) -> Option<u64> {
    spans.end().checked_sub(*spans.start())?.checked_add(1)
}

/// log2 of the bytes that one whole table of `level` translates; below 64 for any format.
pub fn span_shift<F: PageTableFormat>(level: Level) -> u32 {
    (1..=level).map(F::index_bits).fold(PAGE_SHIFT, u32::saturating_add).min(63)
}
