//! Where a new domain's first things lie, in its pseudo-physical and virtual memory.
//!
//! Xen's layout for paravirtual kernels (`xen.h`, "Domain building"): frames are mapped one to one from `VIRT_BASE`, in this order: what
//! lies below the kernel, the kernel, the ramdisk, the P2M, the start-info page, the store and console pages (not for the
//! control domain), the page tables with the root first, the boot stack; then free memory, at least 512 KiB of it,
//! up to a multiple of 4 MiB.

use crate::address::{GuestVirtual, PAGE_BYTES, PAGE_SHIFT};
use crate::machine::{Level, PageTableFormat};

/// Levels that any format has, at most.
const MAX_LEVELS: usize = 5;

/// A domain's first layout. Frame numbers are pseudo-physical, counts are frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where pseudo-physical frame 0 is mapped.
    pub virt_base: u64,
    /// First frame of the ramdisk.
    pub ramdisk: u64,
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
    /// One past the last frame that is mapped.
    pub end: u64,
}

/// What has to be laid out.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Where pseudo-physical frame 0 is mapped, guest-virtual.
    pub virt_base: u64,
    /// One past the kernel's last pseudo-physical byte.
    pub kernel_end: u64,
    /// Bytes of the ramdisk.
    pub ramdisk: u64,
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

impl Layout {
    /// Lays a domain out; `None` if an address would wrap around or the tables would need tables without end.
    pub fn plan<F: PageTableFormat>(needs: Needs) -> Option<Self> {
        let ramdisk = frames_of(needs.kernel_end)?;
        let p2m = ramdisk.checked_add(frames_of(needs.ramdisk)?)?;
        let p2m_frames = frames_of(needs.pages.checked_mul(8)?)?;
        let start_info = p2m.checked_add(p2m_frames)?;
        let after = start_info.checked_add(1)?;
        let store_and_console = match needs.store_and_console {
            true => Some((after, after.checked_add(1)?)),
            false => None,
        };
        let tables = store_and_console.map_or(Some(after), |(_, console)| console.checked_add(1))?;
        let mut layout = Self {
            virt_base: needs.virt_base,
            ramdisk,
            p2m,
            p2m_frames,
            start_info,
            store_and_console,
            tables,
            tables_of_level: [0; MAX_LEVELS],
            stack: 0,
            end: 0,
        };
        layout.plan_tables::<F>(&needs)?;
        Some(layout)
    }

    /// The tables map themselves, so their number depends on itself: it grows until it is enough.
    fn plan_tables<F: PageTableFormat>(&mut self, needs: &Needs) -> Option<()> {
        loop {
            let before = self.table_count();
            self.stack = self.tables.checked_add(before)?;
            let used = self.stack.checked_add(1)?.checked_mul(PAGE_BYTES)?;
            let end = used.checked_add(needs.slack)?.checked_next_multiple_of(needs.alignment)?;
            self.end = end >> PAGE_SHIFT;
            let last = self.virt_base.checked_add(end)?.checked_sub(1)?;
            for level in 1..=F::LEVELS {
                let shift = span_shift::<F>(level);
                let count = (last >> shift).checked_sub(self.virt_base >> shift)?.checked_add(1)?;
                *self.tables_of_level.get_mut(usize::from(level).checked_sub(1)?)? = count;
            }
            if self.tables_of_level.get(usize::from(F::LEVELS).checked_sub(1)?) != Some(&1) {
                return None;
            }
            if self.table_count() == before {
                return Some(());
            }
        }
    }

    /// Frames of all tables.
    pub fn table_count(&self) -> u64 {
        self.tables_of_level.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// First frame of the tables of `level`: the root comes first, those of level 1 last.
    pub fn first_table(&self, level: Level) -> u64 {
        let above = self.tables_of_level.iter().skip(usize::from(level));
        above.fold(self.tables, |sum, count| sum.saturating_add(*count))
    }

    /// Whether a frame is one of the tables, and so mapped read-only.
    pub fn is_table(&self, frame: u64) -> bool {
        (self.tables..self.tables.saturating_add(self.table_count())).contains(&frame)
    }

    /// Where a frame of the mapped region is mapped.
    pub fn address(&self, frame: u64) -> GuestVirtual {
        GuestVirtual::new(self.virt_base.wrapping_add(frame << PAGE_SHIFT))
    }
}

/// log2 of the bytes that one whole table of `level` translates; below 64 for any format.
pub fn span_shift<F: PageTableFormat>(level: Level) -> u32 {
    (1..=level).map(F::index_bits).fold(PAGE_SHIFT, u32::saturating_add).min(63)
}
